import numpy as np
import pytest

from espnet_adaltm.data.labels import Labels
from espnet_adaltm.errors import UserError
from espnet_adaltm.kaldi import read_scp, write_scp
from espnet_adaltm.training.mtlser_data import (
    MTLPreprocess,
    complete,
    emotion_counts,
    put_aside,
    training_speakers,
)

LABELS = Labels(("angry", "happy"))


def test_tables_are_completed(tmp_path):
    write_scp(tmp_path / "text", {"a": "one two", "c": "three", "z": "elsewhere"})
    found = complete(tmp_path / "text", ["a", "b", "c"], tmp_path / "out")
    assert found == {"a": "one two", "c": "three"}
    assert read_scp(tmp_path / "out", allow_empty_value=True) == {
        "a": "one two",
        "b": "",
        "c": "three",
    }
    assert complete(tmp_path / "text", ["a", "c"], tmp_path / "out", ["b", "c"]) == {"c": "three"}
    assert complete(tmp_path / "nothing", ["a"], tmp_path / "out") == {}


def test_training_speakers_are_sorted_and_known():
    utt2spk = {"a": "s2", "b": "s1", "c": "s2", "d": "Unknown", "e": "unknown"}
    assert training_speakers(utt2spk, "utt2spk") == ["s1", "s2"]


@pytest.mark.parametrize(
    ("utt2spk", "message"),
    [
        ({"a": "a", "b": "b", "c": "c"}, "every utterance has a speaker of its own"),
        ({"a": "unknown", "b": "unknown"}, r"0 known speaker\(s\) in 2 utterances"),
        ({"a": "s", "b": "s", "c": "unknown"}, r"1 known speaker\(s\) in 3 utterances"),
    ],
)
def test_corpora_without_speakers_are_refused(utt2spk, message):
    with pytest.raises(UserError, match=f"dump/utt2spk: {message}.*give --beta 0"):
        training_speakers(utt2spk, "dump/utt2spk")


def test_some_utterances_of_every_speaker_are_put_aside():
    utt2spk = {f"s{s}-{i:02d}": f"s{s}" for s in range(3) for i in range(20)}
    utt2spk |= {"x-1": "x", "y-1": "unknown", "y-2": "unknown"}
    labelled = {utt for utt in utt2spk if utt[-2:] < "15"}
    chosen = put_aside(utt2spk, 0.2, labelled)
    assert [sum(utt.startswith(f"s{s}") for utt in chosen) for s in range(3)] == [4, 4, 4]
    assert not labelled & set(chosen)  # five of each have no emotion: enough
    assert not {"x-1", "y-1", "y-2"} & set(chosen)
    assert chosen == put_aside(dict(reversed(utt2spk.items())), 0.2, labelled)
    more = put_aside(utt2spk, 0.4, labelled)
    assert set(chosen) < set(more)
    assert len(set(more) & labelled) == 9  # 8 of each, 5 without an emotion first


def test_emotions_are_counted_where_they_are_known(tmp_path):
    path = tmp_path / "train_emotion"
    path.write_text("a happy\nb\nc angry=0.4 happy=0.6\nd\n")
    assert emotion_counts(path, LABELS) == [0, 2]
    path.write_text("a\nb\n")
    with pytest.raises(UserError, match="not one utterance has an emotion"):
        emotion_counts(path, LABELS)
    path.write_text("a happy\nb bored\n")
    with pytest.raises(UserError, match="train_emotion: utterance 'b'.*'bored'"):
        emotion_counts(path, LABELS)


def test_targets_that_are_unknown_are_marked():
    convert = MTLPreprocess(None, LABELS, ["s1", "s2"])
    speech = np.zeros(5, dtype=np.int16)
    known = convert("a", {"speech": speech, "emotion": "happy", "speaker": "s2"})
    assert known["emotion"].tolist() == [0.0, 1.0]
    assert known["speaker"].tolist() == [1]
    other = convert("b", {"speech": speech, "emotion": "", "speaker": "never heard"})
    assert other["emotion"].tolist() == [0.0, 0.0]
    assert other["speaker"].tolist() == [-1]
    assert convert("c", {"speech": speech, "speaker": ""})["speaker"].tolist() == [-1]
    with pytest.raises(UserError, match="utterance 'd'.*'bored'"):
        convert("d", {"speech": speech, "emotion": "bored"})
