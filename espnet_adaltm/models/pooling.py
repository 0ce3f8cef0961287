"""From frames to one vector per utterance; padding never takes part."""

import torch
from torch import Tensor, nn

from espnet_adaltm.errors import UserError
from espnet_adaltm.models.masks import length_mask

POOLINGS = ("mean", "mean_std", "attentive")
_EPS = 1e-6


def _weighted_moments(frames: Tensor, weights: Tensor) -> Tensor:
    """Mean and standard deviation under weights [B, T, 1] that sum to one over time: [B, 2D].

    The variance is taken around the mean, which equals `sum a z^2 - mu^2` without its cancellation.
    """
    mean = (weights * frames).sum(1)
    variance = (weights * (frames - mean[:, None]).square()).sum(1)
    return torch.cat([mean, variance.clamp(min=_EPS).sqrt()], dim=-1)


class MeanPooling(nn.Module):
    """Masked mean over time (AdaLTM's read-out)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.output_dim = dim

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Pool ``frames`` [B, T, D] with ``lengths`` [B] (frames) into [B, D]."""
        mask = length_mask(lengths, frames.shape[1])[..., None]
        total = frames.masked_fill(~mask, 0.0).sum(1)
        return total / lengths.clamp(min=1).to(total.dtype)[:, None]


class MeanStdPooling(nn.Module):
    """Masked mean and (biased) standard deviation over time."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.output_dim = 2 * dim

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Pool ``frames`` [B, T, D] with ``lengths`` [B] (frames) into [B, 2D]."""
        mask = length_mask(lengths, frames.shape[1])[..., None]
        weights = mask.to(frames.dtype) / lengths.clamp(min=1).to(frames.dtype)[:, None, None]
        return _weighted_moments(frames.masked_fill(~mask, 0.0), weights)


class AttentivePooling(nn.Module):
    """Statistical attentive pooling (SAP).

    `a_t = softmax(v' tanh(W z_t + b))`, `mu = sum a_t z_t`,
    `sigma = sqrt(max(sum a_t z_t^2 - mu^2, eps))`, output `[mu; sigma]`.

    Args:
        dim: D, features per frame.
        attention_dim: Rows of W.
    """

    def __init__(self, dim: int, attention_dim: int = 128) -> None:
        super().__init__()
        self.output_dim = 2 * dim
        self.project = nn.Linear(dim, attention_dim)
        self.score = nn.Linear(attention_dim, 1, bias=False)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Pool ``frames`` [B, T, D] with ``lengths`` [B] (frames) into [B, 2D]."""
        mask = length_mask(lengths.clamp(min=1), frames.shape[1])[..., None]
        frames = frames.masked_fill(~mask, 0.0)
        scores = self.score(torch.tanh(self.project(frames)))
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        return _weighted_moments(frames, scores.softmax(dim=1))


def build_pooling(kind: str, dim: int) -> nn.Module:
    """Make a pooling; its attribute ``output_dim`` is the size of its vector.

    Args:
        kind: ``mean`` [D], ``mean_std`` [2D] or ``attentive`` [2D].
        dim: D, features per frame.

    Raises:
        UserError: Unknown kind.
    """
    classes = {"mean": MeanPooling, "mean_std": MeanStdPooling, "attentive": AttentivePooling}
    if kind not in classes:
        raise UserError(f"pooling {kind!r} is unknown: choose one of {', '.join(POOLINGS)}")
    return classes[kind](dim)
