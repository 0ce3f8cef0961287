"""ESPnet's trainer with its gaps closed.

What differs from `espnet2.train.trainer.Trainer`: checkpoints are written atomically and a damaged
one falls back to the one before; loading is strict; validation metrics are those of the whole set,
over all ranks; early stopping holds across restarts; links to the best epochs are right after a
crash at any point; an epoch without one finite gradient is an error. A killed and restarted
training ends with the same weights, bit for bit, as an uninterrupted one: ESPnet seeds each epoch
with ``seed + epoch``, and every random choice of this package draws from that.
"""

import argparse
import logging
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import humanfriendly
import torch
from espnet2.iterators.abs_iter_factory import AbsIterFactory
from espnet2.main_funcs.average_nbest_models import average_nbest_models
from espnet2.schedulers.abs_scheduler import AbsEpochStepScheduler, AbsValEpochStepScheduler
from espnet2.torch_utils.set_all_random_seed import set_all_random_seed
from espnet2.train.distributed_utils import DistributedOption
from espnet2.train.reporter import Reporter, SubReporter
from espnet2.train.trainer import GradScaler, Trainer, TrainerOptions
from torch import Tensor, nn

from espnet_adaltm.errors import UserError
from espnet_adaltm.files import write_json
from espnet_adaltm.training.checkpoint import (
    link,
    load_checkpoint,
    load_strict,
    plain,
    save_checkpoint,
    save_torch,
)

# ESPnet names PyTorch's mixed precision by its old name in every step.
warnings.filterwarnings("ignore", r"`torch\.cuda\.amp", FutureWarning)


HISTORY = "history.json"


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside a data-parallel wrapper."""
    wrappers = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    return model.module if isinstance(model, wrappers) else model


@dataclass
class _Job:
    """What the steps of one training share."""

    model: nn.Module
    optimizers: Sequence[torch.optim.Optimizer]
    schedulers: Sequence[Any]
    options: TrainerOptions
    distributed: DistributedOption
    reporter: Reporter
    scaler: Any
    writers: dict[str, Any]

    @property
    def folder(self) -> Path:
        return Path(self.options.output_dir)

    @property
    def is_main(self) -> bool:
        return not self.distributed.distributed or self.distributed.dist_rank == 0


class AdaltmTrainer(Trainer):
    """See the module; the interface is ESPnet's."""

    @classmethod
    def run(
        cls,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        schedulers: Sequence[Any],
        train_iter_factory: AbsIterFactory,
        valid_iter_factory: AbsIterFactory,
        plot_attention_iter_factory: AbsIterFactory | None,
        trainer_options: TrainerOptions,
        distributed_option: DistributedOption,
    ) -> None:
        """Train from the newest checkpoint, or from the start, to the end.

        Raises:
            UserError: An unsupported option, a damaged or ill-fitting checkpoint, a criterion that
                no epoch reports, or an epoch without one finite gradient.
        """
        _check_options(trainer_options, plot_attention_iter_factory)
        job = _Job(
            model,
            optimizers,
            schedulers,
            trainer_options,
            distributed_option,
            Reporter(),
            GradScaler() if trainer_options.use_amp else None,
            {},
        )
        _resume(job)
        wrapped = _wrap(job)
        job.writers = _summary_writers(job)
        start, first = time.monotonic(), job.reporter.get_epoch() + 1
        for epoch in range(first, trainer_options.max_epoch + 1):
            if _stopped_early(job):
                break
            _log_epoch(epoch, first, trainer_options.max_epoch, time.monotonic() - start)
            cls._one_epoch(job, wrapped, train_iter_factory, valid_iter_factory, epoch)
        if job.is_main:
            _write_history(job)
            _link_best(job)
            _average(job)
        if distributed_option.distributed:
            torch.distributed.barrier()

    @classmethod
    def _one_epoch(
        cls,
        job: _Job,
        wrapped: nn.Module,
        train: AbsIterFactory,
        valid: AbsIterFactory,
        epoch: int,
    ) -> None:
        set_all_random_seed(job.options.seed + epoch)
        job.reporter.set_epoch(epoch)
        with job.reporter.observe("train") as stats:
            broken = cls.train_one_epoch(
                model=wrapped,
                optimizers=job.optimizers,
                schedulers=job.schedulers,
                iterator=train.build_iter(epoch),
                reporter=stats,
                scaler=job.scaler,
                summary_writer=job.writers.get("train"),
                options=job.options,
                distributed_option=job.distributed,
            )
        if broken:
            raise UserError(
                f"epoch {epoch}: not one step had a finite gradient; the training in {job.folder} "
                f"diverged: lower the learning rate (and use another --output_dir)"
            )
        with job.reporter.observe("valid") as stats:
            cls.validate_one_epoch(
                model=wrapped,
                iterator=valid.build_iter(epoch),
                reporter=stats,
                options=job.options,
                distributed_option=job.distributed,
            )
        _step_schedulers(job)
        if job.is_main:
            _report(job)
            _save(job, epoch)

    @classmethod
    @torch.no_grad()
    def validate_one_epoch(
        cls,
        model: nn.Module,
        iterator: Iterable[tuple[list[str], dict[str, Tensor]]],
        reporter: SubReporter,
        options: TrainerOptions,
        distributed_option: DistributedOption,
    ) -> None:
        """Validate; the metrics of ``model.metric`` are counted over all batches and ranks."""
        metric = getattr(unwrap(model), "metric", None)
        if metric is not None:
            metric.reset()
        super().validate_one_epoch(
            model=model,
            iterator=iterator,
            reporter=reporter,
            options=options,
            distributed_option=distributed_option,
        )
        if metric is None:
            return
        if distributed_option.distributed:
            metric.all_reduce("cuda" if options.ngpu > 0 else "cpu")
        values = metric.compute()
        if values:
            # A step of its own: the mean over steps skips those that lack a value.
            reporter.register(values)
            reporter.next()


def _check_options(options: TrainerOptions, plots: AbsIterFactory | None) -> None:
    unsupported = {
        "sharded_ddp": options.sharded_ddp,
        "use_adapter": options.use_adapter,
        "num_att_plot": plots is not None,
        "nbest_averaging_interval": options.nbest_averaging_interval > 0,
        "no_forward_run": options.no_forward_run,
    }
    for name, used in unsupported.items():
        if used:
            raise UserError(f"--{name} is not supported by this trainer: leave it out")


def _resume(job: _Job) -> None:
    """Load the newest readable checkpoint into the job, strictly."""
    if not job.options.resume:
        return
    device = f"cuda:{torch.cuda.current_device()}" if job.options.ngpu > 0 else "cpu"
    states = load_checkpoint(job.folder, device)
    if states is None:
        return
    load_strict(job.model, states["model"], f"the checkpoint of {job.folder}")
    job.reporter.load_state_dict(states["reporter"])
    for part, saved in ((job.optimizers, "optimizers"), (job.schedulers, "schedulers")):
        for item, state in zip(part, states[saved], strict=True):
            if item is not None:
                item.load_state_dict(state)
    if job.scaler is not None and states["scaler"] is not None:
        job.scaler.load_state_dict(states["scaler"])
    logging.info("Resumed after epoch %d from %s", job.reporter.get_epoch(), job.folder)


def _wrap(job: _Job) -> nn.Module:
    """Wrap the model for several processes or devices.

    Buffers that are not saved (such as base and task vectors of a merge) never change, so that
    sending them at every forward would be a waste.
    """
    if not job.distributed.distributed:
        if job.distributed.ngpu > 1:
            raise UserError(
                "several GPUs in one process are not supported: give "
                "--multiprocessing_distributed true, or start through espnet2.bin.launch"
            )
        return job.model
    saved = set(job.model.state_dict())
    ignored = [name for name, _ in job.model.named_buffers() if name not in saved]
    parallel = nn.parallel.DistributedDataParallel
    parallel._set_params_and_buffers_to_ignore_for_model(job.model, ignored)
    device = [torch.cuda.current_device()] if job.distributed.ngpu == 1 else None
    wrapped = parallel(
        job.model,
        device_ids=device,
        output_device=device[0] if device else None,
        find_unused_parameters=job.options.unused_parameters,
        gradient_as_bucket_view=job.options.gradient_as_bucket_view,
    )
    if job.options.ddp_comm_hook is not None:
        from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

        wrapped.register_comm_hook(None, getattr(default_hooks, job.options.ddp_comm_hook))
    return wrapped


def _summary_writers(job: _Job) -> dict[str, Any]:
    if not (job.options.use_tensorboard and job.is_main):
        return {}
    from torch.utils.tensorboard import SummaryWriter

    return {
        part: SummaryWriter(str(job.folder / "tensorboard" / part)) for part in ("train", "valid")
    }


def _stopped_early(job: _Job) -> bool:
    options = job.options
    if options.patience is None or job.reporter.get_epoch() == 0:
        return False
    return job.reporter.check_early_stopping(options.patience, *options.early_stopping_criterion)


def _log_epoch(epoch: int, first: int, last: int, seconds: float) -> None:
    if epoch == first:
        logging.info("%d/%d epoch started", epoch, last)
        return
    left = humanfriendly.format_timespan(seconds / (epoch - first) * (last - epoch + 1))
    logging.info("%d/%d epoch started. Estimated time to finish: %s", epoch, last, left)


def _step_schedulers(job: _Job) -> None:
    for scheduler in job.schedulers:
        if isinstance(scheduler, AbsValEpochStepScheduler):
            scheduler.step(job.reporter.get_value(*job.options.val_scheduler_criterion))
        elif isinstance(scheduler, AbsEpochStepScheduler):
            scheduler.step()


def _report(job: _Job) -> None:
    known = job.reporter.get_all_keys()
    wanted = [tuple(entry[:2]) for entry in job.options.best_model_criterion]
    if not any(key in known for key in wanted):
        names = ", ".join("/".join(key) for key in known)
        raise UserError(f"--best_model_criterion names nothing that is reported; there is {names}")
    logging.info(job.reporter.log_message())
    if job.options.use_matplotlib:
        job.reporter.matplotlib_plot(job.folder / "images")
    for part, writer in job.writers.items():
        # Not the reporter's own method: it fails for any part but the one named first.
        count = job.reporter.get_value("train", "total_count")
        for name in job.reporter.get_keys2(part):
            writer.add_scalar(name, job.reporter.get_value(part, name), count)
    if job.options.use_wandb:
        job.reporter.wandb_log()


def _best(job: _Job) -> dict[str, list[int]]:
    """Criterion (``valid.macro_f1``) to its epochs, best first; only criteria that exist."""
    return {
        f"{part}.{name}": job.reporter.sort_epochs(part, name, mode)
        for part, name, mode in job.options.best_model_criterion
        if job.reporter.has(part, name)
    }


def _save(job: _Job, epoch: int) -> None:
    """Write the epoch's files so that a kill between any two leaves a training that resumes.

    ``checkpoint.pth`` comes after what it implies (the epoch's weights and record) and before the
    removal of what only an earlier one needs.
    """
    state = job.model.state_dict()
    save_torch(job.folder / f"{epoch}epoch.pth", state)
    record = getattr(job.model, "record_epoch", None)
    if record is not None:
        record(job.folder, epoch)
    save_checkpoint(
        job.folder,
        {
            "model": state,
            "reporter": plain(job.reporter.state_dict()),
            "optimizers": [optimizer.state_dict() for optimizer in job.optimizers],
            "schedulers": [s.state_dict() if s is not None else None for s in job.schedulers],
            "scaler": job.scaler.state_dict() if job.scaler is not None else None,
        },
    )
    _write_history(job)
    link(job.folder / "latest.pth", f"{epoch}epoch.pth")
    _link_best(job)
    kept = max(_nbest(job))
    wanted = {epoch}.union(*(epochs[:kept] for epochs in _best(job).values()))
    for path in job.folder.glob("*epoch.pth"):
        number = path.name.removesuffix("epoch.pth")
        if number.isdigit() and int(number) < epoch and int(number) not in wanted:
            path.unlink()


def _write_history(job: _Job) -> None:
    """Write ``history.json``: epoch to part (train, valid) to means of losses and metrics.

    The checkpoint has the same beside the weights; this is for plots and people.
    """
    stats = job.reporter.stats
    history = {
        str(epoch): {
            part: {
                name: round(float(stats[epoch][part][name]), 6)
                for name in job.reporter.get_keys2(part, epoch)
                if not name.endswith(("time", "count")) and name != "gpu_max_cached_mem_GB"
            }
            for part in job.reporter.get_keys(epoch)
        }
        for epoch in range(1, job.reporter.get_epoch() + 1)
    }
    write_json(job.folder / HISTORY, history)


def _link_best(job: _Job) -> None:
    for criterion, epochs in _best(job).items():
        link(job.folder / f"{criterion}.best.pth", f"{epochs[0]}epoch.pth")


def _nbest(job: _Job) -> list[int]:
    """``--keep_nbest_models`` as a list; YAML may hold a number."""
    given = job.options.keep_nbest_models
    return [given] if isinstance(given, int) else (list(given) or [1])


def _average(job: _Job) -> None:
    """Write ESPnet's ``<criterion>.ave_<n>best.pth`` and ``<criterion>.ave.pth``."""
    if job.reporter.get_epoch() == 0:
        raise UserError("no epoch was trained: raise --max_epoch")
    average_nbest_models(
        reporter=job.reporter,
        output_dir=job.folder,
        best_model_criterion=job.options.best_model_criterion,
        nbest=_nbest(job),
    )


def end_of_training(folder: Path, args: argparse.Namespace) -> tuple[int, str]:
    """Last epoch of a finished training and why it ended: ``max_epoch`` or ``patience``."""
    states = load_checkpoint(folder)
    if states is None:
        raise UserError(f"{folder} has no checkpoint: the training did not run")
    epoch = states["reporter"]["epoch"]
    return epoch, "max_epoch" if epoch >= args.max_epoch else "patience"
