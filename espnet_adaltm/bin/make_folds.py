"""Make the folds of a corpus from its formatted audio, each without a group or a speaker."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from espnet_adaltm.bin import cli
from espnet_adaltm.data.folds import KINDS, describe, make_folds

EXAMPLE = """
example (IEMOCAP: speakers are Ses01F, Ses01M ..., groups are sessions):
  python -m espnet_adaltm.bin.make_folds --dump dump/all --out dump --leave_out group \\
      --group_length 5
"""


def get_parser() -> argparse.ArgumentParser:
    """Arguments of this program."""
    parser = cli.parser(__doc__ + EXAMPLE)
    parser.add_argument("--dump", type=Path, required=True, help="formatted set of everything")
    parser.add_argument("--out", type=Path, required=True, help="gets fold1/{train,dev,test} ...")
    parser.add_argument(
        "--leave_out", choices=KINDS, required=True, help="what is tested at a time"
    )
    parser.add_argument(
        "--group_length",
        type=int,
        required=True,
        help="characters at the beginning of a speaker's name that tell the group",
    )
    return parser


def work(args: argparse.Namespace) -> None:
    """Write the folds."""
    print(describe(make_folds(args.dump, args.out, args.leave_out, args.group_length)))


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    cli.run(work, get_parser(), argv)


if __name__ == "__main__":
    main()
