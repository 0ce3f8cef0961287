import json

import pytest

from espnet_adaltm.bin import prepare_labels
from espnet_adaltm.data.datadir import write_data_dir
from espnet_adaltm.data.labels import (
    Labels,
    check_same_labels,
    collect_labels,
    load_labels,
    parse_soft,
    save_labels,
)
from espnet_adaltm.errors import UserError

LABELS = Labels(("angry", "happy", "sad"))
SETS = {
    "train": {"a": "sad", "b": "happy", "c": "sad"},
    "dev": {"d": "happy"},
    "hidden": {},
}


def test_targets():
    assert LABELS.index("sad") == 2
    assert LABELS.target("happy") == [0.0, 1.0, 0.0]
    assert LABELS.target("sad=0.6 angry=0.4") == [0.4, 0.0, 0.6]


def test_soft_labels_are_renormalised():
    target = LABELS.target("sad=0.333 angry=0.333 happy=0.3335")
    assert sum(target) == pytest.approx(1.0, abs=1e-12)
    assert target[1] == pytest.approx(0.3335 / 0.9995)


@pytest.mark.parametrize(
    ("entry", "culprit"),
    [
        ("sad=0.6 angry=0.3", "sum to 0.9"),
        ("sad=0.6 sad=0.4", "'sad' is given twice"),
        ("sad=x", "'sad=x'"),
        ("sad=1.5 angry=-0.5", "'sad=1.5'"),
        ("=1", "'=1'"),
        ("sad=nan", "'sad=nan'"),
    ],
)
def test_malformed_soft_labels(entry, culprit):
    with pytest.raises(UserError, match="^utt-7: ") as caught:
        parse_soft(entry, "utt-7")
    assert culprit in str(caught.value)


@pytest.mark.parametrize("entry", ["sadd", "sadd=1"])
def test_unknown_emotion_names_the_utterance(entry):
    with pytest.raises(UserError, match="utterance 'u-3': unknown emotion 'sadd'.*'sad'"):
        LABELS.target(entry, "utterance 'u-3'")


def test_round_trip(tmp_path):
    labels = Labels(("z", "ä"), {"Z": "z"}, {"train": {"z": 1, "ä": 2}}, "other is left out")
    save_labels(tmp_path / "labels.json", labels)
    assert load_labels(tmp_path / "labels.json") == labels
    assert list(json.loads((tmp_path / "labels.json").read_text())) == [
        "labels",
        "codes",
        "counts",
        "policy",
    ]


@pytest.mark.parametrize(
    ("content", "culprit"),
    [
        ("[]", "found list"),
        ("{}", "no list under `labels`"),
        ('{"labels": ["a", "b"], "codes": 5}', "`codes` must be"),
        ('{"labels": ["a", "b"], "codes": {"x": 1}}', "`codes` must be"),
        ('{"labels": ["a", "b"], "counts": {"train": 3}}', "`counts` must hold"),
        ('{"labels": ["a", "b"], "policy": []}', "`policy` must be a text"),
        ('{"labels": ["a", "b\\u202e"]}', "is no emotion name"),
        ('{"labels": ["a", "b", "a"]}', "'a' is listed twice"),
        ('{"labels": ["a"]}', "at least 2"),
        ('{"labels": ["a", 3]}', "3 is no emotion name"),
        ('{"labels": ["a", "b c"]}', "'b c'"),
        ('{"labels": ["a", "b"], "order": 1}', "unknown key 'order'"),
        ("{", "not valid JSON"),
    ],
)
def test_malformed_file(tmp_path, content, culprit):
    path = tmp_path / "labels.json"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        load_labels(path)
    assert culprit in str(caught.value)
    assert str(path) in str(caught.value)


def test_collecting_sorts_and_counts():
    labels = collect_labels(SETS, train="train")
    assert labels.labels == ("happy", "sad")
    assert labels.counts == {
        "train": {"happy": 1, "sad": 2},
        "dev": {"happy": 1, "sad": 0},
        "hidden": {"happy": 0, "sad": 0},
    }


def test_the_given_order_is_kept():
    assert collect_labels(SETS, train="train", names=["sad", "happy"]).labels == ("sad", "happy")


@pytest.mark.parametrize("names", [None, ["sad", "happy"]])
def test_emotion_absent_from_training(names):
    sets = {**SETS, "test": {"u-9": "fear"}}
    with pytest.raises(UserError) as caught:
        collect_labels(sets, train="train", names=names)
    for culprit in ("'fear'", "'u-9'", "'test'"):
        assert culprit in str(caught.value)


def test_label_without_training_data():
    with pytest.raises(UserError, match="'fear' has no utterance in the training set 'train'"):
        collect_labels(SETS, train="train", names=["sad", "happy", "fear"])


def test_emotion_outside_the_given_list():
    with pytest.raises(UserError, match="utterance 'b' of set 'train': unknown emotion 'happy'"):
        collect_labels(
            {"train": {**SETS["train"], "x": "mad"}}, train="train", names=["sad", "mad"]
        )


def test_soft_labels_and_codes_are_checked():
    with pytest.raises(UserError, match=r"'a' of set 'train' \(utt2soft\).*'fear'"):
        collect_labels(SETS, train="train", soft={"train": {"a": "sad=0.5 fear=0.5"}})
    with pytest.raises(UserError, match="code 'F': unknown emotion 'fear'"):
        collect_labels(SETS, train="train", codes={"F": "fear"})


def test_training_set_must_exist_and_have_labels():
    with pytest.raises(UserError, match="'tain'"):
        collect_labels(SETS, train="tain")
    with pytest.raises(UserError, match="'hidden' has no emotion labels"):
        collect_labels(SETS, train="hidden")


def test_lists_that_differ():
    check_same_labels(LABELS, ["angry", "happy", "sad"], "x")
    with pytest.raises(UserError, match="exp/a and exp/b.*differ in their order.*sad, happy"):
        check_same_labels(LABELS, ["angry", "sad", "happy"], "exp/a and exp/b")
    with pytest.raises(UserError, match="differ in their names"):
        check_same_labels(LABELS, ["angry", "happy"], "x")


@pytest.fixture
def sets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, emotions in (("train", ["sad", "joy"]), ("dev", ["joy"])):
        utts = [f"{name}-{i}" for i in range(len(emotions))]
        wavs = {utt: f"{utt}.wav" for utt in utts}
        write_data_dir(name, wavs, dict.fromkeys(utts, "s"), utt2emo=dict(zip(utts, emotions)))
    return ["--out", "labels.json", "--sets", "train=train", "dev=dev"]


def test_program(sets, tmp_path):
    prepare_labels.main([*sets, "--labels", "sad joy", "--codes", "S=sad", "--policy", "none"])
    labels = load_labels("labels.json")
    assert labels.labels == ("sad", "joy")
    assert labels.codes == {"S": "sad"}
    assert labels.counts["dev"] == {"sad": 0, "joy": 1}


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        (["--labels", "sad"], "at least 2"),
        (["--labels", "sad", "mad"], "'mad'"),
        (["--train", "dev", "--labels", "sad", "joy"], "'sad'"),
        (["--codes", "S"], "--codes 'S'"),
    ],
)
def test_program_leaves_nothing_on_errors(sets, tmp_path, capsys, options, culprit):
    with pytest.raises(SystemExit, match="1"):
        prepare_labels.main([*sets, *options])
    assert culprit in capsys.readouterr().err
    assert not (tmp_path / "labels.json").exists()
