"""Every system and seed on one test set, resampled together.

All systems are resampled in one call per test set and view, so every pair of them is compared on
the same resamples. A view is the whole set (``all``) or one of its channels.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from espnet_adaltm.data.labels import Labels
from espnet_adaltm.scoring.calibration import (
    Reliability,
    calibration_statistic,
    distance_statistic,
    reliability,
)
from espnet_adaltm.scoring.metrics import ErrorCounts, IntArray, confusion_matrix
from espnet_adaltm.scoring.readers import Hypothesis, Reference, read_hypothesis
from espnet_adaltm.scoring.results import RESAMPLED_UNITS, Bootstrap, ceilings, channel_masks
from espnet_adaltm.scoring.seeds import Seeds
from espnet_adaltm.scoring.speakers import speaker_statistic
from espnet_adaltm.scoring.statistics import (
    Statistic,
    bootstrap,
    emotion_statistic,
    error_statistic,
    jackknife,
)

ALL = "all"
Run = tuple[str, int | None]
Scored = dict[tuple[str, str, str], Seeds]


@dataclass(frozen=True)
class System:
    """One method and the folders of its seeds (key None: a single run without a number)."""

    name: str
    folders: dict[int | None, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class SetScores:
    """Everything about one test set.

    Attributes:
        reference: The test set.
        views: View name to number of utterances with an emotion.
        seeds: (view, metric, system) to the values of that system's seeds.
        other_units: Resampling unit that was not asked for to the same, of the view ``all``;
            empty where it can't be resampled.
        outputs: What every run says.
        confusions: System to its counts summed over seeds, [C, C].
        reliabilities: System to its calibration, all seeds together.
        errors: ``word`` or ``char`` to system to seed to edit counts.
        ceilings: What one channel alone could reach, see `results.ceilings`.
    """

    reference: Reference
    views: dict[str, int]
    seeds: Scored
    other_units: dict[str, Scored]
    outputs: dict[Run, Hypothesis]
    confusions: dict[str, IntArray]
    reliabilities: dict[str, Reliability]
    errors: dict[str, dict[str, dict[int | None, ErrorCounts]]]
    ceilings: dict[str, float]

    @property
    def truth(self) -> IntArray:
        """Class index of every utterance with an emotion, [N]."""
        return np.array(list(self.reference.emotions.values()), dtype=np.int64)

    def get(self, metric: str, view: str = ALL, unit: str | None = None) -> dict[str, Seeds]:
        """System name to its values of one metric, resampled by ``unit`` (None: as asked for)."""
        scored = self.seeds if unit is None else self.other_units.get(unit, {})
        return {
            system: seeds
            for (seen, name, system), seeds in scored.items()
            if seen == view and name == metric
        }

    def runs(self, system: str) -> dict[int | None, Hypothesis]:
        """Seed to what it says."""
        return {seed: output for (name, seed), output in self.outputs.items() if name == system}


# Even if all of five agree, a sign test has p = 2 / 2**5 = 0.06; a bootstrap would not see that.
FEWEST_SPEAKERS = 6


@dataclass(frozen=True)
class _Group:
    """Statistics of runs over the same utterances, to be resampled together."""

    statistics: Mapping[Run, Statistic]
    utterances: list[str]
    by_channel: bool = True


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
    groups = list(_groups(outputs, reference, truth, len(labels)))
    masks = channel_masks(reference, list(reference.emotions))
    return SetScores(
        reference,
        {ALL: len(truth)} | {name: int(mask.sum()) for name, mask in masks.items()},
        _scored(groups, reference, options),
        {
            unit: _scored(
                [replace(g, by_channel=False) for g in groups],
                reference,
                replace(options, unit=unit),
            )
            for unit in RESAMPLED_UNITS
            if unit != options.unit and _can_draw(unit, reference)
        },
        outputs,
        _confusions(outputs, truth, len(labels)),
        _reliabilities(outputs, truth),
        _errors(outputs),
        ceilings(reference),
    )


def _can_draw(unit: str, reference: Reference) -> bool:
    """Drawing speakers says nothing where one is not known, or where there are few."""
    if unit == "utterance":
        return True
    known = all(utt in reference.speakers for utt in reference.utterances)
    return known and len(set(reference.speakers.values())) >= FEWEST_SPEAKERS


def _groups(
    outputs: Mapping[Run, Hypothesis], reference: Reference, truth: IntArray, num_classes: int
) -> Iterator[_Group]:
    labelled = list(reference.emotions)
    felt = {run: o for run, o in outputs.items() if o.prediction is not None}
    yield _Group(
        {run: emotion_statistic(truth, o.prediction, num_classes) for run, o in felt.items()},
        labelled,
    )
    yield _Group(
        {run: calibration_statistic(o.probabilities, truth) for run, o in felt.items()},
        labelled,
        by_channel=False,
    )
    yield _Group(
        {
            run: error_statistic(output.words, output.characters)
            for run, output in outputs.items()
            if output.words is not None
        },
        list(reference.texts),
    )
    yield _Group(
        {
            run: distance_statistic(output.distances)
            for run, output in outputs.items()
            if output.distances is not None
        },
        list(reference.soft),
    )
    # Systems that know the same speakers share their resamples.
    known: dict[tuple[str, ...], dict[Run, Statistic]] = {}
    for run, output in outputs.items():
        if output.speakers is not None and output.speakers.right:
            statistic = speaker_statistic(output.speakers.rows)
            known.setdefault(tuple(output.speakers.right), {})[run] = statistic
    for utterances, statistics in known.items():
        yield _Group(statistics, list(utterances))


def _scored(groups: Sequence[_Group], reference: Reference, options: Bootstrap) -> Scored:
    found: Scored = {}
    for group in groups:
        found |= _by_view(group, reference, options) if group.statistics else {}
    return found


def _by_view(group: _Group, reference: Reference, options: Bootstrap) -> Scored:
    masks: dict[str, Any] = {ALL: np.ones(len(group.utterances), dtype=bool)}
    if group.by_channel:
        masks |= channel_masks(reference, group.utterances)
    found: Scored = {}
    for view, mask in masks.items():
        chosen = {run: statistic.subset(mask) for run, statistic in group.statistics.items()}
        kept = [utt for utt, inside in zip(group.utterances, mask) if inside]
        clusters = options.clusters(reference, kept)
        values = bootstrap(
            chosen, resamples=options.resamples, seed=options.seed, clusters=clusters
        )
        rest = jackknife(chosen, clusters)
        points = {run: statistic.point() for run, statistic in chosen.items()}
        for system, runs in itertools.groupby(chosen, key=lambda run: run[0]):
            members = list(runs)
            for metric in points[members[0]]:
                found[view, metric, system] = Seeds(
                    np.array([points[run][metric] for run in members]),
                    np.stack([values[run][metric] for run in members]),
                    tuple(seed for _, seed in members),
                    np.stack([rest.values[run][metric] for run in members]),
                    rest.multiplicity,
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


def _reliabilities(outputs: Mapping[Run, Hypothesis], truth: IntArray) -> dict[str, Reliability]:
    sums: dict[str, Reliability] = {}
    for (system, _), output in outputs.items():
        if output.probabilities is not None:
            bins = reliability(output.probabilities, truth)
            sums[system] = sums[system] + bins if system in sums else bins
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
