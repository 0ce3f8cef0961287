"""Kaldi data directories, read and written with every inconsistency refused.

A directory holds ``wav.scp`` and ``utt2spk`` for every utterance; ``text``, ``utt2emo`` and the
other ``utt2*`` files may cover a part of the utterances, never more. With ``segments``
(``utt recording start end``, in seconds; end -1 is the recording's end) the keys of ``wav.scp`` are
recordings, otherwise they are utterances.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from espnet_adaltm.data.labels import parse_soft
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import Pathlike, atomic_dir
from espnet_adaltm.kaldi import check_key, check_value, read_scp, write_scp

Table = dict[str, str]

# Speakers by this name (any case) are nobody in particular: they are never "shared" by two sets.
UNKNOWN_SPEAKER = "unknown"
_WHOLE = re.compile(r"[0-9]{1,15}")
_NAMED = ("text", "segments", "utt2emo", "utt2soft", "utt2dialog", "utt2channel", "utt2gender")


@dataclass(frozen=True)
class DataDir:
    """A validated data directory; every table maps an utterance id to the rest of its line.

    Attributes:
        path: The folder.
        wav_scp: Utterance (recording, where there are segments) to path, ark position or pipe.
        utt2spk: Utterance to speaker.
        text: Utterance to transcript; a part of the utterances, or empty.
        utt2emo: Utterance to emotion name; a part of the utterances, or empty.
        utt2soft: Utterance to ``name=0.6 name=0.4``.
        utt2dialog: Utterance to ``dialog turn-index``.
        utt2channel: Utterance to where its emotion lies: ``voice``, ``words`` or ``both``.
        utt2gender: Utterance to gender.
        segments: Utterance to (recording, start, end) in seconds; empty without segments.
        extras: Any other ``utt2*`` file, by its name.
    """

    path: Path
    wav_scp: Table
    utt2spk: Table
    text: Table = field(default_factory=dict)
    utt2emo: Table = field(default_factory=dict)
    utt2soft: Table = field(default_factory=dict)
    utt2dialog: Table = field(default_factory=dict)
    utt2channel: Table = field(default_factory=dict)
    utt2gender: Table = field(default_factory=dict)
    segments: dict[str, tuple[str, float, float]] = field(default_factory=dict)
    extras: dict[str, Table] = field(default_factory=dict)

    @property
    def utterances(self) -> list[str]:
        """Utterance ids in C-locale order."""
        return list(self.segments or self.wav_scp)

    @property
    def spk2utt(self) -> dict[str, list[str]]:
        """Speaker to utterances, both in C-locale order."""
        return invert(self.utt2spk)

    def summary(self) -> str:
        """How much there is, in a line."""
        return (
            f"{len(self.utterances)} utterances, {len(self.spk2utt)} speakers, "
            f"{len(self.utt2emo)} with emotion, {len(self.text)} with text"
        )

    @property
    def num_samples(self) -> dict[str, int]:
        """Utterance to number of samples; empty before the audio is formatted."""
        return {utt: int(n) for utt, n in self.extras.get("utt2num_samples", {}).items()}

    @property
    def tables(self) -> dict[str, Table]:
        """Every per-utterance table that is not empty, but ``segments``, by file name."""
        named = {name: getattr(self, name) for name in _NAMED if name != "segments"}
        return {k: v for k, v in {"utt2spk": self.utt2spk, **named, **self.extras}.items() if v}


def invert(utt2spk: Mapping[str, str]) -> dict[str, list[str]]:
    """Turn utt2spk into spk2utt, sorted by speaker and utterance."""
    result: dict[str, list[str]] = {}
    for utt in sorted(utt2spk, key=str.encode):
        result.setdefault(utt2spk[utt], []).append(utt)
    return {spk: result[spk] for spk in sorted(result, key=str.encode)}


def read_data_dir(path: Pathlike) -> DataDir:
    """Read and validate a data directory.

    Raises:
        UserError: A missing ``wav.scp`` or ``utt2spk``; an utterance with a transcript, emotion or
            other entry but without audio; an utterance without speaker; an empty transcript; text
            that is not UTF-8; duplicate or unsorted ids; a contradicting ``spk2utt``; a malformed
            segment, distribution or dialogue turn. The message names file and line or utterance.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"data directory {path} does not exist: run the data stage first")
    for name in ("wav.scp", "utt2spk"):
        if not (path / name).is_file():
            raise UserError(f"{path / name} is missing: every data directory needs one")
    names = sorted(
        {"wav.scp", *_NAMED} | {p.name for p in path.glob("utt2*") if p.is_file()},
        key=str.encode,
    )
    tables = {
        # An empty transcript gets its own message, which a key without value would hide.
        name: read_scp(path / name, allow_empty_value=name == "text")
        for name in names
        if (path / name).is_file()
    }
    result = build_data_dir(path, tables)
    if (path / "spk2utt").is_file():
        _check_spk2utt(path / "spk2utt", result)
    return result


def write_data_dir(
    path: Pathlike,
    wav_scp: Mapping[str, str],
    utt2spk: Mapping[str, str],
    text: Mapping[str, str] | None = None,
    utt2emo: Mapping[str, str] | None = None,
    **extra: Mapping[str, object] | None,
) -> DataDir:
    """Validate and write a data directory (sorted, with ``spk2utt``), replacing an old one at once.

    Args:
        path: The folder.
        wav_scp: Utterance (or recording, with ``segments``) to audio.
        utt2spk: Utterance to speaker.
        text: Utterance to transcript.
        utt2emo: Utterance to emotion name.
        **extra: ``segments`` and other ``utt2*`` tables; empty ones and None are not written.

    Returns:
        What was written, as `read_data_dir` reads it.

    Raises:
        UserError: As `read_data_dir`; nothing is written then.
    """
    path = Path(path)
    given = {"wav.scp": wav_scp, "utt2spk": utt2spk, "text": text, "utt2emo": utt2emo, **extra}
    tables = {name: _lines(path / name, table) for name, table in given.items() if table}
    for name in extra:
        if name != "segments" and not name.startswith("utt2"):
            raise ValueError(f"a table must be called `segments` or `utt2*`, not {name!r}")
    result = build_data_dir(path, tables)
    with atomic_dir(path) as temporary:
        fill_data_dir(temporary, tables)
    return result


def fill_data_dir(folder: Path, tables: Mapping[str, Mapping[str, object]]) -> None:
    """Write tables by their file names, and ``spk2utt``, into an existing folder, unchecked."""
    for name, table in tables.items():
        write_scp(folder / name, table)
    spk2utt = invert({utt: str(spk) for utt, spk in tables["utt2spk"].items()})
    write_scp(folder / "spk2utt", {spk: " ".join(utts) for spk, utts in spk2utt.items()})


def _lines(where: Path, table: Mapping[str, object]) -> Table:
    """What is going to be written of a table, sorted and checked."""
    lines = {key: str(table[key]).strip() for key in sorted(table, key=str.encode)}
    for key, text in lines.items():
        check_key(key, str(where))
        check_value(text, f"{where}: {key!r}")
    return lines


def build_data_dir(path: Path, tables: Mapping[str, Table]) -> DataDir:
    """Check tables (by file name) against each other; ``path`` is only for messages."""
    for name in ("wav.scp", "utt2spk"):
        if not tables.get(name):
            raise UserError(f"{path / name} has no entries: nothing to work with")
    wav_scp = tables["wav.scp"]
    segments = _parse_segments(path / "segments", tables.get("segments", {}), wav_scp)
    source = "segments" if segments else "wav.scp"
    known = segments or wav_scp
    for name, table in tables.items():
        if name in ("wav.scp", "segments"):
            continue
        _check_entries(path, name, table, known, source)
    nobody = known.keys() - tables["utt2spk"].keys()
    if nobody:
        utt = next(utt for utt in known if utt in nobody)
        raise UserError(
            f"{path / 'utt2spk'}: utterance {utt!r} of {source} has no speaker: add it "
            f"(`{UNKNOWN_SPEAKER}` where nobody knows)"
        )
    _check_values(path, tables)
    named = {name: tables[name] for name in _NAMED if name != "segments" and name in tables}
    extras = {
        name: table for name, table in tables.items() if name not in (*_NAMED, "wav.scp", "utt2spk")
    }
    return DataDir(path, wav_scp, tables["utt2spk"], **named, segments=segments, extras=extras)


def _check_entries(
    path: Path, name: str, table: Table, known: Mapping[str, object], source: str
) -> None:
    """Refuse entries of utterances without audio, and empty ones."""
    if all(table.values()) and table.keys() <= known.keys():
        return
    for number, (utt, value) in enumerate(table.items(), 1):
        where = f"{path / name}:{number}"
        if utt not in known:
            raise UserError(
                f"{where}: utterance {utt!r} is not in {path / source}: "
                "add its audio or remove the line"
            )
        if not value:
            what = "an empty transcript" if name == "text" else "an empty entry"
            raise UserError(
                f"{where}: utterance {utt!r} has {what}: fill it in or remove the line "
                "(utterances may lack one)"
            )


def _parse_segments(
    path: Path, table: Table, recordings: Mapping[str, str]
) -> dict[str, tuple[str, float, float]]:
    result = {}
    for number, (utt, value) in enumerate(table.items(), 1):
        where = f"{path}:{number}: utterance {utt!r}"
        parts = value.split()
        try:
            recording, start, end = parts[0], float(parts[1]), float(parts[2])
        except (IndexError, ValueError):
            raise UserError(
                f"{where}: expected `utt recording start end`, found {value!r}"
            ) from None
        if len(parts) != 3 or not start >= 0 or not (end > start or end == -1):
            raise UserError(
                f"{where}: {value!r} must be `recording start end` with 0 <= start < end in "
                "seconds (end -1: to the end of the recording)"
            )
        if recording not in recordings:
            raise UserError(
                f"{where}: recording {recording!r} is not in {path.parent / 'wav.scp'}: add it"
            )
        result[utt] = (recording, start, end)
    unused = set(recordings) - {recording for recording, _, _ in result.values()}
    if result and unused:
        logging.warning("%s: %d recording(s) without a segment are not used", path, len(unused))
    return result


def _check_values(path: Path, tables: Mapping[str, Table]) -> None:
    for name in ("utt2spk", "utt2emo", "utt2channel", "utt2gender"):
        for value, utt in _distinct(tables.get(name, {})).items():
            if len(value.split()) != 1 or not value.isprintable():
                raise UserError(
                    f"{path / name}: utterance {utt!r} has {value!r}: one word is expected"
                )
    for utt, value in tables.get("utt2num_samples", {}).items():
        if not _WHOLE.fullmatch(value):
            raise UserError(
                f"{path / 'utt2num_samples'}: utterance {utt!r} has {value!r}: a number of samples "
                "is expected; delete the file, the audio stage makes it"
            )
    for value, utt in _distinct(tables.get("utt2soft", {})).items():
        parse_soft(value, f"{path / 'utt2soft'}: utterance {utt!r}")
    turns: dict[tuple[str, int], str] = {}
    for utt, value in tables.get("utt2dialog", {}).items():
        parts = value.split()
        if len(parts) != 2 or not parts[0].isprintable() or not _WHOLE.fullmatch(parts[1]):
            raise UserError(
                f"{path / 'utt2dialog'}: utterance {utt!r}: expected `utt dialog turn-index`, "
                f"found {value!r}"
            )
        other = turns.setdefault((parts[0], int(parts[1])), utt)
        if other != utt:
            raise UserError(
                f"{path / 'utt2dialog'}: utterance {utt!r}: turn {parts[1]} of dialogue "
                f"{parts[0]!r} is {other!r} already: give every turn its own index"
            )


def _distinct(table: Table) -> dict[str, str]:
    """Value to the first utterance that has it: most tables have few values."""
    return {value: utt for utt, value in reversed(table.items())}


def _check_spk2utt(path: Path, data: DataDir) -> None:
    listed = {spk: value.split() for spk, value in read_scp(path, allow_empty_value=True).items()}
    expected = data.spk2utt
    for spk in [*expected, *listed]:
        differing = set(listed.get(spk, [])) ^ set(expected.get(spk, []))
        repeated = len(listed.get(spk, [])) != len(expected.get(spk, []))
        if differing or repeated or spk not in expected:
            utt = min(differing) if differing else next(iter(listed[spk]), "none")
            raise UserError(
                f"{path}: speaker {spk!r} contradicts utt2spk at utterance {utt!r}: "
                "delete spk2utt, it is made from utt2spk"
            )
