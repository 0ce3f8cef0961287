"""HuBERT's pre-training objective: name the unit of each masked frame."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class MaskedPrediction(NamedTuple):
    """What the head says about one batch.

    Attributes:
        loss: Mean cross-entropy over the masked frames, nats, scalar.
        accuracy: Share of the masked frames whose unit was found, scalar, no gradient.
        frames: Number of masked frames, int64 scalar: the weight of both in a corpus mean.
    """

    loss: Tensor
    accuracy: Tensor
    frames: Tensor


class MaskedPredictionHead(nn.Module):
    """Cosine similarity to learned unit embeddings, over a temperature (HuBERT, 2106.07447).

    Args:
        dim: D, features per frame.
        units: Number of units.
        projection: Size of the space where the similarity is taken.
        temperature: HuBERT's 0.1.
    """

    def __init__(
        self, dim: int, units: int, projection: int = 256, temperature: float = 0.1
    ) -> None:
        super().__init__()
        self.project = nn.Linear(dim, projection)
        self.embeddings = nn.Parameter(torch.empty(units, projection).uniform_())
        self.temperature = temperature

    def logits(self, frames: Tensor) -> Tensor:
        """Map frames [..., D] to logits over the units [..., U]."""
        frames = functional.normalize(self.project(frames).float(), dim=-1)
        units = functional.normalize(self.embeddings.float(), dim=-1)
        return frames @ units.T / self.temperature

    def forward(self, hidden: Tensor, targets: Tensor, mask: Tensor) -> MaskedPrediction:
        """Score the masked frames.

        Args:
            hidden: Frames, shape [B, T, D].
            targets: Unit of each frame, shape [B, T]; negative where there is none (padding).
            mask: True where the encoder's input was masked, shape [B, T].
        """
        chosen = mask & (targets >= 0)
        logits = self.logits(hidden[chosen])
        wanted = targets[chosen].long()
        frames = chosen.sum()
        count = frames.clamp(min=1)
        # Sum over count, not "mean": no masked frame gives 0 with a graph instead of NaN.
        loss = functional.cross_entropy(logits, wanted, reduction="sum") / count
        accuracy = (logits.detach().argmax(-1) == wanted).sum() / count
        return MaskedPrediction(loss, accuracy, frames)
