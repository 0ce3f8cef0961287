"""One set of names for every checkpoint."""

import json

import pytest
import torch
from merging_common import base_encoder
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrize

from espnet_adaltm.backbone.encoder import build_body
from espnet_adaltm.backbone.loading import effective_position_weight, save_encoder
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import sha256_file
from espnet_adaltm.merging.weight_files import Identities, identity
from espnet_adaltm.merging.weights import (
    POS_CONV,
    effective_state,
    effective_weight,
    factored_weight,
    one_thread,
    open_weights,
)

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
    with one_thread():
        used = body.encoder.pos_conv_embed.conv.weight.detach()
    names = {f"{POS_CONV}.{new}": f"{POS_CONV}.{name}" for new, name in zip(NEW, spelling)}
    state = effective_state({names.get(key, key): v for key, v in body.state_dict().items()})
    assert torch.equal(state[f"{POS_CONV}.weight"], used)
    parametrize.remove_parametrizations(body.encoder.pos_conv_embed.conv, "weight")
    assert state.keys() == body.state_dict().keys()


def test_same_bits_as_the_backbone_loader(tmp_path):
    encoder = base_encoder()
    save_encoder(encoder, tmp_path)
    with one_thread():
        expected = effective_position_weight(load_file(tmp_path / "model.safetensors"))
    with open_weights(tmp_path) as weights:
        found = dict(weights.items())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("prefix", ["wavlm", "hubert", "wav2vec2", "body"])
def test_prefixes_are_stripped_and_known_heads_left_out(prefix):
    expected = base_encoder().encoder_state()
    state = {f"{prefix}.{k}": v for k, v in expected.items()}
    state |= {"lm_head.weight": torch.zeros(3), "layer_weights": torch.zeros(3)}
    found = effective_state(state)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_speech_encoders_own_state_is_a_checkpoint():
    base = base_encoder()
    found = effective_state(base.state_dict())
    assert found.keys() == base.encoder_state().keys()


@pytest.mark.parametrize(
    ("first", "second", "name"),
    [
        ("wavlm.encoder.layer_norm.bias", "hubert.encoder.layer_norm.bias", "encoder.layer_norm"),
        ("encoder.layer_norm.bias", "body.encoder.layer_norm.bias", "encoder.layer_norm.bias"),
        (f"{POS_CONV}.weight", f"{POS_CONV}.weight_g", f"{POS_CONV}.weight"),
    ],
)
def test_two_keys_of_one_tensor_are_refused(first, second, name):
    state = {first: torch.zeros(1, 1, 2), second: torch.ones(1, 1, 2)}
    state[f"{POS_CONV}.weight_v"] = torch.ones(1, 1, 2)
    with pytest.raises(UserError, match=f"'{first}' and '{second}' are both '{name}"):
        effective_state(state)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"model": {"a": torch.ones(1)}}, "'model' is of type dict: .* the one under 'model'"),
        ({"encoder.layer_norm.bias": torch.ones(1), "step": 3}, "entry 'step' is of type int"),
        ({0: torch.ones(1)}, "entry 0 is of type Tensor: .* of names and tensors"),
    ],
)
@pytest.mark.parametrize("any_names", [True, False])
def test_what_is_no_state_dictionary_is_told(state, message, any_names):
    with pytest.raises(UserError, match=message), open_weights(state, any_names=any_names):
        pass


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_factored_weight_has_the_bits_of_the_weight(dtype):
    weight = torch.randn(24, 6, 16, dtype=dtype)
    weight[:, :, 3] = 0
    g, v = factored_weight(weight)
    assert g.shape == (1, 1, 16)
    assert torch.equal(effective_weight(g, v), weight)


def test_an_effective_weight_does_not_depend_on_the_number_of_threads():
    g, v = torch.randn(1, 1, 128), torch.randn(256, 64, 128)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append((effective_weight(g, v), *factored_weight(v)))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(*pair) for other in found[1:] for pair in zip(found[0], other))


def shards(folder, state):
    """The state in two shards and their index, as transformers saves a large model."""
    names = sorted(state)
    parts = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, keys in parts.items():
        save_file({key: state[key].contiguous() for key in keys}, folder / file)
    table = {key: file for file, keys in parts.items() for key in keys}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": table}))
    return index


def test_shards_are_one_checkpoint(tmp_path):
    state = weight_normed().state_dict()
    index = shards(tmp_path, state)
    expected = effective_state(state)
    for source in (tmp_path, index):
        with open_weights(source) as weights:
            found = dict(weights.items())
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)
    assert len(identity(tmp_path)) == 64
    before = identity(tmp_path)
    shards(tmp_path, {**state, "masked_spec_embed": torch.zeros(16)})
    assert identity(tmp_path) != before


def test_incomplete_shards_are_told(tmp_path):
    index = shards(tmp_path, weight_normed().state_dict())
    shard = tmp_path / "one.safetensors"
    shard.rename(tmp_path / "away")
    with pytest.raises(UserError, match=r"names the shard one\.safetensors, which is not beside"):
        identity(tmp_path)
    (tmp_path / "two.safetensors").rename(shard)
    index.write_text(json.dumps({"weight_map": {}}))
    with pytest.raises(UserError, match="no 'weight_map'"), open_weights(tmp_path):
        pass
    index.write_text(json.dumps({"weight_map": {"a": "../away"}}))
    with pytest.raises(UserError, match="names the shard"), open_weights(tmp_path):
        pass


def test_identity_of_one_file_is_its_hash_and_a_state_has_none(tmp_path):
    save_encoder(base_encoder(), tmp_path)
    assert identity(tmp_path) == sha256_file(tmp_path / "model.safetensors")
    assert identity({}) == ""


def test_any_names_are_taken_as_they_are():
    state = {"layers.0.weight": torch.ones(2), f"{POS_CONV}.weight_g": torch.ones(1)}
    with open_weights(state, any_names=True) as weights:
        assert set(weights.names) == set(state)
        assert weights.left_out == ()


def test_left_out_heads_are_named():
    state = {**base_encoder().encoder_state(), "lm_head.weight": torch.zeros(3)}
    with open_weights(state) as weights:
        assert weights.left_out == ("lm_head.weight",)


def test_hashes_that_were_begun_are_those_that_are_taken(tmp_path):
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for number, path in enumerate(paths):
        save_file({"encoder.x": torch.full((4,), float(number))}, path)
    missing = tmp_path / "c.safetensors"
    with Identities([*paths[:1], missing]) as identities:
        assert [identities(path) for path in paths] == [identity(path) for path in paths]
        assert identities(paths[0]) != identities(paths[1])
        assert identities({}) == ""
        with pytest.raises(UserError, match=r"c\.safetensors does not exist"):
            identities(missing)
