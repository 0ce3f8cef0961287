"""MTLSER trained on a toy through ESPnet's Trainer, decoded, and fed what it has to refuse."""

import json
from pathlib import Path

import pytest
import torch
from test_distributed import without_dropout
from training_common import EMOTIONS, HEAD, options, start, stats, weights

from espnet_adaltm.decoding import batch
from espnet_adaltm.decoding.systems import load_system
from espnet_adaltm.errors import UserError
from espnet_adaltm.kaldi import read_scp, write_scp

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
PATTERNS = ("conf/*/baselines/mtlser*.yaml", "egs/*/*/conf/*/baselines/mtlser*.yaml")
FILES = sorted(path for pattern in PATTERNS for path in ROOT.glob(pattern))


def run(argv):
    from espnet_adaltm.training.launch import load_task
    from espnet_adaltm.training.launch import run as launch

    torch.set_num_threads(1)
    launch(load_task("mtlser_task:MTLSERTask"), argv)


def argv_of(corpus, out, dump=None, **changes):
    given = {
        "tokens": corpus / "tokens",
        "labels": corpus / "labels.json",
        "best_model_criterion": ("valid", "macro_f1", "max"),
        "encoder_lr": 3e-3,
        "head_lr": 0.01,
        **changes,
    }
    if dump is not None:
        given |= {"train_dump": dump}
    return options(corpus, out, "mtlser", **given)


@pytest.fixture
def scarce(corpus, tmp_path):
    """The training set with 6 speakers, half of the emotions and two thirds of the words."""
    source, dump = corpus / "dump/train", tmp_path / "dump/train"
    utts = list(read_scp(source / "wav.scp"))
    for name in ("wav.scp", "all_shape"):
        write_scp(dump / name, read_scp(source / name))
    write_scp(dump / "utt2num_samples", read_scp(source / "all_shape"))
    for name, keep in (("utt2emo", 2), ("ser_shape", 2), ("text", 3), ("utt2spk", 1)):
        table = read_scp(source / name)
        kept = [utt for i, utt in enumerate(utts) if i % 6 < 6 * (keep - (keep > 1)) // keep]
        write_scp(dump / name, {utt: table[utt] for utt in kept})
    speakers = {utt: f"s{i // 8}" for i, utt in enumerate(utts)}
    speakers |= dict.fromkeys(utts[:2], "unknown")
    write_scp(dump / "utt2spk", speakers)
    return dump


@pytest.fixture
def dev(corpus, tmp_path):
    """What decoding reads of the validation set."""
    source, dump = corpus / "dump/dev", tmp_path / "dump/dev"
    write_scp(dump / "wav.scp", read_scp(source / "wav.scp"))
    write_scp(dump / "utt2num_samples", read_scp(source / "all_shape"))
    return dump


def test_everything_is_learned_and_decoded(corpus, scarce, dev, tmp_path):
    out = tmp_path / "mtlser"
    argv = argv_of(
        corpus, out, scarce, max_epoch=12, speaker_holdout=0.25, conflict_interval=4, beta=0.3
    )
    run(argv)
    values = stats(out)
    assert min(v["valid"]["loss_emotion"] for v in values.values()) < 0.5
    assert max(v["valid"]["macro_f1"] for v in values.values()) > 0.85
    assert values[12]["train"]["loss_ctc"] < 0.7 * values[1]["train"]["loss_ctc"]
    assert values[12]["train"]["loss_speaker"] < values[1]["train"]["loss_speaker"]
    assert "spk_acc" not in values[1]["valid"]  # nobody there is known
    info = json.loads((out / "baseline.json").read_text())
    assert info["kind"] == "mtlser"
    assert info["labels"] == list(EMOTIONS)
    assert info["speakers"] == [f"s{i}" for i in range(6)]
    assert "feats_type" not in info
    # a quarter of 6 and 5 times 8 utterances, those without an emotion first
    aside = read_scp(out / "held_out/utt2spk")
    assert len(aside) == info["held_out"]["utterances"] == 2 * 6
    assert not aside.keys() & read_scp(scarce / "utt2emo").keys()
    used = read_scp(out / "data/train_shape")
    assert len(used) == 48 - 12
    assert not aside.keys() & used.keys()
    said = read_scp(out / "held_out/utt2spk_hyp")
    right = sum(said[utt] == speaker for utt, speaker in aside.items())
    assert info["held_out"]["spk_acc"] == right / 12
    conflict = json.loads((out / "gradient_conflict.json").read_text())
    assert list(conflict["epochs"]) == [str(epoch) for epoch in range(1, 13)]
    assert conflict["blocks"] == ["block0", "block1", "block2"]

    system = load_system(out)
    inputs = batch.raw_inputs(dev)
    single = batch.decode(system, inputs, batch_seconds=1e-6)
    together = batch.decode(system, inputs, batch_seconds=4)
    assert single.texts == together.texts
    assert single.speakers == together.speakers
    assert set(single.speakers.values()) <= set(info["speakers"])
    truth = read_scp(corpus / "dump/dev/utt2emo")
    hits = 0
    for utt, row in single.probabilities.items():
        assert together.probabilities[utt] == pytest.approx(row, abs=1e-5)
        hits += EMOTIONS[row.index(max(row))] == truth[utt]
    best = info["selected"]["metrics"]
    assert hits / len(truth) == best["acc"]

    before = (out / "finished.json").read_bytes()
    run(argv)  # finished already
    assert (out / "finished.json").read_bytes() == before


def test_without_auxiliary_tasks_it_trains_as_the_emotion_expert(corpus, tmp_path):
    """Same data, head and seed: the same losses, epoch by epoch."""
    from training_common import train

    train("ser", options(corpus, tmp_path / "ser", "ser", max_epoch=2))
    run(
        argv_of(
            corpus, tmp_path / "mtl", alpha=0, beta=0, tokens=None, emotion_head="layers",
            head_conf=HEAD, encoder_lr=None, head_lr=3e-3, max_epoch=2,
        )
    )  # fmt: skip
    expert, mtl = stats(tmp_path / "ser"), stats(tmp_path / "mtl")
    for epoch in (1, 2):
        for part in ("train", "valid"):
            assert mtl[epoch][part]["loss"] == expert[epoch][part]["loss"]
    theirs, ours = weights(tmp_path / "ser", "2epoch.pth"), weights(tmp_path / "mtl", "2epoch.pth")
    assert all(theirs[name].equal(ours[name.replace("head.", "head.layers.")]) for name in theirs)


def test_interrupted_training_ends_with_the_same_weights(corpus, scarce, tmp_path):
    more = {"conflict_interval": 2, "speaker_holdout": 0.2}
    run(argv_of(corpus, tmp_path / "whole", scarce, max_epoch=3, **more))
    run(argv_of(corpus, tmp_path / "parts", scarce, max_epoch=1, **more))
    run(argv_of(corpus, tmp_path / "parts", scarce, max_epoch=3, **more))
    whole, parts = (weights(tmp_path / name, "3epoch.pth") for name in ("whole", "parts"))
    assert all(whole[name].equal(parts[name]) for name in whole)
    names = ("gradient_conflict.json", "held_out/utt2spk_hyp")
    for name in names:
        assert (tmp_path / "whole" / name).read_text() == (tmp_path / "parts" / name).read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": None}, "--tokens is missing.*or --alpha 0"),
        ({"alpha": -1}, "--alpha -1.0 is not a number from 0 on"),
        ({"speaker_holdout": 0.9}, "--speaker_holdout 0.9 is no share"),
        ({"head_conf": HEAD}, "--head_conf .* is for --emotion_head layers"),
        ({"labels": None}, "--labels is missing"),
        ({"train_dump": None}, "--train_dump is missing: MTLSER reads"),
        ({"conflict_interval": -3}, "--conflict_interval -3 is negative"),
    ],
)
def test_wrong_options_are_refused(corpus, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        run(argv_of(corpus, tmp_path / "out", **change))


def test_a_corpus_without_speakers_is_refused(corpus, scarce, dev, tmp_path):
    utts = read_scp(scarce / "wav.scp")
    write_scp(scarce / "utt2spk", {utt: utt for utt in utts})
    with pytest.raises(
        UserError, match="utt2spk: every utterance has a speaker of its own.*beta 0"
    ):
        run(argv_of(corpus, tmp_path / "out", scarce))
    (scarce / "utt2spk").unlink()
    with pytest.raises(UserError, match="utt2spk is missing"):
        run(argv_of(corpus, tmp_path / "out", scarce))
    run(argv_of(corpus, tmp_path / "out", scarce, beta=0, max_epoch=1))  # it needs none
    info = json.loads((tmp_path / "out/baseline.json").read_text())
    assert info["speakers"] is None
    system = load_system(tmp_path / "out")
    inputs = batch.raw_inputs(dev).only(["dev-001"], "test")
    decoded = batch.decode(system, inputs)
    assert decoded.speakers == {}
    assert list(decoded.texts) == ["dev-001"]


def test_unseen_classes_and_unknown_files_are_refused(corpus, scarce, tmp_path):
    emotions = read_scp(scarce / "utt2emo")
    first = next(iter(emotions))
    write_scp(scarce / "utt2emo", {**emotions, first: "bored"})
    with pytest.raises(UserError, match=f"utterance '{first}'.*'bored'"):
        run(argv_of(corpus, tmp_path / "out", scarce))
    write_scp(scarce / "utt2emo", emotions)
    write_scp(scarce / "text", {})
    with pytest.raises(UserError, match="no utterance of .* has a transcript.*--alpha 0"):
        run(argv_of(corpus, tmp_path / "out", scarce))


def test_an_emotion_that_training_lacks_keeps_its_place(corpus, scarce, dev, tmp_path):
    gone = read_scp(scarce / "utt2emo")
    gone = {utt: emotion for utt, emotion in gone.items() if emotion != EMOTIONS[0]}
    lengths = read_scp(scarce / "ser_shape")
    write_scp(scarce / "utt2emo", gone)
    write_scp(scarce / "ser_shape", {utt: lengths[utt] for utt in gone})
    run(argv_of(corpus, tmp_path / "out", scarce, max_epoch=1))
    info = json.loads((tmp_path / "out/baseline.json").read_text())
    assert info["labels"] == list(EMOTIONS)
    inputs = batch.raw_inputs(dev).only(["dev-001", "dev-002"], "test")
    rows = batch.decode(load_system(tmp_path / "out"), inputs).probabilities
    assert all(len(row) == 3 and sum(row) == pytest.approx(1) for row in rows.values())


@pytest.mark.parametrize("train_on", ["all", "labelled"])
def test_a_share_of_the_emotions(corpus, scarce, tmp_path, train_on):
    """The merges' share of the labels, and no other, whatever else is learned from."""
    from espnet_adaltm.training.mtlser_task import MTLSERTask

    chosen = list(read_scp(scarce / "ser_shape").items())[3:12]
    write_scp(tmp_path / "share", dict(chosen))
    argv = argv_of(
        corpus, tmp_path / "out", scarce, emotion_shape=tmp_path / "share", train_on=train_on,
        speaker_holdout=0,
    )  # fmt: skip
    args = MTLSERTask.get_parser().parse_args(argv)
    MTLSERTask.prepare(args)
    emotions = read_scp(tmp_path / "out/data/train_emotion", allow_empty_value=True)
    assert {utt for utt, value in emotions.items() if value} == {utt for utt, _ in chosen}
    assert len(emotions) == (48 if train_on == "all" else 9)


def test_speakers_of_the_validation_set_are_scored_there(corpus, tmp_path):
    """A leaky split: nothing is put aside; a speaker that was never heard is left out."""
    out = tmp_path / "out"
    dump = tmp_path / "dump/dev"
    source = corpus / "dump/dev"
    for name in ("wav.scp", "all_shape", "utt2emo", "text"):
        write_scp(dump / name, read_scp(source / name))
    utts = list(read_scp(source / "wav.scp"))
    speakers = {utt: "train-s1" if i % 3 else "never-heard" for i, utt in enumerate(utts)}
    write_scp(dump / "utt2spk", speakers)
    run(argv_of(corpus, out, valid_dump=dump, max_epoch=1))
    assert not (out / "held_out").exists()
    accuracy = stats(out)[1]["valid"]["spk_acc"]
    assert accuracy * 12 == pytest.approx(round(accuracy * 12))  # of the 12 that are known


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parents[1].name}/{path.stem}")
def test_shipped_configurations_are_accepted(path, tmp_path, corpus):
    from espnet_adaltm.bin import train_mtlser
    from espnet_adaltm.training.mtlser_task import MTLSERTask

    args = train_mtlser.get_parser().parse_args(
        ["--config", str(path), *argv_of(corpus, tmp_path / "out", head_lr=None, encoder_lr=None)]
    )
    MTLSERTask.prepare(args)
    model = MTLSERTask.build_model(args)
    assert (model.head.speaker is None) == (args.beta == 0)
    assert model.head.ctc is not None
    assert args.encoder_lr < 0.01


def test_two_processes_train_as_one(corpus, tmp_path):
    base = without_dropout(corpus, tmp_path)
    changes = {
        "base": base,
        "mtl_dropout": 0,
        "max_epoch": 2,
        "batch_type": "sorted",
        "batch_size": 12,
        "speaker_holdout": 0,
        "conflict_interval": 1,
    }
    ranks = []
    for rank in range(2):
        words = ["--dist_backend", "gloo", "--dist_world_size", "2", "--dist_rank", str(rank)]
        words += ["--dist_init_method", f"file://{tmp_path}/rendezvous"]
        ranks.append(start(run, [*argv_of(corpus, tmp_path / "two", **changes), *words]))
    for process in ranks:
        process.join(timeout=120)
    assert [process.exitcode for process in ranks] == [0, 0]
    run(argv_of(corpus, tmp_path / "one", **changes))
    one, two = (weights(tmp_path / name, "2epoch.pth") for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=2e-4, rtol=1e-3, msg=name)
    first, second = (stats(tmp_path / name)[2]["valid"] for name in ("one", "two"))
    for name in ("macro_f1", "wer", "acc"):
        assert first[name] == pytest.approx(second[name], abs=1e-12)
    conflict = json.loads((tmp_path / "two/gradient_conflict.json").read_text())
    assert conflict["epochs"]["2"]["steps"] == 4  # of 48 utterances, as with one process
