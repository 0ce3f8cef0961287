"""Who speaks after whom: the dialogues of a set, for systems with a memory.

Three kinds: ``given`` (``utt2dialog``), ``show`` (MSP-Podcast: the show in an utterance's name) and
``speaker`` (pseudo-dialogues: some utterances of one speaker in a random order, which tell a memory
the speaker's habits but nothing of a conversation).
"""

import hashlib
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from espnet_adaltm.data.datadir import UNKNOWN_SPEAKER
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import Pathlike, require
from espnet_adaltm.kaldi import read_scp

GIVEN, SPEAKER, SHOW = KINDS = ("given", "speaker", "show")
PSEUDO_TURNS = 8
# MSP-PODCAST_<show>_<segment>[_<part>]; MSP-PODCAST_test3_<number> is of no show.
_SHOW = re.compile(r"(?P<show>\D+_\d+)_(?P<segment>\d+)(?:_(?P<part>\d+))?")
_FILES = {GIVEN: "utt2dialog", SPEAKER: "utt2spk"}


@dataclass(frozen=True)
class Dialogs:
    """The dialogues of a set; every utterance is in exactly one.

    Attributes:
        turns: Dialogue to its utterances in order, both deterministic.
        alone: Utterances without a dialogue: each is one of its own, called ``utt:<utterance>``.
        gaps: Dialogues of which a turn is missing; the others keep their order.
    """

    turns: Mapping[str, tuple[str, ...]]
    alone: int = 0
    gaps: int = 0

    @property
    def places(self) -> dict[str, tuple[str, int, int]]:
        """Utterance to dialogue, turn from 0, and number of turns."""
        return {
            utt: (dialog, turn, len(utts))
            for dialog, utts in self.turns.items()
            for turn, utt in enumerate(utts)
        }

    def summary(self) -> str:
        """One line for people."""
        sizes = [len(utts) for utts in self.turns.values()]
        single = sizes.count(1) - self.alone
        return (
            f"{len(sizes) - self.alone} dialogues of up to {max(sizes, default=0)} turns, "
            f"{single} of a single turn, {self.gaps} with missing turns; {self.alone} utterances "
            "without a dialogue"
        )


def read_dialogs(
    dump: Pathlike, utterances: Iterable[str], kind: str, pseudo_turns: int = PSEUDO_TURNS
) -> Dialogs:
    """The dialogues of the utterances of a dump folder.

    An utterance that the kind knows no dialogue of stands alone: a memory hears it without history.

    Args:
        dump: With ``utt2dialog`` or ``utt2spk``.
        utterances: Those to arrange.
        kind: One of `KINDS`.
        pseudo_turns: Turns of a pseudo-dialogue, at most.

    Raises:
        UserError: An unknown kind, a missing file, or not one utterance has a dialogue.
    """
    if kind not in KINDS:
        raise UserError(f"dialogs: {kind!r} is none of {', '.join(KINDS)}")
    utterances, dump = list(utterances), Path(dump)
    if kind == SHOW:
        result = _by_show(utterances)
    elif kind == SPEAKER:
        speakers = read_scp(require(dump / "utt2spk", "stage `audio`"))
        result = _by_speaker(utterances, speakers, pseudo_turns)
    else:
        if not (dump / "utt2dialog").is_file():
            raise UserError(
                f"{dump / 'utt2dialog'} is missing: this corpus has no dialogues. With `dialogs: "
                f"{SPEAKER}` utterances of one speaker take their place"
            )
        result = _given(utterances, read_scp(dump / "utt2dialog"), str(dump / "utt2dialog"))
    if utterances and result.alone == len(utterances):
        what = {GIVEN: "dialogue", SPEAKER: "known speaker", SHOW: "show in its name"}[kind]
        raise UserError(
            f"{dump}: not one of the {len(utterances)} utterances has a {what}: a memory would "
            "never have a history; use another `dialogs`"
        )
    logging.info("%s: %s", dump, result.summary())
    return result


def source_file(dump: Pathlike, kind: str) -> Path | None:
    """The file that the dialogues of this kind come from, if any."""
    return Path(dump) / _FILES[kind] if kind in _FILES else None


def _given(utterances: list[str], utt2dialog: Mapping[str, str], where: str) -> Dialogs:
    placed: dict[str, list[tuple[int, str]]] = {}
    alone = []
    for utt in utterances:
        parts = utt2dialog.get(utt, "").split()
        if not parts:
            alone.append(utt)
            continue
        if len(parts) != 2 or not parts[1].isdecimal():
            raise UserError(f"{where}: {utt!r} has {' '.join(parts)!r}, expected `dialog turn`")
        placed.setdefault(parts[0], []).append((int(parts[1]), utt))
    gaps = 0
    for dialog, turns in placed.items():
        turns.sort()
        numbers = [number for number, _ in turns]
        if len(set(numbers)) < len(numbers):
            raise UserError(f"{where}: dialogue {dialog!r} has a turn twice: number them anew")
        gaps += numbers[-1] - numbers[0] + 1 != len(numbers)
    return _arrange(
        {name: [utt for _, utt in turns] for name, turns in placed.items()}, alone, gaps
    )


def show_of(utt: str) -> tuple[str, int, int] | None:
    """Show, segment and part in the name of an utterance of MSP-Podcast; None if it has no show."""
    found = _SHOW.fullmatch(utt)
    if found is None:
        return None
    return found["show"], int(found["segment"]), int(found["part"] or 0)


def _by_show(utterances: list[str]) -> Dialogs:
    placed: dict[str, list[tuple[int, int, str]]] = {}
    alone = []
    for utt in utterances:
        found = show_of(utt)
        if found is None:
            alone.append(utt)
            continue
        placed.setdefault(found[0], []).append((*found[1:], utt))
    return _arrange({show: [utt for *_, utt in sorted(t)] for show, t in placed.items()}, alone)


def _by_speaker(utterances: list[str], utt2spk: Mapping[str, str], turns: int) -> Dialogs:
    """Utterances of a speaker in the order of their hashes: any order of a corpus (by sentence, by
    emotion) would be something to learn that a real dialogue does not have.
    """
    if turns < 1:
        raise UserError(f"pseudo_turns {turns}: expected at least 1")
    placed: dict[str, list[str]] = {}
    alone = []
    for utt in utterances:
        speaker = utt2spk.get(utt, UNKNOWN_SPEAKER)
        if speaker.lower() == UNKNOWN_SPEAKER:
            alone.append(utt)
        else:
            placed.setdefault(speaker, []).append(utt)
    pieces = {}
    for speaker, utts in placed.items():
        utts.sort(key=lambda utt: hashlib.sha256(utt.encode()).digest())
        for number, begin in enumerate(range(0, len(utts), turns)):
            pieces[f"{speaker}/{number}"] = utts[begin : begin + turns]
    return _arrange(pieces, alone)


def _arrange(placed: Mapping[str, list[str]], alone: list[str], gaps: int = 0) -> Dialogs:
    result = {name: tuple(placed[name]) for name in sorted(placed, key=str.encode)}
    result |= {f"utt:{utt}": (utt,) for utt in sorted(alone, key=str.encode)}
    return Dialogs(result, len(alone), gaps)


def shuffled(dialogs: Dialogs) -> Dialogs:
    """Every dialogue's turns in a random order, always the same one; for ablations."""

    def mixed(utts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted(utts, key=lambda u: hashlib.sha256(f"order {u}".encode()).digest()))

    turns = {name: mixed(utts) for name, utts in dialogs.turns.items()}
    return Dialogs(turns, dialogs.alone, dialogs.gaps)


def others(dialogs: Dialogs, utt2spk: Mapping[str, str]) -> dict[str, str]:
    """Another dialogue for every dialogue, of other speakers where there are any; for ablations.

    Args:
        dialogs: At least two.
        utt2spk: Utterance to speaker; may lack some.

    Returns:
        Dialogue to one with at least as many turns if there is one, else the longest; of those that
        fit the next in turn, so that few are taken often.

    Raises:
        UserError: There is one dialogue only.
    """
    names = list(dialogs.turns)
    if len(names) < 2:
        raise UserError("the history of another dialogue needs at least two dialogues in the set")
    speakers = {name: {utt2spk.get(utt) for utt in dialogs.turns[name]} for name in names}
    size = {name: len(dialogs.turns[name]) for name in names}
    result = {}
    for index, name in enumerate(names):
        following = names[index + 1 :] + names[:index]

        def rank(other: str, name: str = name) -> tuple[bool, int]:
            return not speakers[name] & speakers[other], min(size[other], size[name])

        result[name] = max(following, key=rank)
    return result
