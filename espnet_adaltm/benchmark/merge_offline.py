"""Merging two experts file to file: this package against mergekit's command, on the same files.

Whole programs are timed, from their start to their end, with warm files, in turn. Neither waits for
the disk; what earlier runs left to be written is written before a run begins.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espnet_adaltm.benchmark.checkpoints import SIZES, write_checkpoints
from espnet_adaltm.benchmark.machine import machine
from espnet_adaltm.benchmark.process import Run, run_program
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import write_text
from espnet_adaltm.merging.stream import default_threads
from espnet_adaltm.merging.weights import POS_CONV
from espnet_adaltm.progress import progress

HELP = "two experts into one model, file to file, against mergekit"
TASKS = ("asr", "ser")
MERGEKIT = "mergekit"
_ROUNDING = 1e-6
# Block-wise coefficients like those that a training finds; TIES with mergekit's trim, which takes
# any of equal magnitudes.
RECIPES = {
    "blocks": "method: task_arithmetic\nweights:\n  asr: {asr}\n  ser: {ser}\n",
    "ties": "method: ties\noptions: {{density: 0.2, minimum: 1, edge: first}}\nweights: 0.5\n",
}


@dataclass(frozen=True)
class Program:
    """One row of the table.

    Attributes:
        name: What it is called.
        recipe: A key of `RECIPES`.
        command: To run.
        made: Folder that it writes.
        remove: Folders to remove before every run.
    """

    name: str
    recipe: str
    command: tuple[str, ...]
    made: Path
    remove: tuple[Path, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("--size", choices=SIZES, default="large", help="of the encoder")
    parser.add_argument("--repeats", type=int, default=3, help="runs of every program")
    parser.add_argument(
        "--recipes", nargs="+", choices=RECIPES, default=list(RECIPES), help="what to merge"
    )
    parser.add_argument(
        "--threads", type=int, default=default_threads(), help="for every program the same"
    )
    parser.add_argument(
        "--folder", type=Path, help="where to put about 10 GB of files (default: TMPDIR)"
    )
    parser.add_argument(
        "--no_mergekit", action="store_true", help="only this package, where mergekit is missing"
    )


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Make checkpoints, run all programs in turn, and compare what they wrote.

    Returns:
        ``machine``, ``size``, ``parameters``, ``programs`` (name to seconds and memory),
        ``ratios`` to mergekit, and ``difference`` between the two merged models (`difference`).
    """
    if args.repeats < 1:
        raise UserError(f"--repeats {args.repeats}: give 1 or more")
    if args.folder:
        args.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="merge_offline_") as name:
        folder = Path(name)
        parameters = write_checkpoints(args.size, folder / "base", [folder / t for t in TASKS])
        programs = _programs(folder, args)
        environment = {"OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1"}
        runs: dict[str, list[Run]] = {program.name: [] for program in programs}
        turns = [program for _ in range(args.repeats) for program in programs]
        for program in progress(turns, "merge_offline", unit="run"):
            for old in program.remove:
                shutil.rmtree(old, ignore_errors=True)
            _warm(folder)
            os.sync()
            runs[program.name].append(run_program(program.command, folder / "log.txt", environment))
        return {
            "benchmark": "merge_offline",
            "machine": machine("mergekit", "safetensors"),
            "size": args.size,
            "parameters": parameters,
            "threads": args.threads,
            "programs": {name: _summary(found) for name, found in runs.items()},
            "ratios": _ratios(programs, runs),
            "difference": _differences(programs),
        }


def table(result: Mapping[str, Any]) -> str:
    """Format a result for reading."""
    lines = [
        f"merge_offline: WavLM {result['size']}, {result['parameters']:,} parameters, "
        f"{result['threads']} threads, {result['machine']['processor']}",
        "",
        "| program | seconds, median | min | peak MB | without mapped files |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, row in result["programs"].items():
        lines.append(
            f"| {name} | {row['median']:.2f} | {row['min']:.2f} | {row['peak_mb']:.0f} | "
            f"{row['peak_anonymous_mb']:.0f} |"
        )
    lines += [
        "",
        "| against mergekit | times faster (median) | share of its peak |",
        "|---|---:|---:|",
    ]
    for name, row in result["ratios"].items():
        lines.append(f"| {name} | {row['faster']:.2f} | {row['memory']:.3f} |")
    for name, row in result["difference"].items():
        lines += [
            "",
            f"{name}, largest difference to mergekit: {row['largest']:.1e}, in more than ",
        ]
        lines[-1] += f"rounding: {row['share']:.1e} of the parameters"
    return "\n".join(lines)


def _programs(folder: Path, args: argparse.Namespace) -> list[Program]:
    vectors = folder / "vectors"
    experts = ("--experts", *(f"{task}={folder / task}" for task in TASKS))
    given = ("--vectors", *(f"{task}={vectors / task}.safetensors" for task in TASKS))
    found: list[Program] = []
    for recipe in args.recipes:
        config, ours = folder / f"{recipe}.yaml", folder / f"{recipe}_ours"
        write_text(config, _recipe(recipe, args.size))
        command = (sys.executable, "-m", "espnet_adaltm.bin.merge", "--config", str(config))
        command += ("--base", str(folder / "base"), "--out", str(ours))
        command += ("--threads", str(args.threads))
        rows = {"experts to model": (experts, (ours,))}
        if recipe == "blocks":
            keep = ("--save_vectors", str(vectors))
            rows["experts to vectors and model"] = ((*experts, *keep), (ours, vectors))
            rows["vectors to model"] = (given, (ours,))
        for name, (words, remove) in rows.items():
            found.append(Program(f"{recipe}: {name}", recipe, (*command, *words), ours, remove))
        if not args.no_mergekit:
            translated = folder / f"{recipe}_mergekit.yaml"
            run_program(
                (*command, *experts, "--mergekit_yaml", str(translated)), folder / "log.txt"
            )
            theirs = folder / f"{recipe}_mergekit"
            words = (_mergekit(), str(translated), str(theirs))
            found.append(Program(f"{recipe}: {MERGEKIT}", recipe, words, theirs, (theirs,)))
    return found


def _recipe(name: str, size: str) -> str:
    from espnet_adaltm.benchmark.checkpoints import wavlm_config

    layers = wavlm_config(size).num_hidden_layers
    rows = {
        task: [round(0.5 + (at % 7) * step, 3) for at in range(layers + 1)]
        for task, step in zip(TASKS, (-0.003, 0.013), strict=True)
    }
    return RECIPES[name].format(**rows)


def _mergekit() -> str:
    command = Path(sys.executable).parent / "mergekit-pytorch"
    if not command.exists():
        raise UserError(
            f"{command} does not exist: install what tools/setup.sh --dev does, or give "
            "--no_mergekit"
        )
    return str(command)


def _warm(folder: Path) -> None:
    """Read all inputs once, so that every program finds them in memory."""
    for path in sorted(folder.rglob("*.safetensors")):
        with open(path, "rb", buffering=0) as handle:
            while handle.read(1 << 24):
                pass


def _summary(runs: list[Run]) -> dict[str, Any]:
    seconds = [run.seconds for run in runs]
    return {
        "seconds": seconds,
        "min": min(seconds),
        "median": statistics.median(seconds),
        "cpu_seconds": statistics.median(run.cpu_seconds for run in runs),
        "peak_mb": max(run.peak_mb for run in runs),
        "peak_anonymous_mb": max(run.peak_anonymous_mb for run in runs),
    }


def _ratios(programs: list[Program], runs: Mapping[str, list[Run]]) -> dict[str, dict[str, float]]:
    """Every program of ours against mergekit's of the same recipe."""
    found = {}
    for program in programs:
        other = f"{program.recipe}: {MERGEKIT}"
        if other == program.name or other not in runs:
            continue
        mine, theirs = _summary(runs[program.name]), _summary(runs[other])
        found[program.name] = {
            "faster": theirs["median"] / mine["median"],
            "faster_min": theirs["min"] / mine["min"],
            "memory": mine["peak_mb"] / theirs["peak_mb"],
            "anonymous_memory": mine["peak_anonymous_mb"] / theirs["peak_anonymous_mb"],
        }
    return found


def _differences(programs: list[Program]) -> dict[str, dict[str, float]]:
    by_recipe: dict[str, dict[bool, Path]] = {}
    for program in programs:
        theirs = program.name.endswith(f": {MERGEKIT}")
        by_recipe.setdefault(program.recipe, {})[theirs] = program.made
    return {
        recipe: difference(made[False], made[True])
        for recipe, made in by_recipe.items()
        if len(made) == 2
    }


def difference(one: Path, other: Path) -> dict[str, float]:
    """How two merged models differ, but for the positional convolution.

    Returns:
        ``largest`` absolute difference, and the ``share`` of parameters that differ by more than
        float32 rounding (1e-6): a trim may keep another one of several equal magnitudes.

    Raises:
        UserError: They do not hold the same tensors.
    """
    from espnet_adaltm.merging.weights import open_weights

    with open_weights(one, any_names=True) as mine, open_weights(other, any_names=True) as theirs:
        if mine.specs != theirs.specs:
            raise UserError(f"{one} and {other} do not hold the same tensors")
        largest, count, total = 0.0, 0, 0
        for name in mine.names:
            if name.startswith(f"{POS_CONV}.parametrizations"):
                continue
            gap = (mine.load(name) - theirs.load(name)).abs()
            largest = max(largest, float(gap.max()))
            count, total = count + int((gap > _ROUNDING).sum()), total + gap.numel()
    return {"largest": largest, "share": count / total}
