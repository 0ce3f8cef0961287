"""Broken audio: how much of it is let through, and how it is told."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_adaltm.bin import format_audio
from espnet_adaltm.data.audit import audit_set, load_audited_set
from espnet_adaltm.data.broken import allowed_broken
from espnet_adaltm.data.datadir import write_data_dir
from espnet_adaltm.data.dump import format_data_dir
from espnet_adaltm.errors import UserError
from espnet_adaltm.kaldi import read_scp

RATE = 16000


@pytest.fixture(autouse=True)
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("given", "total", "allowed"),
    [
        ("0", 10, 0),
        ("3", 10, 3),
        ("1%", 10_000, 100),
        ("1%", 199, 1),
        ("0.5%", 1000, 5),
        ("29%", 100, 29),  # 0.29 * 100 is 28.999... in floating point
        ("100%", 7, 7),
        (" 1% ", 100, 1),
    ],
)
def test_numbers_and_shares(given, total, allowed):
    assert allowed_broken(given, total) == allowed


@pytest.mark.parametrize(
    "given", ["", "%", "-1", "0.01", "101%", "1e3", "one", "1 %", "1%%", "nan%", "9" * 40, "\u0661"]
)
def test_anything_else_is_refused_by_name(given):
    with pytest.raises(UserError) as caught:
        allowed_broken(given, 100)
    assert f"--max_broken {given!r}" in str(caught.value)


def make(count, broken):
    """``count`` clips of 0.1 s, every ``broken``-th damaged in one of four ways."""
    os.makedirs("wav", exist_ok=True)
    rng = np.random.default_rng(0)
    noise = rng.integers(-3000, 3000, (count, RATE // 10), dtype=np.int16)
    soundfile.write("wav/model.wav", noise[0], RATE, subtype="PCM_16")
    header = Path("wav/model.wav").read_bytes()[: -2 * noise.shape[1]]
    wavs = {}
    for index, samples in enumerate(noise):
        path = Path(f"wav/{index:05d}.wav")
        content = header + samples.tobytes()
        if index % broken == broken - 1:
            kind = index // broken % 4
            content = [b"", content[:800], b"no audio at all" * 50, None][kind]
        if content is not None:
            path.write_bytes(content)
        wavs[f"u{index:05d}"] = str(path)
    write_data_dir("data/x", wavs, dict.fromkeys(wavs, "s"), utt2emo=dict.fromkeys(wavs, "sad"))
    return [f"u{index:05d}" for index in range(broken - 1, count, broken)]


def rows(path):
    with open(path, encoding="utf-8", newline="") as handle:
        return {row["utt"]: row["reason"] for row in csv.DictReader(handle, delimiter="\t")}


def test_few_are_left_out_and_counted():
    bad = make(40, 10)
    kept = format_data_dir("data/x", "dump/x", max_broken="10%")
    assert kept.utterances == [f"u{i:05d}" for i in range(40) if i % 10 != 9]
    assert list(rows("dump/x/dropped.tsv")) == bad
    assert (
        rows("dump/x/dropped.tsv")[bad[0]]
        == "broken: wav/00009.wav is empty (zero bytes): copy it again"
    )
    assert list(read_scp("dump/x/wav.scp")) == list(read_scp("dump/x/ser_shape")) == kept.utterances
    said = f"left out because their audio is broken: 4: {', '.join(bad)}"
    assert f"- warning: {said}" in Path("dump/x/audit.md").read_text()
    findings = [(f.level, f.message) for f in audit_set(load_audited_set("dump/x"))]
    assert ("warning", said) in findings
    assert os.listdir("dump") == ["x"]


def test_one_more_than_allowed_stops_and_leaves_nothing(capsys):
    bad = make(40, 10)
    with pytest.raises(SystemExit) as caught:
        format_audio.main(
            ["--data", "data/x", "--out", "dump/x", "--max_broken", "3", "--num_workers", "1"]
        )
    assert caught.value.code == 1
    told = [line for line in capsys.readouterr().err.splitlines() if " INFO " not in line]
    assert told[0].startswith("error: data/x: 4 of 40 utterances have broken audio")
    assert [line.strip().split(":")[0] for line in told[1:]] == bad
    assert not os.path.exists("dump")


def test_parts_of_a_broken_recording_count_one_by_one():
    os.makedirs("wav")
    segments = {f"p{index}": f"gone {index} {index + 1}" for index in range(3)}
    write_data_dir(
        "data/x", {"gone": "wav/gone.wav"}, dict.fromkeys(segments, "s"), segments=segments
    )
    with pytest.raises(UserError, match="3 of 3 utterances have broken audio") as caught:
        format_data_dir("data/x", "dump/x", max_broken="2")
    assert str(caught.value).count("wav/gone.wav does not exist") == 3


def test_the_list_of_an_earlier_run_goes_when_all_is_well():
    make(12, 1)
    with pytest.raises(UserError, match=r"and 2 more, all of them in dump/x\.broken\.tsv"):
        format_data_dir("data/x", "dump/x")
    assert len(rows("dump/x.broken.tsv")) == 12
    make(12, 13)
    format_data_dir("data/x", "dump/x")
    assert os.listdir("dump") == ["x"]


def test_all_broken_but_allowed_is_still_an_error():
    make(3, 1)
    with pytest.raises(UserError, match="all 3 utterances were dropped"):
        format_data_dir("data/x", "dump/x", max_broken="100%")


@pytest.mark.slow
def test_one_in_each_hundred_of_ten_thousand():
    bad = make(10_000, 100)
    with pytest.raises(
        UserError, match=r"100 of 10000 (?s:.*)and 90 more, all of them in dump/x\.broken"
    ) as caught:
        format_data_dir("data/x", "dump/x", max_broken="99")
    assert caught.value.args[0].count("\n") == 11
    assert list(rows("dump/x.broken.tsv")) == bad
    kept = format_data_dir("data/x", "dump/x", max_broken="1%")
    assert len(kept.utterances) == 9900
    assert list(rows("dump/x/dropped.tsv")) == bad
    assert "audio is broken: 100: u00099, u00199" in Path("dump/x/audit.md").read_text()
    assert os.listdir("dump") == ["x"]
