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
    for number, line in enumerate(raw.splitlines(), 1):
        key, value = _parse(line, f"{path}:{number}", allow_empty_value)
        if key in entries:
            raise UserError(f"{path}:{number}: duplicate key {key!r}: keep one line for it")
        if require_sorted and key.encode() < previous.encode():
            raise UserError(
                f"{path}:{number}: {key!r} comes after {previous!r}: sort it with LC_ALL=C sort"
            )
        entries[key] = value
        previous = key
    return entries


def _parse(line: bytes, where: str, allow_empty_value: bool) -> tuple[str, str]:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: not UTF-8 ({error.reason}): convert the file to UTF-8"
        ) from error
    parts = text.strip().split(maxsplit=1)
    if not parts:
        raise UserError(f"{where}: empty line: remove it")
    if len(parts) == 1:
        if not allow_empty_value:
            raise UserError(f"{where}: {parts[0]!r} has no value: give one or remove the line")
        return parts[0], ""
    return parts[0], parts[1]


def write_scp(path: Pathlike, entries: Mapping[str, object]) -> None:
    """Write ``key value`` lines in C-locale order, atomically."""
    with atomic_open(path) as handle:
        for key in sorted(entries, key=str.encode):
            handle.write(f"{key} {entries[key]}".rstrip() + "\n")
