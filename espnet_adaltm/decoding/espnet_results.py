"""What an ESPnet recipe decoded, as answers that our scorer reads.

Both of ESPnet's layouts are known, as their recipes leave them and as their programs write them:

=====================  ==========================================================================
``cls.sh``             ``<exp>/cls_<set>/{text,score}``: a label per utterance, and its probability
                       or those of all classes in the order of the token list in ``config.yaml``
``asr.sh``             ``<exp>/<decoding>/<set>/text``: a transcript that begins with the emotion,
                       ``<hap> hello there``
``cls_inference``      ``<out>/prediction/{text,score}``
``asr_inference``      ``<out>/1best_recog/text``
=====================  ==========================================================================

Every utterance of our set has to be there, once, and no other. A transcript says nothing about the
other emotions: the one that was said gets all of the probability, so that the calibration error of
such a system means nothing. With one probability per utterance the other classes share the rest.
"""

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet_adaltm.config import load_yaml
from espnet_adaltm.data.labels import Labels
from espnet_adaltm.errors import UserError
from espnet_adaltm.kaldi import read_scp

TEXT, SCORE, CONFIG = "text", "score", "config.yaml"
# What ESPnet's programs, unlike its recipes, put between the folder and the files.
_INSIDE = (".", "prediction", "1best_recog")
_NO_CLASS = ("<unk>", "<blank>")
_BRACKETED = re.compile(r"<[^<>]+>")
_SHOWN = 5
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Answers:
    """What was decoded of one set.

    Attributes:
        folder: Where it was found.
        probabilities: Utterance to probabilities in the order of the labels, or empty.
        texts: Utterance to transcript, or empty.
        silent: Utterances without an emotion, which were given one.
    """

    folder: Path
    probabilities: dict[str, list[float]]
    texts: dict[str, str]
    silent: tuple[str, ...] = ()


class Names:
    """Emotions by all the names that an ESPnet recipe may have for them.

    Args:
        labels: Names and codes, matched whatever their case.
        codes: More codes: name in the recipe to ours.

    Raises:
        UserError: A code stands for an emotion that is not among the labels.
    """

    def __init__(self, labels: Labels, codes: Mapping[str, str] | None = None) -> None:
        self.labels = labels
        known = {**labels.codes, **(codes or {}), **{name: name for name in labels.labels}}
        self._index = {
            code.casefold(): labels.index(name, f"code {code!r}") for code, name in known.items()
        }

    def index(self, word: str) -> int | None:
        """Position of an emotion among the labels; None for anything else."""
        return self._index.get(word.casefold())

    def token(self, word: str) -> int | None:
        """The same for ``<hap>`` or ``<emo:hap>``."""
        if not (word.startswith("<") and word.endswith(">")):
            return None
        return self.index(word[1:-1].removeprefix("emo:"))


def find_set(root: Path, name: str, *, only: bool) -> Path:
    """Where the decoded files of a set lie.

    Args:
        root: The folder of an experiment, of a decoding, or of the set itself.
        name: Of the set.
        only: There is no other set, so that ``root`` may be its folder.

    Raises:
        UserError: There is none, or several.
    """
    own = [root] if only else []
    places = [*own, root / name, root / f"cls_{name}"]
    places += sorted([*root.glob(f"*/{name}"), *root.glob(f"*/cls_{name}")])
    found = [
        place / inner for place in places for inner in _INSIDE if (place / inner / TEXT).is_file()
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(
            f"{root} has several decodings of {name!r} ({_listed([str(path) for path in found])}): "
            "name the folder of one of them"
        )
    patterns = (f"*/{TEXT}", f"*/*/{TEXT}")
    there = sorted({str(path.parent) for pattern in patterns for path in root.glob(pattern)})
    raise UserError(
        f"{root} has no decoded {name!r}: none of <set>/text, cls_<set>/text, <decoding>/<set>/text"
        f" is there; {f'found: {_listed(there)}' if there else 'no other set is'}"
    )


def read_answers(
    folder: Path,
    utterances: Collection[str],
    names: Names,
    *,
    config: Path | None = None,
    first_word: bool = False,
    missing: str | None = None,
) -> Answers:
    """Read the decoded files of one set.

    Args:
        folder: With ``text``, and ``score`` of a classification.
        utterances: All that have to be there.
        names: Of the emotions.
        config: ``config.yaml`` of the training, for the order of the classes; looked for above
            ``folder`` unless given.
        first_word: The first word of a transcript is the emotion, without brackets.
        missing: Emotion for utterances without one; None refuses them.

    Raises:
        UserError: An utterance is missing, unknown or listed twice, has no emotion, or its
            probabilities contradict its emotion.
    """
    path = folder / TEXT
    texts = _read(path, utterances)
    fallback = None if missing is None else names.labels.index(missing, "--missing_emotion")
    if _is_classification(folder, texts.values(), names):
        said, silent = _fill({u: names.index(text) for u, text in texts.items()}, fallback, path)
        rows = _scores(folder, said, silent, utterances, names, config)
        return Answers(folder, rows, {}, silent)
    take = names.index if first_word else names.token
    parts = {utt: _split(text.split(), take, first_word) for utt, text in texts.items()}
    plain = {utt: " ".join(rest) for utt, (_, rest) in parts.items()}
    if fallback is None and all(emotion is None for emotion, _ in parts.values()):
        _check_none_meant(texts.values(), first_word, path)
        return Answers(folder, {}, plain)
    said, silent = _fill({u: emotion for u, (emotion, _) in parts.items()}, fallback, path)
    rows = {utt: _share(index, 1.0, len(names.labels)) for utt, index in said.items()}
    return Answers(folder, rows, plain, silent)


def _is_classification(folder: Path, texts: Collection[str], names: Names) -> bool:
    """Whether all there is are classes: emotions, or single words with probabilities.

    A class that is no emotion is an error, not a transcript. (Of what was too short, there is
    nothing; the scores of a recognition are logarithms.)
    """
    said = [text for text in texts if text]
    if not said or any(len(text.split()) > 1 for text in said):
        return False
    if all(names.index(text) is not None for text in said):
        return True
    path = folder / SCORE
    scores = read_scp(path, require_sorted=False).values() if path.exists() else ()
    return bool(scores) and not any("-" in value.replace("e-", "") for value in scores)


def _check_none_meant(texts: Collection[str], first_word: bool, path: Path) -> None:
    """Refuse transcripts that begin with an emotion of another name, which would become a word."""
    first = {text.split()[0] for text in texts if text}
    if first_word or (first and all(_BRACKETED.fullmatch(word) for word in first)):
        raise UserError(
            f"{path}: the transcripts begin with {_listed(sorted(first))}, none of which is the "
            "name of an emotion: give the names with --codes"
        )


def _split(
    words: Sequence[str], take: Callable[[str], int | None], first_word: bool
) -> tuple[int | None, list[str]]:
    """The emotion of a transcript, and its words without emotions."""
    if first_word:
        found = take(words[0]) if words else None
        return found, list(words if found is None else words[1:])
    found = [take(word) for word in words]
    said = [index for index in found if index is not None]
    rest = [word for word, index in zip(words, found, strict=True) if index is None]
    return (said[0] if said else None), rest


def _fill(
    said: Mapping[str, int | None], fallback: int | None, path: Path
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Give utterances without an emotion the fallback."""
    silent = tuple(utt for utt, index in said.items() if index is None)
    if silent and fallback is None:
        raise UserError(
            f"{path}: {len(silent)} utterance(s) without a known emotion ({_listed(silent)}): give "
            "their names with --codes, or --missing_emotion what they are to count as"
        )
    return {utt: fallback if index is None else index for utt, index in said.items()}, silent


def _scores(
    folder: Path,
    said: Mapping[str, int],
    silent: Collection[str],
    utterances: Collection[str],
    names: Names,
    config: Path | None,
) -> dict[str, list[float]]:
    """Probabilities of a classification, in the order of the labels."""
    path, size = folder / SCORE, len(names.labels)
    if not path.exists():
        return {utt: _share(index, 1.0, size) for utt, index in said.items()}
    order: list[int] | None = None
    rows = {}
    for utt, entry in _read(path, utterances).items():
        where = f"{path}: utterance {utt!r}"
        values = _numbers(entry, where)
        if utt in silent:
            rows[utt] = _share(said[utt], 1.0, size)
        elif len(values) == 1:
            rows[utt] = _share(said[utt], values[0], size)
        else:
            order = order or _class_order(folder, config, names)
            rows[utt] = _sorted(values, order, where)
        if rows[utt][said[utt]] < max(rows[utt]):
            best = names.labels.labels[rows[utt].index(max(rows[utt]))]
            raise UserError(
                f"{where} is likeliest {best!r}, but {TEXT} says "
                f"{names.labels.labels[said[utt]]!r}: the two files are not of one decoding"
            )
    return rows


def _numbers(entry: str, where: str) -> list[float]:
    try:
        values = [float(value) for value in entry.split()]
    except ValueError:
        values = []
    if not values or not all(
        math.isfinite(v) and -_TOLERANCE <= v <= 1 + _TOLERANCE for v in values
    ):
        raise UserError(f"{where}: {entry!r} are no probabilities")
    return [min(max(value, 0.0), 1.0) for value in values]


def _sorted(values: Sequence[float], order: Sequence[int], where: str) -> list[float]:
    total = sum(values)
    if len(values) != len(order) or abs(total - 1) > _TOLERANCE:
        raise UserError(
            f"{where} has {len(values)} probabilities that sum to {total:g}, expected {len(order)} "
            "that sum to 1: decode with --output_all_probabilities true, one class per utterance"
        )
    row = [0.0] * len(order)
    for value, index in zip(values, order, strict=True):
        row[index] = value / total
    return row


def _class_order(folder: Path, config: Path | None, names: Names) -> list[int]:
    """Our index of every class of ESPnet's token list.

    Raises:
        UserError: The list is nowhere, or its classes are not the labels.
    """
    if config is None:
        above = [place / CONFIG for place in (folder, *folder.resolve().parents[:3])]
        config = next((path for path in above if path.is_file()), None)
    if config is None:
        raise UserError(
            f"{folder}: the order of the classes in {SCORE} is not known: there is no {CONFIG} of "
            "the training above it; give it with --config"
        )
    tokens = load_yaml(config).get("token_list")
    classes = [token for token in tokens or [] if token not in _NO_CLASS]
    order = [names.index(token) for token in classes]
    if None in order or sorted(order) != list(range(len(names.labels))):
        raise UserError(
            f"{config} has the classes {', '.join(classes) or 'none'}, expected "
            f"{', '.join(names.labels.labels)}: give other names of them with --codes"
        )
    return order


def _share(index: int, probability: float, size: int) -> list[float]:
    """A distribution with ``probability`` at ``index`` and the same of the rest elsewhere."""
    row = [(1 - probability) / (size - 1)] * size
    row[index] = probability
    return row


def _read(path: Path, utterances: Collection[str]) -> dict[str, str]:
    """A file of ESPnet's with just these utterances, once each, in their order."""
    found = read_scp(path, require_sorted=False, allow_empty_value=True)
    known = set(utterances)
    lost, extra = (
        [utt for utt in utterances if utt not in found],
        [utt for utt in found if utt not in known],
    )
    for which, what in ((lost, "lacks"), (extra, "has")):
        if which:
            raise UserError(
                f"{path} {what} {len(which)} utterance(s) ({_listed(which)}) that the set "
                f"{'has' if which is lost else 'lacks'}: only a decoding of the same utterances, "
                "with the same names, can be compared"
            )
    return {utt: found[utt] for utt in utterances}


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words[:_SHOWN]) + (", ..." if len(words) > _SHOWN else "")
