"""Ablations of the published systems: a memory and its variants, the adapters."""

from collections.abc import Mapping
from typing import Any

from espnet_adaltm.report import charts
from espnet_adaltm.report.svg import Look
from espnet_adaltm.scoring.paired import stars
from espnet_adaltm.scoring.set_scores import ALL
from espnet_adaltm.scoring.tables import TITLES, p_text

_METRIC = "macro_f1"


def families(
    result: Mapping[str, Any], name: str, shapes: Mapping[str, Look]
) -> list[dict[str, Any]]:
    """The ablations on one test set, for the template; empty where there are none.

    Args:
        result: ``results.json``; its ``ablations`` are those of `memory_table.ablation_sections`.
        name: Of the test set.
        shapes: Mark and colour of every system.
    """
    found = result.get("ablations", {}).get(name, [])
    return [_family(family, shapes) for family in found]


def _family(family: Mapping[str, Any], shapes: Mapping[str, Look]) -> dict[str, Any]:
    rows, references = family["rows"], family["references"]
    labels = {row["system"]: row["label"] for row in rows}
    bars = [
        _bar(row, minus, shapes)
        for row in rows
        if (minus := _minus(family["tests"], row["system"], references[0])) is not None
    ]
    return {
        "title": family["title"],
        "columns": [TITLES[_METRIC], *(f"minus {labels[name]}" for name in references)],
        "rows": [
            (
                row["label"],
                row["system"],
                _value(row[_METRIC]),
                [_minus(family["tests"], row["system"], name) for name in references],
            )
            for row in rows
        ],
        "means": [(row["label"], row["means"]) for row in rows if row["means"]],
        "picture": charts.intervals(
            f"{family['title']}: differences of {TITLES[_METRIC]}",
            bars,
            f"{TITLES[_METRIC]} minus {labels[references[0]]}, in points, right is better",
        ),
        "turns": _turns(family["turns"], labels),
    }


def _bar(
    row: Mapping[str, Any], minus: Mapping[str, Any], shapes: Mapping[str, Look]
) -> charts.Row:
    low, high = minus["ends"]
    tip = f"{minus['value']:+.1f}, p {minus['p']} after Holm"
    name = f"{row['label']} {minus['stars']}".rstrip()
    return charts.Row(
        name, shapes[row["system"]], [minus["value"]], [tip], (low, high), row["system"]
    )


def _value(entry: Mapping[str, Any]) -> dict[str, float]:
    return {key: 100 * entry[key] for key in ("mean", "low", "high")}


def _minus(tests: list[Mapping[str, Any]], first: str, second: str) -> dict[str, Any] | None:
    """Difference of two systems in points; tests stand there once, in either direction."""
    for test in tests:
        if test["metric"] != _METRIC or test["view"] != ALL:
            continue
        pair = test["first"], test["second"]
        if pair in ((first, second), (second, first)):
            sign = 1 if pair == (first, second) else -1
            ends = sorted(100 * sign * test[end] for end in ("low", "high"))
            p = p_text(test["p_holm"])
            return {
                "value": 100 * sign * test["difference"],
                "ends": ends,
                "p": p,
                "stars": stars(test["p_holm"]),
            }
    return None


def _turns(
    turns: Mapping[str, Mapping[str, Any]], labels: Mapping[str, str]
) -> dict[str, Any] | None:
    """Macro-F1 by turn of the dialogue: a memory helps where there is something to remember."""
    if not turns:
        return None
    rows = [
        (label, [_value(found[system]) for found in turns.values()])
        for system, label in labels.items()
    ]
    return {"columns": list(turns), "rows": rows}
