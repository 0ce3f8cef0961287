"""IEMOCAP (Busso et al. 2008): dialogues of ten actors in five sessions, improvised and scripted.

The corpus is given under a licence only, from https://sail.usc.edu/iemocap. Its release has
``Session<n>/sentences/wav/<dialog>/<utt>.wav``, ``dialog/EmoEvaluation/<dialog>.txt`` and
``dialog/transcriptions/<dialog>.txt``. The convention of the literature is four classes, happy and
excited being one: 5,531 utterances, which is asserted here.

The letter after the session in ``Ses01F_impro01_M003`` says who wore the motion-capture markers;
who talks is the letter before the turn's number: speaker Ses01M. There are no official sets; this
makes one set with all utterances, and `data.folds` makes the folds of it.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from espnet_adaltm.data.corpora.transcripts import clean
from espnet_adaltm.data.datadir import DataDir, write_data_dir
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import write_json

CODES = {"ang": "angry", "hap": "happy", "exc": "happy", "neu": "neutral", "sad": "sad"}
LABELS = ("angry", "happy", "neutral", "sad")
OTHERS = ("dis", "fea", "fru", "oth", "sur", "xxx")
EXPECTED = {"ang": 1103, "exc": 1041, "hap": 595, "neu": 1708, "sad": 1084}
EXPECTED_TOTAL = sum(EXPECTED.values())
SET, SCHEME = "all", "label_scheme.json"
LEFT_OUT = DROP, WORDS = ("drop", "words")
_SESSIONS = range(1, 6)
_UTTERANCE = re.compile(r"Ses0(?P<session>[1-5])[FM]_\w+_(?P<talker>[FM])\w+")
# [6.2901 - 8.2357]	Ses01F_impro01_F000	neu	[2.5000, 2.5000, 2.5000]
_TURN = re.compile(r"\[(?P<start>[\d.]+) - (?P<end>[\d.]+)\]\s+(?P<utt>\S+)\s+(?P<code>\w+)\s+\[")
# Ses01F_impro01_F000 [006.2901-008.2357]: Excuse me.
_SAID = re.compile(r"(?P<utt>Ses\S+) \[[\d.]+-[\d.]+\]:(?P<text>.*)")


class Turn(NamedTuple):
    """An evaluated utterance; ``index`` is its place among the turns of its dialogue."""

    utt: str
    code: str
    speaker: str
    dialog: str
    index: int
    audio: Path


def read_turns(root: Path) -> list[Turn]:
    """Read the evaluations of all sessions.

    Raises:
        UserError: A session or one of its folders is missing, a malformed name, an unknown code, an
            utterance that is listed twice or in another session's folder.
    """
    turns: dict[str, Turn] = {}
    for session in _SESSIONS:
        folder = root / f"Session{session}"
        for name in ("sentences/wav", "dialog/EmoEvaluation", "dialog/transcriptions"):
            if not (folder / name).is_dir():
                raise UserError(
                    f"{folder / name} is missing: --iemocap_root is the unpacked release with "
                    "Session1 to Session5"
                )
        for path in _dialogs(folder / "dialog" / "EmoEvaluation"):
            for turn in _read_dialog(path, session, folder / "sentences" / "wav"):
                if turn.utt in turns:
                    raise UserError(f"{path}: {turn.utt} is listed twice: unpack it again")
                turns[turn.utt] = turn
    return list(turns.values())


def _dialogs(folder: Path) -> list[Path]:
    """The text files of a folder; those that begin with a dot are left by macOS."""
    return sorted(path for path in folder.glob("*.txt") if not path.name.startswith("."))


def _read_dialog(path: Path, session: int, audio: Path) -> Iterator[Turn]:
    placed = []
    for number, line in enumerate(_lines(path), 1):
        found = _TURN.match(line)
        if found is None:
            continue
        utt, code = found["utt"], found["code"]
        name = _UTTERANCE.fullmatch(utt)
        if name is None or int(name["session"]) != session:
            raise UserError(f"{path}:{number}: {utt!r} is no utterance of session {session}")
        if code not in CODES and code not in OTHERS:
            raise UserError(f"{path}:{number}: {utt} has the unknown emotion {code!r}")
        placed.append((float(found["start"]), utt, code, name["talker"]))
    if not placed:
        raise UserError(f"{path} evaluates no utterance: unpack it again")
    for index, (_, utt, code, talker) in enumerate(sorted(placed)):
        speaker = f"Ses{session:02d}{talker}"
        yield Turn(utt, code, speaker, path.stem, index, audio / path.stem / f"{utt}.wav")


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines()


def read_texts(root: Path) -> dict[str, str]:
    """Utterance to cleaned transcript, possibly empty; lines of unnamed talkers are passed over."""
    texts: dict[str, str] = {}
    for session in _SESSIONS:
        for path in _dialogs(root / f"Session{session}" / "dialog" / "transcriptions"):
            for line in _lines(path):
                if found := _SAID.match(line):
                    texts.setdefault(found["utt"], clean(found["text"]))
    return texts


def check_total(turns: Sequence[Turn], expected: int) -> None:
    """Refuse a number of utterances of the four classes that is not the literature's.

    Raises:
        UserError: Another number; the message says which emotion differs.
    """
    counts = Counter(turn.code for turn in turns if turn.code in CODES)
    if counts.total() == expected:
        return
    told = ", ".join(
        f"{code} {counts[code]}" + (f" (of {known})" if expected == EXPECTED_TOTAL else "")
        for code, known in EXPECTED.items()
    )
    raise UserError(
        f"{counts.total()} utterances are angry, happy or excited, neutral or sad, expected "
        f"{expected}: {told}. Unpack all five sessions again; --expect_utts is for parts of the "
        "corpus"
    )


def prepare(
    root: Path, out_data: Path, *, expected: int = EXPECTED_TOTAL, left_out: str = DROP
) -> DataDir:
    """Write the data directory of all sessions, ``out_data/all``, and what ``labels.json`` needs.

    Args:
        root: Folder with ``Session1`` to ``Session5``.
        out_data: Folder of the set.
        expected: Utterances of the four classes.
        left_out: What becomes of the other emotions: ``drop``, or ``words``: they stay for their
            transcripts (and as turns of their dialogues), without an emotion.

    Raises:
        UserError: See `read_turns` and `check_total`; a recording is missing.
    """
    if left_out not in LEFT_OUT:
        raise UserError(f"--left_out {left_out!r} is none of {', '.join(LEFT_OUT)}")
    turns = read_turns(root)
    check_total(turns, expected)
    kept = [turn for turn in turns if turn.code in CODES or left_out == WORDS]
    _check_audio(kept)
    texts = read_texts(root)
    became = "kept for their words, without an emotion" if left_out == WORDS else "left out"
    policy = f"IEMOCAP; 4 classes, excited is happy; {' '.join(OTHERS)} {became}; consensus"
    write_json(out_data / SCHEME, {"labels": list(LABELS), "codes": CODES, "policy": policy})
    return write_data_dir(
        out_data / SET,
        wav_scp={turn.utt: str(turn.audio) for turn in kept},
        utt2spk={turn.utt: turn.speaker for turn in kept},
        text={turn.utt: text for turn in kept if (text := texts.get(turn.utt))},
        utt2emo={turn.utt: CODES[turn.code] for turn in kept if turn.code in CODES},
        utt2dialog={turn.utt: f"{turn.dialog} {turn.index}" for turn in kept},
        utt2gender={turn.utt: turn.speaker[-1].lower() for turn in kept},
    )


def _check_audio(turns: Sequence[Turn]) -> None:
    by_folder: Mapping[Path, list[Turn]] = defaultdict(list)
    for turn in turns:
        by_folder[turn.audio.parent].append(turn)
    for folder, members in by_folder.items():
        present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        for turn in members:
            if turn.audio.name not in present:
                raise UserError(f"{turn.audio} is missing: unpack session {turn.utt[3:5]} again")
