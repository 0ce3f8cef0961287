"""Encoders of real sizes with random weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from espnet_adaltm.files import write_json
from espnet_adaltm.merging.tensor_file import Spec, TensorWriter

if TYPE_CHECKING:
    from transformers import WavLMConfig

# What differs from transformers' defaults, which are WavLM-Base's; small is for tests.
SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "hidden_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 192,
        "conv_dim": (32, 32, 32, 32, 32, 32, 48),
        "num_conv_pos_embeddings": 32,
        "num_conv_pos_embedding_groups": 4,
        "do_stable_layer_norm": True,
        "feat_extract_norm": "layer",
    },
    "base": {},
    "large": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "do_stable_layer_norm": True,
        "feat_extract_norm": "layer",
    },
}
_RMS = 0.02
_STEP = 0.01  # what fine-tuning adds, relative to the weights


def wavlm_config(size: str) -> "WavLMConfig":
    """Configuration of a WavLM: ``small`` (tests), ``base`` or ``large`` (the published sizes)."""
    from transformers import WavLMConfig

    return WavLMConfig(**SIZES[size])


def write_encoder(family: str, size: str, folder: Path, seed: int = 0) -> None:
    """Write an untrained encoder as a recipe's base folder.

    Args:
        family: ``wavlm`` or ``wav2vec2``.
        size: A key of `SIZES`.
        folder: To make, with ``base.json``.
        seed: Of the weights.
    """
    from transformers import Wav2Vec2Config

    from espnet_adaltm.backbone.encoder import SpeechEncoder, build_body
    from espnet_adaltm.backbone.loading import save_encoder, write_base_info

    configs = {"wavlm": wavlm_config, "wav2vec2": lambda size: Wav2Vec2Config(**SIZES[size])}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        save_encoder(SpeechEncoder(build_body(configs[family](size))), folder)
    write_base_info(folder, "random", f"{family} {size}", seed=seed)


def write_checkpoints(size: str, base: Path, experts: Sequence[Path], seed: int = 0) -> int:
    """Write a random base and experts around it, as `transformers` saves them.

    Args:
        size: A key of `SIZES`.
        base: Folder to make.
        experts: Folders to make, one for each expert.
        seed: Of all of them.

    Returns:
        Number of parameters.
    """
    from transformers import WavLMModel

    config = wavlm_config(size)
    with torch.device("meta"):
        state = WavLMModel(config).state_dict()
    specs = {name: Spec.of(tensor) for name, tensor in state.items()}
    described = {**config.to_diff_dict(), "architectures": ["WavLMModel"]}
    writers = []
    for folder in (base, *experts):
        folder.mkdir(parents=True)
        write_json(folder / "config.json", described)
        writers.append(TensorWriter(folder / "model.safetensors", specs, {"format": "pt"}))
    generator = torch.Generator().manual_seed(seed)
    for name, spec in specs.items():
        weight = _RMS * torch.randn(spec.shape, generator=generator)
        for at, writer in enumerate(writers):
            step = _STEP * _RMS * torch.randn(spec.shape, generator=generator)
            writer.write(name, weight + step if at else weight)
    for writer in writers:
        writer.__exit__(None, None, None)
    return sum(spec.size for spec in specs.values())
