"""Attention that keeps no weights for the backward pass, but computes them again.

The weights, ``[B, H, T, T]``, are most of what a layer of WavLM keeps, and follow from tensors that
are kept anyway at the cost of one matrix product in about fifteen. Made a few heads at a time they
also stay in a cache. Ours; by row as in FlashAttention (arXiv 2205.14135, section 3.1), without its
tiles: a position bias that is learned needs the gradient of every score.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from espnet_adaltm.backbone.ops import dropout_factor

# Scores made at a time: with more, they leave the cache (on one core, 1.5 x slower at 2^22).
_SCORES = 2**18
_Part = tuple[int, slice]


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gate: Tensor | None = None,
    bias: Tensor | None = None,
    padding: Tensor | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """Scaled dot-product attention with a gated position bias.

    Args:
        query: Shape ``[B, H, T, d]``; key and value alike.
        gate: Shape ``[B, H, T, 1]``, of the bias; given with it.
        bias: Shape ``[H, T, T]``; ``gate * bias`` is added to the scores.
        padding: Shape ``[B, 1, 1, T]``, without gradient: 0 at valid keys, ``-inf`` at others.
        dropout_p: Dropout of the weights (0 outside training).

    Returns:
        Shape ``[B, H, T, d]``, laid out as ``[B, T, H, d]``.
    """
    if query.device.type == "cpu":
        # of torch's global generator, so that seeds and resumed runs repeat the same masks
        seed = int(torch.randint(2**62, ())) if dropout_p else 0
        scores = _Scores(gate, bias, padding, dropout_p, seed)
        with torch.autocast("cpu", enabled=False):  # the types are chosen already
            return _Attention.apply(query, key, value, gate, bias, scores)
    added = padding
    if bias is not None:
        added = gate * bias if padding is None else torch.addcmul(padding, gate, bias)
        added = added.to(query.dtype)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=added, dropout_p=dropout_p)


@dataclass
class _Scores:
    """How scores become weights."""

    gate: Tensor | None
    bias: Tensor | None
    padding: Tensor | None
    dropout_p: float
    seed: int

    def generator(self) -> torch.Generator:
        """A new one for each pass over all parts, which draw in turn."""
        return torch.Generator().manual_seed(self.seed)

    def weights(self, part: _Part, query: Tensor, key: Tensor) -> Tensor:
        rows, columns = query[part], key[part].transpose(1, 2)
        scale = query.shape[-1] ** -0.5
        if self.bias is None:
            scores = torch.bmm(rows, columns).mul_(scale)
        else:
            scores = (self.gate[part] * self.bias[part[1]]).to(rows.dtype)
            scores = torch.baddbmm(scores, rows, columns, alpha=scale)
        if self.padding is not None:
            scores += self.padding[part[0]]
        return torch.softmax(scores, -1)

    def factor(self, like: Tensor, generator: torch.Generator) -> Tensor | None:
        if not self.dropout_p:
            return None
        return dropout_factor(like.shape, self.dropout_p, like.dtype, generator)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        gate: Tensor | None,
        bias: Tensor | None,
        scores: _Scores,
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, gate, bias, scores.padding)
        ctx.dropout = scores.dropout_p, scores.seed
        batch, heads, size, width = query.shape
        out = query.new_empty(batch, size, heads, width).transpose(1, 2)
        generator = scores.generator()
        for part in _parts(query):
            weights = scores.weights(part, query, key)
            factor = scores.factor(weights, generator)
            kept = weights if factor is None else weights.mul_(factor)
            torch.bmm(kept, value[part], out=out[part])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, gate, bias, padding = ctx.saved_tensors
        scores = _Scores(gate, bias, padding, *ctx.dropout)
        scale = query.shape[-1] ** -0.5
        d_query, d_key, d_value = (torch.empty_like(t) for t in (query, key, value))
        d_gate = None if gate is None else torch.empty_like(gate)
        d_bias = None if bias is None else torch.zeros_like(bias)
        generator = scores.generator()
        for part in _parts(query):
            weights = scores.weights(part, query, key)
            factor = scores.factor(weights, generator)
            kept = weights if factor is None else weights * factor
            torch.bmm(kept.transpose(1, 2), grad[part], out=d_value[part])
            d_weights = torch.bmm(grad[part], value[part].transpose(1, 2))
            if factor is not None:
                d_weights *= factor
            d_scores = torch.ops.aten._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            if bias is not None:
                heads = part[1]
                d_bias[heads].addcmul_(gate[part].to(d_bias.dtype), d_scores.to(d_bias.dtype))
                d_gate[part] = (d_scores * bias[heads]).sum(-1, keepdim=True)
            torch.bmm(d_scores, key[part], out=d_query[part]).mul_(scale)
            torch.bmm(d_scores.transpose(1, 2), query[part], out=d_key[part]).mul_(scale)
        return d_query, d_key, d_value, d_gate, d_bias, None


def _parts(query: Tensor) -> Iterator[_Part]:
    """Some heads of one clip at a time, as an index."""
    batch, heads, size, _ = query.shape
    step = max(1, _SCORES // size**2)
    for clip in range(batch):
        for start in range(0, heads, step):
            yield clip, slice(start, start + step)
