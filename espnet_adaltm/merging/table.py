"""Numbers for the groups of a model: one for all, a list, or by name."""

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from espnet_adaltm.config import nearest
from espnet_adaltm.errors import UserError

# A number, a list with one for every group, or group (or pattern of groups) to number.
ByGroup = float | Sequence[float] | Mapping[str, float]


@dataclass(frozen=True)
class Table:
    """Weights [K][G] and scale [G] of K tasks and G groups."""

    tasks: tuple[str, ...]
    groups: tuple[str, ...]
    weights: list[list[float]]
    scale: list[float]


def by_group(what: str, value: ByGroup, groups: Sequence[str]) -> list[float]:
    """Spread a value over groups; those that a mapping does not name get 0.

    Raises:
        UserError: A list of another length than there are groups, or a name that matches none.
    """
    if isinstance(value, Mapping):
        spread = dict.fromkeys(groups, 0.0)
        for pattern, number in value.items():
            # an exact name first: among a tensor's hundreds of groups, patterns are rare
            found = [pattern] if pattern in spread else fnmatch.filter(groups, pattern)
            if not found:
                raise UserError(
                    f"{what}: {pattern!r} matches no group of this model"
                    f"{nearest(pattern, groups)}; groups: {_shortened(groups)}"
                )
            spread.update(dict.fromkeys(found, float(number)))
        return list(spread.values())
    if isinstance(value, list | tuple):
        if len(value) != len(groups):
            raise UserError(
                f"{what}: {len(value)} numbers for {len(groups)} groups ({_shortened(groups)}): "
                "give one for each"
            )
        return [float(number) for number in value]
    return [float(value)] * len(groups)


def check_complete(what: str, value: Mapping[str, float], groups: Sequence[str]) -> None:
    """Refuse numbers by name that are not for all groups, and no others.

    Raises:
        UserError: The message names a group.
    """
    strange = [name for name in value if name not in groups]
    lacking = [group for group in groups if group not in value]
    if strange or lacking:
        wrong = f"{strange[0]!r} is no group of" if strange else f"no number for {lacking[0]!r} of"
        raise UserError(f"{what}: {wrong} this model; groups: {_shortened(groups)}")


def _shortened(groups: Sequence[str]) -> str:
    if len(groups) <= 8:
        return ", ".join(groups)
    return f"{', '.join(groups[:3])} ... {groups[-1]}"


def is_finite(value: object) -> bool:
    """Whether a value is a finite number, and no truth value."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)


def check_numbers(what: str, value: Any) -> None:
    """Refuse what is no `ByGroup`.

    Raises:
        UserError: The message shows the number, or the name of a group.
    """
    values = [value]
    if isinstance(value, Mapping):
        if unnamed := [name for name in value if not isinstance(name, str)]:
            raise UserError(f"{what}: {unnamed[0]!r} is no name of a group, such as block0 or '*'")
        values = list(value.values())
    elif isinstance(value, list | tuple):
        values = list(value)
    for number in values:
        if not is_finite(number):
            raise UserError(
                f"{what}: {number!r} is not a finite number; give a number, a list of numbers or "
                "group: number"
            )
