"""CTC against enumeration of all paths."""

import itertools
import logging
import math

import pytest
import torch

from espnet_adaltm.models.ctc import CTCHead, required_frames


def head_with(logits_dim=3, dim=4):
    torch.manual_seed(0)
    return CTCHead(dim, logits_dim)


def collapse(path):
    return [token for token, _ in itertools.groupby(path) if token != 0]


def enumerated(log_probs, target):
    """- log of the summed probability of every path that collapses to ``target``."""
    frames, vocab = log_probs.shape
    scores = [
        sum(log_probs[t, token].item() for t, token in enumerate(path))
        for path in itertools.product(range(vocab), repeat=frames)
        if collapse(path) == target
    ]
    return -math.log(sum(map(math.exp, scores)))


def test_loss_equals_enumeration_and_ignores_padding():
    head = head_with()
    hidden = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(3))
    lengths, targets = torch.tensor([5, 4]), torch.tensor([[1, 1, 2], [2, -1, -1]])
    target_lengths = torch.tensor([3, 1])
    loss = head.loss(hidden, lengths, targets, target_lengths)
    log_probs = head(hidden).log_softmax(-1)
    expected = [enumerated(log_probs[0], [1, 1, 2]), enumerated(log_probs[1, :4], [2])]
    assert loss.tolist() == pytest.approx(expected, rel=1e-5)
    changed = hidden.clone()
    changed[1, 4:] = 99.0
    torch.testing.assert_close(head.loss(changed, lengths, targets, target_lengths), loss)
    assert head.too_short == 0


def test_too_short_input_costs_nothing_and_is_counted(caplog):
    head = head_with()
    hidden = torch.randn(2, 3, 4)
    targets, target_lengths = torch.tensor([[1, 1, 2], [1, 2, 1]]), torch.tensor([3, 3])
    with caplog.at_level(logging.WARNING):
        loss = head.loss(hidden, torch.tensor([3, 3]), targets, target_lengths)
    assert loss[0] == 0  # [1, 1, 2] needs a blank between its ones: four frames
    assert loss[1] > 0
    assert head.too_short == 1
    assert "1 utterances so far have fewer frames" in caplog.text
    loss.sum().backward()
    assert head.linear.weight.grad.isfinite().all()


def test_required_frames_counts_repeats_inside_the_target_only():
    targets = torch.tensor([[1, 1, 1], [1, 2, 2], [3, 3, 3]])
    assert required_frames(targets, torch.tensor([3, 2, 1])).tolist() == [5, 2, 1]
    assert required_frames(targets[:, :1], torch.tensor([1, 0, 1])).tolist() == [1, 0, 1]


def test_greedy_collapses_repeats_removes_blanks_and_stops_at_the_length():
    path = torch.tensor([[1, 1, 0, 1, 2, 2, 0], [0, 0, 2, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0]])
    logits = torch.nn.functional.one_hot(path, 3).float()
    assert CTCHead.greedy(logits, torch.tensor([7, 3, 7])) == [[1, 1, 2], [2], []]
