"""Batches of whole dialogues, in the order of their turns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from espnet_adaltm.data.dialogs import Dialogs
from espnet_adaltm.data.labels import Labels
from espnet_adaltm.training.preprocess import Preprocess


@dataclass(frozen=True)
class Place:
    """Where an utterance stands in what is trained on.

    Attributes:
        dialog: Number of its dialogue.
        turn: From 0.
        turns: Of the dialogue.
    """

    dialog: int
    turn: int
    turns: int


def number_places(dialogs: Dialogs) -> dict[str, Place]:
    """Utterance to place."""
    return {
        utt: Place(number, turn, len(utts))
        for number, utts in enumerate(dialogs.turns.values())
        for turn, utt in enumerate(utts)
    }


def cut(dialogs: Dialogs, labelled: Mapping[str, str], max_turns: int) -> list[list[str]]:
    """Pieces of dialogues to train on, each with an empty memory to begin with.

    Turns after a piece's last label teach nothing and are left out; earlier ones are history.

    Args:
        dialogs: The dialogues.
        labelled: The utterances with an emotion.
        max_turns: Turns of a piece, at most.

    Returns:
        Utterances in order; every piece has a label.
    """
    pieces = []
    for utts in dialogs.turns.values():
        for begin in range(0, len(utts), max_turns):
            piece = list(utts[begin : begin + max_turns])
            while piece and piece[-1] not in labelled:
                piece.pop()
            if piece:
                pieces.append(piece)
    return pieces


def pack(
    pieces: Sequence[Sequence[str]], sizes: Mapping[str, int], most: int, *, split: bool = False
) -> list[list[str]]:
    """Put pieces into batches of at most ``most``, counting padding.

    Pieces whose longest utterances are alike come together.

    Args:
        pieces: Utterances in order.
        sizes: Utterance to samples.
        most: Samples of a batch.
        split: Cut a piece that is too long into consecutive batches; it has one of its own
            otherwise.

    Returns:
        The batches.
    """
    longest = [max(sizes[utt] for utt in piece) for piece in pieces]
    batches: list[list[str]] = []
    width = 0
    for index in sorted(range(len(pieces)), key=lambda i: (longest[i], pieces[i][0])):
        piece = list(pieces[index])
        if batches and max(width, longest[index]) * (len(batches[-1]) + len(piece)) <= most:
            batches[-1] += piece
        elif split:
            batches += _split(piece, sizes, most)
        else:
            batches.append(piece)
        width = max(sizes[utt] for utt in batches[-1])
    return batches


def _split(piece: list[str], sizes: Mapping[str, int], most: int) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for utt in piece:
        part = [*parts[-1], utt]
        if parts[-1] and max(sizes[u] for u in part) * len(part) > most:
            parts.append([utt])
        else:
            parts[-1] = part
    return parts


def share(batches: list[list[str]], rank: int, ranks: int) -> list[list[str]]:
    """One process's batches: as many as every other's, the first ones coming twice if need be."""
    spare = -len(batches) % ranks
    return [*batches, *(batches[i % len(batches)] for i in range(spare))][rank::ranks]


class DialogPreprocess(Preprocess):
    """Speech with its place in a dialogue and its emotion, if it has one.

    Adds ``place`` [3] (dialogue, turn, number of turns) and ``emotion`` [C], all zero where there
    is no label.

    Args:
        labels: The emotions.
        emotions: Utterance to emotion name or distribution.
        places: Utterance to place.
    """

    def __init__(
        self, labels: Labels, emotions: Mapping[str, str], places: Mapping[str, Place]
    ) -> None:
        super().__init__(labels=labels)
        self.emotions, self.places = emotions, places

    def __call__(self, utt_id: str, data: Mapping[str, NDArray | str]) -> dict[str, NDArray]:
        """Convert one utterance."""
        result = super().__call__(utt_id, data)
        place = self.places[utt_id]
        result["place"] = np.array([place.dialog, place.turn, place.turns], dtype=np.int64)
        target = [0.0] * len(self.labels)
        if utt_id in self.emotions:
            target = self.labels.target(self.emotions[utt_id], f"utterance {utt_id!r}")
        result["emotion"] = np.asarray(target, dtype=np.float32)
        return result
