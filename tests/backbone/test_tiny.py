import pytest
import torch

from espnet_adaltm.backbone.encoder import SpeechEncoder
from espnet_adaltm.backbone.tiny import random_encoder, read_config, tiny_config
from espnet_adaltm.errors import UserError
from tests.backbone.backbone_common import clips


def test_defaults_have_the_published_frame_rate():
    encoder = random_encoder(tiny_config(), seed=0)
    assert isinstance(encoder, SpeechEncoder)
    assert (encoder.num_layers, encoder.hidden_size, encoder.feature_size) == (4, 128, 128)
    assert encoder.norm_first
    assert (encoder.geometry.receptive_field, encoder.geometry.hop) == (400, 320)
    assert encoder.frame_lengths(torch.tensor([16000, 400, 50])).tolist() == [49, 1, 1]
    assert hasattr(encoder.body, "masked_spec_embed")
    hidden, lengths = encoder(*clips(8000, 50))
    assert [tuple(state.shape) for state in hidden] == [(2, 24, 128)] * 5
    assert lengths.tolist() == [24, 1]


def test_the_seed_alone_decides_the_weights():
    config = tiny_config(num_hidden_layers=1)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = random_encoder(config, 3).encoder_state()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    again, other = random_encoder(config, 3).encoder_state(), random_encoder(config, 4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(
        first["encoder.layers.0.attention.k_proj.weight"],
        other.encoder_state()["encoder.layers.0.attention.k_proj.weight"],
    )


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match="'hiden_size' .did you mean 'hidden_size'"):
        tiny_config(hiden_size=64)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"conv_stride": [5, 2]}, "one value per CNN layer"),
        ({"hidden_size": 130}, "not a multiple of num_attention_heads"),
    ],
)
def test_values_that_do_not_fit_are_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        tiny_config(**overrides)


def test_the_config_comes_from_a_training_yaml(tmp_path):
    path = tmp_path / "train_base.yaml"
    path.write_text("max_epoch: 3\nencoder_conf:\n  hidden_size: 64\n  num_hidden_layers: 2\n")
    config = read_config(path)
    assert (config.hidden_size, config.num_hidden_layers) == (64, 2)
    path.write_text("max_epoch: 3\n")
    assert read_config(path).hidden_size == 128
    path.write_text("hidden_size: 64\n")
    with pytest.raises(UserError, match="put hidden_size below encoder_conf"):
        read_config(path)
