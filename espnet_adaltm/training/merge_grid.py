"""Fixed coefficients tried one after another: each trains a head, validation macro-F1 picks."""

import argparse
import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from espnet_adaltm.errors import UserError
from espnet_adaltm.files import read_json, write_json
from espnet_adaltm.merging.config import MergeConfig
from espnet_adaltm.training.checkpoint import load_checkpoint
from espnet_adaltm.training.export import best_epoch
from espnet_adaltm.training.identity import GRID

RECORD = "grid.json"
METRIC = "macro_f1"


def train_grid(args: argparse.Namespace, train: Callable[[argparse.Namespace], None]) -> None:
    """Train every value in a folder of its own below ``grid/`` and write ``grid.json``.

    A value's epoch is chosen by ``--best_model_criterion``, the value by its macro-F1 on the
    validation set; of equal ones the first. Started again after a kill, each continues.

    Args:
        args: Options of the merge, prepared.
        train: Trains one merge, or goes on with it.

    Raises:
        UserError: A training spread by hand over several machines, or no macro-F1.
    """
    if args.dist_launcher is not None or args.dist_rank is not None:
        raise UserError("a grid trains on one machine: leave out --dist_launcher and --dist_rank")
    folder = Path(args.output_dir)
    tried = []
    for number, value in enumerate(MergeConfig.from_dict(args.merge_conf).grid_values()):
        one = copy.deepcopy(args)
        one.output_dir = str(folder / GRID / str(number))
        one.merge_conf |= {"init": value, "grid": None}
        logging.info("grid: lambda %s, %d", value, number + 1)
        train(one)
        tried.append({"init": value, "folder": f"{GRID}/{number}", **_measure(one)})
    chosen = max(range(len(tried)), key=lambda number: tried[number][METRIC])
    write_json(folder / RECORD, {"chosen": chosen, "metric": f"valid/{METRIC}", "tried": tried})


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    states = load_checkpoint(Path(args.output_dir))
    stats = states["reporter"]["stats"]
    _, epoch = best_epoch(args, stats)
    value = stats[epoch]["valid"].get(METRIC)
    if value is None:
        raise UserError(f"a grid is picked by {METRIC}: give the validation set emotion labels")
    return {"best_epoch": epoch, METRIC: float(value)}


def read_grid(folder: Path) -> dict[str, Any] | None:
    """What `train_grid` recorded; None before it ended."""
    path = folder / RECORD
    return read_json(path) if path.exists() else None


def chosen_value(folder: Path) -> dict[str, Any]:
    """Record of the chosen value: ``init``, ``folder``, ``best_epoch``, ``macro_f1``."""
    grid = read_grid(folder)
    if grid is None:
        raise UserError(f"{folder / RECORD} does not exist: the grid was not tried to its end")
    return grid["tried"][grid["chosen"]]
