"""Merging formulas in closed form, and by name over whole vectors."""

import json
import math

import pytest
import torch
from merging_common import base_encoder, seeded, vectors

from espnet_adaltm.errors import UserError
from espnet_adaltm.merging import arithmetic
from espnet_adaltm.merging.arithmetic import METHODS, merge_vectors, tensor_merge
from espnet_adaltm.merging.formulas import (
    agreement,
    breadcrumbs,
    dare,
    dare_ties,
    della,
    magnitude_prune,
    model_stock,
    slerp,
    task_arithmetic,
    ties,
)
from espnet_adaltm.merging.sparsify import trim_threshold
from espnet_adaltm.merging.task_vector import TaskVector

# Trimmed to density 0.75 each loses its element of magnitude 1.
FIRST = torch.tensor([4.0, -3.0, 2.0, 1.0])
SECOND = torch.tensor([-2.0, -1.0, 6.0, 3.0])
NEEDED = {"density": 0.5}


def options_of(method):
    return NEEDED if "density" in METHODS[method].options else {}


def test_task_arithmetic_is_the_weighted_sum():
    merged = task_arithmetic([FIRST, SECOND], [0.5, 2.0])
    assert merged.tolist() == [-2.0, -3.5, 13.0, 6.5]
    assert torch.equal(task_arithmetic([FIRST, SECOND], torch.tensor([0.5, 2.0])), merged)


def test_magnitude_prune_trims_every_tensor_on_its_own():
    assert magnitude_prune([FIRST, SECOND], [1.0, 1.0], 0.75).tolist() == [2.0, -3.0, 8.0, 3.0]
    assert magnitude_prune([FIRST, SECOND], [1.0, 1.0], 0.1, minimum=1).tolist() == [4, 0, 6, 0]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # sums 2, -3, 8, 3: signs + - + +; agreeing votes 4 | -3 | 2, 6 | 3
        ({}, [4.0, -3.0, (2 + 12) / 2, 6.0]),
        ({"normalize": "none"}, [4.0, -3.0, 14.0, 6.0]),
        ({"normalize": "weights"}, [4.0, -3.0, 14 / 3, 3.0]),
        # weighted sums 4 - 4, -3, 14, 6: zero elects plus
        ({"elect_on": "weighted"}, [4.0, -3.0, 7.0, 6.0]),
        # one vote each way: zero elects plus
        ({"elect": "frequency"}, [4.0, -3.0, 7.0, 6.0]),
    ],
)
def test_ties_in_closed_form(options, expected):
    merged = ties([FIRST, SECOND], [1.0, 2.0], 0.75, **options)
    torch.testing.assert_close(merged, torch.tensor(expected))
    assert torch.equal(ties([0 * FIRST, 0 * SECOND], [1.0, 2.0], 0.75, **options), torch.zeros(4))


def test_the_election_can_turn_on_weights_and_on_counts():
    first, second = torch.tensor([3.0]), torch.tensor([-2.0])
    assert ties([first, second], [1.0, 2.0], 1.0).item() == 3.0
    assert ties([first, second], [1.0, 2.0], 1.0, elect_on="weighted").item() == -4.0
    three = [torch.tensor([5.0]), torch.tensor([-1.0]), torch.tensor([-2.0])]
    assert ties(three, [1.0] * 3, 1.0).item() == 5.0
    assert ties(three, [1.0] * 3, 1.0, elect="frequency").item() == -1.5


def test_agreement_of_zeros_and_signs():
    agrees = agreement([torch.tensor([1.0, 0.0, -1.0]), torch.tensor([-1.0, 0.0, -1.0])])
    assert [row.tolist() for row in agrees] == [[True, False, True], [False, False, True]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_signs_are_elected_in_float32(dtype):
    large = 256.0 if dtype == torch.bfloat16 else 2048.0  # 1 is lost beside it
    rows = [torch.tensor([value], dtype=dtype) for value in (-large, -1.0, large)]
    assert [row.item() for row in agreement(rows)] == [True, True, False]


def test_ties_over_the_whole_model_keeps_what_is_large_anywhere():
    small, large = FIRST / 100, SECOND
    whole = [trim_threshold([FIRST, small], 0.5), trim_threshold([large, large], 0.5)]
    assert whole == [1.0, 3.0]
    merged = [
        ties(deltas, [1.0, 1.0], 0.5, scope="model", thresholds=whole)
        for deltas in ([FIRST, large], [small, large])
    ]
    # the election sees 2, -3, 8, 4 and then only what the second vector has left
    assert merged[0].tolist() == [4.0, -3.0, 4.0, 2.0]
    assert merged[1].tolist() == [0.0, 0.0, 6.0, 3.0]
    flat = ties([FIRST, SECOND], [1.0, 1.0], 0.5, scope="model")
    assert torch.equal(flat, ties([FIRST, SECOND], [1.0, 1.0], 0.5))


def test_dare_keeps_the_expectation():
    deltas, weights = [torch.full((200_000,), 2.0), torch.full((200_000,), -1.0)], [0.5, 3.0]
    merged = dare(deltas, weights, 0.25, generator=seeded(0))
    # one element: mean 1 - 3, variance (1 + 9)(1 - p) / p; five standard errors
    error = 5 * math.sqrt(10 * 3 / 200_000)
    assert merged.mean().item() == pytest.approx(-2.0, abs=error)
    assert sorted(merged.unique().tolist()) == [-12.0, -8.0, 0.0, 4.0]
    plain = dare(deltas, weights, 0.25, rescale=False, generator=seeded(0))
    torch.testing.assert_close(plain * 4, merged)


@pytest.mark.parametrize("method", [dare, dare_ties, della])
def test_generators_per_vector_are_independent_of_the_others(method):
    rows = [torch.randn(50, generator=seeded(k)) for k in range(2)]
    alone = [method([row], [1.0], 0.5, generator=seeded(7 + k)) for k, row in enumerate(rows)]
    both = method(rows, [1.0, 0.0], 0.5, generator=[seeded(7), seeded(8)])
    if method is dare:
        assert torch.equal(both, alone[0])
        assert torch.equal(
            alone[1], method(rows, [0.0, 1.0], 0.5, generator=[seeded(7), seeded(8)])
        )
    assert torch.equal(both, method(rows, [1.0, 0.0], 0.5, generator=[seeded(7), seeded(8)]))
    assert not torch.equal(both, method(rows, [1.0, 0.0], 0.5, generator=[seeded(9), seeded(8)]))


def test_dare_ties_of_one_vector_is_its_mask():
    row = torch.randn(100, generator=seeded(1))
    merged = dare_ties([row], [0.5], 0.25, generator=seeded(2))
    kept = merged != 0
    torch.testing.assert_close(merged[kept], 2 * row[kept])
    assert 5 < int(kept.sum()) < 50


def test_breadcrumbs_drops_both_ends():
    row = torch.tensor([1.0, -2.0, 3.0, -4.0, 5.0, -6.0, 7.0, -8.0])
    merged = breadcrumbs([row, row], [1.0, 0.5], 0.5, outliers=0.25)
    assert merged.tolist() == [0, 0, 4.5, -6.0, 7.5, -9.0, 0, 0]


def test_slerp_follows_the_arc():
    east, north = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
    for t in (0.0, 0.25, 1.0):
        expected = [2 * math.cos(t * math.pi / 2), 2 * math.sin(t * math.pi / 2)]
        assert slerp(east, north, t).tolist() == pytest.approx(expected, abs=1e-6)
    assert slerp(east, 3 * east, 0.5).tolist() == [4.0, 0.0]
    assert slerp(east, 0 * east, 0.25).tolist() == [1.5, 0.0]
    assert slerp(east, -east, 0.25).tolist() == [1.0, 0.0]
    rows = torch.rand(1000, generator=seeded(3))
    for linear_above in (1.0, 2.0):  # no arc between one direction and itself
        assert slerp(east, east, 0.5, linear_above=linear_above).tolist() == [2.0, 0.0]
        torch.testing.assert_close(slerp(rows, rows, 0.5, linear_above=linear_above), rows)


def test_model_stock_in_closed_form():
    east, slant = torch.tensor([1.0, 0.0]), torch.tensor([1.0, math.sqrt(3)])
    # cos 60 degrees: t = 2 * 0.5 / 1.5
    expected = (2 / 3) * (east + slant) / 2
    torch.testing.assert_close(model_stock([east, slant]), expected)
    torch.testing.assert_close(model_stock([east, east, east]), east)
    assert model_stock([east, torch.tensor([0.0, 5.0])]).tolist() == [0.0, 0.0]
    assert model_stock([east, -east]).tolist() == [0.0, 0.0]
    assert model_stock([east, 0 * east]).tolist() == [0.0, 0.0]


def test_low_precision_differences_are_computed_with_in_float32():
    low = [FIRST.bfloat16(), SECOND.bfloat16()]
    for method in METHODS:
        merge = tensor_merge(method, ["a", "b"], **options_of(method))
        assert merge("x", low).dtype == torch.float32
        assert torch.equal(merge("x", low), merge("x", [FIRST, SECOND]))
        assert merge("x", [FIRST.double(), SECOND]).dtype == torch.float64


@pytest.mark.parametrize("method", METHODS)
def test_inputs_stay_and_shapes_stay(method):
    tau = [torch.randn(3, 4, 5, generator=seeded(k)) for k in range(2)]
    copies = [delta.clone() for delta in tau]
    merge = tensor_merge(method, ["a", "b"], **options_of(method))
    assert merge("x", tau).shape == (3, 4, 5)
    assert all(torch.equal(one, other) for one, other in zip(tau, copies))
    assert torch.equal(merge("x", tau), merge("x", tau))
    assert merge("x", [delta.transpose(0, 2) for delta in tau]).shape == (5, 4, 3)


@pytest.mark.parametrize("method", METHODS)
def test_whole_vectors_are_merged_tensor_by_tensor(method):
    taus = vectors(base_encoder())
    merged = merge_vectors(method, taus, **options_of(method))
    assert merged.tensors.keys() == taus["asr"].tensors.keys()
    merge = tensor_merge(method, list(taus), **options_of(method))
    for name in reversed(merged.tensors):
        deltas = [tau.tensors[name] for tau in taus.values()]
        assert torch.equal(merged.tensors[name], merge(name, deltas))
    again = merge_vectors(method, taus, **options_of(method))
    assert all(torch.equal(again.tensors[n], t) for n, t in merged.tensors.items())
    assert json.loads(merged.metadata["recipe"])["method"] == method


def test_seeds_change_random_methods_only():
    taus = vectors(base_encoder())
    name = "encoder.layers.1.feed_forward.output_dense.weight"
    for method in METHODS:
        one, other = (
            merge_vectors(method, taus, seed=seed, **options_of(method)).tensors[name]
            for seed in (0, 1)
        )
        assert torch.equal(one, other) != METHODS[method].random


def test_a_model_wide_trim_keeps_the_share_of_the_whole_vector():
    taus = vectors(base_encoder())
    taus["ser"] = 10 * taus["ser"]
    merged = merge_vectors("ties", {"ser": taus["ser"]}, density=0.1, scope="model")
    kept = sum(int(t.count_nonzero()) for t in merged.tensors.values())
    size = sum(t.numel() for t in merged.tensors.values())
    assert kept == int(0.1 * size)
    flat = torch.cat([t.flatten() for t in merged.tensors.values()])
    whole = torch.cat([t.flatten() for t in taus["ser"].tensors.values()])
    assert torch.equal(flat, ties([whole], [1.0], 0.1))


def test_weights_by_task_number_and_list():
    taus = vectors(base_encoder())
    expected = 0.5 * taus["asr"] + 2.0 * taus["ser"]
    for weights in ([0.5, 2.0], {"ser": 2.0, "asr": 0.5}):
        merged = merge_vectors("task_arithmetic", taus, weights)
        assert (merged - expected).norms("global") == {"all": 0.0}
    ones = merge_vectors("task_arithmetic", taus)
    assert (ones - taus["asr"] - taus["ser"]).norms("global")["all"] < 1e-5


def test_three_experts_work_as_two_do():
    rows = [torch.randn(40, generator=seeded(k)) for k in range(3)]
    torch.testing.assert_close(
        task_arithmetic(rows, [1.0, 2.0, 3.0]), rows[0] + 2 * rows[1] + 3 * rows[2]
    )
    assert ties(rows, [1.0] * 3, 0.5).shape == (40,)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("tise", {}, r"'tise' is unknown \(did you mean 'ties'\?\)"),
        ("ties", {"densty": 0.5}, "'densty' .*did you mean 'density'"),
        ("ties", {}, "needs the option density"),
        ("ties", {"density": -0.1}, "density -0.1"),
        ("ties", {"density": math.nan}, "density nan"),
        ("ties", {"density": "half"}, "density 'half'"),
        ("ties", {"density": 0.5, "elect": "vote"}, "elect 'vote' is unknown"),
        ("ties", {"density": 0.5, "elect_on": "x"}, "elect_on 'x' is unknown"),
        ("ties", {"density": 0.5, "scope": "layer"}, "scope 'layer' is unknown"),
        ("ties", {"density": 0.5, "normalize": "sum"}, "normalize 'sum' is unknown"),
        ("ties", {"density": 0.5, "minimum": "one"}, "cannot use the options"),
        ("ties", {"density": 0.5, "minimum": 2.5}, "minimum 2.5 is no whole number"),
        ("dare", {"density": 0.5, "rescale": "no"}, "rescale 'no' is neither true nor false"),
        ("dare", {"density": 20}, "density 20: give the share"),
        ("breadcrumbs", {"density": 0.5, "outliers": 2}, "outliers 2: give the share"),
        ("dare", {"density": 0.5, "weights": None}, "weights None: give one number"),
        ("dare", {"density": 0.5, "weights": {"asr": 1, 3: 1}}, r"given for \['3', 'asr'\]"),
        ("ties", {"density": 0.5, "generator": None}, "unknown key 'generator'"),
        ("della", {"density": 0.1}, "choose a smaller epsilon"),
        ("dare", {"density": 0.5, "weights": [1.0]}, "1 weights for 2 task vectors"),
        ("dare", {"density": 0.5, "weights": [1.0, math.inf]}, "one finite number per task"),
        ("dare", {"density": 0.5, "weights": {"asr": 1.0}}, r"\['asr'\], the tasks are"),
        ("model_stock", {"weights": 0.5}, "finds its own weights"),
    ],
)
def test_mistakes_are_told_before_anything_is_read(method, options, message):
    class Unread(dict):
        def __getitem__(self, key):
            raise AssertionError("a tensor was read")

    taus = {task: TaskVector(Unread()) for task in ("asr", "ser")}
    with pytest.raises(UserError, match=message):
        merge_vectors(method, taus, **options)


def test_sets_that_cannot_be_merged_are_told():
    taus = vectors(base_encoder())
    with pytest.raises(UserError, match="nothing to merge"):
        merge_vectors("task_arithmetic", {})
    with pytest.raises(UserError, match="nothing to merge"):
        task_arithmetic([], [])
    with pytest.raises(UserError, match="nothing to merge"):
        agreement([])
    with pytest.raises(UserError, match="several shapes"):
        task_arithmetic([torch.zeros(2), torch.zeros(3)], [1.0, 1.0])
    with pytest.raises(UserError, match="two task vectors or more, found 1"):
        merge_vectors("model_stock", {"asr": taus["asr"]})
    with pytest.raises(UserError, match="goes between two task vectors, found 1"):
        merge_vectors("slerp", {"asr": taus["asr"]})
    with pytest.raises(UserError, match="1 thresholds for 2"):
        ties([FIRST, SECOND], [1.0, 1.0], 0.5, scope="model", thresholds=[0.0])
    with pytest.raises(UserError, match="1 random generators for 2"):
        dare([FIRST, SECOND], [1.0, 1.0], 0.5, generator=[seeded(0)])
    with pytest.raises(UserError, match="needs the threshold of every task"):
        tensor_merge("ties", ["asr"], density=0.5, scope="model")
    mixed = {task: TaskVector(tau.tensors, {"base_sha256": task}) for task, tau in taus.items()}
    with pytest.raises(UserError, match="two bases"):
        merge_vectors("task_arithmetic", mixed)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_are_named(value):
    taus = vectors(base_encoder())
    name = "encoder.layers.0.layer_norm.bias"
    taus["ser"].tensors[name][3] = value
    with pytest.raises(UserError, match=f"task vector ser: tensor '{name}' has NaN or infinite"):
        merge_vectors("task_arithmetic", taus)


def test_the_formulas_are_to_be_had_from_one_place():
    for name in arithmetic.__all__:
        assert getattr(arithmetic, name) is not None
    assert arithmetic.ties is ties
