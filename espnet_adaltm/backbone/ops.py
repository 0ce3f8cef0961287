"""Numerical kernels of the encoder: the same numbers as Hugging Face's modules, computed faster.

All of them work on ``[B, T, C]``, channels innermost, so that layer norms need no transposes.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def positional_conv(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    """Grouped "same" convolution over time of ``[B, T, D]``; even kernels drop the last frame."""
    kernel = weight.shape[-1]
    image = x.transpose(1, 2).unsqueeze(2)
    out = F.conv2d(image, weight.unsqueeze(2), bias, padding=(0, kernel // 2), groups=groups)
    return out.squeeze(2).transpose(1, 2)[:, : x.shape[1]]


def masked_channel_norm(
    x: Tensor, lengths: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """Group norm with one channel per group, with statistics over the valid frames only.

    `nn.GroupNorm` would average padding in: the reason why the Base models' front end gives
    different features for the same clip in different batches. Equals `nn.GroupNorm` on each
    unpadded clip.

    Args:
        x: Shape ``[B, T, C]``.
        lengths: Valid frames of each clip, shape ``[B]``, at least 1.
        weight: Shape ``[C]``.
        bias: Shape ``[C]``.
        eps: Added to the variance.
    """
    watched = torch.jit.is_tracing() or torch.is_grad_enabled()
    if not watched and len(x) == 1 and int(lengths) == x.shape[1]:
        image = x.transpose(1, 2).unsqueeze(2)  # channels last: what PyTorch's own is fast at
        return F.group_norm(image, x.shape[2], weight, bias, eps).squeeze(2).transpose(1, 2)
    valid = valid_mask(lengths, x.shape[1]).unsqueeze(-1)
    count = lengths.view(-1, 1, 1).to(x.dtype)
    mean = (x * valid).sum(1, keepdim=True) / count
    centred = x - mean
    variance = (centred * valid).square().sum(1, keepdim=True) / count
    return centred * (torch.rsqrt(variance + eps) * weight) + bias


def valid_mask(lengths: Tensor, size: int) -> Tensor:
    """Bool ``[B, size]``, True inside the first ``lengths[b]`` positions."""
    return torch.arange(size, device=lengths.device) < lengths.unsqueeze(1)


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Drop elements with probability ``p`` and scale the rest by ``1 / (1 - p)``.

    On a CPU `F.dropout` draws one random word per element, which costs more than the matrix
    products of a small encoder. Here one 64-bit word serves four elements, so that ``p`` is rounded
    to a multiple of 2^-16 (the scale uses the rounded value: the expectation is exact).
    """
    if not training or p == 0.0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p, training=True)
    return x * dropout_factor(x.shape, p, x.dtype)


def dropout_factor(
    shape: Sequence[int], p: float, dtype: torch.dtype, generator: torch.Generator | None = None
) -> Tensor:
    """What `dropout` multiplies by: 0 or ``1 / (1 - p)``, on the CPU.

    Args:
        shape: Of the result.
        p: Probability of 0.
        dtype: Of the result.
        generator: Torch's global one if None.
    """
    dropped = round(p * 65536)
    if dropped == 65536:
        return torch.zeros(shape, dtype=dtype)
    size = math.prod(shape)
    words = torch.empty((size + 3) // 4, dtype=torch.int64)
    words.random_(-(2**63), None, generator=generator)
    uniform = words.view(torch.int16)[:size].view(shape)
    kept = uniform >= dropped - 32768
    return kept.to(dtype).mul_(65536 / (65536 - dropped))


def position_buckets(
    size: int, num_buckets: int, max_distance: int, device: torch.device
) -> Tensor:
    """Bucket of every relative position from ``-(size - 1)`` to ``size - 1``.

    T5's scheme as WavLM uses it: half of the buckets for each sign, of which the nearer half are
    exact and the others grow logarithmically up to ``max_distance`` frames.
    """
    relative = torch.arange(1 - size, size, device=device)
    half = num_buckets // 2
    exact = half // 2
    distance = relative.abs()
    # float32 and this order of operations: the bucket edges must fall where the checkpoint's did
    scaled = torch.log(distance.float() / exact) / math.log(max_distance / exact)
    far = (exact + scaled * (half - exact)).clamp(min=0, max=half - 1).to(torch.long)
    return (relative > 0).long() * half + torch.where(distance < exact, distance, far)


def relative_bias(embedding: Tensor, buckets: Tensor) -> Tensor:
    """Unfold per-bucket values into the position bias of every query and key.

    Args:
        embedding: Value of each bucket and head, shape ``[num_buckets, H]``.
        buckets: From `position_buckets`, shape ``[2T - 1]``.

    Returns:
        Shape ``[H, T, T]``: entry ``(h, i, j)`` belongs to the relative position ``j - i``.
    """
    size = (buckets.shape[0] + 1) // 2
    diagonals = F.embedding(buckets, embedding).t()
    # As it comes, the heads would lie innermost, and every use of a few of them would read all.
    return diagonals.unfold(1, size, 1).flip(1).contiguous()


def position_gate(x: Tensor, weight: Tensor, bias: Tensor, const: Tensor, heads: int) -> Tensor:
    """WavLM's gate on the position bias.

    Args:
        x: Input of the attention, shape ``[B, T, D]``.
        weight: ``gru_rel_pos_linear.weight``, shape ``[8, D / H]``.
        bias: Its bias, shape ``[8]``.
        const: ``gru_rel_pos_const``, shape ``[1, H, 1, 1]``.
        heads: H.

    Returns:
        Shape ``[B, H, T, 1]``.
    """
    batch, size, _ = x.shape
    # the outputs are only used as two sums of four: sum the weights instead
    weight, bias = weight.view(2, 4, -1).sum(1), bias.view(2, 4).sum(1)
    gates = torch.sigmoid(F.linear(x.view(batch, size, heads, -1), weight, bias))
    update, reset = gates.permute(0, 2, 1, 3).split(1, dim=-1)
    return update * (reset * const - 1.0) + 2.0
