"""The benchmark of denormal numbers: both kinds of passes, and nothing left switched."""

import numpy as np
import pytest
import torch

from espnet_adaltm.backbone.loading import save_encoder
from espnet_adaltm.backbone.tiny import random_encoder, tiny_config
from espnet_adaltm.benchmark import denormals
from espnet_adaltm.bin import benchmark
from espnet_adaltm.files import read_json
from tests.backbone.test_units import make_dump


@pytest.fixture
def words(tmp_path):
    save_encoder(random_encoder(tiny_config(num_hidden_layers=1), 0), tmp_path / "base")
    generator = np.random.default_rng(0)
    waves = {utt: generator.normal(size=n) * 0.1 for utt, n in {"a": 9000, "b": 5000}.items()}
    dump = make_dump(tmp_path / "dump", waves)
    return ["denormals", "--base", str(tmp_path / "base"), "--dump", str(dump), "--rounds", "1"]


def denormal_gradients(*_):
    return torch.full((4,), 1e-39) * 1.0


def test_both_kinds_of_passes_are_timed_on_the_first_clips(words, tmp_path, capsys):
    benchmark.main([*words, "--clips", "1", "--json", str(tmp_path / "found.json")])
    found = read_json(tmp_path / "found.json")
    assert found["shape"] == [1, 27, 128]
    assert set(found["seconds"]) == {"kept", "flushed"}
    assert found["ratio"] == found["seconds"]["kept"] / found["seconds"]["flushed"]
    assert found["difference"] < 1e-6
    assert "features 1 x 27 x 128" in capsys.readouterr().out


def test_only_one_kind_takes_them_for_zero_and_later_work_does_not(words, monkeypatch):
    monkeypatch.setattr(denormals, "_gradients", denormal_gradients)
    found = denormals.measure(benchmark.get_parser().parse_args(words))
    assert found["difference"] == 1.0
    assert denormal_gradients().count_nonzero() == 4


@pytest.mark.parametrize("name", ["--clips", "--rounds"])
def test_nothing_to_time_is_refused(words, capsys, name):
    with pytest.raises(SystemExit):
        benchmark.main([*words, name, "0"])
    assert f"error: {name} 0: give 1 or more" in capsys.readouterr().err
