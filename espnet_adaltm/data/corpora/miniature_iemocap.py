"""A miniature of IEMOCAP in the layout of its release. See `miniature`.

With ``full`` it has as many utterances of every emotion in every session as the real one, so that
the 5,531 utterances of the four classes can be counted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from espnet_adaltm.data.corpora.miniature import link_wavs, tone, words, write_wav

# Utterances of the release by session. Excited and happy are counted together in the literature;
# how they are divided here is made up, but for the sums (1,041 and 595).
FULL: tuple[Mapping[str, int], ...] = (
    {"ang": 229, "exc": 143, "hap": 135, "sad": 194, "neu": 384, "fru": 280, "xxx": 450},
    {"ang": 137, "exc": 210, "hap": 117, "sad": 197, "neu": 362, "fru": 325, "sur": 17},
    {"ang": 240, "exc": 151, "hap": 135, "sad": 305, "neu": 320, "fru": 382, "oth": 3},
    {"ang": 327, "exc": 238, "hap": 65, "sad": 143, "neu": 258, "fru": 481, "fea": 11},
    {"ang": 170, "exc": 299, "hap": 143, "sad": 245, "neu": 384, "fru": 381, "dis": 2},
)
SMALL = {"ang": 4, "exc": 2, "hap": 2, "sad": 4, "neu": 4, "fru": 2, "xxx": 2}
_CODES = ("ang", "hap", "exc", "sad", "neu", "fru", "sur", "fea", "dis", "oth", "xxx")
_PER_DIALOG = 40


@dataclass(frozen=True)
class Row:
    """An utterance of the miniature; ``text`` is None where it is not transcribed."""

    session: int
    dialog: str
    utt: str
    emotion: str
    start: float
    end: float
    text: str


def write_iemocap(
    root: Path,
    counts: Sequence[Mapping[str, int]] = (SMALL,) * 5,
    seed: int = 0,
    *,
    linked: bool = False,
) -> list[Row]:
    """Write a release with a folder per session.

    Args:
        root: Folder to make.
        counts: Utterances by emotion, a mapping per session; `FULL` for the real numbers.
        seed: Of everything.
        linked: All recordings of a dialogue are one file under many names.
    """
    generator = np.random.default_rng(seed)
    rows = [
        row
        for session, wanted in enumerate(counts, 1)
        for row in _session(session, wanted, generator)
    ]
    dialogs: dict[tuple[int, str], list[Row]] = {}
    for row in rows:
        dialogs.setdefault((row.session, row.dialog), []).append(row)
    for (session, dialog), turns in dialogs.items():
        _write_dialog(root / f"Session{session}", dialog, turns, generator, linked)
    # What macOS left in the archive, and the single annotators, which are not read.
    noise = root / "Session1" / "dialog" / "EmoEvaluation" / "._Ses01F_impro01.txt"
    noise.write_bytes(b"\0\5\x16\7")
    (noise.parent / "Categorical").mkdir()
    (noise.parent / "Categorical" / "Ses01F_impro01_e1_cat.txt").write_text("x :neutral; ()\n")
    return rows


def _session(session: int, wanted: Mapping[str, int], generator: np.random.Generator) -> list[Row]:
    codes = [code for code, number in wanted.items() for _ in range(number)]
    # Both talkers have every emotion: they take turns within each of them.
    order = np.argsort(np.tile(np.arange(2), len(codes))[: len(codes)], kind="stable")
    talkers = "FM"
    placed = [(codes[place], talkers[place % 2]) for place in order]
    placed = [placed[place] for place in generator.permutation(len(placed))]
    rows = []
    for place, (code, talker) in enumerate(placed):
        number, turn = divmod(place, _PER_DIALOG)
        # The letter of the dialogue is who wore the markers, not who talks.
        wore = talkers[number % 2]
        kind = f"impro{1 + number // 2:02d}" if number % 4 < 2 else f"script{1 + number // 4:02d}_1"
        dialog = f"Ses{session:02d}{wore}_{kind}"
        start = 3.0 * turn
        rows.append(
            Row(
                session,
                dialog,
                f"{dialog}_{talker}{turn:03d}",
                code,
                start,
                start + float(generator.uniform(0.3, 0.6)),
                words(generator, int(generator.integers(2, 5))),
            )
        )
    return rows


def _write_dialog(
    folder: Path, dialog: str, turns: Sequence[Row], generator: np.random.Generator, linked: bool
) -> None:
    audio = folder / "sentences" / "wav" / dialog
    evaluation, transcripts = (
        folder / "dialog" / name for name in ("EmoEvaluation", "transcriptions")
    )
    for path in (audio, evaluation, transcripts):
        path.mkdir(parents=True, exist_ok=True)
    with open(evaluation / f"{dialog}.txt", "w", encoding="utf-8") as handle:
        handle.write("% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n")
        for row in turns:
            handle.write(
                f"[{row.start:.4f} - {row.end:.4f}]\t{row.utt}\t{row.emotion}\t"
                "[2.5000, 2.5000, 2.5000]\nC-E2:\tNeutral;\t()\nA-E3:\tval 3; act 2; dom 2;\t()\n\n"
            )
    with open(transcripts / f"{dialog}.txt", "w", encoding="utf-8") as handle:
        for row in turns:
            text = f"[LAUGHTER] {row.text}" if row.emotion == "exc" else row.text
            handle.write(f"{row.utt} [{row.start:08.4f}-{row.end:08.4f}]: {text}\n")
        handle.write("M: Okay.\n")
    if linked:
        link_wavs(audio, [f"{row.utt}.wav" for row in turns])
        return
    for row in turns:
        samples = tone(_CODES.index(row.emotion), row.end - row.start, generator)
        write_wav(audio / f"{row.utt}.wav", samples)
