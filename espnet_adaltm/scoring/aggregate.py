"""Several systems and seeds side by side: means, spreads, and paired tests between all of them.

All systems are resampled together, once per test set and view, so every pair of them is compared
on the same resamples. A view is the whole set (``all``) or one of its channels.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from espnet_adaltm.data.labels import Labels
from espnet_adaltm.errors import UserError
from espnet_adaltm.scoring.metrics import (
    EMOTION_METRICS,
    ERROR_METRICS,
    ErrorCounts,
    IntArray,
    confusion_matrix,
    error_table,
)
from espnet_adaltm.scoring.readers import Hypothesis, Reference, read_hypothesis
from espnet_adaltm.scoring.results import Bootstrap, ceilings, channel_masks
from espnet_adaltm.scoring.speakers import SPEAKER_METRICS, speaker_statistic
from espnet_adaltm.scoring.statistics import (
    Comparison,
    Seeds,
    Statistic,
    bootstrap,
    compare,
    emotion_statistic,
    error_statistic,
    holm,
    interval,
)

ALL = "all"
COMPARED = ("macro_f1", "uar", "wa", "wer")
SHOWN = (*COMPARED, "cer")
LOWER_IS_BETTER = frozenset(ERROR_METRICS)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")

Run = tuple[str, int | None]


@dataclass(frozen=True)
class System:
    """One method and the folders of its seeds (key None: a single run without a number)."""

    name: str
    folders: dict[int | None, Path] = field(default_factory=dict)


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


@dataclass(frozen=True)
class SetScores:
    """Everything about one test set.

    Attributes:
        reference: The test set.
        views: View name to number of utterances with an emotion.
        seeds: (view, metric, system) to the values of that system's seeds.
        confusions: System to its counts summed over seeds, [C, C].
        errors: ``word`` or ``char`` to system to seed to edit counts.
        ceilings: What one channel alone could reach, see `results.ceilings`.
    """

    reference: Reference
    views: dict[str, int]
    seeds: dict[tuple[str, str, str], Seeds]
    confusions: dict[str, IntArray]
    errors: dict[str, dict[str, dict[int | None, ErrorCounts]]]
    ceilings: dict[str, float]

    def get(self, metric: str, view: str = ALL) -> dict[str, Seeds]:
        """System name to its values of one metric."""
        return {
            system: seeds
            for (seen, name, system), seeds in self.seeds.items()
            if seen == view and name == metric
        }


def score_set(
    systems: Sequence[System], reference: Reference, labels: Labels, options: Bootstrap
) -> SetScores:
    """Score every system and seed on one test set, on shared resamples.

    Raises:
        UserError: See `readers.read_hypothesis`.
    """
    outputs: dict[Run, Hypothesis] = {
        (system.name, seed): read_hypothesis(folder, reference, labels)
        for system in systems
        for seed, folder in system.folders.items()
    }
    truth = np.array(list(reference.emotions.values()), dtype=np.int64)
    emotions = {
        run: emotion_statistic(truth, output.prediction, len(labels))
        for run, output in outputs.items()
        if output.prediction is not None
    }
    transcripts = {
        run: error_statistic(output.words, output.characters)
        for run, output in outputs.items()
        if output.words is not None
    }
    seeds = _by_view(emotions, reference, list(reference.emotions), options)
    seeds |= _by_view(transcripts, reference, list(reference.texts), options)
    seeds |= _speakers(outputs, reference, options)
    masks = channel_masks(reference, list(reference.emotions))
    views = {ALL: len(truth)} | {name: int(mask.sum()) for name, mask in masks.items()}
    confusions = _confusions(outputs, truth, len(labels))
    errors = _errors(outputs)
    return SetScores(reference, views, seeds, confusions, errors, ceilings(reference))


def _speakers(
    outputs: Mapping[Run, Hypothesis], reference: Reference, options: Bootstrap
) -> dict[tuple[str, str, str], Seeds]:
    """Speaker accuracy; systems that know the same speakers share their resamples."""
    groups: dict[tuple[str, ...], dict[Run, Statistic]] = {}
    for run, output in outputs.items():
        if output.speakers is not None and output.speakers.right:
            statistic = speaker_statistic(output.speakers.rows)
            groups.setdefault(tuple(output.speakers.right), {})[run] = statistic
    found: dict[tuple[str, str, str], Seeds] = {}
    for utterances, statistics in groups.items():
        found |= _by_view(statistics, reference, list(utterances), options)
    return found


def _by_view(
    statistics: Mapping[Run, Statistic],
    reference: Reference,
    utterances: list[str],
    options: Bootstrap,
) -> dict[tuple[str, str, str], Seeds]:
    if not statistics:
        return {}
    masks = {ALL: np.ones(len(utterances), dtype=bool)} | channel_masks(reference, utterances)
    found: dict[tuple[str, str, str], Seeds] = {}
    for view, mask in masks.items():
        chosen = {run: statistic.subset(mask) for run, statistic in statistics.items()}
        kept = [utt for utt, inside in zip(utterances, mask) if inside]
        values = bootstrap(
            chosen,
            resamples=options.resamples,
            seed=options.seed,
            clusters=options.clusters(reference, kept),
        )
        points = {run: statistic.point() for run, statistic in chosen.items()}
        for system, runs in itertools.groupby(chosen, key=lambda run: run[0]):
            members = list(runs)
            for metric in points[members[0]]:
                found[view, metric, system] = Seeds(
                    np.array([points[run][metric] for run in members]),
                    np.stack([values[run][metric] for run in members]),
                    tuple(seed for _, seed in members),
                )
    return found


def _confusions(
    outputs: Mapping[Run, Hypothesis], truth: IntArray, num_classes: int
) -> dict[str, IntArray]:
    sums: dict[str, IntArray] = {}
    for (system, _), output in outputs.items():
        if output.prediction is not None:
            counts = confusion_matrix(truth, output.prediction, num_classes)
            sums[system] = sums.get(system, 0) + counts
    return sums


def _errors(
    outputs: Mapping[Run, Hypothesis],
) -> dict[str, dict[str, dict[int | None, ErrorCounts]]]:
    found: dict[str, dict[str, dict[int | None, ErrorCounts]]] = {}
    for (system, seed), output in outputs.items():
        for unit, counts in (("word", output.words), ("char", output.characters)):
            if counts is not None:
                found.setdefault(unit, {}).setdefault(system, {})[seed] = counts
    return found


def best_separated(values: Mapping[str, Seeds], metric: str) -> str | None:
    """The best system if the paired test tells it apart from every other one, else None.

    All of the tests have to reject, so no correction for their number is needed.
    """
    if len(values) < 2:
        return None
    sign = -1 if metric in LOWER_IS_BETTER else 1
    best = max(values, key=lambda name: sign * values[name].mean)
    others = [seeds for name, seeds in values.items() if name != best]
    return best if all(compare(values[best], other).separated for other in others) else None


@dataclass(frozen=True)
class PairedTest:
    """One paired test, ready for JSON; ``p_holm`` corrects over the tests listed with it."""

    first: str
    second: str
    view: str
    metric: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    p_seeds: float


def paired_tests(
    scores: SetScores,
    pairs: Sequence[tuple[str, str]],
    views: Sequence[str],
    metrics: Sequence[str] = COMPARED,
    options: Bootstrap | None = None,
) -> list[PairedTest]:
    """Tests of every pair, view and metric that both systems have; Holm within each metric."""
    options = options or Bootstrap()
    found: list[PairedTest] = []
    for metric in metrics:
        rows: list[tuple[str, str, str, Comparison]] = []
        for view in views:
            values = scores.get(metric, view)
            rows += [
                (
                    first,
                    second,
                    view,
                    compare(values[first], values[second], level=options.level, seed=options.seed),
                )
                for first, second in pairs
                if first in values and second in values
            ]
        adjusted = holm([row[3].p for row in rows])
        found += [
            PairedTest(
                first, second, view, metric, c.difference, c.low, c.high, c.p, p_holm, c.p_seeds
            )
            for (first, second, view, c), p_holm in zip(rows, adjusted)
        ]
    return found


def all_pairs(systems: Sequence[System]) -> list[tuple[str, str]]:
    """Every unordered pair of names, in order."""
    return list(itertools.combinations([system.name for system in systems], 2))


def aggregate(
    systems: Sequence[System],
    references: Sequence[Reference],
    labels: Labels,
    pairs: Sequence[tuple[str, str]],
    options: Bootstrap,
) -> tuple[dict[str, Any], list[SetScores]]:
    """Score everything.

    Returns:
        The JSON object (no timestamps, no machine facts), and the scores behind it.
    """
    scores = [score_set(systems, reference, labels, options) for reference in references]
    result = {
        "labels": list(labels.labels),
        "bootstrap": options.options(),
        "systems": {
            system.name: {
                "seeds": list(system.folders),
                "sets": {s.reference.name: _system_json(s, system, options) for s in scores},
            }
            for system in systems
        },
        "channel_ceilings": {s.reference.name: s.ceilings for s in scores if s.ceilings},
        "comparisons": {
            s.reference.name: [
                asdict(test) for test in paired_tests(s, pairs, list(s.views), options=options)
            ]
            for s in scores
        },
        "all_pairs": {
            s.reference.name: [
                asdict(test) for test in paired_tests(s, all_pairs(systems), [ALL], options=options)
            ]
            for s in scores
        },
    }
    return result, scores


def _system_json(scores: SetScores, system: System, options: Bootstrap) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for view in scores.views:
        metrics = {
            metric: seeds_json(values[system.name], options.level)
            for metric in (*EMOTION_METRICS, *ERROR_METRICS, *SPEAKER_METRICS)
            if system.name in (values := scores.get(metric, view))
        }
        if metrics:
            result[view] = metrics
    for unit, systems in scores.errors.items():
        if system.name in systems:
            counts = systems[system.name]
            result[unit] = {str(seed): error_table(value) for seed, value in counts.items()}
    return result


def seeds_json(seeds: Seeds, level: float) -> dict[str, Any]:
    """Each seed's value, mean, standard deviation over seeds, interval of the pooled mean."""
    low, high = interval(seeds.pooled(), level)
    return {
        "seeds": seeds.points.tolist(),
        "mean": seeds.mean,
        "std": seeds.std,
        "low": low,
        "high": high,
    }
