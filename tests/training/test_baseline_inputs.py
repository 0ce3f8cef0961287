"""Awkward corpora for the memory and the adapter: what is refused, and what happens otherwise."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from training_common import EMOTIONS, options, train

from espnet_adaltm.bin import extract_hidden
from espnet_adaltm.decoding import batch
from espnet_adaltm.decoding.baselines import memory as memories
from espnet_adaltm.decoding.systems import load_system
from espnet_adaltm.errors import UserError
from espnet_adaltm.kaldi import read_scp, write_scp

pytestmark = pytest.mark.integration

MEMORY = "memory_task:MemoryTask"
HEAD = "wap_head_task:WapHeadTask"
UNSEEN = EMOTIONS[-1]


def run(task, argv):
    from espnet_adaltm.training.launch import load_task
    from espnet_adaltm.training.launch import run as launch

    torch.set_num_threads(1)
    launch(load_task(task), argv)


def messy_places(utts):
    """Dialogues of six turns, but: the first lacks its third turn, the second one is of a single
    turn, and its other utterances are in no dialogue at all.
    """
    places = {}
    for index, utt in enumerate(utts):
        number, turn = divmod(index, 6)
        if number != 1 or turn == 0:
            places[utt] = (number, turn + (number == 0 and turn > 1))
    return {utt: f"d{number} {turn}" for utt, (number, turn) in places.items()}


def copied(source, dump, drop=()):
    """A dump with `messy_places`, without speakers and without the emotions in ``drop``."""
    utts = list(read_scp(source / "wav.scp"))
    for name in ("wav.scp", "all_shape"):
        write_scp(dump / name, read_scp(source / name))
    write_scp(dump / "utt2num_samples", read_scp(source / "all_shape"))
    emotions = {u: e for u, e in read_scp(source / "utt2emo").items() if e not in drop}
    write_scp(dump / "utt2emo", emotions)
    lengths = read_scp(source / "ser_shape")
    write_scp(dump / "ser_shape", {utt: lengths[utt] for utt in emotions})
    write_scp(dump / "utt2dialog", messy_places(utts))
    return dump


@pytest.fixture(scope="module")
def places(corpus, tmp_path_factory):
    """Root of a training set that lacks an emotion, and of a validation set that has it."""
    root = tmp_path_factory.mktemp("messy")
    copied(corpus / "dump/train", root / "train", drop=(UNSEEN,))
    copied(corpus / "dump/dev", root / "dev")
    return root


@pytest.fixture(scope="module")
def expert(corpus, tmp_path_factory):
    """Folder of a barely trained SER expert."""
    out = tmp_path_factory.mktemp("expert")
    train("ser", options(corpus, out, "ser", max_epoch=1))
    return out


def memory_argv(corpus, expert, places, out, **changes):
    given = {
        "train_dump": places / "train",
        "valid_dump": places / "dev",
        "ser_expert": expert,
        "labels": corpus / "labels.json",
        "memory_conf": "{size: 8, width: 8, chunk: 4, layers: [1]}",
        "best_model_criterion": ("valid", "macro_f1", "max"),
        "max_epoch": 1,
        "batch_bins": 400_000,
        **changes,
    }
    return options(corpus, out, "memory", **given)


@pytest.fixture(scope="module")
def trained(corpus, expert, places, tmp_path_factory):
    """A memory trained on all that, and the lines that it logged."""
    out = tmp_path_factory.mktemp("memory") / "m"
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger()
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        run(MEMORY, memory_argv(corpus, expert, places, out))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    return out, lines


def decoded(system, dump, history="dialog"):
    system.history = history
    inputs = batch.raw_inputs(dump)
    options = {"dump": dump, "batch_seconds": 4.0, "device": "cpu"}
    return memories.decode(system, inputs, **options).probabilities


@pytest.fixture
def system(trained):
    """The memory, opened further than one epoch does."""
    found = load_system(trained[0])
    found.memory.layers["1"].gate.fill_(1.0)
    return found


def test_what_is_missing_is_counted_and_told(trained):
    told = [line for line in trained[1] if "turns" in line]
    assert any(
        "/dev: 3 dialogues of up to 6 turns, 1 of a single turn, 1 with missing turns; "
        "5 utterances without a dialogue" in line
        for line in told
    ), told


def test_an_emotion_that_training_lacks_keeps_its_place(trained, system, places):
    info = json.loads((trained[0] / "baseline.json").read_text())
    assert info["labels"] == list(EMOTIONS)
    rows = decoded(system, places / "dev")
    assert rows.keys() == read_scp(places / "dev/wav.scp").keys()
    assert all(len(row) == 3 and sum(row) == pytest.approx(1) for row in rows.values())


def test_single_turns_and_utterances_without_dialogue_have_no_history(system, places):
    rows, fresh = (decoded(system, places / "dev", name) for name in ("dialog", "frozen"))
    table = read_scp(places / "dev/utt2dialog")
    alone = [utt for utt in rows if utt not in table or table[utt] == "d1 0"]
    assert len(alone) == 6
    for utt in rows:
        same = rows[utt] == pytest.approx(fresh[utt], abs=1e-6)
        assert same == (utt in alone or table[utt].endswith(" 0")), utt


def test_after_a_missing_turn_the_dialogue_goes_on(system, places, tmp_path):
    dump = tmp_path / "dev"
    shutil.copytree(places / "dev", dump)
    table = read_scp(dump / "utt2dialog")
    first = [utt for utt, place in table.items() if place.startswith("d0 ")]
    assert [table[utt] for utt in first] == [f"d0 {turn}" for turn in (0, 1, 3, 4, 5, 6)]
    write_scp(dump / "utt2dialog", table | {u: f"d0 {turn}" for turn, u in enumerate(first)})
    assert decoded(system, dump) == decoded(system, places / "dev")


def test_histories_of_others_need_another_dialogue(system, places, tmp_path):
    for name in ("wav.scp", "utt2num_samples"):
        table = read_scp(places / "dev" / name)
        write_scp(tmp_path / name, dict(list(table.items())[:6]))
    utts = read_scp(tmp_path / "wav.scp")
    write_scp(tmp_path / "utt2dialog", {utt: f"d {turn}" for turn, utt in enumerate(utts)})
    with pytest.raises(UserError, match="needs at least two dialogues"):
        decoded(system, tmp_path, "other_dialog")
    assert len(decoded(system, tmp_path, "shuffled")) == 6


def test_without_speakers_only_pseudo_dialogues_are_impossible(
    corpus, expert, places, system, tmp_path
):
    assert not (places / "dev/utt2spk").exists()
    assert len(decoded(system, places / "dev", "other_dialog")) == 18

    def refused(message, root):
        argv = memory_argv(corpus, expert, root, tmp_path / "out", dialogs="speaker")
        with pytest.raises(UserError, match=message):
            run(MEMORY, argv)
        assert not (tmp_path / "out/baseline.json").exists()

    refused("utt2spk is missing", places)
    for part in ("train", "dev"):
        copied(corpus / "dump" / part, tmp_path / part)
        utts = read_scp(tmp_path / part / "wav.scp")
        write_scp(tmp_path / part / "utt2spk", dict.fromkeys(utts, "unknown"))
    refused("not one of the 48 utterances has a known speaker", tmp_path)


def test_a_memory_learns_from_some_labels_and_hears_all_turns(corpus, expert, places, tmp_path):
    from espnet_adaltm.data.labels import load_labels
    from espnet_adaltm.training import memory_task
    from espnet_adaltm.training.launch import load_task

    lengths = read_scp(places / "train/ser_shape")
    chosen = dict(list(lengths.items())[:9])
    write_scp(tmp_path / "share", chosen)
    argv = memory_argv(corpus, expert, places, tmp_path / "m", emotion_shape=tmp_path / "share")
    task = load_task(MEMORY)
    args = task.get_parser().parse_args(argv)
    task.prepare(args)
    emotions = read_scp(places / "train/utt2emo")
    counts = [sum(emotions[utt] == name for utt in chosen) for name in EMOTIONS]
    assert memory_task.label_counts(args, load_labels(corpus / "labels.json")) == counts
    preprocess = task.build_preprocess_fn(args, train=True)
    for utt in read_scp(places / "train/wav.scp"):
        data = preprocess(utt, {})
        assert data["emotion"].sum() == (utt in chosen)
        assert data["place"].shape == (3,)
    dialogs = memory_task.read_dialogs_of(args, "train")
    assert sum(len(turns) for turns in dialogs.turns.values()) == 48
    role = "the utterances with a usable emotion"
    before = task.input_hashes(args)[role]
    write_scp(tmp_path / "share", dict(list(chosen.items())[:8]))
    assert task.input_hashes(args)[role] != before
    full = task.build_preprocess_fn(args, train=False)
    assert all(full(utt, {})["emotion"].sum() == 1 for utt in read_scp(places / "dev/utt2emo"))


def test_an_adapter_needs_neither_speakers_nor_every_emotion(corpus, places, tmp_path):
    for part in ("train", "dev"):
        dump = ["--dump", str(places / part), "--out", str(tmp_path / "hidden" / part)]
        extract_hidden.main(["--base", str(corpus / "base"), *dump, "--layer", "mean"])

    def argv(out, root, **changes):
        given = {
            "feats_dir": tmp_path / "hidden",
            "wap_conf": "{layers: 1, dim: 8, heads: 2, feed_forward: 8, kernel: 3}",
            "encoder_lr": 0.003,
            "train_dump": root / "train",
            "valid_dump": places / "dev",
            "max_epoch": 1,
            **changes,
        }
        return options(corpus, out, "ser", **given)

    run(HEAD, argv(tmp_path / "m", places))
    found = load_system(tmp_path / "m")
    rows = batch.decode(found, batch.raw_inputs(places / "dev"), batch_seconds=4.0).probabilities
    assert len(rows) == 18
    assert all(len(row) == 3 and sum(row) == pytest.approx(1) for row in rows.values())
    copied(corpus / "dump/train", tmp_path / "odd/train")
    path = Path(tmp_path / "odd/train/utt2emo")
    path.write_text(path.read_text().replace(f" {UNSEEN}", " bored"))
    with pytest.raises(UserError, match="unknown emotion 'bored'"):
        run(HEAD, argv(tmp_path / "x", tmp_path / "odd"))
