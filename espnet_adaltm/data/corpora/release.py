"""Recordings of a corpus release, looked up by their stem."""

import os
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from espnet_adaltm.errors import UserError

# Suffixes that are not the name of libsndfile's format. Earlier ones win where a recording is
# present twice.
_SUFFIXES = {
    ".wav": "WAV",
    ".flac": "FLAC",
    ".ogg": "OGG",
    ".oga": "OGG",
    ".opus": "OGG",
    ".mp3": "MP3",
    ".aif": "AIFF",
    ".aiff": "AIFF",
    ".aifc": "AIFF",
    ".snd": "AU",
    ".sph": "NIST",
    ".sf": "IRCAM",
    ".8svx": "SVX",
    ".iff": "SVX",
}
# Without a header, or rarely audio.
_LEFT_OUT = frozenset(["RAW", "MAT4", "MAT5"])


@cache
def audio_suffixes() -> tuple[str, ...]:
    """Lower-case suffixes of all recordings that the installed libsndfile reads, best first."""
    import soundfile

    formats = set(soundfile.available_formats()) - _LEFT_OUT
    named = [suffix for suffix, kind in _SUFFIXES.items() if kind in formats]
    others = (f".{kind.lower()}" for kind in sorted(formats))
    return tuple(dict.fromkeys([*named, *others]))


def index_audio(folder: Path) -> dict[str, Path]:
    """Map the stem of every audio file directly in ``folder`` to its path.

    Raises:
        UserError: The folder is missing.
    """
    return {stem: folder / name for stem, name in list_audio(folder).items()}


def list_audio(folder: Path) -> dict[str, str]:
    """As `index_audio`, to file names: hundreds of thousands of paths take seconds to make.

    Raises:
        UserError: The folder is missing.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give the root of the unpacked release")
    rank = {suffix: number for number, suffix in enumerate(audio_suffixes())}
    found: dict[str, str] = {}
    ranks: dict[str, int] = {}
    for name in sorted(os.listdir(folder)):
        stem, dot, suffix = name.rpartition(".")
        number = rank.get(f".{suffix.lower()}") if stem and dot else None
        # A dot in front: what macOS leaves beside files in archives.
        if number is not None and not name.startswith(".") and number <= ranks.get(stem, number):
            found[stem], ranks[stem] = name, number
    return found


def split_speakers(
    present: Iterable[str], dev: Sequence[str], test: Sequence[str], what: str
) -> dict[str, str]:
    """Map every speaker to train, dev or test.

    Args:
        present: Speakers of the release.
        dev: Speakers held out for development.
        test: Speakers held out for the test.
        what: What a speaker is called in this corpus, for errors.

    Raises:
        UserError: A held-out speaker is absent or in both sets, or nobody is left for training.
    """
    present = sorted(set(present))
    for name in (*dev, *test):
        if name not in present:
            raise UserError(
                f"held-out {what} {name} is not in the release (it has {', '.join(present)}): "
                f"unpack all of it, or choose with --dev_{what}s and --test_{what}s"
            )
    both = set(dev) & set(test)
    if both:
        raise UserError(f"{what} {', '.join(sorted(both))} is in both dev and test: choose one")
    sets = {name: "dev" if name in dev else "test" if name in test else "train" for name in present}
    if "train" not in sets.values():
        raise UserError(f"every {what} is held out: nobody is left for train")
    return sets
