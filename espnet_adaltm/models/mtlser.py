"""MTLSER: emotion, words and speaker from one encoder, one joint loss (Chen et al. 2025).

"MTLSER: multi-task learning enhanced speech emotion recognition with pre-trained acoustic model",
Expert Systems with Applications 273, 126855:

    h   = dropout(encoder(x).last_hidden_state)
    ctc = Linear(h)                  per frame
    emo = Linear(mean over time h)
    spk = Linear(mean over time h)
    L   = CE(emo) + alpha * CTC + beta * CE(spk)

The heads and the loss are the paper's. Its published code averages over padding too and calls the
actor who wears the motion capture the speaker of every row; here pooling is masked, and speakers
are who talks. Ours as well: what is unknown of an utterance (emotion, words or speaker) has no part
in the loss, and CTC may be counted per token, so that alpha does not depend on how long the
transcripts are (the paper does not say how it is counted).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from espnet_adaltm.errors import UserError
from espnet_adaltm.models.ctc import CTCHead
from espnet_adaltm.models.emotion import EmotionHead
from espnet_adaltm.models.pooling import build_pooling

TASKS = ("emotion", "ctc", "speaker")
EMOTION_HEADS = ("linear", "layers")
CTC_UNITS = ("token", "utterance")
UNKNOWN = -1


class MTLOutput(NamedTuple):
    """What the heads say.

    Attributes:
        emotion: Logits [B, C].
        frames: What the CTC head reads, [B, T, D].
        speaker: Logits [B, S], or None without a speaker head.
    """

    emotion: Tensor
    frames: Tensor
    speaker: Tensor | None


class MTLHead(nn.Module):
    """The three heads; what is not asked for has no parameters.

    Args:
        num_layers: L, transformer layers of the encoder.
        dim: D, features per frame of the encoder.
        num_classes: C, emotions.
        vocab: V, tokens with the blank; 0: no CTC head.
        speakers: S; 0: no speaker head.
        dropout: Probability on the last hidden states (the paper has one, its value is not given).
        pooling: ``mean`` (the paper's), ``mean_std`` or ``attentive``; all masked.
        emotion: ``linear`` (the paper's), or ``layers``: the head of our SER expert on all layers,
            which AdaLTM's systems share.
        emotion_options: Keyword arguments of that head.

    Raises:
        UserError: Unknown kind of emotion head or pooling.
    """

    def __init__(
        self,
        num_layers: int,
        dim: int,
        num_classes: int,
        *,
        vocab: int = 0,
        speakers: int = 0,
        dropout: float = 0.1,
        pooling: str = "mean",
        emotion: str = "linear",
        emotion_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if emotion not in EMOTION_HEADS:
            raise UserError(f"emotion head {emotion!r} is none of {', '.join(EMOTION_HEADS)}")
        self.dropout = nn.Dropout(dropout)
        self.pooling = build_pooling(pooling, dim)
        self.layers: EmotionHead | None = None
        self.emotion: nn.Linear | None = None
        if emotion == "layers":
            options = {"pooling": pooling, **(emotion_options or {})}
            self.layers = EmotionHead(num_layers, dim, num_classes, **options)
        else:
            self.emotion = nn.Linear(self.pooling.output_dim, num_classes)
        self.ctc = CTCHead(dim, vocab) if vocab else None
        self.speaker = nn.Linear(self.pooling.output_dim, speakers) if speakers else None
        if self.emotion is None and self.speaker is None:
            self.pooling = nn.Identity()  # attentive pooling would have parameters without a use

    def forward(self, hidden: Sequence[Tensor], lengths: Tensor) -> MTLOutput:
        """Classify utterances.

        Args:
            hidden: L + 1 hidden states, each [B, T, D].
            lengths: Valid frames, [B].
        """
        frames = hidden[-1]
        if any(head is not None for head in (self.emotion, self.ctc, self.speaker)):
            frames = self.dropout(frames)
        pooled = None
        if self.emotion is not None or self.speaker is not None:
            pooled = self.pooling(frames, lengths)
        emotion = self.layers(hidden, lengths) if self.emotion is None else self.emotion(pooled)
        return MTLOutput(emotion, frames, None if self.speaker is None else self.speaker(pooled))


@dataclass(frozen=True)
class TaskWeights:
    """Weights of the auxiliary losses; 0 leaves a task out.

    Attributes:
        alpha: Of CTC; 0.1 is what the published code uses.
        beta: Of the speaker loss; 0.15 is read off a plot script of the published code.
    """

    alpha: float = 0.1
    beta: float = 0.15

    def __post_init__(self) -> None:
        for name, value in (("alpha", self.alpha), ("beta", self.beta)):
            if not 0 <= value < float("inf"):
                raise UserError(f"--{name} {value} is not a number from 0 on")


def masked_mean(values: Tensor, known: Tensor) -> Tensor:
    """Mean of ``values`` [B] where ``known`` [B] is true; 0, with zero gradients, if nowhere."""
    return values.where(known, values.new_zeros(())).sum() / known.sum().clamp(min=1)


def ctc_per(unit: str, nats: Tensor, target_lengths: Tensor) -> Tensor:
    """CTC loss [B] in nats per ``token`` of the transcript or per ``utterance``."""
    return nats / target_lengths.clamp(min=1) if unit == "token" else nats


def speaker_loss(logits: Tensor, speaker: Tensor) -> Tensor:
    """Cross entropy in nats.

    Args:
        logits: [B, S].
        speaker: Index of the speaker, [B]; `UNKNOWN` where it is none of the S.

    Returns:
        [B] float32, 0 (with zero gradients) for unknown speakers.
    """
    return functional.cross_entropy(logits.float(), speaker, reduction="none", ignore_index=UNKNOWN)


def joint_loss(losses: Mapping[str, Tensor], weights: TaskWeights) -> Tensor:
    """`emotion + alpha * ctc + beta * speaker` of scalars; tasks with weight 0 may be missing."""
    total = losses["emotion"]
    for task, weight in (("ctc", weights.alpha), ("speaker", weights.beta)):
        if weight:
            total = total + weight * losses[task]
    return total
