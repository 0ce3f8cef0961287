import pytest
import torch
import torch.nn.functional as F

from espnet_adaltm.backbone import ops
from tests.backbone.backbone_common import difference


def test_dropout_keeps_the_expectation_and_the_rate():
    torch.manual_seed(0)
    x = torch.full((1001, 333), 2.0)
    out = ops.dropout(x, 0.1, training=True)
    kept = out != 0
    assert abs(float(kept.float().mean()) - 0.9) < 0.002
    assert difference(out[kept], torch.full_like(out[kept], 2 / 0.9)) < 1e-4
    assert abs(float(out.mean()) - 2.0) < 0.01
    assert torch.equal(ops.dropout(x, 0.1, training=False), x)


def test_dropout_is_independent_between_neighbours():
    """One 64-bit word serves four elements: they must not be dropped together."""
    torch.manual_seed(0)
    zero = (ops.dropout(torch.ones(400_000), 0.5, training=True) == 0).float().view(-1, 4)
    correlation = torch.corrcoef(zero.t()) - torch.eye(4)
    assert float(correlation.abs().max()) < 0.02


def test_dropout_of_everything():
    assert not ops.dropout(torch.ones(10), 1.0, training=True).any()


def test_dropout_passes_the_gradient_of_what_it_kept():
    x = torch.ones(1000, requires_grad=True)
    out = ops.dropout(x, 0.3, training=True)
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())


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
    for mine, expected in zip(gradients(ops.gelu_linear), plain, strict=True):
        assert difference(mine, expected) < 1e-14


def test_gelu_linear_keeps_only_its_input_and_weight():
    x, weight = torch.randn(6, 50, requires_grad=True), torch.randn(4, 50, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        ops.gelu_linear(x, weight, torch.zeros(4))
    assert sorted(kept) == [200, 300]


def test_masked_channel_norm_equals_group_norm_on_each_clip():
    x = torch.randn(2, 50, 6, generator=torch.Generator().manual_seed(0)) * 3 + 1
    weight, bias = torch.rand(6), torch.rand(6)
    out = ops.masked_channel_norm(x, torch.tensor([50, 13]), weight, bias, 1e-5)
    for row, length in enumerate((50, 13)):
        clip = x[row : row + 1, :length].transpose(1, 2)
        expected = F.group_norm(clip, 6, weight, bias, 1e-5).transpose(1, 2)[0]
        assert difference(out[row, :length], expected) < 1e-5


def test_relative_bias_puts_relative_positions_on_diagonals():
    table = torch.arange(9.0).unsqueeze(1)  # bucket b has the value b
    bias = ops.relative_bias(table, torch.arange(9))[0]  # T = 5, buckets = position + 4
    for i in range(5):
        for j in range(5):
            assert bias[i, j] == j - i + 4


def test_position_buckets_are_t5s():
    buckets = ops.position_buckets(101, 20, 30, torch.device("cpu")).tolist()
    at = dict(zip(range(-100, 101), buckets))
    assert [at[-p] for p in range(5)] == [0, 1, 2, 3, 4]  # exact
    assert [at[p] for p in range(1, 5)] == [11, 12, 13, 14]  # the other sign, half the table on
    assert at[-30] == at[-100] == 9
    assert at[30] == at[100] == 19
    assert all(at[-p] <= at[-p - 1] for p in range(100))


@pytest.mark.parametrize("kernel, stride", [(3, 2), (2, 2), (3, 3)])
@pytest.mark.parametrize("frames", [20, 21, 22])
def test_wide_convolution_has_the_gradients_of_torchs(kernel, stride, frames):
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, frames, ops._WIDE), (5, ops._WIDE, kernel), (5,))
    tensors = [torch.randn(s, generator=generator, dtype=torch.double) for s in shapes]
    x, weight, bias = (tensor.requires_grad_() for tensor in tensors)
    out = ops.conv1d(x, weight, bias, stride=stride)
    assert out.grad_fn.name() == "_Conv1dBackward"  # the matrix products
    expected = F.conv1d(x.transpose(1, 2), weight, bias, stride=stride).transpose(1, 2)
    torch.testing.assert_close(out, expected)
    grad = torch.randn(out.shape, generator=generator, dtype=torch.double)
    mine, theirs = (torch.autograd.grad(o, (x, weight, bias), grad) for o in (out, expected))
    for got, wanted in zip(mine, theirs):
        torch.testing.assert_close(got, wanted)
