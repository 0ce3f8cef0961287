"""Put the folds of a cross-validation together: mean and deviation over folds.

Writes RESULTS.md and results.json.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from espnet_adaltm.bin import cli
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import write_json, write_text
from espnet_adaltm.scoring import tables
from espnet_adaltm.scoring.folds import document, mean_table, read_folds

EXAMPLE = """
example:
  python -m espnet_adaltm.bin.report_folds --folds exp/fold1 exp/fold2 exp/fold3 --out_dir . \\
      --compare "adaltm:ser_only" --recipe iemocap
"""


def get_parser() -> argparse.ArgumentParser:
    """Arguments of this program."""
    parser = cli.parser(__doc__ + EXAMPLE)
    parser.add_argument(
        "--folds", type=Path, nargs="+", required=True, help="folders with results.json"
    )
    parser.add_argument("--set", default="test", help="the test set of every fold")
    parser.add_argument(
        "--compare",
        nargs="*",
        default=[],
        help="first:second, differences within folds; systems that are missing are passed over",
    )
    parser.add_argument("--out_dir", type=Path, default=Path(), help="gets the two files")
    parser.add_argument("--recipe", default="adaltm", help="heading of RESULTS.md")
    parser.add_argument("--note", default="", help="text under the heading")
    parser.add_argument("--command", default="", help="what was typed")
    return parser


def work(args: argparse.Namespace) -> None:
    """Read the folds and write the report."""
    from espnet_adaltm.bin.report import without_places

    folds = read_folds(args.folds, args.set)
    pairs = []
    for entry in (word for words in args.compare for word in words.split()):
        first, colon, second = entry.partition(":")
        if not colon:
            raise UserError(f"--compare {entry!r} is not first:second")
        if first in folds.values and second in folds.values:
            pairs.append((first, second))
    text = document(folds, pairs, args.recipe, args.note, without_places(args.command))
    write_json(args.out_dir / "results.json", folds.to_json())
    write_text(args.out_dir / "RESULTS.md", text)
    print(f"\nmean over {len(folds.names)} folds (percent, ± deviation over folds)\n")
    print(tables.plain(*mean_table(folds)))
    print(f"\nwritten: {args.out_dir / 'RESULTS.md'}")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    cli.run(work, get_parser(), argv)


if __name__ == "__main__":
    main()
