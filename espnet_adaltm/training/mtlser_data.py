"""What MTLSER learns from: utterances that may lack an emotion, a transcript or a known speaker.

ESPnet reads an utterance's parts all or not at all, so that every table is completed: an empty
entry stands for what is unknown. A few utterances of the training speakers are put aside where the
validation set has none of them: else nobody could tell whether speakers are recognised.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from espnet_adaltm.data.datadir import UNKNOWN_SPEAKER, invert
from espnet_adaltm.data.labels import Labels
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import require
from espnet_adaltm.kaldi import read_scp, write_scp
from espnet_adaltm.models.mtlser import UNKNOWN
from espnet_adaltm.training.preprocess import Preprocess

FEWEST_SPEAKERS = 2


def complete(
    table: Path, utterances: Iterable[str], out: Path, among: Collection[str] | None = None
) -> dict[str, str]:
    """Write ``table`` with an entry for every utterance, an empty one where it has none.

    Args:
        table: File of a dump folder; may be missing.
        utterances: Which entries to write.
        out: File to write.
        among: Utterances whose entries may be used, all of them unless given.

    Returns:
        The entries that are not empty.
    """
    known = read_scp(table, allow_empty_value=True) if table.exists() else {}
    usable = known.keys() if among is None else known.keys() & set(among)
    entries = {utt: known[utt] if utt in usable else "" for utt in utterances}
    write_scp(out, entries)
    return {utt: value for utt, value in entries.items() if value}


def is_unknown(speaker: str) -> bool:
    """Whether a name in ``utt2spk`` stands for nobody in particular."""
    return speaker.lower() == UNKNOWN_SPEAKER


def training_speakers(utt2spk: Mapping[str, str], where: str) -> list[str]:
    """The speakers to tell apart, sorted.

    Args:
        utt2spk: Utterance to speaker, of the training set.
        where: The file, for the error.

    Raises:
        UserError: The corpus has no speakers: every utterance has one of its own, all of them are
            unknown, or there is only one.
    """
    known = {utt: speaker for utt, speaker in utt2spk.items() if not is_unknown(speaker)}
    speakers = sorted(set(known.values()))
    if len(speakers) == len(known) > 1:
        found = "every utterance has a speaker of its own, as in corpora without speakers"
    elif len(speakers) < FEWEST_SPEAKERS:
        found = f"{len(speakers)} known speaker(s) in {len(utt2spk)} utterances"
    else:
        return speakers
    raise UserError(
        f"{where}: {found}: the speaker loss needs at least {FEWEST_SPEAKERS} speakers, with "
        "several utterances: mend utt2spk, or give --beta 0"
    )


def put_aside(
    utt2spk: Mapping[str, str], share: float, last: Collection[str] = frozenset()
) -> list[str]:
    """Choose some utterances of every known speaker, the same on every machine.

    Args:
        utt2spk: Utterance to speaker.
        share: Of each speaker's utterances, rounded; never the only one.
        last: Utterances to choose only when a speaker has no others (those with an emotion).
    """
    chosen = []
    for speaker, utterances in invert(utt2spk).items():
        if is_unknown(speaker):
            continue
        order = sorted(utterances, key=lambda utt: (utt in last, _hash(utt)))
        chosen += order[: min(round(share * len(utterances)), len(utterances) - 1)]
    return sorted(chosen)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def emotion_counts(path: Path, labels: Labels) -> list[int]:
    """Utterances of each emotion in a completed table, length C; empty entries don't count.

    Raises:
        UserError: An emotion that is not among the labels, or no utterance with an emotion.
    """
    counts: Counter[int] = Counter()
    for utt, value in read_scp(path, allow_empty_value=True).items():
        if value:
            target = labels.target(value, f"{path}: utterance {utt!r}")
            counts[target.index(max(target))] += 1
    if not counts:
        raise UserError(f"{path}: not one utterance has an emotion: there is nothing to learn")
    return [counts[index] for index in range(len(labels))]


def read_speakers(path: Path) -> list[str]:
    """The speakers of a training, a name per line, in the order of the head's outputs."""
    return require(path, "the training again").read_text(encoding="utf-8").split()


class MTLPreprocess(Preprocess):
    """`Preprocess` for completed tables, with the speaker as an index.

    Args:
        tokens: Folder with ``tokens.model``, or None.
        labels: The emotions.
        speakers: Those of the training; others are `UNKNOWN`.
    """

    def __init__(
        self, tokens: str | Path | None, labels: Labels, speakers: Sequence[str] = ()
    ) -> None:
        super().__init__(tokens, labels)
        self.index = {speaker: index for index, speaker in enumerate(speakers)}

    def __call__(self, utt_id: str, data: Mapping[str, NDArray | str]) -> dict[str, NDArray]:
        """Convert ``speech``, ``text`` [U], ``emotion`` [C] (zeros if unknown), ``speaker`` [1].

        Raises:
            UserError: An emotion outside the list of labels.
        """
        given = dict(data)
        speaker, emotion = given.pop("speaker", None), given.get("emotion")
        if not emotion:
            given.pop("emotion", None)
        result = super().__call__(utt_id, given)
        if emotion is not None and not emotion:
            result["emotion"] = np.zeros(len(self.labels), dtype=np.float32)
        if speaker is not None:
            result["speaker"] = np.array([self.index.get(speaker, UNKNOWN)], dtype=np.int64)
        return result
