"""Layer sum and emotion head."""

import pytest
import torch

from espnet_adaltm.errors import UserError
from espnet_adaltm.models.emotion import EmotionHead, PointwiseConv, ProjectorHead, build_head
from espnet_adaltm.models.layer_sum import LayerSum
from espnet_adaltm.models.pooling import POOLINGS

BASE_PARAMETERS = 315_453_120  # WavLM-Large
FRONT_AND_LAYERS = 25


def hidden_states(layers=3, batch=2, frames=6, dim=8):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(batch, frames, dim, generator=generator) for _ in range(layers + 1)]


def test_layer_sum_is_the_softmax_weighted_sum_without_the_input():
    hidden = hidden_states()
    mix = LayerSum(3)
    with torch.no_grad():
        mix.weights.copy_(torch.tensor([0.0, 1.0, 2.0]))
    shares = torch.softmax(torch.tensor([0.0, 1.0, 2.0]), 0)
    expected = sum(share * layer for share, layer in zip(shares, hidden[1:]))
    torch.testing.assert_close(mix(hidden), expected)


def test_layer_sum_starts_as_the_average_and_refuses_another_depth():
    hidden = hidden_states()
    torch.testing.assert_close(LayerSum(3)(hidden), torch.stack(hidden[1:]).mean(0))
    with pytest.raises(ValueError, match="expected 4 layers"):
        LayerSum(4)(hidden)


def test_parameter_count_reproduces_the_paper():
    """0.46 M trainable = 0.1463 % of 315.9 M, with 9 outputs and 50 coefficients."""
    head = sum(p.numel() for p in EmotionHead(24, 1024, 9).parameters())
    assert head == 462_089 + 24
    trained = head + 2 * FRONT_AND_LAYERS
    total = BASE_PARAMETERS + trained
    assert round(trained / 1e6, 2) == 0.46
    assert round(total / 1e6, 1) == 315.9
    assert round(100 * trained / total, 4) == 0.1463


def test_pointwise_convolution_equals_conv1d():
    layer = PointwiseConv(8, 5)
    frames = hidden_states()[0]
    torch.testing.assert_close(
        layer(frames), torch.nn.Conv1d.forward(layer, frames.transpose(1, 2)).transpose(1, 2)
    )


@pytest.mark.parametrize("pooling", POOLINGS)
def test_logits_and_gradients_do_not_depend_on_padding(pooling):
    torch.manual_seed(0)
    head = EmotionHead(3, 8, 4, hidden=16, pooling=pooling).eval()
    hidden = hidden_states()
    lengths = torch.tensor([6, 4])
    padded = [torch.cat([h, torch.full((2, 5, 8), 50.0)], 1) for h in hidden]
    for layer in padded:
        layer[1, 4:] = -30.0
    both = []
    for states in (hidden, padded):
        head.zero_grad()
        logits = head(states, lengths)
        logits.square().sum().backward()
        both.append((logits.detach(), [p.grad.clone() for p in head.parameters()]))
    torch.testing.assert_close(both[0][0], both[1][0])
    for first, second in zip(both[0][1], both[1][1]):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


def test_projector_head_is_that_of_transformers():
    """The same numbers as `WavLMForSequenceClassification` computes behind its encoder."""
    torch.manual_seed(0)
    head = build_head(3, 8, 4, kind="projector", hidden=5).eval()
    hidden = hidden_states()
    lengths = torch.tensor([6, 4])
    with torch.no_grad():
        head.layer_weights.copy_(torch.tensor([0.3, -1.0, 2.0, 0.1]))
    shares = head.layer_weights.softmax(-1)
    mixed = (torch.stack(hidden, 1) * shares.view(-1, 1, 1)).sum(1)
    expected = torch.stack(
        [
            head.classifier(head.projector(row[:length]).mean(0))
            for row, length in zip(mixed, lengths.tolist())
        ]
    )
    torch.testing.assert_close(head(hidden, lengths), expected)
    with pytest.raises(ValueError, match="expected 4 hidden states, got 3"):
        head(hidden[1:], lengths)


def test_heads_are_made_by_their_description():
    assert isinstance(build_head(2, 8, 3), EmotionHead)
    assert isinstance(build_head(2, 8, 3, kind="convolutions", pooling="mean_std"), EmotionHead)
    assert isinstance(build_head(2, 8, 3, kind="projector"), ProjectorHead)
    with pytest.raises(UserError, match="kind 'linear': choose one of convolutions, projector"):
        build_head(2, 8, 3, kind="linear")
    with pytest.raises(UserError, match="mean over time: not pooling 'attentive'"):
        build_head(2, 8, 3, kind="projector", pooling="attentive")
