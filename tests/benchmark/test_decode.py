"""The benchmark of decoding: the same answers, and how the times are compared."""

import json

import numpy as np
import pytest
import soundfile
import torch

from espnet_adaltm.benchmark import decode
from espnet_adaltm.bin import benchmark
from espnet_adaltm.errors import UserError


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_everything_is_measured_and_says_the_same(tmp_path, capsys):
    rng = np.random.default_rng(0)
    files = [tmp_path / "a.wav", tmp_path / "b.wav"]
    for path, size in zip(files, (8000, 20_000)):
        soundfile.write(path, 0.1 * rng.standard_normal(size), 16_000)
    words = ["decode", "--size", "small", "--rounds", "1", "--threads", "1", "--files"]
    words += [str(path) for path in files] + ["--pipeline_batches", "1", "2"]
    benchmark.main([*words, "--json", str(tmp_path / "out.json")])
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["files"] == 2
    assert result["seconds_of_audio"] == pytest.approx(1.75)
    assert set(result["programs"]) == {
        "ours emotion",
        "plain emotion",
        "ours words",
        "ours both",
        *(f"pipeline {task}, batch {n}" for task in ("emotion", "words") for n in (1, 2)),
    }
    for row in result["programs"].values():
        assert 0 < row["least"] <= row["median"]
        assert row["real_time_factor"] == pytest.approx(row["least"] / 1.75)
    counts = result["merged"]["parameters"]
    assert counts["merged"] == counts["plain"] > 100_000
    assert result["difference"]["probabilities"] < 1e-5
    assert result["difference"]["same_transcripts"] == 1.0
    shown = capsys.readouterr().out
    assert "| both |" in shown
    assert "100 % of the transcripts are the same" in shown


def test_the_fastest_pipeline_is_compared_with():
    def row(least, cpu):
        return {"least": least, "least_cpu": cpu}

    summary = {
        "ours emotion": row(2.0, 1.0),
        "ours both": row(2.5, 2.0),
        "pipeline emotion, batch 1": row(4.0, 4.0),
        "pipeline emotion, batch 8": row(3.0, 5.0),
        "pipeline words, batch 1": row(7.0, 6.0),
    }
    assert decode._faster("emotion", summary) == {"wall": 1.5, "processor": 4.0}
    assert decode._faster("both", summary) == {"wall": 4.0, "processor": 5.0}


def test_numbers_below_one_are_refused():
    args = benchmark.get_parser().parse_args(["decode", "--rounds", "0"])
    with pytest.raises(UserError, match="--rounds 0: give 1 or more"):
        decode.measure(args)
