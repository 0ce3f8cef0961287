"""Training curves: what ``history.json`` of a training says about every epoch.

A history maps epochs to ``{"train": {...}, "valid": {...}}`` of numbers.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from espnet_adaltm.scoring.metrics import FloatArray
from espnet_adaltm.scoring.plots import COLOURS, new_figure, save, styles

History = Mapping[str, Mapping[str, Any]]

RATES = {
    "macro_f1": "macro-F1",
    "uar": "UAR",
    "acc": "accuracy",
    "wer": "WER",
    "cer": "CER",
    "spk_acc": "speaker acc.",
}
_MOST_RATIO = 20
_PARTS = (("train", "--"), ("valid", "-"))


def training_curves(path: Path, title: str, trainings: Mapping[str, History]) -> Path | None:
    """A row per training: its loss on the left, its rates on the right.

    Args:
        path: PNG to write.
        title: Above the picture.
        trainings: Name to history; those without a loss or rate are left out.

    Returns:
        None if there is nothing to draw.
    """
    shown = {name: history for name, history in trainings.items() if _metrics(history)}
    if not shown:
        return None
    figure, axes = new_figure(
        10.0, 0.6 + 2.5 * len(shown), nrows=len(shown), ncols=2, squeeze=False
    )
    for (loss, rates), (name, history) in zip(axes, shown.items()):
        metrics = _metrics(history)
        _draw(loss, history, ["loss"] if "loss" in metrics else [])
        _draw(rates, history, [metric for metric in metrics if metric != "loss"])
        loss.set(title=f"{name}: loss", ylabel="loss")
        _scale(loss)
        rates.set(title=f"{name}: rates", ylabel="percent")
    for axis in axes[-1]:
        axis.set_xlabel("epoch")
    figure.suptitle(title)
    return save(figure, path)


def _metrics(history: History) -> list[str]:
    """Those of the loss and `RATES` that any epoch has."""
    parts = [part for epoch in history.values() for part in epoch.values()]
    return [name for name in ("loss", *RATES) if any(name in part for part in parts)]


def _draw(axis: Any, history: History, metrics: Sequence[str]) -> None:
    """Lines of some metrics, dashed for train, with a legend beside the axis."""
    if not metrics:
        axis.set_axis_off()
        return
    epochs = sorted(history, key=int)
    for metric, colour in zip(metrics, COLOURS):
        for part, style in _PARTS:
            values = _values(history, part, metric)
            if not np.isnan(values).all():
                name = "" if metric == "loss" else f"{RATES[metric]}, "
                axis.plot(
                    [int(epoch) for epoch in epochs],
                    values,
                    style,
                    color=colour,
                    marker=".",
                    label=f"{name}{part}",
                )
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize="small")
    _epoch_axis(axis)


def _values(history: History, part: str, metric: str) -> FloatArray:
    """One metric by epoch, [E], rates in percent; NaN where it is not known."""
    scale = 1 if metric == "loss" else 100
    epochs = sorted(history, key=int)
    return scale * np.array([history[e].get(part, {}).get(metric, math.nan) for e in epochs])


def _scale(axis: Any) -> None:
    """A logarithmic axis where a linear one would show the first epoch and a flat line."""
    values = np.concatenate([np.zeros(0), *[line.get_ydata() for line in axis.get_lines()]])
    values = values[np.isfinite(values)]
    if values.size and values.min() > 0 and values.max() > _MOST_RATIO * values.min():
        axis.set_yscale("log")


def _epoch_axis(axis: Any) -> None:
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)


def compared_curves(
    path: Path, title: str, systems: Mapping[str, Sequence[History]]
) -> Path | None:
    """Losses and validation macro-F1 of several systems, a line each: the mean over their seeds.

    Seeds may have stopped at different epochs: a line goes as far as all of them.

    Args:
        path: PNG to write.
        title: Above the picture.
        systems: Name to the histories of its seeds.

    Returns:
        None if there is nothing to draw.
    """
    panels = [
        (part, metric)
        for part, metric in (("train", "loss"), ("valid", "loss"), ("valid", "macro_f1"))
        if any(
            not np.isnan(_values(history, part, metric)).all()
            for histories in systems.values()
            for history in histories
        )
    ]
    if not panels:
        return None
    figure, axes = new_figure(1.5 + 3.6 * len(panels), 3.8, ncols=len(panels), squeeze=False)
    names = {"loss": "loss", "macro_f1": "macro-F1 (%)"}
    for (part, metric), axis in zip(panels, axes[0]):
        for (name, histories), (colour, marker, filled) in zip(
            systems.items(), styles(len(systems))
        ):
            values = mean_curve(histories, part, metric)
            axis.plot(
                np.arange(1, len(values) + 1),
                values,
                color=colour,
                marker=marker,
                markersize=4,
                markerfacecolor=colour if filled else "white",
                label=name,
            )
        axis.set(title=f"{part} {names[metric]}", xlabel="epoch")
        _epoch_axis(axis)
    axes[0][-1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.suptitle(title)
    return save(figure, path)


def mean_curve(histories: Sequence[History], part: str, metric: str) -> FloatArray:
    """Mean over seeds by epoch, [E], to the last epoch that all of them have."""
    rows = [_values(history, part, metric) for history in histories]
    if not rows:
        return np.zeros(0)
    return np.stack([row[: min(map(len, rows))] for row in rows]).mean(0)


def mean_history(histories: Sequence[History]) -> dict[str, dict[str, dict[str, float]]]:
    """Mean over seeds of every metric, to the last epoch that all of them have.

    Args:
        histories: At least one; a metric that one of them lacks in an epoch is left out there.
    """
    shared = [epoch for epoch in histories[0] if all(epoch in other for other in histories)]
    return {
        epoch: {
            part: {
                metric: math.fsum(values) / len(values)
                for metric in histories[0][epoch][part]
                if (values := _numbers([h[epoch].get(part, {}).get(metric) for h in histories]))
            }
            for part in histories[0][epoch]
        }
        for epoch in shared
    }


def _numbers(values: Sequence[Any]) -> list[float]:
    """The values if all of them are numbers, else nothing."""
    return list(values) if all(isinstance(value, int | float) for value in values) else []
