import time

import numpy as np
import pytest

from espnet_adaltm.scoring import metrics, statistics
from espnet_adaltm.scoring.statistics import Seeds


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
    return statistics.compare(
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
    seeds = Seeds(np.array([0.4, 0.6]), np.array([[0.3, 0.5, 0.4], [0.5, 0.7, 0.8]]))
    assert seeds.mean == pytest.approx(0.5)
    assert seeds.std == pytest.approx(np.std([0.4, 0.6], ddof=1))
    np.testing.assert_allclose(seeds.pooled(), [0.4, 0.6, 0.6])
    assert Seeds(np.array([0.4]), np.zeros((1, 3))).std is None


def test_resampling_seeds_adds_their_variance():
    rng = np.random.default_rng(0)
    values = np.array([[0.1], [0.2], [0.6]]) + 0.01 * rng.standard_normal((1, 20_000))
    seeds = Seeds(values.mean(1), values)
    between = np.var([0.1, 0.2, 0.6]) / 3
    spread = seeds.pooled_hierarchical(seeds.draw(0)).var()
    assert spread == pytest.approx(between + 0.0001, rel=0.05)
    assert seeds.pooled().var() == pytest.approx(0.0001, rel=0.05)
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
    assert statistics.compare(first, second).p_seeds == pytest.approx(2 / 4001)
    swapped = _two_seeds(0.6, 0.4, (2, 1))
    assert statistics.compare(first, swapped).p_seeds == pytest.approx(2 / 4001)
    for names in ((3, 4), (1, 3), (1, 1), ()):
        other = _two_seeds(0.4, 0.6, names)
        assert statistics.compare(first, other).p_seeds == pytest.approx(10 / 16, abs=0.05), names
    single = Seeds(second.points[:1], second.values[:1], (1,))
    assert statistics.compare(first, single).p_seeds == pytest.approx(2 / 4001)
    alone = Seeds(np.array([0.55]), np.full((1, 4000), 0.55), (1,))  # below 0.5 in 1/4 of the draws
    assert statistics.compare(first, alone).p_seeds == pytest.approx(2 / 4, abs=0.05)


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


def test_four_thousand_utterances_and_a_thousand_resamples_are_fast():
    reference, prediction = _labels(4000, 0.6, 8)
    statistic = statistics.emotion_statistic(reference, prediction, 8)
    start = time.process_time()
    statistics.bootstrap({0: statistic}, resamples=1000)
    assert time.process_time() - start < 0.5
