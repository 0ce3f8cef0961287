"""mergekit's configuration of a recipe: mergekit reads it and computes the same."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from merging_common import base_encoder, moved
from safetensors.torch import load_file, save_file

from espnet_adaltm.backbone.loading import save_encoder
from espnet_adaltm.errors import UserError
from espnet_adaltm.merging.mergekit import mergekit_config, mergekit_text
from espnet_adaltm.merging.offline import write_merged
from espnet_adaltm.merging.plan import MergePlan
from espnet_adaltm.merging.recipe import Recipe
from espnet_adaltm.merging.task_vector import TaskVector
from espnet_adaltm.merging.weights import NORM_SPELLINGS, POS_CONV

TASKS = ("asr", "ser")
BLOCKS = {"weights": {"asr": {"*": 0.3, "block0": 0.1}, "ser": [0.7, 0.2, -0.4]}}
TIES = {"method": "ties", "options": {"density": 0.3, "minimum": 1}}
NAME = "encoder.layers.1.attention.k_proj.weight"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("mergekit")
    base = base_encoder()
    save_encoder(base, root / "base")
    for seed, task in enumerate(TASKS, 11):
        save_encoder(moved(base, seed), root / task)
    return root


def plan_of(folders, options, **given):
    given = given or {"experts": {task: folders / task for task in TASKS}}
    return MergePlan(folders / "base", Recipe.from_dict({"name": "row", **options}), **given)


def value_of(setting, key):
    """What mergekit takes for a tensor: the first filter that is a part of its name."""
    if not isinstance(setting, list):
        return setting
    return next(row["value"] for row in setting if row["filter"] in key)


@pytest.mark.parametrize(
    "options",
    [
        BLOCKS,
        {"granularity": "module", "weights": {"asr": {"*.attention": 0.5}, "ser": 0.2}},
        {"granularity": "tensor", "weights": {"asr": {NAME: 0.5}, "ser": {"*bias": 1}}},
        {"weights": 0.5, "scale": [0.1, 0.2, 0.3]},
    ],
)
def test_filters_give_every_tensor_its_weights(folders, options):
    with plan_of(folders, options) as plan:
        config = mergekit_config(plan)
        shared = config["parameters"].get("lambda", 1.0)
        for name in plan.floats:
            for key in plan.base.stored[name]:
                found = [value_of(m["parameters"]["weight"], key) for m in config["models"]]
                assert found == plan.weights(name), key
                assert value_of(shared, key) == plan.scale(name), key


def test_conv_layers_of_the_front_end_are_not_taken_for_layers(folders):
    """Trap T3: a part of a name must not match in another block."""
    weights = {"asr": [0.1, 0.2, 0.3], "ser": [0.1, 0.2, 0.3]}
    with plan_of(folders, {"weights": weights}) as plan:
        rows = mergekit_config(plan)["models"][0]["parameters"]["weight"]
    assert value_of(rows, "feature_extractor.conv_layers.1.conv.weight") == 0.1
    assert value_of(rows, "encoder.layers.1.attention.k_proj.weight") == 0.3
    assert value_of(rows, "encoder.layers.11.attention.k_proj.weight".replace("11", "0")) == 0.2


def test_numbers_that_are_the_same_everywhere_stay_numbers(folders):
    with plan_of(folders, {"weights": 0.5}) as plan:
        text = mergekit_text(plan)
    config = yaml.safe_load(text)
    assert [model["parameters"] for model in config["models"]] == [{"weight": 0.5}] * 2
    assert config["parameters"] == {"normalize": False}
    assert "factors of its weight norm" in text


@pytest.mark.parametrize("options", [BLOCKS, {**TIES, "weights": 0.5}, {**TIES, "scale": 0.3}])
def test_mergekit_reads_it_and_merges_the_same(folders, tmp_path, options):
    pytest.importorskip("mergekit")
    from mergekit.config import MergeConfiguration
    from mergekit.scripts.merge_raw_pytorch import RawPyTorchMergeConfig

    with plan_of(folders, options) as plan:
        (tmp_path / "row.yaml").write_text(mergekit_text(plan))
        write_merged(plan, tmp_path / "ours")
    values = yaml.safe_load((tmp_path / "row.yaml").read_text())
    MergeConfiguration.model_validate(values)
    assert RawPyTorchMergeConfig.model_validate(values).merge_method == values["merge_method"]
    command = [Path(sys.executable).parent / "mergekit-pytorch", "--tensor-intersection"]
    subprocess.run(
        [*command, tmp_path / "row.yaml", tmp_path / "theirs"], check=True, capture_output=True
    )
    ours, theirs = load_file(tmp_path / "ours"), load_file(tmp_path / "theirs/model.safetensors")
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        if key != NORM_SPELLINGS[0][0]:
            torch.testing.assert_close(tensor, theirs[key], rtol=0, atol=1e-6)
    # The norm of merged weights is not the merged norm: what trap T2 is about.
    g = NORM_SPELLINGS[0][0]
    assert (ours[g] - theirs[g]).abs().max() > 1e-3


def test_effective_weights_have_no_such_difference(folders, tmp_path):
    """Checkpoints that store the convolution's weight itself are merged by mergekit as by us."""
    for name in ("base", *TASKS):
        state = load_file(folders / name / "model.safetensors")
        g, v = (state.pop(key) for key in NORM_SPELLINGS[0])
        (tmp_path / name).mkdir()
        state[f"{POS_CONV}.weight"] = torch._weight_norm(v, g, 2)
        save_file(state, tmp_path / name / "model.safetensors")
    with plan_of(tmp_path, BLOCKS) as plan:
        assert "factors" not in mergekit_text(plan)
        assert mergekit_config(plan)["base_model"] == str(tmp_path / "base" / "model.safetensors")
    with (
        MergePlan(
            folders / "base",
            Recipe.from_dict(BLOCKS),
            experts={task: tmp_path / task for task in TASKS},
        ) as plan,
        pytest.raises(UserError, match="stores .* under other keys than"),
    ):
        mergekit_config(plan)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "dare", "options": {"density": 0.5}}, "its dare is another one"),
        ({"preprocess": {"method": "dare", "density": 0.5}}, "does not preprocess vectors"),
        ({**TIES, "weights": {"asr": 1, "ser": 0.5}}, "all tasks have equal weights"),
        ({"method": "ties", "options": {"density": 0.3}}, "give minimum: 1"),
        ({"method": "ties", "options": {**TIES["options"], "scope": "model"}}, "scope: model"),
        ({"method": "ties", "options": {**TIES["options"], "elect": "frequency"}}, "elect:"),
        ({"method": "ties", "options": {**TIES["options"], "normalize": "none"}}, "normalize:"),
    ],
)
def test_what_mergekit_computes_otherwise_is_refused(folders, options, message):
    refused = pytest.raises(UserError, match=f"no equivalent of the recipe 'row': .*{message}")
    with plan_of(folders, options) as plan, refused:
        mergekit_config(plan)


def test_task_vectors_and_nothing_are_refused(folders):
    tau = TaskVector.from_checkpoints(folders / "base", folders / "ser")
    refused = pytest.raises(UserError, match="needs the expert's checkpoint of ser")
    with plan_of(folders, {}, vectors={"ser": tau}) as plan, refused:
        mergekit_config(plan)
    refused = pytest.raises(UserError, match="there is no task vector")
    with MergePlan(folders / "base", Recipe(tasks=())) as plan, refused:
        mergekit_config(plan)
