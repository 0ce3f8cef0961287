"""Make a miniature of a corpus that is given under a licence, to try a recipe without it.

What is learned from it means nothing: the speech is tones.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from espnet_adaltm.bin import cli
from espnet_adaltm.errors import UserError

EXAMPLE = """
example:
  python -m espnet_adaltm.bin.make_miniature msp_podcast --version 2.0 --out miniature
"""
CORPORA = ("msp_podcast", "iemocap")


def get_parser() -> argparse.ArgumentParser:
    """Arguments of this program."""
    parser = cli.parser(__doc__ + EXAMPLE)
    parser.add_argument("corpus", choices=CORPORA, help="whose layout")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--version", default="1.12", help="release of MSP-Podcast")
    parser.add_argument("--turns", type=int, default=200, help="labelled turns of MSP-Podcast")
    parser.add_argument("--seed", type=int, default=0, help="of everything")
    return parser


def work(args: argparse.Namespace) -> None:
    """Write one release."""
    from espnet_adaltm.data.corpora.miniature_iemocap import write_iemocap
    from espnet_adaltm.data.corpora.miniature_msp import LAYOUTS, write_msp_podcast

    if args.out.exists():
        raise UserError(f"{args.out} exists already: give a new folder")
    if args.corpus == "iemocap":
        rows = write_iemocap(args.out, seed=args.seed)
    elif args.version not in LAYOUTS:
        raise UserError(f"--version {args.version} is none of {', '.join(LAYOUTS)}")
    else:
        rows = write_msp_podcast(args.out, args.version, args.turns, seed=args.seed)
    print(f"{args.out}: {len(rows)} made-up utterances in the layout of {args.corpus}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    cli.run(work, get_parser(), argv)


if __name__ == "__main__":
    main()
