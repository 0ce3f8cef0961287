"""A small base encoder, experts around it, and a batch."""

import copy

import torch

from espnet_adaltm.backbone.encoder import SpeechEncoder
from espnet_adaltm.backbone.tiny import random_encoder, tiny_config
from espnet_adaltm.merging.task_vector import TaskVector

LAYERS = 2
CNN = "feature_extractor."


def base_encoder() -> SpeechEncoder:
    config = tiny_config(
        num_hidden_layers=LAYERS,
        hidden_size=16,
        num_attention_heads=2,
        intermediate_size=24,
        conv_dim=(8, 8, 12),
        conv_kernel=(10, 3, 2),
        conv_stride=(5, 4, 2),
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        num_buckets=20,
        max_bucket_distance=30,
    )
    encoder = random_encoder(config, 0)
    with torch.no_grad():  # biases and norms away from their constants, attention away from uniform
        for parameter in encoder.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=seeded(1)))
    return encoder


def any_precision(encoder: SpeechEncoder) -> SpeechEncoder:
    """Skip waveform normalisation, which is float32 only, so that the rest can run in float64."""
    encoder.normalize_waveform = _as_weights
    return encoder


def _as_weights(speech: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    return speech


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moved(base: SpeechEncoder, seed: int, *, freeze_cnn: bool = False) -> SpeechEncoder:
    """A copy of ``base`` whose parameters took a random step each."""
    expert = copy.deepcopy(base)
    generator = seeded(seed)
    with torch.no_grad():
        for name, parameter in expert.named_encoder_parameters():
            step = 0.1 * torch.randn(parameter.shape, generator=generator)
            if not (freeze_cnn and name.startswith(CNN)):
                parameter.add_(step)
    return expert


def vector(base: SpeechEncoder, expert: SpeechEncoder) -> TaskVector:
    return TaskVector.from_checkpoints(base.encoder_state(), expert.encoder_state())


def vectors(base: SpeechEncoder, **options: bool) -> dict[str, TaskVector]:
    experts = {"asr": 11, "ser": 12}
    return {task: vector(base, moved(base, seed, **options)) for task, seed in experts.items()}


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Two clips of noise [2, 600], the second shorter."""
    speech = torch.randn(2, 600, generator=seeded(2))
    speech[1, 400:] = 0
    return speech, torch.tensor([600, 400])


def readout(output: object) -> torch.Tensor:
    """A scalar that depends on every valid frame of every layer."""
    total = 0.0
    for depth, hidden in enumerate(output.hidden):
        for row, length in zip(hidden, output.lengths):
            valid = row[:length]
            total = total + (valid.sin() * (1 + depth)).sum() + valid.square().mean()
    return total
