"""Emotions of recordings over time."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from espnet_adaltm.errors import UserError
from espnet_adaltm.scoring.plots import COLOURS, new_figure, save

if TYPE_CHECKING:
    from espnet_adaltm.recognizer import Prediction

MOST = 20


def timeline_plot(path: Path, rows: "Sequence[tuple[str, Prediction]]") -> Path:
    """Stacked probabilities over time, a panel for each recording.

    Args:
        path: PNG to write.
        rows: Names and what was recognised, at most `MOST`.

    Raises:
        UserError: Too many recordings for one picture.
    """
    if len(rows) > MOST:
        raise UserError(
            f"a timeline of {len(rows)} recordings would be too long: give at most {MOST}"
        )
    figure, axes = new_figure(9.0, 0.8 + 1.9 * len(rows), nrows=len(rows), squeeze=False)
    labels = list(rows[0][1].probabilities)
    for axis, (name, said) in zip(axes[:, 0], rows):
        edges = [moment.start for moment in said.timeline] + [said.seconds]
        values = np.array([list(moment.probabilities.values()) for moment in said.timeline])
        tops = 100 * values.cumsum(1)
        bottom = np.zeros(len(tops))
        for label, top, (colour, hatch) in zip(labels, tops.T, _looks(len(labels))):
            axis.stairs(
                top,
                edges,
                baseline=bottom,
                fill=True,
                facecolor=colour,
                edgecolor="white",
                hatch=hatch,
                linewidth=0,
                label=label,
            )
            bottom = top
        axis.set(xlim=(0, said.seconds), ylim=(0, 100), ylabel="%")
        axis.set_title(name if len(name) <= 90 else f"…{name[-89:]}", fontsize=9, loc="left")
    axes[-1, 0].set_xlabel("seconds")
    # In the order of the stack, from the top.
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles[::-1], names[::-1], loc="outside right upper")
    return save(figure, path)


def _looks(count: int) -> list[tuple[str, str | None]]:
    """Colours, and a hatch where they come again."""
    hatches = (None, "//", "..")
    return [
        (COLOURS[index % len(COLOURS)], hatches[index // len(COLOURS) % len(hatches)])
        for index in range(count)
    ]
