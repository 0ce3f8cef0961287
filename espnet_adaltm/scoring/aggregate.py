"""Several systems and seeds side by side: what is compared, and all of it as one JSON object."""

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from espnet_adaltm.data.labels import Labels
from espnet_adaltm.errors import UserError
from espnet_adaltm.scoring.breakdown import by_speaker
from espnet_adaltm.scoring.calibration import CALIBRATION_METRICS, SOFT_METRICS
from espnet_adaltm.scoring.metrics import EMOTION_METRICS, ERROR_METRICS, error_table
from espnet_adaltm.scoring.paired import SetTests, run_tests
from espnet_adaltm.scoring.readers import Reference
from espnet_adaltm.scoring.results import Bootstrap
from espnet_adaltm.scoring.seeds import INTERVALS, Seeds
from espnet_adaltm.scoring.set_scores import ALL, SetScores, System, score_set
from espnet_adaltm.scoring.speakers import SPEAKER_METRICS

METRICS = (
    *EMOTION_METRICS, *CALIBRATION_METRICS, *SOFT_METRICS, *ERROR_METRICS, *SPEAKER_METRICS
)  # fmt: skip
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


def parse_systems(entries: Sequence[str]) -> list[System]:
    """Parse ``name=folder`` and ``name:seed=folder``, keeping the order of the names.

    Raises:
        UserError: Malformed, repeated, or a name both with and without seeds.
    """
    systems: dict[str, System] = {}
    for entry in entries:
        left, equals, folder = entry.partition("=")
        name, colon, number = left.partition(":")
        if not (equals and folder and _NAME.fullmatch(name)) or (colon and not number.isdigit()):
            raise UserError(
                f"--systems: {entry!r} is neither name=folder nor name:seed=folder, e.g. "
                "adaltm:1=exp/merge_adaltm_seed1"
            )
        seed = int(number) if colon else None
        folders = systems.setdefault(name, System(name)).folders
        if seed in folders or (folders and (None in folders or seed is None)):
            raise UserError(f"--systems: {entry!r} gives {left!r} again: use name:seed once each")
        folders[seed] = Path(folder)
    if not systems:
        raise UserError("--systems names no system")
    return list(systems.values())


def parse_comparisons(entries: Sequence[str], systems: Sequence[System]) -> list[tuple[str, str]]:
    """Parse ``first:second`` pairs of system names."""
    known = [system.name for system in systems]
    pairs = []
    for entry in entries:
        first, _, second = entry.partition(":")
        if first not in known or second not in known or first == second:
            raise UserError(
                f"--compare: {entry!r} is not first:second with two of: {', '.join(known)}"
            )
        pairs.append((first, second))
    return pairs


def aggregate(
    systems: Sequence[System],
    references: Sequence[Reference],
    labels: Labels,
    pairs: Sequence[tuple[str, str]],
    options: Bootstrap,
) -> tuple[dict[str, Any], list[SetScores], list[SetTests]]:
    """Score everything.

    Returns:
        The JSON object (no timestamps, no machine facts), and the scores and tests behind it, one
        per test set.
    """
    scores = [score_set(systems, reference, labels, options) for reference in references]
    tests = [run_tests(score, systems, pairs, options) for score in scores]
    names = [score.reference.name for score in scores]
    result = {
        "labels": list(labels.labels),
        "bootstrap": options.options(),
        "sets": {name: _set_json(score) for name, score in zip(names, scores)},
        "systems": {
            system.name: {
                "seeds": list(system.folders),
                "sets": {n: _system_json(s, system, options) for n, s in zip(names, scores)},
            }
            for system in systems
        },
        "channel_ceilings": {n: s.ceilings for n, s in zip(names, scores) if s.ceilings},
        "comparisons": {
            name: [asdict(test) for test in (*found.highlighted, *found.by_channel)]
            for name, found in zip(names, tests)
        },
        "all_pairs": {
            name: [asdict(test) for test in found.every] for name, found in zip(names, tests)
        },
        "reference": tests[0].reference if tests else None,
        "stars": {name: found.stars for name, found in zip(names, tests)},
        "best": {name: found.best for name, found in zip(names, tests)},
        "confusions": {
            n: {system: counts.tolist() for system, counts in s.confusions.items()}
            for n, s in zip(names, scores)
        },
        "reliability": {
            n: {system: bins.rows() for system, bins in s.reliabilities.items()}
            for n, s in zip(names, scores)
        },
        "speakers": {n: by_speaker(s) for n, s in zip(names, scores)},
    }
    return result, scores, tests


def _set_json(scores: SetScores) -> dict[str, Any]:
    reference = scores.reference
    return {
        "utterances": len(reference.utterances),
        "with_emotion": len(reference.emotions),
        "with_text": len(reference.texts),
        "with_soft": len(reference.soft),
        "speakers": len(set(reference.speakers.values())),
        "views": scores.views,
    }


def _system_json(scores: SetScores, system: System, options: Bootstrap) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for view in scores.views:
        metrics = {
            metric: seeds_json(values[system.name], options)
            for metric in METRICS
            if system.name in (values := scores.get(metric, view))
        }
        if view == ALL:
            for metric, entry in metrics.items():
                entry["intervals"] = _intervals(scores, system.name, metric, options)
        if metrics:
            result[view] = metrics
    for unit, systems in scores.errors.items():
        if system.name in systems:
            counts = systems[system.name]
            result[unit] = {str(seed): error_table(value) for seed, value in counts.items()}
    return result


def seeds_json(seeds: Seeds, options: Bootstrap) -> dict[str, Any]:
    """Each seed's value, mean, standard deviation over seeds, interval of the pooled mean."""
    low, high = seeds.interval(options.level, options.interval)
    return {
        "seeds": seeds.points.tolist(),
        "mean": seeds.mean,
        "std": seeds.std,
        "low": low,
        "high": high,
    }


def _intervals(
    scores: SetScores, system: str, metric: str, options: Bootstrap
) -> dict[str, dict[str, list[float]]]:
    """Resampling unit to kind of interval to its ends."""
    by_unit = {options.unit: scores.get(metric)[system]}
    by_unit |= {unit: scores.get(metric, unit=unit)[system] for unit in scores.other_units}
    return {
        unit: {method: list(seeds.interval(options.level, method)) for method in INTERVALS}
        for unit, seeds in by_unit.items()
    }
