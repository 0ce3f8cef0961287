import time

import jiwer
import numpy as np
import pytest
from scipy import stats

from espnet_adaltm.scoring import metrics, seeds, statistics
from espnet_adaltm.scoring.seeds import Seeds


def _labels(size: int, accuracy: float, num_classes: int = 4, seed: int = 0):
    rng = np.random.default_rng(seed)
    reference = rng.integers(num_classes, size=size)
    wrong = (reference + rng.integers(1, num_classes, size=size)) % num_classes
    return reference, np.where(rng.random(size) < accuracy, reference, wrong)


def test_vectorised_equals_naive_loop_on_the_same_resamples(monkeypatch):
    reference, first = _labels(50, 0.6)
    second = _labels(50, 0.5, seed=3)[1]
    pair = {
        "first": statistics.emotion_statistic(reference, first, 4),
        "second": statistics.emotion_statistic(reference, second, 4),
    }
    drawn = np.random.default_rng(5).integers(50, size=(7, 50))
    distinct, inverse = np.unique(
        np.stack([s.rows for s in pair.values()], 1), axis=0, return_inverse=True
    )
    weights = np.stack([np.bincount(inverse.ravel()[d], minlength=len(distinct)) for d in drawn])
    monkeypatch.setattr(statistics, "_weights", lambda *_: iter([weights[:4] * 1.0, weights[4:]]))
    got = statistics.bootstrap(pair, resamples=7)
    for index, chosen in enumerate(drawn):
        for name, prediction in (("first", first), ("second", second)):
            confusion = metrics.confusion_matrix(reference[chosen], prediction[chosen], 4)
            for metric, want in metrics.emotion_metrics(confusion).items():
                assert got[name][metric][index] == pytest.approx(float(want), abs=1e-12)


def test_error_rates_equal_naive_loop_by_cluster(monkeypatch):
    references = ["a b c", "d e", "f", "g h i j"]
    hypotheses = ["a b", "d x", "f", "g h i j k"]
    words = metrics.error_counts(references, hypotheses)
    characters = metrics.error_counts(references, hypotheses, "char")
    clusters = ["s1", "s2", "s1", "s2"]
    monkeypatch.setattr(statistics, "_weights", lambda *_: iter([np.array([[2.0, 0], [1, 1]])]))
    got = statistics.bootstrap(
        {0: statistics.error_statistic(words, characters)}, resamples=2, clusters=clusters
    )[0]
    # speaker s1: 1 error in 4 words, 1 wrong sentence of 2; s2: 2 in 6, 2 of 2
    np.testing.assert_allclose(got["wer"], [1 / 4, 3 / 10])
    np.testing.assert_allclose(got["sentence_error_rate"], [1 / 2, 3 / 4])
    np.testing.assert_allclose(got["cer"][0], 2 * 2 / (2 * 6))


def test_chunks_do_not_change_the_numbers(monkeypatch):
    statistic = statistics.emotion_statistic(*_labels(80, 0.7), 4)
    whole = statistics.bootstrap({0: statistic}, resamples=50, seed=2)[0]
    monkeypatch.setattr(statistics, "_CHUNK", 100)
    parts = statistics.bootstrap({0: statistic}, resamples=50, seed=2)[0]
    for name in whole:
        np.testing.assert_array_equal(whole[name], parts[name])
    other = statistics.bootstrap({0: statistic}, resamples=50, seed=3)[0]
    assert not np.array_equal(whole["wa"], other["wa"])


def test_spread_of_accuracy_is_the_binomial_one():
    reference, prediction = _labels(400, 0.7)
    statistic = statistics.emotion_statistic(reference, prediction, 4)
    accuracy = statistic.point()["wa"]
    values = statistics.bootstrap({0: statistic}, resamples=4000)[0]["wa"]
    assert values.mean() == pytest.approx(accuracy, abs=0.002)
    assert values.std() == pytest.approx(np.sqrt(accuracy * (1 - accuracy) / 400), rel=0.05)


def test_interval_of_accuracy_covers_the_truth():
    covered = 0
    for trial in range(400):
        reference, prediction = _labels(150, 0.7, seed=trial)
        statistic = statistics.emotion_statistic(reference, prediction, 4)
        values = statistics.bootstrap({0: statistic}, resamples=400, seed=trial)[0]["wa"]
        low, high = statistics.interval(values)
        covered += low <= 0.7 <= high
    assert 0.91 <= covered / 400 <= 0.98


def test_paired_test_rejects_at_its_level_under_the_null():
    rejected = 0
    for trial in range(300):
        reference, first = _labels(150, 0.6, seed=trial)
        second = np.where(
            np.random.default_rng(trial + 1000).random(150) < 0.6, reference, (reference + 1) % 4
        )
        rejected += _compare(reference, [first], [second], "wa", seed=trial).separated
    assert 0.02 <= rejected / 300 <= 0.09


def _seeds(reference, predictions, metric, seed=0):
    named = {k: statistics.emotion_statistic(reference, p, 4) for k, p in enumerate(predictions)}
    values = statistics.bootstrap(named, resamples=400, seed=seed)
    points = np.array([s.point()[metric] for s in named.values()])
    return points, np.stack([values[k][metric] for k in named])


def _compare(reference, first, second, metric, seed=0):
    points, values = _seeds(reference, [*first, *second], metric, seed)
    cut = len(first)
    return seeds.compare(
        Seeds(points[:cut], values[:cut]), Seeds(points[cut:], values[cut:]), seed=seed
    )


def test_identical_systems_differ_by_exactly_nothing():
    reference, prediction = _labels(100, 0.6)
    result = _compare(reference, [prediction], [prediction.copy()], "macro_f1")
    assert (result.difference, result.low, result.high, result.p) == (0, 0, 0, 1)
    assert not result.separated


def test_pairing_sees_what_separate_intervals_cannot():
    reference, worse = _labels(500, 0.6)
    better = worse.copy()
    better[np.flatnonzero(worse != reference)[:15]] = reference[worse != reference][:15]
    result = _compare(reference, [better], [worse], "wa")
    assert result.difference == pytest.approx(15 / 500)
    assert 0 < result.low < 15 / 500 < result.high
    assert result.p == pytest.approx(2 / 401)
    points, values = _seeds(reference, [better, worse], "wa")
    low, high = statistics.interval(values[0])
    assert low < points[1] < high


def test_seeds_are_averaged_within_each_resample():
    both = Seeds(np.array([0.4, 0.6]), np.array([[0.3, 0.5, 0.4], [0.5, 0.7, 0.8]]))
    assert both.mean == pytest.approx(0.5)
    assert both.std == pytest.approx(np.std([0.4, 0.6], ddof=1))
    np.testing.assert_allclose(both.pooled(), [0.4, 0.6, 0.6])
    assert Seeds(np.array([0.4]), np.zeros((1, 3))).std is None


def test_resampling_seeds_adds_their_variance():
    rng = np.random.default_rng(0)
    values = np.array([[0.1], [0.2], [0.6]]) + 0.01 * rng.standard_normal((1, 20_000))
    three = Seeds(values.mean(1), values)
    between = np.var([0.1, 0.2, 0.6]) / 3
    spread = three.pooled_hierarchical(three.draw(0)).var()
    assert spread == pytest.approx(between + 0.0001, rel=0.05)
    assert three.pooled().var() == pytest.approx(0.0001, rel=0.05)
    single = Seeds(values.mean(1)[:1], values[:1])
    np.testing.assert_array_equal(single.pooled_hierarchical(single.draw(7)), single.pooled())


def _two_seeds(low, high, names=(), resamples=4000):
    points = np.array([low, high])
    return Seeds(points, np.repeat(points[:, None], resamples, axis=1), names)


def test_equal_seeds_are_drawn_together():
    """One system is better by 0.1 with either seed; the seeds themselves are 0.2 apart.

    Drawn together, every difference is 0.1. Drawn independently, the means are 0.5, 0.6, 0.7 and
    0.4, 0.5, 0.6 with probabilities 1/4, 1/2, 1/4: a difference of 0 or less has 5/16.
    """
    first, second = _two_seeds(0.5, 0.7, (1, 2)), _two_seeds(0.4, 0.6, (1, 2))
    assert seeds.compare(first, second).p_seeds == pytest.approx(2 / 4001)
    swapped = _two_seeds(0.6, 0.4, (2, 1))
    assert seeds.compare(first, swapped).p_seeds == pytest.approx(2 / 4001)
    for names in ((3, 4), (1, 3), (1, 1), ()):
        other = _two_seeds(0.4, 0.6, names)
        assert seeds.compare(first, other).p_seeds == pytest.approx(10 / 16, abs=0.05), names
    single = Seeds(second.points[:1], second.values[:1], (1,))
    assert seeds.compare(first, single).p_seeds == pytest.approx(2 / 4001)
    alone = Seeds(np.array([0.55]), np.full((1, 4000), 0.55), (1,))  # below 0.5 in 1/4 of the draws
    assert seeds.compare(first, alone).p_seeds == pytest.approx(2 / 4, abs=0.05)


def test_clusters_widen_the_interval_of_dependent_utterances():
    reference = np.zeros(400, dtype=np.int64)
    prediction = np.repeat(np.arange(20) % 2, 20)  # every speaker all right or all wrong
    speakers = [f"s{index // 20}" for index in range(400)]
    statistic = {0: statistics.emotion_statistic(reference, prediction, 2)}
    free = statistics.bootstrap(statistic)[0]["wa"].std()
    by_speaker = statistics.bootstrap(statistic, clusters=speakers)[0]["wa"].std()
    assert free == pytest.approx(np.sqrt(0.25 / 400), rel=0.1)
    assert by_speaker == pytest.approx(np.sqrt(0.25 / 20), rel=0.1)


def test_p_value_counts_ties_in_both_tails():
    assert statistics.p_value(np.array([1.0, 2, 3, -1])) == pytest.approx(2 * 2 / 5)
    assert statistics.p_value(np.ones(999)) == pytest.approx(2 / 1000)
    assert statistics.p_value(np.zeros(10)) == 1.0


def test_holm_of_a_worked_example():
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert statistics.holm([]) == []


def test_different_utterances_are_refused():
    one = statistics.emotion_statistic(*_labels(10, 0.5), 4)
    two = statistics.emotion_statistic(*_labels(11, 0.5), 4)
    with pytest.raises(ValueError, match="share N"):
        statistics.bootstrap({0: one, 1: two})
    with pytest.raises(ValueError, match="share N"):
        statistics.bootstrap({0: one}, clusters=["a"])


def test_four_thousand_utterances_and_ten_thousand_resamples_take_seconds():
    """Of ten runs that all err differently, so that nearly every utterance is of its own kind."""
    reference, _ = _labels(4000, 0.6, 8)
    named = {
        seed: statistics.emotion_statistic(reference, _labels(4000, 0.6, 8, seed)[1], 8)
        for seed in range(10)
    }
    start = time.process_time()
    statistics.bootstrap(named, resamples=10_000)
    assert time.process_time() - start < 12


@pytest.mark.parametrize("cheaper", [0, 1000])
def test_drawing_indices_and_drawing_counts_are_the_same_lottery(monkeypatch, cheaper):
    """Both give multinomial counts: these means, variances and covariances."""
    monkeypatch.setattr(statistics, "_CHEAPER", cheaper)
    multiplicity = np.array([1, 2, 5])
    drawn = np.concatenate(
        list(statistics._weights(multiplicity, 40_000, np.random.default_rng(1)))
    )
    assert drawn.shape == (40_000, 3)
    np.testing.assert_array_equal(drawn.sum(1), 8)
    share = multiplicity / 8
    np.testing.assert_allclose(drawn.mean(0), multiplicity, atol=0.03)
    wanted = 8 * (np.diag(share) - np.outer(share, share))
    np.testing.assert_allclose(np.cov(drawn.T), wanted, atol=0.04)


def test_leaving_out_equals_a_naive_loop():
    reference, prediction = _labels(40, 0.6)
    statistic = statistics.emotion_statistic(reference, prediction, 4)
    got = statistics.jackknife({"": statistic})
    assert got.multiplicity.sum() == 40
    kinds = np.unique(statistic.rows)
    for kind, value in zip(kinds, got.values[""]["macro_f1"]):
        kept = np.delete(np.arange(40), np.flatnonzero(statistic.rows == kind)[0])
        confusion = metrics.confusion_matrix(reference[kept], prediction[kept], 4)
        assert value == pytest.approx(float(metrics.emotion_metrics(confusion)["macro_f1"]))


def test_leaving_out_speakers_equals_jiwer_on_the_rest():
    references = ["a b c", "d e", "f g", "g h i j"]
    hypotheses = ["a b", "d x", "f g", "g h i j k"]
    speakers = ["s1", "s2", "s1", "s3"]
    words, characters = (metrics.error_counts(references, hypotheses, u) for u in ("word", "char"))
    got = statistics.jackknife({0: statistics.error_statistic(words, characters)}, speakers)
    np.testing.assert_array_equal(got.multiplicity, [1, 1, 1])
    for name, wer, cer in zip(["s1", "s2", "s3"], got.values[0]["wer"], got.values[0]["cer"]):
        kept = [i for i in range(4) if speakers[i] != name]
        rest = [references[i] for i in kept], [hypotheses[i] for i in kept]
        assert wer == pytest.approx(jiwer.wer(*rest), abs=1e-12)
        assert cer == pytest.approx(jiwer.cer(*rest), abs=1e-12)


class _Drawn:
    """What scipy takes for an earlier bootstrap, with our resamples in it."""

    def __init__(self, values):
        self.bootstrap_distribution = values


def _scipy_interval(data, statistic, values, method, level=0.95):
    return stats.bootstrap(
        data, statistic, n_resamples=0, bootstrap_result=_Drawn(values), method=method,
        confidence_level=level, vectorized=False, paired=True,
    ).confidence_interval  # fmt: skip


@pytest.mark.parametrize("level", [0.95, 0.8])
def test_intervals_equal_scipy_on_the_same_resamples(level):
    """Accuracy, macro-F1 and a skewed mean; scipy leaves out one utterance after another."""
    reference, prediction = _labels(60, 0.8, 3)
    statistic = statistics.emotion_statistic(reference, prediction, 3)
    values = statistics.bootstrap({0: statistic}, resamples=999, seed=4)[0]
    rest = statistics.jackknife({0: statistic})
    for metric in ("wa", "macro_f1", "uar"):

        def scored(rows, columns, metric=metric):
            confusion = metrics.confusion_matrix(rows.astype(int), columns.astype(int), 3)
            return float(metrics.emotion_metrics(confusion)[metric])

        data = reference.astype(float), prediction.astype(float)
        drawn, point = values[metric], statistic.point()[metric]
        got = statistics.bca_interval(
            drawn, point, rest.values[0][metric], rest.multiplicity, level
        )
        want = _scipy_interval(data, scored, drawn, "BCa", level)
        assert got == pytest.approx(tuple(want), abs=1e-9), metric
        want = _scipy_interval(data, scored, drawn, "percentile", level)
        assert statistics.interval(drawn, level) == pytest.approx(tuple(want), abs=1e-9)


def test_interval_by_cluster_equals_scipy_over_clusters():
    """The units of scipy's data are the speakers: their errors and their words."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 9, size=40)
    errors = np.minimum(lengths, rng.geometric(0.4, size=40) - 1)
    words = metrics.ErrorCounts(lengths - errors, errors, 0 * errors, 0 * errors)
    speakers = [f"s{i % 12:02d}" for i in range(40)]
    statistic = {0: statistics.error_statistic(words, words)}
    drawn = statistics.bootstrap(statistic, resamples=999, clusters=speakers)[0]["wer"]
    rest = statistics.jackknife(statistic, speakers)
    sums = [np.array([x[[s == n for s in speakers]].sum() for n in sorted(set(speakers))])
            for x in (errors, lengths)]  # fmt: skip
    want = _scipy_interval(tuple(sums), lambda e, n: e.sum() / n.sum(), drawn, "BCa")
    got = statistics.bca_interval(
        drawn, float(errors.sum() / lengths.sum()), rest.values[0]["wer"], rest.multiplicity
    )
    assert got == pytest.approx(tuple(want), abs=1e-9)


def test_bca_without_bias_and_skewness_is_the_percentile_interval():
    values = np.linspace(-1, 1, 1001)
    got = statistics.bca_interval(values, 0.0, np.array([-1.0, 0, 1]))
    assert got == pytest.approx(statistics.interval(values), abs=1e-9)


def test_bca_of_degenerate_cases_is_finite():
    same = np.full(100, 0.5)
    assert statistics.bca_interval(same, 0.5, np.full(4, 0.5)) == (0.5, 0.5)
    values = np.linspace(0, 1, 101)
    low, high = statistics.bca_interval(values, 2.0, np.full(4, 2.0))  # beyond all resamples
    assert 0.8 < low <= high <= 1.0
    low, high = statistics.bca_interval(values, 0.99, np.array([0.0] * 9 + [90.0]))
    assert 0 <= low <= high <= 1


def test_paired_interval_equals_scipy_on_the_same_resamples():
    reference, first = _labels(80, 0.7)
    second = _labels(80, 0.6, seed=3)[1]
    named = {
        n: statistics.emotion_statistic(reference, p, 4) for n, p in enumerate((first, second))
    }
    values = statistics.bootstrap(named, resamples=999)
    rest = statistics.jackknife(named)
    one, two = (
        Seeds(
            np.array([named[n].point()["wa"]]), values[n]["wa"][None], (),
            rest.values[n]["wa"][None], rest.multiplicity,
        )
        for n in named
    )  # fmt: skip
    found = seeds.compare(one, two)
    data = (reference == first).astype(float), (reference == second).astype(float)
    drawn = values[0]["wa"] - values[1]["wa"]
    want = _scipy_interval(data, lambda a, b: a.mean() - b.mean(), drawn, "BCa")
    assert found.bca == found.interval("bca") == pytest.approx(tuple(want), abs=1e-9)
    assert (found.low, found.high) == found.interval() == statistics.interval(drawn)
    assert one.interval(method="bca") != one.interval()
    plain = Seeds(one.points, one.values)
    assert plain.interval(method="bca") == one.interval()
