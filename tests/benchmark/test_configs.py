"""The benchmark of the configurations: nothing is left out, and rows are trained for real."""

import argparse
import dataclasses
import sys

import pytest

from espnet_adaltm.benchmark import configs
from espnet_adaltm.benchmark.config_rows import CONF, LEFT_OUT, all_rows
from espnet_adaltm.benchmark.process import run_program
from espnet_adaltm.benchmark.small_corpus import write_corpus
from espnet_adaltm.errors import UserError
from espnet_adaltm.kaldi import read_scp

# Used inside other rows.
PARTS = {"wavlm_large/train_merge"}


def options(workdir, **changes):
    values = {"only": ["*"], "seconds": 1.0, "clips": 2, "limit_gb": 6.0, "threads": 1}
    return argparse.Namespace(**{**values, "small": True, "workdir": workdir, **changes})


def test_every_shipped_configuration_is_a_row():
    shipped = {f"merge/{path.stem}" for path in (CONF / "merge").glob("*.yaml")}
    for model in ("wavlm_large", "wav2vec2_base"):
        shipped |= {f"{model}/{path.stem}" for path in (CONF / model).rglob("*.yaml")}
    assert {row.name for row in all_rows()} | set(LEFT_OUT) | PARTS == shipped
    known = set()
    for row in all_rows():
        assert row.config.is_file()
        assert set(row.needs) <= known, row.name
        known.add(row.name)


def test_unknown_rows_are_refused(tmp_path):
    with pytest.raises(UserError, match="no row; all are: wavlm_large/train_asr"):
        configs.measure(options(tmp_path, only=["nothing*"]))


def test_memory_limit_is_kept(tmp_path):
    words = [sys.executable, "-c", "import mmap; b = bytearray(300 * 2**20)"]
    assert run_program(words, tmp_path / "log", limit_mb=1024).peak_mb > 300
    with pytest.raises(UserError, match="MemoryError"):
        run_program(words, tmp_path / "log", limit_mb=200)


def test_every_validation_clip_has_a_speaker(tmp_path):
    """As `learn_on: held_out` needs them; in training two clips have one."""
    write_corpus(tmp_path, clips=4, seconds=0.1, run=lambda *_: None)
    speakers = {
        name: set(read_scp(tmp_path / "data" / name / "utt2spk").values())
        for name in ("train", "dev")
    }
    assert {name: len(found) for name, found in speakers.items()} == {"train": 2, "dev": 4}
    assert not speakers["train"] & speakers["dev"]


@pytest.mark.integration
def test_a_row_is_trained_and_gone_on_from(tmp_path):
    name = "wav2vec2_base/mtlser"
    result = configs.measure(options(tmp_path, only=[name]))
    row = result["rows"][name]
    assert row["error"] is None
    assert row["steps"] == 2  # four clips in batches of two
    assert row["peak_mb"] > row["peak_anonymous_mb"] > 50
    assert f"|{name}|{row['peak_mb']:.0f}|" in configs.table(result)
    assert not (tmp_path / "exp" / name).exists()  # nothing stands on it
    again = configs.measure(options(tmp_path, only=[name]))
    assert again["rows"] == result["rows"]
    with pytest.raises(UserError, match="was begun with"):
        configs.measure(options(tmp_path, only=[name], seconds=2.0))


def test_a_row_that_fails_is_told(tmp_path, monkeypatch):
    world = configs._World(tmp_path, options(tmp_path))
    monkeypatch.setattr(configs._World, "_prepare", lambda self, row: None)
    row = next(row for row in all_rows() if row.name == "wavlm_large/train_ser")
    found = world.train(dataclasses.replace(row, program="task_vectors"))  # takes other options
    assert "required: --out" in found["error"]
    assert not (tmp_path / "rows").exists()
    result = {"rows": {row.name: found}, "left_out": LEFT_OUT, "machine": {"processor": "p"}}
    text = configs.table(result | vars(options(tmp_path)))
    assert "|wavlm_large/train_ser|failed|" in text
    assert "memory_qwen2_audio left out: its host" in text
