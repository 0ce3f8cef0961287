"""What is known about a trained system, from the files that its stages left: one JSON object.

The model card is written from it, and ``about.json`` keeps it beside an export.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from espnet_adaltm.data.labels import load_labels
from espnet_adaltm.files import read_json
from espnet_adaltm.scoring.environment import environment

ABOUT = "about.json"
DESCRIPTIONS = ("merge.json", "expert.json", "baseline.json")
_METRICS = {
    "emotion": ("macro_f1", "uar", "wa"),
    "asr": ("wer", "cer"),
    "speaker": ("spk_acc",),
}
# Entries of a description that say how it was made.
_MADE = ("options", "protocol", "grid", "head", "feats_type", "seed", "selected", "notes")


def collect(
    system: Path, *, base: Path | None = None, labels: Path | None = None, **given: Any
) -> dict[str, Any]:
    """Gather what a model card tells.

    Args:
        system: Folder of a merge, an expert or a baseline.
        base: Folder of its base encoder; the one it names unless given.
        labels: ``labels.json``, for how many utterances of each emotion there are.
        given: Further entries that are not empty: ``recipe``, ``note``, ``licence``,
            ``language``, ``data``, ``command``.

    Returns:
        Only entries that are known. ``scores`` is set to metric to ``value``, ``low`` and ``high``.

    Raises:
        UserError: A file is damaged.
    """
    found = next(path for name in DESCRIPTIONS if (path := system / name).exists())
    info = read_json(found)
    facts: dict[str, Any] = {
        "name": system.name,
        "kind": info.get("kind", "merge"),
        "method": info.get("name") or info.get("kind", ""),
        "labels": info.get("labels", []),
    }
    facts |= {key: info[key] for key in _MADE if info.get(key) not in (None, {}, [])}
    facts |= {key: value for key, value in given.items() if value}
    if base is None and info.get("base"):
        base = system / info["base"]
    if base is not None and (base / "base.json").exists():
        described = read_json(base / "base.json")
        facts["base"] = {key: described.get(key, "") for key in ("kind", "source", "sha256")}
    if (system / "coefficients.json").exists():
        table = read_json(system / "coefficients.json")
        if table.get("tasks"):
            facts["coefficients"] = {key: table[key] for key in ("tasks", "groups", "final")}
    if labels is not None:
        listed = load_labels(labels)
        facts["counts"] = {name: dict(counts) for name, counts in listed.counts.items()}
        if listed.policy:
            facts["label_policy"] = listed.policy
    if (system / "results.json").exists():
        facts |= _scores(read_json(system / "results.json"))
    if (system / "resume.txt").exists():
        facts["trained_with"] = (system / "resume.txt").read_text(encoding="utf-8").strip()
    return {**facts, "environment": environment()}


def _scores(results: Mapping[str, Any]) -> dict[str, Any]:
    scores: dict[str, Any] = {}
    for name, parts in results.get("sets", {}).items():
        metrics: dict[str, Any] = {}
        for part, wanted in _METRICS.items():
            there = parts.get(part, {}).get("metrics", {})
            metrics |= {metric: _interval(there[metric]) for metric in wanted if metric in there}
        emotion = parts.get("emotion", {})
        entry = {"utterances": parts.get("utterances"), "metrics": metrics}
        if "calibration_error" in emotion:
            entry["calibration_error"] = emotion["calibration_error"]
        if "per_class" in emotion:
            entry["recall"] = {c: row["recall"] for c, row in emotion["per_class"].items()}
        scores[name] = entry
    facts: dict[str, Any] = {"scores": scores} if scores else {}
    if "bootstrap" in results:
        facts["bootstrap"] = results["bootstrap"]
    return facts


def _interval(value: Mapping[str, float]) -> dict[str, float]:
    return {key: value[key] for key in ("value", "low", "high")}


def coefficient_rows(table: Mapping[str, Any]) -> list[Sequence[str]]:
    """Coefficients as text: a header, then a row per group."""
    rows: list[Sequence[str]] = [("group", *table["tasks"])]
    for index, group in enumerate(table["groups"]):
        rows.append((group, *(f"{values[index]:.3f}" for values in table["final"])))
    return rows
