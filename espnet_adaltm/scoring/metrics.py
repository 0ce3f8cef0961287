"""Emotion and transcription metrics over a fixed, ordered label list.

Classes that the reference lacks stay in every macro average with recall, precision and F1 of 0
(scikit-learn's ``labels=..., zero_division=0``): the number of classes in the average never
depends on the test set, nor on a bootstrap resample of it. `absent_classes` names them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espnet_adaltm.errors import UserError

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

EMOTION_METRICS = ("macro_f1", "uar", "wa", "weighted_f1", "macro_precision")
ERROR_METRICS = ("wer", "cer", "sentence_error_rate")


def confusion_matrix(reference: IntArray, prediction: IntArray, num_classes: int) -> IntArray:
    """Count (reference, prediction) pairs.

    Args:
        reference: True class indices, shape [N].
        prediction: Predicted class indices, shape [N].
        num_classes: Length C of the label list.

    Returns:
        Counts with the reference in rows, shape [C, C].
    """
    check_indices(reference, prediction, num_classes)
    cells = np.bincount(reference * num_classes + prediction, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def check_indices(reference: IntArray, prediction: IntArray, num_classes: int) -> None:
    """Raise ``ValueError`` unless both are [N] class indices below ``num_classes``."""
    if reference.shape != prediction.shape or reference.ndim != 1:
        raise ValueError(f"shapes differ: {reference.shape} and {prediction.shape}")
    for name, values in (("reference", reference), ("prediction", prediction)):
        if values.size and not 0 <= values.min() <= values.max() < num_classes:
            raise ValueError(f"{name} holds an index outside 0..{num_classes - 1}")


def _ratio(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """Divide, with 0 where the denominator is 0."""
    safe = np.where(denominator > 0, denominator, 1)
    return np.where(denominator > 0, numerator / safe, 0.0)


def class_scores(confusion: NDArray[Any]) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Precision, recall and F1 of every class, each [..., C], from counts [..., C, C]."""
    counts = np.asarray(confusion, dtype=np.float64)
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    support, predicted = counts.sum(-1), counts.sum(-2)
    return (
        _ratio(hits, predicted),
        _ratio(hits, support),
        _ratio(2 * hits, predicted + support),
    )


def emotion_metrics(confusion: NDArray[Any]) -> dict[str, FloatArray]:
    """Every metric of `EMOTION_METRICS`, each [...], from counts [..., C, C].

    ``uar`` is the unweighted mean of the class recalls (the literature's UA), ``wa`` the accuracy.
    """
    counts = np.asarray(confusion, dtype=np.float64)
    precision, recall, f1 = class_scores(counts)
    support = counts.sum(-1)
    total = support.sum(-1)
    hits = np.diagonal(counts, axis1=-2, axis2=-1).sum(-1)
    return {
        "macro_f1": f1.mean(-1),
        "uar": recall.mean(-1),
        "wa": _ratio(hits, total),
        "weighted_f1": _ratio((f1 * support).sum(-1), total),
        "macro_precision": precision.mean(-1),
    }


def per_class(confusion: IntArray, labels: Sequence[str]) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and support by label."""
    precision, recall, f1 = class_scores(confusion)
    return {
        label: {
            "precision": float(precision[index]),
            "recall": float(recall[index]),
            "f1": float(f1[index]),
            "support": int(confusion[index].sum()),
        }
        for index, label in enumerate(labels)
    }


def absent_classes(confusion: IntArray, labels: Sequence[str]) -> list[str]:
    """Labels without a single reference utterance."""
    return [label for label, row in zip(labels, confusion, strict=True) if row.sum() == 0]


@dataclass(frozen=True)
class ErrorCounts:
    """Edit operations per utterance, each [N], so that utterances can be resampled."""

    correct: IntArray
    substitutions: IntArray
    deletions: IntArray
    insertions: IntArray

    @property
    def errors(self) -> IntArray:
        """Substitutions + deletions + insertions, [N]."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def lengths(self) -> IntArray:
        """Reference length in words or characters, [N]."""
        return self.correct + self.substitutions + self.deletions


def error_counts(
    references: Sequence[str], hypotheses: Sequence[str], unit: str = "word"
) -> ErrorCounts:
    """Align every hypothesis to its reference with the least number of edits.

    Args:
        references: N transcripts; an empty one turns every hypothesised unit into an insertion.
        hypotheses: N transcripts in the same order.
        unit: ``"word"`` (split at blanks) or ``"char"`` (one blank between words counts).
    """
    from rapidfuzz.distance import Levenshtein

    rows = np.zeros((len(references), 4), dtype=np.int64)
    for row, reference, hypothesis in zip(rows, references, hypotheses, strict=True):
        source, target = _units(reference, unit), _units(hypothesis, unit)
        tags = [edit.tag for edit in Levenshtein.editops(source, target)]
        replaced, deleted = tags.count("replace"), tags.count("delete")
        row[:] = (len(source) - replaced - deleted, replaced, deleted, tags.count("insert"))
    return ErrorCounts(*rows.T)


def _units(text: str, unit: str) -> list[str]:
    if unit not in ("word", "char"):
        raise ValueError(f"unit must be 'word' or 'char', not {unit!r}")
    words = text.split()
    return words if unit == "word" else list(" ".join(words))


def error_table(counts: ErrorCounts) -> dict[str, float]:
    """ESPnet's columns ``Snt Wrd Corr Sub Del Ins Err S.Err``: two counts, then percentages.

    Raises:
        UserError: All references are empty, so that no rate is defined.
    """
    total = int(counts.lengths.sum())
    if total == 0:
        raise UserError("every reference transcript is empty: no error rate is defined")
    percent = 100.0 / total
    return {
        "Snt": len(counts.lengths),
        "Wrd": total,
        "Corr": float(counts.correct.sum() * percent),
        "Sub": float(counts.substitutions.sum() * percent),
        "Del": float(counts.deletions.sum() * percent),
        "Ins": float(counts.insertions.sum() * percent),
        "Err": float(counts.errors.sum() * percent),
        "S.Err": float(100.0 * np.mean(counts.errors > 0)),
    }
