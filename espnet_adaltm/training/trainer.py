"""ESPnet's trainer with its gaps closed.

What differs from `espnet2.train.trainer.Trainer`: checkpoints are written atomically and a damaged
one falls back to the one before; loading is strict; validation metrics are those of the whole set,
over all ranks; early stopping holds across restarts; links to the best epochs are right after a
crash at any point; an epoch without one finite gradient is an error. A killed and restarted
training ends with the same weights, bit for bit, as an uninterrupted one: ESPnet seeds each epoch
with ``seed + epoch``, and every random choice of this package draws from that. One that is asked to
stop saves within the epoch, see `espnet_adaltm.training.suspend`.
"""

import argparse
import logging
import signal
import time
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import humanfriendly
import torch
from espnet2.iterators.abs_iter_factory import AbsIterFactory
from espnet2.main_funcs.average_nbest_models import average_nbest_models
from espnet2.schedulers.abs_scheduler import AbsEpochStepScheduler, AbsValEpochStepScheduler
from espnet2.torch_utils.set_all_random_seed import set_all_random_seed
from espnet2.train.distributed_utils import DistributedOption
from espnet2.train.reporter import SubReporter
from espnet2.train.trainer import GradScaler, Trainer, TrainerOptions
from torch import Tensor, nn

from espnet_adaltm import stopping
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import write_json
from espnet_adaltm.training import suspend
from espnet_adaltm.training.checkpoint import (
    link,
    load_checkpoint,
    save_checkpoint,
    save_torch,
)
from espnet_adaltm.training.job import Job
from espnet_adaltm.training.parallel import unwrap, wrap

# ESPnet names PyTorch's mixed precision by its old name in every step.
warnings.filterwarnings("ignore", r"`torch\.cuda\.amp", FutureWarning)


HISTORY = "history.json"


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
            Suspended: SIGUSR1 or SIGTERM asked for a stop; where the training is was saved.
        """
        _check_options(trainer_options, plot_attention_iter_factory)
        job = Job(
            model,
            optimizers,
            schedulers,
            trainer_options,
            distributed_option,
            GradScaler() if trainer_options.use_amp else None,
        )
        job.restore()
        wrapped = wrap(job.model, job.options, job.distributed)
        job.writers = _summary_writers(job)
        with stopping.hearing(stopping.WARNING, signal.SIGTERM):
            cls._epochs(job, wrapped, train_iter_factory, valid_iter_factory)
        if job.is_main:
            _write_history(job)
            _link_best(job)
            _average(job)
        if distributed_option.distributed:
            torch.distributed.barrier()

    @classmethod
    def _epochs(
        cls, job: Job, wrapped: nn.Module, train: AbsIterFactory, valid: AbsIterFactory
    ) -> None:
        start, last = time.monotonic(), job.options.max_epoch
        for epoch in range(job.first_epoch, last + 1):
            if _stopped_early(job):
                break
            _log_epoch(epoch, job.first_epoch, last, time.monotonic() - start)
            cls._one_epoch(job, wrapped, train, valid, epoch)

    @classmethod
    def _one_epoch(
        cls,
        job: Job,
        wrapped: nn.Module,
        train: AbsIterFactory,
        valid: AbsIterFactory,
        epoch: int,
    ) -> None:
        set_all_random_seed(job.options.seed + epoch)
        job.reporter.set_epoch(epoch)
        done = job.position.batches if job.position else 0
        feed = suspend.Feed(
            train.build_iter(epoch), job.ask, done=done, every=job.options.accum_grad
        )
        trained: dict[str, Any] = {}
        try:
            with job.reporter.observe("train") as stats:
                job.enter(stats)
                cls.train_one_epoch(
                    model=wrapped,
                    optimizers=job.optimizers,
                    schedulers=job.schedulers,
                    iterator=feed,
                    reporter=stats,
                    scaler=job.scaler,
                    summary_writer=job.writers.get("train"),
                    options=job.options,
                    distributed_option=job.distributed,
                )
            if "grad_norm" not in stats.stats:  # of finite gradients only, before a stop as well
                raise UserError(
                    f"epoch {epoch}: not one step had a finite gradient; the training in "
                    f"{job.folder} diverged: lower the learning rate (and use another "
                    f"--output_dir)"
                )
            trained = suspend.random_states(job.device)
            with job.reporter.observe("valid") as validation:
                cls.validate_one_epoch(
                    model=wrapped,
                    iterator=suspend.Feed(valid.build_iter(epoch), job.ask),
                    reporter=validation,
                    options=job.options,
                    distributed_option=job.distributed,
                )
        except suspend.Asked as asked:
            states = trained or suspend.random_states(job.device)
            job.leave(feed, stats, states, asked.number)
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


def _summary_writers(job: Job) -> dict[str, Any]:
    if not (job.options.use_tensorboard and job.is_main):
        return {}
    from torch.utils.tensorboard import SummaryWriter

    return {
        part: SummaryWriter(str(job.folder / "tensorboard" / part)) for part in ("train", "valid")
    }


def _stopped_early(job: Job) -> bool:
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


def _step_schedulers(job: Job) -> None:
    for scheduler in job.schedulers:
        if isinstance(scheduler, AbsValEpochStepScheduler):
            scheduler.step(job.reporter.get_value(*job.options.val_scheduler_criterion))
        elif isinstance(scheduler, AbsEpochStepScheduler):
            scheduler.step()


def _report(job: Job) -> None:
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


def _best(job: Job) -> dict[str, list[int]]:
    """Criterion (``valid.macro_f1``) to its epochs, best first; only criteria that exist."""
    return {
        f"{part}.{name}": job.reporter.sort_epochs(part, name, mode)
        for part, name, mode in job.options.best_model_criterion
        if job.reporter.has(part, name)
    }


def _save(job: Job, epoch: int) -> None:
    """Write the epoch's files so that a kill between any two leaves a training that resumes.

    ``checkpoint.pth`` comes after what it implies (the epoch's weights and record) and before the
    removal of what only an earlier one needs.
    """
    save_torch(job.folder / f"{epoch}epoch.pth", job.model.state_dict())
    record = getattr(job.model, "record_epoch", None)
    if record is not None:
        record(job.folder, epoch)
    save_checkpoint(job.folder, job.states())
    _write_history(job)
    link(job.folder / "latest.pth", f"{epoch}epoch.pth")
    _link_best(job)
    kept = max(_nbest(job))
    wanted = {epoch}.union(*(epochs[:kept] for epochs in _best(job).values()))
    for path in job.folder.glob("*epoch.pth"):
        number = path.name.removesuffix("epoch.pth")
        if number.isdigit() and int(number) < epoch and int(number) not in wanted:
            path.unlink()


def _write_history(job: Job) -> None:
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


def _link_best(job: Job) -> None:
    for criterion, epochs in _best(job).items():
        link(job.folder / f"{criterion}.best.pth", f"{epochs[0]}epoch.pth")


def _nbest(job: Job) -> list[int]:
    """``--keep_nbest_models`` as a list; YAML may hold a number."""
    given = job.options.keep_nbest_models
    return [given] if isinstance(given, int) else (list(given) or [1])


def _average(job: Job) -> None:
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
