"""Scalable pictures without a drawing library: scales, axes, lines, bands and marks.

Colours come from the style sheet of the page (`theme`), so that a picture follows light and dark.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

_MARKS = ("circle", "square", "triangle", "diamond", "down", "cross")
NUM_COLOURS = 8
_CHARACTER = 6.2  # width of one at 11 px, roughly


@dataclass(frozen=True)
class Look:
    """How one series is told from others, also without colour."""

    colour: int
    mark: str
    hollow: bool


def look(index: int) -> Look:
    """Of the series with this number; the first 48 differ."""
    hollow = index // NUM_COLOURS % 2 == 1
    shift = index // (2 * NUM_COLOURS)
    return Look(index % NUM_COLOURS, _MARKS[(index + shift) % len(_MARKS)], hollow)


@dataclass(frozen=True)
class Scale:
    """From values to places, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            value, low, high = (math.log(max(v, 1e-12)) for v in (value, low, high))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """Round values inside the scale."""
        return _log_ticks(self.low, self.high) if self.log else nice(self.low, self.high, count)


def nice(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` multiples of 1, 2 or 5 times a power of ten, from ``low`` to ``high``."""
    rough = (high - low) / max(1, count)
    if rough <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    wide = math.log10(high / low)
    factors = (1,) if wide > 4 else (1, 3) if wide > 2.6 else (1, 2, 5)
    values = [round(f * 10.0**power, 12) for power in powers for f in factors]
    inside = [value for value in values if low <= value <= high]
    return inside if len(inside) > 1 else nice(low, high)


def padded(values: Sequence[float], share: float = 0.08, least: float = 0.0) -> tuple[float, float]:
    """Lowest and highest value with some air, at least ``least`` apart."""
    low, high = min(values), max(values)
    air = max((high - low) * share, (least - (high - low)) / 2, 1e-9 + abs(high) * 1e-6)
    return low - air, high + air


def number(value: float) -> str:
    """A tick as short as it can be."""
    return f"{value:.6g}".replace("-", "\N{MINUS SIGN}")


class Plot:
    """One picture of fixed proportions that fills the width it is given.

    Args:
        width: In pixels at scale 1, at which text has 11 pixels.
        height: The same.
        label: What it shows, for readers who can't see it.
        margin: Left, top, right, bottom.
    """

    def __init__(
        self,
        width: int,
        height: int,
        label: str,
        margin: tuple[int, int, int, int] = (44, 12, 12, 36),
    ) -> None:
        self.width, self.height, self.label = width, height, label
        self.left, self.top, right, bottom = margin
        self.right, self.bottom = width - right, height - bottom
        self._parts: list[Markup] = []

    def x(self, low: float, high: float, *, log: bool = False) -> Scale:
        """A scale from left to right."""
        return Scale(low, high, self.left, self.right, log)

    def y(self, low: float, high: float, *, log: bool = False) -> Scale:
        """A scale from bottom to top."""
        return Scale(low, high, self.bottom, self.top, log)

    def add(self, text: str, **values: object) -> None:
        """Append an element; ``values`` are escaped into its ``{}``."""
        self._parts.append(Markup(text).format(**values))

    def open(self, *, series: int | None = None, name: str = "") -> None:
        """Begin a group with the colour of a series; ``name`` is that of a system."""
        colour = "" if series is None else f"s{series}"
        self.add('<g class="{c}" data-s="{n}">' if name else '<g class="{c}">', c=colour, n=name)

    def close(self) -> None:
        """End a group."""
        self.add("</g>")

    def text(
        self, x: float, y: float, text: str, anchor: str = "start", style: str = "tick"
    ) -> None:
        """A line of text, ``y`` at its base line."""
        self.add(
            '<text class="{s}" x="{x:.1f}" y="{y:.1f}" text-anchor="{a}">{t}</text>',
            s=style, x=x, y=y, a=anchor, t=text,
        )  # fmt: skip

    def segment(self, x1: float, y1: float, x2: float, y2: float, style: str) -> None:
        """A straight line."""
        self.add(
            '<line class="{s}" x1="{a:.1f}" y1="{b:.1f}" x2="{c:.1f}" y2="{d:.1f}"/>',
            s=style, a=x1, b=y1, c=x2, d=y2,
        )  # fmt: skip

    def axes(
        self,
        x: Scale,
        y: Scale,
        titles: tuple[str, str] = ("", ""),
        *,
        x_ticks: Sequence[tuple[float, str]] | None = None,
    ) -> None:
        """Grid, ticks, and the titles of both axes."""
        shown = [(v, number(v)) for v in x.ticks(5)] if x_ticks is None else x_ticks
        for value, name in shown:
            self.segment(x(value), self.top, x(value), self.bottom, "grid")
            self.text(x(value), self.bottom + 14, name, "middle")
        for value in y.ticks(5):
            self.segment(self.left, y(value), self.right, y(value), "grid")
            self.text(self.left - 5, y(value) + 4, number(value), "end")
        if titles[0]:
            self.text((self.left + self.right) / 2, self.height - 5, titles[0], "middle", "axis")
        if titles[1]:
            middle = (self.top + self.bottom) / 2
            self.add(
                '<text class="axis" transform="translate(11 {y:.1f}) rotate(-90)" '
                'text-anchor="middle">{t}</text>',
                y=middle, t=titles[1],
            )  # fmt: skip

    def line(self, points: Sequence[tuple[float, float]], style: str = "curve") -> None:
        """A line through places; nothing for fewer than two."""
        if len(points) > 1:
            self.add('<path class="{s}" d="{d}"/>', s=style, d=_path(points))

    def band(self, low: Sequence[tuple[float, float]], high: Sequence[tuple[float, float]]) -> None:
        """The area between two lines of the same length."""
        if len(low) > 1:
            outline = _path([*low, *reversed(high)])
            self.add('<path class="band" d="{d}Z"/>', d=outline)

    def mark(self, x: float, y: float, shape: Look, size: float = 4.5, tip: str = "") -> None:
        """A mark with a text that shows under the pointer."""
        self.add(
            '<path class="{c}" d="{d}">{t}</path>',
            c="mark hollow" if shape.hollow else "mark",
            d=_mark(shape.mark, x, y, size),
            t=Markup("<title>{}</title>").format(tip) if tip else "",
        )

    def render(self, style: str = "") -> Markup:
        """The ``<svg>`` element."""
        body = Markup("").join(self._parts)
        return Markup(
            '<svg class="chart {s}" viewBox="0 0 {w} {h}" role="img" aria-label="{l}">{b}</svg>'
        ).format(s=style, w=self.width, h=self.height, l=self.label, b=body)


def text_width(text: str) -> float:
    """About how wide a text of 11 pixels is."""
    return _CHARACTER * len(text)


def key(shape: Look) -> Markup:
    """The mark of a series, for legends outside of pictures."""
    style = "mark hollow" if shape.hollow else "mark"
    return Markup(
        '<svg class="key s{i}" viewBox="0 0 14 14" aria-hidden="true">'
        '<path class="{c}" d="{d}"/></svg>'
    ).format(i=shape.colour, c=style, d=_mark(shape.mark, 7, 7, 5))


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _mark(shape: str, x: float, y: float, r: float) -> str:
    if shape == "circle":
        return f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0Z"
    corners = {
        "square": ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
        "triangle": ((0, -1.1), (1, 0.8), (-1, 0.8)),
        "down": ((0, 1.1), (1, -0.8), (-1, -0.8)),
        "diamond": ((0, -1.2), (1.2, 0), (0, 1.2), (-1.2, 0)),
        "cross": ((-0.35, -1.1), (0.35, -1.1), (0.35, -0.35), (1.1, -0.35), (1.1, 0.35),
                  (0.35, 0.35), (0.35, 1.1), (-0.35, 1.1), (-0.35, 0.35), (-1.1, 0.35),
                  (-1.1, -0.35), (-0.35, -0.35)),
    }[shape]  # fmt: skip
    return _path([(x + r * dx, y + r * dy) for dx, dy in corners]) + "Z"
