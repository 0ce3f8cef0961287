"""Preprocessing keeps one vector per task, and the controls keep nothing but size."""

import json
import math

import pytest
import torch
from merging_common import LAYERS, base_encoder, vectors

from espnet_adaltm.errors import UserError
from espnet_adaltm.merging.arithmetic import merge_vectors
from espnet_adaltm.merging.preprocess import METHODS, derangement, prepare
from espnet_adaltm.merging.sparsify import low_rank, trim_threshold
from espnet_adaltm.merging.task_vector import TaskVector

WEIGHT = "encoder.layers.1.feed_forward.output_dense.weight"
NEEDED = {"low_rank": {"rank": 2}}


@pytest.fixture
def taus():
    return vectors(base_encoder())


def flat(vector):
    return torch.cat([vector.tensors[name].flatten() for name in sorted(vector.tensors)])


def same(one, other):
    return one.tensors.keys() == other.tensors.keys() and all(
        torch.equal(one.tensors[name], tensor) for name, tensor in other.tensors.items()
    )


@pytest.mark.parametrize("method", METHODS)
def test_names_shapes_inputs_and_record_stay(taus, method):
    before = {task: flat(tau) for task, tau in taus.items()}
    first, again = (prepare(taus, method, **NEEDED.get(method, {})) for _ in range(2))
    assert list(first) == list(taus)
    for task, tau in taus.items():
        assert torch.equal(flat(tau), before[task])
        assert same(first[task], again[task])
        shapes = {name: tensor.shape for name, tensor in first[task].tensors.items()}
        assert shapes == {name: tensor.shape for name, tensor in tau.tensors.items()}
        record = json.loads(first[task].metadata["preprocess"])
        assert record == {"method": method, **NEEDED.get(method, {})}
        assert same(first[task], tau) == (method == "none")


@pytest.mark.parametrize("scope", ["tensor", "model"])
@pytest.mark.parametrize("elect", ["total", "frequency"])
def test_counted_ties_vectors_add_up_to_the_ties_merge(taus, scope, elect):
    options = {"density": 0.3, "scope": scope, "elect": elect}
    parts = prepare(taus, "ties", normalize="count", **options)
    merged = merge_vectors("ties", taus, **options)
    torch.testing.assert_close(flat(parts["asr"]) + flat(parts["ser"]), flat(merged))


def test_ties_vectors_never_oppose_each_other(taus):
    parts = prepare(taus, "ties", density=0.5)
    asr, ser = flat(parts["asr"]), flat(parts["ser"])
    assert not ((asr * ser) < 0).any()
    assert ((asr * ser) > 0).any()
    for task, part in (("asr", asr), ("ser", ser)):
        kept = part != 0
        assert torch.equal(part[kept], flat(taus[task])[kept])
        assert 0.2 < kept.float().mean() < 0.5


def test_magnitude_over_the_whole_vector(taus):
    part = prepare(taus, "magnitude", density=0.1, scope="model")["asr"]
    size = len(flat(part))
    assert int(flat(part).count_nonzero()) == int(0.1 * size)
    smallest = flat(part)[flat(part) != 0].abs().min().item()
    assert smallest == trim_threshold(taus["asr"].tensors.values(), 0.1)


def test_dare_vectors_are_those_of_the_dare_merge(taus):
    parts = prepare(taus, "dare", density=0.4, seed=3)
    merged = merge_vectors("dare", taus, [0.5, 2.0], density=0.4, seed=3)
    torch.testing.assert_close(0.5 * flat(parts["asr"]) + 2 * flat(parts["ser"]), flat(merged))
    kept = flat(parts["asr"]) != 0
    torch.testing.assert_close(flat(parts["asr"])[kept], flat(taus["asr"])[kept] / 0.4)
    assert kept.float().mean().item() == pytest.approx(0.4, abs=0.03)
    assert not torch.equal(kept, flat(parts["ser"]) != 0)


def test_random_numbers_belong_to_task_tensor_and_seed(taus):
    both = prepare(taus, "dare", density=0.4)
    alone = prepare({"ser": taus["ser"]}, "dare", density=0.4)
    assert same(both["ser"], alone["ser"])
    part = TaskVector({WEIGHT: taus["ser"].tensors[WEIGHT]})
    piece = prepare({"ser": part}, "dare", density=0.4)["ser"].tensors[WEIGHT]
    assert torch.equal(piece, both["ser"].tensors[WEIGHT])
    assert not same(prepare(taus, "dare", density=0.4, seed=1)["ser"], both["ser"])


def test_low_rank_leaves_vectors_alone(taus):
    part = prepare(taus, "low_rank", rank=2)["ser"]
    for name, tensor in taus["ser"].tensors.items():
        expected = low_rank(tensor, rank=2) if tensor.dim() > 1 else tensor
        assert torch.equal(part.tensors[name], expected)
    assert torch.linalg.matrix_rank(part.tensors[WEIGHT]) == 2


def test_random_control_keeps_every_norm_and_no_direction(taus):
    taus["ser"].tensors["masked_spec_embed"].zero_()
    parts = prepare(taus, "random", seed=0)
    for name, tensor in taus["ser"].tensors.items():
        found = parts["ser"].tensors[name]
        assert found.norm().item() == pytest.approx(tensor.norm().item(), rel=1e-6)
    size = len(flat(taus["ser"]))
    for one, other in (("ser", "ser"), ("ser", "asr")):
        cosine = torch.cosine_similarity(flat(parts[one]), flat(taus[other]), dim=0)
        assert abs(cosine.item()) < 6 / math.sqrt(size)
    cosine = torch.cosine_similarity(flat(parts["asr"]), flat(parts["ser"]), dim=0)
    assert abs(cosine.item()) < 6 / math.sqrt(size)


def test_shuffled_control_exchanges_the_layers_only(taus):
    parts = prepare(taus, "shuffled_blocks", seed=0)
    for task, tau in taus.items():
        moved = parts[task].tensors
        for name, tensor in tau.tensors.items():
            if not name.startswith("encoder.layers.") or "rel_attn_embed" in name:
                assert torch.equal(moved[name], tensor)
            else:
                layer = int(name.split(".")[2])
                other = name.replace(f"layers.{layer}.", f"layers.{1 - layer}.")
                assert torch.equal(moved[name], tau.tensors[other])
        assert parts[task].norms("global") == pytest.approx(tau.norms("global"), rel=1e-9)
    assert LAYERS == 2


def test_derangements_fix_nothing_and_differ():
    orders = [derangement(24, seed) for seed in range(20)]
    for order in orders:
        assert sorted(order) == list(range(24))
        assert all(place != value for place, value in enumerate(order))
    assert len(set(map(tuple, orders))) == 20
    ends = (-(2**63), 2**64 - 1)  # of the seeds that PyTorch takes
    found = {tuple(derangement(3, seed)) for seed in (*range(50), *ends)}
    assert found == {(1, 2, 0), (2, 0, 1)}


def test_a_shuffle_needs_two_layers():
    one = TaskVector({"encoder.layers.0.layer_norm.bias": torch.ones(2)})
    with pytest.raises(UserError, match="two layers or more, the vectors have 1"):
        prepare({"ser": one}, "shuffled_blocks")


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("tie", {}, r"'tie' is unknown \(did you mean 'ties'\?\)"),
        ("none", {"density": 0.5}, "unknown key 'density'"),
        ("dare", {"desnity": 0.5}, "did you mean 'density'"),
        ("ties", {"normalize": "weights"}, "normalize 'weights' is unknown"),
        ("ties", {"density": "x"}, "density 'x'"),
        ("magnitude", {"scope": "block"}, "scope 'block' is unknown"),
        ("magnitude", {"scope": "model", "density": -1}, "density -1"),
        ("low_rank", {}, "rank or energy"),
        ("random", {"seed": 1.5}, "seed 1.5"),
        ("shuffled_blocks", {"seed": "one"}, "seed 'one'"),
        (
            "shuffled_blocks",
            {"seed": 2**64},
            "seed is out of range: .* to 18446744073709551615",
        ),
        (
            "random",
            {"seed": -(2**63) - 1},
            "seed is out of range: .* from -9223372036854775808",
        ),
        ("dare", {"seed": 16**5000}, "seed is out of range"),
        ("della", {"epsilon": "wide"}, "cannot use the options"),
        ("ties", {"minimum": 1.5}, "minimum 1.5 is no whole number"),
        ("dare", {"rescale": "no"}, "rescale 'no' is neither true nor false"),
        ("magnitude", {"density": 20}, "density 20: give the share"),
        ("breadcrumbs", {"outliers": -1}, "outliers -1: give the share of elements to drop"),
    ],
)
def test_mistakes_are_told_before_anything_is_read(method, options, message):
    class Unread(dict):
        def __getitem__(self, key):
            raise AssertionError("a tensor was read")

    with pytest.raises(UserError, match=message):
        prepare({"ser": TaskVector(Unread())}, method, **options)


def test_vectors_that_cannot_be_prepared_are_told(taus):
    with pytest.raises(UserError, match="at least one task vector"):
        prepare({}, "none")
    taus["asr"].tensors[WEIGHT][0, 0] = math.nan
    with pytest.raises(UserError, match=f"task vector asr: tensor '{WEIGHT}' has NaN"):
        prepare(taus, "none")
    mixed = {task: TaskVector(tau.tensors, {"base_sha256": task}) for task, tau in taus.items()}
    with pytest.raises(UserError, match="two bases"):
        prepare(mixed, "none")
