"""Colours of the page, light and dark, chosen so that everything can be read (WCAG 2.2, AA).

Text reaches a contrast of 4.5 with what is behind it, lines and marks one of 3.
"""

from dataclasses import dataclass

HEAT_STEPS = 11


@dataclass(frozen=True)
class Palette:
    """One colour scheme, as ``#rrggbb``.

    Attributes:
        page: Behind everything.
        card: Behind text, tables and charts.
        text: Of text.
        muted: Of captions and ticks.
        line: Of borders and grids, decoration only.
        accent: Of links, buttons, and full heat.
        good: Of positive remarks.
        bad: Of warnings.
        series: Of lines and marks, by system or task.
    """

    page: str
    card: str
    text: str
    muted: str
    line: str
    accent: str
    good: str
    bad: str
    series: tuple[str, ...]


LIGHT = Palette(
    page="#f4f5f7",
    card="#ffffff",
    text="#1b2026",
    muted="#55606c",
    line="#d8dde3",
    accent="#0b5cad",
    good="#0a6b47",
    bad="#b3261e",
    series=(
        "#0b62a4", "#c2410c", "#04785a", "#a03592", "#8a6100", "#0e7490", "#6d28d9", "#4b5563",
    ),
)  # fmt: skip
DARK = Palette(
    page="#0f1318",
    card="#171d24",
    text="#e7ebf0",
    muted="#a3aebb",
    line="#333d49",
    accent="#6cb6ff",
    good="#5fd3a2",
    bad="#ff9089",
    series=(
        "#5aa9e6", "#ff8a50", "#3ecf9a", "#e58ad3", "#e0b040", "#4fd0e0", "#b197fc", "#b6c0cc",
    ),
)  # fmt: skip


def _channels(colour: str) -> list[float]:
    return [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]


def luminance(colour: str) -> float:
    """Relative luminance of ``#rrggbb`` (WCAG 2.2)."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in _channels(colour)
    ]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear))


def contrast(first: str, second: str) -> float:
    """Contrast ratio of two colours, 1 to 21 (WCAG 2.2)."""
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def mix(first: str, second: str, share: float) -> str:
    """``share`` of the second colour in the first."""
    pairs = zip(_channels(first), _channels(second))
    return "#" + "".join(f"{round(255 * (a + share * (b - a))):02x}" for a, b in pairs)


def heat(palette: Palette, step: int) -> tuple[str, str]:
    """Background and text of a cell, from step 0 (nothing) to `HEAT_STEPS` - 1 (all)."""
    background = mix(palette.card, palette.accent, step / (HEAT_STEPS - 1))
    text = max(("#000000", "#ffffff"), key=lambda colour: contrast(colour, background))
    return background, text


def heat_step(share: float) -> int:
    """Step of a share between 0 and 1."""
    return round(min(max(share, 0.0), 1.0) * (HEAT_STEPS - 1))


def _variables(palette: Palette) -> str:
    plain = ("page", "card", "text", "muted", "line", "accent", "good", "bad")
    lines = [f"--{name}:{getattr(palette, name)}" for name in plain]
    lines += [f"--s{index}:{colour}" for index, colour in enumerate(palette.series)]
    for step in range(HEAT_STEPS):
        background, text = heat(palette, step)
        lines += [f"--h{step}:{background}", f"--t{step}:{text}"]
    return ";".join(lines)


def stylesheet() -> str:
    """Custom properties of both schemes, and the classes that use them."""
    series = "".join(f".s{index}{{--c:var(--s{index})}}" for index in range(len(LIGHT.series)))
    steps = "".join(
        f".h{step}{{background:var(--h{step});color:var(--t{step})}}" for step in range(HEAT_STEPS)
    )
    dark = f"@media (prefers-color-scheme:dark){{:root{{{_variables(DARK)}}}}}"
    return f":root{{color-scheme:light dark;{_variables(LIGHT)}}}{dark}{series}{steps}"
