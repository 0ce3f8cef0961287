"""A metric of a system over the seeds of its training, and paired tests of two systems."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from espnet_adaltm.scoring.metrics import FloatArray, IntArray
from espnet_adaltm.scoring.statistics import bca_interval, interval, p_value

INTERVALS = ("percentile", "bca")
Span = tuple[float, float]


@dataclass(frozen=True)
class Comparison:
    """A paired difference, first minus second system.

    Attributes:
        difference: Of the means over seeds.
        low: Lower end of its percentile interval.
        high: Upper end.
        p: Two-sided, see `statistics.p_value`.
        p_seeds: The same with the seeds of the trainings resampled too.
        bca: BCa interval, or None where the systems carry no jackknife.
    """

    difference: float
    low: float
    high: float
    p: float
    p_seeds: float
    bca: Span | None = None

    @property
    def separated(self) -> bool:
        """Whether the two-sided p is below 0.05."""
        return self.p < 0.05

    def interval(self, method: str = "percentile") -> Span:
        """The interval by one of `INTERVALS`; percentile where there is no other."""
        return self.bca if method == "bca" and self.bca is not None else (self.low, self.high)


@dataclass(frozen=True)
class Seeds:
    """One metric of one system by seed.

    Attributes:
        points: On all utterances, [K].
        values: On resamples, [K, R].
        names: The K seeds of the trainings; empty where they are unknown.
        left_out: Without one unit of each kind, [K, U], see `statistics.jackknife`; or None.
        multiplicity: Units of each kind, [U], or None.
    """

    points: FloatArray
    values: FloatArray
    names: tuple[int | None, ...] = ()
    left_out: FloatArray | None = None
    multiplicity: IntArray | None = None

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

    def interval(self, level: float = 0.95, method: str = "percentile") -> Span:
        """Interval of the mean over seeds, for other draws of the test set.

        Args:
            level: Of the interval.
            method: One of `INTERVALS`; percentile where there is no jackknife.
        """
        if method == "bca" and self.left_out is not None:
            left_out = self.left_out.mean(0)
            return bca_interval(self.pooled(), self.mean, left_out, self.multiplicity, level)
        return interval(self.pooled(), level)

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
        left_out = None if self.left_out is None else self.left_out[rows]
        return Seeds(
            self.points[rows], self.values[rows], tuple(names), left_out, self.multiplicity
        )


def compare(first: Seeds, second: Seeds, *, level: float = 0.95, seed: int = 0) -> Comparison:
    """Paired test of two systems resampled together, each averaged over its seeds.

    Two systems trained with one seed share the initialisation of the head, the order of the batches
    and the stream of dropout. Where both have the same seeds, ``p_seeds`` therefore draws the same
    ones for both; otherwise it draws those of each independently.

    Args:
        first: Metric of one system; ``values`` from the same `bootstrap` call as ``second``'s.
        second: Metric of the other.
        level: Of the intervals.
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
    difference = first.mean - second.mean
    bca = None
    if first.left_out is not None and second.left_out is not None:
        left_out = first.left_out.mean(0) - second.left_out.mean(0)
        bca = bca_interval(differences, difference, left_out, first.multiplicity, level)
    low, high = interval(differences, level)
    return Comparison(difference, low, high, p_value(differences), p_value(hierarchical), bca)
