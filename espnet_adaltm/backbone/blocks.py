"""Which block, and which part of it, a parameter of the encoder belongs to.

Block 0 is the front: CNN, feature projection, positional convolution and mask embedding. Block l
(1 to L) is the transformer layer l - 1. Two parameters are a matter of decision:
``encoder.layers.0.attention.rel_attn_embed`` lies in the first layer but serves all of them, and
goes with block 1; ``encoder.layer_norm`` goes with the last block, whose output it normalises
(pre-norm models such as WavLM-Large), or with block 0, whose output it normalises (post-norm models
such as WavLM-Base, ``norm_first=False``).
"""

import re

from espnet_adaltm.errors import UserError

# Anchored: "layers.1." alone would also find "feature_extractor.conv_layers.1."
_FRONT = re.compile(
    r"^(masked_spec_embed$|feature_extractor\.|feature_projection\.|encoder\.pos_conv_embed\.)"
)
_LAYER = re.compile(r"^encoder\.layers\.(\d+)\.")
_ENCODER_NORM = re.compile(r"^encoder\.layer_norm\.")

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
