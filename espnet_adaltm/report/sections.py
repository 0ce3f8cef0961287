"""Systems and tests, for the page, worked out from ``results.json``."""

from collections.abc import Mapping, Sequence
from typing import Any

from espnet_adaltm.data import leaky_split
from espnet_adaltm.report import ablations, charts, parts
from espnet_adaltm.report.svg import Look, look
from espnet_adaltm.scoring.exports import units_of
from espnet_adaltm.scoring.paired import COMPARED, LOWER_IS_BETTER, SIGNIFICANT, stars
from espnet_adaltm.scoring.seeds import INTERVALS
from espnet_adaltm.scoring.set_scores import ALL
from espnet_adaltm.scoring.tables import TITLES, interval_name, p_text

Result = Mapping[str, Any]
Looks = Mapping[str, Look]
_COLUMNS = ("macro_f1", "uar", "wa", "wer", "cer", "ece", "jsd", "spk_acc")


def looks(result: Result) -> dict[str, Look]:
    """Colour and mark of every system, the same in all pictures."""
    return {name: look(index) for index, name in enumerate(result["systems"])}


def set_names(result: Result) -> list[str]:
    """Test sets, in order."""
    return list(dict.fromkeys(n for s in result["systems"].values() for n in s["sets"]))


def system_facts(result: Result) -> list[tuple[str, str]]:
    """Name and seeds of every system."""

    def seeds(numbers: Sequence[int | None]) -> str:
        known = [str(number) for number in numbers if number is not None]
        return f"seed{'s' * (len(known) > 1)} {', '.join(known)}" if known else "one run"

    return [(name, seeds(system["seeds"])) for name, system in result["systems"].items()]


def set_context(result: Result, name: str, shapes: Looks) -> dict[str, Any]:
    """Everything about one test set, for the template."""
    scores = {
        system: entry["sets"][name]
        for system, entry in result["systems"].items()
        if name in entry["sets"]
    }
    whole = {system: views.get(ALL, {}) for system, views in scores.items()}
    leaky = name == leaky_split.NAME
    return {
        "name": name,
        "mark": f" ({leaky_split.NAME} split)" if leaky else "",
        "warning": leaky_split.WARNING if leaky else "",
        "facts": result.get("sets", {}).get(name, {}),
        "headlines": headlines(result, name, whole),
        "table": system_table(result, name, whole),
        "tests": paired(result, name, shapes),
        "ablations": ablations.families(result, name, shapes),
        "trade_off": trade_off(whole, shapes),
        "channels": parts.channels(scores),
        "confusions": parts.confusions(result, name),
        "classes": parts.classes(result, name),
        "speakers": parts.speakers(result, name, shapes),
        "reliability": parts.reliability(result, name, whole),
        "ceilings": result.get("channel_ceilings", {}).get(name),
    }


# ------------------------------------------------------------------------- the table of systems
def headlines(result: Result, name: str, whole: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Best system of the main metrics: title, value and name, and what the tests say of it."""
    found = []
    for metric in ("macro_f1", "wer"):
        values = {system: row[metric]["mean"] for system, row in whole.items() if metric in row}
        if not values:
            continue
        choose = min if metric in LOWER_IS_BETTER else max
        best = choose(values, key=values.__getitem__)
        others = _not_separated(result, name, metric, best)
        remark = f"not told from {others}" if others else "told from every other system"
        if len(values) < 2:
            remark = "the only system"
        title = ("Lowest" if metric in LOWER_IS_BETTER else "Highest") + f" {TITLES[metric]}"
        found.append((title, f"{100 * values[best]:.1f} % {best}", remark))
    return found


def _not_separated(result: Result, name: str, metric: str, best: str) -> str:
    """As for bold print: all of these tests have to reject, so there is no correction."""
    tests = result.get("all_pairs", {}).get(name, [])
    return ", ".join(
        test["second"] if test["first"] == best else test["first"]
        for test in tests
        if test["metric"] == metric
        and best in (test["first"], test["second"])
        and test["p"] >= SIGNIFICANT
    )


def interval_kinds(result: Result) -> list[tuple[str, str]]:
    """Key and title of every kind of interval that the table can show."""
    found = [
        (f"{unit}-{method}", f"{interval_name(method)}, by {unit}")
        for unit in units_of(result)
        for method in INTERVALS
    ]
    return found or [("given", "as given")]


def system_table(result: Result, name: str, whole: Mapping[str, Any]) -> dict[str, Any]:
    """Columns, kinds of intervals, and rows of cells (None: not measured)."""
    metrics = [metric for metric in _COLUMNS if any(metric in row for row in whole.values())]
    rows = []
    for system, row in whole.items():
        cells = [_cell(result, name, system, m, row[m]) if m in row else None for m in metrics]
        rows.append(
            {"system": system, "seeds": len(result["systems"][system]["seeds"]), "cells": cells}
        )
    options = result["bootstrap"]
    kinds = interval_kinds(result)
    chosen = f"{options['unit']}-{options.get('interval', 'percentile')}"
    return {
        "columns": [TITLES[metric] for metric in metrics],
        "kinds": kinds,
        "kind": chosen if chosen in dict(kinds) else kinds[0][0],
        "rows": rows,
    }


def _cell(
    result: Result, name: str, system: str, metric: str, entry: Mapping[str, Any]
) -> dict[str, Any]:
    spans = {
        f"{unit}-{method}": ends
        for unit, methods in entry.get("intervals", {}).items()
        for method, ends in methods.items()
    } or {"given": [entry["low"], entry["high"]]}
    return {
        "value": 100 * entry["mean"],
        "std": None if entry["std"] is None else 100 * entry["std"],
        "spans": {kind: [100 * end for end in ends] for kind, ends in spans.items()},
        "best": result.get("best", {}).get(name, {}).get(metric) == system,
        "stars": result.get("stars", {}).get(name, {}).get(metric, {}).get(system, ""),
    }


# -------------------------------------------------------------------------------- paired tests
def paired(result: Result, name: str, shapes: Looks) -> dict[str, Any] | None:
    """Highlighted tests as pictures and rows, McNemar's, and those of all pairs as matrices."""
    tests = [t for t in result.get("comparisons", {}).get(name, []) if t["view"] == ALL]
    every = result.get("all_pairs", {}).get(name, [])
    if not every:
        return None
    pictures = []
    for metric in COMPARED:
        rows = [
            charts.Row(
                f"{t['first']} \N{MINUS SIGN} {t['second']} {stars(t['p_holm'])}".rstrip(),
                shapes[t["second"]],
                [100 * t["difference"]],
                [f"{100 * t['difference']:+.1f}, p {p_text(t['p_holm'])} after Holm"],
                (100 * t["low"], 100 * t["high"]),
                t["second"],
            )
            for t in tests
            if t["metric"] == metric
        ]
        if rows:
            better = "left" if metric in LOWER_IS_BETTER else "right"
            title = f"{TITLES[metric]}: difference in points, {better} is better"
            pictures.append(
                charts.intervals(f"paired differences of {TITLES[metric]}", rows, title)
            )
    return {
        "pictures": pictures,
        "rows": [_test_row(test) for test in tests],
        "mcnemar": [(test, found) for test in tests for found in test.get("mcnemar") or ()],
        "matrices": [
            matrix for m in ("macro_f1", "wer") if (matrix := _matrix(every, m)) is not None
        ],
    }


def _test_row(test: Mapping[str, Any]) -> dict[str, Any]:
    speaker = (test.get("by_unit") or {}).get("speaker")
    return {
        "pair": f"{test['first']} \N{MINUS SIGN} {test['second']}",
        "metric": TITLES[test["metric"]],
        "difference": 100 * test["difference"],
        "ends": (100 * test["low"], 100 * test["high"]),
        "p": [p_text(test[kind]) for kind in ("p", "p_holm", "p_seeds")]
        + [p_text(speaker["p"]) if speaker else "-"],
        "stars": stars(test["p_holm"]),
    }


def _matrix(tests: Sequence[Mapping[str, Any]], metric: str) -> dict[str, Any] | None:
    """Row minus column, in points, with stars; the better the row, the warmer its cell."""
    chosen = [test for test in tests if test["metric"] == metric]
    if not chosen:
        return None
    names = list(dict.fromkeys(n for t in chosen for n in (t["first"], t["second"])))
    cells: dict[tuple[str, str], dict[str, Any]] = {}
    for test in chosen:
        for pair, sign in (((0, 1), 1), ((1, 0), -1)):
            both = test["first"], test["second"]
            difference = sign * 100 * test["difference"]
            better = (difference < 0) == (metric in LOWER_IS_BETTER)
            strength = 3 if better and test["p_holm"] < SIGNIFICANT else 0
            cells[both[pair[0]], both[pair[1]]] = {
                "text": f"{difference:+.1f}",
                "stars": stars(test["p_holm"]),
                "step": strength,
            }
    rows = [(row, [cells.get((row, column)) for column in names]) for row in names]
    return {"title": TITLES[metric], "names": names, "rows": rows}


# ------------------------------------------------------------------------------ words and mood
def trade_off(whole: Mapping[str, Any], shapes: Looks) -> dict[str, Any] | None:
    """Pictures for wide and narrow screens, and the names on the front."""

    def ends(entry: Mapping[str, Any]) -> tuple[float, float]:
        return 100 * entry["low"], 100 * entry["high"]

    points = [
        charts.Point(
            system, shapes[system], 100 * row["wer"]["mean"], 100 * row["macro_f1"]["mean"],
            ends(row["wer"]), ends(row["macro_f1"]),
        )
        for system, row in whole.items()
        if "wer" in row and "macro_f1" in row
    ]  # fmt: skip
    if len(points) < 2:
        return None
    limits: dict[str, tuple[str, float]] = {}
    words = {s: row["wer"]["mean"] for s, row in whole.items() if "macro_f1" not in row and row}
    moods = {s: row["macro_f1"]["mean"] for s, row in whole.items() if "wer" not in row and row}
    if words:
        best = min(words, key=words.__getitem__)
        limits["wer"] = best, 100 * words[best]
    if moods:
        best = max(moods, key=moods.__getitem__)
        limits["score"] = best, 100 * moods[best]
    return {
        "wide": charts.trade_off(points, limits, (900, 440), "wide"),
        "narrow": charts.trade_off(points, limits, (350, 360), "narrow"),
        "front": [point.name for point in charts.pareto(points)],
    }
