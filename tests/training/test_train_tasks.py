"""Every task learns a set that can be learned, and leaves what the later stages read."""

import json

import kaldiio
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import f1_score, recall_score
from training_common import EMOTIONS, TASKS, options, stats, train, weights

from espnet_adaltm.backbone.loading import load_encoder
from espnet_adaltm.data.tokens import Tokenizer
from espnet_adaltm.errors import UserError
from espnet_adaltm.kaldi import read_scp, write_scp

pytestmark = pytest.mark.integration


def losses(folder):
    return [parts["valid"]["loss"] for _, parts in sorted(stats(folder).items())]


def test_emotion_expert_learns_and_is_exported(corpus, tmp_path):
    train("ser", options(corpus, tmp_path, "ser", max_epoch=12, head_lr=0.01))
    values = stats(tmp_path)
    assert losses(tmp_path)[0] > 1.0
    assert min(losses(tmp_path)) < 0.3
    assert max(parts["valid"]["macro_f1"] for parts in values.values()) > 0.9
    expert = json.loads((tmp_path / "expert.json").read_text())
    assert expert["kind"] == "ser"
    assert expert["labels"] == list(EMOTIONS)
    base = json.loads((corpus / "base/base.json").read_text())
    assert expert["base_sha256"] == base["sha256"]
    epoch = expert["selected"]["best_epoch"]
    assert expert["selected"]["value"] == values[epoch]["valid"]["macro_f1"]
    history = json.loads((tmp_path / "history.json").read_text())
    assert [int(epoch) for epoch in history] == sorted(values)
    curve = [parts["valid"]["loss"] for parts in history.values()]
    assert curve == pytest.approx(losses(tmp_path), abs=1e-6)
    assert not any(name.endswith("time") for name in history["1"]["train"])
    state = weights(tmp_path, f"{epoch}epoch.pth")
    exported = load_file(tmp_path / "expert.safetensors")
    assert all(torch.equal(state[f"encoder.body.{name}"], exported[name]) for name in exported)
    head = load_file(tmp_path / "head.safetensors")
    assert len(state) == len(exported) + len(head)
    encoder = load_encoder(corpus / "base")
    before = {name: tensor.clone() for name, tensor in encoder.encoder_state().items()}
    encoder.load_encoder_state(exported)  # strict
    for name, tensor in before.items():
        frozen = name.startswith("feature_extractor.") or name == "masked_spec_embed"
        assert torch.equal(tensor, exported[name]) == frozen, name


def test_averaged_epochs_leave_frozen_weights_bit_identical(corpus, tmp_path):
    train("ser", options(corpus, tmp_path, "ser", max_epoch=3, keep_nbest_models=3))
    averaged = weights(tmp_path, "valid.macro_f1.ave_3best.pth")
    exported = load_file(tmp_path / "expert.safetensors")
    base = load_encoder(corpus / "base").encoder_state()
    cnn = [name for name in base if name.startswith("feature_extractor.")]
    assert all(torch.equal(base[name], exported[name]) for name in cnn)
    # ESPnet's mean moves some of them by a rounding, which is why they are taken from the base
    assert not all(torch.equal(base[name], averaged[f"encoder.body.{name}"]) for name in cnn)
    trained = "encoder.layers.0.attention.q_proj.weight"
    assert torch.equal(exported[trained], averaged[f"encoder.body.{trained}"])


def test_recognition_expert_learns_and_is_exported(corpus, tmp_path):
    argv = options(
        corpus, tmp_path, "asr", max_epoch=16, head_lr=0.01, encoder_lr=0.003, mask_time_prob=0.02
    )
    train("asr", argv)
    assert losses(tmp_path)[-1] < 0.5 * losses(tmp_path)[0]
    best = min(parts["valid"]["cer"] for parts in stats(tmp_path).values())
    assert best < 0.9
    expert = json.loads((tmp_path / "expert.json").read_text())
    assert expert["tokens"] == list(Tokenizer(tmp_path / "tokens.model").tokens)
    assert load_file(tmp_path / "head.safetensors")["linear.weight"].shape[0] == len(
        expert["tokens"]
    )


def test_pretraining_learns_units_and_writes_a_base(corpus, tmp_path):
    base = tmp_path / "base"
    argv = options(
        corpus, tmp_path / "p", "base", max_epoch=12, head_lr=0.01, encoder_lr=0.003, save_base=base
    )
    train("base", argv)
    values = losses(tmp_path / "p")
    assert min(values) < values[0] - 0.1
    info = json.loads((base / "base.json").read_text())
    best = info["selected"]["best_epoch"]
    assert info["unit_accuracy"] == stats(tmp_path / "p")[best]["valid"]["acc"] > 0.3
    loaded = load_encoder(base).encoder_state()
    state = weights(tmp_path / "p", f"{best}epoch.pth")
    for name, tensor in loaded.items():
        torch.testing.assert_close(tensor, state[f"encoder.body.{name}"], atol=1e-6, rtol=1e-5)


def test_gradient_checkpointing_trains_the_same(corpus, tmp_path):
    for name, epochs in (("plain", {"false": 2}), ("mixed", {"true": 1, "false": 2})):
        for checkpointing, last in epochs.items():  # also: a run goes on with the other setting
            words = options(corpus, tmp_path / name, "ser", max_epoch=last)
            train("ser", [*words, "--gradient_checkpointing", checkpointing])
    assert losses(tmp_path / "mixed") == pytest.approx(losses(tmp_path / "plain"), rel=1e-6)
    plain, mixed = (weights(tmp_path / name, "latest.pth") for name in ("plain", "mixed"))
    for name, tensor in plain.items():
        torch.testing.assert_close(mixed[name], tensor, atol=1e-6, rtol=1e-5)


def test_merge_learns_coefficients_and_head_only(corpus, tmp_path):
    argv = options(corpus, tmp_path, "merge", max_epoch=10, head_lr=0.01, coef_lr=0.02)
    train("merge", argv)
    assert losses(tmp_path)[-1] < 0.7 * losses(tmp_path)[0]
    written = json.loads((tmp_path / "coefficients.json").read_text())
    assert written["tasks"] == ["asr", "ser"]
    assert written["groups"] == ["block0", "block1", "block2"]
    assert np.shape(written["epochs"]) == (10, 2, 3)
    assert written["final"] == written["epochs"][written["best_epoch"] - 1]
    assert np.abs(np.array(written["epochs"][-1]) - 0.5).max() > 0.02
    state = weights(tmp_path, "latest.pth")
    assert {name.split(".")[0] for name in state} == {"encoder", "head"}
    assert [name for name in state if name.startswith("encoder")] == ["encoder.coefficients.raw"]
    assert (tmp_path / "checkpoint.pth").stat().st_size < 100_000
    merge = json.loads((tmp_path / "merge.json").read_text())
    assert (tmp_path / merge["base"] / "model.safetensors").exists()
    assert (tmp_path / merge["task_vectors"]["ser"]).exists()


def test_fixed_coefficients_stay_and_the_base_needs_no_vectors(corpus, tmp_path):
    for name, content in {"half": "{trainable: false}", "none": "{tasks: []}"}.items():
        config, folder = tmp_path / f"{name}.yaml", tmp_path / name
        config.write_text(content)
        argv = options(
            corpus,
            folder,
            "merge",
            merge_config=config,
            task_vectors=corpus / "task_vectors" if name == "half" else None,
            max_epoch=2,
        )
        train("merge", argv)
        assert losses(folder)[1] < losses(folder)[0]
    half = json.loads((tmp_path / "half/coefficients.json").read_text())
    assert half["final"] == [[0.5] * 3] * 2
    assert json.loads((tmp_path / "none/coefficients.json").read_text())["final"] == []


def test_head_starts_from_the_expert(corpus, experts, tmp_path):
    from espnet_adaltm.training.launch import load_task

    (tmp_path / "m.yaml").write_text("head_init: ser_expert")
    argv = options(
        corpus,
        tmp_path / "m",
        "merge",
        merge_config=tmp_path / "m.yaml",
        task_vectors=experts / "task_vectors",
        ser_expert=experts / "ser",
    )
    task = load_task(TASKS["merge"])
    args = task.get_parser().parse_args(argv)
    task.prepare(args)
    head = task.build_model(args).head.state_dict()
    trained = load_file(experts / "ser/head.safetensors")
    assert all(torch.equal(head[name], trained[name]) for name in trained)


def test_validation_metrics_equal_sklearn(corpus, tmp_path):
    from espnet_adaltm.training.launch import load_task

    argv = options(corpus, tmp_path, "ser", max_epoch=3, valid_batch_bins=30_000)
    train("ser", argv)
    task = load_task(TASKS["ser"])
    args = task.get_parser().parse_args(argv)
    task.prepare(args)
    model = task.build_model(args).eval()
    model.load_state_dict(weights(tmp_path, "3epoch.pth"))
    emotions = read_scp(corpus / "dump/dev/utt2emo")
    audio = kaldiio.load_scp(str(corpus / "dump/dev/wav.scp"))
    predicted = []
    with torch.no_grad():
        for utt in emotions:
            wave = torch.from_numpy(audio[utt][1].astype(np.float32) / 32768)[None]
            output = model.encoder(wave, torch.tensor([wave.shape[1]]))
            predicted.append(int(model.head(output.hidden, output.lengths).argmax()))
    truth = [EMOTIONS.index(emotion) for emotion in emotions.values()]
    kind = {"labels": range(3), "average": "macro", "zero_division": 0}
    measured = stats(tmp_path)[3]["valid"]
    assert measured["macro_f1"] == pytest.approx(f1_score(truth, predicted, **kind), abs=1e-12)
    assert measured["uar"] == pytest.approx(recall_score(truth, predicted, **kind), abs=1e-12)


def test_data_given_by_hand_must_have_what_the_task_reads(corpus, tmp_path):
    by_hand = {
        "train_dump": None,
        "train_data_path_and_name_and_type": f"{corpus}/dump/train/wav.scp,speech,kaldi_ark",
        "train_shape_file": corpus / "dump/train/ser_shape",
    }
    for task in ("ser", "merge"):
        with pytest.raises(UserError, match="--train_data_path_and_name_and_type has no 'emotion'"):
            train(task, options(corpus, tmp_path, task, **by_hand))


def test_stored_features_give_the_numbers_of_waveforms(corpus, tmp_path):
    encoder = load_encoder(corpus / "base")
    for name in ("train", "dev"):
        folder = tmp_path / "feats" / name
        folder.mkdir(parents=True)
        features = {}
        for utt, (_, wave) in kaldiio.load_scp(str(corpus / f"dump/{name}/wav.scp")).items():
            wave = torch.from_numpy(wave.astype(np.float32) / 32768)[None]
            with torch.no_grad():
                features[utt] = encoder.cnn(wave, torch.tensor([wave.shape[1]]))[0][0].numpy()
        kaldiio.save_ark(str(folder / "feats.ark"), features, scp=str(folder / "feats.scp"))
    train("ser", options(corpus, tmp_path / "raw", "ser"))
    stored = {"feats_type": "extracted", "feats_dir": tmp_path / "feats"}
    train("ser", options(corpus, tmp_path / "stored", "ser", **stored))
    for epoch, parts in stats(tmp_path / "raw").items():
        other = stats(tmp_path / "stored")[epoch]
        assert other["valid"]["loss"] == pytest.approx(parts["valid"]["loss"], abs=1e-4)
    with pytest.raises(UserError, match="--freeze_cnn false needs waveforms"):
        train("ser", options(corpus, tmp_path / "x", "ser", freeze_cnn="false", **stored))
    scp = tmp_path / "feats/dev/feats.scp"
    entries = read_scp(scp)
    del entries["dev-003"]
    write_scp(scp, entries)
    with pytest.raises(UserError, match="1 utterances of .* have no speech .*'dev-003'"):
        train("ser", options(corpus, tmp_path / "y", "ser", **stored))


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("ser", {"base": None}, "--base is missing"),
        ("ser", {"labels": None}, "--labels is missing"),
        ("asr", {"tokens": None}, "--tokens is missing"),
        ("ser", {"train_dump": None}, "--train_dump is missing"),
        ("base", {"num_units": None}, "--num_units is missing"),
        ("base", {"mask_time_prob": 0}, "needs masks"),
        ("merge", {"task_vectors": None}, "--task_vectors is missing"),
        ("ser", {"use_adapter": "true"}, "--use_adapter is not supported"),
        ("ser", {"feats_type": "extracted", "noise_prob": 0.5}, "--noise_prob needs waveforms"),
        ("ser", {"best_model_criterion": ("valid", "f1", "max")}, "there is .*valid/macro_f1"),
        ("ser", {"haed_lr": 0.1}, "unrecognized arguments: --haed_lr.*did you mean '--head_lr'"),
        ("ser", {"max_epo": 3}, "unrecognized arguments: --max_epo"),
        ("ser", {"loss": "hinge"}, "invalid choice: 'hinge'"),
        ("ser", {"head_conf": "{hiden: 3}"}, "unknown key 'hiden'.*hidden"),
    ],
)
def test_mistakes_are_named_before_anything_is_trained(corpus, tmp_path, task, change, message):
    with pytest.raises(UserError, match=message):
        train(task, options(corpus, tmp_path, task, **change, max_epoch=1))
    assert not (tmp_path / "finished.json").exists()
