"""The speakers of mini_espeak and what an emotion does to their voice.

A speaker is an English voice, a variant (formants) and a habit: pitch, range, rate, volume and
vocal effort. An emotion moves the speaker's own habit, so absolute pitch says little about it.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from espnet_adaltm.data.corpora.espeak import Settings

_ACCENTS = ("en-us", "en", "en-gb-x-rp", "en-gb-scotland", "en-gb-x-gbcwmd")
# Variants without an echo: eSpeak NG's echo differs from one process to the next.
_VARIANTS = {
    "m": ("m1", "m3", "m4", "m6", "m7", "Alex", "max", "Andy", "Lee", "Michael"),
    "f": (
        *("f1", "linda", "Annie", "belinda", "Andrea"),
        *("anika", "steph", "steph3", "aunty", "grandma"),
    ),
}


@dataclass(frozen=True)
class Prosody:
    """How an utterance is said; units of `Settings`, but real-valued.

    Attributes:
        effort: Vocal effort as spectral tilt: the coefficient k of y[n] = x[n] - k x[n-1]. A raised
            voice has stronger high frequencies. Unlike loudness, this survives the normalisation
            to unit variance in front of every speech encoder.
    """

    rate: float
    volume: float
    pitch: float
    range: float
    effort: float

    def settings(self) -> Settings:
        """The nearest parameters that eSpeak NG accepts."""
        limits = {"rate": (110, 300), "volume": (10, 120), "pitch": (0, 99), "range": (0, 99)}
        return Settings(
            **{k: round(min(max(getattr(self, k), low), high)) for k, (low, high) in limits.items()}
        )


@dataclass(frozen=True)
class Speaker:
    """One synthetic speaker.

    Attributes:
        voice: eSpeak NG's accent and variant.
        tract: Factor of all frequencies, as of a shorter vocal tract (and of the speed).
    """

    name: str
    gender: str
    voice: str
    habit: Prosody
    tract: float


@dataclass(frozen=True)
class Cue:
    """An emotion's shift: factors of rate and volume, steps of pitch, range and effort."""

    rate: float = 1.0
    volume: float = 1.0
    pitch: float = 0.0
    range: float = 0.0
    effort: float = 0.0


VOICE_CUES: Mapping[str, Cue] = {
    "angry": Cue(rate=1.2, volume=1.4, pitch=4, range=26, effort=0.35),
    "happy": Cue(rate=1.04, volume=1.1, pitch=24, range=34, effort=0.05),
    "neutral": Cue(),
    "sad": Cue(rate=0.83, volume=0.7, pitch=-14, range=-32, effort=-0.3),
}


def speaker_bank(seed: int) -> list[Speaker]:
    """The 100 speakers, women and men in turn: every prefix of even length is balanced."""
    rng = random.Random(f"{seed}/speakers")
    pools = {}
    for gender, variants in _VARIANTS.items():
        pools[gender] = [f"{accent}+{variant}" for variant in variants for accent in _ACCENTS]
        rng.shuffle(pools[gender])
    order = [(g, v) for pair in zip(pools["f"], pools["m"]) for g, v in zip("fm", pair)]
    return [
        Speaker(f"s{number:02d}", gender, voice, _habit(rng), rng.uniform(0.93, 1.08))
        for number, (gender, voice) in enumerate(order, 1)
    ]


def _habit(rng: random.Random) -> Prosody:
    return Prosody(
        rate=rng.uniform(166, 186),
        volume=rng.uniform(36, 48),
        pitch=rng.uniform(36, 54),
        range=rng.uniform(44, 52),
        effort=rng.uniform(0.0, 0.15),
    )


def perform(habit: Prosody, emotion: str, rng: random.Random) -> Prosody:
    """Move a habit by an emotion's cue, more or less strongly, and by a little noise."""
    cue = VOICE_CUES[emotion]
    strength = rng.uniform(1.0, 1.6)
    return Prosody(
        rate=habit.rate * cue.rate**strength * rng.gauss(1, 0.03),
        volume=habit.volume * cue.volume**strength * rng.gauss(1, 0.08),
        pitch=habit.pitch + strength * cue.pitch + rng.gauss(0, 3),
        range=habit.range + strength * cue.range + rng.gauss(0, 5),
        effort=habit.effort + strength * cue.effort + rng.gauss(0, 0.05),
    )


def apply_effort(samples: np.ndarray, effort: float) -> np.ndarray:
    """Tilt the spectrum of samples [N] by ``effort`` and keep their power."""
    samples = samples.astype(np.float64)
    tilted = samples - effort * np.concatenate(([0.0], samples[:-1]))
    power, new = np.mean(samples**2), np.mean(tilted**2)
    return tilted * np.sqrt(power / new) if new > 0 else tilted
