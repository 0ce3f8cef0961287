import pickle

import pytest
import torch

from espnet_adaltm.backbone.encoder import SpeechEncoder
from espnet_adaltm.backbone.loading import load_encoder
from espnet_adaltm.backbone.unilm import parse_conv_layers
from espnet_adaltm.errors import UserError
from tests.backbone.backbone_common import clips, difference, small_body, small_config

# Hugging Face's part, UniLM's part: written down from UniLM's side, independently of the loader
INSIDE = [
    ("attention.k_proj", "self_attn.k_proj"),
    ("attention.v_proj", "self_attn.v_proj"),
    ("attention.q_proj", "self_attn.q_proj"),
    ("attention.out_proj", "self_attn.out_proj"),
    ("attention.gru_rel_pos_linear", "self_attn.grep_linear"),
    ("attention.gru_rel_pos_const", "self_attn.grep_a"),
    ("attention.rel_attn_embed", "self_attn.relative_attention_bias"),
    ("feed_forward.intermediate_dense", "fc1"),
    ("feed_forward.output_dense", "fc2"),
]


def unilm_name(name, large):
    name = name.replace("masked_spec_embed", "mask_emb")
    name = name.replace("feature_projection.layer_norm", "layer_norm")
    name = name.replace("feature_projection.projection", "post_extract_proj")
    name = name.replace(
        "pos_conv_embed.conv.parametrizations.weight.original0", "pos_conv.0.weight_g"
    )
    name = name.replace(
        "pos_conv_embed.conv.parametrizations.weight.original1", "pos_conv.0.weight_v"
    )
    name = name.replace("pos_conv_embed.conv", "pos_conv.0")
    if name.startswith("feature_extractor."):
        return name.replace(".conv.", ".0.").replace(".layer_norm.", ".2.1." if large else ".2.")
    if ".layers." in name:
        name = name.replace(".layer_norm.", ".self_attn_layer_norm.")
        for theirs, ours in INSIDE:
            name = name.replace(theirs, ours)
    return name


def checkpoint(large, **overrides):
    body = small_body(small_config("wavlm", large=large))
    model = {unilm_name(name, large): tensor for name, tensor in body.state_dict().items()}
    cfg = {
        "extractor_mode": "layer_norm" if large else "default",
        "encoder_layers": 3,
        "encoder_embed_dim": 32,
        "encoder_ffn_embed_dim": 48,
        "encoder_attention_heads": 4,
        "activation_fn": "gelu",
        "layer_norm_first": large,
        "conv_feature_layers": "[(8,10,5)] + [(12, 3, 4)] * 1 + [(16,2,2)]",
        "conv_bias": False,
        "normalize": large,
        "conv_pos": 16,
        "conv_pos_groups": 4,
        "relative_position_embedding": True,
        "gru_rel_pos": True,
        "num_buckets": 20,
        "max_distance": 30,
        **overrides,
    }
    return body, {"cfg": cfg, "model": model}


@pytest.mark.parametrize("large", [True, False])
def test_a_unilm_checkpoint_gives_the_same_outputs(tmp_path, large, caplog):
    body, saved = checkpoint(large)
    assert "encoder.layers.0.self_attn.grep_a" in saved["model"]
    assert "feature_extractor.conv_layers.0.0.weight" in saved["model"]
    saved["model"]["final_proj.weight"] = torch.ones(2)
    torch.save(saved, tmp_path / "WavLM.pt")
    with caplog.at_level("INFO"):
        loaded = load_encoder(tmp_path / "WavLM.pt")
    assert "final_proj.weight" in caplog.text
    assert loaded.do_normalize is large
    expected = SpeechEncoder(body, do_normalize=large)
    speech, lengths = clips(1500, 811)
    with torch.no_grad():
        for ours, theirs in zip(loaded(speech, lengths).hidden, expected(speech, lengths).hidden):
            assert difference(ours[:, :20], theirs[:, :20]) < 1e-6


def test_equal_widths_have_no_projection_in_unilm(tmp_path):
    body = small_body(small_config("wavlm", large=True, conv_dim=(8, 12, 32)))
    with torch.no_grad():
        body.feature_projection.projection.weight.copy_(torch.eye(32))
        body.feature_projection.projection.bias.zero_()
    _, saved = checkpoint(True, conv_feature_layers="[(8,10,5),(12,3,4)] + [(32,2,2)]")
    state = {unilm_name(name, True): tensor for name, tensor in body.state_dict().items()}
    saved["model"] = {name: t for name, t in state.items() if "post_extract_proj" not in name}
    torch.save(saved, tmp_path / "WavLM.pt")
    loaded = load_encoder(tmp_path / "WavLM.pt")
    speech, lengths = clips(700)
    expected = SpeechEncoder(body)(speech, lengths).hidden[-1]
    assert difference(loaded(speech, lengths).hidden[-1], expected) < 1e-6


def test_the_published_cnn_is_parsed_not_evaluated():
    text = "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2"
    expected = [(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512, 2, 2)] * 2
    assert parse_conv_layers(text, "x") == expected
    for bad in ("__import__('os')", "[(512,10)]", "[(1,2,3)] * x", "", "[(1,2,3)] +"):
        with pytest.raises(UserError, match="not understood"):
            parse_conv_layers(bad, "file.pt")


class Malicious:
    def __reduce__(self):
        return (print, ("executed",))


def test_pickled_code_is_not_run(tmp_path, capsys):
    with (tmp_path / "bad.pt").open("wb") as file:
        pickle.dump({"cfg": Malicious(), "model": {}}, file)
    with pytest.raises(UserError, match="cannot be read as a UniLM checkpoint"):
        load_encoder(tmp_path / "bad.pt")
    torch.save({"cfg": Malicious(), "model": {}}, tmp_path / "bad2.pt")
    with pytest.raises(UserError, match="cannot be read as a UniLM checkpoint"):
        load_encoder(tmp_path / "bad2.pt")
    assert "executed" not in capsys.readouterr().out


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"state_dict": {}}, path)
    with pytest.raises(UserError, match="expected the entries 'cfg' and 'model'"):
        load_encoder(path)
    _, saved = checkpoint(True)
    torch.save(saved, path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match="is the download complete"):
        load_encoder(path)
    _, saved = checkpoint(True, gru_rel_pos=False)
    torch.save(saved, path)
    with pytest.raises(UserError, match="gru_rel_pos"):
        load_encoder(path)
    _, saved = checkpoint(True)
    del saved["model"]["encoder.layers.1.fc1.bias"]
    torch.save(saved, path)
    with pytest.raises(UserError, match=r"missing: encoder\.layers\.1\.feed_forward\.intermediate"):
        load_encoder(path)
