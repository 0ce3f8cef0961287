"""``audit.md`` of the data, as `data.audit` writes it, in pieces that a page can show."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from espnet_adaltm.files import Pathlike
from espnet_adaltm.text import markdown_uncell

LEVELS = ("error", "warning", "info")
_BAR = re.compile(r"(?<!\\)\|")


@dataclass
class Audit:
    """What the audit says.

    Attributes:
        tables: Each a list of rows of cells, the first one of headers.
        findings: Level and message.
    """

    tables: list[list[list[str]]] = field(default_factory=list)
    findings: list[tuple[str, str]] = field(default_factory=list)


def parse_audit(text: str) -> Audit:
    """Read the tables and findings of ``audit.md``; lines of another form are left out."""
    audit, table = Audit(), []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            if not set(line) <= set("|-: "):  # the rule under the headers
                cells = _BAR.split(line.strip().removeprefix("|").removesuffix("|"))
                table.append([markdown_uncell(cell.strip()) for cell in cells])
            continue
        if table:
            audit.tables.append(table)
            table = []
        level, colon, message = line.removeprefix("- ").partition(": ")
        if line.startswith("- ") and colon and level in LEVELS:
            audit.findings.append((level, markdown_uncell(message)))
    return audit


def read_audit(dump: Pathlike) -> str | None:
    """``audit.md`` of all sets beside a test set, else its own, else None."""
    for folder in (Path(dump).parent, Path(dump)):
        if (folder / "audit.md").is_file():
            return (folder / "audit.md").read_text(encoding="utf-8")
    return None
