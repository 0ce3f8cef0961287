"""Bootstrap intervals and paired tests, vectorised over resamples.

Every metric here is a function of sums over utterances (confusion cells, edit counts). Utterances
with the same counts are interchangeable, so drawing N of N utterances with replacement is one
multinomial draw over the distinct rows: exact, and far cheaper than drawing indices.

Two systems, or several seeds of one, are compared on the *same* resamples (`bootstrap` takes them
together), which makes every difference of its outputs a paired one.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

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
_CHUNK = 4_000_000  # weights held at once, 32 MB


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
    sizes = {len(statistic.rows) for statistic in values}
    if len(sizes) != 1 or 0 in sizes or (clusters is not None and {len(clusters)} != sizes):
        raise ValueError(f"statistics and clusters must share N > 0 utterances, found {sizes}")
    units = _utterance_units(values) if clusters is None else _cluster_units(values, clusters)
    chunks = [
        [statistic.metrics(weights @ sums) for statistic, sums in zip(values, units.sums)]
        for weights in _weights(units.multiplicity, resamples, np.random.default_rng(seed))
    ]
    return {
        key: {name: np.concatenate([c[i][name] for c in chunks]) for name in chunks[0][i]}
        for i, key in enumerate(statistics)
    }


def _weights(
    multiplicity: IntArray, resamples: int, rng: np.random.Generator
) -> Iterator[FloatArray]:
    """Yield how often each unit was drawn, [r, U], in chunks of bounded size."""
    total = int(multiplicity.sum())
    size = max(1, _CHUNK // len(multiplicity))
    for start in range(0, resamples, size):
        count = min(size, resamples - start)
        draws = rng.multinomial(total, multiplicity / total, size=count)
        yield draws.astype(np.float64)


def interval(values: FloatArray, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of resampled values [R]."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def p_value(differences: FloatArray) -> float:
    """Two-sided bootstrap p of resampled differences [R] against 0.

    Twice the smaller tail, ties in both tails, with one added to count and R so that it is
    never 0 (Davison and Hinkley 1997, 4.2): 1 for two identical systems.
    """
    tail = min(int(np.sum(differences <= 0)), int(np.sum(differences >= 0)))
    return min(1.0, 2 * (tail + 1) / (len(differences) + 1))


@dataclass(frozen=True)
class Comparison:
    """A paired difference, first minus second system."""

    difference: float
    low: float
    high: float
    p: float
    p_seeds: float

    @property
    def separated(self) -> bool:
        """Whether the two-sided p is below 0.05."""
        return self.p < 0.05


@dataclass(frozen=True)
class Seeds:
    """One metric of one system by seed.

    Attributes:
        points: On all utterances, [K].
        values: On resamples, [K, R].
        names: The K seeds of the trainings; empty where they are unknown.
    """

    points: FloatArray
    values: FloatArray
    names: tuple[int | None, ...] = ()

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return float(self.points.mean())

    @property
    def std(self) -> float | None:
        """Standard deviation over seeds (K - 1 in the denominator), None for a single seed."""
        return float(self.points.std(ddof=1)) if len(self.points) > 1 else None

    def pooled(self) -> FloatArray:
        """The mean over seeds within every resample, [R]: uncertainty of the test set."""
        return self.values.mean(0)

    def draw(self, seed: int) -> IntArray:
        """For every resample, K of the K seeds drawn with replacement: rows, [K, R]."""
        count, resamples = self.values.shape
        return np.random.default_rng(seed).integers(count, size=(count, resamples))

    def pooled_hierarchical(self, drawn: IntArray) -> FloatArray:
        """As `pooled`, but of the seeds that `draw` gave, [R].

        With few seeds this still understates the variance between seeds, by about (K - 1) / K.
        """
        return np.take_along_axis(self.values, drawn, axis=0).mean(0)

    def in_order_of(self, names: Sequence[int | None]) -> "Seeds":
        """The same with rows in the order of ``names``, a permutation of its own."""
        rows = [self.names.index(name) for name in names]
        return Seeds(self.points[rows], self.values[rows], tuple(names))


def compare(first: Seeds, second: Seeds, *, level: float = 0.95, seed: int = 0) -> Comparison:
    """Paired test of two systems resampled together, each averaged over its seeds.

    Two systems trained with one seed share the initialisation of the head, the order of the batches
    and the stream of dropout. Where both have the same seeds, ``p_seeds`` therefore draws the same
    ones for both; otherwise it draws those of each independently.

    Args:
        first: Metric of one system; ``values`` from the same `bootstrap` call as ``second``'s.
        second: Metric of the other.
        level: Of the interval.
        seed: For the draws of seeds behind ``p_seeds``.
    """
    if first.values.shape[1] != second.values.shape[1]:
        raise ValueError("systems were resampled differently")
    differences = first.pooled() - second.pooled()
    drawn = first.draw(2 * seed + 1)
    if first.names and Counter(first.names) == Counter(second.names):
        other = second.in_order_of(first.names).pooled_hierarchical(drawn)
    else:
        other = second.pooled_hierarchical(second.draw(2 * seed))
    hierarchical = first.pooled_hierarchical(drawn) - other
    low, high = interval(differences, level)
    return Comparison(
        first.mean - second.mean, low, high, p_value(differences), p_value(hierarchical)
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment for several tests, in the order given."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return [float(value) for value in adjusted]
