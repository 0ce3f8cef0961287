"""One step of learning the coefficients: this package against FusionBench and the arithmetic floor.

The floor is a forward and full backward pass of the same encoder with weight gradients and no
optimiser: an exact step cannot cost less. Every program runs in processes of its own, in turn;
memory is what is added to the process (or GPU) that holds the base encoder and the batch.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from espnet_adaltm.benchmark.checkpoints import SIZES
from espnet_adaltm.benchmark.machine import machine
from espnet_adaltm.benchmark.steps import MICRO_BATCHES, PROGRAMS, Task
from espnet_adaltm.errors import UserError
from espnet_adaltm.progress import progress

HELP = "one step of learning the coefficients, against FusionBench"
FLOOR, CNN = "floor", "cnn"
OURS, STORED = "ours", "ours_extracted"
REFERENCES = ("fusion_bench", "fusion_bench_hugging_face")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("--size", choices=SIZES, default="large", help="of the encoder")
    parser.add_argument("--batch", type=int, default=4, help="clips")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each clip")
    parser.add_argument(
        "--cnn",
        choices=("frozen", "merged"),
        default="frozen",
        help="whether the experts left the convolutional front end alone",
    )
    parser.add_argument("--rounds", type=int, default=3, help="processes of every program, in turn")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of a process")
    parser.add_argument("--threads", type=int, default=_cores(), help="for every program the same")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--precision",
        choices=("float32", "tf32", "bfloat16"),
        default="float32",
        help="of products",
    )
    parser.add_argument(
        "--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS), help="what to run"
    )


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run all programs in turn.

    Returns:
        ``machine``, the options, ``parameters``, ``programs`` (name to seconds and memory),
        ``ratios`` (name to time and memory over the floor's and over both FusionBench's),
        ``cnn_saved`` (share of the front end's time that stored features save) and
        ``gradient_difference`` (relative, to FusionBench on the same encoder).

    Raises:
        UserError: An option that makes no sense, or a program that failed.
    """
    for name in ("rounds", "steps", "threads"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: give 1 or more")
    if args.batch < MICRO_BATCHES or args.batch % MICRO_BATCHES:
        raise UserError(f"--batch {args.batch}: give a multiple of {MICRO_BATCHES}")
    options = {name: getattr(args, name) for name in asdict(Task("")) if name != "program"}
    turns = [name for _ in range(args.rounds) for name in args.programs]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in args.programs}
    for name in progress(turns, "merge_step", unit="process"):
        runs[name].append(run_process(Task(name, **options)))
    programs = {name: _summary(found) for name, found in runs.items()}
    return {
        "benchmark": "merge_step",
        "machine": machine("fusion-bench", "transformers"),
        **options,
        "rounds": args.rounds,
        "parameters": runs[args.programs[0]][0]["parameters"],
        "programs": programs,
        "ratios": _ratios(programs),
        "cnn_saved": _cnn_saved(programs),
        "gradient_difference": _gradient_difference(runs),
    }


def run_process(task: Task) -> dict[str, Any]:
    """Run one task in a process of its own; what `steps.run_task` returns.

    Raises:
        UserError: It failed; the end of what it printed is in the message.
    """
    command = [sys.executable, "-m", "espnet_adaltm.benchmark.steps", json.dumps(asdict(task))]
    threads = str(task.threads)
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(
            f"{task.program} failed (fusion_bench needs what tools/setup.sh --dev installs; see "
            f"--programs):\n{done.stderr[-2000:]}"
        )
    return json.loads(done.stdout.splitlines()[-1])


def table(result: Mapping[str, Any]) -> str:
    """Format a result for reading."""
    lines = [
        f"merge_step: WavLM {result['size']}, {result['parameters']:,} parameters, "
        f"{result['batch']} x {result['seconds']:g} s, CNN {result['cnn']}, "
        f"{result['precision']}, {result['threads']} threads, {result['machine']['processor']}",
        "",
        "| program | seconds, median | min | x floor | x FusionBench | x FusionBench on HF "
        "| resident MB | peak MB | x FusionBench | x FusionBench on HF |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in result["programs"].items():
        ratios = result["ratios"][name]
        cells = [f"{row['median']:.3f}", f"{row['min']:.3f}"]
        cells += [_ratio(ratios, "seconds", other) for other in (FLOOR, *REFERENCES)]
        cells += [f"{row['resident_mb']:.0f}", f"{row['peak_mb']:.0f}"]
        cells += [_ratio(ratios, "peak_mb", other) for other in REFERENCES]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    if result["cnn_saved"] is not None:
        lines.append(
            f"\nstored features save {100 * result['cnn_saved']:.0f} % of the front end's time"
        )
    if result["gradient_difference"] is not None:
        lines.append(
            f"gradient by block, difference to FusionBench: {result['gradient_difference']:.1e}"
        )
    return "\n".join(lines)


def _ratio(ratios: Mapping[str, Any], what: str, other: str) -> str:
    value = ratios.get(other, {}).get(what)
    return "" if value is None else f"{value:.3f}"


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    seconds = [value for run in runs for value in run["step_seconds"]]
    return {
        "seconds": seconds,
        "median": statistics.median(seconds),
        "min": min(seconds),
        "cpu_median": statistics.median(v for run in runs for v in run["step_cpu_seconds"]),
        "resident_mb": statistics.median(run["resident_mb"] for run in runs),
        "peak_mb": statistics.median(run["peak_mb"] for run in runs),
    }


def _ratios(programs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    others = [name for name in (FLOOR, *REFERENCES) if name in programs]
    return {
        name: {
            other: {
                "seconds": row["median"] / programs[other]["median"],
                "seconds_min": row["min"] / programs[other]["min"],
                "cpu_seconds": row["cpu_median"] / programs[other]["cpu_median"],
                "peak_mb": row["peak_mb"] / max(programs[other]["peak_mb"], 1e-9),
            }
            for other in others
        }
        for name, row in programs.items()
    }


def _cnn_saved(programs: Mapping[str, Mapping[str, Any]]) -> float | None:
    if not {CNN, OURS, STORED} <= programs.keys():
        return None
    raw, stored, alone = (programs[name]["median"] for name in (OURS, STORED, CNN))
    return (raw - stored) / alone


def _gradient_difference(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> float | None:
    if not {OURS, REFERENCES[0]} <= runs.keys():
        return None
    mine, theirs = (
        [value for row in runs[name][0]["gradient"] for value in row]
        for name in (OURS, REFERENCES[0])
    )
    error = sum((a - b) ** 2 for a, b in zip(mine, theirs, strict=True))
    return (error / sum(b**2 for b in theirs)) ** 0.5
