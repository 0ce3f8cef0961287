"""Linear layers and convolutions as the matrix products that a CPU is fastest at.

Nearly all of an encoder's operations are products of large matrices, which PyTorch gives to MKL.
On AMD's processors oneDNN, which comes with PyTorch as well, is 8 to 23 % faster at them
(WavLM-Large's layers, AVX-512, one and two threads), and a convolution written as products 1.3 to
1.5 x as fast as oneDNN's own. Everything small, on other devices, under autocast, in float64, or
about to be traced or compiled is left to PyTorch.
"""

from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Weights below which looking up a kernel costs more than a faster one gains.
_LARGE = 2**18
_WIDE = 256  # channels; the released models have 512, encoders made here fewer


@cache
def _prefers_onednn() -> bool:
    """Whether this is a processor on which oneDNN's products are the faster ones."""
    if not (
        torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    ):
        return False
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux
        return False


def _plain(x: Tensor) -> bool:
    watched = torch.jit.is_tracing() or torch.compiler.is_compiling()
    return x.device.type == "cpu" and not torch.is_autocast_enabled("cpu") and not watched


def _large(x: Tensor, weight: Tensor) -> bool:
    single = _plain(x) and x.dtype == weight.dtype == torch.float32
    return single and weight.numel() >= _LARGE and _prefers_onednn()


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.t() + bias`` of ``[N, in]`` and ``[out, in]``, outside autograd."""
    if _large(x, weight):
        # what torch.compile makes of a linear layer
        run = torch.ops.mkldnn._linear_pointwise
        return run(_in_rows(x), _in_rows_or_columns(weight), bias, "none", [], "")
    return F.linear(x, weight, bias)


def _add_product(total: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """``total + x @ weight.t()``, outside autograd; ``total`` may be overwritten."""
    if _large(x, weight):
        run = torch.ops.mkldnn._linear_pointwise.binary
        return run(_in_rows(x), total, _in_rows_or_columns(weight), None, "add")
    return total.addmm_(x, weight.t())


# Strides that oneDNN has no fast code for, such as those of an expanded gradient, cost it more than
# a hundred times the product.
def _in_rows(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 and x.stride(0) >= x.shape[1] else x.contiguous()


def _in_rows_or_columns(x: Tensor) -> Tensor:
    return x if x.is_contiguous() or x.t().is_contiguous() else x.contiguous()


class _Linear(torch.autograd.Function):
    """``linear(x)`` or ``linear(gelu(x))``, which keep ``x`` and the weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.gelu = gelu
        flat = x.reshape(-1, x.shape[-1])
        out = _product(F.gelu(flat) if gelu else flat, weight, bias)
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        flat, grad = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        d_x = d_weight = d_bias = None
        if ctx.needs_input_grad[1]:
            d_weight = grad.t() @ (F.gelu(flat) if ctx.gelu else flat)
        if ctx.needs_input_grad[2]:
            d_bias = grad.sum(0)
        if ctx.needs_input_grad[0]:
            d_x = _product(grad, weight.t())
            d_x = torch.ops.aten.gelu_backward(d_x, flat) if ctx.gelu else d_x
            d_x = d_x.view(x.shape)
        return d_x, d_weight, d_bias, None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As `torch.nn.functional.linear`.

    Args:
        x: Shape ``[..., C]``.
        weight: Shape ``[out, C]``.
        bias: Shape ``[out]`` or None.
    """
    if _large(x, weight):
        return _Linear.apply(x, weight, bias, False)
    return F.linear(x, weight, bias)


def gelu_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``linear(gelu(x))`` that keeps ``x`` for the backward pass, and not ``gelu(x)`` too.

    Args:
        x: Shape ``[..., C]``.
        weight: Shape ``[out, C]``.
        bias: Shape ``[out]``.
    """
    if torch.is_autocast_enabled(x.device.type):  # mixed types: autograd's own way
        return F.linear(F.gelu(x), weight, bias)
    return _Linear.apply(x, weight, bias, True)


def conv1d(x: Tensor, weight: Tensor, bias: Tensor | None, *, stride: int = 1) -> Tensor:
    """Convolve over time without leaving the channels-last layout.

    Args:
        x: Input, shape ``[B, T, C]``.
        weight: As in ``nn.Conv1d``, shape ``[out, in, kernel]``.
        bias: Shape ``[out]`` or None.
        stride: Step in frames.

    Returns:
        Shape ``[B, T', out]``.
    """
    kernel, channels = weight.shape[2], x.shape[2]
    if _plain(x) and channels == 1:  # waveforms: a product with a copy of a few taps
        return F.linear(x.squeeze(2).unfold(1, kernel, stride), weight.squeeze(1), bias)
    if _plain(x) and channels >= _WIDE and stride <= kernel <= min(2 * stride, x.shape[1]):
        if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
            return _Conv1d.apply(x.contiguous(), weight, bias, stride)
        if _large(x, weight):
            return _convolve_by_products(x.contiguous(), weight, bias, stride)
    return _convolve(x, weight, bias, stride)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """``[B, T, C]`` seen as a channels-last image of height 1, which libraries are fast at."""
    image = x.transpose(1, 2).unsqueeze(2)
    out = F.conv2d(image, weight.unsqueeze(2), bias, stride=(1, stride))
    return out.squeeze(2).transpose(1, 2)


def _convolve_by_products(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """With frames taken ``stride`` at a time, ``[T / stride, stride * C]``.

    The first taps read one such row and the others the beginning of the next: nothing is copied.
    """
    first, *others = _taps(weight, stride)
    frames = (x.shape[1] - weight.shape[2]) // stride + 1
    clips = []
    for clip in x:
        out = _product(_rows(clip, 0, stride, frames, first.shape[1]), first, bias)
        for place, part in enumerate(others, 1):
            out = _add_product(out, _rows(clip, place, stride, frames, part.shape[1]), part)
        clips.append(out)
    return clips[0].unsqueeze(0) if len(clips) == 1 else torch.stack(clips)


def _taps(weight: Tensor, stride: int) -> list[Tensor]:
    """A kernel ``[out, in, kernel]``, ``stride`` taps at a time: ``[out, taps * in]`` each."""
    return [part.flatten(1).contiguous() for part in weight.transpose(1, 2).split(stride, dim=1)]


def _rows(clip: Tensor, place: int, stride: int, count: int, width: int) -> Tensor:
    """View of a clip ``[T, C]``: what the taps from ``place * stride`` read, ``[count, width]``."""
    step = stride * clip.shape[1]
    return clip.as_strided((count, width), (step, 1), clip.storage_offset() + place * step)


class _Conv1d(torch.autograd.Function):
    """A convolution whose backward pass is two or three products per clip.

    oneDNN's own backward pass of a channels-last convolution takes two to four times as long.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        forward = _convolve_by_products if _large(x, weight) else _convolve
        return forward(x, weight, bias, stride)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        parts = _taps(weight, ctx.stride)
        grad = grad.contiguous()
        d_x = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        d_parts = [torch.zeros_like(part) for part in parts]
        for clip in range(len(x)):
            for place, part in enumerate(parts):
                rows = _rows(x[clip], place, ctx.stride, grad.shape[1], part.shape[1])
                if ctx.needs_input_grad[1]:
                    d_parts[place].addmm_(grad[clip].t(), rows)
                if d_x is not None:
                    read = _rows(d_x[clip], place, ctx.stride, *rows.shape)
                    read += _product(grad[clip], part.t())
        d_weight = d_bias = None
        if ctx.needs_input_grad[1]:
            d_taps = [part.view(len(part), -1, x.shape[2]) for part in d_parts]
            d_weight = torch.cat(d_taps, 1).transpose(1, 2)
        if ctx.needs_input_grad[2]:
            d_bias = grad.sum((0, 1))
        return d_x, d_weight, d_bias, None
