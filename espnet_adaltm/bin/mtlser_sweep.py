"""Train MTLSER with several alphas and betas, and draw what they do on the validation set."""

import argparse
import logging
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

from espnet_adaltm.bin import cli
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import read_json, write_json
from espnet_adaltm.scoring.mtl_plots import SWEPT, sweep_plot

EXAMPLE = """
example:
  python -m espnet_adaltm.bin.mtlser_sweep --alphas 0 0.01 0.1 1 --betas 0 0.05 0.15 0.5 \\
      --out exp/mtlser_sweep -- --config conf/tiny/baselines/mtlser.yaml --base exp/base_tiny \\
      --train_dump dump/train --valid_dump dump/dev --labels data/labels.json \\
      --tokens data/tokens/char

What follows -- are options of bin/train_mtlser.py. Every pair is trained in a folder of its own,
OUT/alpha<a>_beta<b>; what is finished is kept, so that the same command goes on after an
interruption and a longer list adds to a shorter one. Writes OUT/sweep.json and OUT/sweep.png.
"""
_OURS = ("--alpha", "--beta", "--output_dir")


def get_parser() -> argparse.ArgumentParser:
    """Arguments of this program."""
    parser = cli.parser(__doc__ + EXAMPLE)
    numbers = {"type": float, "nargs": "+", "required": True}
    parser.add_argument("--alphas", **numbers, help="weights of CTC")
    parser.add_argument("--betas", **numbers, help="weights of the speaker loss")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("training", nargs=argparse.REMAINDER, help="-- and options of train_mtlser")
    return parser


def run_folder(out: Path, alpha: float, beta: float) -> Path:
    """Where a pair is trained."""
    return out / f"alpha{alpha:g}_beta{beta:g}"


def train(argv: Sequence[str], log: Path) -> None:
    """Run one training in a process of its own.

    Raises:
        UserError: It failed; the message ends with the last line of its log.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "espnet_adaltm.bin.train_mtlser", *argv]
    with log.open("w", encoding="utf-8") as handle:
        done = subprocess.run(command, stdout=handle, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""]
        raise UserError(f"{log.parent}: the training failed: {lines[-1]} (see {log})")


def sweep(
    args: argparse.Namespace, trainer: Callable[[Sequence[str], Path], None] = train
) -> dict[str, Any]:
    """Train every pair and collect the validation's scores of the selected epochs.

    Args:
        args: Of the parser.
        trainer: Called with the command line of a training and its log.

    Raises:
        UserError: A wrong option, or a training that failed.
    """
    words = args.training[1:] if args.training[:1] == ["--"] else args.training
    refused = [word for word in words if word.partition("=")[0] in _OURS]
    if refused:
        raise UserError(f"{refused[0]} is set by the sweep: leave it out")
    if args.jobs < 1:
        raise UserError(f"--jobs {args.jobs} is less than 1")
    pairs = list(product(sorted(set(args.alphas)), sorted(set(args.betas))))

    def run(pair: tuple[float, float]) -> dict[str, Any]:
        folder = run_folder(args.out, *pair)
        weights = ["--alpha", f"{pair[0]:g}", "--beta", f"{pair[1]:g}"]
        logging.info("alpha %g, beta %g: %s", *pair, folder)
        trainer([*words, *weights, "--output_dir", str(folder)], folder / "train.log")
        return {"alpha": pair[0], "beta": pair[1], "metrics": read_metrics(folder)}

    with ThreadPoolExecutor(args.jobs) as pool:
        runs = list(pool.map(run, pairs))
    return {"alphas": sorted(set(args.alphas)), "betas": sorted(set(args.betas)), "runs": runs}


def read_metrics(folder: Path) -> dict[str, float]:
    """Validation scores of a finished training; the speakers' is of what was put aside, if any."""
    info = read_json(folder / "baseline.json")
    found = {**info["selected"]["metrics"]}
    found |= {name: value for name, value in info.get("held_out", {}).items() if name == "spk_acc"}
    return {name: found[name] for name, _, _ in SWEPT if name in found}


def _work(args: argparse.Namespace) -> None:
    report = sweep(args)
    write_json(args.out / "sweep.json", report)
    sweep_plot(args.out / "sweep.png", report)
    for run in report["runs"]:
        scores = ", ".join(f"{name} {100 * value:.1f}" for name, value in run["metrics"].items())
        print(f"alpha {run['alpha']:g}, beta {run['beta']:g}: {scores}")
    print(f"written: {args.out / 'sweep.json'}, {args.out / 'sweep.png'}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    cli.run(_work, get_parser(), argv)


if __name__ == "__main__":
    main()
