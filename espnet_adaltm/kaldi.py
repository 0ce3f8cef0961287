"""Kaldi's ``key value`` text files, read strictly and written sorted."""

from collections.abc import Mapping
from pathlib import Path

from espnet_adaltm.errors import UserError
from espnet_adaltm.files import Pathlike, atomic_open


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
            unsorted key; the message names file and line.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    entries: dict[str, str] = {}
    previous = ""
    for number, line in enumerate(_lines(raw, path), 1):
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
        entries[key] = value
        previous = key
    return entries


def _lines(raw: bytes, path: Path) -> list[str]:
    """The lines of a file, decoded at once: there may be hundreds of thousands of them."""
    lines = raw.splitlines()
    try:
        decoded = b"\n".join(lines).decode("utf-8").split("\n")
    except UnicodeDecodeError:
        for number, line in enumerate(lines, 1):
            _check_utf8(line, f"{path}:{number}")
        raise
    return decoded if lines else []


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
