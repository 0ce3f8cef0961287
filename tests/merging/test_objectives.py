"""What coefficients are learned from, against numbers worked out by hand."""

import math

import pytest
import torch

from espnet_adaltm.merging import objectives


def test_entropy_of_known_distributions():
    logits = torch.tensor([[0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3], [1.0, 1e-9, 1e-9]]).log()
    expected = [1.5 * math.log(2), math.log(3), 0.0]
    assert objectives.entropy(logits).tolist() == pytest.approx(expected, abs=1e-6)
    assert objectives.entropy(logits + 7).tolist() == pytest.approx(expected, abs=1e-6)


def test_gradient_of_entropy_is_that_of_its_formula():
    logits = torch.tensor([[0.3, -1.0, 0.8]], dtype=torch.float64, requires_grad=True)
    objectives.entropy(logits).sum().backward()
    p = logits.detach().softmax(-1)
    entropy = -(p * p.log()).sum()
    torch.testing.assert_close(logits.grad, -p * (p.log() + entropy), atol=1e-6, rtol=1e-5)


def test_ctc_counts_per_token_and_leaves_out_what_has_no_transcript():
    nats, tokens = torch.tensor([12.0, 5.0, 9.0]), torch.tensor([4, 0, 9])
    assert objectives.ctc_per_token(nats, tokens).tolist() == [3.0, 0.0, 1.0]


def test_mean_over_valid_frames_ignores_padding():
    values = torch.tensor([[1.0, 2.0, torch.nan], [1.0, 2.0, 6.0]])
    assert objectives.valid_mean(values, torch.tensor([2, 3])).tolist() == [1.5, 3.0]


def test_divergence_of_known_distributions():
    teacher = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    student = torch.tensor([[0.25, 0.75], [0.9, 0.1]]).log().requires_grad_()
    value = objectives.divergence(student, teacher)
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert value.tolist() == pytest.approx([expected, 0.0], abs=1e-7)
    value.sum().backward()  # d KL / d z = q - p
    assert student.grad[0].tolist() == pytest.approx([-0.25, 0.25], abs=1e-6)


def test_no_gradient_reaches_the_teacher():
    student, teacher = (torch.randn(2, 3, requires_grad=True) for _ in range(2))
    objectives.divergence(student, teacher).sum().backward()
    hidden = [torch.randn(1, 2, 4, requires_grad=True) for _ in range(4)]
    objectives.hidden_distance(hidden[:2], hidden[2:], torch.tensor([2])).sum().backward()
    assert teacher.grad is None
    assert hidden[3].grad is None
    assert hidden[1].grad is not None


def test_distance_of_hidden_states_by_hand():
    # Two features: layer normalisation leaves only their order, (1, -1) or (-1, 1).
    up, down = torch.tensor([[[0.0, 1.0]] * 3]), torch.tensor([[[5.0, 2.0]] * 3])
    mixed = torch.cat([up[:, :1], down[:, :1], up[:, :1]], 1)
    student, teacher = [down, up, up], [up, mixed, up]
    lengths = torch.tensor([2])
    # layer 1: 4 at one of two valid frames; layer 2: 0; the input of layer 1 is not compared
    value = objectives.hidden_distance(student, teacher, lengths)
    assert value.tolist() == pytest.approx([1.0], abs=1e-4)
    same = objectives.hidden_distance(teacher, [3 * x + 1 for x in teacher], lengths)
    assert same.tolist() == pytest.approx([0.0], abs=1e-4)
    assert objectives.hidden_distance(teacher, teacher, lengths).tolist() == [0.0]
