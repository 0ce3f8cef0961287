"""Adapter with local attributes: both trainings, through ESPnet's trainer."""

import json

import pytest
import torch
from safetensors.torch import load_file
from training_common import EMOTIONS, options, stats, weights

from espnet_adaltm.bin import extract_hidden
from espnet_adaltm.errors import UserError
from espnet_adaltm.models.wap_adapter import AdapterConfig, WapAdapter

pytestmark = pytest.mark.integration

SHAPE = "{layers: 2, dim: 16, heads: 2, feed_forward: 32, kernel: 7}"
TASKS = {"adapter": "wap_adapter_task:WapAdapterTask", "head": "wap_head_task:WapHeadTask"}


@pytest.fixture(scope="module")
def hidden(corpus, tmp_path_factory):
    """Root of the hidden states of both sets."""
    root = tmp_path_factory.mktemp("hidden")
    for name in ("train", "dev"):
        folder = corpus / "dump" / name
        (folder / "utt2num_samples").write_text((folder / "all_shape").read_text())
        dump = ["--dump", str(folder), "--out", str(root / name)]
        extract_hidden.main(["--base", str(corpus / "base"), *dump, "--layer", "mean"])
    return root


@pytest.fixture(scope="module")
def adapter(corpus, hidden, tmp_path_factory):
    """A trained adapter."""
    folder = tmp_path_factory.mktemp("adapter")
    train("adapter", arguments(corpus, hidden, folder, "adapter", max_epoch=10))
    return folder


def arguments(corpus, hidden, out, kind, **changes):
    values = {"feats_dir": hidden, "wap_conf": SHAPE, "encoder_lr": 0.003, "batch_bins": 60_000}
    if kind == "adapter":
        values |= {
            "best_model_criterion": ("valid", "updates", "max"),
            "num_attributes": 8,
            "ema_conf": "{start: 0.9, end: 0.99, ramp: 100}",
            "cluster_conf": "{decay: 0.9}",
        }
    return options(corpus, out, "ser" if kind == "head" else "wap", **(values | changes))


def train(kind, argv):
    from espnet_adaltm.training.launch import load_task, run

    torch.set_num_threads(1)
    run(load_task(TASKS[kind]), argv)


def test_adapter_learns_the_attributes_without_collapse(adapter):
    values = stats(adapter)
    valid = [parts["valid"] for _, parts in sorted(values.items())]
    assert valid[-1]["attribute_acc"] > valid[0]["attribute_acc"] + 0.05
    assert valid[-1]["attribute_loss"] < 0.8 * valid[0]["attribute_loss"]
    assert valid[-1]["perplexity"] > 3
    assert 1 < values[10]["train"]["perplexity"] <= 8
    assert valid[-1]["spread"] > 0.3
    for parts in valid:
        total = parts["attribute_loss"] + parts["distill_loss"]
        assert parts["loss"] == pytest.approx(total, abs=1e-5)
    state = weights(adapter, "checkpoint.pth")
    steps = {int(s["step"]) for s in state["optimizers"][0]["state"].values()}
    assert steps == {int(state["model"]["objective.teacher.updates"])}
    assert valid[-1]["updates"] == steps.pop()


def test_the_student_of_the_last_epoch_is_exported(adapter, corpus):
    info = json.loads((adapter / "adapter.json").read_text())
    assert info["selected"]["best_epoch"] == info["selected"]["last_epoch"] == 10
    assert (info["layer"], info["dim"], info["attributes"]) == ("mean", 16, 8)
    base = json.loads((corpus / "base/base.json").read_text())
    assert info["base_sha256"] == base["sha256"]
    state = weights(adapter, "10epoch.pth")
    exported = load_file(adapter / "adapter.safetensors")
    student = {name for name in state if name.startswith("encoder.")}
    assert student == {f"encoder.{name}" for name in exported}
    assert all(torch.equal(state[f"encoder.{name}"], exported[name]) for name in exported)
    teacher = state["objective.teacher.adapter.layers.0.linear1.weight"]
    assert not torch.equal(teacher, exported["layers.0.linear1.weight"])
    WapAdapter(16, AdapterConfig.from_dict(info["adapter"], "")).load_state_dict(exported)


def test_an_interrupted_adapter_training_ends_with_the_same_bits(corpus, hidden, tmp_path):
    for name, stops in {"once": [2], "twice": [1, 2]}.items():
        for max_epoch in stops:
            argv = arguments(
                corpus, hidden, tmp_path / name, "adapter", max_epoch=max_epoch, accum_grad=2
            )
            train("adapter", argv)
    once, twice = (weights(tmp_path / name, "latest.pth") for name in ("once", "twice"))
    assert once.keys() == twice.keys()
    assert all(torch.equal(once[name], twice[name]) for name in once)


@pytest.mark.parametrize("name", ["attribute_weight", "distill_weight"])
def test_ablations_of_adapter_training(corpus, hidden, tmp_path, name):
    train("adapter", arguments(corpus, hidden, tmp_path, "adapter", max_epoch=1, **{name: 0}))
    valid = stats(tmp_path)[1]["valid"]
    left_out = name.replace("weight", "loss")
    assert left_out not in valid
    (left,) = {"attribute_loss", "distill_loss"} - {left_out}
    assert valid["loss"] == pytest.approx(valid[left], abs=1e-6)
    info = json.loads((tmp_path / "adapter.json").read_text())
    assert info[name] == 0
    assert info["attributes"] == (0 if name == "attribute_weight" else 8)


@pytest.fixture(scope="module")
def fine_tuned(corpus, hidden, adapter, tmp_path_factory):
    """A whole system."""
    folder = tmp_path_factory.mktemp("head")
    argv = arguments(
        corpus, hidden, folder, "head", wap_adapter=adapter, max_epoch=12, head_lr=0.01
    )
    train("head", argv)
    return folder


def test_fine_tuning_learns_emotions(fine_tuned, adapter):
    values = stats(fine_tuned)
    assert max(parts["valid"]["macro_f1"] for parts in values.values()) > 0.8
    info = json.loads((fine_tuned / "baseline.json").read_text())
    assert (info["kind"], info["labels"]) == ("wap_adapter", list(EMOTIONS))
    assert info["options"]["head"]["pooling"] == "attentive"
    described = json.loads((adapter / "adapter.json").read_text())
    assert info["options"]["adapter_training"]["sha256"] == described["sha256"]
    before, after = (load_file(folder / "adapter.safetensors") for folder in (adapter, fine_tuned))
    assert torch.equal(before["mask_embedding"], after["mask_embedding"])  # unused, so frozen
    assert not torch.equal(before["project.1.weight"], after["project.1.weight"])


def test_fine_tuning_starts_from_the_adapter_or_at_random(corpus, hidden, adapter, tmp_path):
    from espnet_adaltm.training.launch import load_task

    task = load_task(TASKS["head"])
    trained = load_file(adapter / "adapter.safetensors")
    for folder in (adapter, None):
        argv = arguments(corpus, hidden, tmp_path, "head", wap_adapter=folder)
        args = task.get_parser().parse_args(argv)
        task.prepare(args)
        state = task.build_model(args).encoder.state_dict()
        same = torch.equal(state["layers.0.linear1.weight"], trained["layers.0.linear1.weight"])
        assert same == (folder is not None)


def test_decoding_hears_what_training_heard(corpus, fine_tuned):
    from espnet_adaltm.data.labels import load_labels
    from espnet_adaltm.decoding import batch
    from espnet_adaltm.decoding.baselines import wap_adapter
    from espnet_adaltm.kaldi import read_scp
    from espnet_adaltm.training.metrics import ClassificationMetric

    info = json.loads((fine_tuned / "baseline.json").read_text())
    system = wap_adapter.load(fine_tuned, info)
    decoded = batch.decode(system, batch.raw_inputs(corpus / "dump/dev"), batch_seconds=3)
    labels, metric = load_labels(corpus / "labels.json"), ClassificationMetric(3)
    emotions = read_scp(corpus / "dump/dev/utt2emo")
    probabilities = torch.tensor([decoded.probabilities[utt] for utt in emotions])
    assert probabilities.sum(1).tolist() == pytest.approx([1.0] * len(emotions))
    truth = [labels.labels.index(emotion) for emotion in emotions.values()]
    metric.update(probabilities.argmax(1), torch.tensor(truth))
    best = stats(fine_tuned)[info["selected"]["best_epoch"]]["valid"]
    assert metric.compute()["macro_f1"] == pytest.approx(best["macro_f1"], abs=1e-9)
    alone = batch.decode(system, batch.raw_inputs(corpus / "dump/dev"), batch_seconds=0.01)
    for utt, row in decoded.probabilities.items():
        assert alone.probabilities[utt] == pytest.approx(row, abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("adapter", {"base": None}, "--base is missing"),
        ("adapter", {"feats_dir": None}, "--feats_dir is missing"),
        ("adapter", {"feats_dir": "nowhere"}, "hidden.json is missing: run bin/extract_hidden.py"),
        ("adapter", {"mask_time_prob": 0}, "needs masks"),
        ("adapter", {"attribute_weight": 0, "distill_weight": 0}, "nothing to learn"),
        ("adapter", {"num_attributes": 1}, "at least 2 clusters"),
        ("adapter", {"ema_conf": "{start: 1.0}"}, "start 1.0 is not in"),
        ("adapter", {"cluster_conf": "{decai: 0.9}"}, "unknown key 'decai'.*'decay'"),
        ("adapter", {"noise_prob": 0.5}, "reads hidden states"),
        ("head", {"labels": None}, "--labels is missing"),
        ("head", {"wap_adapter": "nowhere"}, "adapter.json is missing"),
        ("head", {"wap_conf": "{heads: 3}"}, "dim 256 is not a multiple of heads 3"),
    ],
)
def test_mistakes_are_named_before_anything_is_trained(
    corpus, hidden, tmp_path, kind, change, message
):
    with pytest.raises(UserError, match=message):
        train(kind, arguments(corpus, hidden, tmp_path, kind, **change))
    assert not (tmp_path / "finished.json").exists()


def test_an_adapter_that_does_not_fit_is_refused(corpus, hidden, adapter, tmp_path):
    def refused(folder, message, **changes):
        argv = arguments(corpus, hidden, tmp_path / "out", "head", wap_adapter=folder, **changes)
        with pytest.raises(UserError, match=message):
            train("head", argv)

    refused(adapter, "dim is 32, but .* has 16", wap_conf="{dim: 32, layers: 2}")
    copy = tmp_path / "copy"
    copy.mkdir()
    info = json.loads((adapter / "adapter.json").read_text())
    weights_file = (adapter / "adapter.safetensors").read_bytes()
    (copy / "adapter.safetensors").write_bytes(weights_file)
    (copy / "adapter.json").write_text(json.dumps({**info, "layer": "last"}))
    refused(copy, "trained on layer last, but .* hidden states of mean")
    (copy / "adapter.json").write_text(json.dumps({**info, "base_sha256": "0" * 64}))
    refused(copy, "trained on the base 0{12}, but")
    (copy / "adapter.json").write_text(json.dumps(info))
    (copy / "adapter.safetensors").write_bytes(weights_file[:-8])
    refused(copy, "is damaged, or not what adapter.json")


def test_hidden_states_of_another_base_are_refused(corpus, hidden, tmp_path):
    other = tmp_path / "hidden"
    for name in ("train", "dev"):
        folder = other / name
        folder.mkdir(parents=True)
        (folder / "feats.scp").write_text((hidden / name / "feats.scp").read_text())
        info = json.loads((hidden / name / "hidden.json").read_text())
        (folder / "hidden.json").write_text(json.dumps({**info, "base_sha256": "f" * 64}))
    with pytest.raises(UserError, match="was made with the base f{12}"):
        train("adapter", arguments(corpus, other, tmp_path / "out", "adapter"))
