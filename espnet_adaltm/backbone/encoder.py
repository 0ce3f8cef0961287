"""One door to WavLM, HuBERT and wav2vec 2.0: Hugging Face's parameters, our own forward pass.

    encoder = load_encoder("microsoft/wavlm-large")          # backbone/loading.py
    hidden, lengths = encoder(speech, lengths)               # 25 tensors [B, T, 1024]

The modules, their names and their numbers are Hugging Face's; how they are computed is not: the CNN
stays channels-last, attention keeps no weights, the position bias is built once. Gradient
checkpointing is switched on as theirs is, `body.gradient_checkpointing_enable()`. Three things are
different on purpose: results do not depend on padding (group-norm front ends included), layer drop
and Hugging Face's random SpecAugment never happen, and the positional convolution holds its
effective weight instead of weight norm's two factors.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from espnet_adaltm.backbone import ops, products
from espnet_adaltm.backbone.attention import attention
from espnet_adaltm.backbone.geometry import CnnGeometry, conv_length
from espnet_adaltm.backbone.parametrized import make_plain
from espnet_adaltm.errors import UserError
from espnet_adaltm.text import some

if TYPE_CHECKING:  # importing the models takes seconds: only where one is built
    from transformers import PretrainedConfig, PreTrainedModel

MODELS: Mapping[str, str] = {
    "wavlm": "WavLMModel",
    "hubert": "HubertModel",
    "wav2vec2": "Wav2Vec2Model",
}
POSITION_WEIGHT = "encoder.pos_conv_embed.conv.weight"
_MASK = "masked_spec_embed"


class EncoderOutput(NamedTuple):
    """What an encoder returns.

    Attributes:
        hidden: L + 1 tensors ``[B, T, D]``: the input of the first transformer layer, then the
            output of each layer; the last one has passed the encoder's final layer norm in pre-norm
            models. Frames beyond ``lengths`` hold nothing meaningful.
        lengths: Valid frames, int64 ``[B]``.
    """

    hidden: list[Tensor]
    lengths: Tensor


def build_body(config: "PretrainedConfig") -> "PreTrainedModel":
    """An untrained Hugging Face model of the configuration's type.

    Raises:
        UserError: Not one of the three families, or a variant that is not supported.
    """
    if config.model_type not in MODELS:
        raise UserError(
            f"model_type {config.model_type!r} is not supported: use one of {', '.join(MODELS)}"
        )
    for name in ("add_adapter", "conv_pos_batch_norm"):
        if getattr(config, name, False):
            raise UserError(f"{config.model_type} models with {name}=true are not supported")
    import transformers

    return getattr(transformers, MODELS[config.model_type])(config)


class SpeechEncoder(nn.Module):
    """Speech to the hidden states of every transformer layer.

    Args:
        body: `WavLMModel`, `HubertModel` or `Wav2Vec2Model`; changed in place (weight norm removed,
            layer drop off). Its mode is kept: `from_pretrained` returns evaluation mode, in which
            dropout stays off until `train()` is called.
        do_normalize: Bring every clip to zero mean and unit variance, as the checkpoint's
            preprocessor says.
    """

    def __init__(self, body: "PreTrainedModel", *, do_normalize: bool = True) -> None:
        super().__init__()
        self.body = body
        self.do_normalize = do_normalize
        config = body.config
        if config.layerdrop:
            logging.warning(
                "layerdrop %g of the configuration is not used (set to 0)", config.layerdrop
            )
            config.layerdrop = 0.0
        make_plain(body.encoder.pos_conv_embed.conv)
        # used only by masked prediction; an unused trainable parameter stops data-parallel training
        self.train_mask_embedding(False)
        self.train(body.training)

    @property
    def num_layers(self) -> int:
        """Number of transformer layers, L."""
        return self.body.config.num_hidden_layers

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states, D."""
        return self.body.config.hidden_size

    @property
    def feature_size(self) -> int:
        """Width of the CNN's output, C."""
        return self.body.config.conv_dim[-1]

    @property
    def norm_first(self) -> bool:
        """True for pre-norm models, e.g. WavLM-Large."""
        return self.body.config.do_stable_layer_norm

    @property
    def geometry(self) -> CnnGeometry:
        """Kernels and strides of the CNN."""
        return CnnGeometry.of(self.body.config)

    def frame_lengths(self, lengths: Tensor) -> Tensor:
        """Frames of clips of ``lengths`` samples, at least 1 (short clips are zero padded)."""
        return self.geometry.frame_lengths(lengths)

    def normalize_waveform(self, speech: Tensor, lengths: Tensor) -> Tensor:
        """Zero mean and unit variance over each clip's valid samples, zeros after them.

        As `Wav2Vec2FeatureExtractor`: ``(x - mean) / sqrt(var + 1e-7)``. With ``do_normalize`` off
        only the padding is cleared.

        Args:
            speech: Shape ``[B, N]``.
            lengths: Valid samples, shape ``[B]``.
        """
        valid = ops.valid_mask(lengths, speech.shape[1])
        speech = speech.float() * valid
        if not self.do_normalize:
            return speech
        count = lengths.clamp(min=1).unsqueeze(1)
        centred = (speech - speech.sum(1, keepdim=True) / count) * valid
        variance = centred.square().sum(1, keepdim=True) / count
        return centred * torch.rsqrt(variance + 1e-7)

    def cnn(self, speech: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Normalise waveforms and run the convolutional front end.

        Args:
            speech: Un-normalised waveforms, shape ``[B, N]``; clips shorter than the receptive
                field are zero padded up to it.
            lengths: Valid samples, shape ``[B]``.

        Returns:
            Features ``[B, T, C]`` and their lengths in frames ``[B]``.
        """
        x = self.normalize_waveform(speech, lengths)
        field = self.geometry.receptive_field
        x = F.pad(x, (0, max(0, field - x.shape[1])))
        x = x.to(self.body.feature_extractor.conv_layers[0].conv.weight.dtype)
        lengths = lengths.clamp(min=field)
        if x.device.type == "cpu" and not (torch.is_grad_enabled() or torch.jit.is_tracing()):
            return self._convolve_apart(x, lengths)
        return self._convolve(x, lengths)

    def _convolve(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Run the CNN on normalised waveforms ``[B, N]``."""
        x = x.unsqueeze(-1)
        geometry = self.geometry
        layers = self.body.feature_extractor.conv_layers
        for layer, kernel, stride in zip(layers, geometry.kernels, geometry.strides):
            x = products.conv1d(x, layer.conv.weight, layer.conv.bias, stride=stride)
            lengths = conv_length(lengths, kernel, stride)
            norm = getattr(layer, "layer_norm", None)
            if isinstance(norm, nn.GroupNorm):
                x = ops.masked_channel_norm(x, lengths, norm.weight, norm.bias, norm.eps)
            elif norm is not None:
                x = norm(x)
            x = layer.activation(x)
        return x, lengths

    def _convolve_apart(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The same, every clip for itself: no padding, and smaller activations stay in a cache."""
        frames = self.frame_lengths(lengths)
        features = x.new_zeros(len(x), self.geometry.frames(x.shape[1]), self.feature_size)
        for row, out, samples, size in zip(x, features, lengths.tolist(), frames.tolist()):
            clip = row[None, :samples]
            out[:size] = self._convolve(clip, lengths.new_tensor([samples]))[0][0]
        return features, frames

    def forward(
        self, speech: Tensor, lengths: Tensor, *, mask_time: Tensor | None = None
    ) -> EncoderOutput:
        """Encode a batch.

        Args:
            speech: Raw waveforms ``[B, N]`` (un-normalised), or the CNN's output ``[B, T, C]``.
            lengths: Valid samples or valid frames, int64 ``[B]``, at least 1.
            mask_time: Bool ``[B, T]`` from `span_mask`: frames whose projected features are
                replaced by the mask embedding.
        """
        if speech.ndim == 2:
            speech, lengths = self.cnn(speech, lengths)
        x = self._project(speech)
        if mask_time is not None:
            x = torch.where(mask_time.unsqueeze(-1), self._mask_embedding().to(x.dtype), x)
        valid = ops.valid_mask(lengths, x.shape[1])
        padded = not bool(valid.all())
        if padded:
            x = x * valid.unsqueeze(-1)
        return EncoderOutput(self._transformer(x, valid if padded else None), lengths)

    def _project(self, features: Tensor) -> Tensor:
        projection = self.body.feature_projection
        norm = getattr(projection, "layer_norm", None)
        x = features.to(projection.projection.weight.dtype)
        x = _apply(projection.projection, x if norm is None else norm(x))
        return ops.dropout(x, projection.dropout.p, self.training)

    def _transformer(self, x: Tensor, valid: Tensor | None) -> list[Tensor]:
        encoder = self.body.encoder
        position = encoder.pos_conv_embed
        conv = position.conv
        x = x + position.activation(ops.positional_conv(x, conv.weight, conv.bias, conv.groups))
        if not self.norm_first:
            x = encoder.layer_norm(x)
        x = ops.dropout(x, encoder.dropout.p, self.training)
        hidden = [x]
        # one bias for all layers: WavLM keeps its embedding in the first
        bias = self._position_bias(x.shape[1])
        padding = None
        if valid is not None:
            padding = torch.zeros_like(valid, dtype=x.dtype).masked_fill(~valid, float("-inf"))
            padding = padding[:, None, None, :]
        run: Callable[..., Tensor] = self._layer
        if self.training and torch.is_grad_enabled() and encoder.gradient_checkpointing:
            run = partial(checkpoint, self._layer, use_reentrant=False)
        for layer in encoder.layers:
            x = run(layer, x, bias, padding)
            hidden.append(x)
        if self.norm_first:
            hidden[-1] = encoder.layer_norm(x)
        return hidden

    def _position_bias(self, size: int) -> Tensor | None:
        embedding = getattr(self.body.encoder.layers[0].attention, "rel_attn_embed", None)
        if embedding is None:
            return None
        config = self.body.config
        buckets = ops.position_buckets(
            size, config.num_buckets, config.max_bucket_distance, embedding.weight.device
        )
        return ops.relative_bias(embedding.weight, buckets)

    def _layer(
        self, layer: nn.Module, x: Tensor, bias: Tensor | None, padding: Tensor | None
    ) -> Tensor:
        p = layer.dropout.p
        if self.norm_first:
            x = x + ops.dropout(
                self._attend(layer.attention, layer.layer_norm(x), bias, padding), p, self.training
            )
            x = x + self._feed_forward(layer.feed_forward, layer.final_layer_norm(x))
            adapter = getattr(layer, "adapter_layer", None)
            return x if adapter is None else x + adapter(x)
        x = x + ops.dropout(self._attend(layer.attention, x, bias, padding), p, self.training)
        x = layer.layer_norm(x)
        return layer.final_layer_norm(x + self._feed_forward(layer.feed_forward, x))

    def _attend(
        self, module: nn.Module, x: Tensor, bias: Tensor | None, padding: Tensor | None
    ) -> Tensor:
        batch, size, width = x.shape
        heads = module.num_heads
        query, key, value = (
            _apply(projection, x).view(batch, size, heads, -1).transpose(1, 2)
            for projection in (module.q_proj, module.k_proj, module.v_proj)
        )
        gate = None
        if bias is not None:
            linear = module.gru_rel_pos_linear
            gate = ops.position_gate(x, linear.weight, linear.bias, module.gru_rel_pos_const, heads)
        p = module.dropout if self.training else 0.0
        out = self._weigh(query, key, value, gate, bias, padding, p)
        return _apply(module.out_proj, out.transpose(1, 2).reshape(batch, size, width))

    # What a trace replaces.
    _weigh = staticmethod(attention)

    def _feed_forward(self, module: nn.Module, x: Tensor) -> Tensor:
        x = _apply(module.intermediate_dense, x)
        out, p = module.output_dense, module.intermediate_dropout.p
        if self.body.config.hidden_act == "gelu" and not (self.training and p):
            x = products.gelu_linear(x, out.weight, out.bias)
        else:
            x = _apply(out, ops.dropout(module.intermediate_act_fn(x), p, self.training))
        return ops.dropout(x, module.output_dropout.p, self.training)

    def _mask_embedding(self) -> Tensor:
        embedding = getattr(self.body, _MASK, None)
        if embedding is None:
            raise UserError(
                "this encoder has no mask embedding (mask_time_prob is 0 in its config.json): "
                "masking is not possible with it"
            )
        return embedding

    def train_mask_embedding(self, train: bool = True) -> None:
        """Let the mask embedding learn (for masked prediction); it is frozen otherwise."""
        embedding = getattr(self.body, _MASK, None)
        if embedding is not None:
            embedding.requires_grad_(train)

    def freeze_cnn(self) -> None:
        """Stop gradients to the convolutional front end, as in the usual fine-tuning recipes."""
        self.body.feature_extractor.requires_grad_(False)

    def named_encoder_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters under Hugging Face's names without a prefix."""
        return self.body.named_parameters()

    def encoder_state(self) -> dict[str, Tensor]:
        """Tensors by Hugging Face's names, the positional convolution by its effective weight.

        They share memory with the parameters: clone what has to outlive a training step.
        """
        return {name: tensor.detach() for name, tensor in self.body.state_dict().items()}

    def load_encoder_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over the tensors of `encoder_state`, every one of them.

        Raises:
            UserError: Missing, unexpected or differently shaped tensors, by name.
        """
        check_state(self.encoder_state(), state)
        self.body.load_state_dict(dict(state), strict=True)


def _apply(layer: nn.Module, x: Tensor) -> Tensor:
    """A linear layer; others, such as one with an adapter, are left to themselves."""
    plain = type(layer) is nn.Linear and not (layer._forward_hooks or layer._forward_pre_hooks)
    return products.linear(x, layer.weight, layer.bias) if plain else layer(x)


def check_state(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Compare names and shapes of two sets of tensors.

    Raises:
        UserError: They differ; the message names what is missing, unexpected or of another shape.
    """
    shapes = [
        f"{name} (expected {tuple(expected[name].shape)}, found {tuple(found[name].shape)})"
        for name in expected
        if name in found and expected[name].shape != found[name].shape
    ]
    problems = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "of another shape": shapes,
    }
    told = [f"{kind}: {some(names)}" for kind, names in problems.items() if names]
    if told:
        raise UserError(
            f"these are not the weights of this encoder; {'; '.join(told)}. Use the weights and "
            "the config.json of the same model"
        )


def span_mask(
    lengths: Tensor, prob: float, length: int, generator: torch.Generator | None = None
) -> Tensor:
    """Choose spans of frames to mask, as HuBERT does: at least one per clip, overlaps allowed.

    Args:
        lengths: Valid frames of each clip, shape ``[B]``.
        prob: Probability of a valid frame to start a span (0.065 and spans of 10: about half).
        length: Frames of a span; spans are cut off at the clip's end.
        generator: Source of randomness on the CPU; torch's global one if None.

    Returns:
        Bool ``[B, max(lengths)]`` on the device of ``lengths``.
    """
    frames = lengths.cpu()
    size = int(frames.max())
    valid = ops.valid_mask(frames, size)
    starts = (torch.rand(len(frames), size, generator=generator) < prob) & valid
    # a clip without a masked frame has no loss: give it one span, inside the clip if it fits
    room = (frames - length + 1).clamp(min=1)
    fallback = (torch.rand(len(frames), generator=generator) * room).long().clamp(max=size - 1)
    rows = ~starts.any(1)
    starts[rows, fallback[rows]] = True
    padded = F.pad(starts.float(), (length - 1, 0)).unsqueeze(1)
    spans = F.max_pool1d(padded, kernel_size=length, stride=1).squeeze(1).bool()
    return (spans & valid).to(lengths.device)
