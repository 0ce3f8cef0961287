"""MTLSER in the form that ESPnet's trainer runs: one encoder, three heads, one joint loss."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from espnet_adaltm.backbone.encoder import EncoderOutput, SpeechEncoder
from espnet_adaltm.models.mtlser import (
    UNKNOWN,
    MTLHead,
    MTLOutput,
    TaskWeights,
    ctc_per,
    joint_loss,
    masked_mean,
    speaker_loss,
)
from espnet_adaltm.training.espnet_models import AdaltmModel, Augmentation, Result
from espnet_adaltm.training.gradient_conflict import GradientConflict
from espnet_adaltm.training.metrics import (
    ClassificationMetric,
    CountMetric,
    Metrics,
    TranscriptMetric,
)


class SpeakerMetric(CountMetric):
    """Right and all utterances of known speakers -> ``spk_acc`` (fraction)."""

    def __init__(self) -> None:
        self.counts = torch.zeros(2, dtype=torch.int64)

    def update(self, predicted: Tensor, reference: Tensor) -> None:
        """Count indices [B]; those whose reference is `UNKNOWN` are left out."""
        known = reference != UNKNOWN
        right = (predicted == reference) & known
        self.counts += torch.stack([right.sum(), known.sum()]).cpu()

    def compute(self) -> dict[str, float]:
        """Return the accuracy; nothing if no speaker of the training was heard."""
        right, known = self.counts.tolist()
        return {"spk_acc": right / known} if known else {}


class MTLSERModel(AdaltmModel):
    """Encoder + `MTLHead`; an utterance that lacks a target has no part in that task's loss.

    The loss of a batch is `mean(e_i) + alpha * mean(c_i) + beta * mean(s_i)`, each mean over the
    utterances that have that target.

    Args:
        encoder: The speech encoder.
        head: Emotion head; CTC and speaker head as the weights need them.
        loss: (logits [B, C], targets [B, C]) to [B], of emotions.
        num_classes: C.
        weights: alpha and beta.
        decode: Token ids to text.
        ctc_unit: ``token`` or ``utterance``, see `models.mtlser.ctc_per`.
        augmentation: Input changes while training.
        conflict: Measures how the tasks' gradients agree, or None.
    """

    def __init__(
        self,
        encoder: SpeechEncoder,
        head: MTLHead,
        loss: Callable[[Tensor, Tensor], Tensor],
        num_classes: int,
        weights: TaskWeights,
        *,
        decode: Callable[[Sequence[int]], str] | None = None,
        ctc_unit: str = "token",
        augmentation: Augmentation | None = None,
        conflict: GradientConflict | None = None,
    ) -> None:
        super().__init__(encoder, augmentation)
        self.head = head
        self.loss = loss
        self.weights = weights
        self.decode = decode
        self.ctc_unit = ctc_unit
        self.conflict = conflict
        self.emotions = ClassificationMetric(num_classes)
        self.transcripts = TranscriptMetric()
        self.speakers = SpeakerMetric()
        self.metric = Metrics(self.emotions, self.transcripts, self.speakers)

    def forward(
        self,
        speech: Tensor,
        speech_lengths: Tensor,
        emotion: Tensor,
        text: Tensor | None = None,
        text_lengths: Tensor | None = None,
        speaker: Tensor | None = None,
        **_: Any,
    ) -> Result:
        """Loss of a batch.

        Args:
            speech: Waveforms [B, N] or features [B, T, C].
            speech_lengths: [B].
            emotion: Distributions [B, C]; a row of zeros where it is unknown.
            text: Token ids [B, U], padded with -1; needed by a CTC head.
            text_lengths: [B]; 0 where there is no transcript.
            speaker: Indices [B, 1], `UNKNOWN` where it is no speaker of the training; needed by a
                speaker head.
        """
        output = self.encode(speech, speech_lengths)
        said = self.head(output.hidden, output.lengths)
        labelled = emotion.sum(-1) > 0
        losses = {"emotion": masked_mean(self.loss(said.emotion, emotion), labelled)}
        if self.head.ctc is not None:
            text = text.clamp(min=0)
            nats = self.head.ctc.loss(said.frames, output.lengths, text, text_lengths)
            nats = ctc_per(self.ctc_unit, nats, text_lengths)
            losses["ctc"] = masked_mean(nats, text_lengths > 0)
        if said.speaker is not None:
            speaker = speaker.squeeze(-1)
            losses["speaker"] = masked_mean(speaker_loss(said.speaker, speaker), speaker != UNKNOWN)
        stats = {f"loss_{task}": loss.detach() for task, loss in losses.items()}
        if self.training:
            self._measure(losses)
            right = (said.emotion.argmax(-1) == emotion.argmax(-1)).float()
            stats["acc"] = masked_mean(right, labelled)
        else:
            chosen = labelled.nonzero().squeeze(-1)
            self.emotions.update(said.emotion.argmax(-1)[chosen], emotion.argmax(-1)[chosen])
            if self.head.ctc is not None:
                self._count_words(said, output, text, text_lengths)
            if said.speaker is not None:
                self.speakers.update(said.speaker.argmax(-1), speaker)
        return self.result(joint_loss(losses, self.weights), stats, len(speech))

    def _measure(self, losses: dict[str, Tensor]) -> None:
        if self.conflict is None:
            return
        scale = {"emotion": 1.0, "ctc": self.weights.alpha, "speaker": self.weights.beta}
        self.conflict.step({task: scale[task] * loss for task, loss in losses.items()})

    def _count_words(
        self, said: MTLOutput, output: EncoderOutput, text: Tensor, lengths: Tensor
    ) -> None:
        guesses = self.head.ctc.greedy(self.head.ctc(said.frames), output.lengths)
        rows = zip(guesses, text.cpu(), lengths.tolist(), strict=True)
        pairs = [(self.decode(guess), self.decode(row[:n].tolist())) for guess, row, n in rows if n]
        self.transcripts.update([guess for guess, _ in pairs], [truth for _, truth in pairs])

    def epoch_state(self) -> dict[str, Any]:
        """The gradients' conflict measured so far."""
        return self.conflict.state() if self.conflict is not None else {}

    def load_epoch_state(self, state: Mapping[str, Any]) -> None:
        """Go on measuring it."""
        if self.conflict is not None:
            self.conflict.load_state(state)

    def record_epoch(self, folder: Path, epoch: int) -> None:
        """Write how the gradients agreed in this epoch, if that is measured."""
        if self.conflict is not None:
            self.conflict.record(folder, epoch)
