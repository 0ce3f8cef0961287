"""Frames of the convolutional front end: how many, how far apart, how wide."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class CnnGeometry:
    """Kernels and strides of the CNN, first layer first.

    Attributes:
        kernels: Kernel of each layer, in its own input frames.
        strides: Stride of each layer.
    """

    kernels: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def of(cls, config: "PretrainedConfig") -> "CnnGeometry":
        """Geometry of a Hugging Face configuration."""
        return cls(tuple(config.conv_kernel), tuple(config.conv_stride))

    @property
    def receptive_field(self) -> int:
        """Samples that one frame sees: 400 for the published models."""
        field = 1
        for kernel, stride in zip(reversed(self.kernels), reversed(self.strides)):
            field = (field - 1) * stride + kernel
        return field

    @property
    def hop(self) -> int:
        """Samples from one frame to the next: 320 for the published models."""
        hop = 1
        for stride in self.strides:
            hop *= stride
        return hop

    def frame_lengths(self, lengths: Tensor) -> Tensor:
        """Frames of clips of ``lengths`` samples, at least 1 (short clips are zero padded)."""
        lengths = lengths.clamp(min=self.receptive_field)
        for kernel, stride in zip(self.kernels, self.strides):
            lengths = conv_length(lengths, kernel, stride)
        return lengths

    def frames(self, samples: int) -> int:
        """`frame_lengths` of one clip."""
        return int(self.frame_lengths(torch.tensor(samples)))


def conv_length(lengths: Tensor, kernel: int, stride: int) -> Tensor:
    """Output length of an unpadded convolution."""
    return torch.div(lengths - kernel, stride, rounding_mode="floor") + 1
