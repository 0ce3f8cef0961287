"""How far probabilities can be believed: calibration, and distance to what annotators say."""

from dataclasses import dataclass

import numpy as np

from espnet_adaltm.scoring.metrics import FloatArray, IntArray
from espnet_adaltm.scoring.statistics import Statistic

BINS = 15
CALIBRATION_METRICS = ("ece", "brier")
SOFT_METRICS = ("jsd",)


@dataclass(frozen=True)
class Reliability:
    """Confidence of the top class against how often it is right, by equally wide bins.

    Attributes:
        counts: Utterances of each bin, [B].
        confidence: Sum of their confidence, [B].
        right: Number of them that are right, [B].
    """

    counts: IntArray
    confidence: FloatArray
    right: FloatArray

    def __add__(self, other: "Reliability") -> "Reliability":
        return Reliability(
            self.counts + other.counts,
            self.confidence + other.confidence,
            self.right + other.right,
        )

    @property
    def error(self) -> float:
        """Expected calibration error."""
        gaps = np.abs(self.right - self.confidence).sum()
        return float(gaps / max(1, self.counts.sum()))

    def rows(self) -> list[dict[str, float]]:
        """Bins that hold anything: edges, count, mean confidence, share that is right."""
        edges = np.linspace(0, 1, len(self.counts) + 1)
        return [
            {
                "low": float(edges[index]),
                "high": float(edges[index + 1]),
                "count": int(count),
                "confidence": float(self.confidence[index] / count),
                "accuracy": float(self.right[index] / count),
            }
            for index, count in enumerate(self.counts)
            if count
        ]


def _binned(probabilities: FloatArray, bins: int) -> tuple[FloatArray, IntArray]:
    """Confidence of every utterance and its bin, [N]; a bin is open below and closed above."""
    confidence = probabilities.max(-1)
    edges = np.linspace(0, 1, bins + 1)
    return confidence, np.searchsorted(edges[1:-1], confidence)


def reliability(probabilities: FloatArray, reference: IntArray, bins: int = BINS) -> Reliability:
    """Sort utterances by the confidence of their top class (Guo et al. 2017).

    Args:
        probabilities: Class probabilities, shape [N, C].
        reference: True class indices, shape [N].
        bins: Number B of equally wide bins.
    """
    confidence, where = _binned(probabilities, bins)
    right = probabilities.argmax(-1) == reference
    return Reliability(
        np.bincount(where, minlength=bins),
        np.bincount(where, weights=confidence, minlength=bins),
        np.bincount(where, weights=right, minlength=bins),
    )


def brier_scores(probabilities: FloatArray, reference: IntArray) -> FloatArray:
    """Squared distance of every distribution to the one-hot truth, [N], 0 to 2 (Brier 1950)."""
    truth = np.eye(probabilities.shape[-1])[reference]
    return ((probabilities - truth) ** 2).sum(-1)


def calibration_statistic(
    probabilities: FloatArray, reference: IntArray, bins: int = BINS
) -> Statistic:
    """Metrics of `CALIBRATION_METRICS` over [N, C] probabilities and [N] references.

    Resampling flatters nobody here: noise adds to every gap, so the calibration error of a resample
    is larger on average than that of the data. BCa intervals correct for that.
    """
    confidence, where = _binned(probabilities, bins)
    rows = np.arange(len(reference))
    table = np.zeros((len(reference), bins + 2))
    table[rows, where] = (probabilities.argmax(-1) == reference) - confidence
    table[:, bins] = brier_scores(probabilities, reference)
    table[:, bins + 1] = 1

    def metrics(sums: FloatArray) -> dict[str, FloatArray]:
        count = np.maximum(sums[..., bins + 1], 1)
        return {"ece": np.abs(sums[..., :bins]).sum(-1) / count, "brier": sums[..., bins] / count}

    return Statistic(rows, table, metrics)


def jensen_shannon(first: FloatArray, second: FloatArray) -> FloatArray:
    """Jensen-Shannon distance of distributions [N, C], [N], from 0 to 1; rows are normalised.

    The square root of the mean Kullback-Leibler divergence, in bits, of both from their mean
    (Endres and Schindelin 2003): a metric.
    """
    first, second = (rows / rows.sum(-1, keepdims=True) for rows in (first, second))
    middle = (first + second) / 2

    def divergence(shares: FloatArray) -> FloatArray:
        ratio = np.divide(shares, middle, out=np.ones_like(shares), where=shares > 0)
        return (shares * np.log2(ratio)).sum(-1)

    return np.sqrt(np.maximum(0, divergence(first) + divergence(second)) / 2)


def distance_statistic(distances: FloatArray) -> Statistic:
    """``jsd``, the mean of distances [N] between systems and annotators."""
    table = np.stack([distances, np.ones_like(distances)], axis=1)

    def metrics(sums: FloatArray) -> dict[str, FloatArray]:
        return {"jsd": sums[..., 0] / np.maximum(sums[..., 1], 1)}

    return Statistic(np.arange(len(distances)), table, metrics)
