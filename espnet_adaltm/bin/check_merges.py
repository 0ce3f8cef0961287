"""Tell what is wrong with rows of merging (conf/merge/*.yaml), before anything is trained.

    python -m espnet_adaltm.bin.check_merges conf/merge/adaltm.yaml conf/merge/ties.yaml

Every file must be there, its keys and values be known, and its `name`, if it has one, be that of
the file, by which --merges and all tables know the row. What adaltm.sh looks for in it, objective
and learn_on, must be lines that it can find.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from espnet_adaltm.bin import cli
from espnet_adaltm.config import nearest
from espnet_adaltm.errors import UserError


def get_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = cli.parser(__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="YAML of a row")
    return parser


def _check_there(path: Path) -> None:
    if path.is_file():
        return
    known = sorted(other.stem for other in path.parent.glob("*.yaml"))
    raise UserError(
        f"--merges: {path} does not exist{nearest(path.stem, known)}; "
        f"{path.parent} has {', '.join(known) or 'no .yaml file'}"
    )


def work(args: argparse.Namespace) -> None:
    """Do what the module says."""
    for path in args.files:
        _check_there(path)
    from espnet_adaltm.merging.rows import read_row  # imports torch: seconds

    for path in args.files:
        read_row(path)


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    cli.run(work, get_parser(), argv)


if __name__ == "__main__":
    main()
