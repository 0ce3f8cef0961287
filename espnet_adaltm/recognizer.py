"""Emotions, words and speakers of recordings, from an exported folder.

    from espnet_adaltm import EmotionRecognizer

    recognizer = EmotionRecognizer.from_pretrained("exp/merge_adaltm_seed1/export")
    recognizer.predict("speech.wav")
    # Prediction(emotion='happy', probabilities={'angry': 0.1, 'happy': 0.9}, text='hello there')

Any rate, number of channels and format that libsndfile reads. What is heard decides, not how it is
given: one file, or the same file in a list, a ``wav.scp`` or a batch, gives the same answer.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from espnet_adaltm.backbone.arks import SAMPLE_RATE
from espnet_adaltm.decoding import baselines, systems
from espnet_adaltm.decoding.batch import batches_of, hear, workers_for
from espnet_adaltm.decoding.sources import NAMED, ONE, Array, Clip, open_clips, read_ahead
from espnet_adaltm.decoding.windows import (
    Span,
    average,
    cut_windows,
    join_paths,
    longest,
    overall,
)
from espnet_adaltm.errors import UserError
from espnet_adaltm.export.folder import DESCRIPTION, load_system_folder, save_system
from espnet_adaltm.export.hub import local_folder
from espnet_adaltm.files import Pathlike, atomic_dir
from espnet_adaltm.models.ctc import collapse

SHORT_SECONDS = 0.5
_POOL_SECONDS = 600.0  # read before batches are made


@dataclass(frozen=True)
class Moment:
    """A part of a recording.

    Attributes:
        start: Seconds.
        end: Seconds.
        emotion: The most likely one.
        probabilities: Of every emotion, by name, summing to 1.
    """

    start: float
    end: float
    emotion: str
    probabilities: dict[str, float]


@dataclass(frozen=True)
class Prediction:
    """What is said of one recording.

    Attributes:
        emotion: The most likely one.
        probabilities: Of every emotion, by name, summing to 1; of a long recording the mean over
            its timeline.
        text: What was said, None without a CTC head.
        speaker: The most similar speaker of the training, None without a speaker head.
        seconds: Length of the recording.
        timeline: From beginning to end without a gap; one moment where one window was enough.
    """

    emotion: str
    probabilities: dict[str, float]
    text: str | None
    speaker: str | None
    seconds: float
    timeline: tuple[Moment, ...]

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Said:
    """Of one window: probabilities [C], tokens of its frames [T] or None, a speaker or None."""

    probabilities: np.ndarray
    path: Tensor | None
    speaker: str | None


class EmotionRecognizer:
    """Recognises recordings with a loaded system, kept in memory between calls.

    Recordings longer than a window are heard in overlapping windows (see `decoding.windows`).
    Shorter ones are heard as they are; below the encoder's receptive field (25 ms) zeros are
    appended to them, below half a second a warning is logged, and without a sample they are an
    error.

    Args:
        system: With labels: a merge, a SER expert, a baseline that hears one utterance at a time.
        device: Where to compute.
        batch_seconds: Largest padded duration of a batch; changes speed and memory only.
        window_seconds: Longest part that is heard at once.
        step_seconds: From the beginning of a window to that of the next; half a window unless
            given.

    Raises:
        UserError: The system recognises no emotions, or an option makes no sense.
    """

    def __init__(
        self,
        system: nn.Module,
        *,
        device: torch.device | str = "cpu",
        batch_seconds: float = 40.0,
        window_seconds: float = 20.0,
        step_seconds: float | None = None,
    ) -> None:
        if not getattr(system, "labels", ()) or getattr(system, "encoder", None) is None:
            raise UserError(
                "this system recognises no emotions of single recordings: give an export, a SER "
                "expert or a merge"
            )
        step = window_seconds / 2 if step_seconds is None else step_seconds
        if not 0.1 <= window_seconds < float("inf") or not 0 < step <= window_seconds:
            raise UserError(
                f"windows of {window_seconds:g} s every {step:g} s: at least 0.1 s are expected, "
                "and a step up to the window"
            )
        if not batch_seconds > 0:
            raise UserError(f"batch_seconds {batch_seconds} is not positive")
        self.device = torch.device(device)
        self.system = system.to(self.device)
        self.batch_seconds = batch_seconds
        self.window, self.step = round(window_seconds * SAMPLE_RATE), round(step * SAMPLE_RATE)

    @property
    def labels(self) -> tuple[str, ...]:
        """Emotions, in the order of `Prediction.probabilities`."""
        return self.system.labels

    @classmethod
    def from_pretrained(
        cls,
        source: Pathlike,
        *,
        base: Pathlike | None = None,
        asr_expert: Pathlike | None = None,
        **options: Any,
    ) -> "EmotionRecognizer":
        """Load an export, a model of the Hugging Face Hub by its id, or a trained system.

        Args:
            source: Folder that stage `export` or `save_pretrained` wrote; ``user/model``; or the
                folder of a SER expert, a merge or a baseline.
            base: Of a trained system only: its base encoder, where it does not name one.
            asr_expert: Of a merge only: lends its CTC head, for transcripts.
            options: Of the class: ``device``, ``batch_seconds``, ``window_seconds``,
                ``step_seconds``.

        Raises:
            UserError: Something is missing or damaged.
        """
        folder = local_folder(source)
        described = (systems.EXPERT, systems.MERGE, systems.BASELINE)
        if (folder / DESCRIPTION).exists() or not any((folder / n).exists() for n in described):
            return cls(load_system_folder(folder), **options)
        if systems.is_baseline(folder):
            info = systems.read_description(folder)
            if hasattr(baselines.module_of(info["kind"], str(folder)), "decode"):
                raise UserError(
                    f"{folder} ({info['kind']}) hears whole dialogues, not single recordings: "
                    "decode sets with bin/decode.py"
                )
        return cls(systems.load_system(folder, base=base, asr_expert=asr_expert), **options)

    def save_pretrained(self, folder: Pathlike) -> None:
        """Write a folder for `from_pretrained` and `transformers`, replaced as a whole."""
        with atomic_dir(folder) as temporary:
            save_system(self.system, temporary)

    def predict(
        self, source: Any, *, sample_rate: int | None = None, allow_pipes: bool = False
    ) -> Prediction | list[Prediction] | dict[str, Prediction]:
        """Recognise one recording, or several in batches.

        Args:
            source: A path or an array gives a `Prediction`; a list of them a list in its order; a
                ``wav.scp`` or data directory a dictionary by utterance. See
                `decoding.sources.open_clips`.
            sample_rate: Of plain arrays in Hz; 16000 unless given.
            allow_pipes: Run entries of a ``wav.scp`` that are shell commands.

        Raises:
            UserError: Missing, damaged or empty audio, by name.
        """
        kind, clips = open_clips(source, sample_rate=sample_rate, allow_pipes=allow_pipes)
        found = {}
        for index, (clip, said) in enumerate(self.stream(clips)):
            if isinstance(said, UserError):
                raise said
            found[clip.name if kind == NAMED else index] = said
        if kind == NAMED:
            return found
        return found[0] if kind == ONE else list(found.values())

    def stream(self, clips: Sequence[Clip]) -> Iterator[tuple[Clip, Prediction | UserError]]:
        """Recognise recordings in order, in constant memory; a broken one gives its error.

        Args:
            clips: Of `decoding.sources.open_clips`.
        """
        group: list[tuple[Clip, Array | UserError]] = []
        samples = 0
        for clip, audio in read_ahead(clips):
            group.append((clip, audio))
            samples += 0 if isinstance(audio, UserError) else len(audio)
            if samples >= _POOL_SECONDS * SAMPLE_RATE:
                yield from self._recognize(group)
                group, samples = [], 0
        yield from self._recognize(group)

    def _recognize(
        self, group: Sequence[tuple[Clip, Array | UserError]]
    ) -> Iterator[tuple[Clip, Prediction | UserError]]:
        hop = self.system.encoder.geometry.hop
        spans = [
            []
            if isinstance(audio, UserError)
            else cut_windows(len(audio), self.window, self.step, hop)
            for _, audio in group
        ]
        pieces = {
            f"{index:06d} {number:06d}": group[index][1][span.start : span.end]
            for index, windows in enumerate(spans)
            for number, span in enumerate(windows)
        }
        said = self._hear(pieces)
        for index, (clip, audio) in enumerate(group):
            if isinstance(audio, UserError):
                yield clip, audio
                continue
            parts = [said[f"{index:06d} {number:06d}"] for number in range(len(spans[index]))]
            if not all(np.isfinite(part.probabilities).all() for part in parts):
                yield clip, UserError(f"{clip.name}: the emotion probabilities are not finite")
                continue
            if len(audio) < SHORT_SECONDS * SAMPLE_RATE:
                seconds = len(audio) / SAMPLE_RATE
                logging.warning(
                    "%s has only %.2f s: too little to tell an emotion", clip.name, seconds
                )
            yield clip, self._put_together(spans[index], parts, hop)

    def _hear(self, pieces: dict[str, Array]) -> dict[str, _Said]:
        lengths = {name: len(piece) for name, piece in pieces.items()}
        workers = workers_for(self.system, self.device)
        batches = batches_of(lengths, self.batch_seconds * SAMPLE_RATE, workers)
        arrays = ([pieces[name] for name in batch] for batch in batches)
        said = {}
        outputs = hear(self.system, arrays, len(batches), self.device)
        for batch, output in zip(batches, outputs, strict=True):
            for row, name in enumerate(batch):
                said[name] = _Said(
                    output.probabilities[row].numpy(),
                    None if output.paths is None else output.paths[row],
                    None if output.speakers is None else output.speakers[row],
                )
        return said

    def _put_together(self, spans: Sequence[Span], parts: Sequence[_Said], hop: int) -> Prediction:
        pieces = average(spans, [part.probabilities for part in parts])
        text = speaker = None
        if parts[0].path is not None:
            path = join_paths(spans, [part.path for part in parts], hop)
            text = self.system.tokenizer.decode(collapse(path))
        if parts[0].speaker is not None:
            speaker = longest(spans, [part.speaker for part in parts])
        moments = (
            Moment(span.start / SAMPLE_RATE, span.end / SAMPLE_RATE, *self._named(values))
            for span, values in pieces
        )
        seconds = spans[-1].end / SAMPLE_RATE
        return Prediction(*self._named(overall(pieces)), text, speaker, seconds, tuple(moments))

    def _named(self, values: np.ndarray) -> tuple[str, dict[str, float]]:
        return self.labels[int(values.argmax())], dict(zip(self.labels, values.tolist()))
