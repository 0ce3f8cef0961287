"""Speaker accuracy, on utterances of speakers that a system was trained on.

In speaker-independent sets nobody is known. Such systems put utterances of their training speakers
aside (``held_out/utt2spk``, and ``utt2spk_hyp`` beside it); what they make of those is reported
apart from the test sets.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from espnet_adaltm.errors import UserError
from espnet_adaltm.files import read_json
from espnet_adaltm.kaldi import read_scp
from espnet_adaltm.scoring.metrics import FloatArray, IntArray
from espnet_adaltm.scoring.statistics import Statistic, bootstrap, interval

SPEAKER_METRICS = ("spk_acc",)
DESCRIPTION, HYPOTHESIS = "baseline.json", "utt2spk_hyp"
HELD_OUT = "held_out"


@dataclass(frozen=True)
class SpeakerAnswers:
    """What a system says about who speaks.

    Attributes:
        right: Utterance to whether it is right; those of speakers of its training.
        speakers: Number of those speakers.
        unseen: Number of the other utterances.
    """

    right: dict[str, bool]
    speakers: int
    unseen: int

    @property
    def rows(self) -> IntArray:
        """0 or 1 of every utterance, [N]."""
        return np.array(list(self.right.values()), dtype=np.int64)


def speaker_statistic(right: IntArray) -> Statistic:
    """``spk_acc`` over [N] utterances, 1 where the speaker was right."""
    return Statistic(right, np.array([[0.0, 1.0], [1.0, 1.0]]), _accuracy)


def _accuracy(sums: FloatArray) -> dict[str, FloatArray]:
    return {"spk_acc": sums[..., 0] / np.maximum(sums[..., 1], 1)}


def known_speakers(system: Path) -> list[str]:
    """Speakers of the training, as ``baseline.json`` lists them; empty if it names none."""
    path = system / DESCRIPTION
    return list(read_json(path).get("speakers") or []) if path.exists() else []


def read_answers(
    system: Path, path: Path, truth: Mapping[str, str], utterances: Sequence[str]
) -> SpeakerAnswers | None:
    """Compare ``utt2spk_hyp`` with who speaks; None if there is no such file.

    Args:
        system: Folder of the system.
        path: The file.
        truth: Utterance to speaker.
        utterances: Which of them must be answered.

    Raises:
        UserError: An utterance is missing, or the system names nobody it was trained on.
    """
    if not path.exists():
        return None
    found = read_scp(path)
    missing = [utt for utt in utterances if utt not in found]
    if missing:
        raise UserError(f"{path} lacks utterance {missing[0]!r}: decode again")
    known = set(known_speakers(system))
    strange = sorted(set(found.values()) - known)
    if strange:
        raise UserError(
            f"{path} names the speaker {strange[0]!r}, which {system / DESCRIPTION} lacks: decode "
            "again"
        )
    seen = [utt for utt in utterances if truth.get(utt) in known]
    right = {utt: found[utt] == truth[utt] for utt in seen}
    return SpeakerAnswers(right, len({truth[utt] for utt in seen}), len(utterances) - len(seen))


def read_held_out(system: Path) -> SpeakerAnswers | None:
    """What a system says about the utterances it put aside; None if it put none aside."""
    folder = system / HELD_OUT
    if not (folder / "utt2spk").exists() or not (folder / HYPOTHESIS).exists():
        return None
    truth = read_scp(folder / "utt2spk")
    return read_answers(system, folder / HYPOTHESIS, truth, list(truth))


def score_answers(
    answers: SpeakerAnswers, *, resamples: int, level: float, seed: int
) -> dict[str, Any]:
    """As JSON: ``utterances``, ``speakers``, ``unseen``, and ``metrics`` if any were known."""
    result: dict[str, Any] = {
        "utterances": len(answers.right),
        "speakers": answers.speakers,
        "unseen": answers.unseen,
    }
    if answers.right:
        statistic = speaker_statistic(answers.rows)
        values = bootstrap({"": statistic}, resamples=resamples, seed=seed)[""]["spk_acc"]
        low, high = interval(values, level)
        point = statistic.point()["spk_acc"]
        result["metrics"] = {"spk_acc": {"value": point, "low": low, "high": high}}
    return result


def held_out_rows(folders: Mapping[str, Sequence[Path]]) -> Iterator[list[str]]:
    """Cells of a table: system, seeds, speakers, utterances, accuracy in percent, its range.

    Args:
        folders: System to the folders of its seeds.
    """
    for name, paths in folders.items():
        found = [answers for path in paths if (answers := read_held_out(path)) is not None]
        if not found:
            continue
        values = [100 * answers.rows.mean() for answers in found]
        spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
        yield [
            name,
            str(len(found)),
            str(found[0].speakers),
            str(len(found[0].right)),
            f"{np.mean(values):.1f}{spread}",
        ]
