"""Which coefficient a parameter belongs to."""

from collections.abc import Iterable

from espnet_adaltm.backbone.blocks import BlockMap, Place, block_of, module_of
from espnet_adaltm.errors import UserError

GRANULARITIES = ("global", "block", "module", "tensor")


def group_of(name: str, num_layers: int, granularity: str, *, norm_first: bool = True) -> str:
    """Name the group of one parameter.

    ``global``: ``all``. ``block``: ``block0`` .. ``blockL``, AdaLTM's (depth as in
    `backbone.blocks.block_of`). ``module``: ``block3.attention`` and so on. ``tensor``: the
    parameter's own name (AdaMerging's layer-wise).

    Args:
        name: Hugging Face parameter name.
        num_layers: L, transformer layers of the encoder.
        granularity: One of `GRANULARITIES`.
        norm_first: True for pre-norm encoders (`SpeechEncoder.norm_first`).

    Raises:
        UserError: Unknown granularity.
    """
    if granularity in ("global", "tensor"):
        return _group(name, Place(0, ""), granularity)
    block = block_of(name, num_layers, norm_first=norm_first)
    return _group(name, Place(block, module_of(name)), granularity)


def group_names(
    names: Iterable[str], num_layers: int, granularity: str, *, norm_first: bool = True
) -> list[str]:
    """List the groups of an encoder, by depth and then by name.

    Args:
        names: Its parameter names.
        num_layers: L.
        granularity: One of `GRANULARITIES`.
        norm_first: True for pre-norm encoders.
    """
    places = {
        name: (block_of(name, num_layers, norm_first=norm_first), module_of(name)) for name in names
    }
    return map_groups(BlockMap(places), granularity)


def map_group(blocks: BlockMap, name: str, granularity: str) -> str:
    """`group_of` of a tensor in a map, whatever kind of network it maps.

    Raises:
        UserError: Unknown granularity.
    """
    return _group(name, blocks[name], granularity)


def map_groups(blocks: BlockMap, granularity: str) -> list[str]:
    """`group_names` of a map: its groups by depth and then by name."""
    depth: dict[str, int] = {}
    for name, place in blocks.items():
        depth.setdefault(_group(name, place, granularity), place.block)
    return sorted(depth, key=lambda group: (depth[group], group))


def _group(name: str, place: Place, granularity: str) -> str:
    if granularity == "global":
        return "all"
    if granularity == "tensor":
        return name
    if granularity == "block":
        return f"block{place.block}"
    if granularity == "module":
        return f"block{place.block}.{place.module}"
    raise UserError(f"granularity {granularity!r} is unknown: one of {', '.join(GRANULARITIES)}")
