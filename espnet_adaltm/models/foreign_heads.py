"""Emotion heads of published models, so that their experts can be decoded here as they were there.

Their names of tensors are ours; `backbone.foreign` translates.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from espnet_adaltm.errors import UserError
from espnet_adaltm.models.emotion import EmotionHead
from espnet_adaltm.models.masks import length_mask

_EPS = 1e-5


class AllStatesSum(nn.Module):
    """Softmax-weighted sum of all L + 1 hidden states, the input of the first layer included.

    Args:
        num_states: L + 1.
    """

    def __init__(self, num_states: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(num_states))

    def forward(self, hidden: Sequence[Tensor]) -> Tensor:
        """Mix ``hidden``, L + 1 tensors [B, T, D], into [B, T, D]."""
        if len(hidden) != len(self.weights):
            raise ValueError(f"expected {len(self.weights)} hidden states, got {len(hidden)}")
        shares = self.weights.softmax(0)
        mixed = hidden[0] * shares[0]
        for share, state in zip(shares[1:], hidden[1:], strict=True):
            mixed = torch.addcmul(mixed, state, share)
        return mixed


class VoxProfileHead(EmotionHead):
    """Vox-Profile's emotion head (Feng et al. 2025): `EmotionHead` on all L + 1 hidden states.

    Args:
        num_layers: L.
        dim: D, features per frame.
        num_classes: C.
        hidden: H.
        dropout: Probability between the convolutions.
        pooling: ``mean`` is theirs.
    """

    def __init__(
        self,
        num_layers: int,
        dim: int,
        num_classes: int,
        hidden: int = 256,
        dropout: float = 0.1,
        pooling: str = "mean",
    ) -> None:
        super().__init__(num_layers, dim, num_classes, hidden, dropout, pooling)
        self.layer_sum = AllStatesSum(num_layers + 1)


class StatisticsHead(nn.Module):
    """Head of the MSP-Podcast challenges' baselines (Odyssey 2024, Interspeech 2025).

    On the last hidden state: attentive statistics pooling (`a_t = softmax(v' tanh(W x_t + b))`, W
    of size D x D; weighted mean and deviation), Linear 2D-H, layer norm, ReLU, dropout, Linear H-C.

    Args:
        num_layers: L; not used.
        dim: D, features per frame.
        num_classes: C.
        hidden: H.
        dropout: Probability before both linear layers.
        pooling: Only ``attentive``.

    Raises:
        UserError: Another pooling.
    """

    def __init__(
        self,
        num_layers: int,
        dim: int,
        num_classes: int,
        hidden: int = 1024,
        dropout: float = 0.5,
        pooling: str = "attentive",
    ) -> None:
        super().__init__()
        if pooling != "attentive":
            raise UserError(f"the challenge baseline's head pools attentively, not by {pooling!r}")
        self.project = nn.Linear(dim, dim)
        self.score = nn.Linear(dim, 1, bias=False)
        self.output = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(2 * dim, hidden),
            nn.LayerNorm(hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, num_classes),
        )

    def forward(self, hidden: Sequence[Tensor], lengths: Tensor) -> Tensor:
        """Classify utterances.

        Args:
            hidden: L + 1 hidden states, each [B, T, D].
            lengths: Valid frames, shape [B].

        Returns:
            Logits, shape [B, C].
        """
        frames = hidden[-1]
        mask = length_mask(lengths.clamp(min=1), frames.shape[1])[..., None]
        frames = frames.masked_fill(~mask, 0.0)
        scores = self.score(torch.tanh(self.project(frames)))
        shares = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(dim=1)
        mean = (shares * frames).sum(1)
        variance = (shares * (frames - mean[:, None]).square()).sum(1)
        return self.output(torch.cat([mean, variance.clamp(min=_EPS).sqrt()], dim=-1))
