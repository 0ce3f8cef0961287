"""What the stages left beside a system that a report shows: coefficients and training histories."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from espnet_adaltm.errors import UserError
from espnet_adaltm.files import read_json
from espnet_adaltm.scoring.curves import RATES
from espnet_adaltm.scoring.set_scores import System

HISTORY = "history.json"
MERGE = "merge.json"
PRETRAINING = "pre-training"
# Systems that these describe have a loss of another kind than the merges.
OTHER_LOSS = ("expert.json", "baseline.json")
_MOVED = 1e-6


def files(system: System, name: str) -> list[Path]:
    """Files of one name beside the seeds of a system, as far as they exist."""
    paths = [folder / name for folder in system.folders.values()]
    return [path for path in paths if path.exists()]


def learned_coefficients(system: System) -> list[dict[str, Any]]:
    """``coefficients.json`` of every seed that learned any; fixed ones are no result.

    Raises:
        UserError: The seeds have different tasks or groups.
    """
    tables = [
        table
        for path in files(system, "coefficients.json")
        if _learned(path.parent, table := read_json(path))
    ]
    if any((t["tasks"], t["groups"]) != (tables[0]["tasks"], tables[0]["groups"]) for t in tables):
        raise UserError(
            f"the seeds of {system.name} have different tasks or groups: train them again"
        )
    return tables


def _learned(folder: Path, table: Mapping[str, Any]) -> bool:
    """What the row says; without it, whether coefficients moved or differ from group to group."""
    path = folder / MERGE
    options = read_json(path).get("options", {}) if path.exists() else {}
    if "trainable" in options:
        return options["trainable"] and bool(table["tasks"])
    epochs, final = (np.array(table.get(key, []), dtype=float) for key in ("epochs", "final"))
    moved = epochs.size > 0 and float(np.ptp(epochs, axis=0).max()) > _MOVED
    return moved or (final.size > 0 and float(np.ptp(final, axis=-1).max()) > _MOVED)


def coefficients_json(systems: Sequence[System]) -> dict[str, Any]:
    """System to ``tasks`` [K], ``groups`` [G] and ``final`` coefficients [S, K, G] of its seeds."""
    found = {system.name: learned_coefficients(system) for system in systems}
    return {
        name: {
            "tasks": tables[0]["tasks"],
            "groups": tables[0]["groups"],
            "final": [table["final"] for table in tables],
        }
        for name, tables in found.items()
        if tables
    }


def trainings_json(systems: Sequence[System], base: Path | None = None) -> dict[str, Any]:
    """Training curves of every system and of the base encoder.

    Args:
        systems: In the order to show them.
        base: Folder of the base encoder, or None.

    Returns:
        Name to ``comparable`` (its loss is the merges') and ``seeds``, each ``train`` and ``valid``
        to metric to values by epoch, None where one is unknown.
    """
    found: dict[str, Any] = {}
    if base is not None and (path := base / "pretrain" / HISTORY).exists():
        found[PRETRAINING] = {"comparable": False, "seeds": [_curves(read_json(path))]}
    for system in systems:
        histories = [_curves(read_json(path)) for path in files(system, HISTORY)]
        if histories:
            other = any(files(system, name) for name in OTHER_LOSS)
            comparable = not other and None not in system.folders
            found[system.name] = {"comparable": comparable, "seeds": histories}
    return found


def _curves(history: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, list[float | None]]]:
    epochs = sorted(history, key=int)
    return {
        part: {
            metric: values
            for metric in ("loss", *RATES)
            for values in [_column(history, epochs, part, metric)]
            if any(value is not None for value in values)
        }
        for part in ("train", "valid")
    }


def _column(
    history: Mapping[str, Mapping[str, Any]], epochs: Sequence[str], part: str, metric: str
) -> list[float | None]:
    values = [history[epoch].get(part, {}).get(metric) for epoch in epochs]
    return [v if isinstance(v, int | float) and np.isfinite(v) else None for v in values]
