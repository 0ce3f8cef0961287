"""Which part of a task vector stays: the large elements, random ones, or the leading directions.

All functions take one float tensor, leave it as it is, and return float32 (float64 where they get
it). Shapes never change. A result may share memory with the input where nothing is dropped.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Generator, Tensor

from espnet_adaltm.errors import UserError

_LOW_BITS = 16
_LOW = (1 << _LOW_BITS) - 1
_HIGH_BINS = 1 << 15  # the sign bit of a magnitude is never set
EDGES = ("topk", "first")


def as_float(tensor: Tensor) -> Tensor:
    """Return float64 as it is, everything else as float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def masked(tensor: Tensor, mask: Tensor) -> Tensor:
    """Return ``tensor * mask``, faster than PyTorch multiplies by a boolean mask."""
    return mask.to(tensor.dtype).mul_(tensor)


def check_density(density: Any, name: str = "density", *, most: float = math.inf) -> None:
    """Refuse a share of elements that is not a number from 0 up.

    1 and more keep everything, as in peft.

    Args:
        density: The share.
        name: What to call it in the error.
        most: The largest that is taken.

    Raises:
        UserError: Negative, too large, not finite or no number.
    """
    number = isinstance(density, int | float) and not isinstance(density, bool)
    if not number or not 0 <= density <= most or math.isinf(density):
        verb = "keep" if name == "density" else "drop"
        raise UserError(f"{name} {density!r}: give the share of elements to {verb}, from 0 to 1")


def _bits(tensor: Tensor) -> Tensor:
    # The bit patterns of non-negative floats are in the order of their values.
    return tensor.detach().float().abs().reshape(-1).view(torch.int32)


def _histogram(values: Iterator[Tensor], bins: int) -> Tensor:
    counts = torch.zeros(bins, dtype=torch.int64)
    for value in values:
        counts += torch.bincount(value, minlength=bins).cpu()
    return counts


def _bin_from_top(counts: Tensor, k: int) -> tuple[int, int]:
    """The bin that holds the k-th largest value, and its rank from the top within this bin."""
    from_top = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(from_top, k))
    before = int(from_top[place - 1]) if place else 0
    return len(counts) - 1 - place, k - before


def kth_magnitude(tensors: Iterable[Tensor], k: int) -> float:
    """Return the k-th largest magnitude of all elements together, exactly.

    Two histograms of the upper and the lower 16 bits find it without sorting and without holding
    more than one tensor; a bin's members in the first are counted in the second.

    Args:
        tensors: Read twice: a list, a dictionary's values, or an object that opens files anew.
        k: From 1 to the number of elements. Magnitudes are compared in float32.

    Raises:
        TypeError: ``tensors`` is an iterator, which can be read only once.
    """
    if iter(tensors) is tensors:
        raise TypeError("kth_magnitude reads its tensors twice: give a list, not an iterator")
    high = _histogram((_bits(t) >> _LOW_BITS for t in tensors), _HIGH_BINS)
    upper, rank = _bin_from_top(high, k)
    inside = (bits[bits >> _LOW_BITS == upper] & _LOW for bits in map(_bits, tensors))
    lower, _ = _bin_from_top(_histogram(inside, _LOW + 1), rank)
    bits = torch.tensor(upper << _LOW_BITS | lower, dtype=torch.int32)
    return float(bits.view(torch.float32))


def trim_threshold(tensors: Iterable[Tensor], density: float) -> float:
    """Return the smallest magnitude that stays when a whole model is trimmed (TIES, 2306.01708).

    The paper keeps the ``int(density * n)`` largest of all n elements of a task vector, wherever
    they lie; `trim_below` applies the threshold to one tensor after another. Elements that equal
    the threshold all stay. (The authors' code keeps one element more.)

    Args:
        tensors: The vector's tensors; read twice or thrice, one at a time in memory.
        density: Share of elements to keep; 0 gives infinity, 1 and more give 0.
    """
    check_density(density)
    if density >= 1:
        return 0.0
    k = int(density * sum(tensor.numel() for tensor in tensors))
    return kth_magnitude(tensors, k) if k else float("inf")


def trim_below(delta: Tensor, threshold: float) -> Tensor:
    """Zero what is smaller in magnitude than ``threshold``."""
    delta = as_float(delta)
    return delta if threshold <= 0 else masked(delta, delta.abs().float() >= threshold)


def trim(delta: Tensor, density: float, *, minimum: int = 0, edge: str = "topk") -> Tensor:
    """Keep the ``int(density * n)`` elements of largest magnitude of one tensor.

    Equal, element for element, to peft's ``magnitude_based_pruning``.

    Args:
        delta: Any shape, n elements.
        density: Share to keep. In a tiny tensor ``int(density * n)`` may be 0, or n - 1 where n was
            meant (``int(0.29 * 100)`` is 28): as in peft.
        minimum: Keep at least so many (mergekit: 1); 0 is peft's.
        edge: Which ones stay among equal magnitudes at the edge, of which a tensor of millions has
            some: those that ``torch.topk`` picks (``topk``, peft's, several times slower) or the
            ``first`` ones.

    Raises:
        UserError: An option out of range.
    """
    check_density(density)
    if edge not in EDGES:
        raise UserError(f"edge {edge!r} is unknown: choose one of {', '.join(EDGES)}")
    delta = as_float(delta)
    size = delta.numel()
    if density >= 1:
        return delta
    k = min(max(int(density * size), minimum), size)
    if k == 0:
        return torch.zeros_like(delta)
    return masked(delta, _largest(delta.abs().reshape(-1), k, edge).view(delta.shape))


def _largest(magnitude: Tensor, k: int, edge: str = "first") -> Tensor:
    """Mask of the k largest of a vector."""
    threshold = kth_magnitude([magnitude], k)
    rounded = magnitude.float()
    kept = rounded >= threshold
    surplus = int(kept.count_nonzero()) - k
    if surplus and edge == "topk":
        kept = torch.zeros_like(kept)
        kept[torch.topk(magnitude, k).indices] = True
    elif surplus:
        equal = (rounded == threshold).nonzero().squeeze(1)
        kept[equal[len(equal) - surplus :]] = False
    return kept


def drop(
    delta: Tensor, density: float, *, rescale: bool = True, generator: Generator | None = None
) -> Tensor:
    """Keep each element with probability ``density`` (DARE, arXiv 2311.03099).

    ``tau' = m tau / density`` with ``m ~ Bernoulli(density)``, so that the expectation stays. Equal
    to peft's ``random_pruning`` under the same state of the generator, but for density 0, where
    peft's division gives NaN and this gives zeros.

    Args:
        delta: Any shape.
        density: Probability to stay; from 1 on nothing happens and nothing is drawn.
        rescale: Divide by ``density``.
        generator: Where the random numbers come from; PyTorch's own by default.
    """
    check_density(density)
    delta = as_float(delta)
    if density >= 1:
        return delta
    kept = delta * torch.bernoulli(torch.full_like(delta, density), generator=generator)
    return kept / density if rescale and density else kept


def magprune(
    delta: Tensor,
    density: float,
    *,
    epsilon: float = 0.15,
    rescale: bool = True,
    generator: Generator | None = None,
) -> Tensor:
    """Drop at random, small elements more often than large ones (DELLA, arXiv 2406.11617).

    Within each row, an element whose magnitude has rank r of 0..n-1 (0 = smallest) stays with
    probability ``p_r = density - epsilon + 2 epsilon r / (n - 1)``, and survivors are divided by
    their ``p_r``: the authors' code with ``window_size = 2 epsilon``. mergekit 0.1.5 has the same
    probabilities but rescales to the L1 norm from before.

    Args:
        delta: A row is what belongs to one output unit: ``delta[i]``; a vector is one row.
        density: Mean share that stays.
        epsilon: Half the width of the probabilities; ``density +- epsilon`` must lie in (0, 1).
        rescale: Divide by the probabilities.
        generator: Where the random numbers come from.

    Raises:
        UserError: Probabilities outside of (0, 1).
    """
    check_density(density)
    delta = as_float(delta)
    if density >= 1 or delta.numel() == 0:
        return delta
    if density == 0:
        return torch.zeros_like(delta)
    if not (0 < density - epsilon <= density + epsilon < 1):
        raise UserError(
            f"epsilon {epsilon} with density {density}: density - epsilon and density + epsilon "
            "must lie between 0 and 1, choose a smaller epsilon"
        )
    rows = delta.reshape(delta.shape[0] if delta.dim() > 1 else 1, -1)
    size = rows.shape[1]
    ranks = rows.abs().argsort(1).argsort(1).to(rows.dtype)
    share = ranks / (size - 1) if size > 1 else torch.full_like(rows, 0.5)
    stays = (density - epsilon) + share * 2 * epsilon
    kept = rows * torch.bernoulli(stays, generator=generator)
    return (kept / stays if rescale else kept).reshape(delta.shape)


def without_outliers(delta: Tensor, density: float, *, outliers: float = 0.01) -> Tensor:
    """Drop the largest and the smallest elements of a tensor (Model Breadcrumbs, 2312.06795).

    The ``int(outliers * n)`` largest magnitudes go, then as many of the smallest as leave
    ``int(density * n)``; where both shares exceed 1 together, fewer outliers go. The counts are
    mergekit 0.1.5's ``magnitude_outliers``, to which this is equal (among equal magnitudes at an
    edge the first ones count as larger). In the paper's terms outliers is 1 - gamma and density is
    gamma - beta, counted per tensor here (per row in the authors' code).

    Args:
        delta: Any shape, n elements.
        density: Share to keep.
        outliers: Share of the largest to drop.
    """
    check_density(density)
    check_density(outliers, "outliers")
    delta = as_float(delta)
    size = delta.numel()
    if density >= 1:
        return delta
    k = int(density * size)
    if k == 0:
        return torch.zeros_like(delta)
    smaller = max(0, size - k - int(outliers * size))
    larger = size - smaller - k
    magnitude = delta.abs().reshape(-1)
    kept = _largest(magnitude, larger + k)
    if larger:
        kept &= ~_largest(magnitude, larger)
    return masked(delta, kept.view(delta.shape))


def low_rank(delta: Tensor, *, rank: int | None = None, energy: float | None = None) -> Tensor:
    """Keep the leading singular directions of a matrix: ``U_r U_r^T tau``.

    The left singular vectors are the eigenvectors of ``tau tau^T`` (of ``tau^T tau`` where that is
    smaller), taken in float64: several times faster than a singular value decomposition, equal to
    its truncation within float32 rounding. A choice of this project.

    Args:
        delta: Rows are ``delta[i]``, flattened; vectors and scalars stay as they are.
        rank: Number of directions.
        energy: Or: the fewest directions whose squared singular values make up this share.

    Raises:
        UserError: Neither or both given, or out of range.
    """
    if (rank is None) == (energy is None):
        raise UserError("low_rank: give rank or energy, one of them")
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise UserError(f"rank {rank!r}: give a whole number from 1 up")
    if energy is not None and (not isinstance(energy, int | float) or not 0 < energy <= 1):
        raise UserError(f"energy {energy!r}: give a share above 0, up to 1")
    delta = as_float(delta)
    if delta.dim() < 2 or delta.numel() == 0:
        return delta
    matrix = delta.reshape(delta.shape[0], -1).double()
    wide = matrix.shape[0] <= matrix.shape[1]
    if not wide:
        matrix = matrix.T
    squares, directions = torch.linalg.eigh(matrix @ matrix.T)
    count = rank if rank is not None else _enough(squares.flip(0).clamp_min(0), energy)
    if count >= len(squares):
        return delta
    leading = directions[:, -count:]
    kept = leading @ (leading.T @ matrix)
    return (kept if wide else kept.T).reshape(delta.shape).to(delta.dtype)


def _enough(squares: Tensor, energy: float) -> int:
    """The fewest leading entries whose sum reaches a share of the whole."""
    sums = squares.cumsum(0)
    return min(int(torch.searchsorted(sums, energy * sums[-1])) + 1, len(squares))
