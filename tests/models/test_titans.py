"""The rule against a step-by-step reference in float64, and against another implementation."""

import pytest
import torch
from torch.nn import functional

from espnet_adaltm.models import titans
from espnet_adaltm.models.titans import Gates, State

SIZE, WIDTH = 5, 7


def write(state, keys, values, gates, valid, chunk, bounded=False):
    return titans.write(state, keys, values, titans.plan(gates, valid, chunk), bounded=bounded)


def make(count=2, frames=9, seed=0, momentum=True):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weights = [draw(count, WIDTH, SIZE), draw(count, SIZE, WIDTH)]
    pushed = [0.1 * draw(*part.shape) * momentum for part in weights]
    keys = functional.normalize(draw(count, frames, SIZE), dim=-1)
    gates = draw(count, frames, 3).sigmoid() * torch.tensor([1.0, 0.1, 0.3])
    values = draw(count, frames, SIZE)
    return State(*weights, *pushed), keys, values, Gates(*gates.unbind(-1))


def gradient(weights, key, value):
    """Of || M(k) - v ||^2, by autograd."""
    weights = [part.detach().requires_grad_() for part in weights]
    loss = (weights[1] @ functional.silu(weights[0] @ key) - value).square().sum()
    return torch.autograd.grad(loss, weights)


def steepness(weights, key):
    """2 || J ||^2 with the Frobenius norm of the first layer's part, by autograd."""

    def output(first, second):
        return second @ functional.silu(first @ key)

    by_first, by_second = torch.autograd.functional.jacobian(output, tuple(weights))
    through = by_first.square().sum()
    return float(2 * (through + by_second[0].square().sum())), by_first, by_second


def by_steps(state, keys, values, gates, valid, chunk=1, bounded=False):
    """The rule as it is printed, one memory and one frame at a time."""
    result = []
    for row in range(len(keys)):
        weights, momenta = [part[row] for part in state[:2]], [part[row] for part in state[2:]]
        start = weights
        for frame in range(keys.shape[1]):
            if frame % chunk == 0:
                start = weights
            if not valid[row, frame]:
                continue
            eta, theta, alpha = (gate[row, frame] for gate in gates)
            if bounded:
                theta = theta / max(1.0, steepness(start, keys[row, frame])[0])
            slopes = gradient(start, keys[row, frame], values[row, frame])
            momenta = [eta * s - theta * g for s, g in zip(momenta, slopes)]
            weights = [(1 - alpha) * m + s for m, s in zip(weights, momenta)]
        result.append(weights + momenta)
    return State(*(torch.stack(parts) for parts in zip(*result)))


def same(first, second, tolerance=1e-12):
    for name, one, other in zip(State._fields, first, second):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance, msg=name)


@pytest.mark.parametrize("chunk", [1, 2, 4, 9, 64])
def test_writing_is_the_printed_rule(chunk):
    state, keys, values, gates = make()
    valid = torch.ones(2, 9, dtype=torch.bool)
    valid[1, 6:] = False
    valid[0, 3] = False  # inside a chunk
    written = write(state, keys, values, gates, valid, chunk)
    same(written, by_steps(state, keys, values, gates, valid, chunk))
    assert (written.first - state.first).abs().max() > 0.01


@pytest.mark.parametrize("chunk", [1, 4])
def test_bounded_steps_are_divided_by_the_curvature(chunk):
    state, keys, values, gates = make()
    state = state._replace(first=0.2 * state.first, second=0.2 * state.second)  # around one
    valid = torch.ones(2, 9, dtype=torch.bool)
    written = write(state, keys, values, gates, valid, chunk, bounded=True)
    same(written, by_steps(state, keys, values, gates, valid, chunk, bounded=True))
    found = [steepness([state.first[0], state.second[0]], key)[0] for key in keys[0]]
    assert min(found) < 1 < max(found)


def test_curvature_bounds_the_largest_eigenvalue():
    state, keys, *_ = make(count=1, frames=20)
    before = keys @ state.first.mT
    hidden, sigmoid = functional.silu(before), before.sigmoid()
    slope = sigmoid * (1 + before * (1 - sigmoid))
    bounds = titans.curvature(keys, hidden, slope, state.second)[0]
    for bound, key in zip(bounds, keys[0]):
        total, *jacobian = steepness([state.first[0], state.second[0]], key)
        assert float(bound) == pytest.approx(total)
        matrix = torch.cat([part.flatten(1) for part in jacobian], 1)
        largest = 2 * torch.linalg.eigvalsh(matrix @ matrix.T)[-1]
        assert largest <= bound + 1e-9


def test_gates_that_are_fully_open_or_closed():
    """Sigmoids round to 0 and 1; there are no quotients or logarithms that this could hurt."""
    state, keys, values, gates = make(frames=8)
    eta, theta, alpha = (gate.clone().requires_grad_() for gate in gates)
    with torch.no_grad():
        eta[0, ::2], eta[1, ::3], alpha[0, 3], alpha[1, ::2] = 0.0, 1.0, 1.0, 0.0
    valid = torch.ones(2, 8, dtype=torch.bool)
    gates = Gates(eta, theta, alpha)
    written = write(state, keys, values, gates, valid, 8)
    same(written, by_steps(state, keys, values, gates, valid, 8))
    sum(part.sum() for part in written).backward()
    assert all(gate.grad.isfinite().all() and gate.grad.any() for gate in gates)


def test_one_frame_by_hand():
    state = State(*(torch.full((1, 1, 1), value) for value in (1.0, 2.0, 0.5, -0.5)))
    one = torch.ones(1, 1, 1)
    gates = Gates(*(torch.full((1, 1), value) for value in (0.5, 0.1, 0.2)))
    after = write(state, one, 3 * one, gates, torch.ones(1, 1, dtype=torch.bool), 1)
    hidden = 1 / (1 + 2.718281828**-1)  # silu(1)
    error = 2 * (2 * hidden - 3)
    slope = hidden + hidden * (1 - hidden)
    momenta = 0.25 - 0.1 * error * 2 * slope, -0.25 - 0.1 * error * hidden
    expected = 0.8 + momenta[0], 1.6 + momenta[1], *momenta
    assert [float(part) for part in after] == pytest.approx(expected, abs=1e-6)
    read = titans.recall(after, one)
    first = torch.tensor(expected[0])
    assert float(read) == pytest.approx(expected[1] * float(functional.silu(first)), abs=1e-6)


def test_chunks_cut_a_sequence_anywhere_between_them():
    state, keys, values, gates = make(frames=12)
    valid = torch.ones(2, 12, dtype=torch.bool)
    whole = write(state, keys, values, gates, valid, 4)
    parts = state
    for span in (slice(0, 4), slice(4, 12)):
        some = Gates(*(gate[:, span] for gate in gates))
        parts = write(parts, keys[:, span], values[:, span], some, valid[:, span], 4)
    same(whole, parts)


def test_padding_and_company_change_nothing():
    state, keys, values, gates = make(count=3, frames=10, seed=1)
    lengths = torch.tensor([10, 4, 7])
    valid = torch.arange(10) < lengths[:, None]
    together = write(state, keys, values, gates, valid, 4)
    for row, size in enumerate(lengths.tolist()):
        mine = slice(row, row + 1)
        alone = write(
            state.pick(mine),
            keys[mine, :size],
            values[mine, :size],
            Gates(*(gate[mine, :size] for gate in gates)),
            valid[mine, :size],
            4,
        )
        same(together.pick(mine), alone)
    garbage = torch.where(valid[..., None], keys, torch.full_like(keys, 1e6))
    same(together, write(state, garbage, values, gates, valid, 4), tolerance=0)
    none = torch.zeros_like(valid)
    same(write(state, keys, values, gates, none, 4), state, tolerance=0)


def test_gradients_pass_through_a_write():
    state, keys, values, gates = make(count=1, frames=5)
    valid = torch.ones(1, 5, dtype=torch.bool)

    def after(first, second, keys, values, *gates):
        state = titans.new_state(first, second, 1)
        state = write(state, keys, values, Gates(*gates), valid, 2)
        return titans.recall(state, keys)

    inputs = [state.first[0], state.second[0], keys, values, *gates]
    inputs = [part.detach().requires_grad_() for part in inputs]
    assert torch.autograd.gradcheck(after, inputs)


def test_what_was_written_is_recalled():
    torch.manual_seed(0)
    keys = functional.normalize(torch.randn(1, 4, SIZE), dim=-1)
    values = torch.randn(1, 4, SIZE)
    state = titans.new_state(torch.randn(64, SIZE) * 0.25, torch.zeros(SIZE, 64), 1)
    gates = Gates(*(torch.full((1, 4), value) for value in (0.0, 0.2, 0.0)))
    distances = [float((titans.recall(state, keys) - values).square().mean())]
    for _ in range(60):
        state = write(state, keys, values, gates, torch.ones(1, 4, dtype=torch.bool), 1)
        distances.append(float((titans.recall(state, keys) - values).square().mean()))
    assert distances[-1] < 0.02 * distances[0]


def test_another_implementation_agrees():
    """`titans-pytorch`, where it is installed: its gradients are those of chunk = T."""
    other = pytest.importorskip("titans_pytorch", reason="titans-pytorch is not installed")
    _, inputs, _, _ = make(frames=6, seed=3, momentum=False)
    inputs = inputs.float()

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = torch.nn.Parameter(torch.randn(WIDTH, SIZE))
            self.second = torch.nn.Parameter(torch.randn(SIZE, WIDTH))

        def forward(self, x):
            return functional.silu(x @ self.first.mT) @ self.second.mT

    class Unit(torch.nn.Module):
        def forward(self, x):
            return functional.normalize(x, dim=-1)

    torch.manual_seed(0)
    network = Network()
    theirs = other.NeuralMemory(
        SIZE,
        model=network,
        chunk_size=1,
        pre_rmsnorm=False,
        activation=torch.nn.SiLU(),
        mem_model_norm_add_residual=False,
        default_step_transform_max_lr=0.1,
        store_memory_loss_fn=lambda found, wanted: (found - wanted).square().sum(-1),
    )
    theirs.k_norm = theirs.q_norm = Unit()
    with torch.no_grad():
        _, stored = theirs.store_memories(inputs, return_surprises=False)
        weights, momenta = stored.states
        k, v = (functional.silu(inputs @ layer[0].weight.mT) for layer in
                (theirs.to_keys, theirs.to_values))  # fmt: skip
        gates = Gates(
            theirs.to_momentum[0](inputs).sigmoid()[..., 0],
            0.1 * theirs.to_adaptive_step[0](inputs).sigmoid()[..., 0],
            theirs.to_decay_factor[0](inputs).sigmoid()[..., 0],
        )
        k = functional.normalize(k, dim=-1)
        state = titans.new_state(network.first, network.second, 2)
        ours = write(state, k, v, gates, torch.ones(2, 6, dtype=torch.bool), 6)
        for name in ("first", "second"):
            torch.testing.assert_close(getattr(ours, name), weights[name])
            torch.testing.assert_close(getattr(ours, f"{name}_momentum"), momenta[name][0])
        # Every frame reads what the memory was after it: the last one, what it is now.
        read = theirs.retrieve_memories(inputs, stored.updates)[:, -1:]
        q = functional.normalize(functional.silu(inputs @ theirs.to_queries[0].weight.mT), dim=-1)
        torch.testing.assert_close(titans.recall(ours, q[:, -1:]), read)
