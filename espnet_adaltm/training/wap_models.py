"""Adapter + self-distillation in the form that ESPnet's trainer runs."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from espnet_adaltm.models.prototypes import perplexity
from espnet_adaltm.models.self_distillation import Scores, SelfDistillation
from espnet_adaltm.models.wap_adapter import WapAdapter
from espnet_adaltm.training.espnet_models import AdaltmModel, Augmentation, Result, task_mask
from espnet_adaltm.training.metrics import CountMetric


class AttributeMetric(CountMetric):
    """Use of the clusters and hits -> ``attribute_acc`` (fraction), ``perplexity`` (of the use).

    Args:
        clusters: K; ``counts`` is [K + 2]: frames of each cluster, hits, masked frames.
    """

    def __init__(self, clusters: int) -> None:
        self.counts = torch.zeros(clusters + 2, dtype=torch.int64)

    def update(self, attributes: Tensor, right: Tensor | int, masked: Tensor | int) -> None:
        """Count the clusters of all frames, int64 [N], and what was found of the masked ones."""
        size = len(self.counts) - 2
        self.counts[:size] += torch.bincount(attributes.cpu(), minlength=size)
        self.counts[size:] += torch.tensor([int(right), int(masked)])

    def compute(self) -> dict[str, float]:
        """Return the two metrics."""
        *_, right, masked = self.counts.tolist()
        if not masked:
            return {}
        used = perplexity(self.counts[:-2].double())
        return {"attribute_acc": right / masked, "perplexity": float(used)}


class WapModel(AdaltmModel):
    """Trains an adapter without labels; ``speech`` are stored frames of the frozen encoder.

    Args:
        adapter: The student.
        objective: Its teacher, clusters and losses.
        augmentation: Its span mask is the task, in validation too.
    """

    def __init__(
        self, adapter: WapAdapter, objective: SelfDistillation, augmentation: Augmentation
    ) -> None:
        super().__init__(adapter, augmentation)
        self.objective = objective
        prototypes = objective.prototypes
        self.metric = None if prototypes is None else AttributeMetric(len(prototypes.counts))

    def update_teacher(self) -> None:
        """Let the teacher follow, after a step of the optimiser."""
        self.objective.teacher.update(self.encoder)

    def forward(
        self, speech: Tensor, speech_lengths: Tensor, utt_id: Sequence[str] = (), **_: Any
    ) -> Result:
        """Loss of a batch of frames [B, T, D] with ``speech_lengths`` [B]."""
        mask = task_mask(speech_lengths, utt_id, self.augmentation, training=self.training)
        scores = self.objective(self.encoder, speech, speech_lengths, mask)
        return self.result(scores.loss, self._stats(scores), scores.frames)

    def _stats(self, scores: Scores) -> dict[str, Tensor]:
        """What is logged; ``updates`` grows with every step and tells the newest epoch."""
        stats = {
            "attribute_loss": scores.attribute_loss,
            "distill_loss": scores.distill_loss,
            "spread": scores.spread,
        }
        found = {name: value.detach() for name, value in stats.items() if value is not None}
        if not self.training:
            found["updates"] = self.objective.teacher.updates.float()
        if self.metric is None:
            return found
        if self.training:
            prototypes = self.objective.prototypes
            found["attribute_acc"] = scores.accuracy
            found["perplexity"] = prototypes.perplexity()
            found["reseeded"] = prototypes.reseeded.float()
        else:
            right = (scores.accuracy * scores.frames).round()
            self.metric.update(scores.attributes, right, scores.frames)
        return found
