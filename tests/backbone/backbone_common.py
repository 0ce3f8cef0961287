"""Small random encoders of all three families, with every parameter away from its initial value."""

import torch
from transformers import (
    HubertConfig,
    PretrainedConfig,
    PreTrainedModel,
    Wav2Vec2Config,
    WavLMConfig,
)

from espnet_adaltm.backbone.encoder import SpeechEncoder, build_body

CONFIGS = {"wavlm": WavLMConfig, "hubert": HubertConfig, "wav2vec2": Wav2Vec2Config}
FAMILIES = tuple(CONFIGS)
SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": (8, 12, 16),
    "conv_kernel": (10, 3, 2),
    "conv_stride": (5, 4, 2),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "layerdrop": 0.0,
}
RECEPTIVE_FIELD = 10 + 5 * 2 + 20  # of that CNN: 40 samples, hop 40


def small_config(family: str, *, large: bool, **overrides: object) -> PretrainedConfig:
    """Pre-norm with a layer-norm front end (as Large), or post-norm with a group norm (as Base)."""
    style = {"do_stable_layer_norm": large, "feat_extract_norm": "layer" if large else "group"}
    extra = {"num_buckets": 20, "max_bucket_distance": 30} if family == "wavlm" else {}
    return CONFIGS[family](**{**SHAPE, **style, **extra, **overrides})


def small_body(config: PretrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A Hugging Face model in evaluation mode, untouched by our code."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = build_body(config).eval()
        with torch.no_grad():
            for parameter in body.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return body


def small_encoder(family: str = "wavlm", *, large: bool = True, seed: int = 0) -> SpeechEncoder:
    """Our encoder in evaluation mode."""
    return SpeechEncoder(small_body(small_config(family, large=large), seed)).eval()


def clips(*lengths: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A padded batch of noise with an offset and a scale, and its lengths in samples."""
    generator = torch.Generator().manual_seed(seed)
    speech = torch.zeros(len(lengths), max(lengths))
    for row, length in zip(speech, lengths):
        row[:length] = torch.randn(length, generator=generator) * 0.1 + 0.05
    return speech, torch.tensor(lengths)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest absolute difference of two tensors of one shape."""
    assert a.shape == b.shape
    return float((a - b).detach().abs().max())
