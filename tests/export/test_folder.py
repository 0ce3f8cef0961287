"""Exported folders: the same numbers here, there and in transformers' pipelines."""

import json

import numpy as np
import pytest
import torch
from backbone_common import FAMILIES, clips
from export_common import LABELS, SPEAKERS, make_mtlser, make_system
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForAudioClassification, AutoModelForCTC, pipeline

from espnet_adaltm.backbone.loading import load_encoder
from espnet_adaltm.errors import UserError
from espnet_adaltm.export.folder import load_system_folder, save_system

LENGTHS = (4000, 2345, 30)


def exported(system, tmp_path):
    folder = tmp_path / "export"
    folder.mkdir()
    save_system(system, folder)
    return folder


def _answers(system):
    output = system(*clips(*LENGTHS))
    assert output.probabilities.std(0).max() > 1e-3  # clips are told apart
    return output


@pytest.mark.parametrize("head", ["projector", "convolutions"])
@pytest.mark.parametrize("words", [True, False])
def test_a_folder_gives_the_same_system(tmp_path, head, words):
    system = make_system(tmp_path, head=head, words=words)
    folder = exported(system, tmp_path)
    loaded = load_system_folder(folder)
    before, after = _answers(system), _answers(loaded)
    torch.testing.assert_close(after.probabilities, before.probabilities, rtol=0, atol=1e-6)
    assert after.texts == before.texts
    assert (after.texts is not None) == words
    assert loaded.labels == LABELS
    assert not loaded.training
    assert (folder / "head.safetensors").exists() == (head == "convolutions")
    kinds = {path.suffix for path in folder.iterdir()}
    assert kinds == {".json", ".safetensors"} | ({".model"} if words else set())


def test_a_folder_gives_the_same_mtlser(tmp_path):
    system = make_mtlser(tmp_path)
    before = _answers(system)
    after = _answers(load_system_folder(exported(system, tmp_path)))
    torch.testing.assert_close(after.probabilities, before.probabilities, rtol=0, atol=1e-6)
    assert after.texts == before.texts
    assert after.speakers == before.speakers
    assert set(after.speakers) <= set(SPEAKERS)


@pytest.mark.parametrize("large", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_has_the_same_logits(tmp_path, family, large):
    system = make_system(tmp_path, family, large=large)
    folder = exported(system, tmp_path)
    speech, lengths = clips(*LENGTHS)
    output = system(speech, lengths)
    hidden, _ = system.encoder(speech, lengths)
    classifier = AutoModelForAudioClassification.from_pretrained(folder)
    ctc = AutoModelForCTC.from_pretrained(folder)
    encoder = AutoModel.from_pretrained(folder)
    for index, length in enumerate(LENGTHS[:2]):  # theirs refuses clips below a frame
        one = system.encoder.normalize_waveform(
            speech[index : index + 1, :length], lengths[index : index + 1]
        )
        with torch.no_grad():
            said = classifier(one).logits.double().softmax(-1)
            tokens = ctc(one).logits.argmax(-1)[0]
            last = encoder(one).last_hidden_state
        torch.testing.assert_close(said[0], output.probabilities[index], rtol=0, atol=2e-6)
        assert tokens.tolist() == output.paths[index].tolist()
        torch.testing.assert_close(
            last[0], hidden[-1][index, : last.shape[1]], rtol=1e-4, atol=1e-4
        )
    assert classifier.config.id2label == dict(enumerate(LABELS))
    assert type(classifier).__name__.lower() == f"{family}forsequenceclassification"
    assert type(ctc).__name__.lower() == f"{family}forctc"


def test_pipelines_load_the_folder_as_it_is(tmp_path):
    system = make_system(tmp_path)
    folder = str(exported(system, tmp_path))
    speech, lengths = clips(*LENGTHS)
    output = system(speech, lengths)
    files = [speech[i, :n].numpy() for i, n in enumerate(LENGTHS[:2])]
    emotions = pipeline("audio-classification", model=folder, top_k=None)
    words = pipeline("automatic-speech-recognition", model=folder)
    for index, file in enumerate(files):
        said = {row["label"]: row["score"] for row in emotions(file)}
        assert set(said) == set(LABELS)
        values = [said[name] for name in LABELS]
        np.testing.assert_allclose(values, output.probabilities[index], rtol=0, atol=2e-6)
        assert words(file)["text"] == output.texts[index]
    assert output.texts[0]


def test_labels_are_only_named_where_there_is_a_classifier(tmp_path):
    folder = exported(make_system(tmp_path, head="convolutions"), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    assert "angry" not in json.dumps(config)
    assert config["architectures"] == ["WavLMForCTC"]
    load_encoder(folder)


def test_an_encoder_alone_is_plain(tmp_path):
    folder = exported(make_system(tmp_path, head="convolutions", words=False), tmp_path)
    names = load_file(folder / "model.safetensors").keys()
    assert all(n.startswith(("encoder.", "feature_", "masked_spec_embed")) for n in names)
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["WavLMModel"]


def _rewrite(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_what_does_not_fit_is_named(tmp_path):
    folder = exported(make_system(tmp_path, head="convolutions"), tmp_path)
    description, head = folder / "recognizer.json", folder / "head.safetensors"
    good, state = description.read_text(), load_file(head)
    for change, message in (
        (lambda d: d.pop("labels"), "lacks labels: export it again"),
        (lambda d: d.update(format=9), "format 9, kind 'recognizer' are not known"),
        (lambda d: d.update(kind="other"), "kind 'other' are not known"),
        (lambda d: d["head"].update(hidden=17), r"frame_net.0.weight is \(16, 32, 1\)"),
        (lambda d: d["head"].update(colour="red"), "`head` does not describe one"),
        (lambda d: d.update(labels=["a", "a"]), "'a' is listed twice"),
    ):
        _rewrite(description, change)
        with pytest.raises(UserError, match=message):
            load_system_folder(folder)
        description.write_text(good)
    save_file({k: v for k, v in state.items() if "layer_sum" not in k}, head)
    with pytest.raises(UserError, match="lacks 'emotion_head.layer_sum.weights'"):
        load_system_folder(folder)
    head.write_bytes(head.read_bytes()[:100])
    with pytest.raises(UserError, match="head.safetensors is damaged or cut short"):
        load_system_folder(folder)
    head.unlink()
    with pytest.raises(UserError, match="head.safetensors is missing: run stage `export`"):
        load_system_folder(folder)
    with pytest.raises(UserError, match="recognizer.json is missing"):
        load_system_folder(tmp_path)


def test_only_recognisers_of_emotions_are_exported(tmp_path):
    system = make_system(tmp_path)
    system.labels = ()
    with pytest.raises(UserError, match="recognises no emotions"):
        save_system(system, tmp_path)
    with pytest.raises(UserError, match="Linear cannot be exported"):
        save_system(torch.nn.Linear(1, 1), tmp_path)
