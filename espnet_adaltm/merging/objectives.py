"""What merging coefficients can be learned from; every function returns one value per utterance.

The plain mean of such values is a batch's loss, so that gradients accumulate over micro-batches.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

SUPERVISED, ENTROPY = "supervised", "entropy"
SUPERVISED_CTC, SUPERVISED_DISTILL = "supervised_ctc", "supervised_distill"
OBJECTIVES = (SUPERVISED, ENTROPY, SUPERVISED_CTC, SUPERVISED_DISTILL)
DISTILL_ON = ("logits", "hidden")


def entropy(logits: Tensor) -> Tensor:
    """Shannon entropy of the predicted emotions, `- sum_c p_c log p_c`, in nats (AdaMerging's).

    No label takes part (arXiv 2310.02575, section 3.3).

    Args:
        logits: Shape [B, C].

    Returns:
        Float32, shape [B], from 0 to log C.
    """
    log_probs = logits.float().log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1)


def ctc_per_token(nats: Tensor, target_lengths: Tensor) -> Tensor:
    """CTC loss of an utterance divided by its tokens, so that long ones do not outweigh the rest.

    Ours: AdaLTM has no recognition loss at merge time. An utterance without a transcript
    contributes 0.

    Args:
        nats: What `CTCHead.loss` returns, shape [B].
        target_lengths: Tokens, shape [B].
    """
    return torch.where(target_lengths > 0, nats / target_lengths.clamp(min=1), 0.0)


def valid_mean(values: Tensor, lengths: Tensor) -> Tensor:
    """Mean of ``values`` [B, T] over each utterance's valid frames, shape [B]."""
    inside = torch.arange(values.shape[1], device=values.device) < lengths[:, None]
    return values.masked_fill(~inside, 0.0).sum(1) / lengths.clamp(min=1)


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Kullback-Leibler divergence `sum_c p_c (log p_c - log q_c)`, p the teacher's, in nats.

    Args:
        student: Logits of q, shape [..., C].
        teacher: Logits of p, the same shape; no gradient reaches it.

    Returns:
        Float32, shape [...]; 0 where both say the same.
    """
    ours = student.float().log_softmax(-1)
    theirs = teacher.detach().float().log_softmax(-1)
    return functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)


def hidden_distance(
    student: Sequence[Tensor], teacher: Sequence[Tensor], lengths: Tensor
) -> Tensor:
    """Mean squared difference of layer-normalised hidden states (data2vec's targets; ours here).

    `1 / (L T D) sum_l sum_t || LN(s_lt) - LN(h_lt) ||^2` over the L transformer layers and the
    valid frames: normalised, since the last layers of two experts differ in scale.

    Args:
        student: L + 1 hidden states [B, T, D], the first of which is not compared.
        teacher: The same of the teacher; no gradient reaches it.
        lengths: Valid frames, shape [B].
    """
    total = torch.zeros(len(lengths), device=lengths.device)
    for ours, theirs in zip(student[1:], teacher[1:], strict=True):
        first, second = (
            functional.layer_norm(states.float(), states.shape[-1:])
            for states in (ours, theirs.detach())
        )
        total = total + valid_mean((first - second).square().mean(-1), lengths)
    return total / (len(student) - 1)
