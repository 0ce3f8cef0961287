"""nEMO: acted emotional speech in Polish (Christop, LREC-COLING 2024), six emotions.

Release: ``data.tsv`` and ``samples/<file_id>`` (https://github.com/amu-cai/nEMO). Every speaker
reads the same 90 sentences in every emotion, and there is no official split. Ours:

- Speakers are disjoint: test IC0 (woman) and TP0 (man), dev SM0, train all others. All three have
  every emotion. The same speakers are held out whether 7 or 9 are present.
- ``utt2emo`` covers every utterance: emotions are tested on new speakers, but on sentences that
  were heard in training. All sentences occur in all emotions, so the words tell nothing.
- ``text`` is disjoint in sentences too: test has those whose number (the last part of ``file_id``)
  is a multiple of 5 (18 of 90), dev those that are 1 modulo 10 (9), train the other 63. Word and
  character error rates are thus of new speakers and new sentences.
"""

import csv
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet_adaltm.data.corpora.release import index_audio, split_speakers
from espnet_adaltm.data.datadir import DataDir, write_data_dir
from espnet_adaltm.errors import UserError

EMOTIONS = ("anger", "fear", "happiness", "neutral", "sadness", "surprised")
TEST_SPEAKERS = ("IC0", "TP0")
DEV_SPEAKERS = ("SM0",)
_COLUMNS = ("file_id", "emotion", "raw_text", "normalized_text", "speaker_id", "gender", "age")
_GENDERS = {"female": "f", "male": "m"}


@dataclass(frozen=True)
class Row:
    """One line of ``data.tsv``; ``number`` is the sentence's."""

    stem: str
    emotion: str
    text: str
    speaker: str
    gender: str
    number: int


def read_rows(path: Path) -> list[Row]:
    """Read ``data.tsv``; blanks around the fields are dropped.

    Raises:
        UserError: A missing file or column, a malformed line, an unknown emotion or gender, a
            recording listed twice; the message names file and line.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist: --nemo_root must hold data.tsv and samples/")
    with open(path, encoding="utf-8-sig", newline="") as handle:
        try:
            lines = list(csv.reader(handle, delimiter="\t", quoting=csv.QUOTE_NONE))
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 ({error.reason}): download it again") from error
    if not lines or tuple(field.strip() for field in lines[0]) != _COLUMNS:
        raise UserError(f"{path}:1: expected the columns {', '.join(_COLUMNS)} between tabs")
    rows = [_row(line, f"{path}:{number}") for number, line in enumerate(lines[1:], 2) if line]
    seen: set[str] = set()
    for row in rows:
        if row.stem in seen:
            raise UserError(f"{path}: {row.stem} is listed twice: keep one line for it")
        seen.add(row.stem)
    return rows


def _row(line: Sequence[str], where: str) -> Row:
    fields = [field.strip() for field in line]
    if len(fields) != len(_COLUMNS) or not all(fields):
        raise UserError(f"{where}: expected {len(_COLUMNS)} fields between tabs, found {line}")
    value = dict(zip(_COLUMNS, fields))
    stem = Path(value["file_id"]).stem
    number = stem.rpartition("_")[2]
    if not number.isdecimal() or len(stem.split()) != 1:
        raise UserError(f"{where}: file_id {value['file_id']!r} is not `speaker_emotion_number`")
    if not stem.startswith(f"{value['speaker_id']}_"):
        raise UserError(f"{where}: {value['file_id']} is listed for speaker {value['speaker_id']}")
    if value["emotion"] not in EMOTIONS:
        raise UserError(
            f"{where}: {stem} has the unknown emotion {value['emotion']!r}, expected one of "
            f"{', '.join(EMOTIONS)}"
        )
    if value["gender"] not in _GENDERS:
        raise UserError(f"{where}: {stem} has the unknown gender {value['gender']!r}")
    text = clean(value["normalized_text"])
    if not text:
        raise UserError(f"{where}: {stem} has no letters in {value['normalized_text']!r}")
    return Row(
        stem, value["emotion"], text, value["speaker_id"], _GENDERS[value["gender"]], int(number)
    )


def clean(text: str) -> str:
    """Lower-case letters and single blanks; the normalized text still holds quotation marks."""
    letters = "".join(c if c.isalpha() else " " for c in text.lower())
    return " ".join(letters.split())


def set_of_sentence(number: int) -> str:
    """The set whose ``text`` has the sentence of this number (see the module's docstring)."""
    if number % 5 == 0:
        return "test"
    return "dev" if number % 10 == 1 else "train"


def _check_complete(rows: Sequence[Row], held_out: Sequence[str]) -> None:
    for speaker in held_out:
        missing = set(EMOTIONS) - {row.emotion for row in rows if row.speaker == speaker}
        if missing:
            raise UserError(
                f"held-out speaker {speaker} lacks {', '.join(sorted(missing))}: choose speakers "
                "with every emotion by --dev_speakers and --test_speakers"
            )


def prepare(
    root: Path,
    out_data: Path,
    dev_speakers: Sequence[str] = DEV_SPEAKERS,
    test_speakers: Sequence[str] = TEST_SPEAKERS,
) -> dict[str, DataDir]:
    """Write the data directories train, dev and test.

    Args:
        root: Folder with ``data.tsv`` and ``samples``; audio in any format that libsndfile reads.
        out_data: Folder of the sets.
        dev_speakers: Held out for development.
        test_speakers: Held out for the test.

    Raises:
        UserError: See `read_rows` and `split_speakers`; a listed recording is missing; a held-out
            speaker lacks an emotion; one sentence has numbers of two sets.
    """
    rows = read_rows(root / "data.tsv")
    audio = index_audio(root / "samples")
    missing = [row.stem for row in rows if row.stem not in audio]
    if missing:
        raise UserError(
            f"{root / 'samples'}: {len(missing)} of {len(rows)} recordings are missing, the first "
            f"is {missing[0]}: unpack the release again"
        )
    speakers = split_speakers((r.speaker for r in rows), dev_speakers, test_speakers, "speaker")
    _check_complete(rows, (*dev_speakers, *test_speakers))
    _check_sentences(rows)
    sets: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        sets[speakers[row.speaker]].append(row)
    return {
        name: write_data_dir(
            out_data / name,
            wav_scp={row.stem: str(audio[row.stem]) for row in members},
            utt2spk={row.stem: row.speaker for row in members},
            text={row.stem: row.text for row in members if set_of_sentence(row.number) == name},
            utt2emo={row.stem: row.emotion for row in members},
            utt2gender={row.stem: row.gender for row in members},
        )
        for name, members in sorted(sets.items())
    }


def _check_sentences(rows: Sequence[Row]) -> None:
    owners: dict[str, Row] = {}
    for row in rows:
        other = owners.setdefault(row.text, row)
        if set_of_sentence(other.number) != set_of_sentence(row.number):
            raise UserError(
                f"{other.stem} and {row.stem} have one text, {row.text!r}, but their numbers put "
                "it into two sets: correct data.tsv"
            )
