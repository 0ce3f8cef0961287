"""One set of names for every checkpoint."""

import pytest
import torch
from merging_common import base_encoder
from torch import nn
from torch.nn.utils import parametrize

from espnet_adaltm.backbone.encoder import build_body
from espnet_adaltm.backbone.loading import effective_position_weight, save_encoder
from espnet_adaltm.errors import UserError
from espnet_adaltm.merging.weights import POS_CONV, effective_state, open_weights

NEW = ("parametrizations.weight.original0", "parametrizations.weight.original1")
OLD = ("weight_g", "weight_v")


def weight_normed():
    body = build_body(base_encoder().body.config)
    with torch.no_grad():
        body.encoder.pos_conv_embed.conv.parametrizations.weight.original0.mul_(1.7)
    return body


@pytest.mark.parametrize("spelling", [NEW, OLD])
def test_weight_norm_becomes_the_weight_the_module_uses(spelling):
    body = weight_normed()
    used = body.encoder.pos_conv_embed.conv.weight.detach()
    names = {f"{POS_CONV}.{new}": f"{POS_CONV}.{name}" for new, name in zip(NEW, spelling)}
    state = effective_state({names.get(key, key): v for key, v in body.state_dict().items()})
    assert torch.equal(state[f"{POS_CONV}.weight"], used)
    parametrize.remove_parametrizations(body.encoder.pos_conv_embed.conv, "weight")
    assert state.keys() == body.state_dict().keys()


def test_same_bits_as_the_backbone_loader(tmp_path):
    encoder = base_encoder()
    save_encoder(encoder, tmp_path)
    from safetensors.torch import load_file

    expected = effective_position_weight(load_file(tmp_path / "model.safetensors"))
    with open_weights(tmp_path) as weights:
        found = dict(weights.items())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_prefixes_are_stripped_and_known_heads_left_out():
    state = {f"wavlm.{k}": v for k, v in base_encoder().encoder_state().items()}
    state |= {"lm_head.weight": torch.zeros(3), "layer_weights": torch.zeros(3)}
    assert effective_state(state).keys() == base_encoder().encoder_state().keys()


def test_an_unknown_tensor_is_refused_by_name():
    state = {**base_encoder().encoder_state(), "decoder.embed.weight": torch.zeros(2)}
    with pytest.raises(UserError, match=r"'decoder\.embed\.weight' belongs neither"):
        effective_state(state)


def test_missing_and_broken_files_are_told(tmp_path):
    with pytest.raises(UserError, match="does not exist"), open_weights(tmp_path / "no"):
        pass
    with pytest.raises(UserError, match="holds neither"), open_weights(tmp_path):
        pass
    save_encoder(base_encoder(), tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="not a readable safetensors file"), open_weights(file):
        pass


def test_linear_layers_with_one_kernel_tap_keep_the_axis():
    g, v = torch.tensor([[[2.0]]]), torch.tensor([[[3.0]], [[4.0]]])
    state = {f"{POS_CONV}.weight_g": g, f"{POS_CONV}.weight_v": v}
    expected = nn.functional.normalize(v.flatten(), dim=0) * 2
    torch.testing.assert_close(effective_state(state)[f"{POS_CONV}.weight"].flatten(), expected)
