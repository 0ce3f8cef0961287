"""How much broken audio a set may have, and how what there is of it is told."""

import re
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

from espnet_adaltm.errors import UserError
from espnet_adaltm.files import atomic_open
from espnet_adaltm.text import printable

BROKEN = "broken: "  # what the reason of a dropped utterance begins with
_NAMED = 10
_NUMBER = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)(%?)")


def allowed_broken(max_broken: str, total: int) -> int:
    """Number of utterances that may be left out.

    Args:
        max_broken: A number of utterances such as ``10``, or a share of them such as ``1%``, which
            is rounded down.
        total: Utterances of the set.

    Raises:
        UserError: Neither, or more than all of them.
    """
    match = _NUMBER.fullmatch(max_broken.strip())
    if match is None or (not match[2] and "." in match[1]) or (match[2] and float(match[1]) > 100):
        raise UserError(
            f"--max_broken {max_broken!r} is neither a number of utterances such as 10 nor a share "
            "such as 1%"
        )
    number = Fraction(match[1])
    return int(number * total / 100 if match[2] else number)


def table_of(reasons: Mapping[str, str]) -> list[str]:
    """Lines of a table with the columns utt and reason, sorted by utterance."""
    rows = [
        f"{utt}\t{' '.join(printable(reasons[utt]).split())}\n"
        for utt in sorted(reasons, key=str.encode)
    ]
    return ["utt\treason\n", *rows]


def list_file(out_dir: Path) -> Path:
    """Where a list of broken utterances goes that is too long to be shown."""
    return out_dir.with_name(f"{out_dir.name}.broken.tsv")


def too_many(
    data: Path, out_dir: Path, broken: Mapping[str, str], total: int, max_broken: str
) -> UserError:
    """The error that names broken utterances; all of them are in `list_file` if they are many."""
    utterances = sorted(broken, key=str.encode)
    allowed = allowed_broken(max_broken, total)
    lines = [
        f"{data}: {len(broken)} of {total} utterances have broken audio; mend them or remove them "
        f"from the data directory, or let some be left out (--max_broken, now {max_broken}"
        + (f": {allowed} utterances" if max_broken.endswith("%") else "")
        + "):",
        *[f"{utt}: {broken[utt]}" for utt in utterances[:_NAMED]],
    ]
    if (more := len(broken) - _NAMED) > 0:
        with atomic_open(list_file(out_dir)) as handle:
            handle.writelines(table_of(broken))
        lines.append(f"... and {more} more, all of them in {list_file(out_dir)}")
    return UserError("\n  ".join(lines))
