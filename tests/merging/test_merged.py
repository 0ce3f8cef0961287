"""The merged encoder: exact values, exact gradients, never stale."""

import copy

import pytest
import torch
from merging_common import (
    CNN,
    LAYERS,
    any_precision,
    base_encoder,
    batch,
    moved,
    readout,
    vector,
    vectors,
)
from torch.func import functional_call

from espnet_adaltm.errors import UserError
from espnet_adaltm.merging.groups import GRANULARITIES, group_of
from espnet_adaltm.merging.merged import MergedEncoder, coefficients_for
from espnet_adaltm.merging.static import scaled, uniform
from espnet_adaltm.merging.substitute import MergeSession
from espnet_adaltm.merging.task_vector import TaskVector

TASKS = ["asr", "ser"]


def merged(granularity="block", base=None, **options):
    base = base or base_encoder()
    coefficients = coefficients_for(base, TASKS, granularity, **options)
    return MergedEncoder(base, vectors(base), coefficients)


def double_batch():
    speech, lengths = batch()
    return speech.double(), lengths


def scatter(model, seed=5):
    """Give every coefficient its own value."""
    with torch.no_grad():
        raw = model.coefficients.raw
        raw.copy_(torch.rand(raw.shape, generator=torch.Generator().manual_seed(seed)))


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first.hidden, second.hidden, strict=True))


def close(first, second, tolerance=1e-6):
    for a, b, n in zip(first.hidden, second.hidden, [first.lengths] * len(first.hidden)):
        for row, other, length in zip(a, b, n):
            torch.testing.assert_close(row[:length], other[:length], rtol=0, atol=tolerance)


def oracle(base, taus, coefficients, granularity, inputs):
    """`state + lambda tau` through autograd, tensor by tensor."""
    groups = list(coefficients.groups)
    values = coefficients()
    state = {}
    for name, weight in base.encoder_state().items():
        column = groups.index(group_of(name, LAYERS, granularity))
        delta = sum(values[k, column] * taus[task].tensors[name] for k, task in enumerate(TASKS))
        state[f"body.{name}"] = weight + delta
    return functional_call(base, state, inputs)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_value_and_gradient_equal_the_oracle(granularity):
    base = any_precision(base_encoder()).double()
    model = merged(granularity, any_precision(base_encoder())).double()
    scatter(model)
    speech, lengths = double_batch()
    taus = {
        task: TaskVector({n: t.double() for n, t in tau.tensors.items()})
        for task, tau in vectors(base_encoder()).items()
    }
    expected = oracle(base, taus, model.coefficients, granularity, (speech, lengths))
    (wanted,) = torch.autograd.grad(readout(expected), model.coefficients.raw)
    output = model(speech, lengths)
    close(output, expected, 1e-9)
    readout(output).backward()
    gradient = model.coefficients.raw.grad
    assert gradient.abs().max() > 0
    assert ((gradient - wanted).norm() / wanted.norm()).item() < 1e-6


@pytest.mark.parametrize("granularity", ["global", "block"])
def test_gradient_equals_finite_differences(granularity):
    model = merged(granularity, any_precision(base_encoder())).double()
    scatter(model)
    speech, lengths = double_batch()
    readout(model(speech, lengths)).backward()
    raw, step = model.coefficients.raw, 1e-4
    for place in [(0, 0), (1, raw.shape[1] - 1)]:
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                raw[place] += sign * step
                values.append(readout(model(speech, lengths)).item())
                raw[place] -= sign * step
        assert raw.grad[place].item() == pytest.approx(
            (values[0] - values[1]) / (2 * step), rel=1e-5
        )


def test_float32_gradient_is_close_to_float64():
    speech, lengths = batch()
    gradients = []
    for dtype in (torch.float32, torch.float64):
        model = merged(base=any_precision(base_encoder())).to(dtype)
        readout(model(speech.to(dtype), lengths)).backward()
        gradients.append(model.coefficients.raw.grad.double())
    assert ((gradients[0] - gradients[1]).norm() / gradients[1].norm()).item() < 1e-4


def test_gradient_accumulates_over_batches_and_through_constraints():
    model = merged(constraint="sigmoid")
    speech, lengths = batch()
    readout(model(speech, lengths)).backward()
    once = model.coefficients.raw.grad.clone()
    readout(model(speech, lengths)).backward()
    torch.testing.assert_close(model.coefficients.raw.grad, 2 * once)


@pytest.mark.parametrize("trainable", [True, False])
def test_zero_coefficients_are_the_base_bit_for_bit(trainable):
    base = base_encoder()
    speech, lengths = batch()
    model = merged(base=copy.deepcopy(base), init=0.0, trainable=trainable)
    with torch.no_grad():
        assert same(model(speech, lengths), base(speech, lengths))
    # With gradients the encoder takes another path through its attention: compare like with like.
    if trainable:
        assert same(model(speech, lengths), base.requires_grad_(True)(speech, lengths))


def test_no_tasks_is_the_base_itself():
    base = base_encoder()
    model = MergedEncoder(copy.deepcopy(base), {}, scaled(base, {}))
    with torch.no_grad():
        assert same(model(*batch()), base(*batch()))


@pytest.mark.parametrize("trainable", [True, False])
def test_one_is_the_expert(trainable):
    base = base_encoder()
    expert = moved(base, 12)
    init = {"asr": 0.0, "ser": 1.0}
    model = merged(base=base, init=init, trainable=trainable)
    with torch.no_grad():
        close(model(*batch()), expert(*batch()), 1e-5)
    for name, tensor in model.bake().items():
        torch.testing.assert_close(tensor, expert.encoder_state()[name], rtol=0, atol=1e-6)


def test_single_task_and_static_helpers():
    base = base_encoder()
    taus = {"ser": vector(base, moved(base, 12))}
    assert scaled(base, {"asr": 0.25, "ser": 1.0}).table() == [[0.25], [1.0]]
    coefficients = uniform(base, ["ser"])
    assert not coefficients.raw.requires_grad
    state = MergedEncoder(base, taus, coefficients).bake()
    for name, tau in taus["ser"].tensors.items():
        torch.testing.assert_close(state[name], base.encoder_state()[name] + 0.5 * tau)


def test_baked_weights_give_the_same_output():
    base = base_encoder()
    model = merged(base=copy.deepcopy(base))
    scatter(model)
    base.load_encoder_state(model.bake())
    with torch.no_grad():
        close(model(*batch()), base(*batch()))


def test_fixed_coefficients_run_without_graph():
    model = merged(trainable=False).train()
    first, second = model(*batch()), model(*batch())
    assert same(first, second)
    assert not first.hidden[-1].requires_grad
    torch.nn.Linear(16, 2)(first.hidden[-1]).sum().backward()


def test_only_coefficients_are_parameters_and_saved(tmp_path):
    model = merged()
    assert list(model.state_dict()) == ["coefficients.raw"]
    assert [name for name, _ in model.named_parameters()] == ["coefficients.raw"]
    assert list(model.buffers()) == []
    torch.save(model.state_dict(), tmp_path / "checkpoint.pth")
    assert (tmp_path / "checkpoint.pth").stat().st_size < 10_000


def test_conversion_and_copies_carry_everything_along():
    model = merged(base=any_precision(base_encoder()))
    double = copy.deepcopy(model).double()
    assert double.encoder.encoder_state()[f"{CNN}conv_layers.0.conv.weight"].dtype == torch.float64
    with torch.no_grad():
        first, second = model(*batch()), double(*double_batch())
    assert second.hidden[-1].dtype == torch.float64
    torch.testing.assert_close(
        first.hidden[-1][0], second.hidden[-1][0].float(), rtol=1e-4, atol=1e-4
    )


def test_frozen_cnn_stays_out_of_the_graph():
    base = base_encoder()
    taus = vectors(base, freeze_cnn=True)
    model = MergedEncoder(base, taus, coefficients_for(base, TASKS))
    assert not any(name.startswith(CNN) for name in model.merge())
    speech, lengths = batch()
    with torch.no_grad():
        features, frames = model.encoder.cnn(speech, lengths)
    results = []
    for inputs in ((speech, lengths), (features, frames)):
        model.zero_grad()
        readout(model(*inputs)).backward()
        results.append(model.coefficients.raw.grad.clone())
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-4)


def test_features_leave_the_cnn_of_block_zero_unmerged(monkeypatch):
    model = merged()
    features, frames = model.encoder.cnn(*batch())
    read = []
    original = MergeSession.tensor
    monkeypatch.setattr(
        MergeSession, "tensor", lambda self, name: read.append(name) or original(self, name)
    )
    readout(model(features.detach(), frames)).backward()
    assert len(set(read)) > 30
    assert not any(name.startswith(CNN) for name in read)
    assert model.coefficients.raw.grad[0, 0] != 0  # feature projection and positional convolution


def test_encoder_dropout_is_off_unless_asked():
    torch.manual_seed(0)
    model = merged().train()
    assert not model.encoder.training
    assert same(model(*batch()), model(*batch()))
    base = base_encoder()
    taus = vectors(base)
    model = MergedEncoder(base, taus, coefficients_for(base, TASKS), encoder_dropout=True).train()
    assert not same(model(*batch()), model(*batch()))
    model.eval()
    assert same(model(*batch()), model(*batch()))


def test_autocast_does_not_round_the_merged_weights():
    model = merged()
    plain = model.merge()
    assert all(tensor.dtype == torch.float32 for tensor in plain.values())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        state = model.merge()
        readout(model(*batch())).backward()
    assert all(torch.equal(state[name], plain[name]) for name in plain)
    low = model.coefficients.raw.grad.clone()
    model.zero_grad()
    readout(model(*batch())).backward()
    exact = model.coefficients.raw.grad
    assert ((low - exact).norm() / exact.norm()).item() < 0.1


def test_bfloat16_vectors_merge_into_float32_weights(tmp_path):
    base = base_encoder()
    taus = vectors(base)
    for task, tau in taus.items():
        tau.save(tmp_path / task, torch.bfloat16)
    loaded = {task: TaskVector.load(tmp_path / task) for task in taus}
    model = MergedEncoder(base, loaded, coefficients_for(base, TASKS))
    name = "encoder.layers.1.feed_forward.output_dense.weight"
    expected = sum(0.5 * tau.tensors[name].float() for tau in loaded.values())
    torch.testing.assert_close(model.bake()[name], base.encoder_state()[name] + expected)
    readout(model(*batch())).backward()
    assert model.coefficients.raw.grad.isfinite().all()


def test_misfits_are_told():
    base = base_encoder()
    taus = vectors(base)
    coefficients = coefficients_for(base, TASKS)
    with pytest.raises(UserError, match="no task vector for ser: found asr"):
        MergedEncoder(base, {"asr": taus["asr"]}, coefficients)
    mixed = {task: TaskVector(tau.tensors, {"base_sha256": task}) for task, tau in taus.items()}
    with pytest.raises(UserError, match="two bases"):
        MergedEncoder(base, mixed, coefficients)
    name = "encoder.layer_norm.bias"
    for bad, message in (
        ({k: v for k, v in taus["asr"].tensors.items() if k != name}, "only one of vector and"),
        ({**taus["asr"].tensors, name: torch.zeros(3)}, r"has shape \(3,\), the encoder's has"),
    ):
        with pytest.raises(UserError, match=f"'{name}'.*{message}"):
            MergedEncoder(base, {"asr": TaskVector(bad)}, coefficients_for(base, ["asr"]))
    coefficients.granularity = "global"
    with pytest.raises(UserError, match="of another encoder"):
        MergedEncoder(base, taus, coefficients)
