"""Scores by speaker, and the utterances that systems are most sure and most wrong about."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from espnet_adaltm.scoring.metrics import FloatArray
from espnet_adaltm.scoring.set_scores import SetScores


def by_speaker(scores: SetScores) -> dict[str, dict[str, Any]]:
    """Accuracy and word error rate of every system by speaker, means over seeds.

    Returns:
        Speaker to ``utterances`` and ``systems``: system to ``wa`` and ``wer``, as far as the
        speaker has emotions, or words, to be recognised. Sorted by speaker; empty where none is
        known.
    """
    reference = scores.reference
    found: dict[str, dict[str, Any]] = {}
    for speaker in reference.speakers.values():
        found.setdefault(speaker, {"utterances": 0, "systems": {}})["utterances"] += 1
    systems = list(dict.fromkeys(name for name, _ in scores.outputs))
    for name in systems:
        runs = list(scores.runs(name).values())
        right = [o.prediction == scores.truth for o in runs if o.prediction is not None]
        if right:
            rows = np.mean(right, axis=0), np.ones(len(scores.truth))
            _add(found, reference.speakers, list(reference.emotions), *rows, name, "wa")
        words = [o.words for o in runs if o.words is not None]
        if words:
            rows = np.mean([w.errors for w in words], axis=0), words[0].lengths.astype(float)
            _add(found, reference.speakers, list(reference.texts), *rows, name, "wer")
    return dict(sorted(found.items()))


def _add(
    found: Mapping[str, dict[str, Any]],
    speakers: Mapping[str, str],
    utterances: list[str],
    part: FloatArray,
    whole: FloatArray,
    system: str,
    metric: str,
) -> None:
    """Set ratios of sums over each speaker's utterances, both [N]."""
    sums: dict[str, FloatArray] = {}
    for utterance, row in zip(utterances, np.stack([part, whole], axis=1)):
        if utterance in speakers:
            sums[speakers[utterance]] = sums.get(speakers[utterance], 0) + row
    for speaker, (numerator, denominator) in sums.items():
        if denominator > 0:
            values = found[speaker]["systems"].setdefault(system, {})
            values[metric] = float(numerator / denominator)


@dataclass(frozen=True)
class Confused:
    """An utterance that a system is wrong about.

    Attributes:
        utterance: Its name.
        truth: Class index.
        said: Class index that the system's mean probabilities favour.
        probabilities: Mean over the system's seeds, [C].
        votes: System to the class index that its mean probabilities favour.
    """

    utterance: str
    truth: int
    said: int
    probabilities: FloatArray
    votes: dict[str, int]


def most_confused(scores: SetScores, system: str, count: int) -> list[Confused]:
    """Utterances with the largest gap between what a system believes and the truth.

    Args:
        scores: Of a test set.
        system: Whose mistakes to list.
        count: How many at most.

    Returns:
        In falling order of the probability of the wrong class minus that of the right one; equal
        gaps in the order of the test set. Empty if the system recognises no emotions.
    """
    means = {
        name: np.mean([o.probabilities for o in runs], axis=0)
        for name in dict.fromkeys(name for name, _ in scores.outputs)
        if (runs := [o for o in scores.runs(name).values() if o.probabilities is not None])
    }
    if system not in means:
        return []
    own, truth = means[system], scores.truth
    gaps = own.max(1) - own[np.arange(len(truth)), truth]
    utterances = list(scores.reference.emotions)
    return [
        Confused(
            utterances[index],
            int(truth[index]),
            int(own[index].argmax()),
            own[index],
            {name: int(values[index].argmax()) for name, values in means.items()},
        )
        for index in np.argsort(-gaps, kind="stable")[:count]
        if gaps[index] > 0
    ]
