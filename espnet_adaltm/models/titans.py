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
The gradient is written out rather than left to autograd, so that a chunk costs seven matrix
products and the whole is differentiable for the training of everything around it.
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

    With (M, S) at a chunk's start and gradients g_i: `M' = m M + s S - sum_i w_i g_i`, and likewise
    S'. The last dimension of every part stands for M' and S'.

    Attributes:
        memory: m, [C, N, 2].
        momentum: s, [C, N, 2].
        gradient: w, [C, N, c, 2].
    """

    memory: Tensor
    momentum: Tensor
    gradient: Tensor

    def rows(self, rows: Sequence[int], frames: int) -> "Plan":
        """Some of the sequences, and the chunks that their first ``frames`` frames are in."""
        chunks = -(-frames // self.gradient.shape[2]) if frames else 0
        return Plan(*(part[:chunks, rows] for part in self))


def plan(gates: Gates, valid: Tensor, chunk: int) -> Plan:
    """Unroll the two recurrences, which depend on the gates alone.

    Backwards from a chunk's end: what M_i and S_i count for there gives what g_i, M_{i-1} and
    S_{i-1} do.

    Args:
        gates: Of every frame.
        valid: [N, T]; a frame that is not valid changes nothing at all.
        chunk: Frames whose gradients are taken at the same memory; 1 is the rule itself.
    """
    size = valid.shape[1]
    chunk = max(min(chunk, size), 1)
    parts = (functional.pad(part, (0, -size % chunk)) for part in (*gates, valid))
    eta, theta, alpha, valid = (part.unflatten(1, (-1, chunk)).transpose(0, 1) for part in parts)
    memory = theta.new_tensor([1.0, 0.0]).expand(*theta.shape[:2], 2)
    momentum = theta.new_tensor([0.0, 1.0]).expand(*theta.shape[:2], 2)
    gradient: list[Tensor] = []
    for frame in reversed(range(chunk)):
        inside = valid[..., frame, None]
        both = memory + momentum
        gradient.append(torch.where(inside, theta[..., frame, None] * both, 0.0))
        memory = torch.where(inside, (1 - alpha[..., frame, None]) * memory, memory)
        momentum = torch.where(inside, eta[..., frame, None] * both, momentum)
    return Plan(memory, momentum, torch.stack(gradient[::-1], dim=2))


def write(state: State, keys: Tensor, values: Tensor, weights: Plan) -> State:
    """Let N memories learn T frames each.

    Args:
        state: Before.
        keys: [N, T, D].
        values: [N, T, D].
        weights: Of these sequences.

    Returns:
        The state after.
    """
    chunk = weights.gradient.shape[2]
    for number, begin in enumerate(range(0, keys.shape[1], chunk)):
        span = slice(begin, begin + chunk)
        state = _write_chunk(state, keys[:, span], values[:, span], *(w[number] for w in weights))
    return state


def _write_chunk(
    state: State, keys: Tensor, values: Tensor, memory: Tensor, momentum: Tensor, weights: Tensor
) -> State:
    """One chunk: keys and values [N, c, D], its weights [N, 2], [N, 2] and [N, c or more, 2]."""
    before = keys @ state.first.mT
    sigmoid = before.sigmoid()
    hidden = before * sigmoid
    error = 2 * (hidden @ state.second.mT - values)
    # d silu(x) / dx = s (1 + x (1 - s)) with s = sigmoid(x)
    inner = (error @ state.second) * (sigmoid + hidden * (1 - sigmoid))
    new = []
    for part in (0, 1):
        weight = weights[:, : keys.shape[1], part, None]
        gradients = ((weight * inner).mT @ keys, (weight * error).mT @ hidden)
        kept, pushed = memory[:, part, None, None], momentum[:, part, None, None]
        for index, gradient in enumerate(gradients):
            new.append(kept * state[index] + pushed * state[index + 2] - gradient)
    return State(*new)
