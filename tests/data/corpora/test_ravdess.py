import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_adaltm.bin import prepare_ravdess
from espnet_adaltm.data.corpora.ravdess import EMOTIONS, parse, prepare
from espnet_adaltm.data.datadir import read_data_dir
from espnet_adaltm.errors import UserError

SINE = 0.1 * np.sin(2 * np.pi * 220 * np.arange(1600) / 16000)


def add(root, name, suffix=".wav"):
    folder = root / f"Actor_{name[-2:]}"
    folder.mkdir(parents=True, exist_ok=True)
    soundfile.write(folder / f"{name}{suffix}", SINE, 16000)


def release(root, actors, suffix=".wav"):
    """Two sentences of every emotion by every actor."""
    for actor in range(1, actors + 1):
        for emotion in EMOTIONS:
            for statement in ("01", "02"):
                add(root, f"03-01-{emotion}-01-{statement}-01-{actor:02d}", suffix)


@pytest.mark.parametrize(("actors", "suffix"), [(16, ".ogg"), (24, ".wav")])
def test_split_by_actor(tmp_path, actors, suffix):
    release(tmp_path / "release", actors, suffix)
    prepare(tmp_path / "release", tmp_path / "data")
    sets = {name: read_data_dir(tmp_path / "data" / name) for name in ("train", "dev", "test")}
    assert {name: len(data.spk2utt) for name, data in sets.items()} == {
        "train": actors - 7,
        "dev": 3,
        "test": 4,
    }
    assert list(sets["test"].spk2utt) == ["actor13", "actor14", "actor15", "actor16"]
    assert list(sets["dev"].spk2utt) == ["actor10", "actor11", "actor12"]
    for data in sets.values():
        assert set(Counter(data.utt2emo.values()).values()) == {2 * len(data.spk2utt)}
    assert Counter(sets["test"].utt2gender.values()) == {"f": 32, "m": 32}
    key = "actor13-03-01-05-01-02-01-13"
    assert sets["test"].utt2emo[key] == "angry"
    assert sets["test"].text[key] == "dogs are sitting by the door"
    assert sets["test"].utt2gender[key] == "m"
    assert soundfile.info(sets["test"].wav_scp[key]).frames == 1600


def test_song_and_video_are_left_out(tmp_path):
    release(tmp_path, 16)
    add(tmp_path, "03-02-01-01-01-01-13")
    add(tmp_path, "01-01-01-01-01-01-13")
    assert len(prepare(tmp_path, tmp_path / "data")["test"].utterances) == 64


def test_actors_can_be_chosen(tmp_path):
    release(tmp_path / "release", 3)
    arguments = ["--ravdess_root", tmp_path / "release", "--out_data", tmp_path / "data"]
    arguments += ["--test_actors", "01", "--dev_actors", "02"]
    prepare_ravdess.main([str(a) for a in arguments])
    assert list(read_data_dir(tmp_path / "data" / "train").spk2utt) == ["actor03"]


def test_absent_actor_is_named(tmp_path):
    release(tmp_path, 3)
    with pytest.raises(UserError, match=r"actor 10 is not in the release .*--dev_actors"):
        prepare(tmp_path, tmp_path / "data")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("03-01-09-01-01-01-01", "unknown emotion '09'"),
        ("03-01-01-03-01-01-01", "unknown intensity '03'"),
        ("03-01-01-01-03-01-01", "unknown statement '03'"),
        ("03-01-01-01-01-01-25", "unknown actor '25'"),
        ("03-01-01-01-01-01", "7 codes"),
        ("03-01-01-01-01-01-02", "actor 02 lies in Actor_01"),
    ],
)
def test_bad_names_are_refused(name, message):
    with pytest.raises(UserError, match=message) as caught:
        parse(Path("release") / "Actor_01" / f"{name}.wav")
    assert name in str(caught.value)


def test_missing_audio(tmp_path):
    with pytest.raises(UserError, match="holds no folders Actor_NN"):
        prepare(tmp_path, tmp_path / "data")
    release(tmp_path, 1)
    (tmp_path / "Actor_02").mkdir()
    with pytest.raises(UserError, match="Actor_02 holds no audio"):
        prepare(tmp_path, tmp_path / "data")


def test_real_release(tmp_path):
    here = Path(__file__).resolve().parents[3]
    root = Path(os.environ.get("RAVDESS", here.parent / "shared" / "data" / "ravdess"))
    if not (root / "Actor_16").is_dir():
        pytest.skip("no copy of RAVDESS: set RAVDESS to its folder")
    sets = prepare(root, tmp_path)
    assert (len(sets["dev"].utterances), len(sets["test"].utterances)) == (180, 240)
    assert Counter(sets["test"].utt2emo.values()) == {
        emotion: 16 if emotion == "neutral" else 32 for emotion in EMOTIONS.values()
    }
