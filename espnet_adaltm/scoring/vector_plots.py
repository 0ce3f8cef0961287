"""Pictures of ``similarity.json``: size and agreement of task vectors by block and by module."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from espnet_adaltm.scoring.metrics import FloatArray
from espnet_adaltm.scoring.plots import (
    group_axis,
    line_styles,
    new_figure,
    save,
    styles,
    widen,
)

Values = Sequence[float | None]
_OWN = 2  # looks of the usual two vectors; those of pairs begin after them


def mean_similarity(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of several reports of `merging.analysis.analyse`, number by number.

    A ratio that is undefined (None) in one of them is undefined in the mean.

    Args:
        reports: Of vectors of the same encoder and tasks, one per seed of the experts.

    Raises:
        ValueError: They are of different tasks, blocks or modules.
    """
    return _mean(list(reports))


def _mean(values: list[Any]) -> Any:
    first = values[0]
    if all(isinstance(value, Mapping) for value in values):
        if any(value.keys() != first.keys() for value in values):
            raise ValueError("reports of different tasks")
        return {key: _mean([value[key] for value in values]) for key in first}
    if all(isinstance(value, list) for value in values):
        if any(len(value) != len(first) for value in values):
            raise ValueError("reports of different blocks")
        return [_mean(list(row)) for row in zip(*values)]
    if any(isinstance(value, str) for value in values):
        if any(value != first for value in values):
            raise ValueError(f"reports of different groups: {values}")
        return first
    if any(value is None for value in values):
        return None
    return first if len(values) == 1 else math.fsum(values) / len(values)


def by_block(path: Path, report: Mapping[str, Any], title: str = "Task vectors by block") -> Path:
    """Relative norm of every task vector, cosine and sign conflict of every pair, by block.

    Args:
        path: PNG to write.
        report: Of `merging.analysis.analyse`.
        title: Above the picture.
    """
    groups = report["blocks"]
    figure, (norm, cosine, conflict) = new_figure(
        max(6.0, min(12.0, 2 + 0.3 * len(groups))), 7.5, nrows=3, sharex=True
    )
    x = np.arange(len(groups))
    norms = report["relative_norm"]
    for (name, values), (colour, marker, _) in zip(norms.items(), styles(len(norms))):
        norm.plot(x, _numbers(values), color=colour, marker=marker, label=name)
    norm.set(title=title, ylabel="norm / norm of the base")
    norm.set_ylim(bottom=0)
    norm.legend(title="task vector", loc="center left", bbox_to_anchor=(1.01, 0.5))
    for axis, measure in ((cosine, "cosine"), (conflict, "sign_conflict")):
        pairs = report.get(measure, {})
        looks = styles(_OWN + len(pairs))[_OWN:]
        for (name, values), (colour, marker, _) in zip(pairs.items(), looks):
            label = name.replace(",", " and ")
            axis.plot(x, _numbers(values), color=colour, marker=marker, label=label)
        _finish(axis, measure)
    if report["cosine"]:
        cosine.legend(title="between", loc="center left", bbox_to_anchor=(1.01, 0.5))
    norm.grid(alpha=0.3)
    group_axis(conflict, groups)
    return save(figure, path)


def by_module(
    path: Path, report: Mapping[str, Any], title: str = "Task vectors by module"
) -> Path | None:
    """A panel per task (relative norm), cosine and sign conflict; a line per kind of module.

    Args:
        path: PNG to write.
        report: Of `merging.analysis.analyse`.
        title: Above the picture.

    Returns:
        None if the report, of an earlier version, has no modules.
    """
    if "modules" not in report:
        return None
    modules = report["modules"]
    panels = [(task, "relative_norm", [task]) for task in report["tasks"]]
    pairs = list(modules["cosine"])
    if pairs:
        panels += [("", measure, pairs) for measure in ("cosine", "sign_conflict")]
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure, axes = new_figure(
        2.0 + 4.5 * columns, 0.8 + 3.0 * rows, nrows=rows, ncols=columns, sharex=True, squeeze=False
    )
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (task, measure, keys) in zip(axes.flat, panels):
        for key, style in zip(keys, line_styles(len(keys))):
            _module_lines(axis, modules["groups"], modules[measure][key], style)
        _finish(axis, measure, task)
        axis.set_xlabel("block (0: front end)")
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0][-1].legend(title="module", loc="center left", bbox_to_anchor=(1.01, 0.5))
    if len(pairs) > 1:
        _pair_legend(axes.flat[len(panels) - 1], pairs)
    figure.suptitle(title)
    return save(figure, path)


def _pair_legend(axis: Any, pairs: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color="black", linestyle=style) for style in line_styles(len(pairs))]
    names = [pair.replace(",", " and ") for pair in pairs]
    place = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5), "handlelength": 4}
    axis.legend(lines, names, title="between", **place)


def _module_lines(axis: Any, groups: Sequence[str], values: Values, style: Any) -> None:
    lines: dict[str, list[tuple[int, float]]] = {}
    for group, value in zip(groups, _numbers(values)):
        block, _, part = group.partition(".")
        lines.setdefault(part, []).append((int(block.removeprefix("block")), float(value)))
    for (part, points), (colour, marker, _) in zip(sorted(lines.items()), styles(len(lines))):
        axis.plot(*zip(*points), linestyle=style, color=colour, marker=marker, label=part)


def _finish(axis: Any, measure: str, task: str = "") -> None:
    axis.grid(alpha=0.3)
    if measure == "relative_norm":
        axis.set(title=f"{task} vector", ylabel="norm / norm of the base")
        axis.set_ylim(bottom=0)
    elif measure == "cosine":
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set_ylabel("cosine")
        widen(axis)
    else:
        axis.axhline(0.5, color="black", linewidth=0.8)  # signs at random
        axis.set_ylabel("share of opposite signs")
        widen(axis)


def _numbers(values: Values) -> FloatArray:
    return np.array([math.nan if value is None else value for value in values])
