"""References and decoded outputs, checked so that no utterance can vanish from a score."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from espnet_adaltm.data.labels import Labels, check_same_labels
from espnet_adaltm.data.tokens import MODEL_FILE, Tokenizer
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import Pathlike, read_json, require
from espnet_adaltm.kaldi import read_scp
from espnet_adaltm.scoring.calibration import jensen_shannon
from espnet_adaltm.scoring.metrics import ErrorCounts, FloatArray, IntArray, error_counts
from espnet_adaltm.scoring.pools import parts_of, pool_hypotheses, pool_references
from espnet_adaltm.scoring.speakers import HYPOTHESIS, SpeakerAnswers, read_answers

_SHOWN = 5
_SUM_TOLERANCE = 1e-4
_ROUNDING = 2e-6  # of two probabilities written with six decimals


@dataclass(frozen=True)
class Reference:
    """What is known about one test set; every mapping is in the order of ``utterances``.

    Attributes:
        name: Name of the set, the last part of its folder.
        utterances: All utterances that a system has to decode.
        emotions: Utterance to class index; may cover only some utterances, or none.
        texts: Utterance to transcript; may cover only some utterances, or none.
        speakers: Utterance to speaker.
        channels: Utterance to where its emotion lies; empty where the corpus doesn't say.
        soft: Utterance to what its annotators say, a distribution over the classes, [C]; may cover
            only some utterances, or none.
        parts: The sets of a pool, see `pools`; none for a set.
    """

    name: str
    utterances: tuple[str, ...]
    emotions: dict[str, int]
    texts: dict[str, str]
    speakers: dict[str, str]
    channels: dict[str, str]
    soft: dict[str, FloatArray] = field(default_factory=dict)
    parts: tuple["Reference", ...] = ()


@dataclass(frozen=True)
class Hypothesis:
    """What one system says about one test set.

    Attributes:
        prediction: Class index per utterance of ``Reference.emotions``, [N], or None.
        probabilities: The same utterances' class probabilities, [N, C], or None.
        words: Edit counts per utterance of ``Reference.texts``, or None.
        characters: The same for characters, or None.
        speakers: Who speaks, as far as these are speakers of the training, or None.
        distances: Jensen-Shannon distance to the annotators per utterance of ``Reference.soft``,
            or None.
    """

    prediction: IntArray | None = None
    probabilities: FloatArray | None = None
    words: ErrorCounts | None = None
    characters: ErrorCounts | None = None
    speakers: SpeakerAnswers | None = None
    distances: FloatArray | None = None


def read_references(dumps: Iterable[Pathlike], labels: Labels) -> list[Reference]:
    """`read_reference` of several folders, whose last parts (the set names) must differ."""
    references: dict[str, Reference] = {}
    for dump in dumps:
        reference = read_reference(dump, labels)
        if reference.name in references:
            raise UserError(f"two of --dumps are called {reference.name!r}: rename one folder")
        references[reference.name] = reference
    return list(references.values())


def read_reference(dump: Pathlike, labels: Labels) -> Reference:
    """Read the references of one prepared data directory.

    Raises:
        UserError: A file is missing or malformed, an emotion is not in ``labels``, or a file names
            utterances that ``wav.scp`` lacks.
    """
    dump = Path(dump)
    if parts := parts_of(dump):
        return pool_references(dump.name, [read_reference(part, labels) for part in parts])
    utterances = tuple(read_scp(require(dump / "wav.scp", "stage `audio`")))

    def read(name: str, empty: bool = False) -> dict[str, str]:
        path = dump / name
        entries = read_scp(path, allow_empty_value=empty) if path.exists() else {}
        _check_known(entries, utterances, path, dump / "wav.scp")
        return entries

    emotions = {
        utt: labels.index(name, f"{dump / 'utt2emo'}: utterance {utt!r}")
        for utt, name in read("utt2emo").items()
    }
    reference = Reference(
        dump.resolve().name,
        utterances,
        emotions,
        read("text", empty=True),
        read("utt2spk"),
        read("utt2channel"),
        {
            utt: np.array(labels.target(entry, f"{dump / 'utt2soft'}: utterance {utt!r}"))
            for utt, entry in read("utt2soft").items()
        },
    )
    if reference.channels:
        _check_covered(emotions, reference.channels, dump / "utt2channel")
    if not emotions and not reference.texts:
        raise UserError(f"{dump} has neither utt2emo nor text: there is nothing to score against")
    return reference


def read_hypothesis(system: Pathlike, reference: Reference, labels: Labels) -> Hypothesis:
    """Read and check ``<system>/decode/<set>``.

    References are compared with ``text`` as the ``tokens.model`` beside it normalises them.

    Raises:
        UserError: Nothing was decoded; an utterance is missing, unknown or listed twice;
            probabilities are malformed, NaN, negative or don't sum to 1; ``utt2emo`` contradicts
            ``utt2prob``; the system was trained with other labels.
    """
    system = Path(system)
    if reference.parts:
        return pool_hypotheses([read_hypothesis(system, part, labels) for part in reference.parts])
    folder = system / "decode" / reference.name
    has_emotion, has_text = (folder / "utt2prob").exists(), (folder / "text").exists()
    if not has_emotion and not has_text:
        raise UserError(f"{folder} has neither utt2prob nor text: run stage `decode` first")
    _check_system_labels(system, labels)
    prediction = probabilities = words = characters = distances = None
    if has_emotion:
        rows = _read_probabilities(folder / "utt2prob", reference, len(labels))
        predicted = _read_predictions(folder / "utt2emo", reference, labels, rows)
        if reference.emotions:
            prediction = np.array([predicted[utt] for utt in reference.emotions])
            probabilities = np.stack([rows[utt] for utt in reference.emotions])
        if reference.soft:
            said = np.stack([rows[utt] for utt in reference.soft])
            distances = jensen_shannon(said, np.stack(list(reference.soft.values())))
    if has_text:
        texts = read_scp(folder / "text", allow_empty_value=True)
        _check_complete(texts, reference, folder / "text")
        if reference.texts:
            truths = _normalized(reference.texts, folder / MODEL_FILE)
            pairs = truths, [texts[utt] for utt in reference.texts]
            words, characters = error_counts(*pairs), error_counts(*pairs, "char")
    path = folder / HYPOTHESIS
    speakers = read_answers(system, path, reference.speakers, reference.utterances)
    return Hypothesis(prediction, probabilities, words, characters, speakers, distances)


def _normalized(texts: Mapping[str, str], model: Path) -> list[str]:
    """References as the tokens of a system spell them (case folded, if so trained)."""
    if not model.exists():
        return list(texts.values())
    tokenizer = Tokenizer(model)
    return [tokenizer.normalize(text) for text in texts.values()]


def _check_system_labels(system: Path, labels: Labels) -> None:
    for name in ("expert.json", "merge.json", "baseline.json"):
        path = system / name
        if path.exists() and (own := read_json(path).get("labels")):
            check_same_labels(labels, own, f"labels.json and {path}")


def _read_probabilities(
    path: Path, reference: Reference, num_classes: int
) -> dict[str, FloatArray]:
    entries = read_scp(path)
    _check_complete(entries, reference, path)
    return {utt: _parse_row(value, num_classes, path, utt) for utt, value in entries.items()}


def _parse_row(value: str, num_classes: int, path: Path, utt: str) -> FloatArray:
    where = f"{path}: utterance {utt!r}"
    fields = value.split()
    if len(fields) != num_classes:
        raise UserError(
            f"{where} has {len(fields)} probabilities, expected {num_classes} (one per label): "
            "decode again with the labels.json of the training"
        )
    try:
        row = np.array([float(field) for field in fields])
    except ValueError:
        raise UserError(f"{where}: {value!r} are not numbers: decode again") from None
    if not np.isfinite(row).all():
        raise UserError(f"{where} has a probability that is not finite: the model diverged")
    if row.min() < 0 or abs(row.sum() - 1) > _SUM_TOLERANCE:
        raise UserError(
            f"{where} has probabilities {value!r} that sum to {row.sum():g}, expected "
            "non-negative ones that sum to 1: decode again"
        )
    return row


def _read_predictions(
    path: Path, reference: Reference, labels: Labels, rows: dict[str, FloatArray]
) -> dict[str, int]:
    entries = read_scp(require(path, "stage `decode`"))
    _check_complete(entries, reference, path)
    predictions = {}
    for utt, name in entries.items():
        where = f"{path}: utterance {utt!r}"
        index = predictions[utt] = labels.index(name, where)
        if rows[utt][index] < rows[utt].max() - _ROUNDING:
            best = labels.labels[int(rows[utt].argmax())]
            raise UserError(
                f"{where} is {name!r} but its utt2prob is highest at {best!r}: decode again"
            )
    return predictions


def _check_complete(found: Collection[str], reference: Reference, path: Path) -> None:
    known = set(reference.utterances)
    _check_covered(reference.utterances, found, path)
    extra = [utt for utt in found if utt not in known]
    if extra:
        raise UserError(
            f"{path} has {_some(extra)} that the set {reference.name!r} lacks: "
            "decode the set that is scored, from the same dump"
        )


def _check_covered(needed: Iterable[str], found: Collection[str], path: Path) -> None:
    have = set(found)
    missing = [utt for utt in needed if utt not in have]
    if missing:
        raise UserError(f"{path} lacks {_some(missing)}: make it again for all utterances")


def _check_known(found: Iterable[str], known: Iterable[str], path: Path, source: Path) -> None:
    have = set(known)
    extra = [utt for utt in found if utt not in have]
    if extra:
        raise UserError(f"{path} has {_some(extra)} that {source} lacks: prepare the data again")


def _some(utterances: list[str]) -> str:
    shown = ", ".join(utterances[:_SHOWN])
    dots = ", ..." if len(utterances) > _SHOWN else ""
    return f"{len(utterances)} utterance(s) ({shown}{dots})"
