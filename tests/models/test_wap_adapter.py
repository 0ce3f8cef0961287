"""The adapter and its head: closed forms, padding, masks."""

import math

import pytest
import torch

from espnet_adaltm.errors import UserError
from espnet_adaltm.models.wap_adapter import AdapterConfig, WapAdapter, WapHead

CONFIG = AdapterConfig(dim=16, heads=4, feed_forward=32, dropout=0.1, kernel=5)


@pytest.fixture
def adapter():
    torch.manual_seed(0)
    return WapAdapter(8, CONFIG).eval()


def batch(*lengths):
    frames = torch.randn(len(lengths), max(lengths), 8, generator=torch.Generator().manual_seed(1))
    return frames, torch.tensor(lengths)


def test_number_of_parameters(adapter):
    width, inner = 16, 32
    layer = (
        4 * width * width  # attention
        + 4 * width
        + 2 * width * inner
        + inner
        + width
        + 4 * width  # two layer norms
    )
    front = 2 * 8 + 8 * width + width + width  # norm, projection, mask embedding
    position = width * (width // 4) * 5 + width
    assert sum(p.numel() for p in adapter.parameters()) == 3 * layer + front + position + 3


def test_output_is_the_weighted_sum_of_the_three_layers(adapter):
    features, lengths = batch(7)
    with torch.no_grad():
        adapter.layer_sum.weights.copy_(torch.tensor([0.0, math.log(2), math.log(5)]))
        layers = adapter.hidden(features, lengths)
        output = adapter(features, lengths)
    assert len(layers) == 4
    expected = (layers[1] + 2 * layers[2] + 5 * layers[3]) / 8
    assert len(output.hidden) == 1
    torch.testing.assert_close(output.hidden[0], expected)


def test_layers_are_applied_in_turn(adapter):
    features, lengths = batch(6)
    with torch.no_grad():
        layers = adapter.hidden(features, lengths)
        torch.testing.assert_close(adapter.layers[1](layers[1]), layers[2])


@pytest.mark.parametrize("grad", [False, True])
def test_padding_does_not_change_frames(adapter, grad):
    """With and without gradients: torch has another implementation for each."""
    features, lengths = batch(9, 4, 1)
    with torch.set_grad_enabled(grad):
        together = adapter(features, lengths).hidden[0].detach()
        noisy = features.clone()
        noisy[1, 4:] = 1000.0
        with_noise = adapter(noisy, lengths).hidden[0].detach()
        for row, size in enumerate(lengths.tolist()):
            alone = adapter(features[row : row + 1, :size], lengths[row : row + 1]).hidden[0]
            torch.testing.assert_close(together[row, :size], alone[0].detach(), atol=2e-6, rtol=0)
            torch.testing.assert_close(with_noise[row, :size], alone[0].detach(), atol=2e-6, rtol=0)


def test_a_masked_frame_is_not_seen(adapter):
    features, lengths = batch(9)
    mask = torch.zeros(1, 9, dtype=torch.bool)
    mask[0, 3:5] = True
    changed = features.clone()
    changed[0, 3:5] += 10.0
    with torch.no_grad():
        first = adapter(features, lengths, mask_time=mask).hidden[0]
        second = adapter(changed, lengths, mask_time=mask).hidden[0]
        third = adapter(changed, lengths).hidden[0]
    assert torch.equal(first, second)
    assert not torch.allclose(first, third)
    assert not torch.allclose(first[0, 3], first[0, 4])  # position is known


def test_gradients_reach_every_parameter(adapter):
    features, lengths = batch(9, 5)
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[:, 2] = True
    adapter.train()(features, lengths, mask_time=mask).hidden[0][0].square().sum().backward()
    for name, parameter in adapter.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().sum()) > 0, name


def test_scale_of_the_encoder_does_not_matter(adapter):
    features, lengths = batch(5)
    with torch.no_grad():
        first = adapter(features, lengths).hidden[0]
        second = adapter(features * 300, lengths).hidden[0]
    torch.testing.assert_close(first, second, atol=1e-3, rtol=0)


@torch.no_grad()
def test_attentive_pooling_by_its_formula():
    torch.manual_seed(0)
    head = WapHead(4, 3, hidden=6)
    frames = torch.randn(2, 5, 4)
    lengths = torch.tensor([5, 3])
    pooled = head.pooling(frames, lengths)
    weight, bias = head.pooling.project.weight, head.pooling.project.bias
    vector = head.pooling.score.weight[0]
    for row, size in enumerate(lengths.tolist()):
        scores = [float(vector @ torch.tanh(weight @ frames[row, t] + bias)) for t in range(size)]
        total = sum(math.exp(score) for score in scores)
        shares = [math.exp(score) / total for score in scores]
        for dim in range(4):
            values = frames[row, :size, dim].tolist()
            mean = sum(a * z for a, z in zip(shares, values))
            square = sum(a * z * z for a, z in zip(shares, values))
            assert float(pooled[row, dim]) == pytest.approx(mean, abs=1e-6)
            deviation = math.sqrt(max(square - mean**2, 1e-6))
            assert float(pooled[row, 4 + dim]) == pytest.approx(deviation, abs=1e-5)


def test_head_reads_the_last_hidden_state_without_padding():
    torch.manual_seed(0)
    head = WapHead(4, 3, hidden=6).eval()
    frames = torch.randn(2, 5, 4)
    lengths = torch.tensor([5, 3])
    logits = head([torch.zeros(1), frames], lengths)
    assert logits.shape == (2, 3)
    alone = head([frames[1:, :3]], lengths[1:])
    torch.testing.assert_close(logits[1:], alone)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dims": 8}, "unknown key 'dims'.*did you mean 'dim'"),
        ({"dim": 10, "heads": 4}, "dim 10 is not a multiple of heads 4"),
        ({"kernel": 4}, "kernel 4 is even"),
        ({"layers": 0}, "must be positive"),
    ],
)
def test_impossible_shapes_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        AdapterConfig.from_dict(values, "here")


def test_dropout_is_no_part_of_the_shape():
    one, other = (AdapterConfig.from_dict({"dropout": p}, "here") for p in (0.1, 0.3))
    assert one.shape() == other.shape()
    assert one.shape()["layers"] == 3
