import numpy as np
import pytest
from scipy.spatial import distance
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from espnet_adaltm.scoring import calibration
from espnet_adaltm.scoring.statistics import bca_interval, bootstrap, jackknife


def _probabilities(size=500, num_classes=5, seed=0):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(num_classes, 0.5), size=size)
    reference = np.array([rng.choice(num_classes, p=row) for row in probabilities])
    return probabilities, reference


@pytest.mark.parametrize("bins", [10, 15])
def test_bins_equal_sklearn(bins):
    probabilities, reference = _probabilities()
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == reference
    accuracy, sure = calibration_curve(right, confidence, n_bins=bins)
    got = calibration.reliability(probabilities, reference, bins)
    rows = got.rows()
    assert [row["accuracy"] for row in rows] == pytest.approx(accuracy, abs=1e-9)
    assert [row["confidence"] for row in rows] == pytest.approx(sure, abs=1e-9)
    counts = np.array([row["count"] for row in rows])
    assert counts.sum() == 500
    assert got.error == pytest.approx(counts @ np.abs(accuracy - sure) / 500, abs=1e-9)
    statistic = calibration.calibration_statistic(probabilities, reference, bins)
    assert statistic.point()["ece"] == pytest.approx(got.error, abs=1e-12)


def test_an_edge_belongs_to_the_bin_below_as_in_sklearn():
    probabilities = np.array([[0.5, 0.5], [0.75, 0.25], [1.0, 0.0], [0.51, 0.49]])
    reference = np.array([0, 0, 0, 1])
    got = calibration.reliability(probabilities, reference, 4)
    assert got.counts.tolist() == [0, 1, 2, 1]
    accuracy, _ = calibration_curve([1, 1, 1, 0], probabilities.max(1), n_bins=4)
    assert [row["accuracy"] for row in got.rows()] == pytest.approx(accuracy)


def test_calibration_error_of_known_cases():
    reference = np.array([0, 0, 0, 1])
    sure = np.tile([[1.0, 0.0]], (4, 1))
    assert calibration.reliability(sure, reference).error == pytest.approx(0.25)
    honest = np.tile([[0.75, 0.25]], (4, 1))
    assert calibration.reliability(honest, reference).error == pytest.approx(0.0)


def test_reliabilities_of_seeds_add_up():
    first, second = (calibration.reliability(*_probabilities(seed=seed)) for seed in (0, 1))
    both = first + second
    assert both.counts.sum() == 1000
    assert both.rows()[-1]["count"] == first.rows()[-1]["count"] + second.rows()[-1]["count"]
    assert both.error <= (first.error + second.error) / 2 + 1e-12


def test_brier_score_equals_sklearn():
    probabilities, reference = _probabilities()
    want = brier_score_loss(reference, probabilities, labels=range(5), scale_by_half=False)
    assert calibration.brier_scores(probabilities, reference).mean() == pytest.approx(
        want, abs=1e-9
    )
    statistic = calibration.calibration_statistic(probabilities, reference)
    assert statistic.point()["brier"] == pytest.approx(want, abs=1e-9)


def test_bca_takes_back_the_bias_of_a_resampled_calibration_error():
    """Perfectly calibrated: resamples are worse than the data, the BCa interval reaches lower."""
    probabilities, reference = _probabilities(size=300)
    statistic = {0: calibration.calibration_statistic(probabilities, reference)}
    values = bootstrap(statistic, resamples=2000)[0]["ece"]
    point = statistic[0].point()["ece"]
    assert values.mean() > point + 0.005
    rest = jackknife(statistic)
    low, high = bca_interval(values, point, rest.values[0]["ece"], rest.multiplicity)
    assert low < np.quantile(values, 0.025)
    assert high < np.quantile(values, 0.975)


def test_jensen_shannon_equals_scipy():
    rng = np.random.default_rng(0)
    first, second = (rng.dirichlet(np.full(6, 0.3), size=200) for _ in range(2))
    first[:20, 0] = 0  # impossible for one of the two, and not normalised any more
    second[10:30, 1] = 0
    first[40] = second[40]
    first[41], second[41] = np.eye(6)[[0, 5]]
    got = calibration.jensen_shannon(first, second)
    want = [distance.jensenshannon(a, b, base=2) for a, b in zip(first, second)]
    np.testing.assert_allclose(got, want, atol=1e-9)
    assert (got[40], got[41]) == (0.0, 1.0)
    statistic = calibration.distance_statistic(got)
    assert statistic.point()["jsd"] == pytest.approx(np.mean(want), abs=1e-9)
