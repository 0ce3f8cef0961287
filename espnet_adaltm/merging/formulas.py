"""Merging methods as pure functions of one tensor's differences.

Every function takes ``deltas``, K float tensors of one shape (``tau_k = W_k - W_base``), and
``weights``, K numbers (lambda), and returns ``tau`` of that shape, to be added to the base's
tensor. Low-precision differences are computed with in float32. No gradients; nothing is changed in
place.

The same name means different things in different tools. The defaults here are those of peft 0.21.2
(``peft/utils/merge_utils.py``) and equal to it element for element; options select the others.
"""

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from espnet_adaltm.config import check_choice
from espnet_adaltm.errors import UserError
from espnet_adaltm.merging import sparsify
from espnet_adaltm.merging.sparsify import as_float, masked

ELECTIONS = ("total", "frequency")
ELECTORATES = ("deltas", "weighted")
SCOPES = ("tensor", "model")
DIVISORS = ("count", "weights", "none")
Deltas = Sequence[Tensor]
Factors = Sequence[float] | Tensor
Generators = Generator | Sequence[Generator] | None


@torch.no_grad()
def task_arithmetic(deltas: Deltas, weights: Factors) -> Tensor:
    """``tau = sum_k lambda_k tau_k`` (Task Arithmetic, arXiv 2212.04089)."""
    rows, factors = _checked(deltas, weights)
    return _weighted_sum(rows, factors)


@torch.no_grad()
def magnitude_prune(
    deltas: Deltas, weights: Factors, density: float, *, minimum: int = 0, edge: str = "topk"
) -> Tensor:
    """``tau = sum_k lambda_k trim(tau_k)``, each tensor trimmed on its own (`sparsify.trim`)."""
    rows, factors = _checked(deltas, weights)
    rows = [sparsify.trim(row, density, minimum=minimum, edge=edge) for row in rows]
    return _weighted_sum(rows, factors)


@torch.no_grad()
def ties(
    deltas: Deltas,
    weights: Factors,
    density: float,
    *,
    elect: str = "total",
    elect_on: str = "deltas",
    scope: str = "tensor",
    normalize: str = "count",
    thresholds: Sequence[float] | None = None,
    minimum: int = 0,
    edge: str = "topk",
) -> Tensor:
    """Trim, elect a sign, add what agrees with it (TIES, arXiv 2306.01708).

    With ``t_k`` the trimmed differences, ``gamma = +1 where s >= 0, else -1`` the elected sign and
    ``a_k = [sign(t_k) = gamma]`` the votes that agree,

        tau = sum_k a_k lambda_k t_k / D,  0 where nothing agrees

    Args:
        deltas: K tensors.
        weights: K numbers.
        density: Share of elements that the trim keeps.
        elect: ``total``: ``s = sum_k t_k`` (the paper; peft's default); ``frequency``:
            ``s = sum_k sign(t_k)`` (peft's other).
        elect_on: ``deltas``: the election knows no weights (peft); ``weighted``: it is held over
            ``lambda_k t_k`` (mergekit).
        scope: ``tensor``: each tensor keeps its own ``int(density n)`` largest (peft, mergekit);
            ``model``: the largest of the whole vector stay (the paper), see ``thresholds``.
        normalize: ``count``: ``D = sum_k a_k`` (the paper, peft); ``weights``:
            ``D = sum_k a_k lambda_k``, 1 where that is 0 (mergekit); ``none``: ``D = 1``.
        thresholds: For scope ``model``: each vector's `sparsify.trim_threshold`. Without them the
            tensors given here are taken for whole vectors.
        minimum: For scope ``tensor``: keep at least so many elements (mergekit: 1).
        edge: For scope ``tensor``: ``topk`` (peft, to the last element) or ``first`` (faster), see
            `sparsify.trim`.

    Raises:
        UserError: Unknown option, or deltas and weights that do not belong together.
    """
    rows, factors = _checked(deltas, weights)
    check_scope(scope)
    sparsify.check_density(density)
    if scope == "tensor":
        rows = [sparsify.trim(row, density, minimum=minimum, edge=edge) for row in rows]
    else:
        if thresholds is None:
            thresholds = [sparsify.trim_threshold([row], density) for row in rows]
        if len(thresholds) != len(rows):
            raise UserError(f"{len(thresholds)} thresholds for {len(rows)} task vectors")
        rows = [sparsify.trim_below(row, t) for row, t in zip(rows, thresholds)]
    return _agreed_sum(rows, factors, elect, elect_on, normalize)


@torch.no_grad()
def dare(
    deltas: Deltas,
    weights: Factors,
    density: float,
    *,
    rescale: bool = True,
    generator: Generators = None,
) -> Tensor:
    """``tau = sum_k lambda_k drop(tau_k)`` (DARE, arXiv 2311.03099; peft's ``dare_linear``).

    Args:
        deltas: K tensors.
        weights: K numbers.
        density: Probability of an element to stay.
        rescale: Divide survivors by ``density`` (the paper, peft); mergekit rescales to the L1 norm
            instead.
        generator: One for all, drawn from in the order of the deltas, or one per delta.
    """
    rows, factors = _checked(deltas, weights)
    return _weighted_sum(_dropped(rows, density, rescale, generator), factors)


@torch.no_grad()
def dare_ties(
    deltas: Deltas,
    weights: Factors,
    density: float,
    *,
    elect: str = "total",
    elect_on: str = "deltas",
    normalize: str = "count",
    rescale: bool = True,
    generator: Generators = None,
) -> Tensor:
    """Drop as `dare` does instead of trimming, then elect and add as `ties` does."""
    rows, factors = _checked(deltas, weights)
    rows = _dropped(rows, density, rescale, generator)
    return _agreed_sum(rows, factors, elect, elect_on, normalize)


@torch.no_grad()
def della(
    deltas: Deltas,
    weights: Factors,
    density: float,
    *,
    epsilon: float = 0.15,
    elect: str = "total",
    elect_on: str = "deltas",
    normalize: str = "count",
    rescale: bool = True,
    generator: Generators = None,
) -> Tensor:
    """Drop by magnitude (`sparsify.magprune`), then elect and add as `ties` (DELLA, 2406.11617)."""
    rows, factors = _checked(deltas, weights)
    pruned = [
        sparsify.magprune(row, density, epsilon=epsilon, rescale=rescale, generator=source)
        for row, source in zip(rows, _sources(generator, len(rows)))
    ]
    return _agreed_sum(pruned, factors, elect, elect_on, normalize)


@torch.no_grad()
def breadcrumbs(
    deltas: Deltas, weights: Factors, density: float, *, outliers: float = 0.01
) -> Tensor:
    """``tau = sum_k lambda_k m_k tau_k``, m without the largest and smallest (arXiv 2312.06795).

    See `sparsify.without_outliers` for the mask m.
    """
    rows, factors = _checked(deltas, weights)
    rows = [sparsify.without_outliers(row, density, outliers=outliers) for row in rows]
    return _weighted_sum(rows, factors)


@torch.no_grad()
def slerp(first: Tensor, second: Tensor, t: float, *, linear_above: float = 0.9995) -> Tensor:
    """Go from one tensor to another along the arc between their directions.

    ``sin((1 - t) theta) / sin(theta) first + sin(t theta) / sin(theta) second`` with theta the
    angle between the two, each taken as one long vector. Where ``|cos theta|`` exceeds
    ``linear_above`` or is 1, and where one of them is zero in length, ``(1 - t) first + t second``.

    Args:
        first: Differences (or weights), any shape.
        second: The same of another expert.
        t: 0 gives ``first``, 1 gives ``second``.
        linear_above: Where the sine is too small to divide by (mergekit's value).
    """
    (one, other), (share, _) = _checked((first, second), (t, t))
    length = one.norm() * other.norm()
    cosine = torch.dot(one.flatten(), other.flatten()) / length
    if not cosine.abs() <= linear_above or cosine.abs() >= 1:  # also where it is NaN
        return (1 - share) * one + share * other
    angle = math.acos(cosine)
    before, after = (math.sin(part * angle) / math.sin(angle) for part in (1 - share, share))
    return before * one + after * other


@torch.no_grad()
def model_stock(deltas: Deltas) -> Tensor:
    """``tau = t mean_k tau_k``, ``t = K c / (1 + (K - 1) c)`` (Model Stock, arXiv 2403.19522).

    c is the mean cosine between the K >= 2 differences of this tensor: the less the experts agree,
    the nearer the result stays to the base. 0 where the denominator vanishes or a difference is
    zero. The method has no weights.
    """
    if len(deltas) < 2:
        raise UserError(f"model_stock needs two task vectors or more, found {len(deltas)}")
    rows, _ = _checked(deltas, [1.0] * len(deltas))
    flat = [row.flatten().double() for row in rows]
    norms = [float(row.norm()) for row in flat]
    if not all(norms):
        return torch.zeros_like(rows[0])
    cosines = [
        float(torch.dot(flat[i], flat[j])) / (norms[i] * norms[j])
        for i in range(len(flat))
        for j in range(i)
    ]
    cosine, count = sum(cosines) / len(cosines), len(rows)
    denominator = 1 + (count - 1) * cosine
    if abs(denominator) < 1e-6:
        return torch.zeros_like(rows[0])
    return _total(rows) * (cosine / denominator)


@torch.no_grad()
def agreement(deltas: Deltas, elect: str = "total") -> list[Tensor]:
    """Elect a sign per element and tell which deltas have it: K boolean tensors.

    Zero sums elect the positive sign; a zero element never agrees. See `ties` for ``elect``.
    """
    check_choice("elect", elect, ELECTIONS)
    rows, _ = _checked(deltas, [1.0] * len(deltas))
    positive = _total([row.sign() for row in rows] if elect == "frequency" else rows) >= 0
    return [((row > 0) == positive) & (row != 0) for row in rows]


def _agreed_sum(
    rows: list[Tensor], factors: list[float], elect: str, elect_on: str, normalize: str
) -> Tensor:
    check_choice("elect_on", elect_on, ELECTORATES)
    check_choice("normalize", normalize, DIVISORS)
    weighted = [row * factor for row, factor in zip(rows, factors)]
    agrees = agreement(rows if elect_on == "deltas" else weighted, elect)
    total = _total([masked(row, agree) for row, agree in zip(weighted, agrees)])
    if normalize == "none":
        return total
    if normalize == "count":
        return total / _total([agree.to(total.dtype) for agree in agrees]).clamp_min(1)
    divisor = _total([a.to(total.dtype) * factor for a, factor in zip(agrees, factors)])
    return total / divisor.masked_fill_(divisor == 0, 1)


def _weighted_sum(rows: list[Tensor], factors: list[float]) -> Tensor:
    return _total([row * factor for row, factor in zip(rows, factors)])


def _total(rows: Sequence[Tensor]) -> Tensor:
    # PyTorch adds up to four rows one after another, and more of them in another order; this has
    # the bits of its sum without the copy that stacking makes.
    if len(rows) > 4:
        return torch.stack(list(rows)).sum(0)
    total = rows[0]
    for row in rows[1:]:
        total = total + row
    return total


def _sources(generator: Generators, count: int) -> Sequence[Generator | None]:
    if generator is None or isinstance(generator, Generator):
        return [generator] * count
    if len(generator) != count:
        raise UserError(f"{len(generator)} random generators for {count} task vectors")
    return generator


def _dropped(
    rows: list[Tensor], density: float, rescale: bool, generator: Generators
) -> list[Tensor]:
    return [
        sparsify.drop(row, density, rescale=rescale, generator=source)
        for row, source in zip(rows, _sources(generator, len(rows)))
    ]


def _checked(deltas: Deltas, weights: Factors) -> tuple[list[Tensor], list[float]]:
    if not deltas:
        raise UserError("there is nothing to merge: give at least one task vector")
    factors = _numbers(weights)
    if len(factors) != len(deltas):
        raise UserError(f"{len(factors)} weights for {len(deltas)} task vectors: give one each")
    shapes = {tuple(delta.shape) for delta in deltas}
    if len(shapes) > 1:
        raise UserError(f"differences of several shapes cannot be merged: {sorted(shapes)}")
    rows = [as_float(delta.detach()) for delta in deltas]
    if len({row.dtype for row in rows}) > 1:
        rows = [row.double() for row in rows]
    return rows, factors


def _numbers(weights: Factors) -> list[float]:
    values = weights.tolist() if isinstance(weights, Tensor) else weights
    if not isinstance(values, Sequence) or not all(map(_is_finite, values)):
        raise UserError(f"weights {values!r}: give one finite number per task vector")
    return [float(value) for value in values]


def _is_finite(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)


def check_scope(scope: str) -> None:
    """Refuse a scope that is not one of `SCOPES`.

    Raises:
        UserError: The message names them.
    """
    check_choice("scope", scope, SCOPES)
