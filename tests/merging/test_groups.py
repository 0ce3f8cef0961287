"""Groups of coefficients: by name, by map, in order."""

import pytest
from backbone_common import FAMILIES, small_body, small_config

from espnet_adaltm.backbone.blocks import BlockMap
from espnet_adaltm.errors import UserError
from espnet_adaltm.merging.groups import (
    GRANULARITIES,
    group_names,
    group_of,
    map_group,
    map_groups,
)

NAME = "encoder.layers.2.attention.k_proj.weight"


def test_the_group_of_a_parameter_at_every_granularity():
    groups = [group_of(NAME, 4, granularity) for granularity in GRANULARITIES]
    assert groups == ["all", "block3", "block3.attention", NAME]
    norm = "encoder.layer_norm.bias"
    assert group_of(norm, 4, "block") == "block4"
    assert group_of(norm, 4, "module", norm_first=False) == "block0.norm"
    with pytest.raises(UserError, match="granularity 'layer' is unknown: one of global"):
        group_of(NAME, 4, "layer")


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("large", [True, False])
def test_maps_and_names_agree(family, large, granularity):
    body = small_body(small_config(family, large=large))
    names = [name for name, _ in body.named_parameters() if "parametrizations" not in name]
    blocks = BlockMap.of(names, norm_first=large)
    groups = group_names(names, 3, granularity, norm_first=large)
    assert map_groups(blocks, granularity) == groups
    for name in names:
        group = group_of(name, 3, granularity, norm_first=large)
        assert map_group(blocks, name, granularity) == group
        assert group in groups
    assert len(set(groups)) == len(groups)


def test_blocks_are_in_order_of_depth_beyond_ten():
    names = [f"encoder.layers.{layer}.layer_norm.bias" for layer in (11, 2, 0, 9, 10)]
    assert group_names([*names, "masked_spec_embed"], 12, "block") == [
        *("block0", "block1", "block3"),
        *("block10", "block11", "block12"),
    ]
