"""Stopping a training within an epoch, between two steps, so that it goes on bit for bit.

ESPnet saves at the ends of epochs, which on a large corpus are hours apart, and queues have time
limits. Here a training that is asked to stop (`espnet_adaltm.stopping`: SIGUSR1, SIGTERM) saves
after the step under way: beside weights, optimiser, schedulers and scaler a `Position` in the
epoch, with the statistics gathered so far and the random states of all processes. Of an epoch's
validation nothing is saved: it is done again.

All processes of a training stop at the same step, whichever of them heard the signal.
"""

import itertools
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from espnet2.train.distributed_utils import DistributedOption
from espnet2.train.reporter import Average, SubReporter, WeightedAverage
from torch import nn
from torch.utils.data import DataLoader

from espnet_adaltm import stopping
from espnet_adaltm.errors import UserError
from espnet_adaltm.training.checkpoint import plain
from espnet_adaltm.training.preprocess import Preprocess


class Asked(Exception):
    """Ends an epoch's loop between two steps; ``number`` is the signal that asked for it."""

    def __init__(self, number: int) -> None:
        """For a signal."""
        super().__init__(number)
        self.number = number


@dataclass
class Position:
    """Where a training is within an epoch.

    Attributes:
        batches: Number of training batches that are done.
        statistics: Of those batches, see `read_statistics`.
        model: What the model remembers of an epoch outside its state dict, see `epoch_state`.
        random: Random states of each process, see `random_states`.
    """

    batches: int = 0
    statistics: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    random: list[dict[str, Any]] = field(default_factory=list)


class Feed:
    """The batches of an epoch from some position on, for ESPnet's loops.

    Args:
        batches: What an iterator factory of ESPnet built.
        done: How many are left out at the beginning.
        ask: Returns the signal that asks to stop, or 0; called between steps.
        every: Batches per step (``--accum_grad``).
    """

    def __init__(
        self, batches: Iterable, ask: Callable[[], int], *, done: int = 0, every: int = 1
    ) -> None:
        """Start to read (a `DataLoader` draws a random number when that begins)."""
        self.begun = self.done = done
        self._batches = batches
        self._ask = ask
        self._every = every
        self._rest = _without(batches, done) if done else iter(batches)

    def __len__(self) -> int:
        """Batches of the whole epoch.

        Raises:
            TypeError: They cannot be counted.
        """
        return len(self._batches)

    def __iter__(self) -> Iterator:
        return self

    def __next__(self) -> Any:
        """The next batch.

        Raises:
            Asked: All steps so far are complete, and the training is to stop.
        """
        if self.done % self._every == 0:
            number = self._ask()
            if number:
                raise Asked(number)
        batch = next(self._rest)
        self.done += 1
        return batch

    @property
    def has_moved(self) -> bool:
        """Whether a batch was read here."""
        return self.done > self.begun


def _without(batches: Iterable, done: int) -> Iterator:
    """Leave out the first batches, without reading them where nothing random would be lost.

    Random states of this process are restored anyway; those of the processes that read data can
    only come about by reading.
    """
    if not isinstance(batches, DataLoader) or _random_workers(batches):
        rest = iter(batches)
        next(itertools.islice(rest, done, done), None)
        return rest
    return iter(
        DataLoader(
            batches.dataset,
            batch_sampler=list(batches.batch_sampler)[done:],
            num_workers=batches.num_workers,
            collate_fn=batches.collate_fn,
            pin_memory=batches.pin_memory,
            worker_init_fn=batches.worker_init_fn,
        )
    )


def _random_workers(loader: DataLoader) -> bool:
    """Whether reading in other processes may be random; this package's conversion is not."""
    own = isinstance(getattr(loader.dataset, "preprocess", None), Preprocess)
    return loader.num_workers > 0 and not own


def asker(distributed: DistributedOption, device: str) -> Callable[[], int]:
    """What a `Feed` asks: the signal that any process of the training has heard, or 0.

    Args:
        distributed: ESPnet's.
        device: Where a number can be exchanged: ``cuda`` or ``cpu``.
    """

    def ask() -> int:
        number = stopping.asked()
        if distributed.distributed:
            # SIGTERM, for good, is the larger number.
            flag = torch.tensor(number, device=device)
            torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
            number = int(flag)
        return number

    return ask


# --------------------------------------------------------------------------------- parts
def read_statistics(reporter: SubReporter) -> dict[str, Any]:
    """What ESPnet's reporter gathered in an unfinished epoch, in plain values.

    Returns:
        ``count`` and ``total_count`` of batches, ``seconds`` and, in ``values``, name to
        ``[value, weight]`` of every batch, or to ``[value]`` where values have no weight.
    """
    values = {
        name: [[e.value, e.weight] if isinstance(e, WeightedAverage) else [e.value] for e in found]
        for name, found in reporter.stats.items()
    }
    return plain(
        {
            "count": reporter.count,
            "total_count": reporter.total_count,
            "seconds": time.perf_counter() - reporter.start_time,
            "values": values,
        }
    )


def write_statistics(reporter: SubReporter, saved: dict[str, Any]) -> None:
    """Give a fresh reporter what `read_statistics` returned."""
    reporter.count, reporter.total_count = saved["count"], saved["total_count"]
    reporter.start_time = time.perf_counter() - saved["seconds"]
    for name, entries in saved["values"].items():
        kinds = (WeightedAverage if len(entry) == 2 else Average for entry in entries)
        reporter.stats[name] = [kind(*entry) for kind, entry in zip(kinds, entries)]


def random_states(device: str) -> dict[str, Any]:
    """States of the generators of this process: Python's, NumPy's, PyTorch's."""
    kind, keys, *rest = np.random.get_state()
    states = {
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
    }
    if device == "cuda":
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: dict[str, Any]) -> None:
    """Go on from what `random_states` returned."""
    kind, keys, *rest = states["numpy"]
    random.setstate(states["python"])
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(states["torch"].cpu())
    if "cuda" in states and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(states["cuda"].cpu())


def gather(value: Any, distributed: DistributedOption) -> list[Any]:
    """A value of each process, by rank."""
    if not distributed.distributed:
        return [value]
    found = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, value)
    return found


def pick(position: Position, distributed: DistributedOption, where: str) -> dict[str, Any]:
    """The random states of this process.

    Raises:
        UserError: The training stopped on another number of processes, so that "the same batches"
            means nothing.
    """
    ranks = torch.distributed.get_world_size() if distributed.distributed else 1
    if len(position.random) != ranks:
        raise UserError(
            f"{where} was saved within an epoch by {len(position.random)} processes, now there are "
            f"{ranks}: go on with as many, or delete it to go on from the checkpoint before it"
        )
    return position.random[distributed.dist_rank if distributed.distributed else 0]


def epoch_state(model: nn.Module) -> dict[str, Any]:
    """What a model remembers of an epoch outside its state dict; most remember nothing."""
    read = getattr(model, "epoch_state", None)
    return read() if read is not None else {}


def load_epoch_state(model: nn.Module, state: dict[str, Any]) -> None:
    """Give a model what `epoch_state` returned."""
    if state:
        model.load_epoch_state(state)


def unused_gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """Gradients that no step has used; after one there are none.

    ESPnet carries those of the last, incomplete step of an epoch over to the next epoch.
    """
    named = model.named_parameters()
    return {name: p.grad.detach().clone() for name, p in named if p.grad is not None}


def set_gradients(model: nn.Module, gradients: dict[str, torch.Tensor]) -> None:
    """Give parameters what `unused_gradients` returned."""
    for name, parameter in model.named_parameters():
        if name in gradients:
            parameter.grad = gradients[name].to(parameter)
