"""A frozen host with a memory that learns, in the form that ESPnet's trainer runs."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from espnet_adaltm.models.memory import Memory
from espnet_adaltm.models.memory_layer import Turns
from espnet_adaltm.training.espnet_models import AdaltmModel, Result
from espnet_adaltm.training.merge_model import Hidden
from espnet_adaltm.training.metrics import ClassificationMetric


class KeptType(Hidden):
    """A frozen module that moves between devices but keeps its number types (a model in half
    precision stays in it when the trainer asks for single).
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "KeptType":
        super()._apply(lambda tensor: fn(tensor).to(tensor.dtype), recurse)
        return self


class MemoryModel(AdaltmModel):
    """Frozen host + memory. Checkpoints hold the memory's weights only.

    In training every dialogue of a batch begins with an empty memory. In evaluation a dialogue may
    go on in the next batch.

    Args:
        host: ``attach(memory)``, and (speech, lengths, memory, turns) to logits [B, C]; frozen and
            in evaluation mode for good.
        memory: To be attached.
        loss: (logits [B, C], targets [B, C]) to [B].
        num_classes: C.
        learn: False: nothing is ever written, the control with the same number of weights.
        trained_head: A part of the host that learns too.
    """

    def __init__(
        self,
        host: nn.Module,
        memory: Memory,
        loss: Callable[[Tensor, Tensor], Tensor],
        num_classes: int,
        *,
        learn: bool = True,
        trained_head: nn.Module | None = None,
    ) -> None:
        super().__init__(KeptType(host))
        host.attach(memory)
        self.memory = memory
        self.loss = loss
        self.learn = learn
        self.head = trained_head
        if trained_head is not None:
            trained_head.requires_grad_(True)
        self.metric = ClassificationMetric(num_classes)

    def forward(
        self, speech: Tensor, speech_lengths: Tensor, place: Tensor, emotion: Tensor, **_: Any
    ) -> Result:
        """Loss of a batch of turns.

        Args:
            speech: Waveforms [B, N] or features [B, T, C].
            speech_lengths: [B].
            place: Dialogue, turn, number of turns, [B, 3]; turns of a dialogue in order.
            emotion: Distributions [B, C]; zeros where there is no label.
        """
        rows = place.tolist()
        names = tuple(str(dialog) for dialog, _, _ in rows)
        if not self.training:
            self._forget(name for name, (_, turn, _) in zip(names, rows) if turn == 0)
        turns = Turns(names, carry=not self.training, learn=self.learn)
        logits = self.encoder(speech, speech_lengths, self.memory, turns)
        if not self.training:
            self._forget(name for name, (_, turn, size) in zip(names, rows) if turn == size - 1)
        labelled = emotion.sum(-1) > 0
        count = int(labelled.sum())
        logits, emotion = logits[labelled], emotion[labelled]
        loss = self.loss(logits, emotion).sum() / max(count, 1)
        predicted, reference = logits.argmax(-1), emotion.argmax(-1)
        stats = {}
        if self.training:
            stats["acc"] = (predicted == reference).float().mean()
            stats["gate"] = torch.tensor(self.memory.gate(), device=loss.device)
        else:
            self.metric.update(predicted, reference)
        return self.result(loss, stats, count)

    def _forget(self, names: Iterable[str]) -> None:
        for name in set(names):
            self.memory.reset(name)
