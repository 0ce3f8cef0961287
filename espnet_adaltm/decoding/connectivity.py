"""Loss and scores on straight lines between encoders: linear mode connectivity.

At position t of a line the encoder has the weights ``(1 - t) W_from + t W_to`` (the effective
weight of the positional convolution); heads are not moved. A line without a hill means that both
ends lie in one basin, which is why adding task vectors can work at all (Frankle et al., arXiv
1912.05671; Entezari et al., arXiv 2110.06296). Which lines, which heads and the hard-label losses
are our choice, not AdaLTM's.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from espnet_adaltm.backbone.encoder import SpeechEncoder, check_state
from espnet_adaltm.backbone.features import make_batches
from espnet_adaltm.data.tokens import Tokenizer
from espnet_adaltm.decoding.batch import Inputs, pad
from espnet_adaltm.errors import UserError
from espnet_adaltm.models.ctc import CTCHead, required_frames
from espnet_adaltm.models.emotion import EmotionHead
from espnet_adaltm.progress import progress
from espnet_adaltm.scoring.metrics import confusion_matrix, emotion_metrics, error_counts

State = Mapping[str, Tensor]
# "emotion" to head to "loss" and "macro_f1"; "words" to "loss" and "wer".
Scores = dict[str, Any]
_UNKNOWN = -1


@dataclass(frozen=True)
class Batch:
    """Some utterances, padded.

    Attributes:
        speech: Samples [B, N] or CNN features [B, T, C].
        lengths: Valid samples or frames, [B].
        emotions: Class indices [B], -1 where unknown.
        texts: Transcripts, None where unknown.
    """

    speech: Tensor
    lengths: Tensor
    emotions: Tensor
    texts: tuple[str | None, ...]


@dataclass(frozen=True)
class Heads:
    """What judges an encoder, never moved.

    Attributes:
        emotion: Name to head; all of them judge every encoder.
        num_classes: C, of all of them.
        ctc: CTC head with its tokenizer, or None.
    """

    emotion: Mapping[str, EmotionHead]
    num_classes: int
    ctc: tuple[CTCHead, Tokenizer] | None = None


def choose(
    utterances: Sequence[str], parts: Iterable[Iterable[str]], most: int, seed: int
) -> list[str]:
    """Draw utterances so that each part has ``most`` of its own, or all it has.

    The parts (with an emotion, with a transcript) are filled from one random order, so that they
    share utterances as far as they overlap.

    Args:
        utterances: The set.
        parts: Subsets of it.
        most: Utterances of each part.
        seed: Of the random order.

    Returns:
        Chosen ones in the order of ``utterances``.
    """
    order = np.random.default_rng(seed).permutation(len(utterances))
    chosen: set[str] = set()
    for part in parts:
        members = set(part)
        shuffled = (utterances[index] for index in order)
        chosen |= set(itertools.islice((u for u in shuffled if u in members), most))
    return [utt for utt in utterances if utt in chosen]


def load_batches(
    inputs: Inputs,
    utterances: Sequence[str],
    emotions: Mapping[str, int],
    texts: Mapping[str, str],
    *,
    batch_seconds: float,
    device: torch.device,
) -> list[Batch]:
    """Read utterances into memory: they are heard again at every point.

    Args:
        inputs: How to read them.
        utterances: Which; those with an emotion or text beyond it are ignored.
        emotions: Utterance to class index.
        texts: Utterance to transcript.
        batch_seconds: Largest padded duration of a batch.
        device: Where to hold them.
    """
    lengths = {utt: inputs.lengths[utt] for utt in utterances}
    return [
        Batch(
            *pad([inputs.load(utt) for utt in batch], device),
            torch.tensor([emotions.get(utt, _UNKNOWN) for utt in batch]),
            tuple(texts.get(utt) for utt in batch),
        )
        for batch in make_batches(lengths, int(batch_seconds * inputs.per_second))
    ]


@torch.inference_mode()
def measure(encoder: SpeechEncoder, batches: Sequence[Batch], heads: Heads) -> Scores:
    """Judge one encoder.

    Args:
        encoder: In any mode; it is evaluated without dropout.
        batches: At least one utterance with an emotion, or with a transcript.
        heads: What judges.

    Returns:
        ``emotion[head]`` with ``loss`` (mean cross entropy against the hard label, nats) and
        ``macro_f1``, if there are emotions; ``words`` with ``loss`` (negative log likelihood of
        CTC in nats over the number of tokens, of the utterances that have enough frames) and
        ``wer``, if there are transcripts and a CTC head.
    """
    encoder.eval()
    logits: dict[str, list[Tensor]] = {name: [] for name in heads.emotion}
    truth: list[Tensor] = []
    words = _Words(heads)
    for batch in batches:
        hidden, frames = encoder(batch.speech, batch.lengths)
        known = batch.emotions >= 0
        for name, head in heads.emotion.items():
            logits[name].append(head(hidden, frames).float().cpu()[known])
        truth.append(batch.emotions[known])
        words.add(hidden[-1], frames, batch.texts)
    scores: Scores = {}
    target = torch.cat(truth)
    if len(target) and logits:
        scores["emotion"] = {
            name: _emotion_scores(torch.cat(rows), target, heads.num_classes)
            for name, rows in logits.items()
        }
    if words.tokens:
        scores["words"] = words.scores()
    return scores


def _emotion_scores(logits: Tensor, target: Tensor, num_classes: int) -> dict[str, float]:
    counts = confusion_matrix(target.numpy(), logits.argmax(-1).numpy(), num_classes)
    return {
        "loss": float(functional.cross_entropy(logits.double(), target)),
        "macro_f1": float(emotion_metrics(counts)["macro_f1"]),
    }


class _Words:
    """Sums of CTC's loss, and transcripts."""

    def __init__(self, heads: Heads) -> None:
        self._ctc = heads.ctc
        self._pairs: list[tuple[str, str]] = []
        self._losses: list[float] = []
        self.tokens = 0

    def add(self, hidden: Tensor, frames: Tensor, texts: Sequence[str | None]) -> None:
        rows = [index for index, text in enumerate(texts) if text is not None]
        if self._ctc is None or not rows:
            return
        head, tokenizer = self._ctc
        hidden, frames = hidden[rows], frames[rows]
        ids = [torch.tensor(tokenizer.encode(texts[index]), dtype=torch.long) for index in rows]
        targets = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True).to(hidden.device)
        sizes = torch.tensor([len(row) for row in ids], device=hidden.device)
        losses = head.loss(hidden, frames, targets, sizes)
        enough = frames >= required_frames(targets, sizes)
        self._losses += losses[enough].tolist()
        self.tokens += int(sizes[enough].sum())
        paths = head.greedy(head(hidden), frames)
        truths = [tokenizer.normalize(texts[index]) for index in rows]
        self._pairs += zip(truths, [tokenizer.decode(path) for path in paths])

    def scores(self) -> dict[str, float]:
        counts = error_counts(*zip(*self._pairs))
        return {
            "loss": math.fsum(self._losses) / self.tokens,
            "wer": float(counts.errors.sum() / max(1, counts.lengths.sum())),
        }


def interpolate(first: State, second: State, position: float) -> dict[str, Tensor]:
    """``(1 - position) first + position second``; exactly an end at 0 and 1."""
    return {
        name: torch.lerp(tensor, second[name], position) if tensor.is_floating_point() else tensor
        for name, tensor in first.items()
    }


def barrier(values: Sequence[float], points: Sequence[float]) -> float:
    """Height of a hill: ``max_t [L(t) - ((1 - t) L(0) + t L(1))]`` (arXiv 2110.06296, eq. 1).

    0 where no point lies above the chord between the ends.
    """
    return max(value - ((1 - t) * values[0] + t * values[-1]) for value, t in zip(values, points))


def measure_lines(
    encoder: SpeechEncoder,
    states: Mapping[str, State],
    lines: Sequence[tuple[str, str]],
    points: Sequence[float],
    batches: Sequence[Batch],
    heads: Heads,
) -> list[dict[str, Any]]:
    """Walk along lines; an end that several share is measured once.

    Args:
        encoder: Gets the weights of every point in turn, and is left with some of them.
        states: Name to weights (`SpeechEncoder.encoder_state`).
        lines: Names of both ends.
        points: Positions, the first 0, the last 1.
        batches: What is heard.
        heads: What judges.

    Returns:
        For every line ``from``, ``to``, the entries of `measure` with a list over points in place
        of each number, and ``barrier`` of the losses: ``emotion[head]`` and ``words``.

    Raises:
        UserError: The encoders are of different shapes, or there is nothing to measure.
    """
    for name, state in states.items():
        try:
            check_state(encoder.encoder_state(), state)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
    known: dict[tuple[str, str, float], Scores] = {}
    found = []
    places = list(itertools.product(lines, points))
    for (first, second), point in progress(places, "connectivity", unit="point"):
        key = _place(first, second, point)
        if key not in known:
            encoder.load_encoder_state(interpolate(states[first], states[second], point))
            known[key] = measure(encoder, batches, heads)
            if not known[key]:
                raise UserError("no utterance has an emotion or a transcript: choose another set")
    for first, second in lines:
        curves = _columns([known[_place(first, second, point)] for point in points])
        found.append({"from": first, "to": second, **curves, "barrier": _barriers(curves, points)})
    return found


def _place(first: str, second: str, point: float) -> tuple[str, str, float]:
    if point == 0:
        return first, first, 0.0
    return (second, second, 0.0) if point == 1 else (first, second, point)


def _columns(rows: list[Any]) -> Any:
    if isinstance(rows[0], dict):
        return {key: _columns([row[key] for row in rows]) for key in rows[0]}
    return rows


def _barriers(curves: Mapping[str, Any], points: Sequence[float]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "emotion" in curves:
        found["emotion"] = {
            head: barrier(values["loss"], points) for head, values in curves["emotion"].items()
        }
    if "words" in curves:
        found["words"] = barrier(curves["words"]["loss"], points)
    return found
