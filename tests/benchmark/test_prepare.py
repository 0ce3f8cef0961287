"""The benchmark of preparation, on a corpus of a hundred turns."""

import argparse

import pytest

from espnet_adaltm.benchmark import prepare


def test_every_step_is_measured_and_audio_is_fast(tmp_path):
    args = argparse.Namespace(turns=120, num_workers=1, audio_seconds=18.0, workdir=tmp_path)
    result = prepare.measure(args)
    assert list(result["steps"]) == ["lists", "labels", "audit"]
    assert result["seconds"] == pytest.approx(sum(s["seconds"] for s in result["steps"].values()))
    assert (tmp_path / "data" / "train" / "utt2soft").is_file()
    assert (tmp_path / "data" / "labels.json").is_file()
    assert (tmp_path / "data" / "audit.md").is_file()
    # Processor time, so that other work on the machine does not count.
    assert set(result["audio"]) == {"wav", "flac", "wav, 44.1 kHz stereo"}
    assert min(result["audio"].values()) > prepare.TARGET_SPEED
    text = prepare.table(result)
    assert "120 turns" in text
    assert "target: 60 s" in text
