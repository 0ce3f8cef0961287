"""Nothing merged outlives its use: no stale weights, no leak, errors undone, gradients held."""

import copy
import gc
import weakref

import pytest
import torch
from merging_common import any_precision, base_encoder, batch, moved, readout, vectors

from espnet_adaltm.merging import buffers, pieces, substitute
from espnet_adaltm.merging.merged import MergedEncoder, coefficients_for
from espnet_adaltm.merging.pieces import Merge, Piece

TASKS = ["asr", "ser"]


def merged(**options):
    base = any_precision(base_encoder())
    return MergedEncoder(base, vectors(base), coefficients_for(base, TASKS, **options))


def expected(model):
    """What a plain encoder gives with the baked weights."""
    encoder = copy.deepcopy(model.encoder)
    encoder.load_encoder_state(model.bake())
    with torch.no_grad():
        return [hidden.clone() for hidden in encoder(*batch()).hidden]


def check_fresh(model):
    """Every way of calling sees the present coefficients and base."""
    wanted = expected(model)
    with torch.no_grad():
        quiet = model(*batch()).hidden
    with torch.inference_mode():
        inference = [hidden.clone() for hidden in model(*batch()).hidden]
    learning = [hidden.detach() for hidden in model(*batch()).hidden]
    for found in (quiet, inference, learning):
        for mine, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(mine[0], theirs[0], rtol=0, atol=2e-5)
    return wanted


def step(model):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    readout(model(*batch())).backward()
    optimizer.step()


CHANGES = {
    "optimiser": step,
    "data": lambda model: model.coefficients.raw.data.fill_(0.1),
    "load": lambda model: model.load_state_dict({"coefficients.raw": torch.full((2, 3), -0.3)}),
    "new parameter": lambda model: setattr(
        model.coefficients, "raw", torch.nn.Parameter(torch.full((2, 3), 0.9))
    ),
    "fill": lambda model: model.coefficients.fill([[0.2] * 3, [1.4] * 3]),
    "base": lambda model: model.encoder.load_encoder_state(moved(model.encoder, 3).encoder_state()),
    "base data": lambda model: [p.data.mul_(1.1) for p in model.encoder.parameters()],
    "base exchanged": lambda model: setattr(
        model.encoder.body.encoder.layers[1].feed_forward.output_dense,
        "weight",
        torch.nn.Parameter(torch.ones(16, 24), requires_grad=False),
    ),
    "module exchanged": lambda model: setattr(
        model.encoder.body.encoder.layers[0].feed_forward, "output_dense", torch.nn.Linear(24, 16)
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_seen_by_the_next_call(change):
    model = merged()
    before = check_fresh(model)
    CHANGES[change](model)
    after = check_fresh(model)
    assert (before[-1] - after[-1]).abs().max() > 1e-3
    model.train()
    check_fresh(model)
    model.eval()
    check_fresh(model)


def test_conversions_between_calls():
    model = merged()
    single = check_fresh(model)
    model.double()
    with torch.no_grad():
        double = model(batch()[0].double(), batch()[1]).hidden
    torch.testing.assert_close(double[-1][0].float(), single[-1][0], rtol=0, atol=2e-5)
    model.float()
    check_fresh(model)


def test_a_step_between_forward_and_backward_does_not_change_the_gradient():
    """The backward pass merges again: with the coefficients of its forward pass."""
    model = merged()
    readout(model(*batch())).backward()
    wanted = model.coefficients.raw.grad.clone()
    model.zero_grad()
    loss = readout(model(*batch()))
    with torch.no_grad():
        model.coefficients.raw.mul_(3)
        model(*batch())
    loss.backward()
    assert torch.equal(model.coefficients.raw.grad, wanted)


def test_a_base_changed_between_forward_and_backward_is_an_error():
    model = merged()
    loss = readout(model(*batch()))
    model.encoder.load_encoder_state(moved(model.encoder, 3).encoder_state())
    with pytest.raises(RuntimeError, match="modified between the forward and the backward"):
        loss.backward()


def test_in_place_changes_of_activations_are_still_noticed():
    class Wrong(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = base_encoder()
            self.num_layers = 2

        def forward(self, speech, lengths):
            hidden = self.inner(speech, lengths).hidden
            squared = hidden[-1].square()
            hidden[-1].zero_()
            return squared.sum()

    base = Wrong()
    model = merged()
    object.__setattr__(model, "_encoder", base.requires_grad_(False))
    model._name = lambda path: path.removeprefix("inner.body.")
    with pytest.raises(RuntimeError, match="in-place"):
        model(*batch()).backward()


@pytest.mark.parametrize("learning", [True, False])
def test_an_error_inside_the_encoder_leaves_the_base_as_it_was(learning):
    model = merged()
    wanted = check_fresh(model)
    base = dict(model.encoder.named_parameters())
    layer = model.encoder.body.encoder.layers[1].final_layer_norm
    handle = layer.register_forward_hook(lambda *_: 1 / 0)
    with torch.set_grad_enabled(learning), pytest.raises(ZeroDivisionError):
        model(*batch())
    handle.remove()
    for name, parameter in model.encoder.named_parameters():
        assert parameter is base[name]
    for part in model.encoder.modules():
        assert type(part.__dict__["_parameters"]) is dict
    assert all(torch.equal(a, b) for a, b in zip(wanted, check_fresh(model), strict=True))


def test_a_backward_pass_may_be_repeated():
    model = merged()
    loss = readout(model(*batch()))
    loss.backward(retain_graph=True)
    once = model.coefficients.raw.grad.clone()
    loss.backward()
    torch.testing.assert_close(model.coefficients.raw.grad, 2 * once, rtol=0, atol=0)


def test_second_derivatives_are_refused_not_wrong():
    model = merged()
    (gradient,) = torch.autograd.grad(
        readout(model(*batch())), model.coefficients.raw, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_merged_weights_are_neither_kept_for_the_backward_pass_nor_leaked(monkeypatch):
    monkeypatch.setattr(pieces, "LARGE", 100)
    model = merged()
    merges, most = weakref.WeakSet(), [0]
    original = Merge.flat

    def used():
        """Buffers that hold merged weights which something still refers to."""
        kept = [tensor for same in model._memory._kept.values() for tensor in same]
        return sum(buffers._users(tensor) > model._memory._alone for tensor in kept)

    def flat(self):
        made = original(self)
        merges.add(self)
        most[0] = max(most[0], used())
        return made

    monkeypatch.setattr(Merge, "flat", flat)
    gc.disable()
    try:
        loss = readout(model(*batch()))
        assert len(merges) >= len(model._pieces) == 20
        assert 0 < most[0] <= substitute._LIVE + 1
        assert used() == 0
        most[0] = 0
        loss.backward()
        assert 0 < most[0] <= substitute._LIVE
        assert used() == 0
        del loss
        assert len(merges) == 0
    finally:
        gc.enable()


def test_kept_weights_are_merged_once_and_give_the_same_gradient(monkeypatch):
    counts, gradients = [], []
    original = Merge.flat
    for keep in (False, True):
        model = merged()
        model.keep_merged = keep
        merges = []
        monkeypatch.setattr(
            Merge, "flat", lambda self, merges=merges: merges.append(1) or original(self)
        )
        for _ in range(2):  # the second on memory of the first
            model.zero_grad()
            readout(model(*batch())).backward()
        counts.append(len(merges))
        gradients.append(model.coefficients.raw.grad)
    assert counts[0] == 2 * counts[1] > 0
    assert torch.equal(*gradients)


def test_dropped_forward_passes_leave_nothing_behind():
    model = merged()
    readout(model(*batch())).backward()
    first = model.coefficients.raw.grad.clone()
    model.zero_grad()
    model(*batch())  # no backward pass
    readout(model(*batch())).backward()
    assert torch.equal(model.coefficients.raw.grad, first)


# --- several micro-batches, one projection -------------------------------------------------------


def parts_of_batch():
    generator = torch.Generator().manual_seed(9)
    return [torch.randn(1, 600, generator=generator) for _ in range(4)]


def gradient(model, inputs):
    readout(model(inputs, torch.full((len(inputs),), 600))).backward()


@pytest.mark.parametrize("granularity", ["block", "tensor"])
@pytest.mark.parametrize("constraint", ["none", "sigmoid"])
def test_four_micro_batches_project_once_and_equal_one_batch(monkeypatch, granularity, constraint):
    model = merged(granularity=granularity, constraint=constraint).double()
    parts = [part.double() for part in parts_of_batch()]
    gradient(model, torch.cat(parts))
    wanted = model.coefficients.raw.grad.clone()
    model.zero_grad()
    projected = []
    original = Piece.project
    monkeypatch.setattr(
        Piece, "project", lambda self, flat: projected.append(self) or original(self, flat)
    )
    with model.accumulating(4):
        for place, part in enumerate(parts):
            gradient(model, part)
            assert bool(model.coefficients.raw.grad.any()) == (place == 3)
    assert len(projected) == len(set(projected)) == len(model._pieces)
    difference = (model.coefficients.raw.grad - wanted).norm() / wanted.norm()
    # the mean over frames in the read-out is per clip: the sum over clips is the batch
    assert difference.item() < 1e-6
    assert all(piece.held is None for piece in model._pieces)


def test_fewer_micro_batches_than_said_are_not_lost():
    model = merged()
    parts = parts_of_batch()[:2]
    gradient(model, torch.cat(parts))
    wanted = model.coefficients.raw.grad.clone()
    model.zero_grad()
    with model.accumulating(4):
        for part in parts:
            gradient(model, part)
        assert not model.coefficients.raw.grad.any()
        with torch.no_grad():
            model(*batch())  # a look in between
    torch.testing.assert_close(model.coefficients.raw.grad, wanted, rtol=1e-4, atol=1e-4)


def test_what_is_held_is_projected_without_gradients_around_it():
    model = merged()
    readout(model(*batch())).backward()
    wanted = model.coefficients.raw.grad.clone()
    model.zero_grad()
    with torch.no_grad(), model.accumulating(3), torch.enable_grad():
        readout(model(*batch())).backward()
    torch.testing.assert_close(model.coefficients.raw.grad, wanted, rtol=1e-4, atol=1e-4)


def test_what_only_an_earlier_micro_batch_reads_is_projected_with_the_last():
    model = merged()
    features, frames = model.encoder.cnn(*batch())
    features = features.detach()

    def losses():
        yield readout(model(*batch()))
        yield readout(model(features, frames))  # reads no CNN

    for loss in losses():
        loss.backward()
    wanted = model.coefficients.raw.grad.clone()
    model.zero_grad()
    with model.accumulating(2):
        for loss in losses():
            loss.backward()
        torch.testing.assert_close(model.coefficients.raw.grad, wanted, rtol=1e-4, atol=1e-4)


def test_one_backward_pass_over_all_micro_batches():
    model = merged()
    parts = parts_of_batch()[:2]
    gradient(model, torch.cat(parts))
    wanted = model.coefficients.raw.grad.clone()
    model.zero_grad()
    with model.accumulating(2):
        sum(readout(model(part, torch.tensor([600]))) for part in parts).backward()
    torch.testing.assert_close(model.coefficients.raw.grad, wanted, rtol=1e-4, atol=1e-4)


def test_an_error_drops_what_is_held():
    model = merged()
    part = parts_of_batch()[0]
    gradient(model, part)
    wanted = model.coefficients.raw.grad.clone()
    with pytest.raises(ZeroDivisionError), model.accumulating(3):
        gradient(model, part)
        _ = 1 / 0
    model.zero_grad()
    gradient(model, part)
    assert torch.equal(model.coefficients.raw.grad, wanted)


def test_a_step_inside_accumulation_is_an_error():
    model = merged()
    part = parts_of_batch()[0]
    with pytest.raises(RuntimeError, match="coefficients changed"), model.accumulating(3):
        gradient(model, part)
        model.coefficients.raw.data.add_(0.1)
        gradient(model, part)
    with pytest.raises(RuntimeError, match="already active"), model.accumulating(2):
        gradient(model, part)
        with model.accumulating(2):
            pass
    assert model._parts_left == 0
    check_fresh(model)


def test_accumulation_inside_a_generator_that_feeds_a_trainer():
    """A trainer that knows nothing of it: the iterator opens the context around its batches."""
    model = merged()
    parts = parts_of_batch()
    gradient(model, torch.cat(parts))
    wanted = model.coefficients.raw.grad.clone()
    model.zero_grad()

    def feed():
        with model.accumulating(4):
            yield from parts

    for part in feed():
        gradient(model, part)
    torch.testing.assert_close(model.coefficients.raw.grad, wanted, rtol=1e-4, atol=1e-4)
    model.zero_grad()
    for part in feed():
        gradient(model, part)
        break
    gc.collect()
    assert all(piece.held is None for piece in model._pieces)
