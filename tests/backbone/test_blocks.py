from collections import Counter

import pytest
import torch
from transformers import WavLMConfig

from espnet_adaltm.backbone.blocks import BlockMap, block_of, common_name, module_of
from espnet_adaltm.backbone.encoder import SpeechEncoder, build_body
from espnet_adaltm.errors import UserError
from tests.backbone.backbone_common import FAMILIES, small_config


def names_of(config):
    with torch.device("meta"):
        encoder = SpeechEncoder(build_body(config))
    return dict(encoder.named_encoder_parameters())


def test_wavlm_large_has_25_blocks_of_the_known_sizes():
    large = WavLMConfig(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        do_stable_layer_norm=True,
        feat_extract_norm="layer",
    )
    sizes = Counter()
    for name, parameter in names_of(large).items():
        sizes[block_of(name, 24)] += parameter.numel()
    assert sorted(sizes) == list(range(25))
    assert all(sizes[block] == 12_596_760 for block in range(2, 24))
    assert sizes[1] == 12_596_760 + 320 * 16  # rel_attn_embed, which serves all layers
    assert sizes[24] == 12_596_760 + 2 * 1024  # the encoder's final layer norm
    cnn = 512 * 10 + 4 * 512 * 512 * 3 + 2 * 512 * 512 * 2 + 7 * 2 * 512
    projection = 2 * 512 + 512 * 1024 + 1024
    position = 1024 * 64 * 128 + 1024
    assert sizes[0] == cnn + projection + position + 1024
    # the published 315.45 M count weight norm's 128 magnitudes as well
    assert sum(sizes.values()) + 128 == 315_453_120


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("large", [True, False])
def test_every_parameter_has_one_block_and_one_module(family, large):
    names = names_of(small_config(family, large=large))
    blocks = {name: block_of(name, 3, norm_first=large) for name in names}
    assert set(blocks.values()) == {0, 1, 2, 3}
    assert blocks["encoder.layer_norm.weight"] == (3 if large else 0)
    modules = {(blocks[name], module_of(name)) for name in names}
    assert {m for b, m in modules if b == 2} == {"attention", "feed_forward", "norm"}
    front = {"mask", "cnn", "projection", "position"} | (set() if large else {"norm"})
    assert {m for b, m in modules if b == 0} == front


def test_a_layer_number_is_not_found_in_the_cnn():
    assert block_of("feature_extractor.conv_layers.1.conv.weight", 4) == 0
    assert block_of("feature_extractor.conv_layers.1.layer_norm.weight", 4) == 0
    assert module_of("feature_extractor.conv_layers.1.layer_norm.weight") == "cnn"
    assert block_of("encoder.layers.1.layer_norm.weight", 12) == 2
    assert block_of("encoder.layers.11.layer_norm.weight", 12) == 12


def test_the_shared_position_embedding_goes_with_block_1():
    name = "encoder.layers.0.attention.rel_attn_embed.weight"
    assert block_of(name, 4) == 1
    assert module_of(name) == "attention"


@pytest.mark.parametrize(
    "name",
    [
        "wavlm.encoder.layers.0.layer_norm.weight",
        "lm_head.weight",
        "encoder.layers.x.layer_norm.weight",
        "masked_spec_embed.weight",
        "my.feature_extractor.conv_layers.0.conv.weight",
    ],
)
def test_unknown_names_are_refused(name):
    with pytest.raises(UserError, match="no parameter"):
        block_of(name, 4)
    with pytest.raises(UserError, match="no parameter"):
        module_of(name)


def test_a_layer_too_many_is_refused():
    with pytest.raises(UserError, match="4 layers"):
        block_of("encoder.layers.4.layer_norm.weight", 4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("large", [True, False])
def test_a_map_places_every_parameter_as_the_functions_do(family, large):
    names = names_of(small_config(family, large=large))
    blocks = BlockMap.of(names, norm_first=large)
    assert blocks.unmatched == ()
    assert blocks.num_blocks == 4
    for name in names:
        assert blocks[name] == (block_of(name, 3, norm_first=large), module_of(name))
    prefixed = BlockMap.of([f"{family}.{name}" for name in names], norm_first=large)
    assert {common_name(name): place for name, place in prefixed.items()} == dict(blocks)


@pytest.mark.parametrize("large", [True, False])
def test_a_map_of_a_module_knows_pre_and_post_norm(large):
    body = build_body(small_config("wavlm", large=large))
    place = "encoder.layer_norm.weight"
    assert BlockMap.of_module(body)[place].block == (3 if large else 0)
    # weight norm's two factors are the positional convolution's
    factors = [name for name in dict(body.named_parameters()) if "parametrizations" in name]
    assert len(factors) == 2
    assert {BlockMap.of_module(body)[name] for name in factors} == {(0, "position")}
    encoder = SpeechEncoder(body)
    assert BlockMap.of_module(encoder)[f"body.{place}"].block == (3 if large else 0)


def test_what_matches_nothing_is_kept_apart():
    heads = ["lm_head.weight", "projector.bias", "wavlm.encoder.layers.x.norm"]
    names = ["wavlm.encoder.layers.1.layer_norm.bias", "wavlm.masked_spec_embed", *heads]
    blocks = BlockMap.of(names)
    assert list(blocks) == names[:2]
    assert blocks.unmatched == tuple(heads)
    assert blocks.num_blocks == 3
    assert "2 tensors in 3 blocks, 3 unmatched" in repr(blocks)
    assert BlockMap.of([]).num_blocks == 0


def test_other_networks_are_mapped_by_a_pattern():
    names = ["stem.weight", "blocks.0.attn.qkv.weight", "blocks.10.mlp.fc.bias", "head.bias"]
    blocks = BlockMap.by_pattern(names, r"^blocks\.(?P<block>\d+)\.(?P<module>\w+)\.")
    assert dict(blocks) == {names[1]: (1, "attn"), names[2]: (11, "mlp")}
    assert blocks.unmatched == ("stem.weight", "head.bias")
    assert BlockMap.by_pattern(names, r"^blocks\.(?P<block>\d+)")[names[1]] == (1, "all")
    assert BlockMap.by_pattern(["blocks.x.w"], r"^blocks\.(?P<block>\w+)").unmatched


@pytest.mark.parametrize(
    ("pattern", "message"),
    [(r"^blocks\.(\d+)", "has no group"), (r"^blocks\.(?P<block>", "is not valid")],
)
def test_bad_patterns_are_told(pattern, message):
    with pytest.raises(UserError, match=message):
        BlockMap.by_pattern(["blocks.0.weight"], pattern)


@pytest.mark.parametrize("block", [-1, 1.5, True, "2"])
def test_bad_blocks_are_told(block):
    with pytest.raises(UserError, match="'a.weight' is in block"):
        BlockMap({"a.weight": (block, "all")})
