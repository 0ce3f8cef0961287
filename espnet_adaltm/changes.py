"""What differs between two descriptions of an item, in few words.

A command may be as long as a screen, a list of systems in it longer: of each option only the words
that are new or gone are told, and of those the first.

Only the standard library is imported, see `espnet_adaltm.stamps`.
"""

from collections.abc import Sequence
from typing import Any

from espnet_adaltm.text import some

_WORDS = 2
_LONGEST = 60


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Say what differs, apart from options of which more means going on.

    Args:
        old: Description of an item, see `espnet_adaltm.stamps.describe`.
        new: Description of the same item.

    Returns:
        One entry for each option of the command, in the order of the command, and then one for
        each input; empty if nothing differs.
    """
    found = _command_changes(old["command"], new["command"])
    for path in {**old["inputs"], **new["inputs"]}:
        entries = old["inputs"].get(path), new["inputs"].get(path)
        if entries[0] is None or entries[1] is None:
            found.append(f"{path} ({'now' if entries[0] is None else 'no longer'} an input)")
        elif entries[0][2] != entries[1][2]:
            found.append(path)
    return found


def _command_changes(old: Sequence[str], new: Sequence[str]) -> list[str]:
    before, after = _options(old), _options(new)
    found = []
    for name in {**after, **before}:
        label = name or "command"
        if name not in before:
            found.append(f"{label} (now{f' {_few(after[name])}' if after[name] else ' given'})")
        elif name not in after:
            found.append(f"{label} (no longer given)")
        elif before[name] != after[name]:
            found.append(f"{label} ({_difference(before[name], after[name])})")
    if old != new and not found:
        found.append("command (order or spaces of its options)")
    return found


def _options(command: Sequence[str]) -> dict[str, list[str]]:
    """Each ``--name`` and the words after it; what comes before the first has an empty name."""
    options: dict[str, list[str]] = {}
    name = ""
    for word in command:
        if word.startswith("--"):
            name, _, word = word.partition("=")
        options.setdefault(name, []).extend(word.split() if word != name else [])
    return options


def _difference(old: Sequence[str], new: Sequence[str]) -> str:
    """``1 -> 2``, ``with a, b and 3 more``, ``without a`` or ``in another order``."""
    come = [word for word in new if word not in old]
    gone = [word for word in old if word not in new]
    if come and gone:
        return f"{_few(gone)} -> {_few(come)}"
    if come or gone:
        return f"now with {_few(come)}" if come else f"now without {_few(gone)}"
    return "in another order" if sorted(old) == sorted(new) else "another number of times"


def _few(words: Sequence[str]) -> str:
    return some((_short(word) for word in words), _WORDS)


def _short(word: str) -> str:
    return word if len(word) <= _LONGEST else f"{word[: _LONGEST - 3]}..."
