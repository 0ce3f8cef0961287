"""Task-agnostic training of the adapter: a student that sees less than its teacher.

The paper (arXiv 2509.23795) [P]: the student sees a masked input and learns by masked prediction
and self-distillation; the teacher is an exponential moving average of the student; local attributes
(clusters of the teacher's frames) are extra targets. Ours where it says nothing: masked prediction
is the cross-entropy to the teacher's cluster at masked frames (HuBERT's cosine classifier);
self-distillation is a smooth L1 between a linear map of the student's Z at masked frames and the
teacher's layers, layer-normalised and averaged (data2vec's targets); both weigh 1.
"""

import copy
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from espnet_adaltm.models.masked_prediction import MaskedPredictionHead
from espnet_adaltm.models.masks import length_mask
from espnet_adaltm.models.prototypes import Prototypes
from espnet_adaltm.models.wap_adapter import WapAdapter


@dataclass(frozen=True)
class EmaSchedule:
    """Decay of the moving average: linear from ``start`` to ``end`` over ``ramp`` updates."""

    start: float = 0.999
    end: float = 0.9999
    ramp: int = 30_000

    def decay(self, updates: int) -> float:
        """Decay of the update that follows ``updates`` others."""
        share = min(updates / self.ramp, 1.0) if self.ramp > 0 else 1.0
        return self.start + (self.end - self.start) * share


class Teacher(nn.Module):
    """Moving average of an adapter, always in evaluation mode.

    Its weights are buffers: no optimiser finds them, checkpoints hold them.

    Args:
        student: What it starts as.
        schedule: Of the decay.

    Attributes:
        updates: How many there were, int64 scalar.
    """

    def __init__(self, student: WapAdapter, schedule: EmaSchedule) -> None:
        super().__init__()
        self.schedule = schedule
        self.adapter = copy.deepcopy(student).eval()
        for module in self.adapter.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                delattr(module, name)
                module.register_buffer(name, parameter.detach().clone())
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in evaluation mode: the targets have no dropout."""
        return super().train(False)

    @torch.no_grad()
    def update(self, student: WapAdapter) -> None:
        """`teacher <- d * teacher + (1 - d) * student`, after a step of the optimiser."""
        decay = self.schedule.decay(int(self.updates))
        averages = dict(self.adapter.named_buffers())
        for name, parameter in student.named_parameters():
            averages[name].lerp_(parameter.detach().to(averages[name]), 1 - decay)
        self.updates += 1

    @torch.no_grad()
    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Targets of every frame: the layers, layer-normalised, averaged, layer-normalised.

        Args:
            features: Unmasked frames of the frozen encoder, [B, T, D].
            lengths: Valid frames, [B].

        Returns:
            Float32 [B, T, W].
        """
        layers = self.adapter.hidden(features, lengths)[1:]
        width = layers[0].shape[-1:]
        mean = sum(functional.layer_norm(layer.float(), width) for layer in layers) / len(layers)
        return functional.layer_norm(mean, width)


class Scores(NamedTuple):
    """What the objective says about one batch; scalars.

    Attributes:
        loss: Weighted sum of the two losses.
        frames: Number of masked frames, int64.
        attribute_loss: Mean cross-entropy to the attributes of masked frames, nats; None without.
        accuracy: Share of masked frames whose attribute was found; None without attributes.
        distill_loss: Mean smooth L1; None without self-distillation.
        spread: Standard deviation of a target over the batch's frames, mean over its dimensions:
            about 1 at best, 0 when the teacher says the same of every frame.
        attributes: Cluster of every valid frame, int64 [N]; None without attributes.
    """

    loss: Tensor
    frames: Tensor
    attribute_loss: Tensor | None
    accuracy: Tensor | None
    distill_loss: Tensor | None
    spread: Tensor
    attributes: Tensor | None


class SelfDistillation(nn.Module):
    """Teacher, clusters and the two losses.

    Args:
        student: The adapter that is trained; its teacher starts as a copy.
        schedule: Of the teacher.
        prototypes: The local attributes; None leaves them, and their loss, out.
        attribute_weight: Of the cross-entropy.
        distill_weight: Of the smooth L1; 0 leaves it out.
    """

    def __init__(
        self,
        student: WapAdapter,
        schedule: EmaSchedule,
        prototypes: Prototypes | None,
        *,
        attribute_weight: float = 1.0,
        distill_weight: float = 1.0,
    ) -> None:
        super().__init__()
        width = student.config.dim
        self.teacher = Teacher(student, schedule)
        self.prototypes = prototypes
        self.attribute_weight = attribute_weight
        self.distill_weight = distill_weight
        self.classify = self.regress = None
        if prototypes is not None:
            self.classify = MaskedPredictionHead(width, len(prototypes.counts))
        if distill_weight > 0:
            self.regress = nn.Linear(width, width)

    def forward(
        self, student: WapAdapter, features: Tensor, lengths: Tensor, mask: Tensor
    ) -> Scores:
        """Score the student on a batch; in training mode the clusters move.

        Args:
            student: The adapter.
            features: Frames of the frozen encoder, [B, T, D].
            lengths: Valid frames, [B].
            mask: What the student does not see, bool [B, T], valid frames only.
        """
        targets = self.teacher(features, lengths)
        valid = length_mask(lengths, features.shape[1])
        output = student(features, lengths, mask_time=mask).hidden[-1]
        loss = output.sum() * 0.0  # keeps a graph if no frame is masked
        attributes = attribute_loss = accuracy = distill_loss = None
        if self.classify is not None:
            known = targets[valid]
            attributes = self.prototypes.update(known) if self.training else self.prototypes(known)
            grid = torch.full(valid.shape, -1, device=valid.device).masked_scatter(
                valid, attributes
            )
            scored = self.classify(output, grid, mask)
            attribute_loss, accuracy = scored.loss, scored.accuracy
            loss = loss + self.attribute_weight * attribute_loss
        if self.regress is not None:
            guess = self.regress(output[mask]).float()
            distill_loss = functional.smooth_l1_loss(guess, targets[mask], reduction="sum")
            distill_loss = distill_loss / max(guess.numel(), 1)
            loss = loss + self.distill_weight * distill_loss
        spread = targets[valid].std(0, correction=0).mean()
        return Scores(loss, mask.sum(), attribute_loss, accuracy, distill_loss, spread, attributes)
