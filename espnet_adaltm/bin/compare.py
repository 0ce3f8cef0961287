"""Compare two results: paired differences with their intervals, and what was configured otherwise.

Each is the folder of a scored system (exp/merge_adaltm_seed1), a folder with the results.json of a
report, or such a file. Predictions and test sets are found where the results say they were, seen
from the results; without them the recorded numbers are compared.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from espnet_adaltm.bin import cli
from espnet_adaltm.bin.score import add_bootstrap_arguments, bootstrap_options
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import write_json
from espnet_adaltm.scoring import tables
from espnet_adaltm.scoring.comparison import Compared, compare_sides, is_prepared, read_side
from espnet_adaltm.scoring.paired import stars

EXAMPLE = """
example:
  python -m espnet_adaltm.bin.compare exp/merge_adaltm_seed1 exp/merge_static_seed1 \\
      --dumps dump/test
"""
_LONGEST = 40


def get_parser() -> argparse.ArgumentParser:
    """Arguments of this program."""
    parser = cli.parser(__doc__ + EXAMPLE)
    parser.add_argument("first", type=Path, help="folder or results.json")
    parser.add_argument("second", type=Path, help="folder or results.json, subtracted")
    parser.add_argument(
        "--dumps", type=Path, nargs="+", default=[], help="test sets, if the results lack them"
    )
    parser.add_argument(
        "--format", choices=("table", "json"), default="table", help="of the output"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there as well")
    add_bootstrap_arguments(parser)
    return parser


def _main(args: argparse.Namespace) -> None:
    for dump in args.dumps:
        if not is_prepared(dump):
            raise UserError(f"--dumps: {dump} is no prepared test set, it has no wav.scp")
    sides = [read_side(path, args.dumps) for path in (args.first, args.second)]
    found = compare_sides(*sides, bootstrap_options(args))
    if args.json is not None:
        write_json(args.json, found.as_json())
    if args.format == "json":
        print(json.dumps(found.as_json(), indent=2, ensure_ascii=False))
    else:
        print(_text(found, (str(args.first), str(args.second))))


def _text(found: Compared, names: tuple[str, str]) -> str:
    parts = [f"first:  {names[0]}\nsecond: {names[1]}", tables.plain(*_differences(found))]
    parts.append(
        "Points of percent, first minus second. p: two-sided paired bootstrap; stars after Holm's\n"
        "correction over the tests of one metric."
    )
    if any(row.test is None for row in found.differences):
        parts[-1] += " ~: not paired, the interval is too wide."
    for system, options in found.options.items():
        if options:
            rows = [[name, *map(_short, both)] for name, both in options.items()]
            title = f"Configured otherwise ({system}):"
            parts.append(f"{title}\n{tables.plain(['option', 'first', 'second'], rows)}")
        else:
            parts.append(f"Configured otherwise ({system}): nothing that is recorded")
    for title, lacking in (("first", found.only_first), ("second", found.only_second)):
        if lacking:
            parts.append(f"Only in the {title}: {', '.join(lacking)}")
    parts += [f"note: {remark}" for remark in found.remarks]
    return "\n\n".join(parts)


def _differences(found: Compared) -> tuple[list[str], list[list[str]]]:
    header = ["systems", "set", "metric", "first", "second", "difference", "95 % interval"]
    header += ["p", "p (by speaker)", "stars"]
    rows = []
    for row in found.differences:
        pair = row.first if row.first == row.second else f"{row.first} - {row.second}"
        mark = "~" if row.test is None else ""
        cells = [pair, row.part, tables.TITLES[row.metric]]
        cells += [f"{100 * value:.1f}" for value in row.values]
        cells += [f"{100 * row.difference:+.1f}"]
        cells += [f"{mark}[{100 * row.low:+.1f}, {100 * row.high:+.1f}]"]
        if row.test is None:
            cells += ["-", "-", ""]
        else:
            speaker = (row.test.by_unit or {}).get("speaker")
            cells += [tables.p_text(row.test.p), tables.p_text(speaker["p"]) if speaker else "-"]
            cells += [stars(row.test.p_holm)]
        rows.append(cells)
    return header, rows


def _short(value: Any) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    cli.run(_main, get_parser(), argv)


if __name__ == "__main__":
    main()
