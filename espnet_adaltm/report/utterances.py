"""The utterances that a system is most sure and most wrong about, with their audio if at hand."""

import base64
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from espnet_adaltm.data.audio import load_audio
from espnet_adaltm.errors import UserError
from espnet_adaltm.kaldi import read_scp
from espnet_adaltm.scoring.breakdown import Confused, most_confused
from espnet_adaltm.scoring.set_scores import SetScores, System

_MOST_SECONDS = 15.0
_MOST_SHARES = 4


@dataclass(frozen=True)
class Example:
    """One utterance, ready to be shown.

    Attributes:
        name: Of the utterance.
        facts: Its speaker and channel, as far as known.
        truth: Its emotion.
        said: What the system takes it for.
        shares: Emotion and its probability, of the most likely ones.
        votes: Emotion and the systems that take it for that.
        text: Its transcript, or None.
        transcript: Name of a recogniser and what it understood, or None.
        audio: ``data:`` URI, or None.
    """

    name: str
    facts: str
    truth: str
    said: str
    shares: list[tuple[str, float]]
    votes: list[tuple[str, list[str]]]
    text: str | None
    transcript: tuple[str, str] | None
    audio: str | None


def examples(
    scores: SetScores,
    systems: Sequence[System],
    labels: Sequence[str],
    system: str,
    dump: Path,
    *,
    count: int,
    audio: bool = True,
) -> list[Example]:
    """What `breakdown.most_confused` finds, with words and sound.

    Args:
        scores: Of the test set.
        systems: Whose folders hold transcripts.
        labels: The ordered label list.
        system: Whose mistakes to show.
        dump: Folder of the test set.
        count: At most so many.
        audio: Embed the audio, the first 15 s of each.
    """
    recogniser, heard = _transcripts(scores, systems)
    sources = read_scp(dump / "wav.scp") if audio else {}
    found = [
        _example(entry, scores, labels, sources, (recogniser, heard))
        for entry in most_confused(scores, system, count)
    ]
    if audio and (silent := sum(example.audio is None for example in found)):
        logging.warning("%d of %d utterances in the report have no audio", silent, len(found))
    return found


def _example(
    entry: Confused,
    scores: SetScores,
    labels: Sequence[str],
    sources: Mapping[str, str],
    heard: tuple[str, Mapping[str, str]],
) -> Example:
    reference, utterance = scores.reference, entry.utterance
    likely = np.argsort(-entry.probabilities, kind="stable")
    votes: dict[str, list[str]] = {}
    for name, index in entry.votes.items():
        votes.setdefault(labels[index], []).append(name)
    facts = [reference.speakers.get(utterance), reference.channels.get(utterance)]
    return Example(
        utterance,
        ", ".join(fact for fact in facts if fact),
        labels[entry.truth],
        labels[entry.said],
        [(labels[i], float(entry.probabilities[i])) for i in likely[:_MOST_SHARES]],
        list(votes.items()),
        reference.texts.get(utterance),
        (heard[0], heard[1][utterance]) if utterance in heard[1] else None,
        audio_uri(sources[utterance]) if utterance in sources else None,
    )


def _transcripts(scores: SetScores, systems: Sequence[System]) -> tuple[str, dict[str, str]]:
    """What the recogniser with the fewest word errors understood (its first seed)."""
    rates = {name: seeds.mean for name, seeds in scores.get("wer").items()}
    if not rates:
        return "", {}
    best = min(rates, key=rates.__getitem__)
    folder = next(f for s in systems if s.name == best for f in s.folders.values())
    path = folder / "decode" / scores.reference.name / "text"
    return best, read_scp(path, allow_empty_value=True)


def audio_uri(source: str) -> str | None:
    """One value of ``wav.scp`` as a ``data:`` URI, MP3 where libsndfile writes it, else WAV.

    Commands are never run for a page: what ends in ``|`` has no audio here, nor has what can't be
    read.
    """
    import soundfile

    try:
        samples, rate = load_audio(source)
    except UserError as error:
        logging.info("no player for it in the report: %s", error)
        return None
    kind, mime = ("MP3", "mpeg") if "MP3" in soundfile.available_formats() else ("WAV", "wav")
    buffer = io.BytesIO()
    cut = np.clip(samples[: int(_MOST_SECONDS * rate)], -1, 1)
    soundfile.write(buffer, cut, rate, format=kind)
    return f"data:audio/{mime};base64,{base64.b64encode(buffer.getvalue()).decode()}"
