"""mini_espeak: emotional dialogues of synthetic speakers, made in a minute or two.

Emotion reaches an utterance through a channel: its ``voice`` (neutral words, emotional prosody),
its ``words`` (emotional words, the speaker's habitual prosody) or ``both``. Whoever hears only the
voice or reads only the words is at chance in the other's channel; `channel_ceilings` gives the
resulting bounds. Speakers and sentences of train, dev and test are disjoint. Dialogues have two
speakers that take turns; the emotion of a turn repeats the last one's with probability 0.45.

    python -m espnet_adaltm.bin.prepare_mini_espeak --size ci --out_data data/ci --audio_dir audio
"""

import hashlib
import io
import itertools
import os
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from espnet_adaltm.data.corpora.espeak import Espeak
from espnet_adaltm.data.corpora.mini_espeak_grammar import EMOTIONS, SETS, sentence, set_of
from espnet_adaltm.data.corpora.mini_espeak_voices import (
    Prosody,
    Speaker,
    apply_effort,
    perform,
    speaker_bank,
)
from espnet_adaltm.data.datadir import write_data_dir
from espnet_adaltm.data.label_share import nested_subset
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import atomic_open, read_json, write_json
from espnet_adaltm.progress import progress
from espnet_adaltm.workers import process_pool

CHANNELS = ("voice", "words", "both")
SAMPLE_RATE = 16_000
TURNS = 8
STAY = 0.45
_FIRST_SPEAKER = {"train": 0, "dev": 64, "test": 78}
# Raised whenever the same plan would give other samples.
_RENDER_VERSION = 2
_NOISE = 6.0
_MOST_DRAWS = 10_000


@dataclass(frozen=True)
class Size:
    """Speakers and utterances of train, dev and test, and the emotion-labelled share of train."""

    speakers: tuple[int, int, int]
    utterances: tuple[int, int, int]
    labelled_share: float


SIZES: Mapping[str, Size] = {
    "ci": Size((4, 2, 2), (80, 24, 32), 0.5),
    "quick": Size((40, 10, 10), (1200, 300, 600), 0.5),
    "full": Size((64, 14, 18), (6000, 1000, 4000), 0.5),
}


@dataclass(frozen=True)
class Options:
    """What decides the corpus, bit for bit.

    Attributes:
        size: Key of `SIZES`.
        seed: Of everything random.
        labelled_share: Share of train that keeps its emotion label; None for the size's own.
        shares: Shares of the channels voice, words and both; they sum to one.
    """

    size: str
    seed: int = 2025
    labelled_share: float | None = None
    shares: Mapping[str, float] = field(
        default_factory=lambda: {"voice": 0.40, "words": 0.45, "both": 0.15}
    )

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise UserError(f"--size {self.size}: expected one of {', '.join(SIZES)}")
        if self.labelled_share is not None and not 0 < self.labelled_share <= 1:
            raise UserError(f"--labelled_share {self.labelled_share}: expected above 0, at most 1")
        shares = [self.shares.get(channel, 0.0) for channel in CHANNELS]
        if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise UserError(f"channel shares {dict(self.shares)}: expected none below 0, sum 1")


@dataclass(frozen=True)
class Utterance:
    """One planned utterance; ``key`` is ``speaker-dialogue-turn``."""

    key: str
    speaker: Speaker
    dialog: str
    turn: int
    emotion: str
    channel: str
    text: str
    prosody: Prosody


def plan(options: Options) -> dict[str, list[Utterance]]:
    """Decide every utterance of every set, sorted by key. No audio is made."""
    size = SIZES[options.size]
    bank = speaker_bank(options.seed)
    numbers = itertools.count(1)
    seen: set[str] = set()
    words: set[str] = set()
    corpus = {}
    for name, speakers, count in zip(SETS, size.speakers, size.utterances):
        first = _FIRST_SPEAKER[name]
        chosen = bank[first : first + speakers]
        turns = _turns(name, chosen, count, numbers, options.seed)
        channels = _channels(name, [turn.emotion for turn in turns], options)
        known = None if name == "train" else words
        utterances = [
            _utterance(name, turn, channel, options.seed, seen, known)
            for turn, channel in zip(turns, channels)
        ]
        if name == "train":
            words = {word for utterance in utterances for word in utterance.text.split()}
        corpus[name] = sorted(utterances, key=lambda utterance: utterance.key)
    return corpus


@dataclass(frozen=True)
class _Turn:
    speaker: Speaker
    dialog: str
    turn: int
    emotion: str


def _turns(
    name: str, speakers: Sequence[Speaker], count: int, numbers: Iterable[int], seed: int
) -> list[_Turn]:
    """Dialogues of `TURNS` turns (the last may be shorter) until there are ``count`` turns."""
    rng = random.Random(f"{seed}/{name}/dialogues")
    pairs, starts = _deck(speakers, rng), _deck(EMOTIONS, rng)
    turns: list[_Turn] = []
    while len(turns) < count:
        dialog = f"d{next(iter(numbers)):04d}"
        pair = next(pairs), next(pairs)
        emotion = next(starts)
        for turn in range(min(TURNS, count - len(turns))):
            turns.append(_Turn(pair[turn % 2], dialog, turn, emotion))
            emotion = next_emotion(emotion, rng)
    return turns


def _deck(items: Sequence, rng: random.Random) -> Iterable:
    """Deal ``items`` for ever, all of them (in a new order) before any comes again."""
    while True:
        yield from rng.sample(items, len(items))


def next_emotion(emotion: str, rng: random.Random) -> str:
    """One step of the Markov chain: stay, or go to any other emotion alike (uniform marginal)."""
    if rng.random() < STAY:
        return emotion
    return rng.choice([other for other in EMOTIONS if other != emotion])


def _channels(name: str, emotions: Sequence[str], options: Options) -> list[str]:
    """One channel for every turn; the shares hold within every emotion, up to rounding."""
    rng = random.Random(f"{options.seed}/{name}/channels")
    decks = {}
    for emotion in EMOTIONS:
        count = emotions.count(emotion)
        edges = itertools.accumulate((options.shares.get(c, 0.0) for c in CHANNELS), initial=0.0)
        ends = [round(edge * count) for edge in edges]
        deck = [c for c, low, high in zip(CHANNELS, ends, ends[1:]) for _ in range(low, high)]
        rng.shuffle(deck)
        decks[emotion] = iter(deck)
    return [next(decks[emotion]) for emotion in emotions]


def _utterance(
    name: str, turn: _Turn, channel: str, seed: int, seen: set[str], known: set[str] | None
) -> Utterance:
    key = f"{turn.speaker.name}-{turn.dialog}-t{turn.turn}"
    rng = random.Random(f"{seed}/{key}")
    text = _new_sentence(name, "neutral" if channel == "voice" else turn.emotion, rng, seen, known)
    prosody = perform(turn.speaker.habit, "neutral" if channel == "words" else turn.emotion, rng)
    return Utterance(
        key, turn.speaker, turn.dialog, turn.turn, turn.emotion, channel, text, prosody
    )


def _new_sentence(
    name: str, emotion: str, rng: random.Random, seen: set[str], known: set[str] | None
) -> str:
    """A sentence that belongs to the set, was not said yet and has ``known`` words only."""
    for _ in range(_MOST_DRAWS):
        text = sentence(emotion, rng)
        fits = known is None or known.issuperset(text.split())
        if fits and text not in seen and set_of(text) == name:
            seen.add(text)
            return text
    raise UserError(f"mini_espeak: the grammar has no new {emotion} sentence left for {name}")


def labelled_subset(utterances: Sequence[Utterance], share: float, seed: int) -> set[str]:
    """Choose the utterances that keep their emotion label, see `nested_subset`.

    Returns:
        Utterance keys.
    """
    emotions = {utterance.key: utterance.emotion for utterance in utterances}
    speakers = {utterance.key: utterance.speaker.name for utterance in utterances}
    return nested_subset(emotions, speakers, share, seed)


def channel_ceilings(
    utt2emo: Mapping[str, str], utt2channel: Mapping[str, str]
) -> dict[str, float]:
    """The accuracy that perfect recognition of one channel alone could reach.

    Args:
        utt2emo: Emotion of every utterance.
        utt2channel: ``voice``, ``words`` or ``both`` of (at least) the same utterances.

    Returns:
        ``{"voice": a, "words": b}``: everything right where the cue is present (its own channel and
        ``both``), the most frequent emotion guessed where it is not.

    Raises:
        UserError: No utterances, or one without a known channel.
    """
    if not utt2emo:
        raise UserError("channel ceilings: utt2emo is empty")
    emotions: dict[str, Counter[str]] = {channel: Counter() for channel in CHANNELS}
    for key, emotion in utt2emo.items():
        channel = utt2channel.get(key)
        if channel not in emotions:
            raise UserError(f"utt2channel: {key} has {channel!r}, expected {'|'.join(CHANNELS)}")
        emotions[channel][emotion] += 1
    blind = {"voice": "words", "words": "voice"}
    return {
        own: 1 - (emotions[other].total() - max(emotions[other].values(), default=0)) / len(utt2emo)
        for own, other in blind.items()
    }


_engine: Espeak | None = None


def _start_worker() -> None:
    global _engine
    _engine = Espeak()


def render(utterance: Utterance, engine: Espeak) -> np.ndarray:
    """Speak one utterance.

    Returns:
        Samples [N], int16, at 16 kHz: a function of the utterance alone.
    """
    import soxr

    raw = engine.speak(utterance.text, utterance.speaker.voice, utterance.prosody.settings())
    rate = engine.sample_rate * utterance.speaker.tract
    samples = soxr.resample(raw.astype(np.float64), rate, SAMPLE_RATE)
    samples = apply_effort(samples, utterance.prosody.effort)
    # A faint noise floor: digital silence has no counterpart in recordings.
    seed = int.from_bytes(hashlib.sha256(utterance.key.encode()).digest()[:8])
    samples += np.random.default_rng(seed).normal(0.0, _NOISE, len(samples))
    return np.clip(np.rint(samples), -32768, 32767).astype(np.int16)


def _write_wav(job: tuple[Utterance, Path]) -> int:
    import soundfile

    utterance, path = job
    if _engine is None:
        raise AssertionError("the worker was not started")
    samples = render(utterance, _engine)
    content = io.BytesIO()
    soundfile.write(content, samples, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    with atomic_open(path, "wb", sync=False) as handle:
        handle.write(content.getbuffer())
    return len(samples)


def wav_path(audio_dir: Path, utterance: Utterance) -> Path:
    """Where an utterance's audio lies."""
    return audio_dir / utterance.speaker.name / f"{utterance.key}.wav"


def write_audio(utterances: Sequence[Utterance], audio_dir: Path, num_workers: int) -> bool:
    """Write every utterance as a 16 kHz mono 16-bit wav file.

    Args:
        utterances: What to say.
        audio_dir: Folder of the files; ``corpus.json`` in it tells a complete one.
        num_workers: Processes; the bytes do not depend on it.

    Returns:
        False if the folder already held exactly this audio.

    Raises:
        UserError: eSpeak NG does not start, a file cannot be written, ``num_workers`` is below 1.
    """
    if num_workers < 1:
        raise UserError(f"--num_workers {num_workers}: expected at least 1")
    identity = {
        "utterances": len(utterances),
        "sha256": hashlib.sha256(repr((_RENDER_VERSION, list(utterances))).encode()).hexdigest(),
    }
    jobs = [(utterance, wav_path(audio_dir, utterance)) for utterance in utterances]
    marker = audio_dir / "corpus.json"
    if marker.exists() and read_json(marker) == identity and all(p.exists() for _, p in jobs):
        return False
    marker.unlink(missing_ok=True)
    for folder in {path.parent for _, path in jobs}:
        folder.mkdir(parents=True, exist_ok=True)
    Espeak()  # Fails here with its own message, where a worker could only break the pool.
    # Also for one: each forks once per utterance, which a process with threads should not.
    with process_pool(num_workers, _start_worker) as pool:
        for _ in progress(pool.map(_write_wav, jobs, chunksize=8), "speaking", len(jobs)):
            pass
    os.sync()  # once, before the marker says that all of it is there
    write_json(marker, identity)
    return True


def write_set(
    folder: Path, utterances: Sequence[Utterance], audio_dir: Path, labelled: set[str]
) -> None:
    """Write one Kaldi data directory; only ``labelled`` keys go into ``utt2emo``."""
    by_key = {utterance.key: utterance for utterance in utterances}
    write_data_dir(
        folder,
        wav_scp={key: str(wav_path(audio_dir, u)) for key, u in by_key.items()},
        text={key: u.text for key, u in by_key.items()},
        utt2spk={key: u.speaker.name for key, u in by_key.items()},
        utt2emo={key: u.emotion for key, u in by_key.items() if key in labelled},
        utt2dialog={key: f"{u.dialog} {u.turn}" for key, u in by_key.items()},
        utt2channel={key: u.channel for key, u in by_key.items()},
        utt2gender={key: u.speaker.gender for key, u in by_key.items()},
    )


def prepare(options: Options, out_data: Path, audio_dir: Path, num_workers: int) -> dict[str, dict]:
    """Make the corpus: audio, and the data directories train, dev and test.

    Returns:
        Per set: ``utterances``, ``speakers``, ``labelled`` and the `channel_ceilings`.
    """
    corpus = plan(options)
    write_audio([u for utterances in corpus.values() for u in utterances], audio_dir, num_workers)
    share = options.labelled_share or SIZES[options.size].labelled_share
    summary = {}
    for name, utterances in corpus.items():
        labelled = labelled_subset(utterances, share if name == "train" else 1.0, options.seed)
        write_set(out_data / name, utterances, audio_dir, labelled)
        summary[name] = {
            "utterances": len(utterances),
            "speakers": len({utterance.speaker.name for utterance in utterances}),
            "labelled": len(labelled),
            **channel_ceilings(
                {u.key: u.emotion for u in utterances}, {u.key: u.channel for u in utterances}
            ),
        }
    write_json(out_data / "corpus.json", {"options": asdict(options), "sets": summary})
    return summary
