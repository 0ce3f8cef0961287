"""The ordered list of emotions that travels from data preparation to checkpoint to inference.

Toolkits order emotions differently, so nothing here is ever implied: ``labels.json`` holds the
order, the corpus codes it came from, the counts per set and the policy for what was left out.
Run it with ``python -m espnet_adaltm.bin.prepare_labels``.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from espnet_adaltm.config import check_keys, nearest
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import Pathlike, read_json, write_json, write_text

_SUM_TOLERANCE = 1e-3
_KEYS = ("labels", "codes", "counts", "policy")


def parse_soft(entry: str, where: str) -> dict[str, float]:
    """Parse ``name=0.6 name=0.4`` into probabilities that sum to 1 exactly.

    Args:
        entry: Annotator distribution; must sum to 1 within 1e-3 and is renormalised.
        where: Utterance and file, for the error.

    Raises:
        UserError: Malformed, negative, repeated, or a sum that is not 1.
    """
    shares: dict[str, float] = {}
    for part in entry.split():
        name, equals, number = part.rpartition("=")
        try:
            share = float(number)
        except ValueError:
            share = -1.0
        if not (equals and name and 0.0 <= share <= 1.0):
            raise UserError(f"{where}: {part!r} is no `name=share` with a share from 0 to 1")
        if name in shares:
            raise UserError(f"{where}: {name!r} is given twice: keep one share for it")
        shares[name] = share
    total = sum(shares.values())
    if abs(total - 1.0) > _SUM_TOLERANCE:
        raise UserError(f"{where}: the shares of {entry!r} sum to {total:g}, expected 1")
    return {name: share / total for name, share in shares.items()}


@dataclass(frozen=True)
class Labels:
    """Emotions in the order of every output vector.

    Attributes:
        labels: Emotion names; position = index in targets, logits and probabilities.
        codes: The corpus's own code to emotion name, where it had codes.
        counts: Set name to emotion to number of utterances.
        policy: What was done with utterances outside the list, in words.
    """

    labels: tuple[str, ...]
    codes: Mapping[str, str] = field(default_factory=dict)
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    policy: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    def index(self, name: str, where: str = "labels") -> int:
        """Position of an emotion.

        Raises:
            UserError: The emotion is not in the list; the message starts with ``where``.
        """
        try:
            return self.labels.index(name)
        except ValueError:
            raise UserError(
                f"{where}: unknown emotion {name!r}{nearest(name, self.labels)}; "
                f"known: {', '.join(self.labels)}"
            ) from None

    def target(self, entry: str, where: str = "labels") -> list[float]:
        """Turn ``name`` or ``name=0.6 name=0.4`` into a distribution, shape [len(self)].

        Raises:
            UserError: Unknown emotion or malformed distribution; starts with ``where``.
        """
        shares = parse_soft(entry, where) if "=" in entry else {entry: 1.0}
        target = [0.0] * len(self.labels)
        for name, share in shares.items():
            target[self.index(name, where)] = share
        return target


def load_labels(path: Pathlike) -> Labels:
    """Read ``labels.json``.

    Raises:
        UserError: Missing, malformed, or a list that is empty or has repeated names.
    """
    value = read_json(path)
    if not isinstance(value.get("labels"), list):
        raise UserError(f"{path} has no list under `labels`: delete it and make it again")
    check_keys(value, _KEYS, str(path))
    names = check_names(value["labels"], str(path))
    codes, policy = check_scheme(value, str(path))
    counts = value.get("counts", {})
    if not _are_counts(counts):
        raise UserError(
            f"{path}: `counts` must hold numbers of utterances by set and emotion: make it again"
        )
    return Labels(names, codes, counts, policy)


def check_scheme(value: Mapping[str, Any], where: str) -> tuple[dict[str, str], str]:
    """The ``codes`` and ``policy`` of a JSON file, both of which may be missing.

    Raises:
        UserError: Something else than words by word, or than a text.
    """
    codes, policy = value.get("codes", {}), value.get("policy", "")
    words = isinstance(codes, Mapping) and all(isinstance(name, str) for name in codes.values())
    if not words or not isinstance(policy, str):
        what = "`policy` must be a text" if words else "`codes` must be `code: emotion`"
        raise UserError(f"{where}: {what}: make it again")
    return dict(codes), policy


def _are_counts(counts: object) -> bool:
    return isinstance(counts, Mapping) and all(
        isinstance(row, Mapping) and all(type(count) is int for count in row.values())
        for row in counts.values()
    )


def save_labels(path: Pathlike, labels: Labels) -> None:
    """Write ``labels.json``, and ``labels.txt`` with the names alone, atomically.

    The counts of a test set are no business of a training: the names say all that it depends on.
    """
    write_text(Path(path).with_suffix(".txt"), "".join(f"{name}\n" for name in labels.labels))
    write_json(
        path,
        {
            "labels": list(labels.labels),
            "codes": dict(labels.codes),
            "counts": {name: dict(counts) for name, counts in labels.counts.items()},
            "policy": labels.policy,
        },
    )


def check_names(names: Sequence[object], where: str) -> tuple[str, ...]:
    """Refuse label lists that are empty, repeat a name or hold names that cannot be written."""
    for name in names:
        word = isinstance(name, str) and name.split() == [name] and name.isprintable()
        if not word or "=" in name:
            raise UserError(f"{where}: {name!r} is no emotion name: a word without `=` is expected")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise UserError(f"{where}: {repeated[0]!r} is listed twice: keep one")
    if len(names) < 2:
        raise UserError(f"{where}: {len(names)} emotion(s) found, at least 2 are expected")
    return tuple(str(name) for name in names)


def check_same_labels(
    ours: Labels | Sequence[str], theirs: Labels | Sequence[str], where: str
) -> None:
    """Refuse two label lists that differ in names or order.

    Args:
        ours: The list in use.
        theirs: The list of what is about to be loaded.
        where: What is being compared, e.g. ``"exp/ser_expert_x and data/labels.json"``.
    """
    first = list(ours.labels if isinstance(ours, Labels) else ours)
    second = list(theirs.labels if isinstance(theirs, Labels) else theirs)
    if first == second:
        return
    what = "order" if sorted(first) == sorted(second) else "names"
    raise UserError(
        f"{where}: the label lists differ in their {what}: [{', '.join(first)}] against "
        f"[{', '.join(second)}]: use the labels.json that the model was trained with"
    )


def collect_labels(
    sets: Mapping[str, Mapping[str, str]],
    *,
    train: str,
    soft: Mapping[str, Mapping[str, str]] | None = None,
    names: Sequence[str] | None = None,
    codes: Mapping[str, str] | None = None,
    policy: str = "",
) -> Labels:
    """Build the label list from the emotions of all sets.

    Args:
        sets: Set name to ``utt2emo``; may be empty for sets with hidden labels.
        train: Name of the training set, in which every emotion has to occur.
        soft: Set name to ``utt2soft``, checked against the list.
        names: The order to use; sorted training emotions unless given.
        codes: Corpus code to emotion name.
        policy: What was left out, in words.

    Raises:
        UserError: An emotion outside the list (naming set and utterance) or one that the training
            set lacks.
    """
    if train not in sets:
        raise UserError(f"training set {train!r} is not among the sets: {', '.join(sets)}")
    present = set(sets[train].values())
    if not present:
        raise UserError(f"training set {train!r} has no emotion labels: give it a utt2emo")
    labels = Labels(check_names(sorted(present) if names is None else names, "labels"))
    for label in labels.labels:
        if label not in present:
            raise UserError(
                f"emotion {label!r} has no utterance in the training set {train!r}: "
                "remove it from --labels or add data"
            )
    for name, utt2emo in sets.items():
        for utt, emotion in utt2emo.items():
            if names is None and emotion not in present:
                raise UserError(
                    f"emotion {emotion!r} of utterance {utt!r} in set {name!r} has no utterance "
                    f"in the training set {train!r}: remove it from {name!r} or add training data"
                )
            labels.index(emotion, f"utterance {utt!r} of set {name!r}")
    for name, utt2soft in (soft or {}).items():
        for utt, entry in utt2soft.items():
            labels.target(entry, f"utterance {utt!r} of set {name!r} (utt2soft)")
    for code, label in (codes or {}).items():
        labels.index(label, f"code {code!r}")
    counts = {
        name: {label: count[label] for label in labels.labels}
        for name, count in ((name, Counter(utt2emo.values())) for name, utt2emo in sets.items())
    }
    return Labels(labels.labels, dict(codes or {}), counts, policy)
