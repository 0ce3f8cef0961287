"""Metrics of a whole validation set, counted over batches and processes.

ESPnet averages what a model reports over batches; neither a macro-F1 nor a word error rate is such
an average. These objects hold counts: counts add up over batches and over the ranks of a
distributed training, so that the value is that of the whole set however it was cut.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.distributed
from torch import Tensor


class CountMetric(ABC):
    """Integer counts and the metrics computed from them."""

    counts: Tensor

    def reset(self) -> None:
        """Forget everything."""
        self.counts.zero_()

    def all_reduce(self, device: str | torch.device = "cpu") -> None:
        """Add up the counts of all processes of a distributed training."""
        total = self.counts.to(device)
        torch.distributed.all_reduce(total)
        self.counts = total.cpu()

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Return the metrics of everything counted since `reset`; empty without data."""


class ClassificationMetric(CountMetric):
    """Confusion matrix -> ``macro_f1``, ``uar``, ``acc`` (fractions, 0 to 1).

    Classes without a reference stay in the averages with 0, as in `espnet_adaltm.scoring.metrics`
    (scikit-learn's ``labels=range(C), zero_division=0``).

    Args:
        num_classes: Number of classes C; ``counts`` is [C, C], rows are references.
    """

    def __init__(self, num_classes: int) -> None:
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def update(self, predicted: Tensor, reference: Tensor) -> None:
        """Count class indices, both of shape [B]."""
        size = len(self.counts)
        cells = reference.cpu() * size + predicted.cpu()
        self.counts += torch.bincount(cells, minlength=size * size).view(size, size)

    def compute(self) -> dict[str, float]:
        """Return the three metrics."""
        counts = self.counts.double()
        if counts.sum() == 0:
            return {}
        hits, reference, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
        return {
            "macro_f1": float((2 * hits / (reference + predicted).clamp(min=1)).mean()),
            "uar": float((hits / reference.clamp(min=1)).mean()),
            "acc": float(hits.sum() / counts.sum()),
        }


class TranscriptMetric(CountMetric):
    """Edit operations and lengths -> ``wer``, ``cer`` (fractions; may exceed 1)."""

    def __init__(self) -> None:
        self.counts = torch.zeros(4, dtype=torch.int64)

    def update(self, predicted: Sequence[str], reference: Sequence[str]) -> None:
        """Count the errors of transcripts; words are what blanks separate."""
        from rapidfuzz.distance import Levenshtein

        for guess, truth in zip(predicted, reference, strict=True):
            words, letters = truth.split(), " ".join(truth.split())
            self.counts += torch.tensor(
                [
                    Levenshtein.distance(guess.split(), words),
                    len(words),
                    Levenshtein.distance(" ".join(guess.split()), letters),
                    len(letters),
                ]
            )

    def compute(self) -> dict[str, float]:
        """Return the two rates."""
        word_errors, words, letter_errors, letters = self.counts.tolist()
        if not words:
            return {}
        return {"wer": word_errors / words, "cer": letter_errors / letters}


class UnitMetric(CountMetric):
    """Right and all masked frames -> ``acc`` (fraction)."""

    def __init__(self) -> None:
        self.counts = torch.zeros(2, dtype=torch.int64)

    def update(self, right: int | Tensor, frames: int | Tensor) -> None:
        """Add the number of masked frames, and of those whose unit was right."""
        self.counts += torch.tensor([int(right), int(frames)])

    def compute(self) -> dict[str, float]:
        """Return the accuracy."""
        right, frames = self.counts.tolist()
        return {"acc": right / frames} if frames else {}


class Metrics(CountMetric):
    """Several metrics of one validation, e.g. of emotions and of transcripts.

    Args:
        parts: Their names must differ.
    """

    def __init__(self, *parts: CountMetric) -> None:
        self.parts = parts

    def reset(self) -> None:
        """Forget everything."""
        for part in self.parts:
            part.reset()

    def all_reduce(self, device: str | torch.device = "cpu") -> None:
        """Add up the counts of all processes."""
        for part in self.parts:
            part.all_reduce(device)

    def compute(self) -> dict[str, float]:
        """Return the metrics of all parts."""
        return {name: value for part in self.parts for name, value in part.compute().items()}
