"""Bootstrap intervals and paired tests, vectorised over resamples.

Every metric here is a function of sums over utterances (confusion cells, edit counts), so that all
resamples are one product of matrices: how often each was drawn, times its counts. Utterances with
the same counts are interchangeable and are counted together, which is exact.

Two systems, or several seeds of one, are compared on the *same* resamples (`bootstrap` takes them
together), which makes every difference of its outputs a paired one.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from espnet_adaltm.scoring.metrics import (
    ErrorCounts,
    FloatArray,
    IntArray,
    check_indices,
    emotion_metrics,
)

Key = TypeVar("Key", bound=Hashable)
Metrics = Callable[[FloatArray], dict[str, FloatArray]]
_CHUNK = 100_000  # weights held at once: 800 kB
_CHEAPER = 8  # an index costs about an eighth of a binomial draw


@dataclass(frozen=True)
class Statistic:
    """Per-utterance counts, and the metrics of their sum.

    Attributes:
        rows: Index into ``table`` of every utterance, shape [N].
        table: Distinct count vectors, shape [V, k].
        metrics: Sums [..., k] to named metrics [...].
    """

    rows: IntArray
    table: FloatArray
    metrics: Metrics

    def point(self) -> dict[str, float]:
        """The metrics on all utterances."""
        uses = np.bincount(self.rows, minlength=len(self.table))
        return {name: float(value) for name, value in self.metrics(uses @ self.table).items()}

    def subset(self, mask: NDArray[np.bool_]) -> "Statistic":
        """The same statistic over the utterances where ``mask`` [N] is true."""
        return Statistic(self.rows[mask], self.table, self.metrics)


def emotion_statistic(reference: IntArray, prediction: IntArray, num_classes: int) -> Statistic:
    """Confusion cells of [N] references and predictions; metrics of `EMOTION_METRICS`."""
    check_indices(reference, prediction, num_classes)

    def metrics(sums: FloatArray) -> dict[str, FloatArray]:
        return emotion_metrics(sums.reshape(*sums.shape[:-1], num_classes, num_classes))

    return Statistic(reference * num_classes + prediction, np.eye(num_classes**2), metrics)


def error_statistic(words: ErrorCounts, characters: ErrorCounts) -> Statistic:
    """Edit counts of N utterances; metrics ``wer``, ``cer``, ``sentence_error_rate``.

    A resample without a single reference word has rate 0 by convention.
    """
    wrong = (words.errors > 0).astype(np.int64)
    columns = (words.errors, words.lengths, characters.errors, characters.lengths, wrong)
    counts = np.stack([*columns, np.ones_like(wrong)], axis=1)
    table, rows = np.unique(counts, axis=0, return_inverse=True)
    return Statistic(rows.reshape(-1), table.astype(np.float64), _error_metrics)


def _error_metrics(sums: FloatArray) -> dict[str, FloatArray]:
    def rate(numerator: int, denominator: int) -> FloatArray:
        return sums[..., numerator] / np.maximum(sums[..., denominator], 1)

    return {"wer": rate(0, 1), "cer": rate(2, 3), "sentence_error_rate": rate(4, 5)}


@dataclass(frozen=True)
class _Units:
    """What is drawn: distinct utterances, or clusters."""

    multiplicity: IntArray  # [U]
    sums: list[FloatArray]  # per statistic: counts of one unit, [U, k]


def _units(statistics: Sequence[Statistic], clusters: Sequence[str] | None) -> _Units:
    sizes = {len(statistic.rows) for statistic in statistics}
    if len(sizes) != 1 or 0 in sizes or (clusters is not None and {len(clusters)} != sizes):
        raise ValueError(f"statistics and clusters must share N > 0 utterances, found {sizes}")
    if clusters is None:
        return _utterance_units(statistics)
    return _cluster_units(statistics, clusters)


def _utterance_units(statistics: Sequence[Statistic]) -> _Units:
    stacked = np.stack([statistic.rows for statistic in statistics], axis=1)
    distinct, multiplicity = np.unique(stacked, axis=0, return_counts=True)
    sums = [s.table[distinct[:, column]] for column, s in enumerate(statistics)]
    return _Units(multiplicity, sums)


def _cluster_units(statistics: Sequence[Statistic], clusters: Sequence[str]) -> _Units:
    names, members = np.unique(np.asarray(clusters), return_inverse=True)
    sums = []
    for statistic in statistics:
        total = np.zeros((len(names), statistic.table.shape[1]))
        np.add.at(total, members.reshape(-1), statistic.table[statistic.rows])
        sums.append(total)
    return _Units(np.ones(len(names), dtype=np.int64), sums)


def bootstrap(
    statistics: Mapping[Key, Statistic],
    *,
    resamples: int = 1000,
    seed: int = 0,
    clusters: Sequence[str] | None = None,
) -> dict[Key, dict[str, FloatArray]]:
    """Metrics of every statistic on the same resamples of the same utterances.

    Args:
        statistics: By any key; all over the same N utterances in the same order.
        resamples: Number R of resamples.
        seed: Of the random generator; equal seeds draw equal resamples.
        clusters: Cluster of each utterance, length N (speakers, dialogues): whole clusters are
            drawn instead of utterances, for data that are not independent within one.

    Returns:
        Key to metric name to values [R].

    Raises:
        ValueError: No statistic, no utterance, or different numbers of utterances.
    """
    values = list(statistics.values())
    units = _units(values, clusters)
    together = np.concatenate(units.sums, axis=1)
    rng = np.random.default_rng(seed)
    drawn = [weights @ together for weights in _weights(units.multiplicity, resamples, rng)]
    return _metrics_of(statistics, np.concatenate(drawn))


@dataclass(frozen=True)
class LeftOut(Generic[Key]):
    """Metrics without one unit each, for `bca_interval`.

    Attributes:
        multiplicity: How many units of a kind there are, [U].
        values: Key to metric name to the metric without one of them, [U].
    """

    multiplicity: IntArray
    values: dict[Key, dict[str, FloatArray]]


def jackknife(
    statistics: Mapping[Key, Statistic], clusters: Sequence[str] | None = None
) -> LeftOut[Key]:
    """Metrics of every statistic without one utterance, or without one cluster.

    Args:
        statistics: As in `bootstrap`.
        clusters: As in `bootstrap`.

    Raises:
        ValueError: See `bootstrap`.
    """
    units = _units(list(statistics.values()), clusters)
    together = np.concatenate(units.sums, axis=1)
    rest = units.multiplicity @ together - together
    return LeftOut(units.multiplicity, _metrics_of(statistics, rest))


def _metrics_of(
    statistics: Mapping[Key, Statistic], sums: FloatArray
) -> dict[Key, dict[str, FloatArray]]:
    """Split the columns of sums [R, k1 + k2 + ...] among the statistics."""
    ends = np.cumsum([statistic.table.shape[1] for statistic in statistics.values()])
    parts = np.split(sums, ends[:-1], axis=1)
    return {
        key: statistic.metrics(part)
        for (key, statistic), part in zip(statistics.items(), parts, strict=True)
    }


def _weights(
    multiplicity: IntArray, resamples: int, rng: np.random.Generator
) -> Iterator[FloatArray]:
    """Yield how often each unit was drawn, [r, U], in chunks that fit into the cache."""
    kinds, total = len(multiplicity), int(multiplicity.sum())
    size = max(1, _CHUNK // max(kinds, total))
    # Drawing indices costs by unit and is the cheaper way, unless most units are of a few kinds.
    counted = _CHEAPER * kinds < total
    kind_of = np.repeat(np.arange(kinds), multiplicity)
    for start in range(0, resamples, size):
        count = min(size, resamples - start)
        if counted:
            draws = rng.multinomial(total, multiplicity / total, size=count)
        else:
            chosen = kind_of[rng.integers(total, size=(count, total))]
            chosen += kinds * np.arange(count)[:, None]
            draws = np.bincount(chosen.ravel(), minlength=count * kinds).reshape(count, kinds)
        yield draws.astype(np.float64)


def interval(values: FloatArray, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of resampled values [R]."""
    return _between(values, (1 - level) / 2, (1 + level) / 2)


def _between(values: FloatArray, first: float, second: float) -> tuple[float, float]:
    low, high = np.quantile(values, [first, second])
    return float(low), float(high)


def bca_interval(
    values: FloatArray,
    point: float,
    left_out: FloatArray,
    multiplicity: IntArray | None = None,
    level: float = 0.95,
) -> tuple[float, float]:
    """Bias-corrected and accelerated interval (Efron and Tibshirani 1993, 14.3).

    Unlike the percentile interval it follows a statistic that is biased or skewed in resamples,
    such as a calibration error. Where all of ``left_out`` are equal there is no acceleration.

    Args:
        values: The statistic on resamples, [R].
        point: The statistic on the data.
        left_out: The statistic without one unit of each kind, [U].
        multiplicity: Units of each kind, [U]; one each if None.
        level: Of the interval.
    """
    normal = NormalDist()
    below = (np.sum(values < point) + np.sum(values <= point)) / (2 * len(values))
    # A point outside of all resamples would be infinitely far: as if half a resample were beyond.
    edge = 0.5 / len(values)
    bias = normal.inv_cdf(min(max(float(below), edge), 1 - edge))
    counts = np.ones(len(left_out)) if multiplicity is None else multiplicity.astype(np.float64)
    gaps = (counts @ left_out) / counts.sum() - left_out
    spread = float(counts @ gaps**2)
    # Differences of rounding alone are none.
    tiny = counts.sum() * (1e-14 * max(1.0, float(np.abs(left_out).max()))) ** 2
    acceleration = float(counts @ gaps**3) / (6 * spread**1.5) if spread > tiny else 0.0

    def share(quantile: float) -> float:
        shifted = bias + quantile
        rest = 1 - acceleration * shifted
        if rest <= 0:  # beyond the pole: all the way to one side
            return 1.0 if shifted > 0 else 0.0
        return normal.cdf(bias + shifted / rest)

    far = normal.inv_cdf((1 + level) / 2)
    return _between(values, share(-far), share(far))


def p_value(differences: FloatArray) -> float:
    """Two-sided bootstrap p of resampled differences [R] against 0.

    Twice the smaller tail, ties in both tails, with one added to count and R so that it is
    never 0 (Davison and Hinkley 1997, 4.2): 1 for two identical systems.
    """
    tail = min(int(np.sum(differences <= 0)), int(np.sum(differences >= 0)))
    return min(1.0, 2 * (tail + 1) / (len(differences) + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment for several tests, in the order given."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return [float(value) for value in adjusted]
