"""Linear layers and convolutions as matrix products: PyTorch's numbers, by either library."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import WavLMConfig, WavLMModel

from espnet_adaltm.backbone import products
from espnet_adaltm.backbone.encoder import SpeechEncoder
from tests.backbone.backbone_common import difference

# Of WavLM-Large, where oneDNN is taken if the processor is one for it.
WIDE = 512


@pytest.fixture(params=["onednn", "mkl"])
def library(request, monkeypatch):
    """Whichever processor the test runs on."""
    if request.param == "onednn" and not torch.backends.mkldnn.is_available():
        pytest.skip("PyTorch without oneDNN")
    monkeypatch.setattr(products, "_prefers_onednn", lambda: request.param == "onednn")
    return request.param


def tensors(*shapes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=generator, dtype=dtype).requires_grad_() for s in shapes]


def compare(function, oracle, inputs, tolerance):
    """Results and gradients of a function in float32 against the oracle's in float64."""
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    out, expected = function(*inputs), oracle(*doubles)
    assert difference(out, expected) < tolerance * float(expected.detach().abs().max())
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    mine = torch.autograd.grad(out, inputs, grad)
    theirs = torch.autograd.grad(expected, doubles, grad.double())
    for got, wanted in zip(mine, theirs, strict=True):
        assert got.dtype == torch.float32 and got.shape == wanted.shape
        assert difference(got, wanted) < tolerance * float(wanted.detach().abs().max())


@pytest.mark.parametrize(("gelu", "bias"), [(False, True), (False, False), (True, True)])
def test_linear_layers_have_the_numbers_of_torchs(library, gelu, bias):
    inputs = tensors((2, 33, WIDE), (1024, WIDE), *[(1024,)] * bias)
    mine = products.gelu_linear if gelu else products.linear

    def function(x, weight, bias=None):
        return mine(x, weight, bias)

    def oracle(x, weight, bias=None):
        return F.linear(F.gelu(x) if gelu else x, weight, bias)

    compare(function, oracle, inputs, 2e-6)
    ours = function(*inputs).grad_fn.name() == "_LinearBackward"
    assert ours == (gelu or library == "onednn")


@pytest.mark.parametrize("kernel, stride", [(3, 2), (2, 2), (3, 3)])
@pytest.mark.parametrize("frames", [20, 21, 22])
def test_wide_convolutions_have_the_numbers_of_torchs(library, kernel, stride, frames):
    inputs = tensors((3, frames, WIDE), (WIDE, WIDE, kernel), (WIDE,))

    def function(x, weight, bias):
        return products.conv1d(x, weight, bias, stride=stride)

    def oracle(x, weight, bias):
        return F.conv1d(x.transpose(1, 2), weight, bias, stride=stride).transpose(1, 2)

    compare(function, oracle, inputs, 2e-6)
    assert function(*inputs).grad_fn.name() == "_Conv1dBackward"
    with torch.no_grad():
        wanted = oracle(*inputs)
        assert difference(function(*inputs), wanted) < 2e-6 * float(wanted.detach().abs().max())
        one = function(inputs[0][:1], *inputs[1:])
        assert difference(one, wanted[:1]) < 2e-6 * float(wanted.detach().abs().max())


@pytest.mark.parametrize("kernel, stride", [(3, 2), (2, 2), (3, 3)])
def test_wide_convolution_has_the_gradients_of_torchs_in_float64(kernel, stride):
    shapes = (3, 21, products._WIDE), (5, products._WIDE, kernel), (5,)
    x, weight, bias = tensors(*shapes, dtype=torch.double)
    out = products.conv1d(x, weight, bias, stride=stride)
    assert out.grad_fn.name() == "_Conv1dBackward"
    expected = F.conv1d(x.transpose(1, 2), weight, bias, stride=stride).transpose(1, 2)
    torch.testing.assert_close(out, expected)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    mine, theirs = (torch.autograd.grad(o, (x, weight, bias), grad) for o in (out, expected))
    for got, wanted in zip(mine, theirs):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("trained", [("x",), ("weight", "bias"), ("x", "weight", "bias")])
def test_gelu_linear_has_autograds_gradients(trained):
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": (2, 3, 5), "weight": (4, 5), "bias": (4,)}
    inputs = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in shapes.items()
    }
    leaves = [inputs[name].requires_grad_() for name in trained]
    probe = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)

    def gradients(function):
        return torch.autograd.grad((function(*inputs.values()) * probe).sum(), leaves)

    plain = gradients(lambda x, weight, bias: F.linear(F.gelu(x), weight, bias))
    for mine, expected in zip(gradients(products.gelu_linear), plain, strict=True):
        assert difference(mine, expected) < 1e-14


def test_gelu_linear_keeps_only_its_input_and_weight():
    x, weight = torch.randn(6, 50, requires_grad=True), torch.randn(4, 50, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        products.gelu_linear(x, weight, torch.zeros(4))
    assert sorted(kept) == [200, 300]


class _Holder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(WIDE, WIDE)

    def forward(self, x):
        return products.linear(x, self.layer.weight, self.layer.bias)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
def test_what_is_traced_exported_or_in_mixed_precision_is_left_to_torch(monkeypatch):
    monkeypatch.setattr(products, "_prefers_onednn", lambda: True)
    holder = _Holder()
    x = torch.randn(4, WIDE, generator=torch.Generator().manual_seed(0))
    assert holder(x).grad_fn.name() == "_LinearBackward"
    traced = str(torch.jit.trace(holder, x).inlined_graph)
    assert "aten::linear" in traced and "mkldnn" not in traced
    exported = str(torch.export.export(holder, (x,)).graph)
    assert "aten.linear" in exported and "mkldnn" not in exported
    with torch.autocast("cpu", torch.bfloat16):
        assert holder(x).dtype == torch.bfloat16
    assert holder.double()(x.double()).dtype == torch.float64


def test_gradients_and_weights_of_any_strides(library):
    x, weight = tensors((4, WIDE), (WIDE, 2 * WIDE))
    narrow = weight[:, ::2]  # oneDNN is not asked to follow these
    assert products._in_rows_or_columns(narrow).is_contiguous()
    assert products._in_rows_or_columns(weight.t()).data_ptr() == weight.data_ptr()
    expanded = torch.ones(()).expand(4, WIDE)
    assert products._in_rows(expanded).is_contiguous()
    products.linear(x, narrow, None).sum().backward()
    oracle = F.linear(x.detach().double().requires_grad_(), narrow.detach().double())
    assert difference(x.grad, narrow.detach().double().sum(0).expand(4, -1)) < 1e-4
    assert difference(products.linear(x, narrow, None), oracle) < 1e-3


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_a_wide_cnn_has_hugging_faces_numbers(library, norm):
    config = WavLMConfig(
        conv_dim=(WIDE,) * 3,
        conv_kernel=(10, 3, 2),
        conv_stride=(5, 2, 2),
        feat_extract_norm=norm,
        do_stable_layer_norm=norm == "layer",
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    torch.manual_seed(0)
    body = WavLMModel(config)
    encoder = SpeechEncoder(body, do_normalize=False)
    speech = torch.randn(2, 400, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([400, 400])
    expected = body.feature_extractor(speech).transpose(1, 2)
    learned = [p for p in body.feature_extractor.parameters() if p.requires_grad]
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    theirs = torch.autograd.grad(expected, learned, grad)
    with_grad = encoder.cnn(speech, lengths)[0]
    with torch.no_grad():
        without = encoder.cnn(speech, lengths)[0]
    for found in (with_grad, without):
        assert difference(found, expected) < 1e-5 * float(expected.detach().abs().max())
    for mine, wanted in zip(torch.autograd.grad(with_grad, learned, grad), theirs, strict=True):
        assert difference(mine, wanted) < 1e-4 * float(wanted.abs().max())
