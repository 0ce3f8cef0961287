"""Numerical kernels of the encoder: the same numbers as Hugging Face's modules, computed faster.

All of them work on ``[B, T, C]``, channels innermost, so that layer norms need no transposes.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def conv1d(x: Tensor, weight: Tensor, bias: Tensor | None, *, stride: int = 1) -> Tensor:
    """Convolve over time without leaving the channels-last layout.

    ``[B, T, C]`` seen as a channels-last image of height 1 is what the CPU and GPU libraries have
    their fastest kernels for; about 3 x faster than ``Conv1d`` between transposes when training.

    Args:
        x: Input, shape ``[B, T, C]``.
        weight: As in ``nn.Conv1d``, shape ``[out, in, kernel]``.
        bias: Shape ``[out]`` or None.
        stride: Step in frames.

    Returns:
        Shape ``[B, T', out]``.
    """
    image = x.transpose(1, 2).unsqueeze(2)
    out = F.conv2d(image, weight.unsqueeze(2), bias, stride=(1, stride))
    return out.squeeze(2).transpose(1, 2)


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
    dropped = round(p * 65536)
    if dropped == 65536:
        return x * 0.0
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    uniform = words.view(torch.int16)[: x.numel()].view(x.shape)
    kept = uniform >= dropped - 32768
    return x * kept.to(x.dtype).mul_(65536 / (65536 - dropped))


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
    return diagonals.unfold(1, size, 1).flip(1)


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


def attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout_p: float
) -> Tensor:
    """Scaled dot-product attention with an additive bias.

    Args:
        query: Shape ``[B, H, T, d]``; key and value alike.
        bias: Added to the scores, broadcastable to ``[B, H, T, T]``, ``-inf`` at padded keys.
        dropout_p: Dropout of the attention weights (0 outside training).

    Returns:
        Shape ``[B, H, T, d]``.
    """
    if query.device.type != "cpu" or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=bias, dropout_p=dropout_p
        )
    # torch's fused CPU kernel takes neither dropout nor a bias that needs a gradient, and its
    # fall-back makes more passes over the scores than this
    batch, heads, size, width = query.shape
    flat = (batch * heads, size, width)
    query, key = query.reshape(flat), key.reshape(flat).transpose(1, 2)
    if bias is None:
        scores = torch.bmm(query * width**-0.5, key)
    else:
        added = bias.expand(batch, heads, size, size).reshape(batch * heads, size, size)
        scores = torch.baddbmm(added, query, key, alpha=width**-0.5)
    weights = dropout(torch.softmax(scores, dim=-1), dropout_p, training=dropout_p > 0.0)
    return torch.bmm(weights, value.reshape(flat)).view(batch, heads, size, width)
