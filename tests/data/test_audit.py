from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_adaltm.bin import audit as program
from espnet_adaltm.data.audit import (
    audit_set,
    compare_sets,
    load_audited_set,
    raise_errors,
    read_stats,
    write_stats,
)
from espnet_adaltm.data.datadir import write_data_dir
from espnet_adaltm.data.dump import format_data_dir
from espnet_adaltm.errors import UserError

RATE = 16000


@pytest.fixture(autouse=True)
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sound(seed, seconds=0.5):
    return 0.1 * np.random.default_rng(seed).standard_normal(int(RATE * seconds))


def make(name, rows, audio=None):
    """Format a set of (utterance, speaker, emotion, text, seed of its audio)."""
    folder = Path(f"wav/{name}")
    folder.mkdir(parents=True, exist_ok=True)
    for utt, *_, seed in rows:
        samples = (audio or {}).get(utt, sound(seed))
        soundfile.write(folder / f"{utt}.wav", samples, RATE, subtype="PCM_16")
    write_data_dir(
        f"data/{name}",
        {row[0]: f"{folder}/{row[0]}.wav" for row in rows},
        {row[0]: row[1] for row in rows},
        text={row[0]: row[3] for row in rows if row[3]},
        utt2emo={row[0]: row[2] for row in rows if row[2]},
    )
    format_data_dir(f"data/{name}", f"dump/{name}")
    return load_audited_set(f"dump/{name}")


TRAIN = [("a1", "A", "sad", "one", 1), ("a2", "A", "joy", "two", 2), ("b1", "B", "sad", "six", 3)]
DEV = [("c1", "C", "joy", "one", 4), ("c2", "C", "sad", "ten", 5)]
TEST = [("d1", "D", "joy", "elf", 6)]


def levels(findings, word):
    return [finding.level for finding in findings if word in finding.message]


def test_clean_sets_have_no_errors():
    findings = compare_sets([make("train", TRAIN), make("dev", DEV)], "dump/train")
    assert [(f.level, f.message) for f in findings] == [
        ("info", "50.0% of the transcripts of dev (1) occur in train")
    ]
    raise_errors(findings)


def test_shared_speaker_is_an_error_unless_allowed():
    sets = [make("train", TRAIN), make("dev", [*DEV, ("z1", "B", "sad", "", 7)])]
    findings = compare_sets(sets, "dump/train")
    with pytest.raises(UserError, match=r"train and dev share 1 speaker\(s\): B"):
        raise_errors(findings)
    allowed = compare_sets(sets, "dump/train", allow_speaker_overlap=True)
    assert levels(allowed, "speaker") == ["warning"]
    raise_errors(allowed)


def test_unknown_speakers_are_nobody():
    sets = [
        make(name, [(f"{name}1", "Unknown", "sad", "", i), (f"{name}2", name, "joy", "", i + 9)])
        for i, name in enumerate(("train", "dev"))
    ]
    assert compare_sets(sets, "dump/train") == []
    assert levels(audit_set(sets[0]), "unknown speaker: 1") == ["info"]


def test_speakers_shared_by_two_test_sets():
    sets = [make("train", TRAIN), make("dev", DEV), make("test", TEST)]
    sets.append(make("test2", [("e1", "D", "joy", "", 8)]))
    strict = compare_sets(sets, "dump/train")
    assert levels(strict, "test and test2 share 1 speaker") == ["error"]
    relaxed = compare_sets(sets, "dump/train", valid="dump/dev")
    assert levels(relaxed, "test and test2 share 1 speaker") == ["warning"]


def test_same_utterance_same_audio_and_same_id():
    train = make("train", TRAIN)
    dev = make(
        "dev",
        [("a1", "X", "sad", "", 1), ("a2", "X", "joy", "", 99), ("other", "X", "sad", "", 3)],
    )
    findings = compare_sets([train, dev], "dump/train")
    assert levels(findings, "same 1 utterance(s): a1") == ["error"]
    assert levels(findings, "1 id(s) twice: a2") == ["warning"]
    assert levels(findings, "share audio: 1: b1 = other") == ["warning"]


def test_emotion_absent_from_training():
    sets = [make("train", TRAIN), make("test", [("d1", "D", "fear", "", 6)])]
    backwards = compare_sets(sets[::-1], "dump/train")
    assert [finding.level for finding in backwards] == ["error"]
    assert "'fear' of test" in backwards[0].message
    with pytest.raises(UserError, match="'fear' of test .utterance 'd1'.*training set train"):
        raise_errors(compare_sets(sets, "dump/train"))


def test_remarks_about_one_set():
    rows = [
        ("a1", "A", "sad", "one", 1),
        ("a2", "A", "joy", "one", 1),
        ("clip", "A", "sad", "", 2),
        ("late", "A", "", "", 3),
    ]
    audio = {
        "clip": np.clip(20 * sound(2), -1, 1),
        "late": np.concatenate([np.zeros(RATE), sound(3)]),
    }
    audited = make("x", rows, audio)
    messages = {finding.message: finding.level for finding in audit_set(audited)}
    assert messages == {
        "identical audio: 1: a1 = a2": "warning",
        "identical audio with different emotions: 1: a1 = a2": "warning",
        "same words by the same speaker: 1: a1 = a2": "info",
        "more than 0.1% of the samples clipped: 1: clip": "warning",
        "more than 0.5 s of silence at the start: 1: late": "info",
        "fewer than 5 utterances of an emotion: 2: joy (1), sad (2)": "warning",
        "utterances without transcript: 2": "info",
        "utterances without emotion: 1": "info",
    }


def test_nearly_silent_utterances_are_counted_and_named():
    step = 1 / 32768
    peaks = {"q1": 1, "q2": 3, "loud": 4}  # -80 dBFS is 3.3 steps
    audio = {utt: peak * step * np.sign(sound(7)) for utt, peak in peaks.items()}
    audited = make("x", [(utt, "A", "", "", 1) for utt in peaks], audio)
    assert levels(audit_set(audited), "nearly silent (peak below -80 dBFS): 2: q1, q2") == [
        "warning"
    ]
    silent = {utt: replace(stat, peak=0.0) for utt, stat in audited.stats.items()}
    assert levels(audit_set(replace(audited, stats=silent)), "silent") == []


def test_long_groups_are_cut_short():
    audited = make("x", [(f"u{i}", "A", "", "same", i) for i in range(5)])
    words = [f.message for f in audit_set(audited) if "same words" in f.message]
    assert words == ["same words by the same speaker: 1: u0 = u1 = u2 = 2 more"]


def test_stats_round_trip(recipe):
    audited = make("train", TRAIN)
    write_stats("again.tsv", audited.stats)
    assert read_stats("again.tsv") == audited.stats
    assert (recipe / "again.tsv").read_bytes() == (
        recipe / "dump/train/audio_stats.tsv"
    ).read_bytes()


def test_stats_that_do_not_fit(recipe):
    make("train", TRAIN)
    path = recipe / "dump/train/audio_stats.tsv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(UserError, match="does not fit wav.scp at utterance 'b1'"):
        load_audited_set("dump/train")
    path.write_text("\n".join([*lines[:-1], "b1\t5"]) + "\n")
    with pytest.raises(UserError, match="audio_stats.tsv:4"):
        load_audited_set("dump/train")
    path.unlink()
    with pytest.raises(UserError, match="audio stage"):
        load_audited_set("dump/train")


def arguments(*dumps):
    return ["--dumps", *dumps, "--train", "dump/train", "--out", "dump/audit.md"]


def test_program_writes_the_table(recipe):
    make("train", TRAIN)
    make("dev", DEV)
    program.main(arguments("dump/train", "dump/dev"))
    report = (recipe / "dump/audit.md").read_text()
    assert "|  | train | dev |\n|---|---:|---:|\n| utterances | 3 | 2 |" in report
    assert "| speakers | 2 | 1 |" in report
    assert "| sad | 2 (66.7%) | 1 (50.0%) |" in report
    assert "| seconds: mean | 0.50 | 0.50 |" in report
    assert "- info: 50.0% of the transcripts of dev (1) occur in train" in report


def test_program_refuses_and_leaves_nothing(recipe, capsys):
    make("train", TRAIN)
    make("dev", [("z1", "A", "fear", "", 7)])
    with pytest.raises(SystemExit, match="1"):
        program.main(arguments("dump/train", "dump/dev"))
    error = capsys.readouterr().err
    assert "share 1 speaker(s): A" in error
    assert "'fear' of dev" in error
    assert not (recipe / "dump/audit.md").exists()
    with pytest.raises(SystemExit, match="1"):
        program.main(arguments("dump/dev"))
    assert "dump/train is not among" in capsys.readouterr().err
