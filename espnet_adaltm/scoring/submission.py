"""Predictions on Test3 of MSP-Podcast, in the format of the challenges on it.

Odyssey 2024 and Interspeech 2025 take a CSV file with the columns ``FileName`` and ``EmoClass``,
one row per recording sorted by name, the emotion as its letter; they know eight.
"""

from collections.abc import Mapping
from pathlib import Path

from espnet_adaltm.data.labels import Labels
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import atomic_open, require
from espnet_adaltm.kaldi import read_scp

LETTERS = "ACDFHNSU"
COLUMNS = ("FileName", "EmoClass")


def letters(labels: Labels, where: str = "labels.json") -> dict[str, str]:
    """Emotion to letter.

    Raises:
        UserError: One of the eight letters has no emotion, or two emotions have one.
    """
    found = {label: code for code, label in labels.codes.items() if code in LETTERS}
    missing = [code for code in LETTERS if code not in found.values()]
    if missing:
        raise UserError(
            f"{where} has no emotion for {', '.join(missing)}: the challenge has eight, and a "
            "model of fewer cannot take part"
        )
    return found


def predictions(decoded: Path, utterances: Mapping[str, object], labels: Labels) -> dict[str, str]:
    """Recording to letter: the most probable of the eight.

    Args:
        decoded: Folder with ``utt2prob``.
        utterances: All that have to be answered.
        labels: The order of the probabilities.

    Raises:
        UserError: An utterance is missing or unknown, or as `letters`.
    """
    path = require(decoded / "utt2prob", "stage `decode`")
    rows = read_scp(path)
    if differing := sorted(rows.keys() ^ utterances.keys()):
        raise UserError(f"{path} and the set differ in utterance {differing[0]!r}: decode again")
    named = letters(labels)
    places = [(place, named[label]) for place, label in enumerate(labels.labels) if label in named]
    answers = {}
    for utt, row in rows.items():
        shares = [float(share) for share in row.split()]
        if len(shares) != len(labels):
            raise UserError(
                f"{path}: utterance {utt!r} has {len(shares)} probabilities, expected "
                f"{len(labels)}: decode again"
            )
        answers[utt] = max(places, key=lambda entry: shares[entry[0]])[1]
    return answers


def write_submission(path: Path, answers: Mapping[str, str]) -> None:
    """Write the CSV file."""
    with atomic_open(path) as handle:
        handle.write(",".join(COLUMNS) + "\n")
        handle.writelines(f"{utt}.wav,{answers[utt]}\n" for utt in sorted(answers))
