"""Titans' neural memory: a small network that is trained while it is used.

[P] arXiv 2501.00663. With keys k, values v, queries q and the data-dependent momentum eta, step
theta and forgetting alpha of every frame t:

    loss(M; k, v) = || M(k) - v ||^2
    S_t = eta_t S_{t-1} - theta_t grad loss(M_{t-1}; k_t, v_t)
    M_t = (1 - alpha_t) M_{t-1} + S_t
    y_t = M(q_t)

Here M is `second silu(first k)`: two layers, SiLU, no bias. In chunks of 1 `write` is this rule,
frame by frame. With larger chunks the gradients of a chunk are taken at the memory that the chunk
starts with, which is the paper's parallel form; momentum and forgetting stay those of every frame.
The gradient is written out rather than left to autograd, so that a chunk costs five matrix
products and the whole is differentiable for the training of everything around it.

A gradient step overshoots where the loss is steep, and a memory that overshoots in every frame is
beyond all bounds within a turn. Ours, by option: theta is divided by the curvature of its frame's
loss (normalised least mean squares) where that is above one.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class State(NamedTuple):
    """N memories: their weights and the momenta S of these.

    Attributes:
        first: [N, W, D].
        second: [N, D, W].
        first_momentum: [N, W, D].
        second_momentum: [N, D, W].
    """

    first: Tensor
    second: Tensor
    first_momentum: Tensor
    second_momentum: Tensor

    def detach(self) -> "State":
        """The same numbers without their history of computation."""
        return State(*(part.detach() for part in self))

    def pick(self, chosen: slice) -> "State":
        """Some of the memories."""
        return State(*(part[chosen] for part in self))

    def to(self, device: torch.device) -> "State":
        """The same on another device."""
        return State(*(part.to(device) for part in self))


def join(states: Sequence[State]) -> State:
    """The memories of several states, in turn."""
    return State(*(torch.cat(parts) for parts in zip(*states, strict=True)))


class Gates(NamedTuple):
    """What the data decides about every frame, each [N, T].

    Attributes:
        momentum: eta, share of the past surprise that is kept, 0 to 1.
        step: theta, weight of the momentary surprise, above 0.
        forget: alpha, share of the memory that is forgotten, 0 to 1.
    """

    momentum: Tensor
    step: Tensor
    forget: Tensor


def new_state(first: Tensor, second: Tensor, count: int) -> State:
    """``count`` memories with the weights [W, D] and [D, W], and no momentum."""
    weights = [part.expand(count, *part.shape) for part in (first, second)]
    return State(*weights, *(torch.zeros_like(part) for part in weights))


def recall(state: State, queries: Tensor) -> Tensor:
    """Read without changing anything: `M(q)`.

    Args:
        state: N memories.
        queries: [N, T, D].

    Returns:
        [N, T, D].
    """
    return functional.silu(queries @ state.first.mT) @ state.second.mT


class Plan(NamedTuple):
    """The gates of N sequences of T frames, unrolled over C chunks of c frames by `plan`.

    With (M, S) at a chunk's start and gradients g_i: `M' = m M + s S - sum_i w_i g_i` and
    `S' = s' S - sum_i w'_i g_i`.

    Attributes:
        carry: [[m, s], [0, s']], [C, N, 2, 2].
        gradient: w and w', [C, N, c, 2].
    """

    carry: Tensor
    gradient: Tensor

    def rows(self, rows: Sequence[int] | slice, frames: int) -> "Plan":
        """Some of the sequences, and the chunks that their first ``frames`` frames are in."""
        chunks = -(-frames // self.gradient.shape[2]) if frames else 0
        return Plan(*(part[:chunks, rows] for part in self))


def plan(gates: Gates, valid: Tensor, chunk: int) -> Plan:
    """Unroll the two recurrences, which depend on the gates alone.

    Seen from a chunk's end, M_i counts by m_i = (1 - alpha_{i+1}) m_{i+1}, and S_i, which is a part
    of M_{i+1} and of S_{i+1}, by s_i = eta_{i+1} (m_{i+1} + s_{i+1}); g_i by theta_i (m_i + s_i).
    For S' the same with m = 0.

    Args:
        gates: Of every frame.
        valid: [N, T]; a frame that is not valid changes nothing at all.
        chunk: Frames whose gradients are taken at the same memory; 1 is the rule itself.
    """
    size = valid.shape[1]
    chunk = max(min(chunk, size), 1)
    eta, theta, alpha = gates
    parts, rest = torch.stack((eta, eta, theta, 1 - alpha)), -size % chunk
    if rest:
        parts, valid = functional.pad(parts, (0, rest)), functional.pad(valid, (0, rest))
    parts = torch.where(valid, parts, parts.new_tensor([1.0, 0.0, 0.0, 1.0])[:, None, None])
    # From here on from the last frame of a chunk to its first, [C, N, c].
    fades, pushes, steps, keeps = parts.unflatten(2, (-1, chunk)).transpose(1, 2).flip(-1)
    kept = keeps.cumprod(-1)
    memory = _later(kept, 1.0)
    momentum, faded = _scan(fades, pushes * memory)
    own, both = _later(faded, 1.0), memory + _later(momentum, 0.0)
    last = (kept[..., -1], momentum[..., -1], torch.zeros_like(kept[..., -1]), faded[..., -1])
    gradient = steps[..., None] * torch.stack((both, own), -1)
    return Plan(torch.stack(last, -1).unflatten(-1, (2, 2)), gradient.flip(-2))


def _later(values: Tensor, first: float) -> Tensor:
    """One place later along the last dimension, which begins with ``first``."""
    return functional.pad(values[..., :-1], (1, 0), value=first)


def _scan(factors: Tensor, terms: Tensor) -> tuple[Tensor, Tensor]:
    """`x_t = f_t x_{t-1} + v_t` from 0, and the products of all f up to t, for the last dimension.

    In log2(c) steps for c places: after each, twice as many terms are in.
    """
    both, step = torch.stack((terms, factors)), 1
    while step < terms.shape[-1]:
        late, early = both[..., step:], both[..., :-step]
        grown = late[1] * early
        grown[0] += late[0]
        both, step = torch.cat((both[..., :step], grown), -1), 2 * step
    return both[0], both[1]


def write(
    state: State, keys: Tensor, values: Tensor, weights: Plan, *, bounded: bool = False
) -> State:
    """Let N memories learn T frames each.

    Args:
        state: Before.
        keys: [N, T, D].
        values: [N, T, D].
        weights: Of these sequences.
        bounded: Divide theta by `curvature` where that is above one; otherwise it is Titans' rule.

    Returns:
        The state after.
    """
    chunk = weights.gradient.shape[2]
    # Weights above their momenta: [N, 2, W, D] and [N, 2, D, W].
    first = torch.stack((state.first, state.first_momentum), 1)
    second = torch.stack((state.second, state.second_momentum), 1)
    parts = keys.split(chunk, 1), values.split(chunk, 1), *(part.unbind() for part in weights)
    for now in zip(*parts, strict=True) if keys.shape[1] else ():
        first, second = _write_chunk(first, second, *now, bounded)
    return State(first[:, 0], second[:, 0], first[:, 1], second[:, 1])


def _write_chunk(
    first: Tensor,
    second: Tensor,
    keys: Tensor,
    values: Tensor,
    carry: Tensor,
    weights: Tensor,
    bounded: bool,
) -> tuple[Tensor, Tensor]:
    """One chunk: keys and values [N, c, D], carry [N, 2, 2], weights [N, c or more, 2]."""
    inner, outer = first[:, 0], second[:, 0]
    before = keys @ inner.mT
    sigmoid = before.sigmoid()
    hidden = before * sigmoid
    error = torch.baddbmm(values, hidden, outer.mT, beta=-2, alpha=2)
    # d silu(x) / dx = s (1 + x (1 - s)) with s = sigmoid(x)
    slope = torch.addcmul(sigmoid, hidden, 1 - sigmoid)
    weights = weights[:, : keys.shape[1], :, None]
    if bounded:
        steepness = curvature(keys, hidden, slope, outer).clamp(min=1)
        weights = weights / steepness[..., None, None]
    return (
        _move(first, carry, weights, (error @ outer) * slope, keys),
        _move(second, carry, weights, error, hidden),
    )


def curvature(keys: Tensor, hidden: Tensor, slope: Tensor, outer: Tensor) -> Tensor:
    """Bound of the largest eigenvalue of `2 J J^T`, J being M(k)'s derivative by the weights.

    A step theta changes M(k) by `-theta 2 J J^T (M(k) - v)`: from an eigenvalue of `2 / theta` on,
    every step makes the error larger. Exact but for the Frobenius norm of `outer diag(slope)`,
    which takes the place of its largest singular value.

    Args:
        keys: [N, c, D].
        hidden: silu(first k), [N, c, W].
        slope: Its derivative, [N, c, W].
        outer: The second layer, [N, D, W].

    Returns:
        [N, c].
    """
    through = (slope.square() @ outer.square().sum(1)[..., None]).squeeze(-1)
    return 2 * (hidden.square().sum(-1) + keys.square().sum(-1) * through)


def _move(part: Tensor, carry: Tensor, weights: Tensor, errors: Tensor, inputs: Tensor) -> Tensor:
    """A layer above its momentum [N, 2, O, I] after errors [N, c, O] at inputs [N, c, I]."""
    gradient = (weights * errors[:, :, None]).flatten(2).mT @ inputs
    shape = (len(part), 2, -1)
    moved = torch.baddbmm(gradient.view(shape), carry, part.view(shape), beta=-1)
    return moved.view(part.shape)
