"""Which block, and which part of it, a parameter of the encoder belongs to.

Block 0 is the front: CNN, feature projection, positional convolution and mask embedding. Block l
(1 to L) is the transformer layer l - 1. This is the cut of AdaLTM (arXiv 2603.25041): 25 blocks for
WavLM-Large. What the paper does not say is our decision:
``encoder.layers.0.attention.rel_attn_embed`` lies in the first layer but serves all of them, and
goes with block 1; ``encoder.layer_norm`` goes with the last block, whose output it normalises
(pre-norm models such as WavLM-Large), or with block 0, whose output it normalises (post-norm models
such as WavLM-Base, ``norm_first=False``).

    blocks = BlockMap.of(model.state_dict())      # any state dictionary, or names
    blocks["encoder.layers.3.layer_norm.bias"]    # (4, "norm")
    blocks.unmatched                              # heads and the like: they stay the base's
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from torch import nn

from espnet_adaltm.errors import UserError

# Anchored: "layers.1." alone would also find "feature_extractor.conv_layers.1."
_FRONT = re.compile(
    r"^(masked_spec_embed$|feature_extractor\.|feature_projection\.|encoder\.pos_conv_embed\.)"
)
_LAYER = re.compile(r"^encoder\.layers\.(\d+)\.")
_ENCODER_NORM = re.compile(r"^encoder\.layer_norm\.")
# Hugging Face's models with a head, and `SpeechEncoder`
_PREFIX = re.compile(r"^(wavlm|hubert|wav2vec2|body)\.")

_MODULES = (
    ("mask", re.compile(r"^masked_spec_embed$")),
    ("cnn", re.compile(r"^feature_extractor\.")),
    ("projection", re.compile(r"^feature_projection\.")),
    ("position", re.compile(r"^encoder\.pos_conv_embed\.")),
    ("attention", re.compile(r"^encoder\.layers\.\d+\.attention\.")),
    ("feed_forward", re.compile(r"^encoder\.layers\.\d+\.feed_forward\.")),
    ("norm", re.compile(r"^encoder\.(layers\.\d+\.(final_)?)?layer_norm\.")),
    ("adapter", re.compile(r"^encoder\.layers\.\d+\.adapter_layer\.")),
)

# Parts of blocks, as `module_of` names them.
MODULES = tuple(module for module, _ in _MODULES)


def common_name(name: str) -> str:
    """Drop the prefix of a model around the encoder: its type's name, or ``body``."""
    return _PREFIX.sub("", name, count=1)


def block_of(name: str, num_layers: int, *, norm_first: bool = True) -> int:
    """Block of a parameter.

    Args:
        name: Hugging Face's name without a model prefix, e.g. ``encoder.layers.3.layer_norm.bias``.
        num_layers: L, the number of transformer layers.
        norm_first: True for pre-norm models (``do_stable_layer_norm``).

    Returns:
        0 to L.

    Raises:
        UserError: Not a parameter of an encoder of this depth.
    """
    if _FRONT.match(name):
        return 0
    if layer := _LAYER.match(name):
        if int(layer[1]) < num_layers:
            return int(layer[1]) + 1
        raise UserError(
            f"{name}: this encoder has {num_layers} layers (0 to {num_layers - 1}): are these "
            "weights of a deeper model?"
        )
    if _ENCODER_NORM.match(name):
        return num_layers if norm_first else 0
    raise UserError(
        f"{name!r} is no parameter of a WavLM, HuBERT or wav2vec 2.0 encoder: expected names such "
        "as 'encoder.layers.0.attention.k_proj.weight', without a prefix and without heads"
    )


def module_of(name: str) -> str:
    """Part of its block that a parameter belongs to.

    Returns:
        ``mask | cnn | projection | position`` in block 0, ``attention | feed_forward | norm |
        adapter`` in the others. The layer norms inside the CNN and the projection stay with them.

    Raises:
        UserError: Not a parameter of an encoder.
    """
    for module, pattern in _MODULES:
        if pattern.match(name):
            return module
    raise UserError(f"{name!r} is no parameter of a WavLM, HuBERT or wav2vec 2.0 encoder")


class Place(NamedTuple):
    """Where a tensor is.

    Attributes:
        block: Depth, 0 for the front.
        module: Part of the block.
    """

    block: int
    module: str


class BlockMap(Mapping[str, Place]):
    """Names of tensors to block and module; what matches nothing is kept apart.

    Made by `of` for WavLM, HuBERT and wav2vec 2.0, by `by_pattern` for other stacks of layers, or
    from any mapping. Merging touches the names in the map and no other.

    Args:
        places: Name to (block, module).
        unmatched: Names that belong to no block.

    Raises:
        UserError: A block that is negative or no whole number.
    """

    def __init__(
        self, places: Mapping[str, tuple[int, str]], unmatched: Iterable[str] = ()
    ) -> None:
        for name, (block, _) in places.items():
            if isinstance(block, bool) or not isinstance(block, int) or block < 0:
                raise UserError(f"block map: {name!r} is in block {block!r}: expected 0, 1, ...")
        self._places = {name: Place(*place) for name, place in places.items()}
        self.unmatched = tuple(unmatched)

    @classmethod
    def of(cls, names: Iterable[str], *, norm_first: bool = True) -> "BlockMap":
        """Map the names of a WavLM, HuBERT or wav2vec 2.0 state dictionary.

        Args:
            names: Hugging Face's names, with or without the prefix of a model with a head.
            norm_first: True for pre-norm models (``do_stable_layer_norm``).
        """
        names = list(names)
        plain = {name: common_name(name) for name in names}
        layers = 1 + max((int(m[1]) for n in plain.values() if (m := _LAYER.match(n))), default=-1)
        places, unmatched = {}, []
        for name in names:
            try:
                block = block_of(plain[name], layers, norm_first=norm_first)
                places[name] = Place(block, module_of(plain[name]))
            except UserError:
                unmatched.append(name)
        return cls(places, unmatched)

    @classmethod
    def of_module(cls, module: nn.Module) -> "BlockMap":
        """Map a module's parameters; pre- or post-norm is read from it or its configuration."""
        config = getattr(module, "config", None)
        stable = getattr(config, "do_stable_layer_norm", True)
        names = [name for name, _ in module.named_parameters()]
        return cls.of(names, norm_first=getattr(module, "norm_first", stable))

    @classmethod
    def by_pattern(cls, names: Iterable[str], pattern: str) -> "BlockMap":
        r"""Map the names of another kind of network.

        Args:
            names: Names of its tensors.
            pattern: Regular expression with a group ``block``, the layer's number, and if wanted a
                group ``module``; ``^layers\.(?P<block>\d+)\.(?P<module>\w+)\.``. Layer i is block
                i + 1; other names are unmatched.

        Raises:
            UserError: No such group, or no valid expression.
        """
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise UserError(f"block pattern {pattern!r} is not valid: {error}") from error
        if "block" not in compiled.groupindex:
            raise UserError(f"block pattern {pattern!r} has no group (?P<block>...)")
        places, unmatched = {}, []
        for name in names:
            found = compiled.search(name)
            if found is None or not (found["block"] or "").isdecimal():
                unmatched.append(name)
                continue
            places[name] = (int(found["block"]) + 1, found.groupdict().get("module") or "all")
        return cls(places, unmatched)

    def __getitem__(self, name: str) -> Place:
        return self._places[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __repr__(self) -> str:
        return (
            f"BlockMap({len(self)} tensors in {self.num_blocks} blocks, "
            f"{len(self.unmatched)} unmatched)"
        )

    @property
    def num_blocks(self) -> int:
        """Number of blocks, L + 1 of an encoder."""
        return 1 + max((place.block for place in self._places.values()), default=-1)
