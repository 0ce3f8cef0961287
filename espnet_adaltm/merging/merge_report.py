"""What a merge does, in words and numbers: merged, kept, left out, and why."""

import math
from collections.abc import Iterable, Mapping, Sequence

from espnet_adaltm.merging.offline import Sizes
from espnet_adaltm.merging.plan import MergePlan
from espnet_adaltm.text import some

_MOST_ROWS = 120  # more groups than that are told by block
_MOST_NAMES = 6


def merge_report(plan: MergePlan, sizes: Sizes | None = None) -> str:
    """Describe a merge.

    Args:
        plan: What is, or is to be, merged.
        sizes: Of the base and the differences, once they are known.

    Returns:
        A table with a row for each group (for each block where groups are too many): tensors,
        parameters, lambda of every task, and ``|tau| / |W|`` where the differences were read; then
        lines on what stays the base's and on what is left out.
    """
    recipe = plan.recipe
    title = f"{recipe.name}: {recipe.method}"
    if recipe.options:
        title += f" ({', '.join(f'{k}: {v}' for k, v in recipe.options.items())})"
    if recipe.preprocess["method"] != "none":
        title += f", vectors preprocessed: {recipe.seeded_preprocess}"
    lines = [f"{title}, stored in {recipe.dtype}", *_table(plan, sizes), *_remarks(plan)]
    return "\n".join(lines) + "\n"


def _table(plan: MergePlan, sizes: Sizes | None) -> list[str]:
    tasks = plan.recipe.tasks
    scaled = set(plan.table.scale) != {1.0}
    header = ["group", "tensors", "parameters", *tasks, *(["scale"] if scaled else [])]
    if sizes is not None:
        header += [f"|{task}|/|W|" for task in tasks]
    rows = [header]
    for label, names in _grouped(plan).items():
        row = [label, str(len(names)), f"{sum(plan.base.specs[n].size for n in names):,}"]
        row += [_range(plan.weights(n)[at] for n in names) for at in range(len(tasks))]
        row += [_range(plan.scale(n) for n in names)] if scaled else []
        if sizes is not None:
            row += [_ratio(sizes.tasks.get(task, {}), sizes.base, names) for task in tasks]
        rows.append(row)
    return _aligned(rows)


def _grouped(plan: MergePlan) -> dict[str, list[str]]:
    by_block = len(plan.table.groups) > _MOST_ROWS
    members: dict[str, list[str]] = {} if by_block else {g: [] for g in plan.table.groups}
    for name, group in sorted(plan.groups.items(), key=lambda item: plan.blocks[item[0]].block):
        label = f"block{plan.blocks[name].block}" if by_block else group
        members.setdefault(label, []).append(name)
    return members


def _range(values: Iterable[float]) -> str:
    low, high = _ends(values)
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


def _ends(values: Iterable[float]) -> tuple[float, float]:
    found = list(values)
    return min(found), max(found)


def _ratio(taus: Mapping[str, float], base: Mapping[str, float], names: Sequence[str]) -> str:
    if not all(name in taus for name in names):
        return "-"
    below = math.fsum(base[name] for name in names)
    return f"{math.sqrt(math.fsum(taus[n] for n in names) / below):.5f}" if below else "-"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _remarks(plan: MergePlan) -> list[str]:
    specs = plan.base.specs
    lines = [f"merged: {_count(plan.moved, specs)}"]
    for reason in dict.fromkeys(plan.kept.values()):
        names = [name for name, why in plan.kept.items() if why == reason]
        lines.append(
            f"kept as in the base ({reason}): {_count(names, specs)}: {some(names, _MOST_NAMES)}"
        )
    if plan.base.left_out:
        lines.append(f"left out, heads of the base: {some(plan.base.left_out, _MOST_NAMES)}")
    for task, source in zip(plan.recipe.tasks, plan.sources, strict=True):
        if source.left_out:
            lines.append(f"left out, heads of {task}: {some(source.left_out, _MOST_NAMES)}")
    return lines


def _count(names: Iterable[str], specs: Mapping) -> str:
    sizes = [specs[name].size for name in names]
    return f"{len(sizes)} tensors, {sum(sizes):,} parameters"
