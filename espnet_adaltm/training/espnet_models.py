"""Encoder + head + loss in the form that ESPnet's trainer runs.

``forward(**batch)`` returns ``(loss, stats, weight)``. Statistics that ESPnet averages over batches
are the loss and, while training, an accuracy; in evaluation the model feeds ``metric``, whose
counts the trainer adds up over the whole set.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from espnet2.torch_utils.device_funcs import force_gatherable
from espnet2.train.abs_espnet_model import AbsESPnetModel
from torch import Tensor, nn

from espnet_adaltm.backbone.encoder import EncoderOutput, SpeechEncoder, span_mask
from espnet_adaltm.errors import UserError
from espnet_adaltm.models.ctc import CTCHead
from espnet_adaltm.models.emotion import EmotionHead
from espnet_adaltm.models.masked_prediction import MaskedPredictionHead
from espnet_adaltm.training.metrics import (
    ClassificationMetric,
    CountMetric,
    TranscriptMetric,
    UnitMetric,
)

Result = tuple[Tensor, dict[str, Tensor], Tensor]


@dataclass(frozen=True)
class Augmentation:
    """Noise on waveforms and masked spans of frames, in training only.

    Attributes:
        mask_prob: Probability of a frame to start a masked span; 0 turns masking off.
        mask_length: Frames per span.
        noise_prob: Probability of an utterance to get white noise (waveforms only).
        noise_snr: Least and greatest signal-to-noise ratio, dB.
    """

    mask_prob: float = 0.0
    mask_length: int = 10
    noise_prob: float = 0.0
    noise_snr: tuple[float, float] = (10.0, 30.0)


def add_noise(speech: Tensor, lengths: Tensor, probability: float, snr: Sequence[float]) -> Tensor:
    """Add white noise to some of the waveforms.

    Args:
        speech: [B, N] samples, zero beyond ``lengths``.
        lengths: [B] samples.
        probability: Of an utterance to be changed.
        snr: Least and greatest signal-to-noise ratio, dB; uniform between.
    """
    batch, size = speech.shape
    ratio = torch.empty(batch, 1, device=speech.device).uniform_(*snr)
    chosen = torch.rand(batch, 1, device=speech.device) < probability
    inside = torch.arange(size, device=speech.device) < lengths[:, None]
    power = speech.square().sum(1, keepdim=True) / lengths[:, None].clamp(min=1)
    scale = (power / 10 ** (ratio / 10)).sqrt() * chosen
    return speech + torch.randn_like(speech) * scale * inside


class AdaltmModel(AbsESPnetModel):
    """What the models share.

    Args:
        encoder: Parameters appear under ``encoder.``.
        augmentation: What to do to the input while training.
    """

    metric: CountMetric

    def __init__(self, encoder: nn.Module, augmentation: Augmentation | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.augmentation = augmentation or Augmentation()

    def encode(self, speech: Tensor, lengths: Tensor) -> EncoderOutput:
        """Run the encoder on waveforms [B, N] or features [B, T, C], augmented in training."""
        if not self.training:
            return self.encoder(speech, lengths)
        setting = self.augmentation
        if setting.noise_prob > 0 and speech.ndim == 2:
            speech = add_noise(speech, lengths, setting.noise_prob, setting.noise_snr)
        if setting.mask_prob == 0:
            return self.encoder(speech, lengths)
        frames = self.frame_lengths(speech, lengths)
        mask = span_mask(frames, setting.mask_prob, setting.mask_length)
        return self.encoder(speech, lengths, mask_time=mask)

    def frame_lengths(self, speech: Tensor, lengths: Tensor) -> Tensor:
        """[B] frames of the input, whichever form it has."""
        return lengths if speech.ndim == 3 else self.encoder.frame_lengths(lengths)

    def collect_feats(self, **batch: Tensor) -> dict[str, Tensor]:
        """ESPnet's statistics pass: the input as it is (shapes come from the dump folder)."""
        return {"feats": batch["speech"], "feats_lengths": batch["speech_lengths"]}

    def result(self, loss: Tensor, stats: Mapping[str, Tensor], weight: int | Tensor) -> Result:
        """Pack what ESPnet's trainer wants: shapes [1], on the loss's device."""
        weight = torch.as_tensor(weight, device=loss.device, dtype=torch.float32)
        stats = {"loss": loss.detach(), **stats}
        return force_gatherable((loss, dict(stats), weight), loss.device)


class EmotionModel(AdaltmModel):
    """Encoder + emotion head: the SER expert; merges (`merge_model`) build on it.

    Args:
        encoder: A `SpeechEncoder` or anything that is called like one.
        head: Emotion head with C outputs.
        loss: (logits [B, C], targets [B, C]) to [B].
        num_classes: C.
        augmentation: Input changes while training.
    """

    def __init__(
        self,
        encoder: nn.Module,
        head: EmotionHead,
        loss: Callable[[Tensor, Tensor], Tensor],
        num_classes: int,
        augmentation: Augmentation | None = None,
    ) -> None:
        super().__init__(encoder, augmentation)
        self.head = head
        self.loss = loss
        self.metric = ClassificationMetric(num_classes)

    def forward(self, speech: Tensor, speech_lengths: Tensor, emotion: Tensor, **_: Any) -> Result:
        """Loss of a batch; ``emotion`` is a distribution [B, C]."""
        output = self.encode(speech, speech_lengths)
        logits = self.head(output.hidden, output.lengths)
        loss = self.loss(logits, emotion).mean()
        predicted, reference = logits.argmax(-1), emotion.argmax(-1)
        stats = {}
        if self.training:
            stats["acc"] = (predicted == reference).float().mean()
        else:
            self.metric.update(predicted, reference)
        return self.result(loss, stats, len(speech))


class CTCModel(AdaltmModel):
    """Encoder + CTC head: the ASR expert.

    Args:
        encoder: The speech encoder.
        head: CTC head over its last layer.
        decode: Token ids to text.
        augmentation: Input changes while training.
    """

    def __init__(
        self,
        encoder: SpeechEncoder,
        head: CTCHead,
        decode: Callable[[Sequence[int]], str],
        augmentation: Augmentation | None = None,
    ) -> None:
        super().__init__(encoder, augmentation)
        self.head = head
        self.decode = decode
        self.metric = TranscriptMetric()

    def forward(
        self, speech: Tensor, speech_lengths: Tensor, text: Tensor, text_lengths: Tensor, **_: Any
    ) -> Result:
        """Loss of a batch (nats per utterance); ``text`` holds token ids [B, U], padded with -1."""
        output = self.encode(speech, speech_lengths)
        text = text.clamp(min=0)
        hidden = output.hidden[-1]
        loss = self.head.loss(hidden, output.lengths, text, text_lengths).mean()
        if not self.training:
            guesses = self.head.greedy(self.head(hidden), output.lengths)
            truths = [row[:n].tolist() for row, n in zip(text.cpu(), text_lengths.tolist())]
            self.metric.update(
                [self.decode(ids) for ids in guesses], [self.decode(ids) for ids in truths]
            )
        return self.result(loss, {}, len(speech))


def check_units(frames: Tensor, units: Tensor, utt_id: Sequence[str]) -> None:
    """Refuse units of another frame rate: cut to the same length they would still train something.

    Args:
        frames: [B] frames of the CNN.
        units: [B] units, at most one more or fewer.
        utt_id: B names, for the error.

    Raises:
        UserError: A larger difference.
    """
    wrong = (frames - units).abs() > 1
    if not bool(wrong.any()):
        return
    row = int(wrong.nonzero()[0])
    name = f"utterance {utt_id[row]!r}" if utt_id else "an utterance"
    raise UserError(
        f"{name} has {int(units[row])} units but {int(frames[row])} frames of the CNN: the units "
        "were probably made for another CNN geometry; run fit_units with the same --config"
    )


def task_mask(
    frames: Tensor, utt_id: Sequence[str], setting: Augmentation, *, training: bool
) -> Tensor:
    """Span mask [B, T] of frames to predict.

    Args:
        frames: Valid frames of the utterances, [B].
        utt_id: Their names, [B].
        setting: Density and length of the spans.
        training: Random spans; otherwise the same for an utterance every time.
    """
    prob, length = setting.mask_prob, setting.mask_length
    if training:
        return span_mask(frames, prob, length)
    mask = torch.zeros(len(frames), int(frames.max()), dtype=torch.bool, device=frames.device)
    for row, (utt, count) in enumerate(zip(utt_id, frames.tolist(), strict=True)):
        generator = torch.Generator().manual_seed(zlib.crc32(utt.encode()))
        one = span_mask(torch.tensor([count]), prob, length, generator=generator)
        mask[row, :count] = one[0].to(mask.device)
    return mask


class PretrainModel(AdaltmModel):
    """Encoder + masked prediction of units (HuBERT's objective).

    Args:
        encoder: The speech encoder.
        head: Cosine classifier over the units.
        augmentation: Its span mask is the task, in validation too.
    """

    def __init__(
        self, encoder: SpeechEncoder, head: MaskedPredictionHead, augmentation: Augmentation
    ) -> None:
        super().__init__(encoder, augmentation)
        self.head = head
        self.metric = UnitMetric()

    def forward(
        self,
        speech: Tensor,
        speech_lengths: Tensor,
        units: Tensor,
        units_lengths: Tensor,
        utt_id: Sequence[str] = (),
        **_: Any,
    ) -> Result:
        """Mean loss over masked frames; ``units`` is [B, T'], padded with -1.

        Raises:
            UserError: The units have another frame rate than the CNN.
        """
        setting = self.augmentation
        if self.training and setting.noise_prob > 0 and speech.ndim == 2:
            speech = add_noise(speech, speech_lengths, setting.noise_prob, setting.noise_snr)
        frames = self.frame_lengths(speech, speech_lengths)
        check_units(frames, units_lengths, utt_id)
        mask = task_mask(frames, utt_id, setting, training=self.training)
        output = self.encoder(speech, speech_lengths, mask_time=mask)
        hidden = output.hidden[-1]
        # The units' frames may be one more or fewer than the CNN's: the rest has no target.
        size = min(hidden.shape[1], units.shape[1])
        inside = torch.arange(size, device=speech.device) < output.lengths[:, None]
        scored = self.head(hidden[:, :size], units[:, :size], mask[:, :size] & inside)
        stats = {}
        if self.training:
            stats["acc"] = scored.accuracy
        else:
            self.metric.update((scored.accuracy * scored.frames).round(), scored.frames)
        return self.result(scored.loss, stats, scored.frames)
