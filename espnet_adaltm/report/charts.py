"""The pictures of the page, drawn from the numbers of ``results.json``; all values in percent."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from markupsafe import Markup

from espnet_adaltm.report.svg import Look, Plot, Scale, look, nice, number, padded, text_width

Ends = tuple[float, float]
_WIDE_RATIO = 20  # of the largest to the smallest value: a logarithmic axis
_PANEL = (340, 220)


@dataclass(frozen=True)
class Point:
    """A system in `trade_off`: its place, and the ends of both intervals."""

    name: str
    look: Look
    wer: float
    score: float
    wer_ends: Ends
    score_ends: Ends


def pareto(points: Sequence[Point]) -> list[Point]:
    """Points that no other one beats in one measure without losing in the other, by WER."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.wer, -p.score)):
        if not front or point.score > front[-1].score:
            front.append(point)
    return front


def trade_off(
    points: Sequence[Point],
    limits: Mapping[str, tuple[str, float]],
    size: tuple[int, int],
    style: str,
) -> Markup:
    """Emotion against words, with the Pareto front.

    Args:
        points: Systems that have both.
        limits: ``wer`` or ``score`` to the name and value of the best system that has only that.
        size: Width and height.
        style: Class of the element.
    """
    plot = Plot(*size, "macro-F1 against word error rate of every system", (50, 14, 16, 40))
    words = [*[v for p in points for v in (p.wer, *p.wer_ends)]]
    words += [limits["wer"][1]] if "wer" in limits else []
    scores = [v for p in points for v in (p.score, *p.score_ends)]
    scores += [limits["score"][1]] if "score" in limits else []
    log = min(words) > 0 and max(words) > _WIDE_RATIO * min(words)
    if log:
        x = plot.x(min(words) / 1.25, max(words) * 1.6, log=True)
    else:
        low, high = padded(words, 0.12, 1.0)
        x = plot.x(max(0.0, low), high)
    y = plot.y(*padded(scores, 0.1, 1.0))
    plot.axes(x, y, ("WER (%), left is better" + (", log scale" if log else ""), "macro-F1 (%)"))
    front = pareto(points)
    _limits(plot, x, y, limits)
    steps = [(x(front[0].wer), plot.bottom)]
    for point in front:
        steps += [(x(point.wer), steps[-1][1]), (x(point.wer), y(point.score))]
    plot.line([*steps, (plot.right, steps[-1][1])], "front")
    boxes = [(x(p.wer) - 7, y(p.score) - 7, x(p.wer) + 7, y(p.score) + 7) for p in points]
    for point in points:
        here = x(point.wer), y(point.score)
        plot.open(series=point.look.colour, name=point.name)
        plot.segment(x(point.wer_ends[0]), here[1], x(point.wer_ends[1]), here[1], "whisker")
        plot.segment(here[0], y(point.score_ends[0]), here[0], y(point.score_ends[1]), "whisker")
        tip = f"{point.name}: macro-F1 {point.score:.1f}, WER {point.wer:.1f}"
        plot.mark(*here, point.look, 5.5, tip)
        _name(plot, point.name, here, boxes)
        plot.close()
    return plot.render(style)


def _limits(plot: Plot, x: Scale, y: Scale, limits: Mapping[str, tuple[str, float]]) -> None:
    """Dashed lines where the best systems are that have only emotions, or only words."""
    if "wer" in limits:
        name, value = limits["wer"]
        plot.segment(x(value), plot.top, x(value), plot.bottom, "limit")
        plot.text(x(value) + 4, plot.bottom - 6, f"{name} (words only)")
    if "score" in limits:
        name, value = limits["score"]
        plot.segment(plot.left, y(value), plot.right, y(value), "limit")
        plot.text(plot.left + 4, y(value) - 4, f"{name} (emotions only)")


def _name(
    plot: Plot, name: str, place: tuple[float, float], boxes: list[tuple[float, ...]]
) -> None:
    """Write a name beside its mark where it covers least."""
    width, (px, py) = text_width(name), place
    options = [
        (px + 9, py + 4), (px - 9 - width, py + 4), (px - width / 2, py - 10),
        (px - width / 2, py + 19), (px + 9, py - 7), (px + 9, py + 15),
        (px - 9 - width, py - 7), (px - 9 - width, py + 15),
        *[(x, py + y) for y in (-19, 27, -31, 39) for x in (px + 9, px - 9 - width)],
    ]  # fmt: skip

    def cost(option: tuple[float, float]) -> float:
        left, base = option
        own = (left, base - 9, left + width, base + 2)
        covered = sum(_overlap(own, box) for box in boxes)
        outside = left < plot.left or own[2] > plot.right
        outside = outside or own[1] < plot.top or own[3] > plot.bottom
        return covered + 1e4 * outside

    best = min(options, key=cost)
    plot.text(*best, name, style="label")
    boxes.append((best[0], best[1] - 9, best[0] + width, best[1] + 2))


def _overlap(first: Sequence[float], second: Sequence[float]) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(0.0, width) * max(0.0, height)


def coefficients(
    title: str,
    tasks: Sequence[tuple[int, str]],
    groups: Sequence[str],
    final: Sequence[Any],
    ends: Ends,
) -> Markup:
    """Coefficients by depth: the mean over seeds, and the band from lowest to highest.

    Args:
        title: Name of the system.
        tasks: Number of the colour and name of K tasks.
        groups: G names, by depth.
        final: Of every seed, [S][K][G].
        ends: Lowest and highest value of the axis, shared by all systems.
    """
    plot = Plot(*_PANEL, f"coefficients of {title} by depth", (44, 10, 14, 38))
    names = [group.removeprefix("block") for group in groups]
    x = plot.x(-0.4, len(groups) - 0.6)
    y = plot.y(*ends)
    step = math.ceil(len(names) / 13)
    blocks = all(name.isdigit() for name in names)
    ticks = [(i, names[i]) for i in range(0, len(names), step)] if blocks else []
    if len(names) == 1:
        ticks = [(0, names[0])]
    axis = "block (0: front end)" if blocks else "group, by depth"
    plot.axes(x, y, (axis, "coefficient"), x_ticks=ticks)
    if ends[0] < 0 < ends[1]:
        plot.segment(plot.left, y(0), plot.right, y(0), "zero")
    for row, (colour, name) in enumerate(tasks):
        rows = [seed[row] for seed in final]
        plot.open(series=colour)
        lows, highs = ([f(column) for column in zip(*rows)] for f in (min, max))
        means = [math.fsum(column) / len(rows) for column in zip(*rows)]
        plot.band(
            [(x(i), y(v)) for i, v in enumerate(lows)], [(x(i), y(v)) for i, v in enumerate(highs)]
        )
        if len(groups) == 1 and len(rows) > 1:
            plot.segment(x(0), y(lows[0]), x(0), y(highs[0]), "whisker")
        plot.line([(x(i), y(v)) for i, v in enumerate(means)])
        if len(groups) <= 30:
            for i, value in enumerate(means):
                tip = f"{name}, {groups[i]}: {value:.3f} ({lows[i]:.3f} to {highs[i]:.3f})"
                plot.mark(x(i), y(value), look(colour), 3.6, tip)
        plot.close()
    return plot.render()


def curves(label: str, lines: Sequence["Curve"], *, rate: bool) -> Markup:
    """Values by epoch: means over seeds, bands from lowest to highest.

    Args:
        label: What is drawn.
        lines: With their values in percent if ``rate``.
        rate: Percent, else a loss, on a logarithmic axis if it falls far.
    """
    plot = Plot(340, 200, label, (44, 10, 14, 38))
    values = [v for line in lines for row in line.seeds for v in row if v is not None]
    last = max(len(row) for line in lines for row in line.seeds)
    log = not rate and min(values) > 0 and max(values) > _WIDE_RATIO * min(values)
    if log:
        y = plot.y(min(values) / 1.15, max(values) * 1.15, log=True)
    else:
        y = plot.y(*padded(values, 0.08, 2.0 if rate else 0.02))
    x = plot.x(1 - 0.03 * last, last + 0.03 * last + (0.2 if last == 1 else 0))
    epochs = [e for e in nice(1, last, 6) if e == int(e) and e >= 1] or [1]
    plot.axes(
        x, y, ("epoch", "percent" if rate else "loss"), x_ticks=[(e, f"{e:g}") for e in epochs]
    )
    for line in lines:
        plot.open(series=line.look.colour, name=line.system)
        columns = _columns(line.seeds)
        low, high = ([(x(e), y(f(v))) for e, v in columns] for f in (min, max))
        if len(line.seeds) > 1:
            plot.band(low, high)
        means = [(e, math.fsum(v) / len(v)) for e, v in columns]
        plot.line([(x(e), y(v)) for e, v in means], "curve dashed" if line.dashed else "curve")
        for epoch, value in means if len(means) <= 40 else []:
            plot.mark(
                x(epoch), y(value), line.look, 2.6, f"{line.name}, epoch {epoch}: {value:.4g}"
            )
        plot.close()
    return plot.render()


@dataclass(frozen=True)
class Curve:
    """A line of `curves`.

    Attributes:
        name: For tips.
        system: Whose it is.
        look: Of its marks.
        seeds: Values by epoch of every seed, None where unknown.
        dashed: Or not.
    """

    name: str
    system: str
    look: Look
    seeds: Sequence[Sequence[float | None]]
    dashed: bool = False


def _columns(rows: Sequence[Sequence[float | None]]) -> list[tuple[int, list[float]]]:
    """Epoch to the values of all seeds, as far as all of them went."""
    found = []
    for epoch, column in enumerate(zip(*rows), start=1):
        values = [value for value in column if value is not None]
        if len(values) == len(rows):
            found.append((epoch, values))
    return found


def reliability(name: str, rows: Sequence[Mapping[str, float]]) -> Markup:
    """How often a system is right by how sure it is; fuller bars stand for more utterances."""
    plot = Plot(220, 210, f"calibration of {name}", (36, 10, 10, 38))
    x, y = plot.x(0, 100), plot.y(0, 100)
    plot.axes(x, y, ("confidence (%)", "right (%)"))
    most = max(row["count"] for row in rows)
    for row in rows:
        left, right = x(100 * row["low"]), x(100 * row["high"])
        top = y(100 * row["accuracy"])
        tip = (
            f"sure {100 * row['confidence']:.1f} %, right {100 * row['accuracy']:.1f} %, "
            f"{row['count']:.0f} utterances"
        )
        plot.add(
            '<rect class="bar" x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" '
            'fill-opacity="{o:.2f}"><title>{t}</title></rect>',
            x=left, y=top, w=right - left - 0.6, h=plot.bottom - top,
            o=0.3 + 0.7 * row["count"] / most, t=tip,
        )  # fmt: skip
    plot.segment(x(0), y(0), x(100), y(100), "front")
    return plot.render()


@dataclass(frozen=True)
class Row:
    """A row of `intervals` or `strips`."""

    name: str
    look: Look
    values: Sequence[float]
    tips: Sequence[str]
    ends: Ends | None = None
    system: str = ""


def intervals(label: str, rows: Sequence[Row], title: str) -> Markup:
    """Differences with their intervals, one row each, and a line at zero."""
    plot, x = _rows_plot(label, rows, title, [0.0])
    plot.segment(x(0), plot.top, x(0), plot.bottom, "zero")
    for row, base in zip(rows, _bases(plot, rows)):
        plot.text(plot.left, base - 10, row.name, style="label")
        plot.open(series=row.look.colour, name=row.system)
        if row.ends is not None:
            plot.segment(x(row.ends[0]), base, x(row.ends[1]), base, "thick")
        plot.mark(x(row.values[0]), base, row.look, 4.5, row.tips[0])
        plot.close()
    return plot.render()


def strips(label: str, rows: Sequence[Row], title: str) -> Markup:
    """One row per system, one dot per value, and a bar at their median."""
    plot, x = _rows_plot(label, rows, title, [])
    for row, base in zip(rows, _bases(plot, rows)):
        plot.text(plot.left, base - 10, row.name, style="label")
        plot.open(series=row.look.colour, name=row.system)
        for value, tip in zip(row.values, row.tips):
            plot.mark(x(value), base, Look(row.look.colour, "circle", False), 3.4, tip)
        middle = x(median(row.values))
        plot.segment(middle, base - 8, middle, base + 8, "median")
        plot.close()
    return plot.render("faint")


def _rows_plot(
    label: str, rows: Sequence[Row], title: str, more: Sequence[float]
) -> tuple[Plot, Scale]:
    values = [*more, *[v for row in rows for v in (*row.values, *(row.ends or ()))]]
    plot = Plot(340, 34 * len(rows) + 52, label, (12, 6, 14, 38))
    log = not more and min(values) > 0 and max(values) > _WIDE_RATIO * min(values)
    if log:
        x = plot.x(min(values) / 1.2, max(values) * 1.2, log=True)
    else:
        x = plot.x(*padded(values, 0.06, 0.5))
    for value in x.ticks(5):
        plot.segment(x(value), plot.top, x(value), plot.bottom, "grid")
        plot.text(x(value), plot.bottom + 14, number(value), "middle")
    plot.text(
        (plot.left + plot.right) / 2, plot.height - 5, title + (", log scale" if log else ""),
        "middle", "axis",
    )  # fmt: skip
    return plot, x


def _bases(plot: Plot, rows: Sequence[Row]) -> list[float]:
    """Vertical places of the rows."""
    return [plot.top + 34 * number + 24 for number in range(len(rows))]
