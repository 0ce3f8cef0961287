"""The emotion heads that sit on an encoder's hidden states."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from espnet_adaltm.errors import UserError
from espnet_adaltm.models.layer_sum import LayerSum
from espnet_adaltm.models.pooling import MeanPooling, build_pooling

KINDS = ("convolutions", "projector", "vox_profile", "statistics")


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


class ProjectorHead(nn.Module):
    """Hugging Face's audio classification head: `WavLMForSequenceClassification`, layers weighted.

    Softmax-weighted sum of all L + 1 hidden states, the input of the first layer included; Linear
    D-H; masked mean over time; Linear H-C. Names, shapes and numbers are those of `transformers`
    (``use_weighted_layer_sum``), so that an export is a folder that its pipelines load.

    Args:
        num_layers: L, transformer layers of the encoder.
        dim: D, features per frame of the encoder.
        num_classes: C.
        hidden: H, ``classifier_proj_size``.
        dropout: Probability on the summed layers while training; ours, theirs has none.
        pooling: Only ``mean``.

    Raises:
        UserError: Another pooling.
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
        if pooling != "mean":
            raise UserError(f"the projector head takes the mean over time: not pooling {pooling!r}")
        self.layer_weights = nn.Parameter(torch.full((num_layers + 1,), 1 / (num_layers + 1)))
        self.dropout = nn.Dropout(dropout)
        self.projector = nn.Linear(dim, hidden)
        self.pooling = MeanPooling(hidden)
        self.classifier = nn.Linear(hidden, num_classes)

    def forward(self, hidden: Sequence[Tensor], lengths: Tensor) -> Tensor:
        """Classify utterances.

        Args:
            hidden: L + 1 hidden states, each [B, T, D].
            lengths: Valid frames, shape [B].

        Returns:
            Logits, shape [B, C].
        """
        shares = self.layer_weights.softmax(0)
        if len(hidden) != len(shares):
            raise ValueError(f"expected {len(shares)} hidden states, got {len(hidden)}")
        mixed = hidden[0] * shares[0]
        for index in range(1, len(hidden)):
            mixed = torch.addcmul(mixed, hidden[index], shares[index])
        return self.classifier(self.pooling(self.projector(self.dropout(mixed)), lengths))


def build_head(num_layers: int, dim: int, num_classes: int, **options: Any) -> nn.Module:
    """Make the emotion head that an expert's or merge's description (``head``) tells of.

    Args:
        num_layers: L, transformer layers of the encoder.
        dim: D, features per frame of the encoder.
        num_classes: C.
        options: ``kind``, ``convolutions`` (AdaLTM's, `EmotionHead`) unless given, ``projector``
            (`ProjectorHead`), or one of `foreign_heads`; and the arguments of that class.

    Raises:
        UserError: Unknown kind, or what it cannot do.
    """
    kind = options.pop("kind", KINDS[0])
    if kind not in KINDS:
        raise UserError(f"emotion head of kind {kind!r}: choose one of {', '.join(KINDS)}")
    from espnet_adaltm.models import foreign_heads

    build = {
        "convolutions": EmotionHead,
        "projector": ProjectorHead,
        "vox_profile": foreign_heads.VoxProfileHead,
        "statistics": foreign_heads.StatisticsHead,
    }[kind]
    return build(num_layers, dim, num_classes, **options)
