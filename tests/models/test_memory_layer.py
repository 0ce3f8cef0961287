"""Dialogues through a memory layer: order, masks, batches, the gate, and what is kept."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from espnet_adaltm.errors import UserError
from espnet_adaltm.models import titans
from espnet_adaltm.models.memory import Memory, memory_options
from espnet_adaltm.models.memory_layer import MemoryLayer, Turns
from espnet_adaltm.models.titans import Gates

DIM = 6


def make_layer(gate=0.7, seed=0, **options):
    """A layer whose memories learn fast enough to be seen."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = MemoryLayer(DIM, **{"size": 5, "width": 8, "chunk": 3, "max_step": 1.5} | options)
        with torch.no_grad():
            layer.gate.fill_(gate)
            layer.second.normal_(std=0.1)
            layer.gates.weight.normal_()
            layer.gates.bias.copy_(torch.tensor([0.0, 1.0, -2.0]))
    return layer.double().eval()


def frames(*lengths, seed=1):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(len(lengths), max(lengths), DIM, generator=generator, dtype=torch.float64)
    return hidden, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def by_hand(layer, turns):
    """One dialogue, turn by turn: read with the memory so far, then write."""
    state = titans.new_state(layer.first, layer.second, 1)
    results = []
    for hidden in turns:
        x = layer.w_in(layer.norm(hidden[None]))
        q, k, v = (torch.nn.functional.silu(map_(x)) for map_ in
                   (layer.queries, layer.keys, layer.values))  # fmt: skip
        q, k = q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True)
        answer = titans.recall(state, q)
        results.append(hidden + layer.gate.tanh() * layer.w_out(answer)[0])
        eta, theta, alpha = layer.gates(x).sigmoid().unbind(-1)
        gates = Gates(eta, (1 - eta) * layer.max_step / layer.chunk * theta, alpha)
        valid = torch.ones(1, len(hidden), dtype=torch.bool)
        plan = titans.plan(gates, valid, layer.chunk)
        state = titans.write(state, k, v, plan, bounded=layer.bounded)
    return results


@torch.no_grad()
def test_a_batch_of_dialogues_is_one_turn_after_the_other():
    layer = make_layer()
    lengths = (4, 7, 5, 2, 6)
    hidden, mask = frames(*lengths)
    turns = Turns(("b", "a", "a", "b", "a"))
    output = layer(hidden, mask, turns)
    for name, rows in (("a", (1, 2, 4)), ("b", (0, 3))):
        expected = by_hand(layer, [hidden[row, : lengths[row]] for row in rows])
        for row, one in zip(rows, expected):
            torch.testing.assert_close(output[row, : lengths[row]], one, msg=f"{name} {row}")
            assert torch.equal(output[row, lengths[row] :], hidden[row, lengths[row] :])
    fresh = layer(hidden[2:3], mask[2:3], Turns(("a",)))
    assert (output[2, :5] - fresh[0, :5]).abs().max() > 1e-3  # its history matters


@torch.no_grad()
def test_batches_and_calls_may_cut_dialogues_anywhere():
    layer = make_layer()
    hidden, mask = frames(4, 7, 5, 2)
    whole = layer(hidden, mask, Turns(("a", "b", "a", "a")))
    hidden = hidden.clone()
    hidden[~mask] = float("inf")  # padding is never looked at
    pieces = [
        layer(hidden[[row], :size], mask[[row], :size], Turns((name,), carry=True))
        for row, name, size in ((0, "a", 4), (1, "b", 7), (2, "a", 6), (3, "a", 2))
    ]
    for row, piece in enumerate(pieces):
        size = int(mask[row].sum())
        torch.testing.assert_close(piece[0, :size], whole[row, :size])
    layer.reset("a")
    again = layer(hidden[[3], :2], mask[[3], :2], Turns(("a",), carry=True))
    torch.testing.assert_close(again, layer(hidden[[3], :2], mask[[3], :2], Turns(("x",))))
    assert not torch.allclose(again, pieces[3])


@torch.no_grad()
def test_positions_of_audio_in_a_text_do_not_matter():
    layer = make_layer()
    hidden, _ = frames(9, 9)
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[0, [1, 2, 5, 6]] = True
    mask[1, 3:] = True
    turns = Turns(("a", "a"))
    output = layer(hidden, mask, turns)
    assert torch.equal(output[~mask], hidden[~mask])
    first = layer(hidden[:1, [1, 2, 5, 6]], None, Turns(("b",), carry=True))
    second = layer(hidden[1:, 3:], None, Turns(("b",), carry=True))
    torch.testing.assert_close(output[0, [1, 2, 5, 6]], first[0])
    torch.testing.assert_close(output[1, 3:], second[0])
    silent = layer(hidden, torch.zeros_like(mask), turns)
    assert torch.equal(silent, hidden)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_closed_gate_leaves_the_host_bit_identical(kind):
    torch.manual_seed(0)
    host = nn.Sequential(nn.Linear(DIM, DIM), nn.GELU(), nn.Linear(DIM, 3)).to(kind)
    speech = torch.randn(2, 11, DIM).to(kind)
    before = host(speech)
    layer = MemoryLayer(DIM, size=5, width=8)
    handle = layer.attach(host[0])
    for _ in range(3):
        after = host(speech)
        assert torch.equal(after, before)
        with torch.no_grad():
            bits = host[0](speech).view(torch.uint8)
            plain = nn.functional.linear(speech, host[0].weight, host[0].bias).view(torch.uint8)
            assert torch.equal(bits, plain)
    assert after.dtype == kind
    after.float().sum().backward()
    assert layer.gate.grad.abs() > 0  # it can open
    with torch.no_grad():
        layer.gate.fill_(1.0)
        assert not torch.equal(host(speech), before)  # three turns were written all the same
    handle.remove()
    assert torch.equal(host(speech), before)


@torch.no_grad()
def test_hook_hears_what_it_is_told():
    layer = make_layer()

    class Layer(nn.Module):
        def forward(self, x):
            return x, "attention"

    host = Layer()
    layer.attach(host)
    hidden, mask = frames(5, 3)
    turns = Turns(("a", "a"))
    with layer.listen(turns, mask=mask):
        output, other = host(hidden)
    assert other == "attention"
    torch.testing.assert_close(output, layer(hidden, mask, turns))
    with layer.listen(turns, lengths=torch.tensor([5, 3])):
        torch.testing.assert_close(host(hidden)[0], output)
    with layer.paused():
        assert torch.equal(host(hidden)[0], hidden)
    calls = [host(hidden)[0] for _ in range(2)]  # a call is a turn, a row is a dialogue
    torch.testing.assert_close(calls[0], layer(hidden, None, Turns(("x", "y"))))
    assert not torch.allclose(calls[0], calls[1])
    layer.reset()
    assert torch.equal(host(hidden)[0], calls[0])
    with pytest.raises(ValueError, match="do not go with"):
        layer(hidden, mask, Turns(("a",)))


@torch.no_grad()
def test_memories_that_never_learn_and_memories_of_others():
    layer = make_layer()
    hidden, mask = frames(5, 5, 5)
    fixed = layer(hidden, mask, Turns(("a", "a", "a"), learn=False))
    each = layer(hidden, mask, Turns(("a", "b", "c")))
    assert torch.equal(fixed, each)  # reset at every turn: a turn never reads itself
    for row, name in ((0, "a"), (1, "b")):
        layer(hidden[[row]], mask[[row]], Turns((name,), carry=True))
    layer.keep_aside()
    layer(hidden[[2]], mask[[2]], Turns(("b",), carry=True))  # later writes are not read
    pair = Turns(("a", "b"), carry=True, sources=("b", "a"))
    swapped = layer(hidden[[2, 2]], mask[[2, 2]], pair)
    for row, source in ((0, 1), (1, 0)):
        straight = layer(hidden[[source, 2]], mask[[source, 2]], Turns(("x", "x")))
        torch.testing.assert_close(swapped[row], straight[1])


def test_gradients_reach_what_was_written_until_truncation():
    hidden, mask = frames(4, 4, 4, 4)

    def first_turn_gradient(truncate):
        layer = make_layer(truncate=truncate)
        inputs = hidden.clone().requires_grad_()
        output = layer(inputs, mask, Turns(("a",) * 4))
        output[3].square().sum().backward()
        return inputs.grad

    full = first_turn_gradient(8)
    assert full[0].abs().max() > 1e-6
    assert full[2].abs().max() > 1e-6
    cut = first_turn_gradient(2)
    assert torch.equal(cut[0], torch.zeros_like(cut[0]))
    assert torch.equal(cut[1], torch.zeros_like(cut[1]))
    torch.testing.assert_close(cut[2], full[2])


def test_every_weight_learns_from_the_second_turn():
    layer = make_layer()
    hidden, mask = frames(6, 6)
    layer(hidden, mask, Turns(("a", "a")))[1].sum().backward()
    still = [name for name, p in layer.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_a_fresh_layer_that_is_never_written_to_can_learn():
    torch.manual_seed(0)
    layer = MemoryLayer(DIM, size=5, width=8)
    hidden = torch.randn(2, 6, DIM)
    wanted = hidden + torch.randn(DIM)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        loss = (layer(hidden, None, Turns(("a", "b"), learn=False)) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


@torch.no_grad()
def test_a_dialogue_goes_on_bit_identically_in_another_process(tmp_path):
    def build():
        memory = Memory(DIM, (1, 2), size=5, width=8, chunk=3, max_step=1.5)
        for number, layer in memory.layers.items():
            layer.load_state_dict(make_layer(seed=int(number)).float().state_dict())
        host = nn.Sequential(nn.Linear(DIM, DIM), nn.Linear(DIM, DIM))
        for layer, seed in zip(host, (3, 4)):
            torch.manual_seed(seed)
            layer.reset_parameters()
        memory.attach(host)
        return memory, host

    memory, host = build()
    hidden = frames(7, 7)[0].float()
    host(hidden)
    memory.save(tmp_path / "memory.safetensors")
    expected = host(hidden)
    other, twin = build()
    assert not torch.equal(twin(hidden), expected)
    other.load(tmp_path / "memory.safetensors")
    assert torch.equal(twin(hidden), expected)
    assert other.memory_state().keys() == memory.memory_state().keys()
    assert "2/second_momentum/1" in memory.memory_state()
    other.layers["2"].gate.add_(0.1)
    with pytest.raises(UserError, match="adapter with other weights"):
        other.load(tmp_path / "memory.safetensors")


def test_memories_of_another_kind_are_refused(tmp_path):
    memory = Memory(DIM, (1,), size=5, width=8)
    with pytest.raises(UserError, match="memory of layer 3, expected 1"):
        memory.load_memory_state({"3/first/a": torch.zeros(8, 5)})
    with pytest.raises(UserError, match=r"'a' has shape \(8, 4\) for first, expected .*\(8, 5\)"):
        memory.load_memory_state({"1/first/a": torch.zeros(8, 4)})
    with pytest.raises(UserError, match="has nothing for second"):
        memory.load_memory_state({"1/first/a": torch.zeros(8, 5)})
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"damage")
    with pytest.raises(UserError, match="is damaged"):
        memory.load(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="other weights"):
        memory.load(path)


def test_options():
    assert memory_options({}, 4, "x") == {"layers": [2]}
    assert memory_options({"layers": [3, 1], "size": 8}, 4, "x") == {"layers": [1, 3], "size": 8}
    assert memory_options({"layers": 4}, 4, "x")["layers"] == [4]
    with pytest.raises(UserError, match="layer 5 is not one of the host's 1 to 4"):
        memory_options({"layers": 5}, 4, "x")
    with pytest.raises(UserError, match="widht.*width"):
        memory_options({"widht": 5}, 4, "x")
    with pytest.raises(UserError, match="chunk 0"):
        MemoryLayer(DIM, chunk=0)


def test_turns_are_ordered_by_step():
    turns = Turns(("b", "a", "b", "c", "b", "a"))
    assert turns.names == ["b", "a", "c"]
    assert turns.steps == [[0, 1, 3], [2, 5], [4]]
    assert Turns(()).steps == []


@torch.no_grad()
@pytest.mark.parametrize(("chunk", "bounded"), [(1, True), (8, True), (32, True), (1, False)])
def test_a_memory_stays_bounded_however_eagerly_it_learns(chunk, bounded):
    """Gates at their largest and a steep start; Titans' own rule is then soon beyond all bounds."""
    layer = make_layer(size=16, width=16, chunk=chunk, max_step=0.5, bounded=bounded)
    layer.gates.bias.copy_(torch.tensor([5.0, 5.0, -9.0]))
    layer.gates.weight.zero_()
    layer.first.mul_(4)
    hidden, _ = frames(150, seed=3)
    for _ in range(20):
        layer(hidden)
    largest = max(float(part.abs().max()) for part in layer.memory_state().values())
    assert (largest < 10) == bounded, largest
