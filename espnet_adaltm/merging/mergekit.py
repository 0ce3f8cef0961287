"""A recipe as a configuration of mergekit (https://github.com/arcee-ai/mergekit, version 0.1.5).

For its command ``mergekit-pytorch``, which merges files of any network (``mergekit-yaml`` 0.1.5
knows no speech encoders), key by key. A configuration is written only where it computes the same,
within rounding, but for one tensor: where the positional convolution is stored weight-normed,
mergekit merges its two factors one by one, which is not merging the weight (trap T2).

- ``task_arithmetic``: the same.
- ``ties``: mergekit elects after weighting and divides by the weights that agree. The same if all
  tasks have the same weight in each group (it becomes mergekit's ``lambda``), trim and divisor are
  the defaults (``scope: tensor``, ``normalize: count``) and the election is by total.
- all others: mergekit draws other random numbers or rescales in another way.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from espnet_adaltm.errors import UserError
from espnet_adaltm.merging.plan import MergePlan
from espnet_adaltm.merging.weights import POS_WEIGHT

HEADER = """\
# Equivalent of the recipe {name!r} for mergekit 0.1.5:
#   mergekit-pytorch --tensor-intersection THIS_FILE OUTPUT
# All tensors agree within float32 rounding{but}.
"""
_BUT = """, but for the positional convolution:
# mergekit merges the two factors of its weight norm one by one, not the weight"""
_TIES_DEFAULTS = {
    "elect": ("total",),
    "elect_on": ("deltas", "weighted"),
    "scope": ("tensor",),
    "normalize": ("count",),
}


def mergekit_config(plan: MergePlan) -> dict[str, Any]:
    """Translate a merge.

    Raises:
        UserError: mergekit has no equivalent; the message says why.
    """
    _check(plan)
    rows: dict[str, list[float]] = dict(zip(plan.recipe.tasks, plan.table.weights, strict=True))
    shared: dict[str, Any] = {"normalize": False}
    scale = plan.table.scale
    if plan.recipe.method == "ties":
        # equal for all tasks: what is left of them after the division is the common factor
        scale = [one * weight for one, weight in zip(scale, plan.table.weights[0], strict=True)]
        rows = {task: [1.0] * len(scale) for task in rows}
        shared = {"normalize": True, "rescale": False}
    if set(scale) != {1.0}:
        shared["lambda"] = _setting(plan, scale)
    density = {k: v for k, v in plan.recipe.options.items() if k == "density"}
    return {
        "merge_method": plan.recipe.method,
        "base_model": plan.base.source,
        "dtype": "float32",
        "out_dtype": plan.recipe.dtype,
        "parameters": shared,
        "models": [
            {"model": source.where, "parameters": {"weight": _setting(plan, row), **density}}
            for source, row in zip(plan.sources, rows.values(), strict=True)
        ],
    }


def mergekit_text(plan: MergePlan) -> str:
    """`mergekit_config` as YAML.

    Raises:
        UserError: As there.
    """
    import yaml

    text = yaml.safe_dump(mergekit_config(plan), sort_keys=False, width=100)
    normed = len(plan.base.stored.get(POS_WEIGHT, ())) > 1 and POS_WEIGHT in plan.moved
    return HEADER.format(name=plan.recipe.name, but=_BUT if normed else "") + text


def _check(plan: MergePlan) -> None:
    recipe = plan.recipe

    def needs(condition: bool, why: str) -> None:
        if not condition:
            raise UserError(f"mergekit has no equivalent of the recipe {recipe.name!r}: {why}")

    needs(bool(recipe.tasks), "there is no task vector to merge")
    for task, source in zip(recipe.tasks, plan.sources, strict=True):
        needs(bool(source.stored), f"it needs the expert's checkpoint of {task} (--experts)")
        different = [n for n in plan.floats if source.stored.get(n) != plan.base.stored[n]]
        needs(
            not different,
            f"{source.where} stores {different[:1]} under other keys than {plan.base.source}",
        )
    for where in (plan.base.source, *(source.where for source in plan.sources)):
        needs(Path(where).is_file(), f"its mergekit-pytorch reads one file, {where} is none")
    kind = recipe.preprocess["method"]
    needs(kind == "none", f"it does not preprocess vectors ({kind})")
    needs(
        recipe.method in ("task_arithmetic", "ties"),
        f"its {recipe.method} is another one; task_arithmetic and ties can be translated",
    )
    if recipe.method != "ties":
        return
    for option, allowed in _TIES_DEFAULTS.items():
        found = recipe.options.get(option, allowed[0])
        needs(found in allowed, f"ties with {option}: {found} is not in it")
    density, minimum = recipe.options["density"], recipe.options.get("minimum", 0)
    smallest = min(plan.base.specs[name].size for name in plan.floats)
    needs(
        minimum == 1 or (minimum == 0 and int(density * smallest) >= 1),
        f"it keeps an element of every tensor, this one none of {smallest}: give minimum: 1",
    )
    needs(
        all(row == plan.table.weights[0] for row in plan.table.weights),
        "its ties weighs before the election; the same only where all tasks have equal weights",
    )


def _setting(plan: MergePlan, row: list[float]) -> Any:
    """One number, or filters from name to number.

    mergekit takes the first filter that is a part of the name, wherever in it.
    """
    if len(set(row)) == 1 and len(plan.groups) == len(plan.floats):
        return row[0]
    values = dict(zip(plan.table.groups, row, strict=True))
    of_name = {name: values[group] for name, group in plan.groups.items()}
    of_name |= {name: 0.0 for name in plan.floats if name not in of_name}
    stored = {key: value for name, value in of_name.items() for key in plan.base.stored[name]}
    filters = _shortest(stored)
    if any(_matched(filters, key) != value for key, value in stored.items()):
        filters = dict(sorted(stored.items(), key=lambda item: -len(item[0])))
    return [{"filter": part, "value": value} for part, value in filters.items()]


def _shortest(stored: Mapping[str, float]) -> dict[str, float]:
    """Beginnings of names with the fewest dots that no name of another value contains."""
    chosen: dict[str, float] = {}
    for key, value in stored.items():
        parts = key.split(".")
        heads = [".".join(parts[:count]) + "." for count in range(1, len(parts))]
        others = [name for name, other in stored.items() if other != value]
        found = (head for head in heads if not any(head in name for name in others))
        chosen[next(found, key)] = value
    return dict(sorted(chosen.items(), key=lambda item: -len(item[0])))


def _matched(filters: Mapping[str, float], key: str) -> float | None:
    return next((value for part, value in filters.items() if part in key), None)
