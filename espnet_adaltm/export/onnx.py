"""A recogniser as one ONNX file: waveforms in, emotions and words out.

    inputs   speech         float32 [batch, samples]   16 kHz, mono, zeros behind
             lengths        int64   [batch]            valid samples, at least 1
    outputs  probabilities  float32 [batch, labels]    in the order of ``labels.json``
             tokens         int64   [batch, frames]    best token of each frame (with a CTC head);
                                                       collapse repeats, drop 0, join the pieces
             frames         int64   [batch]            valid frames
             speaker        float32 [batch, speakers]  probabilities (MTLSER with speakers)

Any batch and length; padding changes nothing. Normalisation of the waveform is inside. Read by
`onnxruntime`; writing it needs the package `onnx`.
"""

import copy
import importlib.util
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espnet_adaltm.backbone import ops
from espnet_adaltm.backbone.encoder import EncoderOutput, SpeechEncoder
from espnet_adaltm.decoding.baselines.mtlser import MTLSystem
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import atomic_path

OPSET = 17
_LARGEST = 2**31  # bytes of one protocol buffer


class _TracedEncoder(SpeechEncoder):
    """The same numbers from operators that a trace can hold, whatever batch and length."""

    @classmethod
    def of(cls, encoder: SpeechEncoder) -> "_TracedEncoder":
        """View ``encoder`` so; its weights are shared."""
        traced = copy.copy(encoder)
        traced.__class__ = cls
        return traced

    def forward(
        self, speech: Tensor, lengths: Tensor, *, mask_time: Tensor | None = None
    ) -> EncoderOutput:
        # Zeros that make the shortest clip long enough. Always: a trace cannot ask for a length.
        speech, lengths = self.cnn(F.pad(speech, (0, self.geometry.receptive_field)), lengths)
        x = self._project(speech)
        valid = ops.valid_mask(lengths, x.shape[1])
        return EncoderOutput(self._transformer(x * valid.unsqueeze(-1), valid), lengths)

    def _position_bias(self, size: int) -> Tensor | None:
        embedding = getattr(self.body.encoder.layers[0].attention, "rel_attn_embed", None)
        if embedding is None:
            return None
        config = self.body.config
        device = embedding.weight.device
        buckets = ops.position_buckets(size, config.num_buckets, config.max_bucket_distance, device)
        # A gather: windows of a length that is only known later cannot be traced.
        at = torch.arange(size, device=device)
        bias = F.embedding(buckets[at[None, :] - at[:, None] + size - 1], embedding.weight)
        return bias.permute(2, 0, 1)

    @staticmethod
    def _weigh(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        gate: Tensor | None,
        bias: Tensor | None,
        padding: Tensor | None,
        dropout: float,
    ) -> Tensor:
        added = padding if bias is None else gate * bias + padding
        return F.scaled_dot_product_attention(query, key, value, attn_mask=added)

    def _feed_forward(self, module: nn.Module, x: Tensor) -> Tensor:
        return module.output_dense(module.intermediate_act_fn(module.intermediate_dense(x)))


class _Graph(nn.Module):
    """Encoder and heads with plain tensors for inputs and outputs."""

    def __init__(self, system: nn.Module) -> None:
        super().__init__()
        self.encoder = _TracedEncoder.of(system.encoder)
        multi_task = isinstance(system, MTLSystem)
        self.multi_task = system.head if multi_task else None
        self.emotion = None if multi_task else system.emotion_head
        self.ctc = system.head.ctc if multi_task else system.ctc_head

    def outputs(self) -> list[str]:
        """Names of what `forward` returns."""
        speaker = self.multi_task is not None and self.multi_task.speaker is not None
        words = [] if self.ctc is None else ["tokens"]
        return ["probabilities", *words, "frames", *(["speaker"] if speaker else [])]

    def forward(self, speech: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        hidden, frames = self.encoder(speech, lengths)
        speaker = None
        if self.multi_task is not None:
            said = self.multi_task(hidden, frames)
            emotion, speaker = said.emotion, said.speaker
        else:
            emotion = self.emotion(hidden, frames)
        found = [emotion.softmax(-1)]
        if self.ctc is not None:
            found.append(self.ctc(hidden[-1]).argmax(-1))
        found.append(frames)
        return tuple(found if speaker is None else [*found, speaker.softmax(-1)])


def export_onnx(system: nn.Module, path: Path) -> list[str]:
    """Write a system as ONNX.

    Args:
        system: `SpeechSystem` with an emotion head, or `MTLSystem`; on the CPU.
        path: File to write.

    Returns:
        Names of the outputs.

    Raises:
        UserError: Too large for one file (2 GiB), or the package onnx is missing.
    """
    if importlib.util.find_spec("onnx") is None:
        raise UserError("writing ONNX needs the package onnx: pip install 'espnet_adaltm[onnx]'")
    size = sum(tensor.numel() * tensor.element_size() for tensor in system.state_dict().values())
    if size >= _LARGEST:
        raise UserError(
            f"this model has {size / 2**30:.1f} GiB of weights: an ONNX file holds less than 2 GiB"
        )
    graph = _Graph(system).eval()
    names = graph.outputs()
    axes = {"speech": {0: "batch", 1: "samples"}, "lengths": {0: "batch"}}
    axes |= {name: {0: "batch"} for name in names}
    if "tokens" in names:
        axes["tokens"] = {0: "batch", 1: "frames"}
    generator = torch.Generator().manual_seed(0)
    example = torch.randn(2, 4 * graph.encoder.geometry.receptive_field, generator=generator)
    lengths = torch.tensor([example.shape[1], example.shape[1] - 7])
    with atomic_path(path) as temporary, warnings.catch_warnings(), torch.no_grad():
        # The tracer warns of every Python branch: those that are left do not depend on the input.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph,
            (example, lengths),
            str(temporary),
            input_names=["speech", "lengths"],
            output_names=names,
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,  # the other exporter takes minutes for the same graph
        )
    return names
