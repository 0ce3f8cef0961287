"""Passes of one encoder implementation, timed in a process of its own.

    python -m espnet_adaltm.benchmark.encoder_steps '{"program": "ours", "size": "small", ...}'

prints a line of JSON. `encoder` starts these processes.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from espnet_adaltm.backbone.encoder import SpeechEncoder, build_body
from espnet_adaltm.benchmark.checkpoints import wavlm_config
from espnet_adaltm.benchmark.steps import Memory, read_out
from espnet_adaltm.files import write_json

if TYPE_CHECKING:
    from transformers import WavLMConfig, WavLMModel

MODES = {
    "forward": "forward, without gradients",
    "train": "forward and backward, all weights",
    "frozen": "forward and backward, all but the CNN",
}
RATE = 16_000
_RANDOM = (
    *("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout"),
    *("layerdrop", "mask_time_prob", "mask_feature_prob"),
)
Encode = Callable[[], list[Tensor]]


@dataclass(frozen=True)
class EncoderTask:
    """What one process does.

    Attributes:
        program: A key of `PROGRAMS`.
        mode: A key of `MODES`.
        size: Of the encoder (`checkpoints.SIZES`).
        batch: Clips.
        seconds: Of each clip.
        steps: Timed passes after one to warm up.
        threads: For PyTorch.
        precision: ``float32`` or ``bfloat16`` (autocast).
    """

    program: str
    mode: str = "forward"
    size: str = "small"
    batch: int = 4
    seconds: float = 10.0
    steps: int = 2
    threads: int = 1
    precision: str = "float32"

    def speech(self) -> tuple[Tensor, Tensor]:
        """Noise ``[B, N]``, brought to zero mean and unit variance, and lengths ``[B]``."""
        samples = int(self.seconds * RATE)
        generator = torch.Generator().manual_seed(1)
        speech = torch.randn(self.batch, samples, generator=generator)
        speech = (speech - speech.mean(1, keepdim=True)) / speech.std(1, keepdim=True)
        return speech, torch.full((self.batch,), samples)


class Unavailable(Exception):
    """A reference that is not installed."""


def config_of(size: str) -> "WavLMConfig":
    """Without any randomness, so that all programs compute the same in training mode too."""
    config = wavlm_config(size)
    for name in _RANDOM:
        setattr(config, name, 0.0)
    return config


def build(size: str) -> "WavLMModel":
    """Hugging Face's model with the same random weights in every process."""
    torch.manual_seed(0)
    return build_body(config_of(size))


def _ours(task: EncoderTask, model: SpeechEncoder) -> Encode:
    speech, lengths = task.speech()
    return lambda: model(speech, lengths).hidden


def build_ours(task: EncoderTask) -> tuple[nn.Module, Encode]:
    """This package's encoder."""
    model = SpeechEncoder(build(task.size))
    return model, _ours(task, model)


def build_ours_compiled(task: EncoderTask) -> tuple[nn.Module, Encode]:
    """The same through `torch.compile`."""
    model = SpeechEncoder(build(task.size))
    return model, _ours(task, torch.compile(model))


def build_ours_checkpointed(task: EncoderTask) -> tuple[nn.Module, Encode]:
    """The same with gradient checkpointing."""
    model = SpeechEncoder(build(task.size))
    model.body.gradient_checkpointing_enable()
    return model, _ours(task, model)


def build_hugging_face(
    task: EncoderTask, *, checkpointing: bool = False
) -> tuple[nn.Module, Encode]:
    """`transformers.WavLMModel` on normalised waveforms, without a mask: all clips are as long."""
    model = build(task.size)
    if checkpointing:
        model.gradient_checkpointing_enable()
    speech, _ = task.speech()
    return model, lambda: list(model(speech, output_hidden_states=True).hidden_states)


def build_espnet(task: EncoderTask) -> tuple[nn.Module, Encode]:
    """ESPnet's own frontend for models of Hugging Face; it gives the last layer only."""
    try:
        from espnet2.asr.frontend.huggingface import HuggingFaceFrontend
    except ImportError as error:
        raise Unavailable(str(error)) from error
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config_of(task.size).save_pretrained(folder)
        extractor = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": RATE}
        write_json(folder / "preprocessor_config.json", {**extractor, "do_normalize": True})
        torch.manual_seed(0)
        model = HuggingFaceFrontend(str(folder), load_pretrained=False)
    model.pretrained_params = None  # a copy of all weights, to go back to
    speech, lengths = task.speech()
    return model, lambda: [speech, model(speech, lengths)[0]]


def build_torchaudio(task: EncoderTask) -> tuple[nn.Module, Encode]:
    """torchaudio's WavLM, with Hugging Face's weights."""
    try:
        from torchaudio.models.wav2vec2.utils import import_huggingface_model
    except ImportError as error:
        raise Unavailable(str(error)) from error
    model = import_huggingface_model(build(task.size))
    speech, _ = task.speech()
    return model, lambda: [speech, *model.extract_features(speech)[0]]


def build_s3prl(task: EncoderTask) -> tuple[nn.Module, Encode]:
    """s3prl's copy of UniLM's WavLM, which ESPnet's S3prlFrontend runs; its own random weights."""
    try:
        from s3prl.upstream.wavlm.WavLM import WavLM, WavLMConfig
    except ImportError as error:
        raise Unavailable(str(error)) from error
    config = config_of(task.size)
    layers = zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True)
    same = {
        "extractor_mode": "layer_norm" if config.feat_extract_norm == "layer" else "default",
        "encoder_layers": config.num_hidden_layers,
        "encoder_embed_dim": config.hidden_size,
        "encoder_ffn_embed_dim": config.intermediate_size,
        "encoder_attention_heads": config.num_attention_heads,
        "layer_norm_first": config.do_stable_layer_norm,
        "conv_feature_layers": str(list(layers)),
        "feature_grad_mult": 1.0,
        "conv_pos": config.num_conv_pos_embeddings,
        "conv_pos_groups": config.num_conv_pos_embedding_groups,
        "relative_position_embedding": True,
        "num_buckets": config.num_buckets,
        "max_distance": config.max_bucket_distance,
        "gru_rel_pos": True,
        **dict.fromkeys(("dropout", "attention_dropout", "dropout_input"), 0.0),
        "encoder_layerdrop": 0.0,
    }
    torch.manual_seed(0)
    model = WavLM(WavLMConfig(same))
    speech, _ = task.speech()
    options = {"output_layer": config.num_hidden_layers, "ret_layer_results": True}

    def encode() -> list[Tensor]:
        (_, layers), _ = model.extract_features(speech, **options)
        return [layer.transpose(0, 1) for layer, _ in layers]

    return model, encode


PROGRAMS: dict[str, Callable[[EncoderTask], tuple[nn.Module, Encode]]] = {
    "ours": build_ours,
    "hugging_face": build_hugging_face,
    "espnet": build_espnet,
    "torchaudio": build_torchaudio,
    "s3prl": build_s3prl,
    "ours_checkpointed": build_ours_checkpointed,
    "hugging_face_checkpointed": partial(build_hugging_face, checkpointing=True),
    "ours_compiled": build_ours_compiled,
}


def freeze_cnn(model: nn.Module) -> None:
    """Stop gradients to the convolutional front end, whatever it is called."""
    found = [
        part for name, part in model.named_modules() if name.split(".")[-1] == "feature_extractor"
    ]
    for part in found:
        part.requires_grad_(False)
        if hasattr(part, "_requires_grad"):  # Hugging Face's own note of it
            part._requires_grad = False


def run_task(task: EncoderTask) -> dict[str, Any]:
    """Prepare, warm up and time.

    Returns:
        The task's attributes, ``step_seconds``, ``step_cpu_seconds`` (of all threads), ``peak_mb``
        (the most that a pass adds to the weights and the batch), ``whole_mb`` (peak of the
        process), ``parameters``; or ``unavailable``: why.
    """
    torch.set_num_threads(task.threads)
    try:
        model, encode = PROGRAMS[task.program](task)
    except Unavailable as error:
        return {**asdict(task), "unavailable": str(error)}
    model.train(task.mode != "forward")
    if task.mode == "frozen":
        freeze_cnn(model)
    memory = Memory("cpu")
    base = memory.settle()
    memory.forget_peak()
    seconds, cpu_seconds = [], []
    with torch.autocast("cpu", torch.bfloat16, enabled=task.precision == "bfloat16"):
        for _ in range(1 + task.steps):
            model.zero_grad()
            start, cpu_start = time.perf_counter(), time.process_time()
            with torch.set_grad_enabled(task.mode != "forward"):
                out = read_out(encode())
            if task.mode != "forward":
                out.backward()
            seconds.append(time.perf_counter() - start)
            cpu_seconds.append(time.process_time() - cpu_start)
            del out
    return {
        **asdict(task),
        "step_seconds": seconds[1:],
        "step_cpu_seconds": cpu_seconds[1:],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "peak_mb": (memory.peak() - base) / 2**20,
        "whole_mb": memory.peak() / 2**20,
    }


def difference(task: EncoderTask) -> dict[str, float]:
    """Largest differences of ours to Hugging Face's on the same weights.

    Returns:
        ``hidden``: over all hidden states, of clips of one length; ``hidden_padded``: over the
        valid frames, with clips of other lengths; ``scale``: largest value of a hidden state;
        ``gradient``: relative, of all weights together.
    """
    torch.set_num_threads(task.threads)
    theirs = build(task.size).eval()
    theirs.config.tie_last_hidden_states = True  # the last one after the final norm, as ours
    ours = SpeechEncoder(build(task.size)).eval()
    speech, lengths = task.speech()
    shorter = torch.tensor(
        [size - size * row // (2 * task.batch) for row, size in enumerate(lengths)]
    )
    found = {}
    with torch.no_grad():
        for name, sizes in (("hidden", lengths), ("hidden_padded", shorter)):
            mask = torch.arange(speech.shape[1]) < sizes[:, None]
            inputs = ours.normalize_waveform(speech, sizes)
            answer = theirs(inputs, attention_mask=mask.long(), output_hidden_states=True)
            mine = ours(speech, sizes)
            valid = torch.arange(mine.hidden[0].shape[1]) < mine.lengths[:, None]
            pairs = list(zip(mine.hidden, answer.hidden_states, strict=True))
            found[name] = max(float((a - b)[valid].abs().max()) for a, b in pairs)
            found["scale"] = max(float(b[valid].abs().max()) for _, b in pairs)
    found["gradient"] = _gradient_difference(ours, theirs, speech, lengths)
    return found


def _gradient_difference(
    ours: SpeechEncoder, theirs: nn.Module, speech: Tensor, lengths: Tensor
) -> float:
    read_out(ours(speech, lengths).hidden).backward()
    inputs = ours.normalize_waveform(speech, lengths)
    states = theirs(inputs, output_hidden_states=True).hidden_states
    read_out(list(states)).backward()
    mine = dict(ours.named_encoder_parameters())
    error = total = 0.0
    for name, parameter in theirs.named_parameters():
        if name in mine and parameter.grad is not None:  # not the two factors of a weight norm
            error += float((mine[name].grad - parameter.grad).square().sum())
            total += float(parameter.grad.square().sum())
    return (error / total) ** 0.5


if __name__ == "__main__":
    given = EncoderTask(**json.loads(sys.argv[1]))
    result = difference(given) if given.program == "difference" else run_task(given)
    sys.stdout.write(json.dumps(result) + "\n")
