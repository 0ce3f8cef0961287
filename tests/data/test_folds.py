"""Folds: who is heard when, and what is written of a formatted set."""

import json

import pytest

from espnet_adaltm.bin import make_folds as program
from espnet_adaltm.data.audit import load_audited_set
from espnet_adaltm.data.corpora.iemocap import prepare
from espnet_adaltm.data.corpora.miniature_iemocap import write_iemocap
from espnet_adaltm.data.dump import format_data_dir
from espnet_adaltm.data.folds import leave_one_out, make_folds
from espnet_adaltm.errors import UserError
from espnet_adaltm.kaldi import read_scp

SPEAKERS = {f"Ses0{n}{letter}": f"Ses0{n}" for n in range(1, 6) for letter in "FM"}


@pytest.mark.parametrize(("kind", "number"), [("group", 5), ("speaker", 10)])
def test_everybody_is_tested_once_and_never_heard_before(kind, number):
    folds = leave_one_out(SPEAKERS, kind)
    assert [fold.name for fold in folds] == [f"fold{n}" for n in range(1, number + 1)]
    tested = [speaker for fold in folds for speaker in fold.test]
    assert sorted(tested) == sorted(SPEAKERS)
    for fold in folds:
        assert fold.dev not in fold.test
        sessions = {SPEAKERS[speaker] for speaker in fold.test}
        assert len(sessions) == 1
        assert SPEAKERS[fold.dev] not in sessions  # who validates does not talk to who is tested
        sets = {speaker: fold.set_of(speaker) for speaker in SPEAKERS}
        assert list(sets.values()).count("test") == 10 // number
        assert list(sets.values()).count("dev") == 1
    assert {fold.dev[-1] for fold in folds} == {"F", "M"}


def test_too_few_speakers():
    with pytest.raises(UserError, match="2 speakers in 2 groups"):
        leave_one_out({"a1": "a", "b1": "b"}, "group")
    with pytest.raises(UserError, match="3 speakers in 1 groups"):
        leave_one_out({"a1": "a", "a2": "a", "a3": "a"}, "speaker")
    with pytest.raises(UserError, match="fold1: nobody is left for training"):
        leave_one_out({"a1": "a", "a2": "a", "b1": "b"}, "group")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folds")
    write_iemocap(folder / "release", ({"ang": 2, "hap": 2, "neu": 2, "sad": 2, "fru": 2},) * 5)
    prepare(folder / "release", folder / "data", expected=40, left_out="words")
    format_data_dir(folder / "data" / "all", folder / "dump" / "all")
    return folder / "dump"


def test_folds_of_a_formatted_set(whole, tmp_path):
    words = ["--dump", whole / "all", "--out", tmp_path, "--leave_out", "group"]
    program.main([*map(str, words), "--group_length", "5"])
    audio = read_scp(whole / "all" / "wav.scp")
    tested = {}
    for number in range(1, 6):
        folder = tmp_path / f"fold{number}"
        sets = {name: load_audited_set(folder / name) for name in ("train", "dev", "test")}
        together = {u: p for s in sets.values() for u, p in s.data.wav_scp.items()}
        assert together == audio  # the arks of the whole set, every utterance once
        assert sum(len(s.stats) for s in sets.values()) == len(audio) == 50
        speakers = {name: set(s.data.utt2spk.values()) for name, s in sets.items()}
        assert (len(speakers["train"]), len(speakers["dev"]), len(speakers["test"])) == (7, 1, 2)
        for name, audited in sets.items():
            data, labelled = audited.data, read_scp(folder / name / "ser_shape")
            assert labelled.keys() == data.utt2emo.keys()
            assert len(data.utt2emo) == 4 * len(speakers[name])
            assert len(data.utt2dialog) == len(data.utterances) == 5 * len(speakers[name])
        tested |= sets["test"].data.utt2spk
        described = json.loads((folder / "fold.json").read_text())
        assert set(described["test"]) == speakers["test"]
        assert "## Findings" in (folder / "audit.md").read_text()
    assert tested.keys() == audio.keys()


def test_speakers_without_a_group(whole, tmp_path):
    with pytest.raises(UserError, match="speaker 'Ses01F' has no group in its name"):
        make_folds(whole / "all", tmp_path, "speaker", 6)
