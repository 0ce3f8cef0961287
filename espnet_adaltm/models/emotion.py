"""The emotion head that sits on an encoder's hidden states."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from espnet_adaltm.models.layer_sum import LayerSum
from espnet_adaltm.models.pooling import build_pooling


class PointwiseConv(nn.Conv1d):
    """Kernel-1 Conv1d on [B, T, C]: a convolution's parameters, a matrix product's speed."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1)

    def forward(self, frames: Tensor) -> Tensor:
        """Map ``frames`` [B, T, C_in] to [B, T, C_out]."""
        return functional.linear(frames, self.weight.squeeze(-1), self.bias)


class EmotionHead(nn.Module):
    """Layer sum, three pointwise convolutions, masked pooling, two linear layers.

    The layout is inferred from AdaLTM's printed parameter count (see `systems.md`, "Head"):
    Conv1d D-H-H-H with ReLU and dropout between, pooling, Linear H-H, ReLU, Linear H-C.

    Args:
        num_layers: L, transformer layers of the encoder.
        dim: D, features per frame of the encoder.
        num_classes: C.
        hidden: H.
        dropout: Probability between the convolutions.
        pooling: ``mean`` (the paper's), ``mean_std`` or ``attentive``; the last two give 2H values.
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
        super().__init__()
        self.layer_sum = LayerSum(num_layers)
        self.frame_net = nn.Sequential(
            PointwiseConv(dim, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            PointwiseConv(hidden, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            PointwiseConv(hidden, hidden),
        )
        self.pooling = build_pooling(pooling, hidden)
        self.output = nn.Sequential(
            nn.Linear(self.pooling.output_dim, hidden),
            nn.ReLU(),
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
        frames = self.frame_net(self.layer_sum(hidden))
        return self.output(self.pooling(frames, lengths))
