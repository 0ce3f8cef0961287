"""How large task vectors are, and how much they agree, by depth."""

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from espnet_adaltm.merging.groups import group_names, group_of
from espnet_adaltm.merging.task_vector import TaskVector, check_compatible, inner

TOTAL = "total"


def sign_conflicts(first: Tensor, second: Tensor) -> tuple[int, int]:
    """Count elements whose signs differ, and elements where both are non-zero.

    What TIES (arXiv 2306.01708) calls interference is the first over the second.
    """
    product = first.sign() * second.sign()
    return int((product < 0).sum()), int((product != 0).sum())


def analyse(
    vectors: Mapping[str, TaskVector],
    base: Iterable[tuple[str, Tensor]],
    *,
    norm_first: bool = True,
) -> dict[str, Any]:
    """Describe task vectors of one base, for ``similarity.json``.

    Args:
        vectors: Task to vector, at least one.
        base: Names and tensors of the base, one after another (`merging.weights.open_weights`).
        norm_first: True for pre-norm encoders.

    Returns:
        ``tasks``, ``blocks`` (names, depth 0 to L), and for each block in turn ``base_norm``,
        ``norm[task]``, ``relative_norm[task]`` (norm over the base's), ``cosine[pair]`` and
        ``sign_conflict[pair]`` (share of the elements that both tasks move), pairs written
        ``asr,ser``; ``total`` has the same five over all blocks. A ratio whose denominator is 0 is
        None.
    """
    first = next(iter(vectors.values()))
    for vector in vectors.values():
        check_compatible(first, vector)
    layers = first.num_layers
    blocks = group_names(first.tensors, layers, "block", norm_first=norm_first)
    place = {
        name: blocks.index(group_of(name, layers, "block", norm_first=norm_first))
        for name in first.tensors
    }
    tasks = list(vectors)
    pairs = list(itertools.combinations(tasks, 2))
    sums = _Sums(len(blocks))
    for name, tensor in base:
        if name in place:
            sums.add("base", place[name], inner(tensor, tensor))
    for name, block in place.items():
        deltas = {task: vector.tensors[name] for task, vector in vectors.items()}
        for task, delta in deltas.items():
            sums.add(task, block, inner(delta, delta))
        for one, other in pairs:
            sums.add(f"{one},{other}", block, inner(deltas[one], deltas[other]))
            differ, both = sign_conflicts(deltas[one], deltas[other])
            sums.add(f"{one},{other} differ", block, differ)
            sums.add(f"{one},{other} both", block, both)
    rows = [_describe(sums.row(block), tasks, pairs) for block in range(len(blocks))]
    return {
        "tasks": tasks,
        "blocks": blocks,
        **_columns(rows),
        TOTAL: _describe(sums.total(), tasks, pairs),
    }


class _Sums:
    """Named float sums, one per block."""

    def __init__(self, blocks: int) -> None:
        self._blocks = blocks
        self._values: dict[str, list[float]] = {}

    def add(self, key: str, block: int, value: float) -> None:
        self._values.setdefault(key, [0.0] * self._blocks)[block] += value

    def row(self, block: int) -> dict[str, float]:
        return {key: values[block] for key, values in self._values.items()}

    def total(self) -> dict[str, float]:
        return {key: math.fsum(values) for key, values in self._values.items()}


def _ratio(value: float, by: float) -> float | None:
    return value / by if by else None


def _describe(
    sums: Mapping[str, float], tasks: list[str], pairs: list[tuple[str, str]]
) -> dict[str, Any]:
    norms = {key: math.sqrt(sums.get(key, 0.0)) for key in ("base", *tasks)}
    names = [f"{one},{other}" for one, other in pairs]
    return {
        "base_norm": norms["base"],
        "norm": {task: norms[task] for task in tasks},
        "relative_norm": {task: _ratio(norms[task], norms["base"]) for task in tasks},
        "cosine": {
            name: _ratio(sums[name], norms[one] * norms[other])
            for name, (one, other) in zip(names, pairs, strict=True)
        },
        "sign_conflict": {
            name: _ratio(sums[f"{name} differ"], sums[f"{name} both"]) for name in names
        },
    }


def _columns(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Turn a list of records into a record of lists, one level deep."""
    columns: dict[str, Any] = {}
    for key, value in rows[0].items():
        if isinstance(value, dict):
            columns[key] = {inside: [row[key][inside] for row in rows] for inside in value}
        else:
            columns[key] = [row[key] for row in rows]
    return columns
