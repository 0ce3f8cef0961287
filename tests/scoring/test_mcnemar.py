import math

import numpy as np
import pytest
from scipy import stats

from espnet_adaltm.scoring.mcnemar import corrected_p, exact_p, mcnemar


@pytest.mark.parametrize("counts", [(0, 0), (1, 0), (0, 6), (3, 3), (8, 9), (20, 45), (900, 1100)])
def test_p_equals_scipy(counts):
    total = sum(counts)
    want = stats.binomtest(counts[0], total, 0.5).pvalue if total else 1.0
    assert exact_p(*counts) == pytest.approx(want, abs=1e-9)
    assert exact_p(*counts) == exact_p(*counts[::-1])
    if total:
        statistic = max(0, abs(counts[0] - counts[1]) - 1) ** 2 / total
        assert corrected_p(*counts) == pytest.approx(stats.chi2.sf(statistic, 1), abs=1e-9)
    else:
        assert corrected_p(*counts) == 1.0


def test_exact_p_is_a_sum_of_binomial_coefficients():
    assert exact_p(2, 9) == pytest.approx(2 * (1 + 11 + math.comb(11, 2)) / 2**11, rel=1e-12)
    assert exact_p(5, 6) == pytest.approx(1.0)  # both tails together are everything


def test_published_example():
    """Agresti (2013), 11.1: approval of a prime minister, 150 against 86 who changed their mind."""
    assert corrected_p(150, 86) == pytest.approx(stats.chi2.sf(63**2 / 236, 1), rel=1e-12)


def test_only_disagreement_counts():
    first = np.array([True, True, False, False, True, True])
    second = np.array([True, False, True, False, False, False])
    found = mcnemar(first, second, (1, None))
    assert (found.only_first, found.only_second) == (3, 1)
    assert (found.first, found.second) == (1, None)
    assert found.p_exact == pytest.approx(2 * 5 / 16)
    assert found.p_corrected == pytest.approx(stats.chi2.sf(1 / 4, 1))
    with pytest.raises(ValueError, match="different utterances"):
        mcnemar(first, second[1:])
