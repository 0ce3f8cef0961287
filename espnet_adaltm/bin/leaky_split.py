"""Put a tenth of every speaker's utterances aside, as MTLSER was published: sets that leak."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from espnet_adaltm.bin import cli
from espnet_adaltm.data.leaky_split import WARNING, leaky_split

EXAMPLE = """
example:
  python -m espnet_adaltm.bin.leaky_split --sets data/train data/dev data/test \\
      --out data/published_leaky
"""


def get_parser() -> argparse.ArgumentParser:
    """Arguments of this program."""
    parser = cli.parser(__doc__ + EXAMPLE)
    parser.add_argument("--sets", type=Path, nargs="+", required=True, help="data directories")
    parser.add_argument("--out", type=Path, required=True, help="gets train and published_leaky")
    parser.add_argument("--share", type=float, default=0.1, help="of every speaker's utterances")
    parser.add_argument("--seed", type=int, default=0, help="another one draws others")
    return parser


def _work(args: argparse.Namespace) -> None:
    sets = leaky_split(args.sets, args.out, share=args.share, seed=args.seed)
    for name, data in sets.items():
        speakers = len(data.spk2utt)
        print(f"{name}: {len(data.utterances)} utterances of {speakers} speakers")
    print(WARNING)


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    cli.run(_work, get_parser(), argv)


if __name__ == "__main__":
    main()
