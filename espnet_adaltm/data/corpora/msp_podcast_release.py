"""The files of an MSP-Podcast release: where they lie, and what they say.

Releases differ: ``Audios`` or ``Audio``; ``labels_consensus`` or, before 1.10, ``labels_concensus``
(CSV or JSON); in 2.0 ``Labels/Labels``; single annotations in columns, in one column ``EmoDetail``,
as JSON, or only in ``labels.txt``; ``Development`` or ``Validation``. Test3 has no labels: it is in
rows, in lines of ``Partitions.txt``, or only in files called ``*_test3_*``.
"""

import csv
import json
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from espnet_adaltm.data.corpora.release import list_audio
from espnet_adaltm.data.datadir import UNKNOWN_SPEAKER
from espnet_adaltm.errors import UserError

EMOTIONS = {
    "A": "anger",
    "C": "contempt",
    "D": "disgust",
    "F": "fear",
    "H": "happiness",
    "N": "neutral",
    "S": "sadness",
    "U": "surprise",
    "O": "other",
    "X": "no_agreement",
}
# What an annotator can say: nobody says X.
VOTED = "ACDFHNSUO"
TEST3 = "test3"
SETS = {
    "train": "train",
    "development": "dev",
    "validation": "dev",
    "test1": "test1",
    "test2": "test2",
    "test3": TEST3,
}
_NEEDED = ("FileName", "EmoClass", "SpkrID", "Gender", "Split_Set")
_SPELLINGS = ("labels_consensus", "labels_concensus")
_GENDERS = {"male": "m", "female": "f"}
_NOBODY = ("", "unknown", "nan", "none")
_PRIMARY = {
    "angry": "A",
    "anger": "A",
    "contempt": "C",
    "disgust": "D",
    "fear": "F",
    "happy": "H",
    "happiness": "H",
    "neutral": "N",
    "sad": "S",
    "sadness": "S",
    "surprise": "U",
    "surprised": "U",
}


@dataclass(frozen=True)
class Release:
    """Where the parts of a release lie; None for what it lacks.

    Attributes:
        root: As given.
        audio: Folder of the recordings.
        consensus: ``labels_consensus.csv`` or its twin.
        annotations: ``labels_detailed.csv``, ``.json`` or ``labels.txt``.
        transcripts: Folder with a text file per recording.
        partitions: ``Partitions.txt``.
    """

    root: Path
    audio: Path
    consensus: Path
    annotations: Path | None
    transcripts: Path | None
    partitions: Path | None


class Turn(NamedTuple):
    """A row of the label file; ``stem`` is the file's name without suffix.

    ``code`` is a key of `EMOTIONS`, empty in Test3; ``gender`` is m, f or empty.
    """

    stem: str
    code: str
    speaker: str
    gender: str
    set: str


def locate(root: Path) -> Release:
    """Find the parts of a release.

    Raises:
        UserError: No audio or no label file, or label files in both spellings.
    """
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: give the root of the unpacked release")
    audio = _folder(root, "Audios", "Audio")
    if audio is None:
        raise UserError(f"{root} has neither Audios/ nor Audio/: give the root of the release")
    folders = [f for name in ("Labels", "Label") for f in _nested(root, name)]
    found = [
        path
        for folder in folders
        for spelling in _SPELLINGS
        for path in (folder / f"{spelling}.csv", folder / f"{spelling}.json")
        if path.is_file()
    ]
    if not found:
        raise UserError(
            f"{root} has no Labels/labels_consensus.csv (nor labels_concensus.csv, a JSON twin, or "
            "Labels/Labels/): unpack the labels into the release"
        )
    places = sorted({path.with_suffix("") for path in found})
    if len(places) > 1:
        raise UserError(
            f"{' and '.join(map(str, places))} are two label files, probably of two releases: keep "
            "the one that belongs to the audio"
        )
    labels = found[0].parent
    detailed = [labels / name for name in ("labels_detailed.csv", "labels_detailed.json")]
    detailed.append(labels / "labels.txt")
    partitions = [root / "Partitions.txt", labels / "Partitions.txt"]
    return Release(
        root,
        audio,
        found[0],
        next((path for path in detailed if path.is_file()), None),
        _folder(root, "Transcripts", "Transcript"),
        next((path for path in partitions if path.is_file()), None),
    )


def _nested(root: Path, name: str) -> Iterator[Path]:
    """``name`` and ``name/name`` in ``root``, in any case."""
    if not root.is_dir():
        return
    for entry in sorted(os.listdir(root)):
        if entry.lower() == name.lower() and (root / entry).is_dir():
            yield root / entry
            yield from _nested(root / entry, name)


def _folder(root: Path, *names: str) -> Path | None:
    """The first of these folders; the innermost, where an archive was unpacked into its like."""
    for name in names:
        if found := list(_nested(root, name)):
            return found[-1]
    return None


def read_turns(path: Path) -> list[Turn]:
    """Read the consensus labels, CSV or JSON.

    Raises:
        UserError: A missing column, an unknown code or split, a recording listed twice, an empty
            file; the message names file and line or recording.
    """
    rows = _json_rows(path) if path.suffix == ".json" else _csv_rows(path)
    turns = [_turn(values, where) for values, where in rows]
    if not turns:
        raise UserError(f"{path} has no rows: unpack the labels again")
    seen: set[str] = set()
    for turn in turns:
        if turn.stem in seen:
            raise UserError(f"{path}: {turn.stem} is listed twice: keep one row for it")
        seen.add(turn.stem)
    return turns


def _csv_rows(path: Path) -> Iterator[tuple[list[str], str]]:
    reader = _csv(path)
    columns = _columns(next(reader, []), path)
    last = max(columns)
    for number, row in enumerate(reader, 2):
        if not row:
            continue
        if len(row) <= last:
            raise UserError(f"{path}:{number}: {len(row)} fields, expected at least {last + 1}")
        yield [row[column] for column in columns], f"{path}:{number}"


def _csv(path: Path) -> Iterator[list[str]]:
    with open(path, encoding="utf-8-sig", newline="") as handle:
        try:
            yield from csv.reader(handle)
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 ({error.reason}): unpack it again") from error
        except csv.Error as error:
            raise UserError(f"{path} is no CSV file ({error}): unpack it again") from error


def _columns(header: list[str], path: Path) -> list[int]:
    names = [name.strip() for name in header]
    missing = [name for name in _NEEDED if name not in names]
    if missing:
        raise UserError(
            f"{path}:1: no column {', '.join(missing)}, found {', '.join(names) or 'nothing'}"
        )
    return [names.index(name) for name in _NEEDED]


def _json_rows(path: Path) -> Iterator[tuple[list[str], str]]:
    for name, value in _json(path).items():
        entry = value[0] if isinstance(value, list) and value else value
        missing = [key for key in _NEEDED[1:] if not isinstance(entry, dict) or key not in entry]
        if missing:
            raise UserError(f"{path}: {name!r} has no {', '.join(missing)}: unpack it again")
        yield [name, *(str(entry[key]) for key in _NEEDED[1:])], f"{path}: {name!r}"


def _json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): unpack it again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is no JSON object: unpack it again")
    return value


def _turn(values: list[str], where: str) -> Turn:
    name, code, speaker, gender, split = (value.strip() for value in values)
    stem, dot, _ = name.rpartition(".")
    if not (dot and stem) or "/" in name or len(name.split()) != 1:
        raise UserError(f"{where}: {name!r} is no name of a recording such as MSP-PODCAST_1_1.wav")
    set_name = SETS.get(split.lower())
    if set_name is None:
        raise UserError(
            f"{where}: {stem} is in the unknown split {split!r}, expected Train, Development "
            "(Validation), Test1, Test2 or Test3"
        )
    if set_name == TEST3:
        code = ""  # hidden; where a release fills something in, it is not a label
    elif code not in EMOTIONS:
        raise UserError(
            f"{where}: {stem} has the unknown EmoClass {code!r}, expected one of "
            f"{', '.join(EMOTIONS)}"
        )
    return Turn(stem, code, _speaker(speaker, where), _GENDERS.get(gender.lower(), ""), set_name)


def _speaker(name: str, where: str) -> str:
    if name.lower() in _NOBODY:
        return UNKNOWN_SPEAKER
    name = name.removeprefix("Speaker_")
    if len(name.split()) != 1:
        raise UserError(f"{where}: SpkrID {name!r} holds blanks: a number or Unknown is expected")
    return f"spk{name}"


def test3_stems(release: Release, turns: Iterable[Turn], audio: Mapping[str, str]) -> set[str]:
    """Recordings of Test3: rows of the table, lines of ``Partitions.txt``, or names of files."""
    stems = {turn.stem for turn in turns if turn.set == TEST3}
    stems |= {stem for stem in audio if "_test3_" in stem.lower()}
    if release.partitions is not None:
        found = read_partitions(release.partitions)
        stems |= {stem for stem, name in found.items() if name == TEST3 and stem in audio}
    return stems


def read_partitions(path: Path) -> dict[str, str]:
    """Recording to set, from ``Train; MSP-PODCAST_0001_0008.wav`` lines; others are passed over."""
    found = {}
    with open(path, encoding="utf-8", errors="replace") as handle:
        for line in handle:
            split, semicolon, name = line.partition(";")
            set_name = SETS.get(split.strip().lower()) if semicolon else None
            if set_name:
                found[name.strip().rpartition(".")[0]] = set_name
    return found


def read_votes(path: Path, stems: Iterable[str]) -> NDArray[np.int64]:
    """Count the annotators' primary emotions.

    Args:
        path: ``labels_detailed.csv`` (either layout), ``labels_detailed.json`` or ``labels.txt``.
        stems: N recordings; annotations of others are passed over.

    Returns:
        Counts, shape [N, 9], in the order of `VOTED`. Words of an annotator's own (``Other-...``)
        are votes for O.

    Raises:
        UserError: A file of none of these layouts.
    """
    rows = {stem: number for number, stem in enumerate(stems)}
    kinds = {name: VOTED.index(code) for name, code in _PRIMARY.items()}
    kinds |= {code.lower(): number for number, code in enumerate(VOTED)}
    other = VOTED.index("O")
    cells = array("q")
    for name, primary in _annotations(path):
        row = rows.get(name.rpartition(".")[0])
        if row is not None:
            kind = kinds.get(primary)
            if kind is None:  # once for every spelling: blanks, capitals, own words
                kind = kinds[primary] = kinds.get(primary.strip().lower(), other)
            cells.append(row * len(VOTED) + kind)
    counts = np.bincount(np.frombuffer(cells, dtype=np.int64), minlength=len(rows) * len(VOTED))
    return counts.reshape(len(rows), len(VOTED))


def _annotations(path: Path) -> Iterator[tuple[str, str]]:
    """File name and primary emotion of every single annotation."""
    if path.suffix == ".json":
        return _from_json(path)
    return _from_text(path) if path.suffix == ".txt" else _from_csv(path)


def _from_csv(path: Path) -> Iterator[tuple[str, str]]:
    reader = _csv(path)
    header = [name.strip() for name in next(reader, [])]
    if "FileName" in header and "EmoClass_Major" in header:
        name, major = header.index("FileName"), header.index("EmoClass_Major")
        yield from ((row[name], row[major]) for row in reader if len(row) > max(name, major))
    elif "FileName" in header and "EmoDetail" in header:
        # WORKER00000001; Neutral; Neutral,Concerned; A:4.0; V:4.0; D:4.0;
        name, detail = header.index("FileName"), header.index("EmoDetail")
        for row in reader:
            if len(row) > max(name, detail):
                parts = row[detail].split(";", 2)
                if len(parts) > 1:
                    yield row[name], parts[1].strip()
    else:
        raise UserError(
            f"{path}:1: expected the columns FileName and EmoClass_Major (or EmoDetail), found "
            f"{', '.join(header) or 'nothing'}"
        )


def _from_json(path: Path) -> Iterator[tuple[str, str]]:
    for name, workers in _json(path).items():
        entries = workers.values() if isinstance(workers, dict) else workers
        for entry in entries:
            if not isinstance(entry, dict) or "EmoClass_Major" not in entry:
                raise UserError(f"{path}: {name!r} has no EmoClass_Major: unpack it again")
            yield name, str(entry["EmoClass_Major"])


def _from_text(path: Path) -> Iterator[tuple[str, str]]:
    """Blocks of ``<file>; <consensus>; ...`` and lines ``WORKER..; <primary>; ...``."""
    name = ""
    with open(path, encoding="utf-8", errors="replace") as handle:
        for line in handle:
            first, semicolon, rest = line.partition(";")
            if not semicolon:
                continue
            if first.startswith("WORKER"):
                yield name, rest.partition(";")[0].strip()
            else:
                name = first.strip()


def audio_of(release: Release) -> dict[str, str]:
    """Stem to file name of every recording in the release.

    Raises:
        UserError: There are none.
    """
    found = list_audio(release.audio)
    if not found:
        raise UserError(f"{release.audio} holds no audio: unpack it again")
    return found
