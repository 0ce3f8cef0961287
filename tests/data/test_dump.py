import errno
import os

import kaldiio
import numpy as np
import pytest
import soundfile

from espnet_adaltm.bin import format_audio
from espnet_adaltm.data.audit import load_audited_set
from espnet_adaltm.data.datadir import read_data_dir, write_data_dir
from espnet_adaltm.data.dump import format_data_dir
from espnet_adaltm.errors import UserError

RATE = 16000
SPEECH = (0.3 * np.sin(np.arange(RATE) * 0.17)).astype(np.float32)


@pytest.fixture(autouse=True)
def recipe(tmp_path, monkeypatch):
    """Work in a recipe folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(sounds, **tables):
    """Write ``data/x`` with the given sounds: samples, (samples, rate), or None for no file."""
    os.makedirs("wav", exist_ok=True)
    for utt, sound in sounds.items():
        if sound is not None:
            samples, rate = sound if isinstance(sound, tuple) else (sound, RATE)
            soundfile.write(f"wav/{utt}.wav", samples, rate, subtype="FLOAT")
    wavs = {utt: f"wav/{utt}.wav" for utt in sounds}
    return write_data_dir("data/x", wavs, dict.fromkeys(sounds, "spk"), **tables)


def refused(*culprits, left=(), **options):
    with pytest.raises(UserError) as caught:
        format_data_dir("data/x", "dump/x", **options)
    for culprit in culprits:
        assert culprit in str(caught.value)
    assert os.listdir("dump") == list(left) if left else not os.path.exists("dump")


def columns(path):
    with open(path, encoding="utf-8") as handle:
        return dict(line.rstrip("\n").split(maxsplit=1) for line in handle)


def test_everything_a_dump_holds():
    make(
        {"a": SPEECH, "b": (SPEECH, 8000), "c": np.tile(SPEECH, 2), "short": SPEECH[:1000]},
        text={"a": "one", "short": "two"},
        utt2emo={"b": "sad", "c": "sad", "short": "sad"},
        utt2dialog={"a": "d 0", "short": "d 1"},
    )
    result = format_data_dir("data/x", "dump/x")
    assert read_data_dir("dump/x") == result
    assert result.utterances == ["a", "b", "c"]
    assert result.num_samples == {"a": 16000, "b": 32000, "c": 32000}
    assert columns("dump/x/all_shape") == {"a": "16000", "b": "32000", "c": "32000"}
    assert columns("dump/x/asr_shape") == {"a": "16000"}
    assert columns("dump/x/ser_shape") == {"b": "32000", "c": "32000"}
    assert result.utt2dialog == {"a": "d 0"}
    with open("dump/x/dropped.tsv") as handle:
        assert handle.read() == "utt\treason\nshort\ttoo short: 0.062 s < 0.1 s\n"
    assert all(value.startswith("dump/x/audio/data.1.ark:") for value in result.wav_scp.values())
    assert set(load_audited_set("dump/x").stats) == {"a", "b", "c"}
    with open("dump/x/audit.md") as handle:
        assert "| utterances | 3 |" in handle.read()
    assert sorted(os.listdir("dump")) == ["x"]


def test_kaldiio_reads_the_very_samples():
    pcm = np.random.default_rng(0).integers(-32768, 32768, RATE).astype(np.int16)
    os.makedirs("wav")
    soundfile.write("wav/ü.wav", pcm, RATE, subtype="PCM_16")
    soundfile.write("wav/b.wav", pcm[::-1].copy(), RATE, subtype="PCM_16")
    write_data_dir("data/x", {"ü": "wav/ü.wav", "b": "wav/b.wav"}, {"ü": "s", "b": "s"})
    format_data_dir("data/x", "dump/x")
    loader = kaldiio.load_scp("dump/x/wav.scp")
    for utt, expected in {"ü": pcm, "b": pcm[::-1]}.items():
        rate, samples = loader[utt]
        assert rate == RATE
        assert (samples * 32768 == expected).all()
    assert [utt for utt, _ in kaldiio.load_ark("dump/x/audio/data.1.ark")] == ["b", "ü"]


@pytest.mark.integration
def test_espnet_reads_the_dump():
    dataset = pytest.importorskip("espnet2.train.dataset")
    make({"a": SPEECH, "b": SPEECH[::-1].copy()})
    format_data_dir("data/x", "dump/x")
    read = dataset.ESPnetDataset([("dump/x/wav.scp", "speech", "kaldi_ark")], preprocess=None)
    utt, batch = read["a"]
    assert utt == "a"
    assert np.allclose(batch["speech"], SPEECH, atol=1 / 32768)


def test_segments_are_cut_once_decoded():
    os.makedirs("wav")
    ramp = np.linspace(-0.9, 0.9, 3 * RATE).astype(np.float32)
    soundfile.write("wav/r.wav", ramp, RATE, subtype="PCM_16")
    write_data_dir(
        "data/x",
        {"rec": "wav/r.wav"},
        {"u2": "s", "u1": "s", "u3": "s"},
        segments={"u2": "rec 0.5 1.5", "u1": "rec 2 -1", "u3": "rec 0 0.05"},
    )
    format_data_dir("data/x", "dump/x")
    loader = kaldiio.load_scp("dump/x/wav.scp")
    assert list(loader) == ["u1", "u2"]
    assert np.allclose(loader["u1"][1], ramp[2 * RATE :], atol=1e-4)
    assert np.allclose(loader["u2"][1], ramp[RATE // 2 : 3 * RATE // 2], atol=1e-4)
    assert not os.path.exists("dump/x/segments")


def test_segment_beyond_the_recording():
    os.makedirs("wav")
    soundfile.write("wav/r.wav", SPEECH, RATE)
    segments = {"good": "rec 0 1", "late": "rec 5 6"}
    write_data_dir("data/x", {"rec": "wav/r.wav"}, dict.fromkeys(segments, "s"), segments=segments)
    refused("late: wav/r.wav", "5 to 6 s")


def files_of(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_bytes_depend_neither_on_the_run_nor_on_the_workers(recipe):
    generator = np.random.default_rng(0)
    make({f"u{i:02}": 0.1 * generator.standard_normal(4000 + 7 * i) for i in range(20)})
    results = []
    for workers in (1, 1, 2):
        format_data_dir("data/x", "dump/x", num_workers=workers)
        results.append(files_of(recipe / "dump/x"))
    assert len(results[0]) == 9
    assert results[0] == results[1] == results[2]


def test_arks_are_of_limited_size(monkeypatch):
    monkeypatch.setattr("espnet_adaltm.data.dump._UTTERANCES_PER_ARK", 2)
    make({f"u{i}": SPEECH * (i + 1) / 6 for i in range(5)})
    format_data_dir("data/x", "dump/x")
    assert sorted(os.listdir("dump/x/audio")) == ["data.1.ark", "data.2.ark", "data.3.ark"]
    loader = kaldiio.load_scp("dump/x/wav.scp")
    for i in range(5):
        assert np.allclose(loader[f"u{i}"][1], SPEECH * (i + 1) / 6, atol=1 / 32768)


def test_too_short_too_long_and_silent_are_dropped(caplog):
    make({"a": SPEECH, "long": np.tile(SPEECH, 3), "short": SPEECH[:1599], "zero": 0 * SPEECH})
    with caplog.at_level("INFO"):
        result = format_data_dir("data/x", "dump/x", max_seconds=2.5)
    assert result.utterances == ["a"]
    assert columns("dump/x/dropped.tsv") == {
        "utt": "reason",
        "long": "too long: 3.000 s > 2.5 s",
        "short": "too short: 0.100 s < 0.1 s",
        "zero": "silent: every sample is zero",
    }
    assert "dropped zero: silent" in caplog.text
    assert "3 of 4 utterances dropped" in caplog.text


def test_silence_can_be_kept_or_refused():
    make({"a": SPEECH, "zero": 0 * SPEECH})
    refused("zero: wav/zero.wav", "silent", silent="error")
    assert format_data_dir("data/x", "dump/x", silent="keep").utterances == ["a", "zero"]


def test_all_dropped():
    make({"a": SPEECH, "b": SPEECH})
    refused("all 2 utterances", "'a': too long", max_seconds=0.5)


def test_clipping_is_counted(caplog):
    make({"a": SPEECH, "loud": 5 * SPEECH})
    format_data_dir("data/x", "dump/x")
    assert "1 utterance(s) exceed full scale" in caplog.text
    assert np.abs(kaldiio.load_scp("dump/x/wav.scp")["loud"][1]).max() == 1.0


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "does not exist"),
        (b"", "zero bytes"),
        (b"not audio at all" * 100, "cannot be decoded"),
        ("half", "truncated"),
        (np.array([0.0, np.nan] * 4000), "NaN"),
    ],
)
def test_broken_audio_names_the_utterance_and_leaves_nothing(recipe, content, reason):
    samples = content if isinstance(content, np.ndarray) else None
    make({"fine": SPEECH, "bad-1": samples})
    path = recipe / "wav/bad-1.wav"
    if isinstance(content, str):
        whole = (recipe / "wav/fine.wav").read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    refused("1 of 2", "bad-1: wav/bad-1.wav", reason)


@pytest.mark.parametrize("workers", [1, 2])
def test_all_that_is_broken_is_told_at_once(workers):
    make({f"u{i:02}": None for i in range(13)} | {"v": SPEECH})
    told = "13 of 14", "u00: wav/u00.wav", "u09: ", "and 3 more, all of them in dump/x.broken.tsv"
    refused(*told, left=["x.broken.tsv"], num_workers=workers)
    listed = columns("dump/x.broken.tsv")
    assert listed.pop("utt") == "reason"
    assert listed == {f"u{i:02}": f"wav/u{i:02}.wav does not exist" for i in range(13)}


def test_a_failure_keeps_the_old_dump(recipe):
    make({"a": SPEECH})
    format_data_dir("data/x", "dump/x")
    before = files_of(recipe / "dump")
    make({"a": SPEECH, "b": None})
    with pytest.raises(UserError, match="b: wav/b.wav"):
        format_data_dir("data/x", "dump/x")
    assert files_of(recipe / "dump") == before


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_full_disk(monkeypatch, call):
    make({"a": SPEECH})

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    refused("no space left on the disk")


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        ({"min_seconds": 2.0, "max_seconds": 1.0}, "--min_seconds 2"),
        ({"sample_rate": 0}, "--sample_rate"),
        ({"num_workers": 0}, "--num_workers"),
        ({"silent": "ignore"}, "'ignore'"),
    ],
)
def test_wrong_options(options, culprit):
    make({"a": SPEECH})
    refused(culprit, **options)


def test_a_dump_must_not_overwrite_its_input():
    make({"a": SPEECH})
    with pytest.raises(UserError, match="both data/x"):
        format_data_dir("data/x", "data/../data/x")


def test_program(capsys):
    make({"a": SPEECH})
    format_audio.main(["--data", "data/x", "--out", "dump/x", "--num_workers", "1"])
    assert capsys.readouterr().out == "dump/x: 1 utterances\n"
    with pytest.raises(SystemExit) as caught:
        format_audio.main(["--data", "data/nope", "--out", "dump/y"])
    assert caught.value.code == 1
    assert "error: data directory data/nope" in capsys.readouterr().err
    assert not os.path.exists("dump/y")
