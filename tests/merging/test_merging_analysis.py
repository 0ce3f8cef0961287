"""Similarity of task vectors, and the program that writes it."""

import json
import math

import pytest
import torch
from merging_common import LAYERS, base_encoder, moved
from safetensors.torch import save_file

from espnet_adaltm.backbone.loading import load_encoder, save_encoder, write_base_info
from espnet_adaltm.bin import task_vectors
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import write_json
from espnet_adaltm.merging.analysis import analyse, sign_conflicts
from espnet_adaltm.merging.merged import MergedEncoder
from espnet_adaltm.merging.static import scaled
from espnet_adaltm.merging.task_vector import TaskVector

FIRST = "encoder.layers.0.attention.k_proj.bias"
SECOND = "encoder.layers.1.attention.k_proj.bias"


def test_sign_conflicts_count_elements_that_both_move():
    first, second = torch.tensor([1.0, -2.0, 0.0, 3.0]), torch.tensor([-1.0, -1.0, 5.0, 2.0])
    assert sign_conflicts(first, second) == (1, 3)


def test_numbers_of_a_hand_made_pair():
    asr = TaskVector({FIRST: torch.tensor([3.0, 4.0]), SECOND: torch.zeros(2)})
    ser = TaskVector({FIRST: torch.tensor([4.0, -3.0]), SECOND: torch.tensor([0.0, 2.0])})
    base = {FIRST: torch.tensor([0.0, 10.0]), SECOND: torch.zeros(2)}
    report = analyse({"asr": asr, "ser": ser}, base.items())
    assert report["blocks"] == ["block1", "block2"]
    assert report["base_norm"] == [10.0, 0.0]
    assert report["norm"] == {"asr": [5.0, 0.0], "ser": [5.0, 2.0]}
    assert report["relative_norm"] == {"asr": [0.5, None], "ser": [0.5, None]}
    assert report["cosine"] == {"asr,ser": [0.0, None]}
    assert report["sign_conflict"] == {"asr,ser": [0.5, None]}
    total = report["total"]
    assert total["norm"]["ser"] == pytest.approx(math.sqrt(29))
    assert total["relative_norm"] == {"asr": 0.5, "ser": pytest.approx(math.sqrt(29) / 10)}


def test_no_vector_and_vectors_of_two_bases_are_told():
    with pytest.raises(UserError, match="give at least one task vector"):
        analyse({}, [])
    taus = {task: TaskVector({FIRST: torch.ones(2)}, {"base_sha256": task}) for task in ("a", "b")}
    with pytest.raises(UserError, match="two bases"):
        analyse(taus, [])


def test_modules_and_parts_sum_up_to_blocks_and_to_everything():
    asr = {
        "encoder.layers.0.attention.k_proj.bias": [3.0, 4.0],
        "encoder.layers.0.feed_forward.output_dense.bias": [0.0, -12.0],
        "encoder.layers.1.attention.k_proj.bias": [1.0, 1.0],
        "masked_spec_embed": [2.0, 0.0],
    }
    ser = {
        "encoder.layers.0.attention.k_proj.bias": [3.0, -4.0],
        "encoder.layers.0.feed_forward.output_dense.bias": [5.0, 12.0],
        "encoder.layers.1.attention.k_proj.bias": [-1.0, -1.0],
        "masked_spec_embed": [0.0, 0.0],
    }
    asr, ser = ({name: torch.tensor(row) for name, row in rows.items()} for rows in (asr, ser))
    base = {name: torch.tensor([6.0, 8.0]) for name in asr}
    report = analyse({"asr": TaskVector(asr), "ser": TaskVector(ser)}, base.items())
    modules, parts = report["modules"], report["parts"]
    assert modules["groups"] == [
        "block0.mask",
        "block1.attention",
        "block1.feed_forward",
        "block2.attention",
    ]
    assert modules["norm"]["asr"] == pytest.approx([2.0, 5.0, 12.0, math.sqrt(2)])
    assert modules["relative_norm"]["ser"] == pytest.approx([0.0, 0.5, 1.3, math.sqrt(0.02)])
    cosines = modules["cosine"]["asr,ser"]
    assert cosines[0] is None
    assert cosines[1:] == pytest.approx([-7 / 25, -144 / (12 * 13), -1.0])
    assert modules["sign_conflict"]["asr,ser"] == [None, 0.5, 1.0, 1.0]
    assert parts["groups"] == ["attention", "feed_forward", "mask"]
    assert parts["norm"]["asr"] == pytest.approx([math.sqrt(27), 12.0, 2.0])
    assert parts["cosine"]["asr,ser"][0] == pytest.approx(-9 / 27)
    assert parts["sign_conflict"]["asr,ser"] == [0.75, 1.0, None]
    assert report["blocks"] == ["block0", "block1", "block2"]
    assert report["norm"]["asr"] == pytest.approx([2.0, 13.0, math.sqrt(2)])
    assert report["base_norm"] == pytest.approx([10.0, math.sqrt(200), 10.0])
    for table in (modules, parts):
        for task in ("asr", "ser"):
            square = sum(norm**2 for norm in table["norm"][task])
            assert math.sqrt(square) == pytest.approx(report["total"]["norm"][task])


@pytest.fixture
def folders(tmp_path):
    base = base_encoder()
    save_encoder(base, tmp_path / "base")
    digest = write_base_info(tmp_path / "base", "tiny", "test")["sha256"]
    base = load_encoder(tmp_path / "base")
    for seed, task in enumerate(("asr", "ser")):
        folder = tmp_path / task
        folder.mkdir()
        save_file(dict(moved(base, seed).encoder_state()), folder / "expert.safetensors")
        write_json(folder / "expert.json", {"kind": task, "base_sha256": digest})
    return tmp_path


def run(folder, *extra):
    names = [x for task in ("base", "asr", "ser") for x in (f"--{task}", str(folder / task))]
    task_vectors.main([*names, "--out", str(folder / "out"), *extra])


def test_program_writes_vectors_that_rebuild_the_expert(folders):
    run(folders)
    out = folders / "out"
    names = {"asr.safetensors", "ser.safetensors", "similarity.json"}
    assert {path.name for path in out.iterdir()} == names
    report = json.loads((out / "similarity.json").read_text())
    assert len(report["cosine"]["asr,ser"]) == LAYERS + 1
    assert all(0 < value < 1 for value in report["relative_norm"]["asr"])
    vector = TaskVector.load(out / "ser.safetensors")
    base = load_encoder(folders / "base")
    state = MergedEncoder(base, {"ser": vector}, scaled(base, {"ser": 1.0})).bake()
    expert = moved(load_encoder(folders / "base"), 1).encoder_state()
    for name, tensor in expert.items():
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=1e-6)


def test_program_refuses_an_expert_of_another_base(folders, capsys):
    write_json(folders / "ser" / "expert.json", {"base_sha256": "0" * 64})
    with pytest.raises(SystemExit) as status:
        run(folders)
    assert status.value.code == 1
    assert "fine-tuned from the base 000000000000" in capsys.readouterr().err
    assert not (folders / "out").exists()


def test_program_names_what_is_missing(folders, capsys):
    (folders / "asr" / "expert.safetensors").unlink()
    with pytest.raises(SystemExit):
        run(folders)
    assert "expert.safetensors is missing" in capsys.readouterr().err
