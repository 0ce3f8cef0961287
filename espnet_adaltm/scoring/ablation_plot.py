"""Pictures of ablations: all points at a glance, and macro-F1 and WER along an axis."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from espnet_adaltm.scoring.ablation_results import Outcome, axis_tests
from espnet_adaltm.scoring.ablations import Ablations, Axis, row_name
from espnet_adaltm.scoring.paired import PairedTest, stars
from espnet_adaltm.scoring.plots import COLOURS, new_figure, save, styles
from espnet_adaltm.scoring.tables import TITLES

DIRECTIONS = {"macro_f1": "up is better", "wer": "down is better"}
PANELS = tuple(DIRECTIONS)
VARIED = "row of the point"
_LINE = 0.24  # inches of the overview, per row
_FAR = 3.0
_LEEWAY = 1.5  # what lies so little beyond is not cut off
_WIDE = 20.0  # ratio of the largest WER to the least from which on its axis is logarithmic
_STEP = 0.4  # half of a reference's, where points are names one apart


@dataclass(frozen=True)
class Line:
    """One merge along an axis.

    Attributes:
        name: For the legend.
        is_reference: Drawn dashed where there is more than one place.
        places: Horizontal positions, [P].
        values: Mean over seeds and its interval's low and high end, as fractions, [P, 3].
    """

    name: str
    is_reference: bool
    places: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Entry:
    """One line of the overview.

    Attributes:
        label: Title of an axis, name of a point, or point and row where points have several.
        tests: Reference to the test of macro-F1 against it; None for the title of an axis.
    """

    label: str
    tests: Mapping[str, PairedTest] | None = None


def overview_entries(config: Ablations, outcomes: Mapping[str, Outcome], part: str) -> list[Entry]:
    """The rows of all axes under their titles, each where it comes first with these differences.

    Args:
        config: The configuration.
        outcomes: By `Point.key`, of all its points.
        part: Name of the test set.
    """
    found: list[Entry] = []
    shown: set[tuple[str, tuple[tuple[str, float], ...]]] = set()
    for axis in config.axes:
        done = [o for point in axis.points if not (o := outcomes[point.key]).state]
        tests = axis_tests(done, config.references, part)
        entries = []
        for point, row in ((o.point, row) for o in done for row in o.point.row_names):
            mine = {
                reference: test
                for (name, first, reference, metric), test in tests.items()
                if (name, first, metric) == (point.name, row, "macro_f1")
            }
            same = row, tuple((reference, test.difference) for reference, test in mine.items())
            if mine and same not in shown:
                shown.add(same)
                label = point.name if len(point.rows) == 1 else f"{point.name}: {row}"
                entries.append(Entry(label, mine))
        found += [Entry(axis.title), *entries] if entries else []
    return found


def overview_plot(
    path: Path, config: Ablations, outcomes: Mapping[str, Outcome], part: str
) -> Path | None:
    """Macro-F1 of every row minus every reference of its run, with intervals, in one picture.

    Args:
        path: PNG to write.
        config: The configuration.
        outcomes: By `Point.key`, of all its points.
        part: Name of the test set.

    Returns:
        None if there is no difference to draw.
    """
    entries = overview_entries(config, outcomes, part)
    against = [
        name
        for name in map(row_name, config.references)
        if any(name in entry.tests for entry in entries if entry.tests)
    ]
    if not against:
        return None
    figure, axes = new_figure(
        1.8 + 2.9 * len(against),
        1.2 + _LINE * len(entries),
        ncols=len(against),
        sharey=True,
        squeeze=False,
    )
    for name, panel in zip(against, axes[0]):
        panel.axvline(0, color="black", linewidth=0.8)
        tests = [(entry.tests or {}).get(name) for entry in entries]
        panel.set_xlim(*difference_limits([test for test in tests if test]))
        for place, test in enumerate(tests):
            if test:
                _draw_difference(panel, place, test)
        panel.set(xlabel=f"minus {name}")
        panel.grid(axis="x", alpha=0.3)
    axes[0][0].set_yticks(range(len(entries)), [entry.label for entry in entries])
    axes[0][0].set_ylim(len(entries) - 0.5, -0.5)
    for text, entry in zip(axes[0][0].get_yticklabels(), entries):
        text.set_fontweight("normal" if entry.tests else "bold")
    figure.suptitle(
        f"Macro-F1 ({part}), points of percent\nfilled: p < 0.05 after correction within the axis"
    )
    return save(figure, path)


def difference_limits(tests: Sequence[PairedTest]) -> tuple[float, float]:
    """Ends of an axis in points of percent: what lies far off must not make the rest one dot.

    Args:
        tests: At least one; the axis has room for what is no farther than `_LEEWAY` times `_FAR`
            times the third quartile of the distances.
    """
    ends = 100 * np.array([[test.low, test.high] for test in tests])
    distances = np.abs(ends).max(1)
    near = ends[distances <= _LEEWAY * _FAR * np.quantile(distances, 0.75)]
    low, high = min(near[:, 0].min(), 0.0), max(near[:, 1].max(), 0.0)
    air = 0.05 * (high - low or 1.0)
    return low - air, high + air


def _draw_difference(panel: Any, place: int, test: PairedTest) -> None:
    """A dot with its interval, or its number beside an arrow at the edge of the panel."""
    value, low, high = (100 * number for number in (test.difference, test.low, test.high))
    left, right = panel.get_xlim()
    shown, marker, shift = value, "o", 0
    if value < left:
        shown, marker, shift = left, "<", 8
    elif value > right:
        shown, marker, shift = right, ">", -8
    fill = COLOURS[0] if stars(test.p_holm) else "white"
    panel.plot(shown, place, marker, color=COLOURS[0], markerfacecolor=fill, clip_on=False)
    if not shift:
        bar = [[max(0.0, value - low)], [max(0.0, high - value)]]
        panel.errorbar(value, place, xerr=bar, color=COLOURS[0], zorder=1)
        for end, cut, arrow in ((left, low < left, "<"), (right, high > right, ">")):
            if cut:
                panel.plot(end, place, arrow, color=COLOURS[0], markersize=3, clip_on=False)
        return
    panel.annotate(
        f"{value:+.1f}",
        (shown, place),
        xytext=(shift, 0),
        textcoords="offset points",
        ha="left" if shift > 0 else "right",
        va="center",
        fontsize="small",
    )


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
        references: See `ablations.Ablations`; dashed, with their interval as a band, or a point
            where one place of a scale is known.
        part: Name of the test set.

    Returns:
        None if there is nothing to compare: fewer than two points (of an axis that has two) done.
    """
    if sum(not outcome.state for outcome in outcomes) < min(2, len(axis.points)):
        return None
    panels = {
        m: lines for m in PANELS if (lines := axis_lines(axis, outcomes, references, part, m))
    }
    if not panels:
        return None
    figure, axes = new_figure(1.5 + 4.2 * len(panels), 3.8, ncols=len(panels), squeeze=False)
    names = list(dict.fromkeys(line.name for lines in panels.values() for line in lines))
    looks = line_looks(names, references)
    for (metric, lines), panel in zip(panels.items(), axes[0]):
        places = [axis.place(point) for point in axis.points]
        panel.set_xlim(*_limits(places, axis.scale))
        if axis.scale == "log":
            panel.set_xscale("log")
        for line in lines:
            _draw(panel, line, looks[line.name], ordered=axis.scale != "names")
        if metric == "wer" and is_wide(lines):
            panel.set_yscale("log")
            panel.yaxis.get_major_locator().set_params(subs=(1, 2, 5))
            panel.yaxis.set_major_formatter("{x:g}")
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


def is_wide(lines: Sequence[Line]) -> bool:
    """Whether values lie so far apart that on a linear axis the small ones are one dot."""
    means = np.concatenate([line.values[:, 0] for line in lines])
    return bool(means.min() > 0 and means.max() > _WIDE * means.min())


def line_looks(names: Sequence[str], references: Sequence[str]) -> dict[str, tuple[str, str, bool]]:
    """Colour, marker and whether it is filled, of every line; a reference's are those of all axes.

    Args:
        names: Of the lines of an axis.
        references: See `ablations.Ablations`.
    """
    known = [row_name(reference) for reference in references]
    others = [name for name in names if name not in known]
    order = [*others[:1], *known, *others[1:]] if others else ["", *known]
    return dict(zip(order, styles(len(order))))


def _draw(panel: Any, line: Line, look: tuple[str, str, bool], *, ordered: bool) -> None:
    colour, marker, filled = look
    mean, low, high = 100 * line.values.T
    if line.is_reference and not ordered:
        # Between names there is nothing: a step per point, and no slope.
        for number, place in enumerate(line.places):
            ends, title = (place - _STEP, place + _STEP), None if number else line.name
            panel.plot(ends, [mean[number]] * 2, "--", color=colour, label=title)
            panel.fill_between(
                ends, low[number], high[number], color=colour, alpha=0.1, linewidth=0
            )
        return
    if line.is_reference and len(line.places) > 1:
        panel.plot(line.places, mean, "--", color=colour, label=line.name)
        panel.fill_between(line.places, low, high, color=colour, alpha=0.1, linewidth=0)
        return
    panel.errorbar(
        line.places,
        mean,
        yerr=np.maximum(0, [mean - low, high - mean]),
        fmt=f"{marker}-" if ordered else marker,
        color=colour,
        markerfacecolor=colour if filled else "white",
        label=line.name,
    )


def _limits(places: Sequence[float], scale: str) -> tuple[float, float]:
    """All points, those without results too, with some air; also where there is only one."""
    low, high = min(places), max(places)
    if scale == "names":
        return low - 0.5, high + 0.5
    if scale == "log":
        factor = max(2.0, high / low) ** 0.1
        return low / factor, high * factor
    air = 0.1 * ((high - low) or 1.0)
    return low - air, high + air


def _slant(axis: Axis) -> int:
    return 30 if sum(len(point.name) for point in axis.points) > 30 else 0
