"""WAP-Transformer: a small Transformer on a frozen encoder's frames (Song et al., 2509.23795).

    Z = sum_l w_l X_l,   X_l = Transformer(X_{l-1}),   l = 1..3                               [P]

[P] is what the paper states: three layers, the learned weighted sum, statistical attentive pooling
(SAP) of Z, a frozen encoder. Ours, because the paper gives no more: a layer norm and a projection
in front (encoders scale their frames very differently), pre-norm layers, softmax-normalised
weights, a convolution that tells positions (frames of the encoder know theirs, a masked frame knows
nothing), two linear layers behind the pooling.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from espnet_adaltm.backbone.encoder import EncoderOutput
from espnet_adaltm.config import check_keys
from espnet_adaltm.errors import UserError
from espnet_adaltm.models.layer_sum import LayerSum
from espnet_adaltm.models.masks import length_mask
from espnet_adaltm.models.pooling import build_pooling


@dataclass(frozen=True)
class AdapterConfig:
    """Shape of an adapter.

    Attributes:
        layers: Transformer layers, the paper's 3.
        dim: W, width.
        heads: Attention heads.
        feed_forward: Width of the hidden layer after the attention.
        dropout: Probability; it may differ between adapter training and fine-tuning.
        kernel: Frames that the positional convolution sees, odd.
    """

    layers: int = 3
    dim: int = 256
    heads: int = 4
    feed_forward: int = 1024
    dropout: float = 0.1
    kernel: int = 31

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> "AdapterConfig":
        """Check ``values`` and fill in the defaults.

        Raises:
            UserError: An unknown name, or values that do not fit together.
        """
        check_keys(values, cls.__dataclass_fields__, where)
        config = cls(**values)
        if config.dim % config.heads:
            raise UserError(f"{where}: dim {config.dim} is not a multiple of heads {config.heads}")
        if config.kernel % 2 == 0:
            raise UserError(
                f"{where}: kernel {config.kernel} is even: give an odd number of frames"
            )
        if min(config.layers, config.dim, config.feed_forward, config.kernel) < 1:
            raise UserError(f"{where}: layers, dim, feed_forward and kernel must be positive")
        return config

    def shape(self) -> dict[str, int]:
        """Everything that the parameters' shapes (or what they mean) depend on."""
        return {name: value for name, value in asdict(self).items() if name != "dropout"}


class WapAdapter(nn.Module):
    """Frozen frames to adapted frames; called like a `SpeechEncoder` whose only layer is Z.

    Args:
        input_dim: D, features of a frozen frame.
        config: The shape.
    """

    def __init__(self, input_dim: int, config: AdapterConfig) -> None:
        super().__init__()
        self.config = config
        width = config.dim
        self.project = nn.Sequential(nn.LayerNorm(input_dim), nn.Linear(input_dim, width))
        self.mask_embedding = nn.Parameter(torch.empty(width).uniform_(-0.5, 0.5))
        self.position = nn.Conv1d(
            width, width, config.kernel, padding=config.kernel // 2, groups=config.heads
        )
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width,
                config.heads,
                config.feed_forward,
                config.dropout,
                activation=functional.gelu,
                batch_first=True,
                norm_first=True,
            )
            for _ in range(config.layers)
        )
        self.layer_sum = LayerSum(config.layers)

    def hidden(
        self, features: Tensor, lengths: Tensor, mask_time: Tensor | None = None
    ) -> list[Tensor]:
        """X_0 (after projection and position) to X_L, each [B, T, W].

        Args:
            features: Frames of the frozen encoder, [B, T, D].
            lengths: Valid frames, [B].
            mask_time: Frames that the mask embedding replaces, bool [B, T].
        """
        x = self.project(features)
        if mask_time is not None:
            x = torch.where(mask_time[..., None], self.mask_embedding.to(x.dtype), x)
        valid = length_mask(lengths, x.shape[1])
        x = x * valid[..., None]  # the convolution must not see padding
        x = x + functional.gelu(self.position(x.transpose(1, 2))).transpose(1, 2)
        padding = None if bool(valid.all()) else ~valid
        hidden = [x]
        for layer in self.layers:
            hidden.append(layer(hidden[-1], src_key_padding_mask=padding))
        return hidden

    def forward(
        self, features: Tensor, lengths: Tensor, *, mask_time: Tensor | None = None
    ) -> EncoderOutput:
        """Z [B, T, W] as the only hidden state, and ``lengths``; arguments as `hidden`."""
        return EncoderOutput([self.layer_sum(self.hidden(features, lengths, mask_time))], lengths)

    def train_mask_embedding(self, train: bool = True) -> None:
        """Let the mask embedding learn; unused but trainable it stops data-parallel training."""
        self.mask_embedding.requires_grad_(train)


class WapHead(nn.Module):
    """SAP of Z and a classifier with one hidden layer.

    `a_t = softmax(v' tanh(W z_t + b))`, `mu = sum a_t z_t`, `sigma = sqrt(max(sum a_t z_t^2 - mu^2,
    eps))`, utterance vector `[mu; sigma]` [P]; the classifier is ours.

    Args:
        dim: W, features per frame of Z.
        num_classes: C.
        hidden: Width of the classifier.
        dropout: On the utterance vector and in the classifier.
        pooling: ``attentive`` (the paper's), ``mean`` or ``mean_std``.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        hidden: int = 256,
        dropout: float = 0.1,
        pooling: str = "attentive",
    ) -> None:
        super().__init__()
        self.pooling = build_pooling(pooling, dim)
        self.output = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(self.pooling.output_dim, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, num_classes),
        )

    def forward(self, hidden: list[Tensor], lengths: Tensor) -> Tensor:
        """Classify: the last of ``hidden`` [B, T, W] with ``lengths`` [B] to logits [B, C]."""
        return self.output(self.pooling(hidden[-1], lengths))
