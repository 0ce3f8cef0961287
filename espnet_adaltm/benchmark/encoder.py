"""The encoder: this package against Hugging Face's WavLM, and ESPnet's, torchaudio's and s3prl's.

Forward; forward and backward with the CNN trained; the same with the CNN frozen. Every program runs
in processes of its own, in turn, on the same random weights and clips, without dropout. Memory is
what a pass adds to the weights and the batch, and the peak of the whole process. Differences to
Hugging Face's hidden states and gradients stand beside. At last, what share of the frames is
padding where batches are grouped by length.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from espnet_adaltm.benchmark.checkpoints import SIZES
from espnet_adaltm.benchmark.encoder_steps import MODES, PROGRAMS, EncoderTask
from espnet_adaltm.benchmark.machine import machine
from espnet_adaltm.benchmark.padding import measure_padding
from espnet_adaltm.errors import UserError
from espnet_adaltm.progress import progress
from espnet_adaltm.scoring import tables

HELP = "passes of the encoder, against Hugging Face's, ESPnet's and others; padding of batches"
REFERENCE = "hugging_face"
TARGETS = {"forward": 1.5, "train": 1.5, "frozen": 1.3}  # times faster than the reference
TARGET_MEMORY = 0.7
TARGET_PADDING = 0.1
_DEFAULT = ("ours", "hugging_face", "espnet", "torchaudio", "s3prl")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("--size", choices=SIZES, default="large", help="of the encoder")
    parser.add_argument("--batch", type=int, default=4, help="clips")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each clip")
    parser.add_argument("--rounds", type=int, default=2, help="processes of every program, in turn")
    parser.add_argument("--steps", type=int, default=2, help="timed passes of a process")
    parser.add_argument("--threads", type=int, default=2, help="for every program the same")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(_DEFAULT))
    parser.add_argument(
        "--shapes",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="shape files of dumps (ser_shape ...) whose batches are looked at too",
    )


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run all programs in turn.

    Returns:
        ``machine``, the options, ``parameters``, ``modes`` (mode to program to seconds and memory,
        and both by the reference's), ``unavailable`` (program to why), ``difference`` and
        ``padding``.

    Raises:
        UserError: An option that makes no sense, or a program that failed.
    """
    for name in ("batch", "rounds", "steps", "threads"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: give 1 or more")
    names = ("size", "batch", "seconds", "steps", "threads", "precision")
    options = {name: getattr(args, name) for name in names}
    padding = measure_padding(args.shapes)
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {mode: {} for mode in args.modes}
    unavailable: dict[str, str] = {}
    turns = [(m, p) for _ in range(args.rounds) for m in args.modes for p in args.programs]
    for mode, program in progress(turns, "encoder", unit="process"):
        if program in unavailable:
            continue
        run = run_process(EncoderTask(program, mode, **options))
        if "unavailable" in run:
            unavailable[program] = run["unavailable"]
        else:
            runs[mode].setdefault(program, []).append(run)
    return {
        "benchmark": "encoder",
        "machine": machine("transformers", "torchaudio", "s3prl"),
        **options,
        "rounds": args.rounds,
        "modes": {mode: _summary(found) for mode, found in runs.items()},
        "targets": {"times_faster": TARGETS, "memory": TARGET_MEMORY, "padding": TARGET_PADDING},
        "unavailable": unavailable,
        "difference": run_process(EncoderTask("difference", **options)),
        "padding": padding,
    }


def run_process(task: EncoderTask) -> dict[str, Any]:
    """Run one task in a process of its own.

    Raises:
        UserError: It failed; the end of what it printed is in the message.
    """
    words = ["-m", "espnet_adaltm.benchmark.encoder_steps", json.dumps(asdict(task))]
    threads = str(task.threads)
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    done = subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UserError(f"{task.program} failed (see --programs):\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _summary(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, float]]:
    """Least seconds and memory of every program, and the reference's over them."""
    rows = {}
    for program, found in runs.items():
        rows[program] = {
            "seconds": min(value for run in found for value in run["step_seconds"]),
            "cpu_seconds": min(value for run in found for value in run["step_cpu_seconds"]),
            "peak_mb": min(run["peak_mb"] for run in found),
            "whole_mb": min(run["whole_mb"] for run in found),
        }
    if REFERENCE in rows:
        theirs = rows[REFERENCE].copy()
        for row in rows.values():
            row["times_faster"] = theirs["seconds"] / row["seconds"]
            row["times_faster_cpu"] = theirs["cpu_seconds"] / row["cpu_seconds"]
            row["memory"] = row["peak_mb"] / max(theirs["peak_mb"], 1e-9)
            row["whole_memory"] = row["whole_mb"] / theirs["whole_mb"]
    return rows


def table(result: Mapping[str, Any]) -> str:
    """Format a result for reading."""
    lines = [
        f"WavLM {result['size']}, {result['batch']} x {result['seconds']:g} s, "
        f"{result['precision']}, {result['threads']} threads, {result['machine']['processor']}",
    ]
    for mode, rows in result["modes"].items():
        goal = f"asked for: {TARGETS[mode]} x, memory {TARGET_MEMORY} x"
        lines += ["", f"{MODES[mode]} ({goal})", tables.markdown(_HEADER, _rows(rows))]
    lines += [f"\n{name}: not installed ({why})" for name, why in result["unavailable"].items()]
    found = result["difference"]
    lines.append(
        f"\ndifference to Hugging Face's: hidden states {found['hidden']:.1e}, with padding "
        f"{found['hidden_padded']:.1e} (largest value {found['scale']:.2g}), gradients "
        f"{found['gradient']:.1e} of their length"
    )
    header = ("padding, % of the frames", "grouped by length", "in random order", "batches")
    shares = [
        [name, f"{100 * row['grouped']:.1f}", f"{100 * row['random']:.1f}", str(row["batches"])]
        for name, row in result["padding"].items()
    ]
    return "\n".join([*lines, "", tables.markdown(header, shares)])


_HEADER = ("program", "s", "x HF", "CPU s", "x HF", "peak MiB", "of HF", "process MiB", "of HF")


def _rows(rows: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    def ratio(row: Mapping[str, float], name: str) -> str:
        return f"{row[name]:.2f}" if name in row else ""

    return [
        [
            *(name, f"{row['seconds']:.3f}", ratio(row, "times_faster")),
            *(f"{row['cpu_seconds']:.3f}", ratio(row, "times_faster_cpu")),
            *(f"{row['peak_mb']:.0f}", ratio(row, "memory")),
            *(f"{row['whole_mb']:.0f}", ratio(row, "whole_memory")),
        ]
        for name, row in rows.items()
    ]
