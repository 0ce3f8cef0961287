"""Learned mixture of an encoder's layers."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class LayerSum(nn.Module):
    """Softmax-normalised weighted sum of the transformer layers' outputs (AdaLTM's alpha).

    Starts as the plain average.

    Args:
        num_layers: L, the number of transformer layers.
    """

    def __init__(self, num_layers: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(num_layers))

    def forward(self, hidden: Sequence[Tensor]) -> Tensor:
        """Mix ``hidden``, L + 1 tensors [B, T, D], into [B, T, D].

        ``hidden[0]``, the input of the first layer, is left out, as in the paper.
        """
        layers = hidden[1:]
        if len(layers) != len(self.weights):
            raise ValueError(f"expected {len(self.weights)} layers + the input, got {len(hidden)}")
        shares = self.weights.softmax(0)
        # Adding in turn: stacking first would hold every layer a second time.
        mixed = layers[0] * shares[0]
        for share, layer in zip(shares[1:], layers[1:], strict=True):
            mixed = torch.addcmul(mixed, layer, share)
        return mixed
