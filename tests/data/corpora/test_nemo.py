import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_adaltm.bin import prepare_nemo
from espnet_adaltm.data.corpora.nemo import (
    EMOTIONS,
    clean,
    prepare,
    read_rows,
    set_of_sentence,
)
from espnet_adaltm.data.datadir import read_data_dir
from espnet_adaltm.errors import UserError

HEADER = "file_id\temotion\traw_text\tnormalized_text\tspeaker_id\tgender\tage"
GENDERS = {"EB0": "female", "IC0": "female", "SM0": "male", "TP0": "male"}


def line(speaker, emotion, number):
    text = f"zdanie „{'abcdefghijklmnopqrstuvwxyz'[number]}”"
    name = f"{speaker}_{emotion}_{number}.wav"
    # One row of the release has blanks before the speaker, like this one.
    return f"{name}\t{emotion}\t{text}.\t{text}\t   {speaker}\t{GENDERS[speaker]}\t25"


def release(root, numbers=range(1, 12), suffix=".ogg", emotions=EMOTIONS):
    lines = [line(s, e, n) for s in GENDERS for e in emotions for n in numbers]
    (root / "samples").mkdir(parents=True)
    sine = 0.1 * np.sin(2 * np.pi * 220 * np.arange(2400) / 24000)
    for row in lines:
        stem = Path(row.split("\t")[0]).stem
        soundfile.write(root / "samples" / f"{stem}{suffix}", sine, 24000)
    write_table(root, lines)
    return lines


def write_table(root, lines):
    (root / "data.tsv").write_text("\n".join([HEADER, *lines]) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    root = tmp_path_factory.mktemp("nemo") / "release"
    return root, release(root)


@pytest.fixture
def table(tmp_path):
    def write(*lines):
        write_table(tmp_path, lines)
        return tmp_path / "data.tsv"

    return write


def test_split_of_speakers_and_sentences(small, tmp_path):
    root, lines = small
    prepare(root, tmp_path)
    sets = {name: read_data_dir(tmp_path / name) for name in ("train", "dev", "test")}
    assert {n: sorted(d.spk2utt) for n, d in sets.items()} == {
        "train": ["EB0"],
        "dev": ["SM0"],
        "test": ["IC0", "TP0"],
    }
    for data in sets.values():
        assert len(data.utt2emo) == len(data.utterances) == 66 * len(data.spk2utt)
        assert set(data.utt2emo.values()) == set(EMOTIONS)
    # Of the sentences 1 to 11: 5, 10 are test's, 1, 11 dev's and seven train's.
    assert {n: len(d.text) for n, d in sets.items()} == {"train": 42, "dev": 12, "test": 24}
    texts = [set(d.text.values()) for d in sets.values()]
    assert [len(t) for t in texts] == [7, 2, 2]
    assert len(set.union(*texts)) == 11
    assert sum(len(d.utterances) for d in sets.values()) == len(lines)
    assert sets["test"].text["IC0_fear_5"] == "zdanie f"
    assert sets["test"].utt2gender["IC0_fear_5"] == "f"
    assert sets["test"].utt2gender["TP0_fear_5"] == "m"


def test_audio_of_any_suffix_is_found_by_its_stem(tmp_path):
    release(tmp_path / "wav", numbers=(1, 2, 5), suffix=".wav")
    data = prepare(tmp_path / "wav", tmp_path / "data")["train"]
    assert data.wav_scp["EB0_anger_1"] == str(tmp_path / "wav" / "samples" / "EB0_anger_1.wav")
    assert soundfile.info(data.wav_scp["EB0_anger_1"]).samplerate == 24000


def test_speakers_can_be_chosen(small, tmp_path):
    arguments = ["--nemo_root", small[0], "--out_data", tmp_path]
    arguments += ["--test_speakers", "EB0", "--dev_speakers", "IC0"]
    prepare_nemo.main([str(a) for a in arguments])
    assert list(read_data_dir(tmp_path / "test").spk2utt) == ["EB0"]
    assert list(read_data_dir(tmp_path / "train").spk2utt) == ["SM0", "TP0"]


@pytest.mark.parametrize(
    ("dev", "test", "message"),
    [
        (["XX9"], ["IC0"], "XX9 is not in the release"),
        (["IC0"], ["IC0"], "IC0 is in both"),
        (["IC0", "SM0"], ["EB0", "TP0"], "nobody is left"),
    ],
)
def test_bad_choice_of_speakers(small, tmp_path, dev, test, message):
    with pytest.raises(UserError, match=message):
        prepare(small[0], tmp_path, dev, test)


def test_missing_audio_is_named(tmp_path):
    release(tmp_path, numbers=(1, 2))
    (tmp_path / "samples" / "SM0_fear_2.ogg").unlink()
    with pytest.raises(UserError, match=r"1 of 48 recordings are missing.*SM0_fear_2"):
        prepare(tmp_path, tmp_path / "data")


def test_held_out_speaker_needs_every_emotion(tmp_path):
    lines = release(tmp_path, numbers=(1, 2))
    write_table(tmp_path, [row for row in lines if not row.startswith("TP0_surprised")])
    with pytest.raises(UserError, match="TP0 lacks surprised"):
        prepare(tmp_path, tmp_path / "data")


def test_one_sentence_in_two_sets_is_refused(tmp_path):
    lines = release(tmp_path, numbers=(1, 2))
    same = [row.replace("zdanie „c”", "zdanie „b”") for row in lines]
    write_table(tmp_path, same)
    with pytest.raises(UserError, match="two sets"):
        prepare(tmp_path, tmp_path / "data")


GOOD = line("EB0", "fear", 3)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (GOOD.replace("\tfear\t", "\tpride\t"), r"data.tsv:3: .*unknown emotion 'pride'"),
        (GOOD.replace("\t25", ""), r"data.tsv:3: expected 7 fields"),
        (GOOD.replace("\t25", "\t "), r"data.tsv:3: expected 7 fields"),
        (GOOD.replace("female", "robot"), r"data.tsv:3: EB0_fear_3.*gender 'robot'"),
        (GOOD.replace("_3.wav", "_x.wav"), r"data.tsv:3: file_id 'EB0_fear_x.wav'"),
        (GOOD.replace("   EB0", "IC0"), r"data.tsv:3: EB0_fear_3.wav is listed for speaker IC0"),
        (GOOD.replace("\tzdanie „d”\t", "\t„3”\t"), r"data.tsv:3: EB0_fear_3 has no letters"),
        (line("EB0", "fear", 2), r"EB0_fear_2 is listed twice"),
    ],
)
def test_malformed_rows_are_named(table, bad, message):
    with pytest.raises(UserError, match=message):
        read_rows(table(line("EB0", "fear", 2), bad))


def test_missing_table_or_column(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_rows(tmp_path / "data.tsv")
    (tmp_path / "data.tsv").write_text("file_id\temotion\n")
    with pytest.raises(UserError, match="expected the columns"):
        read_rows(tmp_path / "data.tsv")


def test_sentence_sets_and_cleaning():
    owners = [set_of_sentence(number) for number in range(1, 91)]
    assert [owners.count(name) for name in ("train", "dev", "test")] == [63, 9, 18]
    assert clean("„Ród  smoka” to serial.") == "ród smoka to serial"


def test_real_release(tmp_path):
    here = Path(__file__).resolve().parents[3]
    root = Path(os.environ.get("NEMO", here.parent / "shared" / "data" / "nemo"))
    if not (root / "data.tsv").is_file():
        pytest.skip("no copy of nEMO: set NEMO to its folder")
    sets = prepare(root, tmp_path)
    total = sum(len(data.utterances) for data in sets.values())
    assert total == len(read_rows(root / "data.tsv"))
    assert {n: len(set(d.text.values())) for n, d in sets.items()} == {
        "train": 63,
        "dev": 9,
        "test": 18,
    }
    assert len(sets["test"].utterances) == 1079
    assert len(sets["test"].text) == 215
    letters = set("".join(sets["train"].text.values()))
    assert letters == set("aąbcćdeęfghijklłmnńoóprsśtuwyzźż ")
