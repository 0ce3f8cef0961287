"""Miniatures of corpora that are given under a licence: the release's files, made-up contents.

They let a recipe be tried, tested and timed without the corpus: names, folders, tables and their
faults are those of the release; the speech is a tone whose pitch tells the emotion, the words are
drawn from a few. Nothing that is learned from them means anything. Run it with
``python -m espnet_adaltm.bin.make_miniature``.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 16000
WORDS = (
    "well", "you", "know", "that", "was", "the", "best", "day", "i", "don't", "think", "so", "we",
    "can", "talk", "about", "it", "again", "never", "mind",
)  # fmt: skip
# A file has at most 65,000 names on ext4.
_NAMES_PER_FILE = 50_000
_PITCH = 110.0


def tone(
    emotion: int, seconds: float, generator: np.random.Generator, rate: int = SAMPLE_RATE
) -> NDArray[np.float64]:
    """A tone of an emotion's pitch in a little noise.

    Args:
        emotion: Number of the emotion; each has a pitch of its own.
        seconds: How long.
        generator: Of the noise.
        rate: Samples per second.

    Returns:
        Samples, shape [N], full scale 1.
    """
    time = np.arange(round(seconds * rate)) / rate
    pitch = _PITCH * 2.0 ** (emotion / 4)
    return 0.3 * np.sin(2 * np.pi * pitch * time) + 0.01 * generator.standard_normal(len(time))


def words(generator: np.random.Generator, number: int) -> str:
    """A few words, as somebody would write them down."""
    picked = " ".join(generator.choice(WORDS, number))
    return f"{picked[0].upper()}{picked[1:]}."


def write_wav(
    path: Path, samples: NDArray[np.float64], rate: int = SAMPLE_RATE, channels: int = 1
) -> None:
    """Write [N] samples as 16-bit WAV, the same on every channel."""
    import soundfile

    signal = np.stack([samples] * channels, axis=1)
    soundfile.write(path, signal, rate, subtype="PCM_16", format="WAV")


def link_wavs(folder: Path, names: Iterable[str], seconds: float = 0.2) -> None:
    """Give many names to few recordings, where only the names matter."""
    names = list(names)
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for begin in range(0, len(names), _NAMES_PER_FILE):
        first, *others = names[begin : begin + _NAMES_PER_FILE]
        write_wav(folder / first, tone(0, seconds, generator))
        source = str(folder / first)
        for name in others:
            os.link(source, f"{folder}/{name}")


def spread(total: int, shares: Sequence[float]) -> list[int]:
    """Divide a number by shares; the rest goes to the first."""
    sizes = [int(total * share) for share in shares]
    sizes[0] += total - sum(sizes)
    return sizes
