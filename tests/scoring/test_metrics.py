import jiwer
import numpy as np
import pytest
from sklearn import metrics as sk

from espnet_adaltm.errors import UserError
from espnet_adaltm.scoring import metrics


def _random(num_classes: int, present: int, size: int = 300):
    rng = np.random.default_rng(num_classes)
    return rng.integers(present, size=size), rng.integers(num_classes, size=size)


@pytest.mark.parametrize(("num_classes", "present"), [(4, 4), (8, 8), (8, 5), (3, 1)])
def test_metrics_equal_sklearn_with_absent_classes(num_classes, present):
    reference, prediction = _random(num_classes, present)
    options = {"labels": range(num_classes), "zero_division": 0}
    confusion = metrics.confusion_matrix(reference, prediction, num_classes)
    got = metrics.emotion_metrics(confusion)
    expected = {
        "macro_f1": sk.f1_score(reference, prediction, average="macro", **options),
        "uar": sk.recall_score(reference, prediction, average="macro", **options),
        "wa": sk.accuracy_score(reference, prediction),
        "weighted_f1": sk.f1_score(reference, prediction, average="weighted", **options),
        "macro_precision": sk.precision_score(reference, prediction, average="macro", **options),
    }
    assert set(got) == set(metrics.EMOTION_METRICS) == set(expected)
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, abs=1e-12), name
    np.testing.assert_array_equal(
        confusion, sk.confusion_matrix(reference, prediction, labels=range(num_classes))
    )


def test_hand_computed_example():
    # class 0: 2 of 3 right; class 1: 1 of 1 right but one false alarm; class 2 absent
    confusion = metrics.confusion_matrix(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]), 3)
    got = metrics.emotion_metrics(confusion)
    assert got["uar"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert got["macro_f1"] == pytest.approx((0.8 + 2 / 3 + 0) / 3)
    assert got["macro_precision"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert got["wa"] == 0.75
    assert metrics.absent_classes(confusion, ["a", "b", "c"]) == ["c"]
    assert metrics.per_class(confusion, ["a", "b", "c"])["a"] == {
        "precision": 1.0,
        "recall": pytest.approx(2 / 3),
        "f1": pytest.approx(0.8),
        "support": 3,
    }


def test_metrics_broadcast_over_leading_axes():
    rng = np.random.default_rng(0)
    stack = rng.integers(0, 9, size=(5, 2, 4, 4))
    got = metrics.emotion_metrics(stack)["macro_f1"]
    assert got.shape == (5, 2)
    assert got[3, 1] == metrics.emotion_metrics(stack[3, 1])["macro_f1"]


def test_confusion_matrix_refuses_bad_indices():
    with pytest.raises(ValueError, match="outside 0..2"):
        metrics.confusion_matrix(np.array([0, 3]), np.array([0, 1]), 3)
    with pytest.raises(ValueError, match="shapes differ"):
        metrics.confusion_matrix(np.array([0]), np.array([0, 1]), 3)


def test_error_counts_of_known_edits():
    got = metrics.error_counts(["a b c", "d e", "", "x"], ["a x c y", "e", "q q", ""])
    assert got.substitutions.tolist() == [1, 0, 0, 0]
    assert got.deletions.tolist() == [0, 1, 0, 1]
    assert got.insertions.tolist() == [1, 0, 2, 0]
    assert got.correct.tolist() == [2, 1, 0, 0]
    assert got.lengths.tolist() == [3, 2, 0, 1]
    assert got.errors.tolist() == [2, 1, 2, 1]


@pytest.mark.parametrize("unit", ["word", "char"])
def test_error_counts_equal_jiwer(unit):
    rng = np.random.default_rng(1)
    words = ["the", "red", "door", "is", "shut", "now"]
    references = [" ".join(rng.choice(words, rng.integers(1, 9))) for _ in range(60)]
    hypotheses = [" ".join(rng.choice(words, rng.integers(0, 9))) for _ in range(60)]
    got = metrics.error_counts(references, hypotheses, unit)
    process = jiwer.process_words if unit == "word" else jiwer.process_characters
    for index, (reference, hypothesis) in enumerate(zip(references, hypotheses)):
        want = process(reference, hypothesis)
        edits = want.substitutions + want.deletions + want.insertions
        assert got.errors[index] == edits
        assert got.correct[index] == want.hits
    rate = jiwer.wer if unit == "word" else jiwer.cer
    expected = rate(references, hypotheses)
    assert got.errors.sum() / got.lengths.sum() == pytest.approx(expected, abs=1e-12)


def test_character_counts_ignore_extra_blanks():
    got = metrics.error_counts(["ab  c"], ["ab c"], "char")
    assert got.errors.tolist() == [0]
    assert got.lengths.tolist() == [4]
    with pytest.raises(ValueError, match="unit"):
        metrics.error_counts(["a"], ["a"], "phone")


def test_error_table_has_espnet_columns():
    counts = metrics.error_counts(["a b c d", "e"], ["a b x", "e"])
    assert metrics.error_table(counts) == {
        "Snt": 2,
        "Wrd": 5,
        "Corr": 60.0,
        "Sub": 20.0,
        "Del": 20.0,
        "Ins": 0.0,
        "Err": 40.0,
        "S.Err": 50.0,
    }
    with pytest.raises(UserError, match="empty"):
        metrics.error_table(metrics.error_counts([""], ["a"]))
