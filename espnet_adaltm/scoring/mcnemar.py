"""McNemar's test: do two classifiers differ in how many utterances they get right?

Only utterances that one of them has right and the other wrong say anything about that. Utterances
count as independent; those of one speaker are not, see the bootstrap by speaker.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class McNemar:
    """The test of one pair of predictions.

    Attributes:
        first: Seed of the first system's training, or None.
        second: Seed of the second system's training, or None.
        only_first: Utterances that only the first has right.
        only_second: Utterances that only the second has right.
        p_exact: Two-sided binomial p.
        p_corrected: p of the chi-square statistic with Edwards' continuity correction.
    """

    first: int | None
    second: int | None
    only_first: int
    only_second: int
    p_exact: float
    p_corrected: float


def mcnemar(
    first: NDArray[np.bool_],
    second: NDArray[np.bool_],
    seeds: tuple[int | None, int | None] = (None, None),
) -> McNemar:
    """Test two systems on the same utterances.

    Args:
        first: Whether the first is right, [N].
        second: Whether the second is right, [N].
        seeds: Of their trainings, kept with the result.

    Raises:
        ValueError: Different numbers of utterances.
    """
    if first.shape != second.shape:
        raise ValueError(f"different utterances: {first.shape} and {second.shape}")
    only_first, only_second = int(np.sum(first & ~second)), int(np.sum(~first & second))
    return McNemar(
        *seeds, only_first, only_second,
        exact_p(only_first, only_second), corrected_p(only_first, only_second),
    )  # fmt: skip


def exact_p(only_first: int, only_second: int) -> float:
    """Two-sided p of the smaller count under a fair coin; 1 where both are equal."""
    from scipy.special import bdtr

    total = only_first + only_second
    if only_first == only_second:
        return 1.0
    return min(1.0, 2 * float(bdtr(min(only_first, only_second), total, 0.5)))


def corrected_p(only_first: int, only_second: int) -> float:
    """p of ``(|b - c| - 1)^2 / (b + c)`` under chi-square with one degree of freedom."""
    total = only_first + only_second
    if total == 0:
        return 1.0
    statistic = max(0, abs(only_first - only_second) - 1) ** 2 / total
    return math.erfc(math.sqrt(statistic / 2))
