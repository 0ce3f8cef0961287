"""A merge in the form that ESPnet's trainer runs, under each of the objectives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from espnet_adaltm.backbone.encoder import EncoderOutput
from espnet_adaltm.data.tokens import Tokenizer
from espnet_adaltm.files import read_json, write_json
from espnet_adaltm.merging import objectives
from espnet_adaltm.models.emotion import EmotionHead
from espnet_adaltm.training.espnet_models import Augmentation, EmotionModel, Result
from espnet_adaltm.training.metrics import Metrics, TranscriptMetric

HISTORY = "coefficient_history.json"


class Hidden(nn.Module):
    """A frozen module that follows ``.to()`` but is in no checkpoint, optimiser or wrapper.

    Args:
        module: Taken over; put into evaluation mode for good.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "module", module.requires_grad_(False).eval())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Hidden":
        super()._apply(fn, recurse)
        self.module._apply(fn, recurse)
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module."""
        return self.module(*args, **kwargs)


@dataclass(frozen=True)
class Teacher:
    """An expert to learn from.

    Attributes:
        head: Its frozen head: `CTCHead` or `EmotionHead`.
        encoder: Its encoder; None where only the head is used.
        tokenizer: Of a CTC head.
    """

    head: nn.Module
    encoder: nn.Module | None = None
    tokenizer: Tokenizer | None = None


@dataclass(frozen=True)
class Objective:
    """What a merge is learned from; see `MergeConfig`.

    Attributes:
        kind: One of `objectives.OBJECTIVES`.
        ctc_weight: Of the CTC term.
        distill_weights: Expert to weight.
        distill_on: ``logits`` or ``hidden``.
        teachers: ``asr`` for ``supervised_ctc``; those of ``distill_weights`` for
            ``supervised_distill``.
    """

    kind: str = objectives.SUPERVISED
    ctc_weight: float = 1.0
    distill_weights: Mapping[str, float] = field(default_factory=dict)
    distill_on: str = "logits"
    teachers: Mapping[str, Teacher] = field(default_factory=dict)


class MergeModel(EmotionModel):
    """An emotion model over a merged encoder; remembers the coefficients of every epoch.

    The loss of utterance i, whose mean over the batch is minimised, y its emotion:

    - ``supervised`` (AdaLTM): `e_i = loss(z_i, y_i)`, the emotion loss
    - ``entropy`` (AdaMerging): `- sum_c p_ic log p_ic` with `p_i = softmax(z_i)`
    - ``supervised_ctc`` (ours): `e_i + ctc_weight * CTC_i / U_i`, the ASR expert's frozen head on
      the merged encoder's last layer; U_i tokens, 0 for an utterance without a transcript
    - ``supervised_distill`` (ours): `e_i + sum_k w_k D_ik`. On ``logits``, `D_ik` is the divergence
      of the frozen head of expert k on the merged encoder from the same head on the expert's own
      (mean over frames for the ASR expert's). On ``hidden``, the distance of the layer-normalised
      hidden states. Teachers hear the utterance as it is, without noise or masks.

    Args:
        encoder: A `MergedEncoder`.
        head: Emotion head with C outputs; one without trainable parameters has no dropout either.
        loss: (logits [B, C], targets [B, C]) to [B]; None with ``entropy``.
        num_classes: C.
        augmentation: Input changes while training.
        objective: What to learn from.
    """

    def __init__(
        self,
        encoder: nn.Module,
        head: EmotionHead,
        loss: Callable[[Tensor, Tensor], Tensor] | None,
        num_classes: int,
        augmentation: Augmentation | None = None,
        objective: Objective | None = None,
    ) -> None:
        super().__init__(encoder, head, loss, num_classes, augmentation)
        self.objective = objective or Objective()
        parts = {}
        for task, teacher in self.objective.teachers.items():
            parts[f"{task}_head"] = Hidden(teacher.head)
            if teacher.encoder is not None:
                parts[task] = Hidden(teacher.encoder)
        self.teachers = nn.ModuleDict(parts)
        self.transcripts = TranscriptMetric()
        self.emotions = self.metric
        if self.objective.kind == objectives.SUPERVISED_CTC:
            self.metric = Metrics(self.emotions, self.transcripts)
        self.train(self.training)

    def train(self, mode: bool = True) -> "MergeModel":
        """Switch the mode; a frozen head stays in evaluation."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.head.parameters()):
            self.head.eval()
        return self

    def forward(
        self,
        speech: Tensor,
        speech_lengths: Tensor,
        emotion: Tensor | None = None,
        text: Tensor | None = None,
        text_lengths: Tensor | None = None,
        **_: Any,
    ) -> Result:
        """Loss of a batch.

        Args:
            speech: Waveforms [B, N] or features [B, T, C].
            speech_lengths: [B].
            emotion: Distributions [B, C]; may be missing under ``entropy``, where it only feeds
                the validation's metrics.
            text: Token ids [B, U], padded with -1, for ``supervised_ctc``.
            text_lengths: [B]; 0 where there is no transcript.
        """
        output = self.encode(speech, speech_lengths)
        logits = self.head(output.hidden, output.lengths)
        kind, stats = self.objective.kind, {}
        if kind == objectives.ENTROPY:
            loss = objectives.entropy(logits)
        else:
            loss = self.loss(logits, emotion)
            if kind != objectives.SUPERVISED:
                stats["loss_emotion"] = loss.detach().mean()
        if kind == objectives.SUPERVISED_CTC:
            term = self._ctc(output, text, text_lengths)
            stats["loss_ctc"] = term.detach().mean()
            loss = loss + self.objective.ctc_weight * term
        if kind == objectives.SUPERVISED_DISTILL:
            for task, term in self._distances(output, logits, speech, speech_lengths).items():
                stats[f"loss_distill_{task}"] = term.detach().mean()
                loss = loss + self.objective.distill_weights[task] * term
        if emotion is not None:
            self._count(logits.argmax(-1), emotion.argmax(-1), stats)
        return self.result(loss.mean(), stats, len(speech))

    def _count(self, predicted: Tensor, reference: Tensor, stats: dict[str, Tensor]) -> None:
        if self.training:
            stats["acc"] = (predicted == reference).float().mean()
        else:
            self.emotions.update(predicted, reference)

    def _ctc(self, output: EncoderOutput, text: Tensor, text_lengths: Tensor) -> Tensor:
        head = self.teachers["asr_head"].module
        hidden = output.hidden[-1]
        text = text.clamp(min=0)
        if not self.training:
            decode = self.objective.teachers["asr"].tokenizer.decode
            guesses = head.greedy(head(hidden), output.lengths)
            pairs = zip(guesses, text.cpu(), text_lengths.tolist(), strict=True)
            written = [(decode(ids), decode(row[:n].tolist())) for ids, row, n in pairs if n]
            self.transcripts.update([guess for guess, _ in written], [true for _, true in written])
        nats = head.loss(hidden, output.lengths, text, text_lengths)
        return objectives.ctc_per_token(nats, text_lengths)

    def _distances(
        self, output: EncoderOutput, logits: Tensor, speech: Tensor, lengths: Tensor
    ) -> dict[str, Tensor]:
        """How far the merged encoder is from each expert, [B]."""
        distances = {}
        for task in self.objective.distill_weights:
            with torch.no_grad():
                theirs = self.teachers[task](speech, lengths)
            if self.objective.distill_on == "hidden":
                pair = (output.hidden, theirs.hidden)
                distances[task] = objectives.hidden_distance(*pair, output.lengths)
                continue
            head = self.teachers[f"{task}_head"]
            if task == "asr":
                frames = objectives.divergence(head(output.hidden[-1]), head(theirs.hidden[-1]))
                distances[task] = objectives.valid_mean(frames, output.lengths)
            else:
                pair = (head(each.hidden, output.lengths) for each in (output, theirs))
                distances[task] = objectives.divergence(*pair)
        return distances

    def record_epoch(self, folder: Path, epoch: int) -> None:
        """Write the coefficients [K, G] after ``epoch`` to ``coefficient_history.json``.

        A repeated epoch (after a crash) replaces its entry and drops later ones.
        """
        path = folder / HISTORY
        history = read_json(path) if path.exists() else {}
        kept = {key: value for key, value in history.items() if int(key) < epoch}
        with torch.no_grad():
            values = self.encoder.coefficients().cpu().tolist()
        write_json(path, {**kept, str(epoch): values})
