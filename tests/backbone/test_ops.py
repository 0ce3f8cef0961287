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
