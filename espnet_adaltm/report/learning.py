"""What training did, for the page: coefficients by depth and curves by epoch."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from markupsafe import Markup

from espnet_adaltm.report import charts
from espnet_adaltm.report.svg import Look, key, look, padded
from espnet_adaltm.scoring.curves import RATES
from espnet_adaltm.scoring.tables import TITLES

_LEAST_SPAN = 0.1  # of the coefficients, so that noise doesn't look like structure


def coefficients(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """A picture per system that learned any, on one vertical axis, and the legend of tasks."""
    tables = result.get("coefficients", {})
    if not tables:
        return None
    values = [v for t in tables.values() for v in np.ravel(t["final"])]
    ends = padded([float(v) for v in values], 0.06, _LEAST_SPAN)
    tasks = list(dict.fromkeys(task for t in tables.values() for task in t["tasks"]))
    pictures = []
    for system, table in tables.items():
        # A task keeps its colour where a system has only some of them.
        order = [tasks.index(task) for task in table["tasks"]]
        picture = charts.coefficients(
            system, [*zip(order, table["tasks"])], table["groups"], table["final"], ends
        )
        pictures.append((system, len(table["final"]), picture))
    return {"pictures": pictures, "tasks": [(t, key(look(i))) for i, t in enumerate(tasks)]}


def trainings(result: Mapping[str, Any], shapes: Mapping[str, Look]) -> dict[str, Any] | None:
    """Systems with the same loss together, the others in a pair of pictures each."""
    found = result.get("training", {})
    if not found:
        return None
    together = {name: t for name, t in found.items() if t["comparable"]}
    shared = []
    for part, metric in (("train", "loss"), ("valid", "loss"), ("valid", "macro_f1")):
        lines = [
            charts.Curve(name, name, shapes[name], rows)
            for name, training in together.items()
            if (rows := _rows(training, part, metric))
        ]
        if lines:
            kind = "loss" if metric == "loss" else TITLES[metric]
            title = f"{'training' if part == 'train' else 'validation'} {kind}"
            shared.append((title, charts.curves(title, lines, rate=metric != "loss")))
    return {
        "shared": shared,
        "systems": list(together),
        "single": [
            (name, len(t["seeds"]), _single(name, t))
            for name, t in found.items()
            if not t["comparable"]
        ],
    }


def _single(
    name: str, training: Mapping[str, Any]
) -> list[tuple[Markup, list[tuple[str, Markup]], bool]]:
    """Pictures of loss and rates, their legends, and whether dashed lines show training data."""
    pictures = []
    metrics = [m for m in RATES if any(_rows(training, p, m) for p in ("train", "valid"))]
    for chosen in (["loss"], metrics):
        lines, legend = [], []
        for index, metric in enumerate(chosen):
            title = RATES.get(metric, "loss")
            for part in ("train", "valid"):
                rows = _rows(training, part, metric)
                if rows:
                    shape = look(index)
                    curve = charts.Curve(f"{title}, {part}", "", shape, rows, part == "train")
                    lines.append(curve)
            legend.append((title, key(look(index))))
        if lines:
            label = f"{'loss' if chosen == ['loss'] else 'rates'} of {name}"
            picture = charts.curves(label, lines, rate=chosen != ["loss"])
            pictures.append((picture, legend, any(line.dashed for line in lines)))
    return pictures


def _rows(training: Mapping[str, Any], part: str, metric: str) -> list[list[float | None]]:
    """Values by epoch of every seed, rates in percent; empty where a seed has none."""
    rows = [seed[part].get(metric) for seed in training["seeds"]]
    if any(row is None for row in rows):
        return []
    scale = 1 if metric == "loss" else 100
    return [[None if v is None else scale * v for v in row] for row in rows if row is not None]
