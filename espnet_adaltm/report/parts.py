"""Scores taken apart, for the page: by channel, emotion, speaker and confidence."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from espnet_adaltm.report import charts
from espnet_adaltm.report.svg import Look
from espnet_adaltm.report.theme import heat_step
from espnet_adaltm.scoring.metrics import class_scores
from espnet_adaltm.scoring.set_scores import ALL

_MOST_SPEAKERS = 40
_HOTTEST = 0.7  # of the scale, for the highest value of a table
_WHOLE = (ALL, "word", "char")


def _heat_cell(value: float | None, low: float, high: float) -> dict[str, Any]:
    if value is None:
        return {"text": "-", "value": "", "step": 0}
    share = (value - low) / ((high - low) or 1.0)
    return {"text": f"{value:.1f}", "value": value, "step": heat_step(_HOTTEST * share)}


def _heat_table(
    corner: str, columns: Sequence[str], rows: Mapping[str, Sequence[float | None]]
) -> dict[str, Any]:
    known = [value for row in rows.values() for value in row if value is not None]
    low, high = min(known, default=0.0), max(known, default=1.0)
    return {
        "corner": corner,
        "columns": columns,
        "rows": [
            (name, [_heat_cell(value, low, high) for value in values])
            for name, values in rows.items()
        ],
    }


def channels(scores: Mapping[str, Any]) -> dict[str, Any] | None:
    """Macro-F1 of every system by channel."""
    views = list(dict.fromkeys(v for s in scores.values() for v in s if v not in _WHOLE))
    rows = {
        system: [
            100 * found[view]["macro_f1"]["mean"] if "macro_f1" in found.get(view, {}) else None
            for view in views
        ]
        for system, found in scores.items()
        if any("macro_f1" in found.get(view, {}) for view in views)
    }
    return _heat_table("system", views, rows) if rows else None


def confusions(result: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """A matrix per system: shares of each true emotion, with counts for the pointer."""
    labels = result["labels"]
    found = []
    for system, counts in result.get("confusions", {}).get(name, {}).items():
        rows = []
        for label, row in zip(labels, counts):
            total = max(1, sum(row))
            cells = [
                {
                    "text": f"{100 * count / total:.0f}",
                    "step": heat_step(count / total),
                    "tip": f"{label} taken for {other}: {count} of {sum(row)}",
                }
                for other, count in zip(labels, row)
            ]
            rows.append((label, cells))
        found.append(
            {"system": system, "labels": labels, "rows": rows, "seeds": _count(result, system)}
        )
    return found


def _count(result: Mapping[str, Any], system: str) -> int:
    return len(result["systems"][system]["seeds"])


def classes(result: Mapping[str, Any], name: str) -> list[tuple[str, dict[str, Any]]]:
    """F1, recall and precision by emotion, one table each."""
    confusion = result.get("confusions", {}).get(name, {})
    if not confusion:
        return []
    scores = {s: class_scores(np.array(counts)) for s, counts in confusion.items()}
    return [
        (
            title,
            _heat_table(
                "system",
                result["labels"],
                {
                    system: [100 * float(v) for v in found[index]]
                    for system, found in scores.items()
                },
            ),
        )
        for title, index in (("F1", 2), ("Recall", 1), ("Precision", 0))
    ]


def speakers(
    result: Mapping[str, Any], name: str, shapes: Mapping[str, Look]
) -> dict[str, Any] | None:
    """Strips of all speakers, and a table of those with the most utterances."""
    found = result.get("speakers", {}).get(name, {})
    if len(found) < 2:
        return None
    systems = [s for s in result["systems"] if any(s in f["systems"] for f in found.values())]
    pictures = []
    for metric, title in (("wa", "WA (%) of each speaker"), ("wer", "WER (%) of each speaker")):
        rows = []
        for system in systems:
            values = {
                speaker: 100 * facts["systems"][system][metric]
                for speaker, facts in found.items()
                if metric in facts["systems"].get(system, {})
            }
            if values:
                tips = [f"{speaker}: {value:.1f}" for speaker, value in values.items()]
                row = charts.Row(system, shapes[system], list(values.values()), tips, None, system)
                rows.append(row)
        if rows:
            pictures.append(charts.strips(f"{title}, by system", rows, title))
    shown = sorted(found, key=lambda speaker: -found[speaker]["utterances"])[:_MOST_SPEAKERS]
    felt = [s for s in systems if any("wa" in f["systems"].get(s, {}) for f in found.values())]
    rows = {
        f"{speaker} ({found[speaker]['utterances']})": [
            100 * values["wa"] if "wa" in (values := found[speaker]["systems"].get(s, {})) else None
            for s in felt
        ]
        for speaker in sorted(shown)
    }
    return {
        "pictures": pictures,
        "table": _heat_table("speaker (utterances)", felt, rows) if felt else None,
        "count": len(found),
        "shown": len(shown),
    }


def reliability(
    result: Mapping[str, Any], name: str, whole: Mapping[str, Any]
) -> list[tuple[str, str, Markup]]:
    """System, its calibration error as text, and a picture."""
    found = []
    for system, rows in result.get("reliability", {}).get(name, {}).items():
        entry = whole.get(system, {}).get("ece")
        error = f"ECE {100 * entry['mean']:.1f}" if entry else ""
        found.append((system, error, charts.reliability(system, rows)))
    return found
