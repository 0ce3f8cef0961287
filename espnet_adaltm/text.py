"""Text for messages: what others wrote made harmless, and long lists cut short."""

import html
from collections.abc import Iterable

_LONGEST = 1000


def spelled(text: str) -> str:
    """``text`` for a terminal: what it would act on is spelled out.

    Control characters, and marks that turn the direction of writing, become ``\\x1b`` or
    ``\\u202e``; line feeds stay.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def printable(text: str) -> str:
    """`spelled`, with very long lines cut, as an error message needs it."""
    return "\n".join(_short(spelled(line)) for line in text.split("\n"))


def _short(line: str) -> str:
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} ... {line[-100:]}"


def markdown_cell(text: str) -> str:
    """``text`` for a cell of a Markdown table: no HTML, no further cell; emphasis stays."""
    return html.escape(" ".join(text.split("\n")), quote=False).replace("|", "\\|")


def markdown_uncell(cell: str) -> str:
    """Inverse of `markdown_cell`, but for line feeds."""
    return html.unescape(cell.replace("\\|", "|"))


def some(items: Iterable[object], most: int = 5, between: str = ", ") -> str:
    """The first items, and how many there are beyond: ``a, b and 3 more``."""
    found = [str(item) for item in items]
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return between.join(found[:most]) + more
