"""Emotions out of ESPnet's hypotheses, and answers out of folders that its recipes left."""

import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from espnet_adaltm.bin import import_espnet
from espnet_adaltm.data.labels import Labels, load_labels
from espnet_adaltm.data.tokens import prepare_tokens
from espnet_adaltm.decoding import batch
from espnet_adaltm.decoding.baselines import espnet_asr
from espnet_adaltm.decoding.espnet_results import Names, read_answers
from espnet_adaltm.errors import UserError
from espnet_adaltm.kaldi import read_scp, write_scp
from espnet_adaltm.scoring.readers import read_hypothesis, read_reference
from espnet_adaltm.scoring.results import score_system

TOKENS = ("<blank>", "<unk>", "<emo:angry>", "<emo:happy>", "<emo:sad>", "<emo>", "hello", "there")
EMOTIONS = TOKENS[2:5]
LABELS = ("angry", "happy", "sad")
UTTERANCES = ("u1", "u2", "u3", "u4")
TRUTH = dict(zip(UTTERANCES, ("happy", "sad", "angry", "happy"), strict=True))
SAID = {"u1": "Hello there", "u2": "hello", "u3": "there there", "u4": "hello"}


@pytest.mark.parametrize(
    ("tokens", "emotion", "rest"),
    [
        (["<emo:happy>", "hello"], 1, ["hello"]),
        (["hello", "<emo:sad>", "there", "<emo:angry>"], 2, ["hello", "there"]),
        (["<emo>", "hello"], None, ["hello"]),
        (["hello"], None, ["hello"]),
        ([], None, []),
    ],
)
def test_the_first_emotion_token_counts_and_none_is_a_word(tokens, emotion, rest):
    assert espnet_asr.split_emotion(tokens, EMOTIONS, "<emo>") == (emotion, rest)


def test_what_was_said_is_the_likeliest():
    scores = torch.tensor([0.5, 0.3, 0.1]).log()  # the rest went to tokens of other kinds
    shares = [5 / 9, 3 / 9, 1 / 9]
    assert espnet_asr.probabilities(scores, None).tolist() == pytest.approx(shares)
    assert espnet_asr.probabilities(scores, 0).tolist() == pytest.approx(shares)
    swapped = [1 / 9, 3 / 9, 5 / 9]
    assert espnet_asr.probabilities(scores, 2).tolist() == pytest.approx(swapped)


def test_words_and_pieces_are_spelt():
    assert espnet_asr.spell(["hello", "there"], "word") == "hello there"
    assert espnet_asr.spell(["\u2581hel", "lo", "\u2581", "the", "re"], "piece") == "hello there"


def test_utterances_without_an_emotion_get_the_likeliest_and_are_counted(tmp_path, caplog):
    said = {3: ["<emo:sad>", "hello"], 2: ["<emo>", "there"], 1: []}
    first = torch.tensor([0.1, 0.05, 0.2, 0.3, 0.1, 0.2, 0.03, 0.02]).log()
    heard = []

    def recognise(samples):
        heard.append(samples.tolist())
        return SimpleNamespace(tokens=said[len(samples)], first=first)

    system = espnet_asr.EspnetRecogniser(
        recognise,
        nn.Identity(),
        [TOKENS.index(token) for token in EMOTIONS],
        TOKENS,
        silent="<emo>",
        units="word",
        tokenizer=None,
    )
    lengths = {"a": 3, "b": 2, "c": 1}
    inputs = batch.Inputs(lengths, lambda utt: np.ones(lengths[utt], dtype=np.float32), 1)
    with caplog.at_level(logging.INFO):
        decoded = espnet_asr.decode(system, inputs, dump=tmp_path, batch_seconds=9, device="cpu")
    assert decoded.texts == {"a": "hello", "b": "there", "c": ""}
    likeliest = [1 / 3, 1 / 2, 1 / 6]
    assert decoded.probabilities["b"] == decoded.probabilities["c"] == pytest.approx(likeliest)
    assert decoded.probabilities["a"] == pytest.approx([1 / 3, 1 / 6, 1 / 2])
    assert "2 of 3 utterances without an emotion token" in caplog.text
    assert heard == [[1.0] * 3, [1.0] * 2, [1.0]]  # without padding


@pytest.fixture
def ours(tmp_path):
    """A prepared set and the labels; returns a function that imports a folder into ``out``."""
    dump = tmp_path / "dump/test"
    write_scp(dump / "wav.scp", dict.fromkeys(UTTERANCES, "audio.ark:1"))
    write_scp(dump / "utt2emo", TRUTH)
    write_scp(dump / "text", SAID)
    prepare_tokens(dump / "text", tmp_path / "tokens", "char", lowercase=True)
    labels = {"labels": list(LABELS), "codes": {"hap": "happy", "ang": "angry"}, "counts": {}}
    (tmp_path / "labels.json").write_text(json.dumps(labels))

    def bring(folder, *words):
        out = tmp_path / "exp/import_espnet"
        options = ["--dir", folder, "--dumps", dump, "--labels", tmp_path / "labels.json"]
        import_espnet.main([str(word) for word in (*options, "--out", out, *words)])
        return out

    return SimpleNamespace(root=tmp_path, dump=dump, bring=bring)


def write(folder, **files):
    """Lines as ESPnet writes them: in any order."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in files.items():
        lines = [f"{utt} {value}\n" for utt, value in reversed(table.items())]
        (folder / name).write_text("".join(lines))


RECOGNISED = {
    "u1": "<hap> hello there",
    "u2": "<sad> hello",
    "u3": "<HAP> there there",
    "u4": "<hap> hell",
}


def test_a_recognition_is_brought_in_and_scored(ours):
    write(ours.root / "asr/decode_asr_model/test", text=RECOGNISED, score=dict.fromkeys(SAID, "-3"))
    out = ours.bring(ours.root / "asr", "--tokens", ours.root / "tokens")
    labels = load_labels(ours.root / "labels.json")
    scored = score_system(out, [read_reference(ours.dump, labels)], labels, name="espnet")
    values = scored["sets"]["test"]
    assert values["emotion"]["metrics"]["wa"]["value"] == 3 / 4
    assert values["asr"]["metrics"]["wer"]["value"] == pytest.approx(1 / 6)  # case does not count
    assert read_scp(out / "decode/test/utt2emo")["u3"] == "happy"
    record = json.loads((out / "import.json").read_text())
    assert record["sets"]["test"]["folder"] == "../../asr/decode_asr_model/test"
    assert record["labels"] == list(LABELS)


CLASSES = {"u1": "hap", "u2": "sad", "u3": "hap", "u4": "hap"}
SCORES = {"u1": "0.1 0.7 0.2", "u2": "0.6 0.2 0.2", "u3": "0.1 0.5 0.4", "u4": "0 1 0"}


def test_a_classification_has_probabilities_in_our_order(ours):
    write(ours.root / "cls/cls_test", text=CLASSES, score=SCORES)
    (ours.root / "cls/config.yaml").write_text("token_list: [sad, hap, ang, <unk>, <blank>]\n")
    out = ours.bring(ours.root / "cls")
    assert read_scp(out / "decode/test/utt2prob") == {
        "u1": "0.200000 0.700000 0.100000",
        "u2": "0.200000 0.200000 0.600000",
        "u3": "0.400000 0.500000 0.100000",
        "u4": "0.000000 1.000000 0.000000",
    }
    assert not (out / "decode/test/text").exists()
    labels = load_labels(ours.root / "labels.json")
    answers = read_hypothesis(out, read_reference(ours.dump, labels), labels)
    assert answers.prediction.tolist() == [1, 2, 1, 1]
    # What espnet2.bin.cls_inference writes by itself, with the one probability of its default.
    write(ours.root / "raw/prediction", text=CLASSES, score=dict.fromkeys(CLASSES, "0.8"))
    ours.bring(ours.root / "raw")
    assert read_scp(out / "decode/test/utt2prob")["u2"] == "0.100000 0.100000 0.800000"


def test_words_alone_and_emotions_as_plain_words(ours):
    write(ours.root / "asr/test", text=SAID)
    out = ours.bring(ours.root / "asr")
    assert sorted(path.name for path in (out / "decode/test").iterdir()) == ["text"]
    plain = {utt: f"{TRUTH[utt]} {text}" for utt, text in SAID.items()}
    write(ours.root / "meld/1best_recog", text=plain)
    ours.bring(ours.root / "meld", "--first_word")
    assert read_scp(out / "decode/test/utt2emo") == TRUTH
    assert read_scp(out / "decode/test/text") == SAID


def failing(ours, capsys, folder, *words):
    with pytest.raises(SystemExit) as stopped:
        ours.bring(folder, *words)
    assert stopped.value.code == 1
    assert not (ours.root / "exp/import_espnet").exists()
    return capsys.readouterr().err


def test_other_utterances_are_refused(ours, capsys):
    folder = ours.root / "asr/test"
    write(folder, text={utt: text for utt, text in RECOGNISED.items() if utt != "u3"})
    assert "text lacks 1 utterance(s) (u3) that the set has" in failing(ours, capsys, folder)
    write(folder, text={**RECOGNISED, "u5": "<sad> hello"})
    assert "text has 1 utterance(s) (u5) that the set lacks" in failing(ours, capsys, folder)
    write(folder, text=RECOGNISED)
    with (folder / "text").open("a") as handle:
        handle.write("u2 <sad> hello\n")
    assert "duplicate key 'u2'" in failing(ours, capsys, folder)


def test_a_missing_emotion_is_refused_unless_it_is_to_count_as_one(ours, capsys):
    folder = ours.root / "asr/test"
    write(folder, text={**RECOGNISED, "u2": "hello", "u4": "<xxx> hello"})
    error = failing(ours, capsys, folder)
    assert "2 utterance(s) without a known emotion (u2, u4)" in error
    assert "--missing_emotion" in error
    out = ours.bring(folder, "--missing_emotion", "angry")
    assert read_scp(out / "decode/test/utt2emo")["u2"] == "angry"
    assert json.loads((out / "import.json").read_text())["sets"]["test"]["without_emotion"] == 2


@pytest.mark.parametrize(
    ("files", "words", "message"),
    [
        ({"text": dict.fromkeys(SAID, "<neu> hello")}, (), "begin with <neu>, none of which"),
        ({"text": SAID}, ("--first_word",), "begin with Hello, hello, there, none of which"),
        (
            {"text": dict.fromkeys(SAID, "neu"), "score": dict.fromkeys(SAID, "0.9")},
            (),
            "4 utterance(s) without a known emotion (u1, u2, u3, u4)",
        ),
        ({"text": CLASSES, "score": SCORES}, (), "there is no config.yaml of the training above"),
        (
            {"text": {**CLASSES, "u1": "sad"}, "score": dict.fromkeys(SAID, "0.1")},
            (),
            "utterance 'u1' is likeliest 'angry', but text says 'sad'",
        ),
        ({"text": CLASSES, "score": dict.fromkeys(SAID, "2 -1 0")}, (), "are no probabilities"),
        ({"text": RECOGNISED}, ("--codes", "exc=excited"), "code 'exc': unknown emotion 'excited'"),
        ({"text": RECOGNISED}, ("--folders", "dev=x"), "--folders names 'dev'"),
        ({"text": RECOGNISED}, ("--folders", "test=x"), "x has no decoded 'test'"),
        ({"notes": SAID}, (), "has no decoded 'test'"),
    ],
)
def test_mistakes_are_named(ours, capsys, files, words, message):
    write(ours.root / "espnet/test", **files)
    assert message in failing(ours, capsys, ours.root / "espnet", *words)


def test_two_decodings_of_a_set_are_refused(ours, capsys):
    for name in ("decode_a", "decode_b"):
        write(ours.root / "asr" / name / "test", text=RECOGNISED)
    error = failing(ours, capsys, ours.root / "asr")
    assert "several decodings of 'test'" in error
    assert "decode_a/test" in error
    ours.bring(ours.root / "asr/decode_b")
    ours.bring(ours.root / "asr", "--folders", "test=decode_a/test")


def test_the_order_of_classes_must_be_that_of_some_labels(tmp_path):
    write(tmp_path, text={"u": "sad"}, score={"u": "0.5 0.2 0.3"})
    names = Names(Labels(LABELS))
    config = tmp_path / "config.yaml"
    config.write_text("token_list: [sad, bored, angry, <unk>]\n")
    with pytest.raises(UserError, match="has the classes sad, bored, angry, expected angry, happy"):
        read_answers(tmp_path, ["u"], names)
    config.write_text("token_list: [sad, angry, <unk>]\n")
    with pytest.raises(UserError, match="has the classes sad, angry, expected"):
        read_answers(tmp_path, ["u"], names)
    names = Names(Labels(LABELS), {"bored": "happy"})
    config.write_text("token_list: [sad, bored, angry, <unk>]\n")
    rows = read_answers(tmp_path, ["u"], names).probabilities
    assert rows["u"] == pytest.approx([0.3, 0.2, 0.5])
