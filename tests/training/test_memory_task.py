"""A memory trained on toy dialogues through ESPnet's Trainer, decoded, and fed bad dialogues."""

import json
from pathlib import Path

import pytest
import torch
from qwen_common import make_folder
from safetensors.torch import load_file
from training_common import EMOTIONS, options, stats, weights

from espnet_adaltm.bin import memory_history
from espnet_adaltm.data.dialogs import Dialogs
from espnet_adaltm.data.labels import Labels
from espnet_adaltm.decoding import batch
from espnet_adaltm.decoding.baselines import memory as system_of
from espnet_adaltm.decoding.dialog import HISTORIES
from espnet_adaltm.decoding.systems import load_system
from espnet_adaltm.errors import UserError
from espnet_adaltm.kaldi import read_scp, write_scp
from espnet_adaltm.models.memory import memory_options
from espnet_adaltm.training.dialog_batches import (
    DialogPreprocess,
    cut,
    number_places,
    pack,
    share,
)

ROOT = Path(__file__).parents[2]
PATTERNS = ("conf/*/baselines/memory*.yaml", "egs/*/*/conf/*/baselines/memory*.yaml")
FILES = sorted(path for pattern in PATTERNS for path in ROOT.glob(pattern))
CONF = "{size: 8, width: 8, chunk: 4, layers: [1]}"


def run(argv):
    from espnet_adaltm.training.launch import load_task
    from espnet_adaltm.training.launch import run as launch

    torch.set_num_threads(1)
    launch(load_task("memory_task:MemoryTask"), argv)


def copied(source, dump, turns, keep=1.0):
    """A dump with dialogues of ``turns`` turns and emotions for a share of its utterances."""
    utts = list(read_scp(source / "wav.scp"))
    for name in ("wav.scp", "all_shape", "utt2spk"):
        write_scp(dump / name, read_scp(source / name))
    lengths = read_scp(source / "all_shape")
    write_scp(dump / "utt2num_samples", lengths)
    write_scp(
        dump / "utt2dialog", {utt: f"d{i // turns} {i % turns}" for i, utt in enumerate(utts)}
    )
    emotions = read_scp(source / "utt2emo")
    kept = [utt for i, utt in enumerate(utts) if (i * 7) % 10 < 10 * keep]
    write_scp(dump / "utt2emo", {utt: emotions[utt] for utt in kept})
    return dump


@pytest.fixture(scope="module")
def dialogs(corpus, tmp_path_factory):
    """Root of dumps with dialogues."""
    root = tmp_path_factory.mktemp("dialogs")
    copied(corpus / "dump/train", root / "train", turns=6, keep=0.7)
    copied(corpus / "dump/dev", root / "dev", turns=4)
    return root


def argv_of(corpus, experts, root, out, **changes):
    given = {
        "train_dump": root / "train",
        "valid_dump": root / "dev",
        "ser_expert": experts / "ser",
        "labels": corpus / "labels.json",
        "memory_conf": CONF,
        "batch_bins": 200_000,
        "best_model_criterion": ("valid", "macro_f1", "max"),
        "head_lr": 0.01,
        **changes,
    }
    return options(corpus, out, "memory", **given)


@pytest.fixture(scope="module")
def trained(corpus, experts, dialogs, tmp_path_factory):
    """Folder of a memory after two epochs."""
    out = tmp_path_factory.mktemp("trained") / "memory"
    run(argv_of(corpus, experts, dialogs, out, max_epoch=2))
    return out


@pytest.mark.integration
def test_only_the_memory_is_trained_saved_and_exported(trained, experts, corpus):
    values = stats(trained)
    assert values[2]["train"]["gate"] > 0.002  # it was 0
    assert values[2]["train"]["loss"] < values[1]["train"]["loss"] * 1.1
    saved = weights(trained, "latest.pth")
    assert {name.split(".")[0] for name in saved} == {"memory"}
    exported = load_file(trained / "memory.safetensors")
    assert exported.keys() == {name.removeprefix("memory.") for name in saved}
    assert exported["layers.1.first"].shape == (8, 8)
    info = json.loads((trained / "baseline.json").read_text())
    assert (info["kind"], info["history"], info["labels"]) == ("memory", "dialog", list(EMOTIONS))
    assert info["options"]["layers"] == [1]
    assert (trained / info["host"] / "expert.json").samefile(experts / "ser/expert.json")
    assert not info["pseudo_dialogs"]
    assert not (trained / "head.safetensors").exists()


@pytest.mark.integration
def test_histories_are_decoded_from_the_same_weights(trained, dialogs, experts, tmp_path):
    inputs = batch.raw_inputs(dialogs / "dev")
    options = {"dump": dialogs / "dev", "batch_seconds": 4.0, "device": "cpu"}
    rows = {}
    for history in HISTORIES:
        folder = tmp_path / history
        argv = ["--system", str(trained), "--history", history, "--out", str(folder)]
        memory_history.main(argv)
        system = load_system(folder)
        # Opened further than two epochs do, so that histories make a difference.
        system.memory.layers["1"].gate.fill_(1.0)
        rows[history] = system_of.decode(system, inputs, **options).probabilities
        assert list(rows[history]) == list(inputs.lengths)
        if history == "dialog":
            again = system_of.decode(system, inputs, **(options | {"batch_seconds": 0.1}))
            one_by_one = again.probabilities

    def distance(first, second):
        return max(abs(a - b) for utt in first for a, b in zip(first[utt], second[utt]))

    assert distance(rows["dialog"], one_by_one) < 1e-5
    host = batch.decode(load_system(experts / "ser", base=trained / _base(trained)), inputs)
    assert distance(rows["none"], host.probabilities) < 1e-6
    assert distance(rows["frozen"], rows["reset_each_turn"]) < 1e-6
    for history in ("none", "frozen", "shuffled", "other_dialog"):
        assert distance(rows["dialog"], rows[history]) > 1e-5, history
    first = [
        utt for utt, value in read_scp(dialogs / "dev/utt2dialog").items() if value[-2:] == " 0"
    ]
    for utt in first:  # a first turn has no history, whatever it would be
        assert rows["dialog"][utt] == pytest.approx(rows["frozen"][utt], abs=1e-6)
        assert rows["dialog"][utt] == pytest.approx(rows["other_dialog"][utt], abs=1e-6)


def _base(folder):
    return json.loads((folder / "baseline.json").read_text())["base"]


@pytest.mark.integration
def test_a_memory_without_its_host_or_weights_is_refused(trained, tmp_path):
    info = json.loads((trained / "baseline.json").read_text())
    other = tmp_path / "other"
    memory_history.main(["--system", str(trained), "--history", "frozen", "--out", str(other)])
    described = json.loads((other / "baseline.json").read_text())
    for change, message in (
        ({"memory_sha256": "0"}, "is not what"),
        ({"host_sha256": "0"}, "is not the host"),
        ({"history": "x"}, "'x' is none of dialog"),
    ):
        (other / "baseline.json").write_text(json.dumps({**described, **change}))
        with pytest.raises(UserError, match=message):
            load_system(other)
    del described["options"]
    (other / "baseline.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match="lacks options"):
        load_system(other)
    assert info["weights"] == "."
    with pytest.raises(SystemExit):
        memory_history.main(["--system", str(trained), "--history", "froze", "--out", str(other)])


@pytest.mark.integration
def test_pieces_pseudo_dialogues_a_head_that_learns_and_no_writing(
    corpus, experts, dialogs, tmp_path
):
    argv = argv_of(
        corpus, experts, dialogs, tmp_path / "m", max_epoch=1, max_turns=2, dialogs="speaker",
        pseudo_turns=4, train_head="true", learn="false", batch_bins=60_000,
    )  # fmt: skip
    run(argv)
    info = json.loads((tmp_path / "m/baseline.json").read_text())
    assert info["pseudo_dialogs"]
    assert not info["learn"]
    head = load_file(tmp_path / "m/head.safetensors")
    before = load_file(experts / "ser/head.safetensors")
    assert any(not torch.equal(head[name], before[name]) for name in head)
    loaded = load_system(tmp_path / "m")
    assert all(torch.equal(loaded.host.head.state_dict()[name], head[name]) for name in head)


@pytest.mark.integration
def test_qwen2_audio_is_trained_and_decoded_the_same_way(corpus, dialogs, tmp_path):
    source = make_folder(tmp_path / "qwen")
    out = tmp_path / "m"
    argv = options(
        corpus, out, "memory", train_dump=dialogs / "dev", valid_dump=dialogs / "dev",
        labels=corpus / "labels.json", host="qwen2_audio", memory_conf=CONF, max_epoch=1,
        host_conf=f"{{source: {source}, dtype: bfloat16}}", batch_bins=400_000, base=None,
        best_model_criterion=("valid", "macro_f1", "max"),
    )  # fmt: skip
    run(argv)
    info = json.loads((out / "baseline.json").read_text())
    assert (info["host_kind"], info["feats_type"]) == ("qwen2_audio", "raw")
    system = load_system(out)
    assert system.host.model.dtype == torch.bfloat16  # the trainer asked for single precision
    assert system.memory.layers["1"].first.dtype == torch.float32
    inputs = batch.raw_inputs(dialogs / "dev")
    chosen = {"dump": dialogs / "dev", "batch_seconds": 10.0, "device": "cpu"}
    rows = system_of.decode(system, inputs, **chosen).probabilities
    assert len(rows) == 18
    assert all(sum(row) == pytest.approx(1) for row in rows.values())


def test_a_frozen_host_keeps_its_number_type():
    from espnet_adaltm.training.memory_model import KeptType

    host = KeptType(torch.nn.Linear(2, 2).bfloat16())
    assert host.to(torch.float32).module.weight.dtype == torch.bfloat16
    assert host.state_dict() == {}
    assert list(host.parameters()) == []


@pytest.mark.integration
def test_half_of_the_validation_dialogues_can_be_learned_on(corpus, experts, dialogs, tmp_path):
    """The training set then plays no part, and no dialogue is cut."""
    folders = [tmp_path / name for name in ("one", "other")]
    scarce = tmp_path / "train"
    copied(corpus / "dump/train", scarce, turns=3, keep=0.2)
    for folder, train in zip(folders, (dialogs / "train", scarce)):
        held = {"learn_on": "held_out", "train_dump": train, "max_epoch": 1}
        run(argv_of(corpus, experts, dialogs, folder, **held))
    first, second = (load_file(folder / "memory.safetensors") for folder in folders)
    assert all(torch.equal(first[name], second[name]) for name in first)
    info = json.loads((folders[0] / "baseline.json").read_text())
    assert info["learn_on"] == "held_out"
    halves = [set(read_scp(folders[0] / f"data/{part}_shape")) for part in ("train", "valid")]
    assert not halves[0] & halves[1]
    assert halves[0] | halves[1] == set(read_scp(dialogs / "dev/all_shape"))
    whole = read_scp(dialogs / "dev/utt2dialog")
    kept = [{whole[utt].split()[0] for utt in half} for half in halves]
    assert not kept[0] & kept[1]
    assert len(kept[0]) - len(kept[1]) in (0, 1)


@pytest.mark.integration
def test_what_cannot_be_trained_on_is_refused(corpus, experts, dialogs, tmp_path):
    def refused(message, **changes):
        with pytest.raises(UserError, match=message):
            run(argv_of(corpus, experts, dialogs, tmp_path / "x", **changes))

    refused("utt2dialog is missing.*dialogs: speaker", train_dump=corpus / "dump/train")
    refused("--base and --ser_expert are needed", ser_expert=None)
    refused("is of kind 'asr'", ser_expert=experts / "asr")
    refused("set both 0", mask_time_prob=0.1)
    refused("layer 9 is not one of the host's 1 to 2", memory_conf="{layers: [9]}", max_epoch=1)
    refused("lacks `source`", host="qwen2_audio")
    refused("takes --feats_type raw", host="qwen2_audio", train_head="true")
    strange = tmp_path / "strange"
    copied(corpus / "dump/train", strange, turns=6)
    write_scp(strange / "utt2emo", {**read_scp(strange / "utt2emo"), "train-000": "bored"})
    refused("unknown emotion 'bored'", train_dump=strange)


@pytest.mark.integration
@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_configurations_are_accepted(path):
    from espnet_adaltm.training.launch import load_task

    parser = load_task("memory_task:MemoryTask").get_parser()
    args = parser.parse_args(["--config", str(path)])
    assert memory_options(args.memory_conf, 24, str(path))["size"] >= 16
    assert args.iterator_type == "task"
    assert args.dialogs == ("speaker" if "tiny" in path.parts else
                            "show" if "show" in path.stem else "given")  # fmt: skip


def test_every_recipe_has_a_configuration():
    assert {path.parts[-3] for path in FILES} >= {"tiny", "wavlm_large", "ci", "quick", "full"}


SIZES = {"a0": 5, "a1": 6, "a2": 5, "b0": 1, "c0": 9, "c1": 9, "c2": 9, "c3": 8}
TALK = Dialogs({"a": ("a0", "a1", "a2"), "b": ("b0",), "c": ("c0", "c1", "c2", "c3")})


def test_pieces_end_with_a_label_and_batches_hold_whole_pieces():
    labelled = dict.fromkeys(("a1", "c1", "c2"), "sad")
    assert cut(TALK, labelled, 3) == [["a0", "a1"], ["c0", "c1", "c2"]]
    assert cut(TALK, labelled, 2) == [["a0", "a1"], ["c0", "c1"], ["c2"]]
    assert cut(TALK, {}, 3) == []
    pieces = [list(utts) for utts in TALK.turns.values()]
    assert pack(pieces, SIZES, 24) == [["b0", "a0", "a1", "a2"], ["c0", "c1", "c2", "c3"]]
    assert pack(pieces, SIZES, 1000) == [["b0", "a0", "a1", "a2", "c0", "c1", "c2", "c3"]]
    assert pack(pieces, SIZES, 18, split=True)[-2:] == [["c0", "c1"], ["c2", "c3"]]
    assert [len(b) for b in pack(pieces, SIZES, 1, split=True)] == [1] * 8


def test_processes_share_batches_evenly():
    batches = [["a"], ["b"], ["c"]]
    assert [share(batches, rank, 2) for rank in (0, 1)] == [[["a"], ["c"]], [["b"], ["a"]]]
    assert share(batches, 0, 1) == batches


def test_unlabelled_turns_have_a_place_and_no_emotion():
    places = number_places(TALK)
    preprocess = DialogPreprocess(Labels(("angry", "sad")), {"a1": "sad"}, places)
    assert preprocess("a1", {})["emotion"].tolist() == [0.0, 1.0]
    other = preprocess("c3", {})
    assert other["emotion"].tolist() == [0.0, 0.0]
    assert other["place"].tolist() == [2, 3, 4]
    with pytest.raises(UserError, match="'a1'.*unknown emotion 'sda'"):
        DialogPreprocess(Labels(("angry", "sad")), {"a1": "sda"}, places)("a1", {})
