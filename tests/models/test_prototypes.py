"""Online k-means against hand-made numbers."""

import pytest
import torch
from torch import distributed

from espnet_adaltm.models.prototypes import Prototypes, perplexity


def on_axes(counts):
    """``counts[i]`` frames along axis i, of different lengths: only directions matter."""
    rows = [torch.eye(len(counts))[i] * (1 + j) for i, n in enumerate(counts) for j in range(n)]
    return torch.stack(rows)


def started(counts, **options):
    """Clusters on the axes, with ``counts`` as their weights."""
    prototypes = Prototypes(len(counts), len(counts), **options)
    prototypes.counts.copy_(torch.tensor(counts))
    prototypes.sums.copy_(torch.diag(torch.tensor(counts)))
    prototypes.centroids.copy_(torch.eye(len(counts)))
    return prototypes


def test_first_batch_gives_its_frames_as_centroids():
    torch.manual_seed(0)
    prototypes = Prototypes(3, 3)
    assert not prototypes.is_started
    assert prototypes(on_axes([1, 1, 1])).tolist() == [0, 0, 0]
    clusters = prototypes.update(on_axes([1, 1, 1]))
    assert prototypes.is_started
    assert sorted(clusters.tolist()) == [0, 1, 2]
    assert torch.equal(prototypes.centroids.sort(0).values, torch.eye(3).sort(0).values)
    assert prototypes.counts.tolist() == pytest.approx([1, 1, 1])


def test_averages_and_centroids_of_one_update():
    prototypes = started([2.0, 2.0], decay=0.75)
    frame = torch.tensor([[0.8, 0.6]])  # the unit vector nearest to axis 0
    assert prototypes.update(frame).tolist() == [0]
    assert prototypes.counts.tolist() == pytest.approx([0.75 * 2 + 0.25, 0.75 * 2])
    expected = torch.tensor([0.75 * 2 + 0.25 * 0.8, 0.25 * 0.6])
    assert torch.allclose(prototypes.sums[0], expected)
    assert torch.allclose(prototypes.centroids[0], expected / expected.norm())
    assert prototypes.centroids[1].tolist() == pytest.approx([0, 1])
    assert int(prototypes.reseeded) == 0


def test_length_of_frames_does_not_matter():
    frames = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    first, second = (started([1.0] * 4) for _ in range(2))
    assert torch.equal(first.update(frames), second.update(frames * 7))
    assert torch.allclose(first.centroids, second.centroids, atol=1e-6)


def test_an_unused_cluster_is_started_anew_on_a_frame_of_the_batch():
    torch.manual_seed(0)
    prototypes = started([3.0, 3.0, 0.16], decay=0.9, dead=0.1)
    frames = on_axes([4, 4, 0])
    prototypes.update(frames)
    # counts were (3.1, 3.1, 0.144): the last is below 0.1 of the mean, 2.1147
    assert int(prototypes.reseeded) == 1
    assert prototypes.counts.tolist() == pytest.approx([3.1, 3.1, 6.344 / 3])
    new = prototypes.centroids[2]
    assert any(torch.equal(new, axis) for axis in torch.eye(3)[:2])
    assert torch.allclose(prototypes.sums[2], new * 6.344 / 3)
    prototypes.update(on_axes([4, 4, 0]))
    assert int(prototypes.reseeded) == 1  # it has time to win frames


def test_a_used_cluster_is_left_alone():
    prototypes = started([3.0, 3.0, 1.0], decay=0.9, dead=0.1)
    prototypes.update(on_axes([4, 4, 1]))
    assert int(prototypes.reseeded) == 0
    assert torch.equal(prototypes.centroids, torch.eye(3))


def test_fewer_frames_than_clusters():
    torch.manual_seed(0)
    prototypes = Prototypes(5, 3, decay=0.5, dead=0.3)
    generator = torch.Generator().manual_seed(1)
    centres = torch.nn.functional.normalize(torch.randn(5, 3, generator=generator), dim=-1)
    prototypes.update(centres[:2])
    assert len(prototypes.centroids.round(decimals=4).unique(dim=0)) == 2
    for step in range(60):
        prototypes.update(centres[(torch.arange(5) + step) % 5])
    assert prototypes(centres).unique().numel() == 5
    assert int(prototypes.reseeded) >= 3


def test_finds_the_clusters_that_there_are():
    generator = torch.Generator().manual_seed(0)
    centres = torch.nn.functional.normalize(torch.randn(8, 16, generator=generator), dim=-1)
    torch.manual_seed(0)
    prototypes = Prototypes(8, 16, decay=0.9, dead=0.1)
    for _ in range(200):
        truth = torch.randint(8, (256,), generator=generator)
        frames = centres[truth] + 0.05 * torch.randn(256, 16, generator=generator)
        found = prototypes.update(frames)
    assert float(prototypes.perplexity()) == pytest.approx(8, abs=0.1)
    nearest = (prototypes.centroids @ centres.T).max(1).values
    assert float(nearest.min()) > 0.99
    pairs = torch.unique(torch.stack([truth, found], 1), dim=0)
    assert len(pairs) == 8  # one cluster for each


@pytest.mark.parametrize(
    ("counts", "expected"),
    [([1, 1, 1, 1], 4.0), ([9, 0, 0], 1.0), ([0, 0], 0.0), ([1, 3], 4 / 3**0.75)],
)
def test_perplexity(counts, expected):
    # of (1/4, 3/4): exp(ln 4 - 3/4 ln 3) = 4 / 3^0.75
    assert float(perplexity(torch.tensor(counts).double())) == pytest.approx(expected)


def test_state_continues_bit_by_bit():
    frames = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    first, second = Prototypes(4, 3), Prototypes(4, 3)
    first.update(frames)
    second.load_state_dict(first.state_dict())
    assert second.is_started
    assert torch.equal(first.update(frames), second.update(frames))
    assert all(torch.equal(a, b) for a, b in zip(first.buffers(), second.buffers()))


def _work(rank, rendezvous, out):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2
    )
    torch.manual_seed(rank)  # ranks that draw differently must agree all the same
    fresh = Prototypes(5, 3)
    fresh.update(_frames()[10 * rank : 10 * rank + 10])
    prototypes = started([4.0, 4.0, 0.1], decay=0.9, dead=0.1)
    prototypes.update(_frames()[10 * rank : 10 * rank + 10])
    torch.save((fresh.state_dict(), prototypes.state_dict()), f"{out}{rank}")
    distributed.destroy_process_group()


def _frames():
    frames = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)).abs()
    return frames * torch.tensor([1.0, 1.0, 0.01])  # nothing near the third axis


@pytest.mark.integration
def test_two_processes_hold_the_clusters_of_one(tmp_path):
    torch.multiprocessing.spawn(_work, (tmp_path / "rendezvous", tmp_path / "rank"), nprocs=2)
    ranks = [torch.load(tmp_path / f"rank{rank}", weights_only=True) for rank in range(2)]
    for one, other in zip(*ranks):
        assert all(torch.equal(one[name], other[name]) for name in one)
    single = started([4.0, 4.0, 0.1], decay=0.9, dead=0.1)
    single.update(_frames())
    found = ranks[0][1]
    assert int(found["reseeded"]) == int(single.reseeded) == 1
    # the third is on a frame of rank 0, as drawn there
    for name in ("centroids", "counts", "sums"):
        torch.testing.assert_close(found[name][:2], getattr(single, name)[:2])
    assert (
        float((_frames()[:10] @ found["centroids"][2] / _frames()[:10].norm(dim=1)).max()) > 0.99999
    )
