"""The scores of one trained system on its test sets, as one JSON object.

Nothing in it depends on when or where it was computed: the same decoded files give the same bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from espnet_adaltm.data.corpora.mini_espeak import CHANNELS, channel_ceilings
from espnet_adaltm.data.datadir import UNKNOWN_SPEAKER
from espnet_adaltm.data.labels import Labels
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import Pathlike
from espnet_adaltm.scoring import metrics
from espnet_adaltm.scoring.calibration import (
    calibration_statistic,
    distance_statistic,
    reliability,
)
from espnet_adaltm.scoring.readers import Hypothesis, Reference, read_hypothesis
from espnet_adaltm.scoring.seeds import Seeds
from espnet_adaltm.scoring.speakers import SpeakerAnswers, read_held_out, score_answers
from espnet_adaltm.scoring.statistics import (
    Statistic,
    bootstrap,
    emotion_statistic,
    error_statistic,
    jackknife,
)

RESAMPLED_UNITS = ("utterance", "speaker")


@dataclass(frozen=True)
class Bootstrap:
    """How uncertainty is estimated.

    Attributes:
        resamples: Number of resamples.
        level: Of the intervals.
        seed: Of the resampling.
        unit: What is drawn, ``"utterance"`` or ``"speaker"`` (with all its utterances).
        interval: ``"percentile"`` or ``"bca"``.
    """

    resamples: int = 10_000
    level: float = 0.95
    seed: int = 0
    unit: str = "utterance"
    interval: str = "percentile"

    def clusters(self, reference: Reference, utterances: Sequence[str]) -> list[str] | None:
        """Cluster of every utterance, or None when utterances are drawn.

        Utterances of unknown speakers stand for themselves.

        Raises:
            UserError: Speakers are to be drawn and one is unknown.
        """
        if self.unit == "utterance":
            return None
        if self.unit not in RESAMPLED_UNITS:
            raise UserError(f"resampling unit {self.unit!r} is none of {RESAMPLED_UNITS}")
        lost = [utt for utt in utterances if utt not in reference.speakers]
        if lost:
            raise UserError(
                f"set {reference.name!r}: utterance {lost[0]!r} has no speaker in utt2spk, which "
                "resampling by speaker needs"
            )
        speakers = ((utt, reference.speakers[utt]) for utt in utterances)
        return [f" {u}" if s.casefold() == UNKNOWN_SPEAKER else s for u, s in speakers]

    def options(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "resamples": self.resamples,
            "level": self.level,
            "seed": self.seed,
            "unit": self.unit,
            "interval": self.interval,
        }


def score_system(
    system: Pathlike,
    references: Sequence[Reference],
    labels: Labels,
    *,
    name: str,
    seed: int | None = None,
    options: Bootstrap | None = None,
) -> dict[str, Any]:
    """Score everything that ``system`` decoded.

    Args:
        system: Folder with ``decode/<set>/``.
        references: Test sets.
        labels: The ordered label list.
        name: Of the method, shared by its seeds.
        seed: Of the training, where there are several.
        options: Of the intervals.

    Raises:
        UserError: See `read_hypothesis`.
    """
    options = options or Bootstrap()
    result = {
        "system": name,
        "seed": seed,
        "labels": list(labels.labels),
        "bootstrap": options.options(),
        "sets": {
            reference.name: _score_set(
                reference, read_hypothesis(system, reference, labels), labels, options
            )
            for reference in references
        },
    }
    held_out = read_held_out(Path(system))
    if held_out is not None:
        result["held_out_speakers"] = _score_speakers(held_out, options)
    return result


def _score_speakers(answers: SpeakerAnswers, options: Bootstrap) -> dict[str, Any]:
    return score_answers(
        answers, resamples=options.resamples, level=options.level, seed=options.seed
    )


def _score_set(
    reference: Reference, hypothesis: Hypothesis, labels: Labels, options: Bootstrap
) -> dict[str, Any]:
    result: dict[str, Any] = {"utterances": len(reference.utterances)}
    if hypothesis.prediction is not None:
        result["emotion"] = _score_emotion(reference, hypothesis, labels, options)
    if hypothesis.distances is not None:
        result["soft"] = {
            "utterances": len(reference.soft),
            "metrics": with_intervals(
                distance_statistic(hypothesis.distances), reference, list(reference.soft), options
            ),
        }
    if hypothesis.words is not None:
        result["asr"] = _score_text(reference, hypothesis, options)
    if hypothesis.speakers is not None:
        result["speaker"] = _score_speakers(hypothesis.speakers, options)
    return result


def _score_emotion(
    reference: Reference, hypothesis: Hypothesis, labels: Labels, options: Bootstrap
) -> dict[str, Any]:
    truth = np.array(list(reference.emotions.values()))
    prediction = hypothesis.prediction
    confusion = metrics.confusion_matrix(truth, prediction, len(labels))
    bins = reliability(hypothesis.probabilities, truth)
    statistic = emotion_statistic(truth, prediction, len(labels))
    utterances = list(reference.emotions)
    result = {
        "utterances": len(truth),
        "metrics": with_intervals(statistic, reference, utterances, options)
        | with_intervals(
            calibration_statistic(hypothesis.probabilities, truth), reference, utterances, options
        ),
        "calibration_error": bins.error,
        "reliability": bins.rows(),
        "per_class": metrics.per_class(confusion, labels.labels),
        "absent_classes": metrics.absent_classes(confusion, labels.labels),
        "confusion": confusion.tolist(),
    }
    if reference.channels:
        result["channel_ceilings"] = ceilings(reference)
        result["channels"] = {
            channel: {
                "utterances": int(mask.sum()),
                "metrics": with_intervals(
                    statistic.subset(mask),
                    reference,
                    [utt for utt, kept in zip(utterances, mask) if kept],
                    options,
                ),
            }
            for channel, mask in channel_masks(reference, utterances).items()
        }
    return result


def _score_text(reference: Reference, hypothesis: Hypothesis, options: Bootstrap) -> dict[str, Any]:
    statistic = error_statistic(hypothesis.words, hypothesis.characters)
    return {
        "metrics": with_intervals(statistic, reference, list(reference.texts), options),
        "word": metrics.error_table(hypothesis.words),
        "char": metrics.error_table(hypothesis.characters),
    }


def channel_masks(
    reference: Reference, utterances: Sequence[str]
) -> dict[str, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    """Which of ``utterances`` belong to each channel, [N], channels sorted."""
    channel = np.array([reference.channels.get(utt, "") for utt in utterances])
    return {name: channel == name for name in sorted(set(channel) - {""})}


def ceilings(reference: Reference) -> dict[str, float]:
    """The accuracy that perfect recognition of the voice, or of the words, alone could reach.

    Returns:
        ``{"voice": a, "words": b}``, see `mini_espeak.channel_ceilings`; empty where the corpus
        doesn't tell channels, or tells other ones.
    """
    channels = {utt: reference.channels.get(utt, "") for utt in reference.emotions}
    if not channels or not set(channels.values()) <= set(CHANNELS):
        return {}
    return channel_ceilings({utt: str(c) for utt, c in reference.emotions.items()}, channels)


def with_intervals(
    statistic: Statistic, reference: Reference, utterances: Sequence[str], options: Bootstrap
) -> dict[str, dict[str, Any]]:
    """Every metric with its intervals.

    Returns:
        Name to ``value``, ``low`` and ``high`` of the interval asked for, and ``bca``, ends of the
        BCa interval.
    """
    clusters = options.clusters(reference, utterances)
    named = {"": statistic}
    values = bootstrap(
        named, resamples=options.resamples, seed=options.seed, clusters=clusters
    )[""]  # fmt: skip
    rest = jackknife(named, clusters)
    result = {}
    for name, point in statistic.point().items():
        seeds = Seeds(
            np.array([point]), values[name][None], (), rest.values[""][name][None],
            rest.multiplicity,
        )  # fmt: skip
        low, high = seeds.interval(options.level, options.interval)
        bca = list(seeds.interval(options.level, "bca"))
        result[name] = {"value": point, "low": low, "high": high, "bca": bca}
    return result
