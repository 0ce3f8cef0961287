"""Connectionist temporal classification on an encoder's last layer."""

import logging

import torch
from torch import Tensor, nn
from torch.nn import functional

BLANK = 0


def required_frames(targets: Tensor, target_lengths: Tensor) -> Tensor:
    """Fewest frames that can spell each target: its length plus its adjacent repeats, shape [B]."""
    if targets.shape[1] < 2:
        return target_lengths.clone()
    inside = torch.arange(1, targets.shape[1], device=targets.device) < target_lengths[:, None]
    repeats = (targets[:, 1:] == targets[:, :-1]) & inside
    return target_lengths + repeats.sum(1)


class CTCHead(nn.Module):
    """Linear layer to token logits, CTC loss and greedy decoding; token 0 is the blank.

    Args:
        dim: D, features per frame.
        vocab: V, tokens including the blank.
        dropout: Probability on the frames before the linear layer.

    Attributes:
        too_short: How many utterances so far had fewer frames than their target needs. Such an
            utterance has no alignment: its loss and gradient are 0.
    """

    def __init__(self, dim: int, vocab: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(dim, vocab)
        self.too_short = 0

    def forward(self, hidden: Tensor) -> Tensor:
        """Map frames [B, T, D] to logits [B, T, V]."""
        return self.linear(self.dropout(hidden))

    def loss(
        self, hidden: Tensor, lengths: Tensor, targets: Tensor, target_lengths: Tensor
    ) -> Tensor:
        """Return each utterance's negative log likelihood in nats, not divided by any length.

        Args:
            hidden: Frames, shape [B, T, D].
            lengths: Valid frames, shape [B].
            targets: Token ids without blanks, shape [B, S]; what lies beyond
                ``target_lengths`` (such as -1) is ignored.
            target_lengths: Valid tokens, shape [B].

        Returns:
            Float32, shape [B].
        """
        targets = targets.long().clamp(min=BLANK)
        self._count_too_short(lengths, targets, target_lengths)
        with torch.autocast(hidden.device.type, enabled=False):
            logits = self(hidden.to(self.linear.weight.dtype))
            log_probs = logits.float().log_softmax(-1).transpose(0, 1)
            return functional.ctc_loss(
                log_probs,
                targets,
                lengths.long(),
                target_lengths.long(),
                blank=BLANK,
                reduction="none",
                zero_infinity=True,
            )

    def _count_too_short(self, lengths: Tensor, targets: Tensor, target_lengths: Tensor) -> None:
        short = int((lengths < required_frames(targets, target_lengths)).sum())
        if not short:
            return
        before, self.too_short = self.too_short, self.too_short + short
        # Tell at 1, 10, 100 ... so that a log stays readable.
        if len(str(self.too_short)) > len(str(before)) or before == 0:
            logging.warning(
                "CTC: %d utterances so far have fewer frames than their transcript needs; "
                "they are left out of the loss",
                self.too_short,
            )

    @staticmethod
    def greedy(logits: Tensor, lengths: Tensor) -> list[list[int]]:
        """Best path: the most likely token per frame, repeats collapsed, blanks removed.

        Args:
            logits: Shape [B, T, V].
            lengths: Valid frames, shape [B].

        Returns:
            Token ids of each utterance.
        """
        return [collapse(path) for path in best_paths(logits, lengths)]


def best_paths(logits: Tensor, lengths: Tensor) -> list[Tensor]:
    """The most likely token of every valid frame.

    Args:
        logits: Shape [B, T, V].
        lengths: Valid frames, shape [B].

    Returns:
        B tensors [T_b] on the CPU.
    """
    best = logits.argmax(-1).cpu()
    return [row[:length] for row, length in zip(best, lengths.tolist(), strict=True)]


def collapse(path: Tensor) -> list[int]:
    """What a path of frames spells: repeats are one token, blanks none."""
    return [token for token in torch.unique_consecutive(path).tolist() if token != BLANK]
