"""Pictures of results: coefficients, confusions, SER against WER.

Every function writes one PNG atomically. Colours are Okabe and Ito's, told apart by colour-blind
readers too; matplotlib is imported on first use and draws without a display.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espnet_adaltm.files import atomic_open
from espnet_adaltm.scoring.calibration import Reliability
from espnet_adaltm.scoring.metrics import FloatArray, IntArray

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*X<>"
_MOST_TICKS = 26
_LEAST_SPAN = 0.1  # of a coefficient or cosine, so that noise doesn't look like structure


def new_figure(width: float, height: float, **layout: Any) -> tuple[Any, Any]:
    """Figure and axes as ``pyplot.subplots`` gives them, sizes in inches."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(width, height), layout="constrained", **layout)


def save(figure: Any, path: Path) -> Path:
    """Write a figure as PNG, close it, and return ``path``."""
    from matplotlib import pyplot

    # No software version in the file: equal numbers give equal bytes.
    with atomic_open(path, "wb") as handle:
        figure.savefig(handle, format="png", dpi=120, metadata={"Software": None})
    pyplot.close(figure)
    return path


def group_axis(axis: Any, groups: Sequence[str]) -> None:
    """Label groups along x: block numbers alone, and not more than fit."""
    names = [group.removeprefix("block") for group in groups]
    step = math.ceil(len(names) / _MOST_TICKS)
    blocks = all(name.isdigit() for name in names)
    upright = blocks or len(names) == 1
    axis.set_xticks(range(0, len(names), step), names[::step], rotation=0 if upright else 90)
    axis.set_xlabel("block (0: front end)" if blocks else "group of parameters")


def widen(axis: Any) -> None:
    """Show at least `_LEAST_SPAN` of the vertical axis."""
    low, high = axis.get_ylim()
    middle, half = (low + high) / 2, max(_LEAST_SPAN, high - low) / 2
    axis.set_ylim(middle - half, middle + half)


def final_coefficients(
    path: Path, title: str, tasks: Sequence[str], groups: Sequence[str], seeds: FloatArray
) -> Path:
    """Coefficients by group: a thin line per seed and task, their mean in bold.

    Args:
        path: PNG to write.
        title: Above the picture.
        tasks: K names.
        groups: G names, by depth.
        seeds: Final coefficients, shape [S, K, G].
    """
    figure, axis = new_figure(max(6.0, min(12.0, 2 + 0.3 * len(groups))), 4.0)
    x = np.arange(len(groups))
    rounds = line_styles(math.ceil(len(tasks) / len(COLOURS)))
    for task, (name, (colour, marker, _)) in enumerate(zip(tasks, styles(len(tasks)))):
        look = {"color": colour, "linestyle": rounds[task // len(COLOURS)]}
        marker = marker if len(groups) <= _MOST_TICKS else ""
        for values in seeds[:, task] if len(seeds) > 1 else ():
            dots = marker if len(groups) == 1 else ""
            axis.plot(x, values, alpha=0.35, linewidth=1, marker=dots, **look)
        axis.plot(x, seeds[:, task].mean(0), marker=marker, linewidth=2, label=name, **look)
    several = f", mean of {len(seeds)} seeds" if len(seeds) > 1 else ""
    axis.set(title=f"{title}: learned coefficients{several}", ylabel="coefficient")
    widen(axis)
    axis.grid(alpha=0.3)
    axis.legend(title="task vector", loc="center left", bbox_to_anchor=(1.01, 0.5))
    group_axis(axis, groups)
    return save(figure, path)


def coefficient_history(
    path: Path, title: str, tasks: Sequence[str], groups: Sequence[str], epochs: FloatArray
) -> Path:
    """Coefficients over epochs, a panel per task, a line per group from dark (front) to light.

    Args:
        path: PNG to write.
        title: Above the picture.
        tasks: K names.
        groups: G names, by depth.
        epochs: Shape [E, K, G].
    """
    figure, axes = new_figure(
        1.5 + 3.8 * len(tasks), 3.8, ncols=len(tasks), sharey=True, squeeze=False
    )
    from matplotlib import cm, colors

    scale = colors.Normalize(0, max(1, len(groups) - 1))
    palette = cm.ScalarMappable(scale, "viridis")
    x = np.arange(1, len(epochs) + 1)
    for task, axis in enumerate(axes[0]):
        for group in range(len(groups)):
            colour = palette.to_rgba(group) if len(groups) > 1 else COLOURS[task % len(COLOURS)]
            axis.plot(x, epochs[:, task, group], color=colour, marker=".")
        axis.set(title=f"{tasks[task]} vector", xlabel="epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    widen(axes[0][0])
    axes[0][0].set_ylabel("coefficient")
    figure.suptitle(f"{title}: coefficients while training")
    if len(groups) > 1:
        bar = figure.colorbar(palette, ax=axes[0].tolist())
        ends = [groups[0].removeprefix("block"), groups[-1].removeprefix("block")]
        bar.set_ticks([0, len(groups) - 1], labels=ends)
        bar.set_label("block" if groups[0].startswith("block") else "group")
    return save(figure, path)


def confusion(path: Path, title: str, labels: Sequence[str], counts: IntArray) -> Path:
    """Row-normalised confusion matrix with percentages and counts.

    Args:
        path: PNG to write.
        title: Above the picture.
        labels: C names.
        counts: References in rows, shape [C, C].
    """
    size = 2.6 + 0.75 * len(labels)
    figure, axis = new_figure(size + 0.6, size)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    picture = axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*counts.shape):
        text = f"{100 * share[row, column]:.0f}\n({counts[row, column]})"
        colour = "white" if share[row, column] > 0.55 else "black"
        axis.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)
    axis.set_xticks(range(len(labels)), labels, rotation=45, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(labels)), labels)
    axis.set(title=title, xlabel="predicted", ylabel="reference")
    figure.colorbar(picture, ax=axis, label="share of the reference class", shrink=0.8)
    return save(figure, path)


def reliability(path: Path, title: str, systems: Mapping[str, tuple[Reliability, float]]) -> Path:
    """Accuracy by confidence, a panel per system; on the diagonal confidence can be believed.

    Bars are as wide as the bins; the darker they are, the more utterances stand behind them.

    Args:
        path: PNG to write.
        title: Above the picture.
        systems: Name to its bins and its calibration error.
    """
    columns = min(4, len(systems))
    rows = math.ceil(len(systems) / columns)
    figure, axes = new_figure(
        1 + 2.5 * columns, 0.6 + 2.5 * rows, nrows=rows, ncols=columns,
        sharex=True, sharey=True, squeeze=False,
    )  # fmt: skip
    for axis in axes.flat[len(systems) :]:
        axis.set_axis_off()
    for axis, (name, (bins, error)) in zip(axes.flat, systems.items()):
        most = max(1, int(bins.counts.max()))
        for row in bins.rows():
            axis.bar(
                100 * row["low"], 100 * row["accuracy"], 100 * (row["high"] - row["low"]),
                align="edge", color=COLOURS[0], alpha=0.25 + 0.75 * row["count"] / most,
            )  # fmt: skip
        axis.plot([0, 100], [0, 100], "--", color="black", linewidth=0.8)
        axis.set_title(f"{name}: ECE {100 * error:.1f}", fontsize="medium")
        axis.set(xlim=(0, 100), ylim=(0, 100))
    figure.supxlabel("confidence (%)")
    figure.supylabel("right (%)")
    figure.suptitle(title)
    return save(figure, path)


@dataclass(frozen=True)
class Point:
    """One system in `trade_off`: a value and its interval on each axis."""

    name: str
    wer: tuple[float, float, float]
    score: tuple[float, float, float]


def trade_off(path: Path, title: str, points: Sequence[Point]) -> Path:
    """Macro-F1 against WER with interval bars, in percent; up and left is better.

    Later markers are smaller, so that systems with equal scores show as rings around each other.

    Args:
        path: PNG to write.
        title: Above the picture.
        points: Systems; every triple is (value, low, high) as fractions.
    """
    figure, axis = new_figure(7.5, 4.8)
    sizes = np.linspace(14, 6, len(points))
    for point, size, (colour, marker, filled) in zip(points, sizes, styles(len(points))):
        (x, x_bars), (y, y_bars) = (_bars(values) for values in (point.wer, point.score))
        axis.errorbar(
            [x],
            [y],
            xerr=x_bars,
            yerr=y_bars,
            fmt=marker,
            color=colour,
            markerfacecolor=colour if filled else "white",
            markersize=size,
            elinewidth=1,
            alpha=0.9,
            label=point.name,
        )
    axis.set(title=title, xlabel="WER (%), left is better", ylabel="macro-F1 (%), up is better")
    axis.grid(alpha=0.3)
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return save(figure, path)


def _bars(values: tuple[float, float, float]) -> tuple[float, NDArray[np.float64]]:
    value, low, high = (100 * number for number in values)
    return value, np.array([[max(0.0, value - low)], [max(0.0, high - value)]])


def styles(count: int) -> list[tuple[str, str, bool]]:
    """Colour, marker and filled or hollow; colours repeat hollow."""
    return [
        (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], i // len(COLOURS) % 2 == 0)
        for i in range(count)
    ]


def line_styles(count: int) -> list[Any]:
    """Dashes for as many lines, all different: first the usual ones, then a dash and more dots."""
    usual = ["-", "--", ":", "-."]
    dotted = [(0, (6, 2, *(1, 2) * dots)) for dots in range(2, 2 + count - len(usual))]
    return [*usual, *dotted][:count]
