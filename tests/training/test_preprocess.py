"""One utterance from the files to the batch."""

import pickle

import kaldiio
import numpy as np
import pytest

from espnet_adaltm.data.labels import Labels
from espnet_adaltm.data.tokens import prepare_tokens
from espnet_adaltm.errors import UserError
from espnet_adaltm.kaldi import write_scp
from espnet_adaltm.training.data import SpeechReader
from espnet_adaltm.training.preprocess import Collate, Preprocess, to_float

LABELS = Labels(("angry", "happy"))


def test_integers_become_floats_in_the_unit_range():
    values = to_float(np.array([-32768, 0, 16384, 32767], dtype=np.int16))
    assert values.dtype == np.float32
    assert values.tolist() == [-1.0, 0.0, 0.5, 32767 / 32768]
    assert to_float(np.array([0.25], dtype=np.float16)).tolist() == [0.25]


def test_all_kinds_of_values_and_pickling(tmp_path):
    write_scp(tmp_path / "text", {"u": "abba"})
    tokenizer = prepare_tokens(tmp_path / "text", tmp_path / "tokens", "char")
    convert = Preprocess(tmp_path / "tokens", LABELS)
    data = {
        "speech": np.array([16384], dtype=np.int16),
        "text": "abba",
        "emotion": "happy=0.75 angry=0.25",
        "units": np.array([3, 1], dtype=np.int32),
    }
    first = convert("u", data)
    assert first["speech"].tolist() == [0.5]
    assert first["emotion"].tolist() == [0.25, 0.75]
    assert tokenizer.decode(first["text"]) == "abba"
    again = pickle.loads(pickle.dumps(convert))("u", data)
    assert all(np.array_equal(first[name], again[name]) for name in first)


def test_unknown_emotion_names_the_utterance():
    with pytest.raises(UserError, match="'u7'.*'hapy'.*did you mean 'happy'"):
        Preprocess(labels=LABELS)("u7", {"emotion": "hapy"})


def write_ark(tmp_path, rate, samples):
    kaldiio.save_ark(
        str(tmp_path / "a.ark"),
        {"u": (rate, samples)},
        scp=str(tmp_path / "wav.scp"),
        write_function="soundfile",
        write_kwargs={"format": "FLAC", "subtype": "PCM_16"},
    )
    return SpeechReader(kaldiio.load_scp(str(tmp_path / "wav.scp")), "wav.scp")


def test_flac_ark_comes_back_exactly(tmp_path):
    samples = np.array([-32768, -1, 0, 1, 32767] * 10, dtype=np.int16)
    read = write_ark(tmp_path, 16_000, samples)["u"]
    assert np.array_equal(to_float(read), samples.astype(np.float32) / 32768)


def test_wrong_rate_is_named(tmp_path):
    reader = write_ark(tmp_path, 8_000, np.zeros(50, dtype=np.int16))
    with pytest.raises(UserError, match="'u' has 8000 samples per second, expected 16000"):
        reader["u"]


def test_stereo_is_refused(tmp_path):
    reader = write_ark(tmp_path, 16_000, np.zeros((50, 2), dtype=np.int16))
    with pytest.raises(UserError, match="2 channels"):
        reader["u"]


def test_batches_are_padded_and_know_their_lengths():
    data = [
        ("a", {"speech": np.ones(3, np.float32), "text": np.array([4]), "emotion": np.ones(2)}),
        ("b", {"speech": np.ones(1, np.float32), "text": np.array([5, 6]), "emotion": np.ones(2)}),
    ]
    utts, batch = Collate(["emotion"])(data)
    assert utts == ["a", "b"]
    assert batch["speech"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["text"].tolist() == [[4, -1], [5, 6]]
    assert batch["speech_lengths"].tolist() == [3, 1]
    assert batch["text_lengths"].tolist() == [1, 2]
    assert "emotion_lengths" not in batch
