"""Coefficients: values, gradients and counts in closed form."""

import math

import pytest
import torch

from espnet_adaltm.errors import UserError
from espnet_adaltm.merging.coefficients import CONSTRAINTS, Coefficients

GROUPS = ["block0", "block1", "block2"]
TASKS = ["asr", "ser"]


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_every_constraint_starts_at_the_asked_value(constraint):
    init = {"asr": 0.3, "ser": 0.7}
    values = Coefficients(TASKS, GROUPS, init=init, constraint=constraint)()
    torch.testing.assert_close(values, torch.tensor([[0.3] * 3, [0.7] * 3]))


def test_default_is_half_everywhere_and_learned():
    coefficients = Coefficients(TASKS, GROUPS)
    assert coefficients.table() == [[0.5] * 3] * 2
    assert [p.numel() for p in coefficients.parameters() if p.requires_grad] == [6]


def with_raw(constraint, raw):
    coefficients = Coefficients(["asr"], GROUPS, constraint=constraint)
    with torch.no_grad():
        coefficients.raw.copy_(torch.tensor([raw]))
    values = coefficients()
    values.sum().backward()
    return values[0].tolist(), coefficients.raw.grad[0].tolist()


def test_clamp_has_zero_gradient_outside():
    values, gradient = with_raw("clamp", [-0.5, 0.25, 1.5])
    assert values == [0.0, 0.25, 1.0]
    assert gradient == [0.0, 1.0, 0.0]


def test_sigmoid_and_tanh_and_none():
    raw = [-1.0, 0.0, 2.0]
    sigmoid = [1 / (1 + math.exp(-r)) for r in raw]
    values, gradient = with_raw("sigmoid", raw)
    assert values == pytest.approx(sigmoid, rel=1e-6)
    assert gradient == pytest.approx([s * (1 - s) for s in sigmoid], rel=1e-6)
    values, gradient = with_raw("tanh", raw)
    assert values == pytest.approx([math.tanh(r) for r in raw], rel=1e-6)
    assert gradient == pytest.approx([1 - math.tanh(r) ** 2 for r in raw], rel=1e-5)
    assert with_raw("none", raw) == (raw, [1.0, 1.0, 1.0])


def test_softmax_sums_to_one_over_tasks():
    coefficients = Coefficients(TASKS, GROUPS, constraint="softmax")
    with torch.no_grad():
        coefficients.raw.copy_(torch.randn(2, 3))
    torch.testing.assert_close(coefficients().sum(0), torch.ones(3))


def test_fixed_and_empty_coefficients_have_nothing_to_learn():
    assert not Coefficients(TASKS, GROUPS, trainable=False).raw.requires_grad
    empty = Coefficients([], GROUPS)
    assert empty().shape == (0, 3)
    assert not empty.raw.requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"granularity": "layer"}, "granularity 'layer' is unknown"),
        ({"constraint": "relu"}, "constraint 'relu' is unknown"),
        ({"init": {"asr": 1.0}}, "init names the tasks"),
        ({"init": {"asr": 1.0, "ser": 0.1, "sid": 0.1}}, "init names the tasks"),
        ({"init": math.nan}, "not finite"),
        ({"init": True}, "not a number"),
        ({"init": "half"}, "not a number"),
        ({"init": 1.0, "constraint": "sigmoid"}, r"cannot be reached .* \(0, 1\)"),
        ({"init": -1.0, "constraint": "tanh"}, r"cannot be reached .* \(-1, 1\)"),
        ({"init": 1.2, "constraint": "clamp"}, r"cannot be reached .* \[0, 1\]"),
        ({"init": 0.3, "constraint": "softmax"}, "must sum to 1"),
    ],
)
def test_mistakes_are_told(options, message):
    with pytest.raises(UserError, match=message):
        Coefficients(TASKS, GROUPS, **options)


def test_a_task_named_twice_is_refused():
    with pytest.raises(UserError, match="named once"):
        Coefficients(["asr", "asr"], GROUPS)


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_fill_sets_what_table_returns(constraint, count):
    tasks = [f"task{k}" for k in range(count)]
    source = Coefficients(tasks, GROUPS, init=1 / count, constraint="none")
    with torch.no_grad():
        source.raw.copy_(torch.rand(count, 3) + 0.1)
        source.raw.div_(source.raw.sum(0) * (1 + 1e-3 * (constraint != "softmax")))
    table = source.table()
    start = 1.0 if constraint == "softmax" and count == 1 else 1 / count - 1e-3 * (count == 1)
    coefficients = Coefficients(tasks, GROUPS, init=start, constraint=constraint)
    coefficients.fill(table)
    torch.testing.assert_close(coefficients(), source.raw.detach(), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("constraint", "raw", "value", "tolerance"),
    [
        ("sigmoid", 20.0, 1.0, 2**-23),
        ("sigmoid", -200.0, 0.0, 2**-120),
        ("tanh", 10.0, 1.0, 2**-23),
        ("tanh", -10.0, -1.0, 2**-23),
        ("softmax", 200.0, 1.0, 2**-23),
        ("softmax", -200.0, 0.0, 2**-120),
        ("clamp", 7.0, 1.0, 0.0),
        ("none", 200.0, 200.0, 0.0),
    ],
)
def test_a_saturated_table_can_be_filled_in(constraint, raw, value, tolerance):
    source = Coefficients(TASKS, GROUPS, constraint=constraint)
    with torch.no_grad():
        source.raw[0] = raw
    table = source.table()
    assert table[0] == [value] * 3
    coefficients = Coefficients(TASKS, GROUPS, constraint=constraint)
    coefficients.fill(table)
    assert coefficients.raw.isfinite().all()
    assert coefficients.table()[0] == pytest.approx(table[0], rel=0, abs=tolerance)
    assert coefficients.table()[1] == pytest.approx(table[1], rel=0, abs=2**-20)
    again = Coefficients(TASKS, GROUPS, constraint=constraint)
    again.fill(coefficients.table())
    assert again.table()[0] == pytest.approx(table[0], rel=0, abs=tolerance)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([[0.5] * 3], "coefficients of 1 tasks and .3. groups: expected 2 .asr, ser. and 3"),
        ([[0.5] * 3, [0.5] * 2], r"groups: expected 2"),
        ([[0.5] * 3, [0.5, math.nan, 0.5]], "group block1: init nan is not finite"),
        ([[0.5] * 3, [0.5, 0.5, 1.5]], "group block2: init 1.5 of ser cannot be reached"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(table, message):
    with pytest.raises(UserError, match=message):
        Coefficients(TASKS, GROUPS, constraint="sigmoid").fill(table)


def test_a_refused_table_changes_nothing():
    coefficients = Coefficients(TASKS, GROUPS, init=0.25)
    with pytest.raises(UserError, match="not finite"):
        coefficients.fill([[0.1, 0.2, math.nan], [0.3, 0.4, 0.5]])
    assert coefficients.table() == [[0.25] * 3] * 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_paper_s_steps_are_not_lost_in_low_precision(dtype):
    module = torch.nn.ModuleDict(
        {"lambda": Coefficients(TASKS, GROUPS), "head": torch.nn.Linear(2, 2)}
    )
    raw = module["lambda"].raw
    raw.grad = torch.full_like(raw, 0.3)
    module.to(dtype)
    assert (raw.dtype, raw.grad.dtype) == (torch.float32, torch.float32)
    assert module["head"].weight.dtype == dtype
    with torch.no_grad():
        raw.sub_(1e-4)
    assert module["lambda"].table() == [[pytest.approx(0.4999, abs=1e-7)] * 3] * 2
    assert module.double()["lambda"].raw.dtype == torch.float64
    assert module.float()["lambda"].raw.dtype == torch.float32


def test_a_rate_of_their_own_and_no_decay():
    coefficients = Coefficients(TASKS, GROUPS)
    head = torch.nn.Linear(2, 2)
    groups = [{"params": head.parameters()}, coefficients.parameter_group(0.25)]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, weight_decay=0.5)
    coefficients().sum().backward()
    optimizer.step()
    torch.testing.assert_close(coefficients(), torch.full((2, 3), 0.25), rtol=0, atol=1e-6)
