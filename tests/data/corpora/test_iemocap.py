"""IEMOCAP on miniatures: the number of its utterances, who talks, and when."""

import re
import shutil
from collections import Counter

import pytest

from espnet_adaltm.bin import prepare_iemocap
from espnet_adaltm.data.corpora.iemocap import EXPECTED, EXPECTED_TOTAL, prepare, read_turns
from espnet_adaltm.data.corpora.miniature_iemocap import FULL, SMALL, write_iemocap
from espnet_adaltm.data.datadir import read_data_dir
from espnet_adaltm.errors import UserError

FEW = 5 * (SMALL["ang"] + SMALL["exc"] + SMALL["hap"] + SMALL["sad"] + SMALL["neu"])


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    root = tmp_path_factory.mktemp("iemocap") / "release"
    return root, write_iemocap(root)


@pytest.fixture
def copy(small, tmp_path):
    root = tmp_path / "release"
    shutil.copytree(small[0], root)
    return root


def test_the_number_of_the_literature(tmp_path):
    rows = write_iemocap(tmp_path / "full", FULL, linked=True)
    data = prepare(tmp_path / "full", tmp_path / "data")
    assert len(data.utterances) == EXPECTED_TOTAL == 5531
    # angry, happy and excited, neutral, sad: as every paper on four classes counts them
    assert Counter(data.utt2emo.values()) == {
        "angry": 1103, "happy": 1636, "neutral": 1708, "sad": 1084,
    }  # fmt: skip
    assert len(data.spk2utt) == 10
    assert len(rows) > 5531
    by_session = Counter(utt[:5] for utt in data.utterances)
    assert list(by_session.values()) == [1085, 1023, 1151, 1031, 1241]


def test_another_number_is_refused(small, tmp_path, capsys):
    root, _ = small
    with pytest.raises(UserError, match=rf"{FEW} utterances .* expected 5531: ang 20 \(of 1103\)"):
        prepare(root, tmp_path)
    words = ["--iemocap_root", root, "--out_data", tmp_path, "--expect_utts", FEW]
    prepare_iemocap.main([str(word) for word in words])
    assert f"{FEW} utterances, 10 speakers: angry 20, happy 20" in capsys.readouterr().out
    assert sum(EXPECTED.values()) == 5531


def test_who_talks_is_in_the_turn_not_in_the_dialogue(small, tmp_path):
    root, rows = small
    data = prepare(root, tmp_path, expected=FEW)
    assert any(row.utt[5] != row.utt.rpartition("_")[2][0] for row in rows)
    for utt, speaker in data.utt2spk.items():
        letter = re.search(r"_([FM])\d+$", utt)[1]
        assert speaker == f"{utt[:5]}{letter}"
        assert data.utt2gender[utt] == letter.lower()
    assert sorted(data.spk2utt) == [f"Ses0{n}{letter}" for n in range(1, 6) for letter in "FM"]


def test_labels_texts_and_turns(small, tmp_path):
    root, rows = small
    names = {"ang": "angry", "exc": "happy", "hap": "happy", "neu": "neutral", "sad": "sad"}
    data = prepare(root, tmp_path / "drop", expected=FEW)
    assert data.utt2emo == {r.utt: names[r.emotion] for r in rows if r.emotion in names}
    first = next(row for row in rows if row.emotion == "exc")
    assert data.text[first.utt] == first.text.lower().rstrip(".")  # [LAUGHTER] is no word
    # Turns are numbered by their time, whoever talks, with those that are left out.
    dialogs = {}
    for row in rows:
        dialogs.setdefault(row.dialog, []).append(row)
    for dialog, turns in dialogs.items():
        for place, row in enumerate(sorted(turns, key=lambda row: row.start)):
            if row.utt in data.utt2dialog:
                assert data.utt2dialog[row.utt] == f"{dialog} {place}"
    assert read_data_dir(tmp_path / "drop" / "all").wav_scp == data.wav_scp
    words = prepare(root, tmp_path / "words", expected=FEW, left_out="words")
    assert words.utt2emo == data.utt2emo
    assert len(words.utterances) == len(rows) == len(words.text)


def test_broken_releases_are_named(copy, tmp_path):
    def fails(message):
        with pytest.raises(UserError, match=message):
            prepare(copy, tmp_path / "data", expected=FEW)

    turn = next(turn for turn in read_turns(copy) if turn.code == "sad")
    turn.audio.rename(turn.audio.with_suffix(".mp4"))
    fails(rf"{turn.utt}.wav is missing: unpack session 01")
    turn.audio.with_suffix(".mp4").rename(turn.audio)
    path = copy / "Session2" / "dialog" / "EmoEvaluation" / "Ses02F_impro01.txt"
    text = path.read_text()
    path.write_text(text.replace("\tsad\t", "\tblue\t", 1))
    fails(r"Ses02F_impro01.txt:\d+: Ses02F\S+ has the unknown emotion 'blue'")
    path.write_text(text.replace("Ses02F_impro01_", "Ses03F_impro01_", 1))
    fails(r"'Ses03F_impro01_\S+' is no utterance of session 2")
    path.write_text("% nothing\n")
    fails("evaluates no utterance")
    path.write_text(text)
    shutil.copy(path, path.with_name("Ses02F_impro99.txt"))
    fails(r"Ses02F_impro99.txt: Ses02F_impro01_\S+ is listed twice")
    path.with_name("Ses02F_impro99.txt").unlink()
    shutil.rmtree(copy / "Session5" / "dialog")
    fails(r"Session5/dialog/EmoEvaluation is missing")
