"""A WavLM small enough to be pre-trained on a laptop, with every mechanism of the large one."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from espnet_adaltm.backbone.encoder import SpeechEncoder, build_body
from espnet_adaltm.config import check_keys, load_yaml
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import Pathlike

if TYPE_CHECKING:
    from transformers import PretrainedConfig, WavLMConfig

# Pre-layer-norm and a layer-norm front end as in WavLM-Large. The CNN widens with depth because its
# first layers run at thousands of frames a second and would take most of the time.
TINY: Mapping[str, Any] = {
    "num_hidden_layers": 4,
    "hidden_size": 128,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "conv_dim": (16, 32, 48, 64, 96, 128, 128),
    "conv_kernel": (10, 3, 3, 3, 3, 2, 2),
    "conv_stride": (5, 2, 2, 2, 2, 2, 2),
    "num_conv_pos_embeddings": 32,
    "num_conv_pos_embedding_groups": 4,
    "num_buckets": 80,
    "max_bucket_distance": 200,
    "hidden_dropout": 0.1,
    "attention_dropout": 0.1,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "do_stable_layer_norm": True,
    "feat_extract_norm": "layer",
    "conv_bias": False,
    "initializer_range": 0.02,
    "layerdrop": 0.0,
}


def tiny_config(**overrides: Any) -> "WavLMConfig":
    """Configuration of the small encoder.

    Args:
        overrides: Replacements for the entries of `TINY`, by Hugging Face's names.

    Raises:
        UserError: An unknown name, or values that do not fit together.
    """
    check_keys(overrides, TINY, "encoder configuration")
    values = {**TINY, **overrides}
    for name in ("conv_dim", "conv_kernel", "conv_stride"):
        values[name] = tuple(values[name])
    _check(values)
    from transformers import WavLMConfig

    # above zero only so that the mask embedding exists: masking is always explicit here
    return WavLMConfig(**values, mask_time_prob=0.05)


def read_config(path: Pathlike | None) -> "WavLMConfig":
    """Configuration from the ``encoder_conf`` entry of a pre-training YAML (train_base.yaml).

    Args:
        path: The file; without one, or without that entry, the defaults.

    Raises:
        UserError: As `tiny_config`, or entries of the encoder outside ``encoder_conf``.
    """
    values = load_yaml(path) if path is not None else {}
    misplaced = [name for name in values if name in TINY]
    if misplaced:
        raise UserError(f"{path}: put {', '.join(misplaced)} below encoder_conf:")
    return tiny_config(**(values.get("encoder_conf") or {}))


def _check(values: Mapping[str, Any]) -> None:
    layers = {name: len(values[name]) for name in ("conv_dim", "conv_kernel", "conv_stride")}
    if len(set(layers.values())) != 1:
        raise UserError(f"encoder configuration: one value per CNN layer is needed, found {layers}")
    hidden = values["hidden_size"]
    for name in ("num_attention_heads", "num_conv_pos_embedding_groups"):
        if hidden % values[name]:
            raise UserError(
                f"encoder configuration: hidden_size {hidden} is not a multiple of {name} "
                f"{values[name]}: change one of them"
            )


def random_encoder(config: "PretrainedConfig", seed: int) -> SpeechEncoder:
    """An untrained encoder; the same seed gives the same weights whatever was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SpeechEncoder(build_body(config)).eval()
