import pytest
import torch
from torch import Tensor

from espnet_adaltm.backbone import attention as module
from espnet_adaltm.backbone.attention import attention
from espnet_adaltm.backbone.ops import dropout_factor
from tests.backbone.backbone_common import difference

BATCH, HEADS, SIZE, WIDTH = 2, 3, 7, 4


def inputs(*, bias: bool, dtype: torch.dtype = torch.float64) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype)

    # as the encoder gives them: not contiguous
    found = [draw(BATCH, SIZE, HEADS, WIDTH).transpose(1, 2) for _ in range(3)]
    found += [draw(BATCH, HEADS, SIZE, 1), draw(HEADS, SIZE, SIZE)] if bias else [None, None]
    return [None if tensor is None else tensor.requires_grad_() for tensor in found]


def padding(dtype: torch.dtype = torch.float64) -> Tensor:
    added = torch.zeros(BATCH, 1, 1, SIZE, dtype=dtype)
    added[1, ..., 5:] = float("-inf")
    return added


def plain(query, key, value, gate, bias, added=None, factor=1.0) -> Tensor:
    scores = query @ key.transpose(-1, -2) / WIDTH**0.5
    for term in (None if bias is None else gate * bias, added):
        scores = scores if term is None else scores + term
    return (torch.softmax(scores, -1) * factor) @ value


def gradients(out: Tensor, tensors: list[Tensor | None]) -> tuple[Tensor, ...]:
    probe = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
    return torch.autograd.grad((out * probe).sum(), [t for t in tensors if t is not None])


@pytest.mark.parametrize("scores", [1, 2 * SIZE**2, 2**18])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_result_and_gradients_are_the_formulas(monkeypatch, scores, bias, padded):
    monkeypatch.setattr(module, "_SCORES", scores)
    tensors, added = inputs(bias=bias), padding() if padded else None
    out, expected = attention(*tensors, added), plain(*tensors, added)
    assert difference(out, expected) < 1e-14
    for mine, theirs in zip(gradients(out, tensors), gradients(expected, tensors), strict=True):
        assert difference(mine, theirs) < 1e-13


def test_without_gradients_the_same():
    tensors = inputs(bias=True)
    with torch.no_grad():
        assert torch.equal(attention(*tensors, padding()), attention(*tensors, padding()))
        assert difference(attention(*tensors, padding()), plain(*tensors, padding())) < 1e-14


def test_dropout_drops_the_same_weights_in_the_backward_pass(monkeypatch):
    tensors = inputs(bias=True)
    monkeypatch.setattr(module, "_SCORES", HEADS * SIZE**2)
    torch.manual_seed(3)
    seed = int(torch.randint(2**62, ()))
    generator = torch.Generator().manual_seed(seed)
    factor = torch.stack(
        [dropout_factor((HEADS, SIZE, SIZE), 0.4, torch.float64, generator) for _ in range(BATCH)]
    )
    assert 0.2 < float((factor == 0).double().mean()) < 0.6
    torch.manual_seed(3)
    out, expected = attention(*tensors, None, 0.4), plain(*tensors, None, factor)
    assert difference(out, expected) < 1e-14
    for mine, theirs in zip(gradients(out, tensors), gradients(expected, tensors), strict=True):
        assert difference(mine, theirs) < 1e-13
    assert not torch.equal(attention(*tensors, None, 0.4), out)  # another call, another mask


def test_no_weights_are_kept():
    tensors = inputs(bias=True)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        attention(*tensors)
    assert sorted(kept) == sorted(t.numel() for t in tensors)


def test_half_precision_under_autocast_stays_in_half_precision():
    query, key, value, gate, bias = inputs(bias=True, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        half = [t.to(torch.bfloat16) for t in (query, key, value)]
        out = attention(*half, gate, bias, padding(torch.float32))
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert (
        difference(out.float(), plain(query, key, value, gate, bias, padding(torch.float32))) < 0.05
    )
    assert all(t.grad.dtype == torch.float32 for t in (query, gate, bias))
