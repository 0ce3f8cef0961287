"""One training job from command line to results: check, resume or start, export, mark as finished.

Used by the ``train_*`` programs. Importing ESPnet takes seconds, so that a finished job that is
started again with the same command line is recognised before that. A job that is asked to stop
saves where it is and exits with the status that says so, see `espnet_adaltm.stopping`.
"""

import argparse
import dataclasses
import importlib
import logging
import multiprocessing
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from espnet_adaltm import stopping
from espnet_adaltm.errors import UserError
from espnet_adaltm.text import printable
from espnet_adaltm.training import identity

if TYPE_CHECKING:
    from espnet_adaltm.training.task import AdaltmTask


def load_task(name: str) -> "type[AdaltmTask]":
    """Import a task, e.g. ``"ser_task:SERTask"``."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(f"espnet_adaltm.training.{module}"), attribute)


def main(task: str, argv: Sequence[str] | None = None) -> None:
    """Run a job; a `UserError` becomes one line on standard error and exit status 1.

    Args:
        task: For `load_task`.
        argv: Command line without the program; that of the process by default.

    Raises:
        Suspended: SIGUSR1 or SIGTERM asked for a stop; the same command goes on from there.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        # SIGTERM ends everything but epochs at once; a warning is remembered until they begin.
        with stopping.hearing(stopping.WARNING):
            if _known_to_be_finished(argv):
                _say("This training is finished: same command, configuration and inputs as before.")
                return
            run(load_task(task), argv)
    except UserError as error:
        _say(f"error: {_plain(error)}")
        sys.exit(1)


def _plain(error: UserError) -> str:
    """The message, without the traceback that a data-loader worker puts around it."""
    text = str(error)
    return text.strip().rpartition("UserError: ")[2] if "Original Traceback" in text else text


def _say(text: str) -> None:
    """A line for the user, whether or not ESPnet has set up logging yet."""
    sys.stderr.write(f"{printable(text)}\n")


def _known_to_be_finished(argv: Sequence[str]) -> bool:
    """Whether just this command line ended before; needs no parser."""
    folder = _option(argv, "--output_dir")
    if folder is None or (_option(argv, "--resume") or "true").lower() in ("false", "f", "0", "no"):
        return False
    finished = identity.read_finished(Path(folder))
    return finished is not None and finished.is_complete and finished.same_job(argv)


def _option(argv: Sequence[str], name: str) -> str | None:
    for position, word in enumerate(argv):
        if word == name and position + 1 < len(argv):
            return argv[position + 1]
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return None


@contextmanager
def _denormals_flushed() -> Iterator[None]:
    """Take numbers below 1.2e-38 for 0, in this thread and those that it starts.

    GELU's derivative ends in such numbers where units are saturated, and a processor takes some
    hundred cycles for an operation with one: half of a tiny encoder's pass (`benchmark denormals`).
    """
    import torch

    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@_denormals_flushed()
def run(task: "type[AdaltmTask]", argv: Sequence[str]) -> None:
    """Train, or go on training, and write the results.

    Raises:
        UserError: A mistake in options, data or an experiment directory.
    """
    from espnet_adaltm.training.task import check_config

    parser, config = task.get_parser(), _option(argv, "--config")
    if config is not None:
        check_config(parser, config)
    args = parser.parse_args(list(argv))
    if args.print_config or args.output_dir is None or args.dry_run or args.collect_stats:
        if not args.print_config and args.output_dir is not None:
            task.prepare(args)
        task.main(args)
        return
    _check_engine(args)
    task.prepare(args)
    folder = Path(args.output_dir)
    if args.use_wandb and args.wandb_name is None:
        args.wandb_name = folder.name  # else wandb makes one up
    is_main = _rank(args) == 0
    if not args.resume and is_main:
        identity.forget(folder)
    found = identity.make_identity(args, task.input_hashes(args))
    identity.check_identity(folder, found)
    finished = identity.read_finished(folder)
    if finished is None or not finished.ends_at(args.max_epoch):
        if is_main:
            # Until the new end is exported, the old mark would be a lie.
            (folder / identity.FINISHED).unlink(missing_ok=True)
            identity.write_identity(folder, found)
        _train(task, args)
    if is_main:
        _finish(task, args, argv)


def _train(task: "type[AdaltmTask]", args: argparse.Namespace) -> None:
    """Run ESPnet's ``main``; where it starts a process per GPU, they hear what this one hears.

    Raises:
        Suspended: The training was asked to stop, and saved where it is.
    """
    from torch.multiprocessing import ProcessExitedException

    if not (args.multiprocessing_distributed and args.ngpu > 1):
        task.main(args)
        return
    asking = {stopping.status_of(n): n for n in (stopping.WARNING, signal.SIGTERM)}
    try:
        with stopping.hearing(*asking.values(), also=_tell_children):
            task.main(args)
    except ProcessExitedException as error:
        terminated = stopping.asked() == signal.SIGTERM  # before some of them could hear it
        number = signal.SIGTERM if terminated else asking.get(error.exit_code)
        if number is None:
            raise
        raise stopping.Suspended(number) from error


def _tell_children(number: int) -> None:
    for child in multiprocessing.active_children():
        if number == stopping.WARNING:
            stopping.warn(child.pid)
        else:
            child.terminate()


def _rank(args: argparse.Namespace) -> int:
    """Rank of this process (of this node, where ESPnet spawns one process per GPU)."""
    from espnet2.train.distributed_utils import get_node_rank, get_rank

    get = get_node_rank if args.multiprocessing_distributed else get_rank
    return get(args.dist_rank, args.dist_launcher) or 0


def _finish(task: "type[AdaltmTask]", args: argparse.Namespace, argv: Sequence[str]) -> None:
    """Export the selected weights, unless that is done, and mark the training as finished."""
    from espnet_adaltm.training.export import load_selected
    from espnet_adaltm.training.trainer import end_of_training

    folder = Path(args.output_dir)
    files = task.input_files(args).values()
    job = {
        "call": identity.call_hash(argv),
        "inputs": {str(path): identity.fingerprint(path) for path in files},
    }
    finished = identity.read_finished(folder)
    if finished is not None and finished.is_complete:
        identity.write_finished(folder, dataclasses.replace(finished, **job))
        _say(f"The training in {folder} is finished already (epoch {finished.epoch}).")
        return
    model = task.build_model(args)
    trained = task.trained_folder(args)
    selected = load_selected(args, model, trained)
    outputs = [str(path) for path in task.export(args, model.eval(), selected)]
    epoch, reason = end_of_training(trained, args)
    identity.write_finished(folder, identity.Finished(epoch, reason, outputs, **job))
    logging.info(
        "Finished after epoch %d (%s); best: epoch %d, %s %.4f; results in %s",
        epoch,
        reason,
        selected["best_epoch"],
        "/".join(selected["criterion"][:2]),
        selected["value"],
        folder,
    )


def _check_engine(args: argparse.Namespace) -> None:
    """Refuse parts of ESPnet that would bypass this package's trainer."""
    refused = {
        "use_deepspeed": args.use_deepspeed,
        "sharded_ddp": args.sharded_ddp,
        "use_adapter": args.use_adapter,
        "multiple_iterator": args.multiple_iterator,
        "multi_task_dataset": args.multi_task_dataset,
        "init_param": bool(args.init_param),
    }
    for name, used in refused.items():
        if used:
            raise UserError(f"--{name} is not supported here: leave it out")
    if args.use_wandb and find_spec("wandb") is None:
        raise UserError("--use_wandb: this Python environment has no wandb; pip install wandb")
