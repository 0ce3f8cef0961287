"""Counts give the metrics of the whole set, however it is cut."""

import jiwer
import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, recall_score

from espnet_adaltm.training.metrics import (
    ClassificationMetric,
    Metrics,
    TranscriptMetric,
    UnitMetric,
)


def sample(seed, size=101, classes=4):
    generator = torch.Generator().manual_seed(seed)
    reference = torch.randint(classes - 1, (size,), generator=generator)  # the last class is absent
    return torch.randint(classes, (size,), generator=generator), reference


@pytest.mark.parametrize("batch", [1, 7, 101])
def test_classification_equals_sklearn_for_every_batching(batch):
    predicted, reference = sample(0)
    metric = ClassificationMetric(4)
    for start in range(0, 101, batch):
        metric.update(predicted[start : start + batch], reference[start : start + batch])
    options = {"labels": range(4), "average": "macro", "zero_division": 0}
    values = metric.compute()
    assert values["macro_f1"] == pytest.approx(f1_score(reference, predicted, **options), abs=1e-12)
    assert values["uar"] == pytest.approx(recall_score(reference, predicted, **options), abs=1e-12)
    assert values["acc"] == pytest.approx(accuracy_score(reference, predicted), abs=1e-12)


def test_mean_over_batches_would_be_another_number():
    predicted, reference = sample(0)
    metric, parts = ClassificationMetric(4), []
    for start in range(0, 101, 10):
        metric.reset()
        metric.update(predicted[start : start + 10], reference[start : start + 10])
        parts.append(metric.compute()["macro_f1"])
    whole = ClassificationMetric(4)
    whole.update(predicted, reference)
    assert abs(np.mean(parts) - whole.compute()["macro_f1"]) > 0.01


def test_counts_of_two_ranks_add_up():
    predicted, reference = sample(1)
    whole, halves = ClassificationMetric(4), [ClassificationMetric(4) for _ in range(2)]
    whole.update(predicted, reference)
    for rank, half in enumerate(halves):
        half.update(predicted[rank::2], reference[rank::2])
    assert torch.equal(halves[0].counts + halves[1].counts, whole.counts)


def test_reset_forgets_everything():
    metric = ClassificationMetric(4)
    metric.update(*sample(0))
    metric.reset()
    assert metric.compute() == {}


def test_error_rates_equal_jiwer():
    references = ["a b c", "hello big world", "x"]
    guesses = ["a c", "hello  bag world yes", "x"]
    metric = TranscriptMetric()
    for guess, reference in zip(guesses, references):
        metric.update([guess], [reference])
    values = metric.compute()
    assert values["wer"] == pytest.approx(jiwer.wer(references, guesses))
    plain = [" ".join(guess.split()) for guess in guesses]
    assert values["cer"] == pytest.approx(jiwer.cer(references, plain))


def test_unit_accuracy_weights_batches_by_frames():
    metric = UnitMetric()
    metric.update(torch.tensor(9.0), torch.tensor(10))
    metric.update(0, 90)
    assert metric.compute() == {"acc": 0.09}
    metric.reset()
    assert metric.compute() == {}


def test_several_metrics_are_counted_and_forgotten_together():
    emotions, words = ClassificationMetric(2), TranscriptMetric()
    both = Metrics(emotions, words)
    emotions.update(torch.tensor([0, 1]), torch.tensor([0, 0]))
    words.update(["a b"], ["a c"])
    assert both.compute() == {**emotions.compute(), **words.compute()}
    assert both.compute()["wer"] == 0.5
    assert both.compute()["acc"] == 0.5
    both.reset()
    assert both.compute() == {}
