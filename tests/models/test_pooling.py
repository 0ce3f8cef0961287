"""Pooling against per-utterance closed forms."""

import pytest
import torch

from espnet_adaltm.errors import UserError
from espnet_adaltm.models.pooling import POOLINGS, build_pooling

LENGTHS = torch.tensor([5, 3, 1])


@pytest.fixture
def frames():
    return torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))


def test_mean_is_the_mean_of_valid_frames(frames):
    pooled = build_pooling("mean", 4)(frames, LENGTHS)
    expected = torch.stack([row[:n].mean(0) for row, n in zip(frames, LENGTHS)])
    torch.testing.assert_close(pooled, expected)


def test_mean_std_is_mean_and_biased_deviation(frames):
    pooled = build_pooling("mean_std", 4)(frames[:2], LENGTHS[:2])
    rows = [row[:n] for row, n in zip(frames, LENGTHS[:2])]
    expected = torch.stack([torch.cat([r.mean(0), r.std(0, unbiased=False)]) for r in rows])
    torch.testing.assert_close(pooled, expected)


def test_attentive_follows_the_published_formula(frames):
    pooling = build_pooling("attentive", 4)
    z = frames[1, :3]
    a = torch.softmax(pooling.score(torch.tanh(pooling.project(z))), 0)
    mu = (a * z).sum(0)
    sigma = ((a * z.square()).sum(0) - mu.square()).clamp(min=1e-6).sqrt()
    pooled = pooling(frames, LENGTHS)[1]
    torch.testing.assert_close(pooled, torch.cat([mu, sigma]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", POOLINGS)
def test_padding_changes_neither_value_nor_gradient(kind, frames):
    pooling = build_pooling(kind, 4)
    short = frames[1:2, :3].clone().requires_grad_()
    padded = torch.cat([short.detach(), torch.full((1, 9, 4), 1e4)], 1).requires_grad_()
    first, second = pooling(short, torch.tensor([3])), pooling(padded, torch.tensor([3]))
    torch.testing.assert_close(first, second)
    first.square().sum().backward()
    second.square().sum().backward()
    torch.testing.assert_close(short.grad, padded.grad[:, :3])
    assert padded.grad[:, 3:].abs().max() == 0


@pytest.mark.parametrize("kind", POOLINGS)
def test_infinite_padding_and_single_frames_stay_finite(kind):
    frames = torch.full((1, 4, 4), torch.nan)
    frames[:, 0] = 2.0
    pooled = build_pooling(kind, 4)(frames, torch.tensor([1]))
    torch.testing.assert_close(pooled[0, :4], torch.full((4,), 2.0))
    assert pooled.isfinite().all()


def test_unknown_pooling_is_refused():
    with pytest.raises(UserError, match="pooling 'max' is unknown.*mean_std"):
        build_pooling("max", 4)
