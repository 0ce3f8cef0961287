"""HuBERT's objective."""

import pytest
import torch
from torch.nn import functional

from espnet_adaltm.models.masked_prediction import MaskedPredictionHead


@pytest.fixture
def head():
    torch.manual_seed(0)
    return MaskedPredictionHead(6, 5, projection=8)


def test_loss_and_accuracy_over_masked_frames_only(head):
    hidden = torch.randn(2, 4, 6)
    targets = torch.tensor([[0, 1, 2, 3], [4, 0, -1, -1]])
    mask = torch.tensor([[True, False, True, False], [True, False, True, False]])
    result = head(hidden, targets, mask)
    losses, hits = [], []
    for b, t in ((0, 0), (0, 2), (1, 0)):
        projected = head.project(hidden[b, t])
        cosines = torch.stack(
            [functional.cosine_similarity(projected, unit, dim=0) for unit in head.embeddings]
        )
        losses.append(-(cosines / 0.1).log_softmax(0)[targets[b, t]])
        hits.append(float(cosines.argmax() == targets[b, t]))
    assert result.frames == 3
    torch.testing.assert_close(result.loss, torch.stack(losses).mean())
    assert result.accuracy.item() == pytest.approx(sum(hits) / 3)


def test_perfect_prediction_has_accuracy_one(head):
    with torch.no_grad():
        head.embeddings.copy_(torch.eye(5, 8))
        head.project.weight.copy_(torch.eye(8, 6))
        head.project.bias.zero_()
    hidden = torch.eye(6)[None, :5]
    result = head(hidden, torch.arange(5)[None], torch.ones(1, 5, dtype=torch.bool))
    assert result.accuracy == 1
    expected = -torch.log_softmax(torch.tensor([10.0, 0.0, 0.0, 0.0, 0.0]), 0)[0]
    torch.testing.assert_close(result.loss, expected, atol=1e-6, rtol=1e-3)


def test_no_masked_frame_gives_zero_with_a_graph(head):
    targets, mask = torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, 3, dtype=torch.bool)
    result = head(torch.randn(1, 3, 6), targets, mask)
    result.loss.backward()
    assert result.loss == 0
    assert result.frames == 0
    assert head.embeddings.grad.abs().sum() == 0
