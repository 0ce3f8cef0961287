"""Write what systems say about Test3 of MSP-Podcast as files to submit to the challenge."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from espnet_adaltm.bin import cli
from espnet_adaltm.data.labels import load_labels
from espnet_adaltm.errors import UserError
from espnet_adaltm.kaldi import read_scp
from espnet_adaltm.scoring.submission import predictions, write_submission

EXAMPLE = """
example:
  python -m espnet_adaltm.bin.msp_submission --systems "adaltm:1=exp/merge_adaltm_seed1" \\
      --dump dump/test3 --labels data/labels.json --out submissions
"""


def get_parser() -> argparse.ArgumentParser:
    """Arguments of this program."""
    parser = cli.parser(__doc__ + EXAMPLE)
    parser.add_argument(
        "--systems", nargs="+", required=True, help="name=folder or name:seed=folder"
    )
    parser.add_argument("--dump", type=Path, required=True, help="the set, e.g. dump/test3")
    parser.add_argument("--labels", type=Path, required=True, help="labels.json")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    return parser


def work(args: argparse.Namespace) -> None:
    """Write a file per system that knows emotions."""
    labels = load_labels(args.labels)
    utterances = read_scp(args.dump / "wav.scp")
    written = 0
    for entry in " ".join(args.systems).split():
        name, equals, folder = entry.partition("=")
        if not (name and equals and folder):
            raise UserError(f"--systems {entry!r} is not name=folder")
        decoded = Path(folder) / "decode" / args.dump.name
        if (decoded / "text").exists() and not (decoded / "utt2prob").exists():
            continue  # an ASR expert
        if not decoded.exists():
            print(f"{name} was not decoded on {args.dump.name}: no file of it")
            continue
        answers = predictions(decoded, utterances, labels)
        write_submission(args.out / f"{name.replace(':', '_seed')}.csv", answers)
        written += 1
    print(f"{written} files to submit: {args.out}")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    cli.run(work, get_parser(), argv)


if __name__ == "__main__":
    main()
