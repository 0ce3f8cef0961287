"""Task vectors: exact differences, or an error that names the tensor."""

import errno
import json
import math
import os

import pytest
import torch
from merging_common import LAYERS, base_encoder, moved, vector
from safetensors.torch import load_file, save_file

from espnet_adaltm.backbone.blocks import BlockMap
from espnet_adaltm.backbone.loading import save_encoder
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import sha256_file
from espnet_adaltm.merging import stream
from espnet_adaltm.merging.arithmetic import merge_vectors
from espnet_adaltm.merging.extract import extract_vectors
from espnet_adaltm.merging.groups import group_names, group_of
from espnet_adaltm.merging.task_vector import TaskVector, check_compatible
from espnet_adaltm.merging.tensor_file import TensorFile

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


def test_full_disk_is_one_line_and_keeps_the_old_vector(states, tmp_path, monkeypatch):
    path = tmp_path / "tau.safetensors"
    tau = TaskVector.from_checkpoints(*states)
    tau.save(path)
    old = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(UserError, match=f"no space left on the disk of {tmp_path}"):
        (2.0 * tau).save(path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def files(states, tmp_path):
    """Base and two experts as files, one of them with a head."""
    paths = [tmp_path / f"{name}.safetensors" for name in ("base", "asr", "ser")]
    other = dict(moved(base_encoder(), 12).encoder_state())
    for path, state in zip(paths, (*states, {**other, "lm_head.weight": torch.ones(3)})):
        save_file({k: v.contiguous() for k, v in state.items()}, path)
    return paths


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threads", [1, 3])
def test_extraction_gives_the_same_bytes_as_in_memory(files, tmp_path, dtype, threads, monkeypatch):
    monkeypatch.setattr(stream, "PIECE", 100)
    base, *experts = files
    for expert in experts:
        tau = TaskVector.from_checkpoints(base, expert)
        tau.save(tmp_path / f"expected_{expert.name}", dtype)
    outs = {expert.stem: tmp_path / f"found_{expert.name}" for expert in experts}
    sources = {expert.stem: expert for expert in experts}
    extract_vectors(base, sources, outs, dtype=dtype, threads=threads)
    TaskVector.extract(base, experts[0], tmp_path / "one", dtype)
    for expert in experts:
        expected = (tmp_path / f"expected_{expert.name}").read_bytes()
        assert outs[expert.stem].read_bytes() == expected
    assert (tmp_path / "one").read_bytes() == outs["asr"].read_bytes()


def test_a_vector_is_no_checkpoint(files, tmp_path):
    base, expert, _ = files
    TaskVector.from_checkpoints(base, expert).save(tmp_path / "tau.safetensors")
    with pytest.raises(UserError, match="tau.safetensors is a task vector, not a checkpoint"):
        TaskVector.from_checkpoints(base, tmp_path / "tau.safetensors")
    with pytest.raises(UserError, match="tau.safetensors is a task vector, not a checkpoint"):
        extract_vectors(tmp_path / "tau.safetensors", {"asr": expert}, {"asr": tmp_path / "v"})
    assert not (tmp_path / "v").exists()


def test_extraction_leaves_nothing_behind_when_it_fails(files, tmp_path):
    before = sorted(tmp_path.iterdir())
    outs = {"asr": tmp_path / "out" / "asr", "ser": tmp_path / "out" / "ser"}
    state = load_file(files[2])
    save_file({**state, NAME: torch.full((16, 16), torch.nan)}, files[2])
    with pytest.raises(UserError, match=f"'{NAME}' has NaN"):
        extract_vectors(files[0], {"asr": files[1], "ser": files[2]}, outs)
    assert not (tmp_path / "out").exists()
    state.pop(NAME)
    save_file(state, files[2])
    with pytest.raises(UserError, match=f"'{NAME}' is in .*base.* but not in .*ser"):
        extract_vectors(files[0], {"asr": files[1], "ser": files[2]}, outs)
    assert sorted(tmp_path.iterdir()) == before


def test_a_vectors_file_tells_block_and_module_of_every_tensor(tmp_path):
    save_encoder(base_encoder(), tmp_path / "base")
    save_encoder(moved(base_encoder(), 11), tmp_path / "expert")
    tau = TaskVector.from_checkpoints(tmp_path / "base", tmp_path / "expert")
    assert tau.metadata["norm_first"] is True
    tau.save(tmp_path / "tau")
    with TensorFile(tmp_path / "tau") as file:
        blocks = json.loads(file.metadata["task_vector"])["blocks"]
    assert blocks.keys() == tau.tensors.keys()
    assert blocks[NAME] == "1.attention"
    assert blocks["encoder.layer_norm.weight"] == f"{LAYERS}.norm"
    assert blocks["masked_spec_embed"] == "0.mask"


def test_an_open_vector_reads_what_is_asked_for(states, tmp_path):
    tau = TaskVector.from_checkpoints(*states, base_sha256="b", expert_sha256="e")
    tau.save(tmp_path / "tau")
    with TaskVector.open(tmp_path / "tau") as opened:
        check_compatible(opened, tau)
        assert opened.num_layers == LAYERS
        assert opened.metadata["expert_sha256"] == "e"
        assert opened.tensors.keys() == tau.tensors.keys()
        assert opened.tensors[NAME] is not opened.tensors[NAME]
        assert opened.norms() == tau.norms()
        assert "other" not in opened.tensors


def test_values_that_are_not_finite_are_not_loaded(states, tmp_path):
    tensors = dict(TaskVector.from_checkpoints(*states).tensors)
    tensors[NAME] = torch.full((16, 16), torch.inf)
    TaskVector(tensors).save(tmp_path / "tau")
    with pytest.raises(UserError, match=f"'{NAME}' has NaN or infinite values in .*tau"):
        TaskVector.load(tmp_path / "tau")


def test_large_values_are_no_reason_to_refuse(states):
    base, expert = states
    expert[NAME] = torch.full((16, 16), 3e38)
    assert TaskVector.from_checkpoints(base, expert).tensors[NAME].isfinite().all()


def test_any_network_can_be_subtracted():
    base = {"layers.0.weight": torch.zeros(2), "head.bias": torch.zeros(1)}
    expert = {"layers.0.weight": torch.tensor([3.0, 4.0]), "head.bias": torch.ones(1)}
    tau = TaskVector.from_checkpoints(base, expert, any_names=True)
    assert tau.tensors["layers.0.weight"].tolist() == [3.0, 4.0]
    assert tau.tensors["head.bias"].tolist() == [1.0]


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


POST_NORM = {"encoder.layer_norm.bias": [3.0, 4.0], "encoder.layers.0.layer_norm.bias": [0.0, 2.0]}
PATTERN = r"^layers\.(?P<block>\d+)\.(?P<module>\w+)"


def hand_made(rows, **metadata):
    return TaskVector({name: torch.tensor(row) for name, row in rows.items()}, metadata)


def test_a_post_norm_vector_says_so_in_its_sums_and_keeps_it(tmp_path):
    tau = hand_made(POST_NORM, norm_first=False, base_sha256="b", expert_sha256="e")
    assert tau.norms() == {"block0": 5.0, "block1": 2.0}
    assert tau.norms(norm_first=True) == {"block1": pytest.approx(math.sqrt(29))}
    assert tau.cosine(-1.0 * tau) == {"block0": -1.0, "block1": -1.0}
    plain = hand_made(POST_NORM)
    assert plain.norms() == {"block1": pytest.approx(math.sqrt(29))}
    sums = {
        "sum": tau + tau,
        "difference": plain - tau,
        "scaled": 0.5 * tau,
        "merged": merge_vectors("task_arithmetic", {"a": tau, "b": tau}),
    }
    for name, found in sums.items():
        assert found.metadata["norm_first"] is False
        assert found.metadata["base_sha256"] == "b"
        assert found.metadata["expert_sha256"] == ""  # no longer that expert's differences
        found.save(tmp_path / name)
        with TensorFile(tmp_path / name) as file:
            blocks = json.loads(file.metadata["task_vector"])["blocks"]
        assert blocks == {n: f"{k}.norm" for k, n in enumerate(POST_NORM)}
        assert TaskVector.load(tmp_path / name).norms() == found.norms()


def test_sums_of_any_network_by_a_map_of_its_own(tmp_path):
    base = {"layers.0.mix": torch.zeros(2), "layers.1.mix": torch.zeros(1), "head": torch.zeros(1)}
    rows = {"layers.0.mix": [3.0, 4.0], "layers.1.mix": [2.0], "head": [14.0]}
    expert = {name: torch.tensor(row) for name, row in rows.items()}
    tau = TaskVector.from_checkpoints(base, expert, any_names=True)
    assert tau.norms("global") == {"all": 15.0}
    assert tau.norms("tensor") == {"head": 14.0, "layers.0.mix": 5.0, "layers.1.mix": 2.0}
    assert tau.cosine(2 * tau, "global") == {"all": pytest.approx(1.0)}
    with pytest.raises(UserError, match="no tensor .* is in a block: give blocks="):
        tau.norms()
    blocks = BlockMap.by_pattern(base, PATTERN)
    assert tau.norms(blocks=blocks) == {"block1": 5.0, "block2": 2.0}
    assert tau.norms("global", blocks=blocks) == {"all": pytest.approx(math.sqrt(29))}
    assert tau.cosine(-1 * tau, "module", blocks=blocks) == {"block1.mix": -1, "block2.mix": -1}
    mapped = TaskVector.from_checkpoints(base, expert, any_names=True, blocks=blocks)
    (2 * mapped + mapped).save(tmp_path / "tau")
    back = TaskVector.load(tmp_path / "tau")
    assert back.norms() == {"block1": 15.0, "block2": 6.0}
    assert back.metadata["blocks"] == {"layers.0.mix": "1.mix", "layers.1.mix": "2.mix"}


def test_an_empty_vector_has_empty_sums():
    assert TaskVector({}).norms() == TaskVector({}).norms("global") == {}


@pytest.mark.parametrize("blocks", [["a"], {"a": "front"}, {"a": 1}])
def test_a_damaged_block_map_names_the_file(tmp_path, blocks):
    entry = json.dumps({"base_sha256": "b", "blocks": blocks})
    save_file({"a": torch.zeros(1)}, tmp_path / "tau", {"task_vector": entry})
    with pytest.raises(UserError, match="tau does not hold what stage task_vectors writes"):
        TaskVector.load(tmp_path / "tau")


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


@pytest.mark.parametrize(
    ("old", "new", "dtype", "message"),
    [
        (math.nan, 1.0, torch.float32, "NaN or infinite values in the base .*intact"),
        (math.inf, math.inf, torch.float16, "NaN or infinite values in the base .*intact"),
        (1.0, math.inf, torch.float16, "NaN or infinite values in the expert .*diverged"),
        (3e38, -3e38, torch.float32, "base .* and expert .* are finite, but too far apart"),
    ],
)
def test_what_is_not_finite_is_blamed(tmp_path, old, new, dtype, message):
    paths = [tmp_path / "base.safetensors", tmp_path / "expert.safetensors"]
    pair = [{NAME: torch.full((2, 2), value, dtype=dtype)} for value in (old, new)]
    for state, path in zip(pair, paths):
        save_file(state, path)
    for call in (
        lambda: TaskVector.from_checkpoints(*pair),
        lambda: TaskVector.from_checkpoints(*paths),
        lambda: TaskVector.extract(*paths, tmp_path / "tau"),
    ):
        with pytest.raises(UserError, match=f"'{NAME}'.*{message}"):
            call()
    assert sorted(tmp_path.iterdir()) == paths


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_differences_are_not_stored_as_integers(files, tmp_path, dtype):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=f"dtype {dtype}: .* store torch.float32 or torch.bfloat16"):
        TaskVector.from_checkpoints(*files[:2]).save(tmp_path / "tau", dtype)
    with pytest.raises(UserError, match=f"dtype {dtype}"):
        TaskVector.extract(*files[:2], tmp_path / "tau", dtype)
    assert sorted(tmp_path.iterdir()) == before


def test_differences_beyond_their_dtype_are_not_stored(states, tmp_path):
    base, expert = states
    expert[NAME] = torch.full((16, 16), 1e5)
    message = f"'{NAME}': differences are too large for torch.float16"
    with pytest.raises(UserError, match=message):
        TaskVector.from_checkpoints(base, expert).save(tmp_path / "tau", torch.float16)
    with pytest.raises(UserError, match=message):
        TaskVector.extract(base, expert, tmp_path / "tau", torch.float16)
    assert list(tmp_path.iterdir()) == []


def test_missing_and_extra_tensors_are_named(states):
    base, expert = states
    del expert[NAME]
    with pytest.raises(UserError, match=f"'{NAME}' is in state but not in state"):
        TaskVector.from_checkpoints(base, expert)
    with pytest.raises(UserError, match=f"'{NAME}'"):
        TaskVector.from_checkpoints(expert, base)


def test_another_depth_is_told(states):
    base, expert = states
    deep = {**expert, f"encoder.layers.{LAYERS}.layer_norm.bias": torch.zeros(16)}
    with pytest.raises(UserError, match=rf"\({LAYERS + 1} and {LAYERS} layers\)"):
        TaskVector.from_checkpoints(base, deep)


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
