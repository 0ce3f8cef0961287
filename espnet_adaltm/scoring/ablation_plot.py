"""Pictures of ablations: macro-F1 and WER along an axis, with the references."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from espnet_adaltm.scoring.ablation_results import Outcome
from espnet_adaltm.scoring.ablations import Axis, row_name
from espnet_adaltm.scoring.plots import new_figure, save, styles
from espnet_adaltm.scoring.tables import TITLES

DIRECTIONS = {"macro_f1": "up is better", "wer": "down is better"}
PANELS = tuple(DIRECTIONS)
VARIED = "as varied"


@dataclass(frozen=True)
class Line:
    """One merge along an axis.

    Attributes:
        name: For the legend.
        is_reference: Drawn dashed.
        places: Horizontal positions, [P].
        values: Mean over seeds and its interval's low and high end, as fractions, [P, 3].
    """

    name: str
    is_reference: bool
    places: np.ndarray
    values: np.ndarray


def axis_lines(
    axis: Axis, outcomes: Sequence[Outcome], references: Sequence[str], part: str, metric: str
) -> list[Line]:
    """The lines of one panel: rows, by their position in a point, then references.

    Args:
        axis: The axis.
        outcomes: Of its points.
        references: See `ablations.Ablations`.
        part: Name of the test set.
        metric: Name of the metric; merges without it are left out.
    """
    done = [outcome for outcome in outcomes if not outcome.state]
    rows = [list(names) for names in zip(*[outcome.point.row_names for outcome in done])]
    lines = [(_title(names, rows), False, names) for names in rows]
    for name in map(row_name, references):
        if [name] * len(done) not in rows:
            lines.append((name, True, [name] * len(done)))
    found = []
    for title, is_reference, names in lines:
        points = [
            (axis.place(outcome.point), outcome.scores(name, part)[metric])
            for outcome, name in zip(done, names)
            if metric in outcome.scores(name, part)
        ]
        if points:
            places = np.array([place for place, _ in points])
            values = np.array([[s["mean"], s["low"], s["high"]] for _, s in points])
            found.append(Line(title, is_reference, places, values))
    return found


def _title(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if len(set(names)) == 1:
        return names[0]
    return VARIED if len(rows) == 1 else f"{VARIED} ({names[0]} ...)"


def axis_plot(
    path: Path, axis: Axis, outcomes: Sequence[Outcome], references: Sequence[str], part: str
) -> Path | None:
    """Macro-F1 and WER of every merge along an axis, in percent with interval bars.

    Args:
        path: PNG to write.
        axis: The axis.
        outcomes: Of its points.
        references: See `ablations.Ablations`; dashed, with their interval as a band.
        part: Name of the test set.

    Returns:
        None if no point has anything to draw.
    """
    panels = {
        m: lines for m in PANELS if (lines := axis_lines(axis, outcomes, references, part, m))
    }
    if not panels:
        return None
    figure, axes = new_figure(1.5 + 4.2 * len(panels), 3.8, ncols=len(panels), squeeze=False)
    names = list(dict.fromkeys(line.name for lines in panels.values() for line in lines))
    looks = dict(zip(names, styles(len(names))))
    for (metric, lines), panel in zip(panels.items(), axes[0]):
        places = [axis.place(point) for point in axis.points]
        panel.set_xlim(*_limits(places, axis.scale))
        if axis.scale == "log":
            panel.set_xscale("log")
        for line in lines:
            _draw(panel, line, looks[line.name], connected=axis.scale != "names")
        panel.set_xticks(places, [point.name for point in axis.points], rotation=_slant(axis))
        panel.minorticks_off()
        panel.set(xlabel=axis.label, ylabel=f"{TITLES[metric]} (%), {DIRECTIONS[metric]}")
        panel.grid(alpha=0.3)
    entries: dict[str, Any] = {}
    for panel in axes[0]:
        for handle, name in zip(*panel.get_legend_handles_labels()):
            entries.setdefault(name, handle)
    shown = [name for name in names if name in entries]
    axes[0][-1].legend(
        [entries[name] for name in shown], shown, loc="center left", bbox_to_anchor=(1.01, 0.5)
    )
    figure.suptitle(f"{axis.title} ({part})")
    return save(figure, path)


def _draw(panel: Any, line: Line, look: tuple[str, str, bool], *, connected: bool) -> None:
    colour, marker, filled = look
    mean, low, high = 100 * line.values.T
    if line.is_reference:
        panel.plot(line.places, mean, "--", color=colour, label=line.name)
        panel.fill_between(line.places, low, high, color=colour, alpha=0.1, linewidth=0)
        return
    panel.errorbar(
        line.places,
        mean,
        yerr=np.maximum(0, [mean - low, high - mean]),
        fmt=f"{marker}-" if connected else marker,
        color=colour,
        markerfacecolor=colour if filled else "white",
        label=line.name,
    )


def _limits(places: Sequence[float], scale: str) -> tuple[float, float]:
    """All points, those without results too, with some air; also where there is only one."""
    low, high = min(places), max(places)
    if scale == "log":
        factor = max(2.0, high / low) ** 0.1
        return low / factor, high * factor
    air = 0.1 * ((high - low) or 1.0)
    return low - air, high + air


def _slant(axis: Axis) -> int:
    return 30 if sum(len(point.name) for point in axis.points) > 30 else 0
