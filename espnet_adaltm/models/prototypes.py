"""Local attributes: clusters of a network's frames, found while it learns.

The adapter's paper (arXiv 2509.23795) takes "local attributes" from an unsupervised clustering of
the teacher's frames [P] and gives no more detail. Ours: k-means on the unit sphere, one step per
batch, with exponential moving averages in the place of sums over the data (as VQ-VAE-2 keeps its
codebook), and clusters that nobody uses started anew.
"""

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn import functional


class Prototypes(nn.Module):
    """Online spherical k-means.

    Per batch with `n_k` frames in cluster k and `s_k` their sum,
    `N_k <- g N_k + (1 - g) n_k`, `S_k <- g S_k + (1 - g) s_k`, centroid `c_k = S_k / |S_k|`.
    The first batch gives K of its frames as centroids. Afterwards a cluster with
    `N_k < dead * mean(N)` takes a random frame of the batch and the mean weight: it keeps that long
    enough to win frames of its own. In a distributed training all ranks hold the same clusters.

    Args:
        clusters: K.
        dim: D, features per frame.
        decay: g.
        dead: Share of the mean use below which a cluster is started anew.

    Attributes:
        centroids: [K, D], of length 1 once `is_started`.
        counts: N, frames per batch of each cluster, [K].
        sums: S, [K, D].
        reseeded: How often a cluster was started anew so far, int64 scalar.
    """

    def __init__(self, clusters: int, dim: int, *, decay: float = 0.99, dead: float = 0.05) -> None:
        super().__init__()
        self.decay = decay
        self.dead = dead
        self.register_buffer("centroids", torch.zeros(clusters, dim))
        self.register_buffer("counts", torch.zeros(clusters))
        self.register_buffer("sums", torch.zeros(clusters, dim))
        self.register_buffer("reseeded", torch.zeros((), dtype=torch.int64))

    @property
    def is_started(self) -> bool:
        """Whether any batch was seen."""
        return bool(self.counts.sum() > 0)

    def forward(self, frames: Tensor) -> Tensor:
        """Nearest centroid of ``frames`` [N, D]: int64 [N]; all 0 before the first batch."""
        return (functional.normalize(frames.float(), dim=-1) @ self.centroids.T).argmax(-1)

    @torch.no_grad()
    def update(self, frames: Tensor) -> Tensor:
        """Move the centroids towards the frames of one batch, [N, D] with N > 0.

        Returns:
            Cluster of each frame under the centroids as they were before, int64 [N].
        """
        frames = functional.normalize(frames.float(), dim=-1)
        size = len(self.counts)
        total = _summed(torch.tensor(float(len(frames)), device=frames.device))
        if not self.is_started:
            self._place(torch.ones_like(self.counts, dtype=torch.bool), frames, total / size)
        clusters = self(frames)
        counts = _summed(torch.bincount(clusters, minlength=size).to(self.counts))
        sums = _summed(torch.zeros_like(self.sums).index_add_(0, clusters, frames))
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        self.centroids.copy_(functional.normalize(self.sums, dim=-1))
        mean = self.counts.mean()
        dead = self.counts < self.dead * mean
        if bool(dead.any()):
            self._place(dead, frames, mean)
            self.reseeded += dead.sum()
        return clusters

    def _place(self, chosen: Tensor, frames: Tensor, weight: Tensor) -> None:
        """Put the ``chosen`` clusters, bool [K], on random frames, with ``weight`` frames each."""
        wanted, count = int(chosen.sum()), len(frames)
        if count >= wanted:
            rows = torch.randperm(count)[:wanted]
        else:  # twins: of two equal centroids one gets no frames, and is started anew later
            rows = torch.randint(count, (wanted,))
        seeds = frames[rows.to(frames.device)]
        if _several_ranks():
            torch.distributed.broadcast(seeds, 0)
        self.centroids[chosen] = seeds
        self.counts[chosen] = weight
        self.sums[chosen] = seeds * weight

    def perplexity(self) -> Tensor:
        """Number of clusters in use, `exp(H(N / sum N))`: 1 when collapsed, K when even; scalar."""
        return perplexity(self.counts)


def perplexity(counts: Tensor) -> Tensor:
    """`exp` of the entropy of ``counts`` [K] as a distribution, scalar; 0 without any count."""
    total = counts.sum()
    if total <= 0:
        return torch.zeros((), dtype=counts.dtype, device=counts.device)
    shares = counts / total
    return torch.special.entr(shares).sum().exp()


def _several_ranks() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _summed(values: Tensor) -> Tensor:
    """The sum over all ranks of a distributed training."""
    if _several_ranks():
        torch.distributed.all_reduce(values)
    return values
