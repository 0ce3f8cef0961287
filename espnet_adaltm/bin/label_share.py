"""Choose a share of the labelled training utterances, as a shape file to train on."""

import argparse
from collections.abc import Sequence

from espnet_adaltm.bin import cli
from espnet_adaltm.data.label_share import write_label_share


def get_parser() -> argparse.ArgumentParser:
    """Arguments of this program."""
    parser = cli.parser(__doc__)
    parser.add_argument("--dump", required=True, help="formatted training set, e.g. dump/train")
    parser.add_argument("--share", type=float, required=True, help="above 0, at most 1")
    parser.add_argument("--seed", type=int, default=0, help="smaller shares lie in larger ones")
    parser.add_argument("--out", required=True, help="shape file to write")
    return parser


def _main(args: argparse.Namespace) -> None:
    count = write_label_share(args.dump, args.share, args.out, args.seed)
    print(f"{count} labelled utterances in {args.out}")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    cli.run(_main, get_parser(), argv)


if __name__ == "__main__":
    main()
