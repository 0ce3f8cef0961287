"""Kaldi's ``key value`` text files, read strictly and written sorted; and `kaldiio` made safe."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import NoReturn

from espnet_adaltm.errors import UserError
from espnet_adaltm.files import Pathlike, atomic_open, read_bytes

# Nothing in a table needs them; terminals act on them, and some readers end a line at them.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")


def read_scp(
    path: Pathlike, *, require_sorted: bool = True, allow_empty_value: bool = False
) -> dict[str, str]:
    """Read a two-column file (``wav.scp``, ``text``, ``utt2spk`` ...).

    Args:
        path: The file; every line is a key, blanks, and the rest of the line.
        require_sorted: Refuse keys that are not in C-locale order, which Kaldi tools rely on.
        allow_empty_value: Accept a key without a value.

    Returns:
        Key to value, in the order of the file.

    Raises:
        UserError: Missing file, not UTF-8, an empty line, a key without value, a duplicate or
            unsorted key, a control character, a key with marks that nobody sees; the message names
            file and line.
    """
    path = Path(path)
    entries: dict[str, str] = {}
    previous = ""
    for number, line in enumerate(_lines(read_bytes(path), path), 1):
        parts = line.split(maxsplit=1)
        if len(parts) == 2:
            key, value = parts[0], parts[1].rstrip()
        else:
            key, value = _without_value(parts, f"{path}:{number}", allow_empty_value), ""
        if key in entries:
            raise UserError(f"{path}:{number}: duplicate key {key!r}: keep one line for it")
        # The order of code points is that of the bytes of UTF-8.
        if require_sorted and key < previous:
            raise UserError(
                f"{path}:{number}: {key!r} comes after {previous!r}: sort it with LC_ALL=C sort"
            )
        if not key.isprintable():
            check_key(key, f"{path}:{number}")
        entries[key] = value
        previous = key
    return entries


def check_key(key: str, where: str) -> None:
    """Refuse ids that would break a table, or that do not look like what they are.

    Raises:
        UserError: Not one word, or a character that cannot be seen (control characters, marks that
            turn the direction of writing, a byte order mark).
    """
    hidden = next((c for c in key if not c.isprintable()), None)
    if hidden is not None:
        raise UserError(
            f"{where}: id {key!r} holds U+{ord(hidden):04X}, which cannot be seen: rename it"
        )
    if key.split() != [key]:
        raise UserError(f"{where}: id {key!r} holds blanks: ids must be one word")


def check_value(value: str, where: str) -> None:
    """Refuse entries that would span lines or hold control characters."""
    if found := re.search("\n|" + _CONTROL.pattern, value):
        raise UserError(
            f"{where}: {_named(found[0])} in the entry: put it on one line without such characters"
        )


def _named(character: str) -> str:
    return "a line break" if character == "\n" else f"control character U+{ord(character):04X}"


def _lines(raw: bytes, path: Path) -> list[str]:
    """The lines of a file, decoded at once: there may be hundreds of thousands of them."""
    lines = raw.splitlines()
    try:
        text = b"\n".join(lines).decode("utf-8")
    except UnicodeDecodeError:
        for number, line in enumerate(lines, 1):
            _check_utf8(line, f"{path}:{number}")
        raise
    if found := _CONTROL.search(text):
        number = text.count("\n", 0, found.start()) + 1
        raise UserError(f"{path}:{number}: {_named(found[0])}: remove it")
    return text.split("\n") if lines else []


def _check_utf8(line: bytes, where: str) -> None:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: not UTF-8 ({error.reason}): convert the file to UTF-8"
        ) from error


def _without_value(parts: list[str], where: str, allowed: bool) -> str:
    if not parts:
        raise UserError(f"{where}: empty line: remove it")
    if not allowed:
        raise UserError(f"{where}: {parts[0]!r} has no value: give one or remove the line")
    return parts[0]


def write_scp(path: Pathlike, entries: Mapping[str, object]) -> None:
    """Write ``key value`` lines in C-locale order, atomically."""
    with atomic_open(path) as handle:
        ordered = sorted(entries, key=str.encode)
        handle.writelines([f"{key} {entries[key]}".rstrip() + "\n" for key in ordered])


@cache
def safe_kaldiio() -> ModuleType:
    """`kaldiio` without the two doors that it opens to whoever writes an ark or a script file.

    It runs entries that begin or end with ``|`` in a shell, and unpickles what is stored after
    ``PKL``. Both are shut in the module itself and for the whole process, because ESPnet's data
    sets read through it as well; they raise ValueError then.
    """
    import kaldiio
    import kaldiio.matio
    import kaldiio.utils

    def refuse_command(command: bytes | str, *_: object, **__: object) -> NoReturn:
        shown = command.decode("utf-8", "replace") if isinstance(command, bytes) else command
        raise ValueError(f"`{shown.strip()}` is a command, which is not run")

    def refuse_pickle(*_: object, **__: object) -> NoReturn:
        raise ValueError("it holds a Python pickle, which is not loaded")

    kaldiio.utils.my_popen = refuse_command
    kaldiio.matio.pickle = SimpleNamespace(load=refuse_pickle, dump=refuse_pickle)
    return kaldiio
