import json
import logging

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from espnet_adaltm.backbone.encoder import MODELS, SpeechEncoder
from espnet_adaltm.backbone.loading import (
    effective_position_weight,
    factored_position_weight,
    load_encoder,
    read_base_info,
    save_encoder,
    write_base_info,
)
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import sha256_file
from tests.backbone.backbone_common import (
    FAMILIES,
    clips,
    difference,
    small_body,
    small_config,
    small_encoder,
)

POSITION = "encoder.pos_conv_embed.conv."


@pytest.mark.parametrize("room", [10, 5000])
def test_full_disk_is_one_line(tmp_path, full_disk, room):
    message = f"no space left on the disk of {tmp_path}: free some and run again"
    with full_disk(room), pytest.raises(UserError, match=message):
        save_encoder(small_encoder("wavlm"), tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == (set() if room == 10 else {"config.json", "preprocessor_config.json"})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("large", [True, False])
def test_saved_folder_loads_in_transformers(tmp_path, family, large):
    encoder = small_encoder(family, large=large)
    save_encoder(encoder, tmp_path)
    model = getattr(transformers, MODELS[family])
    body, info = model.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    speech, lengths = clips(1500, 1500)
    with torch.no_grad():
        ours = encoder(speech, lengths).hidden
        normalised = encoder.normalize_waveform(speech, lengths)
        theirs = body(normalised, output_hidden_states=True)
        again = SpeechEncoder(body)(speech, lengths).hidden
    assert difference(again[-1], ours[-1]) < 5e-6
    # Hugging Face's own forward pass: another order of operations, but the same last state
    assert difference(theirs.last_hidden_state, ours[-1]) < 1e-5
    assert difference(theirs.hidden_states[-1], ours[-1]) < 1e-5


@pytest.mark.parametrize("normalize", [True, False])
def test_round_trip(tmp_path, normalize):
    encoder = SpeechEncoder(small_body(small_config("wavlm", large=True)), do_normalize=normalize)
    encoder.train()
    save_encoder(encoder, tmp_path)
    loaded = load_encoder(tmp_path)
    assert loaded.do_normalize is normalize
    assert not loaded.training
    encoder.eval()
    expected = encoder.encoder_state()
    for name, tensor in loaded.encoder_state().items():
        if name.startswith(POSITION):
            assert difference(tensor, expected[name]) < 1e-6
        else:
            assert torch.equal(tensor, expected[name]), name
    speech, lengths = clips(900, 400)
    assert (
        difference(loaded(speech, lengths).hidden[-1], encoder(speech, lengths).hidden[-1]) < 1e-5
    )
    assert all(parameter.device.type == "cpu" for parameter in loaded.parameters())


def test_saving_twice_gives_the_same_bytes(tmp_path):
    encoder = small_encoder()
    for name in ("a", "b"):
        save_encoder(encoder, tmp_path / name)
    assert sha256_file(tmp_path / "a/model.safetensors") == sha256_file(
        tmp_path / "b/model.safetensors"
    )


def test_both_names_of_weight_norm_are_understood(tmp_path):
    encoder = small_encoder()
    save_encoder(encoder, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    old = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for name, tensor in state.items()
    }
    assert f"{POSITION}weight_g" in old
    found, expected = effective_position_weight(old), effective_position_weight(state)
    assert found.keys() == expected.keys() == encoder.encoder_state().keys()
    assert torch.equal(found[f"{POSITION}weight"], expected[f"{POSITION}weight"])


def test_a_position_weight_with_a_zero_column_survives():
    weight = torch.randn(8, 2, 5)
    weight[:, :, 3] = 0
    state = factored_position_weight({f"{POSITION}weight": weight})
    assert difference(effective_position_weight(state)[f"{POSITION}weight"], weight) < 1e-6


def test_heads_and_prefix_are_left_out_and_told(tmp_path, caplog):
    encoder = small_encoder()
    save_encoder(encoder, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state = {f"wavlm.{name}": tensor for name, tensor in state.items()}
    state |= {"lm_head.weight": torch.ones(3, 32), "encoder.layers.0.x": torch.ones(1)}
    save_file(state, tmp_path / "model.safetensors")
    with caplog.at_level(logging.INFO):
        loaded = load_encoder(tmp_path)
    assert "left out, not part of the encoder: encoder.layers.0.x, lm_head.weight" in caplog.text
    speech, lengths = clips(900)
    assert (
        difference(loaded(speech, lengths).hidden[-1], encoder(speech, lengths).hidden[-1]) < 1e-5
    )


def test_pytorch_bin_and_half_precision(tmp_path):
    encoder = small_encoder()
    save_encoder(encoder, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save({name: t.half() for name, t in state.items()}, tmp_path / "pytorch_model.bin")
    loaded = load_encoder(tmp_path)
    assert all(parameter.dtype == torch.float32 for parameter in loaded.parameters())
    speech, lengths = clips(900)
    assert difference(loaded(speech, lengths).hidden[0], encoder(speech, lengths).hidden[0]) < 0.05


def test_a_ctc_model_without_a_mask_embedding_loads(tmp_path, caplog):
    save_encoder(small_encoder(), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["masked_spec_embed"]
    save_file(state, tmp_path / "model.safetensors")
    first, again = load_encoder(tmp_path), load_encoder(tmp_path)
    assert "no masked_spec_embed" in caplog.text
    assert torch.equal(first.body.masked_spec_embed, again.body.masked_spec_embed)


def test_truncated_weights_are_named(tmp_path):
    save_encoder(small_encoder(), tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged or incomplete"):
        load_encoder(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="where are the weights"):
        load_encoder(tmp_path)


def test_weights_of_another_size_are_named(tmp_path):
    save_encoder(small_encoder(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    with pytest.raises(UserError, match=r"missing: encoder\.layers\.3\."):
        load_encoder(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "bert"}, "'bert' is not supported: use one of wavlm, hubert, wav2vec2"),
        ({}, "None is not supported"),
    ],
)
def test_other_models_are_refused(tmp_path, config, message):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        load_encoder(tmp_path)


def test_missing_things_are_named(tmp_path):
    with pytest.raises(UserError, match=r"config\.json is missing"):
        load_encoder(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        load_encoder(tmp_path / "nowhere")
    with pytest.raises(UserError, match="does not exist"):
        load_encoder("WavLM-Huge.pt")
    with pytest.raises(UserError, match="neither an existing path nor a Hub id"):
        load_encoder("exp/base/tiny")


def test_unreachable_hub_is_explained(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"'nobody/nothing'.*HF_HOME.*HF_HUB_OFFLINE"):
        load_encoder("nobody/nothing")


def test_filled_cache_is_enough(monkeypatch, tmp_path):
    """An id of the Hub resolves from the cache when there is no network."""
    import huggingface_hub.constants

    encoder = small_encoder()
    commit = "0" * 40
    repository = tmp_path / "models--someone--small"
    save_encoder(encoder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    loaded = load_encoder("someone/small")
    speech, lengths = clips(900)
    assert (
        difference(loaded(speech, lengths).hidden[-1], encoder(speech, lengths).hidden[-1]) < 1e-5
    )


def test_base_info(tmp_path):
    save_encoder(small_encoder(), tmp_path)
    with pytest.raises(UserError, match=r"base\.json is missing"):
        read_base_info(tmp_path)
    written = write_base_info(tmp_path, "random", "seed 0", unit_accuracy=0.5)
    assert read_base_info(tmp_path) == written
    assert written["sha256"] == sha256_file(tmp_path / "model.safetensors")
    assert written["unit_accuracy"] == 0.5
    (tmp_path / "base.json").write_text('{"kind": "random"}')
    with pytest.raises(UserError, match="lacks source, sha256"):
        read_base_info(tmp_path)
