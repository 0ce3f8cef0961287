"""The offline benchmark: whole programs, measured, compared and told."""

import argparse
import json
import sys

import pytest
import torch
from safetensors.torch import save_file

from espnet_adaltm.benchmark import merge_offline
from espnet_adaltm.benchmark.checkpoints import write_checkpoints
from espnet_adaltm.benchmark.process import Run, run_program
from espnet_adaltm.bin import benchmark
from espnet_adaltm.errors import UserError
from espnet_adaltm.merging.task_vector import TaskVector


def python(*words):
    return [sys.executable, "-S", "-c", *words]


def test_a_programs_peak_is_its_own_and_not_ours(tmp_path):
    ballast = torch.ones(60 << 20)  # 240 MB
    small = run_program(python("pass"), tmp_path / "log")
    large = run_program(
        python("x = b'1' * (100 << 20); import time; time.sleep(0.3)"), tmp_path / "log"
    )
    assert ballast.numel()
    assert small.peak_mb < 60
    # the kernel counts resident pages to within a few per cent
    assert 95 <= large.peak_mb - small.peak_mb < 115
    assert 95 <= large.peak_anonymous_mb < 130
    assert large.seconds > 0.3 > small.cpu_seconds


def test_a_program_that_fails_says_why(tmp_path):
    with pytest.raises(UserError, match="(?s)failed:.*ValueError: so it is"):
        run_program(python("raise ValueError('so it is')"), tmp_path / "log")


def test_random_checkpoints_load_in_transformers(tmp_path):
    from transformers import WavLMModel

    parameters = write_checkpoints("small", tmp_path / "base", [tmp_path / "asr"])
    model, info = WavLMModel.from_pretrained(tmp_path / "asr", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert sum(p.numel() for p in model.parameters()) == parameters
    tau = TaskVector.from_checkpoints(tmp_path / "base", tmp_path / "asr")
    name = "encoder.layers.0.attention.k_proj.weight"
    assert 0.5e-4 < tau.tensors[name].square().mean().sqrt() < 4e-4


def test_ratios_and_summary_in_closed_form():
    runs = {
        "blocks: ours": [Run(2.0, 1.0, 100.0, 50.0), Run(1.0, 1.0, 120.0, 60.0)],
        "blocks: mergekit": [Run(6.0, 5.0, 400.0, 200.0), Run(9.0, 5.0, 480.0, 120.0)],
    }
    programs = [merge_offline.Program(name, "blocks", (), None, ()) for name in runs]
    found = merge_offline._ratios(programs, runs)
    assert found == {
        "blocks: ours": {
            "faster": 5.0,
            "faster_min": 6.0,
            "memory": 0.25,
            "anonymous_memory": pytest.approx(0.3),
        }
    }


def test_differences_leave_out_the_factors_of_the_convolution(tmp_path):
    g = "encoder.pos_conv_embed.conv.parametrizations.weight.original0"
    state = {"encoder.x": torch.zeros(4), g: torch.zeros(1)}
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        save_file(state, tmp_path / name / "model.safetensors")
        state = {"encoder.x": torch.tensor([0, 0, 1e-7, 0.5]), g: torch.ones(1)}
    found = merge_offline.difference(tmp_path / "one", tmp_path / "other")
    assert found == {"largest": 0.5, "share": 0.25}
    save_file({"encoder.x": torch.zeros(4)}, tmp_path / "other" / "model.safetensors")
    with pytest.raises(UserError, match="do not hold the same tensors"):
        merge_offline.difference(tmp_path / "one", tmp_path / "other")


@pytest.mark.integration
def test_the_program_measures_and_tells(tmp_path, capsys):
    out = tmp_path / "figures.json"
    words = ["merge_offline", "--size", "small", "--repeats", "1", "--recipes", "blocks"]
    words += ["--threads", "1", "--folder", str(tmp_path), "--no_mergekit", "--json", str(out)]
    benchmark.main(words)
    result = json.loads(out.read_text())
    names = ["experts to model", "experts to vectors and model", "vectors to model"]
    assert list(result["programs"]) == [f"blocks: {name}" for name in names]
    for row in result["programs"].values():
        assert 0 < row["min"] == row["median"]
        assert 50 < row["peak_anonymous_mb"] < row["peak_mb"] < 2000
    assert result["ratios"] == {}
    assert result["machine"]["torch"]
    told = capsys.readouterr().out
    assert "| blocks: vectors to model |" in told
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


@pytest.mark.integration
def test_against_mergekit(tmp_path):
    pytest.importorskip("mergekit")
    args = argparse.Namespace(
        size="small", repeats=1, recipes=["blocks"], threads=1, folder=tmp_path, no_mergekit=False
    )
    result = merge_offline.measure(args)
    assert result["difference"]["blocks"]["largest"] < 1e-6
    assert set(result["ratios"]) < set(result["programs"])
    assert "against mergekit" in merge_offline.table(result)


def test_mistakes_are_told(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="--repeats 0"):
        merge_offline.measure(argparse.Namespace(repeats=0))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(UserError, match="mergekit-pytorch does not exist: install"):
        merge_offline._mergekit()
