"""The parts of one training, and how they are saved and restored, at and within epochs."""

import logging
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import torch
from espnet2.train.distributed_utils import DistributedOption
from espnet2.train.reporter import Reporter, SubReporter
from espnet2.train.trainer import TrainerOptions
from torch import nn

from espnet_adaltm import stopping
from espnet_adaltm.errors import UserError
from espnet_adaltm.training import suspend
from espnet_adaltm.training.checkpoint import (
    CURRENT,
    load_checkpoint,
    load_strict,
    plain,
    save_checkpoint,
)


@dataclass
class Job:
    """What the steps of one training share.

    Attributes:
        model: Without the wrapper of several processes.
        optimizers: ESPnet's.
        schedulers: One or None for each optimiser.
        options: The trainer's.
        distributed: This process among others.
        scaler: Of mixed precision, or None.
        reporter: Statistics of all epochs.
        writers: TensorBoard's, by part.
        first_epoch: That this process trains.
        position: Within the first epoch, where the training was stopped in it.
    """

    model: nn.Module
    optimizers: Sequence[torch.optim.Optimizer]
    schedulers: Sequence[Any]
    options: TrainerOptions
    distributed: DistributedOption
    scaler: Any
    reporter: Reporter = field(default_factory=Reporter)
    writers: dict[str, Any] = field(default_factory=dict)
    first_epoch: int = 1
    position: suspend.Position | None = None

    @property
    def folder(self) -> Path:
        """The experiment directory."""
        return Path(self.options.output_dir)

    @property
    def device(self) -> str:
        """Kind of device: ``cuda`` or ``cpu``."""
        return "cuda" if self.options.ngpu > 0 else "cpu"

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes."""
        return not self.distributed.distributed or self.distributed.dist_rank == 0

    @cached_property
    def ask(self) -> Callable[[], int]:
        """Returns the signal that asks this training to stop, or 0."""
        return suspend.asker(self.distributed, self.device)

    def states(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "model": self.model.state_dict(),
            "reporter": plain(self.reporter.state_dict()),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedulers": [s.state_dict() if s is not None else None for s in self.schedulers],
            "scaler": self.scaler.state_dict() if self.scaler is not None else None,
            "gradients": suspend.unused_gradients(self.model),
        }

    def restore(self) -> None:
        """Load the newest readable checkpoint, strictly, unless the options say not to resume.

        Raises:
            UserError: It does not fit, or none can be read.
        """
        device = f"cuda:{torch.cuda.current_device()}" if self.options.ngpu > 0 else "cpu"
        states = load_checkpoint(self.folder, device) if self.options.resume else None
        if states is None:
            return
        load_strict(self.model, states["model"], f"the checkpoint of {self.folder}")
        self.reporter.load_state_dict(states["reporter"])
        for part, saved in ((self.optimizers, "optimizers"), (self.schedulers, "schedulers")):
            for item, state in zip(part, states[saved], strict=True):
                if item is not None:
                    item.load_state_dict(state)
        if self.scaler is not None and states["scaler"] is not None:
            self.scaler.load_state_dict(states["scaler"])
        suspend.set_gradients(self.model, states.get("gradients", {}))
        within = ""
        if "position" in states:
            self.position = suspend.Position(**states["position"])
            within = f" and {self.position.batches} batches"
        epoch = self.reporter.get_epoch()
        self.first_epoch = epoch + 1
        logging.info("Resumed after epoch %d%s from %s", epoch, within, self.folder)

    def enter(self, stats: SubReporter) -> None:
        """Begin an epoch: with ``stats`` where an earlier run was stopped in it, if one was.

        Raises:
            UserError: That run had another number of processes.
        """
        position, self.position = self.position, None
        if position is None:
            return
        states = suspend.pick(position, self.distributed, str(self.folder / CURRENT))
        suspend.write_statistics(stats, position.statistics)
        suspend.load_epoch_state(self.model, position.model)
        suspend.set_random_states(states)

    def leave(
        self, feed: suspend.Feed, stats: SubReporter, states: dict[str, Any], number: int
    ) -> NoReturn:
        """Save where the training is within its epoch, and end.

        Args:
            feed: The epoch's training batches.
            stats: Their statistics.
            states: Random states after the last of them.
            number: The signal that asked for it.

        Raises:
            Suspended: To be seen by whoever started the training.
            UserError: There is nothing new to save: to be started again would lead to the same.
        """
        epoch = self.reporter.get_epoch()
        stopping.forget()
        moved = feed.has_moved or epoch > self.first_epoch
        found = suspend.gather((moved, states), self.distributed)
        if not any(moved for moved, _ in found):
            if number == stopping.WARNING:
                raise UserError(
                    f"{self.folder}: asked to stop in epoch {epoch} before this run had trained on "
                    "one batch, or had ended a validation: there is nothing new to go on from; "
                    "give the job more time"
                )
            raise stopping.Suspended(number)
        if self.is_main:
            # As at the end of the epoch before: of this one, only what the position holds counts.
            past = {e: parts for e, parts in self.reporter.stats.items() if e < epoch}
            self.reporter.load_state_dict({"epoch": epoch - 1, "stats": past})
            position = suspend.Position(
                feed.done,
                suspend.read_statistics(stats),
                suspend.epoch_state(self.model),
                [state for _, state in found],
            )
            save_checkpoint(self.folder, {**self.states(), "position": vars(position)})
            name, done = signal.Signals(number).name, feed.done
            logging.info(
                "%s: saved in epoch %d after %d batches; the same command goes on from there",
                *(name, epoch, done),
            )
        if self.distributed.distributed:
            torch.distributed.barrier()
        raise stopping.Suspended(number)
