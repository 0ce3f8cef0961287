"""Which pictures a set of systems can have, drawn from the files that their stages left."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from espnet_adaltm.files import read_json, write_json
from espnet_adaltm.scoring import curves, mtl_plots, plots, vector_plots
from espnet_adaltm.scoring.adapter_plot import AdapterTraining, adapter_training
from espnet_adaltm.scoring.artefacts import (
    HISTORY,
    OTHER_LOSS,
    PRETRAINING,
    files,
    learned_coefficients,
)
from espnet_adaltm.scoring.connectivity_plot import connectivity_plot
from espnet_adaltm.scoring.seeds import Seeds
from espnet_adaltm.scoring.set_scores import SetScores, System

CONFLICT = "gradient_conflict.json"


def draw_all(
    folder: Path,
    systems: Sequence[System],
    scores: Sequence[SetScores],
    labels: Sequence[str],
    task_vectors: Sequence[Path] = (),
    base: Path | None = None,
    connectivity: Path | None = None,
) -> dict[str, Path]:
    """Draw everything there are data for.

    Args:
        folder: Where the PNG files go.
        systems: In the order of the tables.
        scores: One per test set.
        labels: The ordered label list.
        task_vectors: Folders with ``similarity.json``, one per seed of the experts.
        base: Folder of the base encoder, for the history of its pre-training, or None.
        connectivity: ``connectivity.json``, or None.

    Returns:
        Caption to file, in the order to show them. The numbers behind a picture that are not in
        ``results.json`` lie beside it as JSON.
    """
    found: dict[str, Path | None] = {}
    for score in scores:
        found |= _trade_off(folder, systems, score)
    for system in systems:
        found |= _coefficients(folder, system)
    for system in systems:
        found |= _conflicts(folder, system, systems) | _sweep(folder, system)
    found |= _adapters(folder, systems) | _task_vectors(folder, task_vectors)
    if connectivity is not None:
        found |= _connectivity(folder, connectivity)
    for score in scores:
        for name, counts in score.confusions.items():
            title = f"{name} on {score.reference.name}{_seeds(systems, name)}"
            path = folder / f"confusion_{name}_{score.reference.name}.png"
            found[f"confusion of {title}"] = plots.confusion(path, title, labels, counts)
    for score in scores:
        found |= _reliability(folder, score)
    found |= _curves(folder, systems, base)
    return {caption: path for caption, path in found.items() if path is not None}


def _seeds(systems: Sequence[System], name: str) -> str:
    count = next(len(system.folders) for system in systems if system.name == name)
    return f", {count} seeds together" if count > 1 else ""


def _trade_off(folder: Path, systems: Sequence[System], scores: SetScores) -> dict[str, Path]:
    rates, values = scores.get("wer"), scores.get("macro_f1")
    points = [
        plots.Point(system.name, _triple(rates[system.name]), _triple(values[system.name]))
        for system in systems
        if system.name in rates and system.name in values
    ]
    if len(points) < 2:
        return {}
    title = f"Emotion against words on {scores.reference.name}"
    path = folder / f"trade_off_{scores.reference.name}.png"
    return {title: plots.trade_off(path, title, points)}


def _reliability(folder: Path, scores: SetScores) -> dict[str, Path]:
    if not scores.reliabilities:
        return {}
    title = f"Calibration on {scores.reference.name}, all seeds together"
    path = folder / f"reliability_{scores.reference.name}.png"
    errors = scores.get("ece")
    systems = {name: (bins, errors[name].mean) for name, bins in scores.reliabilities.items()}
    return {f"c{title[1:]}": plots.reliability(path, title, systems)}


def _triple(seeds: Seeds) -> tuple[float, float, float]:
    return (seeds.mean, *seeds.interval())


def _coefficients(folder: Path, system: System) -> dict[str, Path]:
    tables = learned_coefficients(system)
    if not tables:
        return {}
    first = tables[0]
    axes = (system.name, first["tasks"], first["groups"])
    final = np.array([table["final"] for table in tables])
    path = folder / f"coefficients_{system.name}.png"
    found = {f"coefficients of {system.name}": plots.final_coefficients(path, *axes, final)}
    if len(first["epochs"]) > 1:
        path = folder / f"coefficients_{system.name}_epochs.png"
        several = ", first seed" if len(tables) > 1 else ""
        found[f"coefficients of {system.name} while training"] = plots.coefficient_history(
            path, f"{system.name}{several}", *axes[1:], np.array(first["epochs"])
        )
    return found


def _conflicts(folder: Path, system: System, systems: Sequence[System]) -> dict[str, Path]:
    """Gradients of a joint training, beside the coefficients of the merge that avoids it."""
    reports = [read_json(path) for path in files(system, CONFLICT)]
    if not reports:
        return {}
    merge = None
    for other in systems:
        tables = [read_json(path) for path in files(other, "coefficients.json")]
        if other.name == "adaltm" and tables:
            final = np.mean([table["final"] for table in tables], axis=0).tolist()
            merge = {"name": other.name, **tables[0], "final": final}
    title = f"{system.name}: do the tasks' gradients agree?"
    write_json(folder / f"conflict_{system.name}.json", {"seeds": reports})
    path = folder / f"conflict_{system.name}.png"
    return {title: mtl_plots.conflict_plot(path, title, reports, merge)}


def _sweep(folder: Path, system: System) -> dict[str, Path]:
    """The sweep over the weights of a joint training, which lies beside one of its seeds."""
    beside = [path.with_name(f"{path.name}_sweep") for path in system.folders.values()]
    found = [path / "sweep.json" for path in beside if (path / "sweep.json").exists()]
    if not found:
        return {}
    report = read_json(found[0])
    write_json(folder / f"sweep_{system.name}.json", report)
    picture = mtl_plots.sweep_plot(folder / f"sweep_{system.name}.png", report)
    return {f"{system.name}: weights of its tasks, on the validation set": picture}


def _adapters(folder: Path, systems: Sequence[System]) -> dict[str, Path | None]:
    """Trainings of adapters without labels, which lie beside the systems that start from them."""
    found = {}
    for system in systems:
        beside = [path.with_name(f"{path.name}_adapter") for path in system.folders.values()]
        done = [path for path in beside if (path / "adapter.json").exists()]
        if done:
            histories = [read_json(path / HISTORY) for path in done]
            attributes = read_json(done[0] / "adapter.json")
            used = attributes["attributes"] if attributes["attribute_weight"] else 0
            found[system.name] = AdapterTraining(histories, used)
    title = "Adapters trained without labels: do their targets collapse?"
    return {title: adapter_training(folder / "adapter_training.png", title, found)}


def _task_vectors(folder: Path, sources: Sequence[Path]) -> dict[str, Path | None]:
    paths = [source / "similarity.json" for source in sources]
    for path in paths:
        if not path.exists():
            logging.info("%s does not exist: no picture of the task vectors", path)
            return {}
    if not paths:
        return {}
    report = vector_plots.mean_similarity([read_json(path) for path in paths])
    write_json(folder / "task_vectors.json", report)
    mean = f", mean of {len(paths)} seeds" if len(paths) > 1 else ""
    block, module = (f"Task vectors by {unit}{mean}" for unit in ("block", "module"))
    return {
        f"t{block[1:]}": vector_plots.by_block(folder / "task_vectors.png", report, block),
        f"t{module[1:]}": vector_plots.by_module(
            folder / "task_vectors_modules.png", report, module
        ),
    }


def _connectivity(folder: Path, path: Path) -> dict[str, Path]:
    report = read_json(path)
    write_json(folder / "connectivity.json", report)
    picture = connectivity_plot(folder / "connectivity.png", report)
    return {f"loss on straight lines between encoders, on {report['set']}": picture}


def _curves(folder: Path, systems: Sequence[System], base: Path | None) -> dict[str, Path | None]:
    """One picture of base, experts and baselines, one of the merges, whose losses compare."""
    once: dict[str, curves.History] = {}
    by_seed: dict[str, list[curves.History]] = {}
    if base is not None and (path := base / "pretrain" / HISTORY).exists():
        once[PRETRAINING] = read_json(path)
    for system in systems:
        histories = [read_json(path) for path in files(system, HISTORY)]
        if histories and None in system.folders:
            once[system.name] = histories[0]
        elif histories and any(files(system, name) for name in OTHER_LOSS):
            name = f"{system.name}, mean of {len(histories)} seeds"
            once[name if len(histories) > 1 else system.name] = curves.mean_history(histories)
        elif histories:
            by_seed[system.name] = histories
    several = any(len(histories) > 1 for histories in by_seed.values())
    mean = ", mean over seeds" if several else ""
    baselines = any(files(system, "baseline.json") for system in systems)
    one = f"training of base{', experts and baselines' if baselines else ' and experts'}"
    other = f"training of the compared systems{mean}"
    return {
        one: curves.training_curves(folder / "training.png", one.capitalize(), once),
        other: curves.compared_curves(
            folder / "training_compared.png", other.capitalize(), by_seed
        ),
    }
