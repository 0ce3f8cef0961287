"""The vectors that coefficients are for, made twice alike."""

import pytest
import torch
from merging_common import base_encoder, vectors

from espnet_adaltm.errors import UserError
from espnet_adaltm.merging.config import MergeConfig
from espnet_adaltm.merging.merged import MergedEncoder
from espnet_adaltm.merging.prepared import check_rebuilt, checksum, prepared


@pytest.fixture(scope="module")
def given():
    return vectors(base_encoder())


def config(**options):
    return MergeConfig.from_dict({"name": "x", **options}).with_seed(1)


def test_without_preprocessing_the_vectors_are_the_experts(given):
    made = prepared(config(), given)
    assert all(made[task] is given[task] for task in ("asr", "ser"))
    assert prepared(config(tasks=[], trainable=False), given) == {}
    assert list(prepared(config(tasks=["ser"]), given)) == ["ser"]


def test_task_arithmetic_under_one_coefficient_is_the_static_merge(given):
    base = base_encoder()
    both = config(granularity="global", init=0.5, trainable=False)
    one = config(method="task_arithmetic", granularity="global", init=0.5, trainable=False)
    states = [
        MergedEncoder(base, prepared(row, given), row.coefficients(base)).bake()
        for row in (both, one)
    ]
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, atol=1e-6, rtol=1e-5)
        expected = given["asr"].tensors[name] + given["ser"].tensors[name]
        assert torch.equal(prepared(one, given)["merged"].tensors[name], expected)


def test_weights_of_a_method_are_by_task(given):
    row = config(method="task_arithmetic", method_conf={"weights": {"ser": 2.0, "asr": 0.5}})
    merged = prepared(row, given)["merged"].tensors
    for name, tensor in merged.items():
        expected = 0.5 * given["asr"].tensors[name] + 2.0 * given["ser"].tensors[name]
        torch.testing.assert_close(tensor, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"preprocess": {"method": "random"}},
        {"preprocess": {"method": "shuffled_blocks"}},
        {"preprocess": {"method": "dare", "density": 0.5}},
        {"method": "dare", "method_conf": {"density": 0.5}},
    ],
)
def test_random_vectors_belong_to_their_seed(given, options):
    row = MergeConfig.from_dict({"name": "x", **options})
    one, again, other = (prepared(row.with_seed(seed), given) for seed in (1, 1, 2))
    sums = {name: checksum(vector) for name, vector in one.items()}
    for name, vector in one.items():
        assert all(torch.equal(t, again[name].tensors[n]) for n, t in vector.tensors.items())
    check_rebuilt(again, sums, "exp/x")
    if options.get("preprocess", {}).get("method") != "shuffled_blocks":  # two layers: one way
        with pytest.raises(UserError, match="exp/x: the vector .* is not the one"):
            check_rebuilt(other, sums, "exp/x")


def test_controls_keep_the_size_and_change_the_rest(given):
    for method in ("random", "shuffled_blocks"):
        made = prepared(config(preprocess={"method": method}), given)
        for task, vector in made.items():
            assert checksum(vector)[0] == pytest.approx(checksum(given[task])[0], rel=1e-4)
            name = "encoder.layers.0.attention.q_proj.weight"
            assert not torch.equal(vector.tensors[name], given[task].tensors[name])


def test_checksum_by_hand_and_its_tolerance(given):
    from espnet_adaltm.merging.task_vector import TaskVector

    vector = TaskVector({"b": torch.tensor([3.0]), "a": torch.tensor([[0.0, 4.0]])})
    assert checksum(vector) == pytest.approx([5.0, 3.0 + 4.0 * 0.7648421872844885])
    sums = {"ser": checksum(given["ser"])}
    check_rebuilt({"ser": given["ser"] * (1 + 1e-5)}, sums, "x")
    with pytest.raises(UserError):
        check_rebuilt({"ser": given["ser"] * 1.01}, sums, "x")
