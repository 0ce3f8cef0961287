"""How large task vectors are, and how much they agree, by depth and by module."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from espnet_adaltm.merging.arithmetic import check_vectors
from espnet_adaltm.merging.groups import group_names, group_of
from espnet_adaltm.merging.task_vector import TaskVector, inner

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
        ``asr,ser``. ``modules`` has ``groups`` (``block3.attention`` and so on, by depth) and the
        same five for each of them, ``parts`` likewise for the modules of one kind over all depths
        (``attention``), ``total`` the same five over everything. A ratio whose denominator is 0 is
        None. Sums are of float64; nothing is rescaled.

    Raises:
        UserError: No vector, or vectors that do not belong together.
    """
    first = check_vectors(vectors)
    layers = first.num_layers
    names = {
        level: group_names(first.tensors, layers, level, norm_first=norm_first)
        for level in ("block", "module")
    }
    place = {
        name: group_of(name, layers, "module", norm_first=norm_first) for name in first.tensors
    }
    tasks = list(vectors)
    pairs = list(itertools.combinations(tasks, 2))
    sums = _Sums(names["module"])
    for name, tensor in base:
        if name in place:
            sums.add("base", place[name], inner(tensor, tensor))
    for name, module in place.items():
        deltas = {task: vector.tensors[name] for task, vector in vectors.items()}
        for task, delta in deltas.items():
            sums.add(task, module, inner(delta, delta))
        for one, other in pairs:
            sums.add(f"{one},{other}", module, inner(deltas[one], deltas[other]))
            differ, both = sign_conflicts(deltas[one], deltas[other])
            sums.add(f"{one},{other} differ", module, differ)
            sums.add(f"{one},{other} both", module, both)

    def described(members: Mapping[str, list[str]]) -> dict[str, Any]:
        return _columns([_describe(sums.over(group), tasks, pairs) for group in members.values()])

    parts = sorted({module.partition(".")[2] for module in names["module"]})
    by_block = {block: sums.matching(block, 0) for block in names["block"]}
    by_part = {part: sums.matching(part, 1) for part in parts}
    return {
        "tasks": tasks,
        "blocks": names["block"],
        **described(by_block),
        "modules": {
            "groups": names["module"],
            **described({module: [module] for module in names["module"]}),
        },
        "parts": {"groups": parts, **described(by_part)},
        TOTAL: _describe(sums.over(names["module"]), tasks, pairs),
    }


class _Sums:
    """Named float sums, one per module."""

    def __init__(self, modules: Sequence[str]) -> None:
        self._modules = modules
        self._values: dict[str, dict[str, float]] = {}

    def add(self, key: str, module: str, value: float) -> None:
        row = self._values.setdefault(key, dict.fromkeys(self._modules, 0.0))
        row[module] += value

    def over(self, modules: Iterable[str]) -> dict[str, float]:
        chosen = list(modules)
        return {
            key: math.fsum(values[module] for module in chosen)
            for key, values in self._values.items()
        }

    def matching(self, name: str, side: int) -> list[str]:
        """Modules of a block (side 0 of ``block.part``) or of a part (side 1)."""
        return [module for module in self._modules if module.split(".", 1)[side] == name]


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
