"""A miniature of MSP-Podcast in the layout of one of its releases, with the faults of real ones.

See `miniature`. The faults: one labelled recording is missing, one is 44.1 kHz stereo and one has
8 kHz, transcripts are empty or absent, speakers are unknown, one speaker is in train and in test2,
a fifth of the turns has no class (O, X), test3 has no rows, macOS left a ``._`` file.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from espnet_adaltm.data.corpora.miniature import link_wavs, spread, tone, words, write_wav

CODES = "ACDFHNSUOX"
SPOKEN = {
    "A": "Angry",
    "C": "Contempt",
    "D": "Disgust",
    "F": "Fear",
    "H": "Happy",
    "N": "Neutral",
    "S": "Sad",
    "U": "Surprise",
    "O": "Other-Confused",
}
# Roughly those of the training set of 2.0.
_SHARES = (0.12, 0.04, 0.02, 0.01, 0.22, 0.27, 0.08, 0.04, 0.08, 0.12)
_SETS = ("Train", "Development", "Test1", "Test2")
_SET_SHARES = (0.58, 0.14, 0.18, 0.1)
_ANNOTATORS = 5
_UNKNOWN = 0.2
_PER_SHOW = 12


@dataclass(frozen=True)
class Layout:
    """How a release differs: folders, spelling, the columns of annotations, the validation set."""

    audio: str = "Audios"
    labels: str = "Labels"
    spelling: str = "labels_consensus"
    detail: str = "detail"
    valid: str = "Development"


LAYOUTS = {
    "1.8": Layout("Audio", "Labels", "labels_concensus", "detail", "Validation"),
    "1.11": Layout(),
    "1.12": Layout(),
    "2.0": Layout(labels="Labels/Labels", detail="columns"),
}


@dataclass(frozen=True)
class Row:
    """A turn of the miniature; ``primary`` are the annotators' words."""

    stem: str
    code: str
    speaker: str
    gender: str
    split: str
    primary: tuple[str, ...]
    text: str | None


def write_msp_podcast(
    root: Path,
    version: str = "1.12",
    turns: int = 200,
    test3: int = 6,
    seed: int = 0,
    *,
    linked: bool = False,
    faults: bool = True,
) -> list[Row]:
    """Write a release.

    Args:
        root: Folder to make.
        version: A key of `LAYOUTS`.
        turns: Labelled turns; every set has every code from 40 turns on.
        test3: Recordings of test3.
        seed: Of everything.
        linked: All recordings are a few files under many names: for timing, not for learning.
        faults: Make the faults.

    Returns:
        The rows of its label file.
    """
    layout = LAYOUTS[version]
    generator = np.random.default_rng(seed)
    rows = _rows(layout, turns, generator, faults)
    hidden = [f"MSP-PODCAST_test3_{number:04d}" for number in range(1, test3 + 1)]
    audio, labels = root / layout.audio, root / layout.labels
    for folder in (audio, labels, root / "Transcripts"):
        folder.mkdir(parents=True)
    _write_tables(labels, layout, rows)
    _write_lists(root, rows, hidden)
    for row in rows:
        if row.text is not None:
            (root / "Transcripts" / f"{row.stem}.txt").write_text(row.text, encoding="utf-8")
    for stem in hidden:
        (root / "Transcripts" / f"{stem}.txt").write_text(words(generator, 4), encoding="utf-8")
    present = rows[1:] if faults else rows  # 2.0 lacks one recording
    if linked:
        link_wavs(audio, [f"{stem}.wav" for stem in (*(row.stem for row in present), *hidden)])
    else:
        _write_audio(audio, present, hidden, generator, faults)
    return rows


def _rows(layout: Layout, turns: int, generator: np.random.Generator, faults: bool) -> list[Row]:
    rows: list[Row] = []
    for split, size in zip(_SETS, spread(turns, _SET_SHARES), strict=True):
        # Every code once, in larger sets twice: one of them may fall to a fault.
        first = (CODES if size < 2 * len(CODES) else 2 * CODES)[:size]
        codes = [*first, *generator.choice(list(CODES), size - len(first), p=_SHARES)]
        number_of_speakers = max(2, size // 60)
        shown = layout.valid if split == "Development" else split
        for code in codes:
            place = len(rows)
            stem = f"MSP-PODCAST_{1 + place // _PER_SHOW:04d}_{7 * (place % _PER_SHOW) + 1:04d}"
            if place % 17 == 3:
                stem += "_01"
            speaker = int(generator.integers(number_of_speakers))
            # Numbers of speakers go on from set to set, but for one whom two sets share.
            number = 1000 * _SETS.index(split) + speaker + 1
            if faults and split == "Test2" and speaker == 0:
                number = 1
            unknown = faults and split == "Train" and generator.random() < _UNKNOWN
            rows.append(
                Row(
                    stem,
                    str(code),
                    "Unknown" if unknown else str(number),
                    "Unknown" if unknown else ("Male", "Female")[speaker % 2],
                    shown,
                    _annotations(str(code), generator),
                    _text(place, generator, faults),
                )
            )
    return rows


def _text(place: int, generator: np.random.Generator, faults: bool) -> str | None:
    said = words(generator, int(generator.integers(2, 6)))
    if not faults:
        return said
    if place % 29 == 5:
        return None
    if place % 29 == 6:
        return ""
    return "[laughter]" if place % 29 == 7 else said


def _annotations(code: str, generator: np.random.Generator) -> tuple[str, ...]:
    """Primary emotions whose plurality is ``code``: three of five, or two and two for X."""
    others = [str(other) for other in generator.permutation(list(CODES[:8])) if other != code]
    votes = [others[0]] * 2 + [others[1]] * 2 if code == "X" else [code] * 3 + others[:1]
    votes.append(others[2])
    return tuple(SPOKEN[vote] for vote in votes)


def _write_tables(labels: Path, layout: Layout, rows: Sequence[Row]) -> None:
    header = "FileName,EmoClass,EmoAct,EmoVal,EmoDom,SpkrID,Gender,Split_Set\n"
    with open(labels / f"{layout.spelling}.csv", "w", encoding="utf-8") as handle:
        handle.write(header)
        handle.writelines(
            f"{r.stem}.wav,{r.code},4.2,3.6,4.4,{r.speaker},{r.gender},{r.split}\n" for r in rows
        )
    columns = "Workers,EmoClass_Major,EmoClass_Second,EmoAct,EmoVal,EmoDom"
    with open(labels / "labels_detailed.csv", "w", encoding="utf-8") as handle:
        handle.write(f"FileName,{columns if layout.detail == 'columns' else 'EmoDetail'}\n")
        for row in rows:
            handle.writelines(
                f"{row.stem}.wav,{_annotation(number, primary, layout)}\n"
                for number, primary in enumerate(row.primary)
            )


def _annotation(number: int, primary: str, layout: Layout) -> str:
    worker = f"WORKER{number:08d}"
    if layout.detail == "columns":
        return f'{worker},{primary},"{primary},Concerned",4,3,5'
    return f'"{worker}; {primary}; {primary},Concerned; A:4.000000; V:3.000000; D:5.000000;"'


def _write_lists(root: Path, rows: Sequence[Row], hidden: Sequence[str]) -> None:
    with open(root / "Partitions.txt", "w", encoding="utf-8") as handle:
        handle.writelines(f"{row.split}; {row.stem}.wav\n" for row in rows)
        handle.writelines(f"Test3; {stem}.wav\n" for stem in hidden)
    genders = {row.speaker: row.gender for row in rows}
    with open(root / "Speaker_ids.txt", "w", encoding="utf-8") as handle:
        handle.writelines(f"Speaker_{name}; {gender}\n" for name, gender in genders.items())
        handle.writelines(f"{row.stem}.wav; {row.speaker}\n" for row in rows)


def write_json_twins(root: Path, version: str, rows: Sequence[Row]) -> None:
    """Replace the tables of a miniature by their JSON twins."""
    layout = LAYOUTS[version]
    labels = root / layout.labels
    names = ("EmoClass", "SpkrID", "Gender", "Split_Set")
    consensus = {
        f"{r.stem}.wav": dict(zip(names, (r.code, r.speaker, r.gender, r.split), strict=True))
        for r in rows
    }
    detailed = {
        f"{r.stem}.wav": {
            f"WORKER{number:08d}": {"EmoClass_Major": primary}
            for number, primary in enumerate(r.primary)
        }
        for r in rows
    }
    for name, value in ((layout.spelling, consensus), ("labels_detailed", detailed)):
        (labels / f"{name}.csv").unlink()
        (labels / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")


def write_labels_txt(root: Path, version: str, rows: Sequence[Row]) -> None:
    """Replace the table of single annotations by ``labels.txt``."""
    labels = root / LAYOUTS[version].labels
    (labels / "labels_detailed.csv").unlink()
    with open(labels / "labels.txt", "w", encoding="utf-8") as handle:
        for row in rows:
            handle.write(f"{row.stem}.wav; {row.code}; A:4.2; V:3.6; D:4.4;\n")
            handle.writelines(
                f"WORKER{number:08d}; {primary}; {primary},; A:4.0; V:3.0; D:5.0;\n"
                for number, primary in enumerate(row.primary)
            )
            handle.write("\n")


def _write_audio(
    folder: Path,
    rows: Sequence[Row],
    hidden: Sequence[str],
    generator: np.random.Generator,
    faults: bool,
) -> None:
    for place, row in enumerate(rows):
        rate, channels = 16000, 1
        if faults and place < 2:
            rate, channels = ((44100, 2), (8000, 1))[place]
        seconds = float(generator.uniform(0.3, 0.6))
        samples = tone(CODES.index(row.code), seconds, generator, rate)
        write_wav(folder / f"{row.stem}.wav", samples, rate, channels)
    for place, stem in enumerate(hidden):
        write_wav(folder / f"{stem}.wav", tone(place % 8, 0.4, generator))
    if faults:
        (folder / "._MSP-PODCAST_0001_0001.wav").write_bytes(b"\0\5\x16\7")
