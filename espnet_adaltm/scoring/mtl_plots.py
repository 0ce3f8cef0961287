"""Pictures of joint training: where the tasks' gradients oppose each other, what weights do.

The first stands beside AdaLTM's coefficients: both say which depths two tasks can share.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from espnet_adaltm.errors import UserError
from espnet_adaltm.scoring.metrics import FloatArray
from espnet_adaltm.scoring.plots import COLOURS, group_axis, new_figure, save, styles, widen

# Of a validation: name in the JSON, title, factor.
SWEPT = (
    ("macro_f1", "macro-F1 (%)", 100),
    ("uar", "UAR (%)", 100),
    ("wer", "WER (%)", 100),
    ("spk_acc", "speaker accuracy (%)", 100),
)


def mean_conflict(reports: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, FloatArray]]:
    """Mean over seeds of ``gradient_conflict.json``.

    Args:
        reports: At least one; of the same blocks and tasks.

    Returns:
        ``cosine`` and ``opposed`` to pair to [E, G] over the epochs that all of them have, NaN
        where no step of any seed had a value.

    Raises:
        UserError: Different blocks or tasks.
    """
    first = reports[0]
    if any(report["blocks"] != first["blocks"] for report in reports):
        raise UserError("gradient conflicts of different encoders: train the seeds again")
    epochs = [e for e in first["epochs"] if all(e in report["epochs"] for report in reports)]
    result: dict[str, dict[str, FloatArray]] = {}
    for measure in ("cosine", "opposed"):
        pairs = first["epochs"][epochs[0]][measure]
        result[measure] = {
            pair: _nan_mean(
                [[_floats(r["epochs"][e][measure][pair]) for e in epochs] for r in reports]
            )
            for pair in pairs
        }
    return result


def _floats(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def _nan_mean(values: Sequence[Any]) -> FloatArray:
    """Mean over the first axis of what is not NaN; NaN where all is."""
    array = np.array(values, dtype=float)
    known = np.isfinite(array)
    count = known.sum(0)
    return np.where(count, np.where(known, array, 0).sum(0) / np.maximum(count, 1), np.nan)


def conflict_plot(
    path: Path,
    title: str,
    reports: Sequence[Mapping[str, Any]],
    coefficients: Mapping[str, Any] | None = None,
) -> Path:
    """Cosine of the gradients by block, its course over epochs, and coefficients below.

    Args:
        path: PNG to write.
        title: Above the picture.
        reports: ``gradient_conflict.json`` of every seed.
        coefficients: ``name``, ``tasks`` [K], ``groups`` [G], ``final`` [K][G] of a merge with
            the same blocks, or None.
    """
    blocks = reports[0]["blocks"]
    shown = mean_conflict(reports)
    with_merge = coefficients is not None and coefficients["groups"] == blocks
    figure, axes = new_figure(
        max(9.0, min(14.0, 5 + 0.35 * len(blocks))),
        6.6 if with_merge else 3.6,
        nrows=2 if with_merge else 1,
        ncols=2,
        squeeze=False,
    )
    x = np.arange(len(blocks))
    cosines = shown["cosine"]
    for (pair, values), (colour, marker, _) in zip(cosines.items(), styles(len(cosines))):
        name = pair.replace(",", " and ")
        axes[0][0].plot(x, _nan_mean(values), color=colour, marker=marker, label=name)
        course = _nan_mean(values.T)
        axes[0][1].plot(1 + np.arange(len(course)), course, color=colour, marker=marker, label=name)
    axes[0][0].set(ylabel="cosine of the gradients", title="by block, mean over epochs")
    axes[0][1].set(xlabel="epoch", title="by epoch, mean over blocks")
    axes[0][1].xaxis.get_major_locator().set_params(integer=True)
    axes[0][1].legend(title="between", loc="center left", bbox_to_anchor=(1.01, 0.5))
    for axis in axes[0]:
        axis.axhline(0, color="black", linewidth=0.8)
        widen(axis)
    if with_merge:
        _coefficients(axes[1][0], coefficients, x)
        _opposed(axes[1][1], shown["opposed"], x)
        group_axis(axes[1][1], blocks)
        group_axis(axes[1][0], blocks)
    else:
        group_axis(axes[0][0], blocks)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    figure.suptitle(title)
    return save(figure, path)


def _coefficients(axis: Any, merge: Mapping[str, Any], x: FloatArray) -> None:
    tasks = merge["tasks"]
    looks = styles(4 + len(tasks))[4:]  # others than those of the gradients
    for task, values, (colour, marker, _) in zip(tasks, merge["final"], looks):
        axis.plot(x, values, color=colour, marker=marker, label=f"{task} vector")
    axis.set(ylabel="coefficient", title=f"{merge['name']}: learned coefficients")
    widen(axis)
    axis.legend(fontsize="small")


def _opposed(axis: Any, opposed: Mapping[str, FloatArray], x: FloatArray) -> None:
    for values, (colour, marker, _) in zip(opposed.values(), styles(len(opposed))):
        axis.plot(x, 100 * _nan_mean(values), color=colour, marker=marker)
    axis.axhline(50, color="black", linewidth=0.8)  # directions at random
    axis.set(ylabel="percent of steps", title="opposing gradients (cosine below 0)", ylim=(0, 100))


def sweep_plot(path: Path, report: Mapping[str, Any]) -> Path:
    """Validation scores over alpha and beta: a map of each if both vary, else lines.

    Args:
        path: PNG to write.
        report: ``sweep.json``: ``alphas`` [A], ``betas`` [B] and ``runs``, of which each has
            ``alpha``, ``beta`` and ``metrics``.
    """
    alphas, betas = report["alphas"], report["betas"]
    grids = {
        (title, name): scale * _grid(report, name)
        for name, title, scale in SWEPT
        if np.isfinite(_grid(report, name)).any()
    }
    figure, axes = new_figure(
        1.0 + 3.6 * len(grids), 3.6 if min(len(alphas), len(betas)) > 1 else 3.2,
        ncols=len(grids), squeeze=False,
    )  # fmt: skip
    for axis, ((title, _), grid) in zip(axes[0], grids.items()):
        if len(alphas) > 1 and len(betas) > 1:
            _map(figure, axis, grid, alphas, betas)
        else:
            name, values = ("beta", betas) if len(betas) > 1 else ("alpha", alphas)
            axis.plot(range(len(values)), grid.flatten(), color=COLOURS[0], marker="o")
            axis.set_xticks(range(len(values)), [f"{value:g}" for value in values])
            axis.set_xlabel(name)
            axis.grid(alpha=0.3)
        axis.set_title(title)
    figure.suptitle("MTLSER on the validation set: alpha weights CTC, beta the speaker loss")
    return save(figure, path)


def _grid(report: Mapping[str, Any], name: str) -> FloatArray:
    """One metric [A, B]; NaN where a run lacks it (no CTC or speaker head)."""
    values = {(run["alpha"], run["beta"]): run["metrics"].get(name) for run in report["runs"]}
    rows = [[values.get((a, b)) for b in report["betas"]] for a in report["alphas"]]
    return np.array([_floats(row) for row in rows], dtype=float)


def _map(
    figure: Any, axis: Any, grid: FloatArray, alphas: Sequence[float], betas: Sequence[float]
) -> None:
    picture = axis.imshow(grid, origin="lower", aspect="auto", cmap="viridis")
    middle = np.nanmin(grid) + 0.6 * (np.nanmax(grid) - np.nanmin(grid))
    for row, column in np.ndindex(*grid.shape):
        value = grid[row, column]
        colour = "black" if np.isfinite(value) and value > middle else "white"
        text = f"{value:.1f}" if np.isfinite(value) else ""
        axis.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    axis.set_xticks(range(len(betas)), [f"{value:g}" for value in betas])
    axis.set_yticks(range(len(alphas)), [f"{value:g}" for value in alphas])
    axis.set(xlabel="beta", ylabel="alpha")
    figure.colorbar(picture, ax=axis, shrink=0.9)
