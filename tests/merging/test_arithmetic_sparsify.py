"""What stays of a tensor, counted and compared with sorting."""

import math

import pytest
import torch
from merging_common import seeded

from espnet_adaltm.errors import UserError
from espnet_adaltm.merging.sparsify import (
    drop,
    kth_magnitude,
    low_rank,
    magprune,
    trim,
    trim_below,
    trim_threshold,
    without_outliers,
)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed))


def awkward():
    """Subnormal, equal, zero, negative zero and huge values among ordinary ones."""
    values = noise(500) * 10.0 ** torch.randint(-38, 38, (500,), generator=seeded(1))
    special = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 1.0, -1.0, 1.0, 3e38, -3e38])
    return torch.cat([values, special])


@pytest.mark.parametrize("k", [1, 2, 3, 100, 250, 505, 508, 509])
def test_the_kth_magnitude_is_that_of_sorting(k):
    values = awkward()
    expected = values.abs().sort(descending=True).values[k - 1].item()
    assert kth_magnitude([values], k) == expected
    assert kth_magnitude(list(values.split(37)), k) == expected


def test_an_iterator_is_refused():
    with pytest.raises(TypeError, match="twice"):
        kth_magnitude(iter([torch.ones(2)]), 1)


@pytest.mark.parametrize("density", [0.0, 0.001, 0.2, 0.5, 0.999, 1.0, 1.5])
@pytest.mark.parametrize("size", [1, 2, 3, 16, 1000])
def test_trim_keeps_exactly_the_largest(density, size):
    values = noise(size)
    kept = trim(values, density)
    count = size if density >= 1 else int(density * size)
    order = values.abs().argsort(descending=True)
    assert torch.equal(kept[order[:count]], values[order[:count]])
    assert not kept[order[count:]].any()


def test_trim_of_equal_magnitudes_keeps_the_count():
    values = torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0, 0.0])
    for k in range(7):
        assert int(trim(values, k / 6 + 1e-9).count_nonzero()) == min(k, 5)


def test_which_of_equal_magnitudes_stay_at_the_edge():
    values = torch.tensor([1.0, 3.0, -1.0, 2.0, 1.0, -1.0])
    assert trim(values, 0.67, edge="first").tolist() == [1.0, 3.0, -1.0, 2.0, 0.0, 0.0]
    chosen = torch.topk(values.abs(), 4).indices
    assert sorted(trim(values, 0.67).nonzero().flatten().tolist()) == sorted(chosen.tolist())
    many = torch.randint(-9, 10, (40, 50), generator=seeded(2)).float()
    for density in (0.1, 0.5, 0.8):
        one, other = trim(many, density), trim(many, density, edge="first")
        assert int(one.count_nonzero()) == int(other.count_nonzero()) == int(density * 2000)
        assert torch.equal(one.abs().flatten().sort().values, other.abs().flatten().sort().values)


def test_trim_with_a_minimum_leaves_no_tensor_empty():
    values = noise(3)
    assert int(trim(values, 0.1).count_nonzero()) == 0
    assert int(trim(values, 0.1, minimum=1).count_nonzero()) == 1
    assert int(trim(values, 0.1, minimum=9).count_nonzero()) == 3


def test_one_threshold_for_all_tensors():
    tensors = [noise(30), 100 * noise(20, seed=1), torch.zeros(50)]
    threshold = trim_threshold(tensors, 0.2)
    kept = [trim_below(tensor, threshold) for tensor in tensors]
    assert [int(t.count_nonzero()) for t in kept] == [0, 20, 0]
    assert trim_threshold(tensors, 0.0) == math.inf
    assert not trim_below(tensors[0], math.inf).any()
    assert trim_threshold(tensors, 1.0) == 0.0
    assert torch.equal(trim_below(tensors[0], 0.0), tensors[0])


def test_drop_scales_survivors():
    values = noise(100_000)
    kept = drop(values, 0.2, generator=seeded(3))
    stays = kept != 0
    torch.testing.assert_close(kept[stays], values[stays] / 0.2)
    assert stays.float().mean().item() == pytest.approx(0.2, abs=5 * math.sqrt(0.16 / 1e5))
    assert torch.equal(drop(values, 1.0), values)
    assert not drop(values, 0.0).any()
    assert torch.equal(
        drop(values, 0.2, rescale=False, generator=seeded(3)), torch.where(stays, values, 0)
    )


def test_magprune_keeps_large_elements_more_often():
    rows = torch.arange(1.0, 6.0).repeat(20_000, 1)[:, torch.tensor([3, 0, 4, 1, 2])]
    kept = magprune(rows, 0.5, epsilon=0.2, generator=seeded(4))
    share = (kept != 0).float().mean(0)
    expected = torch.tensor([0.6, 0.3, 0.7, 0.4, 0.5])
    torch.testing.assert_close(share, expected, rtol=0, atol=5 * math.sqrt(0.25 / 20_000))
    survivors = kept[:, 0][kept[:, 0] != 0]
    torch.testing.assert_close(survivors, torch.full_like(survivors, 4 / 0.6))
    torch.testing.assert_close(kept.mean(0), rows[0], rtol=0.05, atol=0)


def test_magprune_of_tiny_tensors():
    single = torch.ones(10_000, 1)
    kept = magprune(single, 0.5, epsilon=0.2, generator=seeded(5))
    assert (kept != 0).float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert set(kept.flatten().tolist()) == {0.0, 2.0}
    assert magprune(torch.tensor(3.0), 0.5, generator=seeded(0)).shape == ()
    assert magprune(torch.zeros(0), 0.5).shape == (0,)
    assert not magprune(single, 0.0).any()
    assert torch.equal(magprune(single, 1.0), single)
    filters = noise(4, 3, 2)
    flat = magprune(filters.reshape(4, 6), 0.5, generator=seeded(6))
    assert torch.equal(magprune(filters, 0.5, generator=seeded(6)).reshape(4, 6), flat)


@pytest.mark.parametrize(
    ("density", "outliers", "left"), [(0.5, 0.2, 5), (0.9, 0.3, 9), (0.0, 0.1, 0), (0.1, 0.9, 1)]
)
def test_outliers_and_small_elements_go(density, outliers, left):
    values = noise(10)
    kept = without_outliers(values, density, outliers=outliers)
    order = values.abs().argsort()
    start = max(0, 10 - left - int(outliers * 10))
    assert sorted(kept.nonzero().flatten().tolist()) == sorted(order[start : start + left].tolist())
    assert without_outliers(torch.ones(6), 0.5, outliers=0.2).tolist() == [0, 1, 1, 1, 0, 0]


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (8, 5, 6)])
@pytest.mark.parametrize("rank", [1, 3, 7])
def test_low_rank_is_the_truncated_decomposition(shape, rank):
    values = noise(*shape)
    matrix = values.reshape(shape[0], -1).double()
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    expected = (u[:, :rank] * s[:rank]) @ v[:rank]
    kept = low_rank(values, rank=rank).reshape(matrix.shape).double()
    torch.testing.assert_close(kept, expected, rtol=0, atol=1e-6)


def test_low_rank_by_energy():
    values = torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.0]))
    # squares 9, 4, 1 of 14
    for energy, rank in ((0.6, 1), (9 / 14 - 1e-6, 1), (0.7, 2), (0.95, 3), (1.0, 3)):
        assert torch.linalg.matrix_rank(low_rank(values, energy=energy)) == rank
    torch.testing.assert_close(low_rank(noise(5, 9), energy=1.0), noise(5, 9), rtol=0, atol=1e-6)
    assert torch.equal(low_rank(noise(5, 9), rank=5), noise(5, 9))
    assert torch.equal(low_rank(noise(7), rank=1), noise(7))
    assert not low_rank(torch.zeros(3, 3), energy=0.5).any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: trim(x, -1.0), "density -1.0"),
        (lambda x: trim(x, True), "density True"),
        (lambda x: trim(x, 0.5, edge="last"), "edge 'last' is unknown"),
        (lambda x: without_outliers(x, 0.5, outliers=-0.1), "outliers -0.1"),
        (lambda x: magprune(x, 0.9, epsilon=0.2), "epsilon 0.2 with density 0.9"),
        (lambda x: low_rank(x), "rank or energy"),
        (lambda x: low_rank(x, rank=1, energy=0.5), "rank or energy"),
        (lambda x: low_rank(x, rank=0), "rank 0"),
        (lambda x: low_rank(x, energy=1.2), "energy 1.2"),
    ],
)
def test_values_out_of_range_are_told(call, message):
    with pytest.raises(UserError, match=message):
        call(torch.ones(4, 4))
