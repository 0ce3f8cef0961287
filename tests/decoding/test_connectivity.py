"""Straight lines between encoders: hand-made hills, and the program on made-up experts."""

import math

import numpy as np
import pytest
import torch
from decoding_common import LABELS, make_expert, make_scene

from espnet_adaltm.backbone.loading import load_encoder
from espnet_adaltm.bin import connectivity as program
from espnet_adaltm.decoding import connectivity, systems
from espnet_adaltm.decoding.batch import raw_inputs
from espnet_adaltm.files import read_json, write_json
from espnet_adaltm.kaldi import read_scp, write_scp
from espnet_adaltm.scoring.metrics import error_counts


def test_a_barrier_is_the_height_over_the_chord():
    points = [0.0, 0.25, 0.5, 1.0]
    assert connectivity.barrier([1.0, 1.5, 4.0, 3.0], points) == pytest.approx(2.0)
    assert connectivity.barrier([1.0, 1.2, 1.4, 3.0], points) == 0.0
    assert connectivity.barrier([3.0, 1.0], [0.0, 1.0]) == 0.0


def test_a_line_begins_and_ends_exactly():
    generator = torch.Generator().manual_seed(0)
    first, second = ({"w": torch.randn(1000, generator=generator)} for _ in range(2))
    first["count"] = second["count"] = torch.tensor(3)
    assert torch.equal(connectivity.interpolate(first, second, 0.0)["w"], first["w"])
    assert torch.equal(connectivity.interpolate(first, second, 1.0)["w"], second["w"])
    middle = connectivity.interpolate(first, second, 0.3)
    torch.testing.assert_close(middle["w"], 0.7 * first["w"] + 0.3 * second["w"])
    assert middle["count"] == 3


def test_parts_share_the_utterances_they_can():
    utterances = [f"u{index:02d}" for index in range(40)]
    labelled, transcribed = utterances[:20], utterances[10:]
    chosen = connectivity.choose(utterances, [labelled, transcribed], 8, seed=0)
    assert chosen == sorted(chosen)
    assert len(set(chosen) & set(labelled)) >= 8
    assert len(set(chosen) & set(transcribed)) >= 8
    assert len(chosen) < 16
    assert connectivity.choose(utterances, [labelled, transcribed], 8, seed=0) == chosen
    assert connectivity.choose(utterances, [labelled, transcribed], 8, seed=1) != chosen
    assert connectivity.choose(utterances, [labelled, []], 100, seed=0) == labelled


@pytest.fixture
def scene(tmp_path):
    """Base, experts and merge of `decoding_common`; emotions for most, texts for some."""
    make_scene(tmp_path)
    utterances = list(read_scp(tmp_path / "dump/test/wav.scp"))
    emotions = {utt: LABELS.labels[i % 3] for i, utt in enumerate(utterances[:8])}
    write_scp(tmp_path / "dump/test/utt2emo", emotions)
    # u2 is shorter than its transcript: CTC has no alignment for it
    write_scp(tmp_path / "dump/test/text", dict.fromkeys(utterances[1:6], "the red door"))
    return tmp_path


def run(scene, *words):
    program.main(
        [
            *("--base", str(scene / "base"), "--asr", str(scene / "asr")),
            *("--ser", str(scene / "ser"), "--merges", f"adaltm={scene}/merge"),
            *("--dump", str(scene / "dump/test"), "--labels", str(scene / "labels.json")),
            *("--out", str(scene / "out"), "--device", "cpu", "--points", "3", *words),
        ]
    )
    return read_json(scene / "out" / "connectivity.json")


def expected(scene, encoder):
    """Loss, macro-F1 and words of one encoder, an utterance at a time."""
    ser = systems.load_system(scene / "ser", base=scene / "base")
    asr = systems.load_system(scene / "asr", base=scene / "base")
    inputs = raw_inputs(scene / "dump/test")
    emotions, texts = (read_scp(scene / "dump/test" / name) for name in ("utt2emo", "text"))
    losses, hits, nll, tokens, found = [], [], 0.0, 0, {}
    for utt in inputs.lengths:
        speech = torch.from_numpy(inputs.load(utt))[None]
        with torch.no_grad():
            hidden, frames = encoder.eval()(speech, torch.tensor([speech.shape[1]]))
            if utt in emotions:
                rows = ser.emotion_head(hidden, frames).double().log_softmax(-1)[0]
                target = LABELS.labels.index(emotions[utt])
                losses.append(-float(rows[target]))
                hits.append((target, int(rows.argmax())))
            if utt in texts:
                logits = asr.ctc_head(hidden[-1])
                found[utt] = asr.tokenizer.decode(asr.ctc_head.greedy(logits, frames)[0])
                ids = torch.tensor([asr.tokenizer.encode(texts[utt])])
                size = torch.tensor([ids.shape[1]])
                loss = torch.nn.functional.ctc_loss(
                    logits.log_softmax(-1).transpose(0, 1), ids, frames, size, reduction="sum"
                )
                if math.isfinite(loss):
                    nll, tokens = nll + float(loss), tokens + int(size)
    scores = []
    for label in range(3):
        both = sum(pair == (label, label) for pair in hits)
        either = sum(t == label for t, _ in hits) + sum(p == label for _, p in hits)
        scores.append(2 * both / either if either else 0.0)
    counts = error_counts([texts[utt] for utt in found], list(found.values()))
    return {
        "loss": np.mean(losses),
        "macro_f1": np.mean(scores),
        "nll": nll / tokens,
        "wer": counts.errors.sum() / counts.lengths.sum(),
    }


def test_numbers_are_those_of_one_utterance_at_a_time(scene, capsys):
    report = run(scene, "--batch_seconds", "1.5")
    assert report["set"] == "test"
    assert report["utterances"] == {"emotion": 8, "words": 5}
    assert report["points"] == [0.0, 0.5, 1.0]
    lines = {(line["from"], line["to"]): line for line in report["lines"]}
    assert list(lines) == [("base", "asr"), ("base", "ser"), ("asr", "ser"), ("base", "adaltm")]
    base = load_encoder(scene / "base")
    loaded = {
        name: systems.load_system(scene / folder, base=scene / "base").encoder
        for name, folder in (("asr", "asr"), ("ser", "ser"), ("adaltm", "merge"))
    } | {"base": base}
    for (first, second), line in lines.items():
        states = [loaded[name].encoder_state() for name in (first, second)]
        middle = load_encoder(scene / "base")
        middle.load_encoder_state({n: (states[0][n] + states[1][n]) / 2 for n in states[0]})
        for index, encoder in enumerate((loaded[first], middle, loaded[second])):
            want = expected(scene, encoder)
            emotion = line["emotion"]["ser_expert"]
            assert emotion["loss"][index] == pytest.approx(want["loss"], rel=1e-4)
            assert emotion["macro_f1"][index] == pytest.approx(want["macro_f1"])
            assert line["words"]["loss"][index] == pytest.approx(want["nll"], rel=1e-4)
            assert line["words"]["wer"][index] == pytest.approx(want["wer"])
        losses = line["emotion"]["ser_expert"]["loss"]
        hill = max(0.0, losses[1] - (losses[0] + losses[2]) / 2)
        assert line["barrier"]["emotion"]["ser_expert"] == pytest.approx(hill)
    # the merge's own head judges, too, and is another one
    own = lines["base", "adaltm"]["emotion"]["adaltm"]["loss"]
    assert own != pytest.approx(lines["base", "adaltm"]["emotion"]["ser_expert"]["loss"])
    assert (scene / "out" / "connectivity.png").stat().st_size > 5_000
    assert capsys.readouterr().out.count("barrier") == 4 * 2 + 1


def test_ends_that_lines_share_are_measured_once(scene, monkeypatch):
    calls = []
    measure = connectivity.measure
    monkeypatch.setattr(connectivity, "measure", lambda *words: calls.append(1) or measure(*words))
    report = run(scene)
    assert len(calls) == 4 + 4
    first, second, third, _ = report["lines"]
    assert first["emotion"]["ser_expert"]["loss"][0] == second["emotion"]["ser_expert"]["loss"][0]
    assert third["words"]["wer"][2] == second["words"]["wer"][2]


def test_it_is_the_same_twice_and_on_stored_features(scene):
    first, again = run(scene), run(scene)
    assert first == again
    stored = run(scene, "--feats_type", "extracted")
    for line, other in zip(first["lines"], stored["lines"]):
        got, want = (entry["emotion"]["ser_expert"]["loss"] for entry in (other, line))
        assert got == pytest.approx(want, abs=0.01)


def test_fewer_utterances_and_no_recogniser(scene):
    (scene / "asr").rename(scene / "gone")
    program.main(
        [
            *("--base", str(scene / "base"), "--ser", str(scene / "ser")),
            *("--dump", str(scene / "dump/test"), "--labels", str(scene / "labels.json")),
            *("--out", str(scene / "out"), "--device", "cpu", "--points", "2", "--max_utts", "4"),
        ]
    )
    report = read_json(scene / "out" / "connectivity.json")
    assert report["utterances"] == {"emotion": 4, "words": 0}
    assert [(line["from"], line["to"]) for line in report["lines"]] == [("base", "ser")]
    assert "words" not in report["lines"][0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--points", "1"], "--points 1 is less than 2"),
        (["--max_utts", "0"], "--max_utts 0 is less than 1"),
        (["--merges", "adaltm"], "--merges: 'adaltm' is not name=folder"),
        (["--merges", "a=x", "a=y"], "--merges: 'a' is given twice"),
    ],
)
def test_options_are_refused(scene, capsys, words, message):
    with pytest.raises(SystemExit) as status:
        run(scene, *words)
    assert status.value.code == 1
    assert message in capsys.readouterr().err
    assert not (scene / "out").exists()


def test_folders_of_another_kind_base_or_labels_are_refused(scene, capsys):
    def told(*words):
        with pytest.raises(SystemExit):
            run(scene, *words)
        return capsys.readouterr().err

    assert "is not a system with an emotion head" in told("--ser", str(scene / "asr"))
    assert "is not an ASR expert" in told("--asr", str(scene / "ser"))
    make_expert(scene / "strange", scene / "base", "ser", scene / "tokens")
    info = read_json(scene / "strange/expert.json")
    write_json(scene / "strange/expert.json", {**info, "labels": ["angry", "sad", "happy"]})
    assert "differ in their order" in told("--ser", str(scene / "strange"))
    write_json(scene / "strange/expert.json", {**info, "base_sha256": "0" * 64})
    assert "was made from the base 000000000000" in told("--ser", str(scene / "strange"))
    assert not (scene / "out").exists()


def test_a_merge_named_like_an_end_is_not_taken_for_it():
    found = program.parse_merges(["base=exp/merge_base", "adaltm=exp/merge_adaltm"])
    assert [str(path) for path in found.values()] == ["exp/merge_base", "exp/merge_adaltm"]
    assert list(found) == ["merge_base", "adaltm"]
