"""Format the audio of a data directory: mono 16-bit FLAC in Kaldi arks at one sample rate."""

import argparse
import os
from collections.abc import Sequence

from espnet_adaltm.bin import cli
from espnet_adaltm.data.dump import SILENT_CHOICES, format_data_dir

EXAMPLE = """
example:
  python -m espnet_adaltm.bin.format_audio --data data/train --out dump/train
"""


def get_parser() -> argparse.ArgumentParser:
    """Arguments of this program."""
    parser = cli.parser(__doc__ + EXAMPLE)
    parser.add_argument("--data", required=True, help="Kaldi data directory to read")
    parser.add_argument("--out", required=True, help="folder to write; wav.scp points into it")
    parser.add_argument("--min_seconds", type=float, default=0.1, help="drop what is shorter")
    parser.add_argument("--max_seconds", type=float, default=30.0, help="drop what is longer")
    parser.add_argument("--sample_rate", type=int, default=16000, help="in Hz")
    parser.add_argument(
        "--silent", choices=SILENT_CHOICES, default="drop", help="what to do with all-zero audio"
    )
    parser.add_argument(
        "--max_broken",
        default="0",
        metavar="N|P%",
        help="utterances with broken audio that may be left out, a number or a share such as 1%%; "
        "with more, nothing is written and all of them are told",
    )
    parser.add_argument(
        "--allow_pipes", action="store_true", help="run entries of wav.scp that are commands"
    )
    parser.add_argument(
        "--num_workers",
        type=int,
        default=min(8, len(os.sched_getaffinity(0))),
        help="processes; does not change the result",
    )
    return parser


def work(args: argparse.Namespace) -> None:
    """Format one directory."""
    kept = format_data_dir(
        args.data,
        args.out,
        min_seconds=args.min_seconds,
        max_seconds=args.max_seconds,
        sample_rate=args.sample_rate,
        num_workers=args.num_workers,
        silent=args.silent,
        max_broken=args.max_broken,
        allow_pipes=args.allow_pipes,
    )
    print(f"{args.out}: {len(kept.utterances)} utterances")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    cli.run(work, get_parser(), argv)


if __name__ == "__main__":
    main()
