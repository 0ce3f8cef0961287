#!/usr/bin/env python3
"""Copy the tables of the recipes' generated RESULTS.md into README.md.

tools/readme_table.py           # rewrite what lies between <!-- results:X --> and <!-- end -->
tools/readme_table.py --check   # only fail if that would change something
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_BLOCK = re.compile(r"(<!-- results:(\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def tables(results: str) -> str:
    """The table of systems, and the paired tests of macro-F1 over all utterances."""
    lines = results.splitlines()
    systems = _rows(lines, "|system|seeds|")
    tests = _rows(lines, "|first - second|")
    kept = tests[:2] + [row for row in tests[2:] if "|all|macro-F1|" in row]
    return "\n".join([*systems, "", *kept])


def _rows(lines: list[str], header: str) -> list[str]:
    start = next(number for number, line in enumerate(lines) if line.startswith(header))
    stop = next(n for n in range(start, len(lines)) if not lines[n].startswith("|"))
    return lines[start:stop]


def updated(readme: str) -> str:
    """README.md with every block whose recipe has a RESULTS.md made anew."""

    def replace(match: re.Match[str]) -> str:
        results = ROOT / "egs" / match[2] / "adaltm1" / "RESULTS.md"
        if not results.is_file():
            return match[0]
        return f"{match[1]}{tables(results.read_text(encoding='utf-8'))}\n{match[4]}"

    return _BLOCK.sub(replace, readme)


def main() -> None:
    """Run the command line."""
    path = ROOT / "README.md"
    before = path.read_text(encoding="utf-8")
    after = updated(before)
    if "--check" in sys.argv[1:]:
        if after != before:
            sys.exit("error: README.md has old tables: run tools/readme_table.py")
    else:
        path.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
