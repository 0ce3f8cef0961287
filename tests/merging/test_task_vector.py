"""Task vectors: exact differences, or an error that names the tensor."""

import errno
import math
from pathlib import Path

import pytest
import torch
from merging_common import LAYERS, base_encoder, moved, vector
from safetensors import SafetensorError
from safetensors.torch import save_file

from espnet_adaltm.errors import UserError
from espnet_adaltm.files import sha256_file
from espnet_adaltm.merging import task_vector
from espnet_adaltm.merging.groups import group_names, group_of
from espnet_adaltm.merging.task_vector import TaskVector

NAME = "encoder.layers.0.attention.k_proj.weight"
BLOCKS = [f"block{depth}" for depth in range(LAYERS + 1)]


@pytest.fixture
def states():
    base = base_encoder()
    return dict(base.encoder_state()), dict(moved(base, 11).encoder_state())


def test_differences_are_exact(states):
    base, expert = states
    tau = TaskVector.from_checkpoints(base, expert)
    assert tau.tensors.keys() == base.keys()
    assert all(torch.equal(tau.tensors[n], expert[n] - base[n]) for n in base)
    assert tau.num_layers == LAYERS


def test_low_precision_checkpoints_are_subtracted_in_float32():
    base = {NAME: torch.tensor([1.0, 3.0], dtype=torch.bfloat16)}
    expert = {NAME: torch.tensor([1.0078125, 3.0], dtype=torch.bfloat16)}
    tau = TaskVector.from_checkpoints(base, expert).tensors[NAME]
    assert tau.dtype == torch.float32
    assert tau.tolist() == [0.0078125, 0.0]


def test_files_stream_to_the_same_vector_with_hashes(states, tmp_path):
    for name, state in zip(("base", "expert"), states):
        save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / f"{name}.safetensors")
    files = [tmp_path / "base.safetensors", tmp_path / "expert.safetensors"]
    tau = TaskVector.from_checkpoints(*files)
    expected = TaskVector.from_checkpoints(*states)
    assert all(torch.equal(tau.tensors[n], expected.tensors[n]) for n in expected.tensors)
    assert tau.metadata == {
        "base_sha256": sha256_file(files[0]),
        "expert_sha256": sha256_file(files[1]),
    }


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 0.0), (torch.bfloat16, 0.003)])
def test_saved_and_loaded(states, tmp_path, dtype, tolerance):
    tau = TaskVector.from_checkpoints(*states, base_sha256="b", expert_sha256="e")
    tau.save(tmp_path / "tau.safetensors", dtype)
    assert [file.name for file in tmp_path.iterdir()] == ["tau.safetensors"]
    back = TaskVector.load(tmp_path / "tau.safetensors")
    assert back.tensors[NAME].dtype == dtype
    assert back.metadata["base_sha256"] == "b"
    assert back.metadata["dtype"] == str(dtype).removeprefix("torch.")
    error = (back - tau).norms("global")["all"] / tau.norms("global")["all"]
    assert error <= tolerance


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("Error while serializing: I/O error: No space left (os error 28)"),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
)
def test_full_disk_is_one_line_and_keeps_the_old_vector(states, tmp_path, monkeypatch, error):
    path = tmp_path / "tau.safetensors"
    tau = TaskVector.from_checkpoints(*states)
    tau.save(path)
    old = path.read_bytes()

    def full(tensors, name, metadata):
        Path(name).write_bytes(old[:100])
        raise error

    monkeypatch.setattr(task_vector, "save_file", full)
    with pytest.raises(UserError, match=f"no space left on the disk of {tmp_path}"):
        (2.0 * tau).save(path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_other_errors_of_safetensors_stay_themselves(states, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise SafetensorError("no such dtype")

    monkeypatch.setattr(task_vector, "save_file", broken)
    with pytest.raises(SafetensorError, match="no such dtype"):
        TaskVector.from_checkpoints(*states).save(tmp_path / "tau.safetensors")


def test_cut_off_and_foreign_files_are_refused(states, tmp_path):
    path = tmp_path / "tau.safetensors"
    TaskVector.from_checkpoints(*states).save(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        TaskVector.load(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="is not a task vector"):
        TaskVector.load(path)
    with pytest.raises(UserError, match="run stage task_vectors"):
        TaskVector.load(tmp_path / "none")


def test_arithmetic(states):
    tau = TaskVector.from_checkpoints(*states)
    twice = tau + tau
    assert all(torch.equal(twice.tensors[n], 2 * t) for n, t in tau.tensors.items())
    assert (twice - 2 * tau).norms("global") == {"all": 0.0}
    assert torch.equal((0.5 * tau).tensors[NAME], (tau * 0.5).tensors[NAME])


def test_norms_and_cosines_by_block(states):
    tau = TaskVector.from_checkpoints(*states)
    norms = tau.norms("block")
    assert list(norms) == BLOCKS
    flat = torch.cat([t.flatten() for t in tau.tensors.values()]).double()
    assert math.hypot(*norms.values()) == pytest.approx(flat.norm().item(), rel=1e-12)
    assert tau.norms("global")["all"] == pytest.approx(flat.norm().item(), rel=1e-12)
    assert list(tau.cosine(-2.0 * tau).values()) == pytest.approx([-1.0] * (LAYERS + 1))
    assert all(math.isnan(value) for value in tau.cosine(tau * 0.0).values())


def test_groups_follow_the_decisions_on_depth():
    names = list(base_encoder().encoder_state())
    depth = {name: group_of(name, LAYERS, "block") for name in names}
    assert depth["encoder.layers.0.attention.rel_attn_embed.weight"] == "block1"
    assert depth["encoder.layer_norm.weight"] == f"block{LAYERS}"
    assert depth["feature_extractor.conv_layers.1.conv.weight"] == "block0"
    assert group_of("encoder.layer_norm.weight", LAYERS, "block", norm_first=False) == "block0"
    assert group_names(names, LAYERS, "global") == ["all"]
    assert group_names(names, LAYERS, "block") == BLOCKS
    assert "block1.attention" in group_names(names, LAYERS, "module")
    assert sorted(group_names(names, LAYERS, "tensor")) == sorted(names)
    deep = [f"encoder.layers.{layer}.final_layer_norm.bias" for layer in range(24)]
    assert group_names(deep, 24, "block") == [f"block{layer + 1}" for layer in range(24)]


def change(state, value):
    return {**state, NAME: value}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(3, 3), r"shape \(16, 16\) in state, \(3, 3\) in state"),
        (torch.zeros(16, 16, dtype=torch.float16), r"dtype torch.float32 .* torch.float16"),
        (torch.full((16, 16), torch.nan), "NaN or infinite"),
        (torch.full((16, 16), torch.inf), "NaN or infinite"),
    ],
)
def test_bad_tensors_are_named(states, value, message):
    with pytest.raises(UserError, match=message) as error:
        TaskVector.from_checkpoints(states[0], change(states[1], value))
    assert NAME in str(error.value)


def test_missing_and_extra_tensors_are_named(states):
    base, expert = states
    del expert[NAME]
    with pytest.raises(UserError, match=f"'{NAME}' is in state but not in state"):
        TaskVector.from_checkpoints(base, expert)
    with pytest.raises(UserError, match=f"'{NAME}'"):
        TaskVector.from_checkpoints(expert, base)


def test_only_the_mask_embedding_may_be_missing(states):
    base, expert = states
    del expert["masked_spec_embed"]
    tau = TaskVector.from_checkpoints(base, expert)
    assert tau.tensors["masked_spec_embed"].abs().max() == 0
    assert "masked_spec_embed" not in TaskVector.from_checkpoints(expert, base).tensors


def test_constants_must_agree_and_are_left_out(states):
    base, expert = states
    constant = "encoder.layers.0.attention.table"
    base[constant], expert[constant] = torch.arange(4), torch.arange(4)
    assert constant not in TaskVector.from_checkpoints(base, expert).tensors
    expert[constant] = torch.arange(1, 5)
    with pytest.raises(UserError, match="table' is a constant .* differs"):
        TaskVector.from_checkpoints(base, expert)


def test_vectors_of_two_bases_do_not_mix():
    base = base_encoder()
    tau = vector(base, moved(base, 11))
    one, other = (TaskVector(tau.tensors, {"base_sha256": name}) for name in ("one", "other"))
    with pytest.raises(UserError, match="two bases"):
        one + other
    fewer = TaskVector({NAME: tau.tensors[NAME]})
    with pytest.raises(UserError, match="is in only one of them"):
        tau.cosine(fewer)


def test_the_same_vector_gives_the_same_bytes(tmp_path):
    name = "encoder.layers.0.attention.q_proj.weight"
    metadata = {"base_sha256": "b", "expert_sha256": "e", "more": "m"}
    for file in ("first", "second"):
        TaskVector({name: torch.ones(2, 2)}, dict(metadata)).save(tmp_path / file)
        metadata = dict(reversed(metadata.items()))
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    assert TaskVector.load(tmp_path / "first").metadata["base_sha256"] == "b"
