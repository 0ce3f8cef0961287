"""Microsoft's own WavLM checkpoints (UniLM repository): names and configuration translated.

The layout was read from ``wavlm/WavLM.py`` of microsoft/unilm: fairseq's names, the configuration
as a plain dictionary with the CNN given as a Python expression, which is parsed, never evaluated.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from espnet_adaltm.errors import UserError

if TYPE_CHECKING:
    from transformers import WavLMConfig

_CONV_TERM = re.compile(r"\[(?P<tuples>[\d,()\s]*)\]\s*(?:\*\s*(?P<times>\d{1,2}))?")
_TUPLE = re.compile(r"\(\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*\)")
_CFG = {
    "num_hidden_layers": ("encoder_layers", 12),
    "hidden_size": ("encoder_embed_dim", 768),
    "intermediate_size": ("encoder_ffn_embed_dim", 3072),
    "num_attention_heads": ("encoder_attention_heads", 12),
    "hidden_act": ("activation_fn", "gelu"),
    "do_stable_layer_norm": ("layer_norm_first", False),
    "conv_bias": ("conv_bias", False),
    "hidden_dropout": ("dropout", 0.1),
    "attention_dropout": ("attention_dropout", 0.1),
    "activation_dropout": ("activation_dropout", 0.0),
    "feat_proj_dropout": ("dropout_input", 0.0),
    "layerdrop": ("encoder_layerdrop", 0.0),
    "num_conv_pos_embeddings": ("conv_pos", 128),
    "num_conv_pos_embedding_groups": ("conv_pos_groups", 16),
    "num_buckets": ("num_buckets", 320),
    "max_bucket_distance": ("max_distance", 1280),
}
_LAYER = re.compile(r"^encoder\.layers\.(\d+)\.(.+)$")
_CONV = re.compile(r"^feature_extractor\.conv_layers\.(\d+)\.(0|2|2\.1)\.(weight|bias)$")
_IN_LAYER = {
    "self_attn.k_proj": "attention.k_proj",
    "self_attn.v_proj": "attention.v_proj",
    "self_attn.q_proj": "attention.q_proj",
    "self_attn.out_proj": "attention.out_proj",
    "self_attn.grep_linear": "attention.gru_rel_pos_linear",
    "self_attn.grep_a": "attention.gru_rel_pos_const",
    "self_attn.relative_attention_bias": "attention.rel_attn_embed",
    "self_attn_layer_norm": "layer_norm",
    "fc1": "feed_forward.intermediate_dense",
    "fc2": "feed_forward.output_dense",
    "final_layer_norm": "final_layer_norm",
}
_TOP = {
    "mask_emb": "masked_spec_embed",
    "layer_norm": "feature_projection.layer_norm",
    "post_extract_proj": "feature_projection.projection",
    "encoder.pos_conv.0": "encoder.pos_conv_embed.conv",
    "encoder.layer_norm": "encoder.layer_norm",
}


def parse_conv_layers(text: str, where: str) -> list[tuple[int, int, int]]:
    """Parse ``"[(512,10,5)] + [(512,3,2)] * 4"`` into (width, kernel, stride) per layer.

    Raises:
        UserError: Anything but sums of repeated lists of such tuples.
    """
    if not isinstance(text, str):
        raise UserError(f"{where}: conv_feature_layers {text!r} is no text")
    layers: list[tuple[int, int, int]] = []
    for term in text.split("+"):
        match = _CONV_TERM.fullmatch(term.strip())
        found = _TUPLE.findall(match["tuples"]) if match else []
        if match is None or not found:
            raise UserError(
                f"{where}: conv_feature_layers {text!r} is not understood near {term!r}"
            )
        layers += [tuple(map(int, item)) for item in found] * int(match["times"] or 1)
    return layers


def config_of_unilm(cfg: Mapping[str, Any], where: str) -> "WavLMConfig":
    """Translate the ``cfg`` of a UniLM checkpoint.

    Raises:
        UserError: Not a dictionary, or a model without gated relative positions.
    """
    if not isinstance(cfg, Mapping):
        raise UserError(f"{where}: 'cfg' must be a dictionary, found {type(cfg).__name__}")
    if not (cfg.get("relative_position_embedding") and cfg.get("gru_rel_pos")):
        raise UserError(
            f"{where}: only WavLM with relative_position_embedding and gru_rel_pos is supported"
        )
    layers = parse_conv_layers(
        cfg.get("conv_feature_layers", "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2"), where
    )
    from transformers import WavLMConfig

    widths, kernels, strides = zip(*layers)
    values = {name: cfg.get(key, default) for name, (key, default) in _CFG.items()}
    return WavLMConfig(
        **values,
        conv_dim=widths,
        conv_kernel=kernels,
        conv_stride=strides,
        feat_extract_norm="layer" if cfg.get("extractor_mode") == "layer_norm" else "group",
        mask_time_prob=0.05,  # above zero: the mask embedding exists
    )


def convert_unilm(
    model: Mapping[str, Tensor], config: "WavLMConfig"
) -> tuple[dict[str, Tensor], list[str]]:
    """Rename the tensors of a UniLM checkpoint.

    Returns:
        Tensors under Hugging Face's names (the positional convolution still in weight norm's two
        factors), and the names that belong to no part of the encoder.
    """
    state: dict[str, Tensor] = {}
    ignored: list[str] = []
    for name, tensor in model.items():
        new = _rename(name)
        if new is None:
            ignored.append(name)
        else:
            state[new] = tensor
    if not any(name.startswith("feature_projection.projection.") for name in state):
        # UniLM has no projection between equal widths, Hugging Face always has one
        state["feature_projection.projection.weight"] = torch.eye(config.hidden_size)
        state["feature_projection.projection.bias"] = torch.zeros(config.hidden_size)
    return state, ignored


def _rename(name: str) -> str | None:
    if conv := _CONV.match(name):
        part = "conv" if conv[2] == "0" else "layer_norm"
        return f"feature_extractor.conv_layers.{conv[1]}.{part}.{conv[3]}"
    if layer := _LAYER.match(name):
        renamed = _replace(layer[2], _IN_LAYER)
        return None if renamed is None else f"encoder.layers.{layer[1]}.{renamed}"
    return _replace(name, _TOP)


def _replace(name: str, table: Mapping[str, str]) -> str | None:
    if name in table:
        return table[name]
    stem, _, last = name.rpartition(".")
    return f"{table[stem]}.{last}" if stem in table else None
