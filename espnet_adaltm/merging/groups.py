"""Which coefficient a parameter belongs to."""

from collections.abc import Iterable

from espnet_adaltm.backbone.blocks import block_of, module_of
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
    if granularity == "global":
        return "all"
    if granularity == "tensor":
        return name
    block = f"block{block_of(name, num_layers, norm_first=norm_first)}"
    if granularity == "block":
        return block
    if granularity == "module":
        return f"{block}.{module_of(name)}"
    raise UserError(f"granularity {granularity!r} is unknown: one of {', '.join(GRANULARITIES)}")


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
    depth = {}
    for name in names:
        group = group_of(name, num_layers, granularity, norm_first=norm_first)
        depth.setdefault(group, block_of(name, num_layers, norm_first=norm_first))
    return sorted(depth, key=lambda group: (depth[group], group))
