"""Several test sets scored as one: ``test1+test2`` is the pool of the sets test1 and test2.

Nothing is decoded or written for a pool: it is put together from its sets whenever it is read.
"""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from espnet_adaltm.errors import UserError
from espnet_adaltm.scoring.metrics import ErrorCounts

if TYPE_CHECKING:
    from espnet_adaltm.scoring.readers import Hypothesis, Reference

SIGN = "+"


def parts_of(dump: Path) -> list[Path]:
    """The folders that a pool stands for; none, if ``dump`` is a folder of its own.

    Raises:
        UserError: A pool of a single set, or of one set twice.
    """
    if SIGN not in dump.name or dump.exists():
        return []
    names = dump.name.split(SIGN)
    if len(set(names)) < len(names) or not all(names):
        raise UserError(f"{dump} is no pool of sets: expected names between {SIGN}, each once")
    return [dump.parent / name for name in names]


def pool_references(name: str, parts: Sequence["Reference"]) -> "Reference":
    """The reference of a pool.

    Raises:
        UserError: Two of its sets have an utterance in common.
    """
    seen: dict[str, str] = {}
    for part in parts:
        for utt in part.utterances:
            if seen.setdefault(utt, part.name) != part.name:
                raise UserError(
                    f"{name}: utterance {utt!r} is in {seen[utt]} and in {part.name}: it would "
                    "count twice"
                )
    values = {
        item.name: _union([getattr(part, item.name) for part in parts])
        for item in fields(parts[0])
        if item.name not in ("name", "parts")
    }
    return type(parts[0])(name=name, **values, parts=tuple(parts))


def pool_hypotheses(parts: Sequence["Hypothesis"]) -> "Hypothesis":
    """What one system says about a pool; what it does not say about every set is None.

    Who speaks is told for the sets only: their speakers may be the same or others.
    """
    joined = {}
    for item in fields(parts[0]):
        values = [getattr(part, item.name) for part in parts]
        whole = item.name != "speakers" and all(value is not None for value in values)
        joined[item.name] = _union(values) if whole else None
    return type(parts[0])(**joined)


def _union(values: Sequence[Any]) -> Any:
    """Join values of the sets in their order: each describes its own utterances."""
    first = values[0]
    if isinstance(first, np.ndarray):
        return np.concatenate(values)
    if isinstance(first, ErrorCounts):
        columns = [_union([getattr(v, item.name) for v in values]) for item in fields(first)]
        return ErrorCounts(*columns)
    if isinstance(first, dict):
        return {key: entry for value in values for key, entry in value.items()}
    if isinstance(first, tuple):
        return tuple(entry for value in values for entry in value)
    raise TypeError(f"no way to pool a {type(first).__name__}")
