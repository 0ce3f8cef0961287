"""Losses against hand-computed numbers."""

import math

import pytest
import torch
from torch.nn import functional

from espnet_adaltm.errors import UserError
from espnet_adaltm.models.losses import LOSSES, build_loss, class_weights

COUNTS = [60, 30, 10, 0]


def batch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 4, generator=generator)
    return logits, torch.softmax(torch.randn(5, 4, generator=generator), -1)


def test_class_balanced_weights_follow_the_published_code():
    beta = 99 / 100
    raw = [(1 - beta) / (1 - beta**n) if n else 0.0 for n in COUNTS]
    expected = torch.tensor([4 * value / sum(raw) for value in raw])
    weights = class_weights(COUNTS, "cb_soft_ce")
    torch.testing.assert_close(weights, expected)
    assert weights.sum().item() == pytest.approx(4)
    assert weights[3] == 0


def test_class_balanced_weights_of_a_large_corpus_are_accurate():
    """beta ** n in float32 would lose most digits here."""
    counts = [89_000, 700, 52]
    total = sum(counts)
    raw = [1 / total / -math.expm1(n * math.log1p(-1 / total)) for n in counts]
    weights = class_weights(counts, "cb_soft_ce")
    torch.testing.assert_close(weights, torch.tensor([3 * value / sum(raw) for value in raw]))
    assert weights[2] / weights[1] == pytest.approx(700 / 52, rel=0.01)


def test_inverse_frequency_weights_average_to_one_over_the_data():
    weights = class_weights(COUNTS, "weighted_ce")
    torch.testing.assert_close(weights, torch.tensor([100 / 180, 100 / 90, 100 / 30, 0.0]))
    assert (weights * torch.tensor(COUNTS)).sum().item() == pytest.approx(100)


def test_one_utterance_corpus():
    torch.testing.assert_close(class_weights([1, 0], "cb_soft_ce"), torch.tensor([2.0, 0.0]))


def test_cb_soft_ce_closed_form():
    logits, targets = batch()
    weights = class_weights(COUNTS, "cb_soft_ce")
    scale = (targets * weights).sum(-1)
    expected = scale * functional.cross_entropy(logits, targets, reduction="none")
    loss = build_loss("cb_soft_ce", COUNTS)(logits, targets)
    assert loss.shape == (5,)
    torch.testing.assert_close(loss, expected)


def test_weighted_ce_equals_torch_without_its_normalisation():
    logits, targets = batch()
    weights = class_weights(COUNTS, "weighted_ce")
    expected = functional.cross_entropy(logits, targets, weight=weights, reduction="none")
    torch.testing.assert_close(build_loss("weighted_ce", COUNTS)(logits, targets), expected)


def test_plain_ce_equals_torch():
    logits, targets = batch()
    expected = functional.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(build_loss("ce", COUNTS)(logits, targets), expected)


def test_focal_number_and_limit():
    logits = torch.tensor([[math.log(3.0), 0.0]])
    target = torch.tensor([[1.0, 0.0]])
    loss = build_loss("focal", [1, 1])(logits, target)
    assert loss.item() == pytest.approx(0.25**2 * -math.log(0.75), rel=1e-5)
    plain = build_loss("ce", [1, 1])(logits, target)
    torch.testing.assert_close(build_loss("focal", [1, 1], gamma=0.0)(logits, target), plain)


@pytest.mark.parametrize("kind", LOSSES)
def test_each_loss_is_finite_with_confident_logits_and_has_a_gradient(kind):
    logits = torch.tensor([[200.0, -200.0, 0.0, 0.0]], requires_grad=True)
    loss = build_loss(kind, COUNTS)(logits, torch.tensor([[0.0, 1.0, 0.0, 0.0]]))
    loss.sum().backward()
    assert loss.item() > 100
    assert logits.grad.isfinite().all()
    assert logits.grad[0, 1] < 0


def test_mistakes_are_told():
    with pytest.raises(UserError, match="loss 'mse' is unknown"):
        build_loss("mse", COUNTS)
    with pytest.raises(UserError, match="not all zero"):
        build_loss("cb_soft_ce", [0, 0])
