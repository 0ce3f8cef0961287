"""How much the gradients of jointly trained tasks oppose each other, by block of the encoder.

Two tasks whose gradients point apart undo each other's steps: that conflict is why AdaLTM trains
experts apart and merges them. Every so many steps the gradient of each task's weighted loss is
taken alone, and their cosines and norms are kept; the training itself is not changed by a bit. One
measurement costs a backward pass per task.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from espnet_adaltm.backbone.blocks import block_of
from espnet_adaltm.backbone.encoder import SpeechEncoder
from espnet_adaltm.files import read_json, write_json

FILE = "gradient_conflict.json"


def conflicts(
    gradients: Mapping[str, Sequence[Tensor | None]], blocks: Sequence[int], num_blocks: int
) -> dict[str, dict[str, list[float | None]]]:
    """Compare the gradients of several tasks.

    Args:
        gradients: Task to the gradient of every parameter; None where a loss does not depend on it.
        blocks: Block of every parameter.
        num_blocks: L + 1.

    Returns:
        ``norm[task]`` and ``cosine[pair]``, pairs written ``emotion,ctc``, lists by block; a cosine
        with a gradient that is zero is None.
    """
    tasks = list(gradients)
    pairs = list(itertools.combinations(tasks, 2))
    squares = {task: [0.0] * num_blocks for task in tasks}
    products = {pair: [0.0] * num_blocks for pair in pairs}
    for index, block in enumerate(blocks):
        flat = {
            task: gradients[task][index].flatten().float()
            for task in tasks
            if gradients[task][index] is not None
        }
        for task, gradient in flat.items():
            squares[task][block] += float(gradient @ gradient)
        for pair in pairs:
            if pair[0] in flat and pair[1] in flat:
                products[pair][block] += float(flat[pair[0]] @ flat[pair[1]])
    return {
        "norm": {task: [math.sqrt(value) for value in squares[task]] for task in tasks},
        "cosine": {
            ",".join(pair): [
                product / math.sqrt(one * other) if one > 0 and other > 0 else None
                for product, one, other in zip(
                    products[pair], squares[pair[0]], squares[pair[1]], strict=True
                )
            ]
            for pair in pairs
        },
    }


class GradientConflict:
    """Measures while training, and writes a record per epoch.

    Args:
        encoder: Its trainable parameters are looked at.
        interval: Steps from one measurement to the next; the first step of an epoch is measured.
    """

    def __init__(self, encoder: SpeechEncoder, interval: int) -> None:
        named = [(n, p) for n, p in encoder.named_encoder_parameters() if p.requires_grad]
        layers = encoder.num_layers
        self.parameters = [parameter for _, parameter in named]
        self.blocks = [block_of(n, layers, norm_first=encoder.norm_first) for n, _ in named]
        self.num_blocks = layers + 1
        self.interval = interval
        self._steps = 0
        self._found: list[dict[str, dict[str, list[float | None]]]] = []

    def step(self, losses: Mapping[str, Tensor]) -> None:
        """Count a training step, and measure if it is time; only the first process does.

        Args:
            losses: Task to its weighted loss, a scalar with a graph, which stays usable.
        """
        due = self._steps % self.interval == 0
        self._steps += 1
        if not due or len(losses) < 2 or not self.parameters or _is_follower():
            return
        gradients = {
            task: torch.autograd.grad(loss, self.parameters, retain_graph=True, allow_unused=True)
            for task, loss in losses.items()
        }
        self._found.append(conflicts(gradients, self.blocks, self.num_blocks))

    def state(self) -> dict[str, Any]:
        """What was measured since the epoch began, for a training that is stopped within it."""
        return {"steps": self._steps, "found": self._found}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._steps, self._found = state["steps"], list(state["found"])

    def record(self, folder: Path, epoch: int) -> None:
        """Add the epoch to ``gradient_conflict.json`` and begin the next.

        A repeated epoch (after a crash) replaces its entry and drops later ones.
        """
        path = folder / FILE
        before = read_json(path)["epochs"] if path.exists() else {}
        kept = {key: value for key, value in before.items() if int(key) < epoch}
        found, self._found, self._steps = self._found, [], 0
        if not found:
            return
        write_json(
            path,
            {
                "blocks": [f"block{block}" for block in range(self.num_blocks)],
                "interval": self.interval,
                "epochs": {**kept, str(epoch): summary(found)},
            },
        )


def _is_follower() -> bool:
    distributed = torch.distributed
    joined = distributed.is_available() and distributed.is_initialized()
    return joined and distributed.get_rank() > 0


def summary(found: Sequence[Mapping[str, Mapping[str, list[float | None]]]]) -> dict[str, Any]:
    """One epoch's measurements: means by block, and the share of steps with opposing gradients.

    Args:
        found: What `conflicts` returned, at least once.

    Returns:
        ``steps``, ``norm[task]``, ``cosine[pair]`` and ``opposed[pair]`` (share of the steps where
        the cosine is negative); None where no step had a value.
    """
    norm, cosine, opposed = {}, {}, {}
    for task in found[0]["norm"]:
        norm[task] = [_mean(column) for column in zip(*(step["norm"][task] for step in found))]
    for pair in found[0]["cosine"]:
        columns = list(zip(*(step["cosine"][pair] for step in found)))
        cosine[pair] = [_mean(column) for column in columns]
        signs = [[None if v is None else float(v < 0) for v in column] for column in columns]
        opposed[pair] = [_mean(column) for column in signs]
    return {"steps": len(found), "norm": norm, "cosine": cosine, "opposed": opposed}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
