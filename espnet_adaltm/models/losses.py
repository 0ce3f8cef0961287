"""Classification losses on soft targets, one value per utterance.

Every loss takes ``logits`` [B, C] and ``targets`` [B, C] (a distribution per row; one-hot for hard
labels) and returns [B]; the plain mean of that is the batch loss.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from espnet_adaltm.errors import UserError

LOSSES = ("ce", "weighted_ce", "focal", "cb_soft_ce")


def class_weights(counts: Sequence[int], kind: str) -> Tensor:
    """Weight the classes by how often they occur in the training data.

    - ``ce``, ``focal``: all ones.
    - ``weighted_ce``: inverse frequency, `N / (K n_c)` with K the number of classes that occur, so
      that the mean weight over the data is one.
    - ``cb_soft_ce`` (AdaLTM's published code): `beta = (N - 1) / N`,
      `w_c = (1 - beta) / (1 - beta ** n_c)`, scaled to sum to the number of classes.

    A class that does not occur has weight 0 where counts matter.

    Args:
        counts: Utterances n_c of each class, length C; N is their sum.
        kind: One of `LOSSES`.

    Returns:
        Weights, float32, shape [C].

    Raises:
        UserError: Unknown kind, a negative count, or no utterance at all.
    """
    if kind not in LOSSES:
        raise UserError(f"loss {kind!r} is unknown: choose one of {', '.join(LOSSES)}")
    if kind in ("ce", "focal"):
        return torch.ones(len(counts))
    total = sum(counts)
    if min(counts, default=0) < 0 or total == 0:
        raise UserError(f"class counts must be >= 0 and not all zero, found {list(counts)}")
    if kind == "weighted_ce":
        present = sum(count > 0 for count in counts)
        values = [total / (present * count) if count else 0.0 for count in counts]
    else:
        values = _class_balanced(counts, total)
    return torch.tensor(values, dtype=torch.float32)


def _class_balanced(counts: Sequence[int], total: int) -> list[float]:
    # log1p and expm1 keep 1 - beta ** n exact to rounding for the large N of real corpora.
    log_beta = math.log1p(-1.0 / total) if total > 1 else -math.inf
    raw = [1.0 / total / -math.expm1(count * log_beta) if count else 0.0 for count in counts]
    scale = len(counts) / sum(raw)
    return [value * scale for value in raw]


class ClassificationLoss(nn.Module):
    """One of the losses of `build_loss`; its class weights move with ``.to(device)``."""

    def __init__(self, kind: str, weights: Tensor, gamma: float) -> None:
        super().__init__()
        self.kind = kind
        self.gamma = gamma
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of every utterance, float32, shape [B]."""
        log_probs = logits.float().log_softmax(-1)
        targets = targets.to(log_probs.dtype)
        if self.kind == "cb_soft_ce":
            return (targets @ self.weights) * -(targets * log_probs).sum(-1)
        if self.kind == "focal":
            log_probs = log_probs * (1.0 - log_probs.exp()).pow(self.gamma)
        return -(targets * log_probs) @ self.weights


def build_loss(kind: str, counts: Sequence[int], *, gamma: float = 2.0) -> ClassificationLoss:
    """Make a loss ``(logits [B, C], targets [B, C]) -> [B]``.

    With y the target, p the softmax of the logits and w from `class_weights`:

    - ``ce``: `- sum_c y_c log p_c`
    - ``weighted_ce``: `- sum_c w_c y_c log p_c`
    - ``focal``: `- sum_c y_c (1 - p_c) ** gamma log p_c`
    - ``cb_soft_ce``: `- (sum_c w_c y_c) sum_c y_c log p_c`, AdaLTM's; its batch mean is not divided
      by the sum of the weights.

    Args:
        kind: One of `LOSSES`.
        counts: Training utterances of each class, length C.
        gamma: Exponent of the focal loss.

    Raises:
        UserError: See `class_weights`.
    """
    return ClassificationLoss(kind, class_weights(counts, kind), gamma)
