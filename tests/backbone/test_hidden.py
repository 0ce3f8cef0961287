"""Stored hidden states against the encoder that made them."""

import json

import kaldiio
import numpy as np
import pytest
import torch

from espnet_adaltm.backbone.encoder import EncoderOutput
from espnet_adaltm.backbone.features import extract_features
from espnet_adaltm.backbone.hidden import choose, extract_hidden, read_hidden_info
from espnet_adaltm.backbone.loading import save_encoder, write_base_info
from espnet_adaltm.backbone.tiny import random_encoder, tiny_config
from espnet_adaltm.bin import extract_hidden as program
from espnet_adaltm.errors import UserError
from espnet_adaltm.kaldi import read_scp
from tests.backbone.test_units import make_dump

LENGTHS = {"a": 9000, "b": 5000, "c": 50, "d": 8000}
SMALL = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 32}


@pytest.fixture(scope="module")
def encoder():
    return random_encoder(tiny_config(**SMALL), 0)


@pytest.fixture(scope="module")
def base(encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    save_encoder(encoder, folder)
    write_base_info(folder, kind="random", source="test")
    return folder


@pytest.fixture
def dump(tmp_path):
    generator = np.random.default_rng(0)
    waves = {utt: generator.normal(size=n) * 0.1 for utt, n in LENGTHS.items()}
    return make_dump(tmp_path / "recipe" / "dump" / "train", waves)


def reference(encoder, dump, layer):
    """One utterance at a time, in single precision."""
    found = {}
    with torch.no_grad():
        for utt, (_, wave) in kaldiio.load_scp(str(dump / "wav.scp")).items():
            speech = torch.tensor(wave / 32768).float()[None]
            output = encoder(speech, torch.tensor([speech.shape[1]]))
            found[utt] = choose(output, layer)[0].numpy()
    return found


def close(stored, expected):
    return np.abs(stored.astype(np.float32) - expected).max() < 2e-3 * np.abs(expected).max() + 1e-4


@pytest.mark.parametrize("layer", ["last", "mean", "0", "1"])
def test_stored_states_are_those_of_the_layer(encoder, base, dump, tmp_path, layer):
    out = tmp_path / "hidden" / "train"
    program.main(
        ["--base", str(base), "--dump", str(dump), "--out", str(out), "--layer", layer]
        + ["--batch_seconds", "1"]
    )
    stored = kaldiio.load_scp(str(out / "feats.scp"))
    expected = reference(encoder, dump, layer)
    assert list(stored) == list(LENGTHS)
    for utt, states in expected.items():
        assert stored[utt].dtype == np.float16
        assert close(stored[utt], states), utt
    assert read_scp(out / "feats_shape")["c"] == "1,32"
    info = read_hidden_info(out)
    assert (info["layer"], info["dim"]) == (layer, 32)
    assert info["base_sha256"] == json.loads((base / "base.json").read_text())["sha256"]


def test_stored_cnn_features_give_the_same_states(encoder, base, dump, tmp_path):
    extract_features(encoder, dump, tmp_path / "feats" / "train")
    out = tmp_path / "hidden"
    program.main(
        ["--base", str(base), "--dump", str(dump), "--out", str(out), "--feats_type", "extracted"]
        + ["--feats_dir", str(tmp_path / "feats")]
    )
    stored = kaldiio.load_scp(str(out / "feats.scp"))
    for utt, states in reference(encoder, dump, "last").items():
        assert close(stored[utt], states), utt


def test_audio_of_another_recipe_is_found(encoder, base, dump, tmp_path, monkeypatch):
    """Its paths begin at its own folder; a file of that name here must not be taken instead."""
    here = tmp_path / "here"
    decoy = make_dump(here / "dump" / "train", {utt: np.zeros(n) for utt, n in LENGTHS.items()})
    expected = reference(encoder, dump, "last")
    for folder, root in ((dump, tmp_path / "recipe"), (decoy, here)):
        text = (folder / "wav.scp").read_text()
        assert f" {root}/dump/" in text
        (folder / "wav.scp").write_text(text.replace(f" {root}/", " "))
    monkeypatch.chdir(here)
    program.main(["--base", str(base), "--dump", "../recipe/dump/train", "--out", "theirs"])
    stored = kaldiio.load_scp("theirs/feats.scp")
    assert all(close(stored[utt], states) for utt, states in expected.items())
    program.main(["--base", str(base), "--dump", "dump/train", "--out", "ours"])
    assert not close(kaldiio.load_scp("ours/feats.scp")["a"], expected["a"])


def test_mean_is_of_the_layers_without_their_input():
    hidden = [torch.full((1, 2, 3), value) for value in (100.0, 1.0, 2.0, 6.0)]
    output = EncoderOutput(hidden, torch.tensor([2]))
    assert float(choose(output, "mean").unique()) == 3.0
    assert float(choose(output, "last").unique()) == 6.0
    assert float(choose(output, "0").unique()) == 100.0


@pytest.mark.parametrize("layer", ["3", "-1", "first", "1.5", ""])
def test_unknown_layers_are_refused(encoder, tmp_path, layer):
    with pytest.raises(UserError, match="neither last, mean nor a number from 0 .* to 2"):
        extract_hidden(encoder, {}, {}.get, tmp_path / "x", layer=layer, max_length=1)
    assert not (tmp_path / "x").exists()


def test_states_too_large_for_half_precision_are_refused(encoder, tmp_path, monkeypatch):
    from espnet_adaltm.backbone import hidden

    monkeypatch.setattr(hidden, "choose", lambda output, _: output.hidden[0] * 1e9)
    load = {"u": np.ones(4000, dtype=np.float32)}.__getitem__
    with pytest.raises(UserError, match="'u': a hidden state of layer last is not finite"):
        extract_hidden(encoder, {"u": 4000}, load, tmp_path / "x", layer="last", max_length=1)
    assert not (tmp_path / "x").exists()


def test_another_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="hidden.json is missing: run bin/extract_hidden.py"):
        read_hidden_info(tmp_path)
    (tmp_path / "hidden.json").write_text('{"layer": "last"}')
    with pytest.raises(UserError, match="lacks dim, base_sha256"):
        read_hidden_info(tmp_path)
