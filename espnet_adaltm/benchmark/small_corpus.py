"""A corpus of a few clips that has all that any training reads, made by the recipe's programs."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from espnet_adaltm.data.corpora.miniature import tone, words, write_wav
from espnet_adaltm.kaldi import write_scp

SETS = ("train", "dev", "test")
EMOTIONS = ("angry", "happy", "neutral", "sad")
_TURNS = 2  # of a dialogue


def write_corpus(folder: Path, clips: int, seconds: float, run: Callable[..., None]) -> None:
    """Write ``dump/<set>``, ``tokens`` and ``labels.json``.

    Args:
        folder: To write to.
        clips: Of each set; names are MSP-Podcast's, two of a show.
        seconds: Of each clip.
        run: Takes the name of a program and its words.
    """
    generator = np.random.default_rng(0)
    for number, name in enumerate(SETS):
        # `learn_on: held_out` parts the validation speakers: each clip there has its own.
        share = 1 if name == "dev" else _TURNS
        _write_set(folder / "data" / name, 10 * number, clips, share, seconds, generator)
        data, dump = folder / "data" / name, folder / "dump" / name
        run("format_audio", "--data", data, "--out", dump, "--num_workers", 1)
    text = folder / "dump/train/text"
    run("prepare_tokens", "--text", text, "--type", "char", "--out", folder / "tokens")
    sets = [f"{name}={folder / 'dump' / name}" for name in SETS]
    run("prepare_labels", "--sets", *sets, "--out", folder / "labels.json")


def _write_set(
    data: Path, first: int, clips: int, share: int, seconds: float, generator: np.random.Generator
) -> None:
    """Write a data directory with ``share`` clips of every speaker."""
    tables: dict[str, dict[str, str]] = {
        name: {} for name in ("wav.scp", "text", "utt2spk", "utt2emo", "utt2dialog")
    }
    (data / "wav").mkdir(parents=True, exist_ok=True)
    for clip in range(clips):
        show, turn = first + clip // _TURNS, clip % _TURNS
        utt = f"MSP-PODCAST_{show:04d}_{turn:04d}"
        path = data / "wav" / f"{utt}.wav"
        emotion = clip % len(EMOTIONS)
        write_wav(path, tone(emotion, seconds, generator))
        tables["wav.scp"][utt] = str(path)
        tables["text"][utt] = words(generator, max(1, int(2 * seconds)))
        tables["utt2spk"][utt] = f"S{first + clip // share:04d}"
        tables["utt2emo"][utt] = EMOTIONS[emotion]
        tables["utt2dialog"][utt] = f"D{show:04d} {turn}"
    for name, table in tables.items():
        write_scp(data / name, table)
