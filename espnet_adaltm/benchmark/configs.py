"""One training step of every shipped configuration at the real size of its encoder, on a CPU.

The programs, options and files are those of the recipes: audio is formatted, features are stored,
experts are trained, subtracted and merged, baselines are trained, each by its own `train_*` program
under its YAML. Made up are the weights of the encoders, and the speech: a few clips, in batches of
``--clips`` of ``--seconds``. Of the YAMLs only what makes a batch and ends the training is
overridden: ``batch_bins`` or ``batch_size``, and ``max_epoch`` 1. There are as many batches as an
optimiser step takes. Peak memory is that of the whole program: reading the base, the steps, one
validation, the checkpoints, the export.
"""

import argparse
import fnmatch
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from espnet_adaltm.benchmark.checkpoints import write_encoder
from espnet_adaltm.benchmark.config_rows import LEFT_OUT, Row, all_rows
from espnet_adaltm.benchmark.machine import machine
from espnet_adaltm.benchmark.process import run_program
from espnet_adaltm.benchmark.small_corpus import SETS, write_corpus
from espnet_adaltm.config import load_yaml
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import read_json, write_json
from espnet_adaltm.progress import progress
from espnet_adaltm.scoring import tables

HELP = "one training step of every shipped configuration, with its peak memory"
_RATE = 16_000
_OPTIONS = ("seconds", "clips", "limit_gb", "threads", "small")
_MODELS = {"wavlm_large": "wavlm", "wav2vec2_base": "wav2vec2"}
_SIZES = {"wavlm_large": "large", "wav2vec2_base": "base"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--only", nargs="+", default=["*"], metavar="GLOB", help="rows to show")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each clip")
    parser.add_argument("--clips", type=int, default=2, help="in a batch")
    parser.add_argument("--limit_gb", type=float, default=20.0, help="memory of a program")
    parser.add_argument("--threads", type=int, default=1, help="of every program")
    parser.add_argument("--small", action="store_true", help="tiny encoders, to try it")
    parser.add_argument(
        "--workdir", type=Path, help="where to work (30 GB at most); kept, and gone on from"
    )


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Train every chosen row, and what it stands on.

    Returns:
        ``machine``, the options, ``rows`` (name to seconds, memory in MiB, optimiser ``steps`` and
        ``error``, None where it went well) and ``left_out`` (name to why).

    Raises:
        UserError: No row has that name, or the preparation failed.
    """
    chosen = [row for row in all_rows() if _matches(row.name, args.only)]
    if not chosen:
        raise UserError(f"--only {' '.join(args.only)}: no row; all are: {_names()}")
    folder = args.workdir or Path(tempfile.mkdtemp(prefix="configs_"))
    try:
        options = {name: getattr(args, name) for name in _OPTIONS}
        check_options(folder / "options.json", options)
        world = _World(folder, args)
        results = {}
        for row in progress(_with_needs(chosen), "configs", unit="row"):
            found = world.train(row)
            if row in chosen:
                results[row.name] = found
    finally:
        if args.workdir is None:
            shutil.rmtree(folder, ignore_errors=True)
    return {
        "benchmark": "configs",
        "machine": machine("transformers", "espnet"),
        **options,
        "rows": results,
        "left_out": {name: why for name, why in LEFT_OUT.items() if _matches(name, args.only)},
    }


def check_options(path: Path, options: Mapping[str, Any]) -> None:
    """Refuse to go on with other options than those noted in ``path``; note them the first time.

    Raises:
        UserError: They differ.
    """
    if path.exists() and read_json(path) != options:
        raise UserError(f"{path.parent} was begun with {read_json(path)}: give another --workdir")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, options)


def _matches(name: str, globs: list[str]) -> bool:
    return any(fnmatch.fnmatch(name, glob) for glob in globs)


def _names() -> str:
    return ", ".join(row.name for row in all_rows())


def _with_needs(chosen: list[Row]) -> list[Row]:
    """The rows and all that they stand on, in the order of `all_rows`."""
    rows = {row.name: row for row in all_rows()}
    wanted = {row.name for row in chosen}
    for row in reversed(rows.values()):
        if row.name in wanted:
            wanted.update(row.needs)
    return [row for row in rows.values() if row.name in wanted]


@dataclass
class _World:
    """The folder that all of it happens in."""

    folder: Path
    args: argparse.Namespace

    def train(self, row: Row) -> dict[str, Any]:
        """What one row is measured by, of this run or of an earlier one in the same folder."""
        known = self.folder / "rows" / f"{row.name}.json"
        if known.exists():
            return read_json(known)
        found = self._measure(row)
        if found["error"] is None:
            known.parent.mkdir(parents=True, exist_ok=True)
            write_json(known, found)
        return found

    def _measure(self, row: Row) -> dict[str, Any]:
        """Train one row. Afterwards only what others need is left of it."""
        self._prepare(row)
        out = self._out(row.name)
        shutil.rmtree(out, ignore_errors=True)
        command = self._program(row.program, *self._words(row, out))
        try:
            run = run_program(
                command,
                self.folder / f"{row.name.replace('/', '_')}.log",
                {"OMP_NUM_THREADS": str(self.args.threads)},
                1024 * self.args.limit_gb,
            )
        except UserError as error:
            return {"error": str(error).strip().splitlines()[-1], "message": str(error)}
        found = {**asdict(run), "steps": _steps(out), "error": None}
        for path in out.rglob("*.pth"):
            path.unlink()
        if not any(row.name in other.needs for other in all_rows()):
            shutil.rmtree(out)
        return found

    def _prepare(self, row: Row) -> None:
        """Corpus, base, features and vectors, where they are not there yet."""
        if not (self.folder / "labels.json").exists():
            write_corpus(self.folder, 2 * self.args.clips, self.args.seconds, self._run)
        base = self.folder / row.model
        if not (base / "base.json").exists():
            size = "small" if self.args.small else _SIZES[row.model]
            write_encoder(_MODELS[row.model], size, base)
        if row.feats_type == "extracted":
            for name in SETS:
                if not (base / "feats" / name).exists():
                    dump = self.folder / "dump" / name
                    self._run("extract_features", "--base", base, "--dump", dump)
        vectors = self.folder / "vectors"
        if row.program == "train_merge" and not (vectors / "similarity.json").exists():
            experts = [self._out(need) for need in row.needs]
            words = ("--asr", experts[0], "--ser", experts[1], "--out", vectors)
            self._run("task_vectors", "--base", base, *words)
        if row.program == "train_wap_adapter":
            for name in ("train", "dev"):
                dump, out = self.folder / "dump" / name, base / "hidden_last" / name
                words = ("--dump", dump, "--out", out, "--feats_type", row.feats_type)
                self._run("extract_hidden", "--base", base, *words)

    def _words(self, row: Row, out: Path) -> list[object]:
        config, dump = load_yaml(row.config), self.folder / "dump"
        if config.get("batch_type", "numel") == "numel":
            batch = ["--batch_bins", round(self.args.clips * self.args.seconds * _RATE)]
        else:
            batch = ["--batch_size", self.args.clips]
        places = {
            "folder": self.folder,
            "base": self.folder / row.model,
            **{need.rpartition("/")[2]: self._out(need) for need in row.needs},
        }
        own = [word.format_map(places) for word in row.words]
        return [
            *("--config", row.config, "--output_dir", out, "--train_dump", dump / "train"),
            *("--valid_dump", dump / "dev", "--feats_type", row.feats_type, "--ngpu", 0),
            *("--num_workers", 0, "--seed", 0, "--max_epoch", 1, *batch, *own),
        ]

    def _out(self, name: str) -> Path:
        return self.folder / "exp" / name

    def _program(self, name: str, *words: object) -> list[str]:
        return [sys.executable, "-m", f"espnet_adaltm.bin.{name}", *map(str, words)]

    def _run(self, name: str, *words: object) -> None:
        run_program(
            self._program(name, *words),
            self.folder / f"{name}.log",
            {"OMP_NUM_THREADS": str(self.args.threads)},
        )


def _steps(out: Path) -> int:
    """Most optimiser steps that any parameter took, as the checkpoints say."""
    import torch

    most = 0
    for path in out.rglob("checkpoint.pth"):
        states = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        for optimizer in states["optimizers"]:
            steps = (int(state.get("step", 0)) for state in optimizer["state"].values())
            most = max(most, *steps, 0)
    return most


def table(result: Mapping[str, Any]) -> str:
    """For people."""
    rows = []
    for name, row in result["rows"].items():
        if row["error"] is not None:
            rows.append([name, "failed", "", "", ""])
            continue
        numbers = ("peak_mb", "peak_anonymous_mb", "seconds", "cpu_seconds")
        rows.append([name, *(f"{row[key]:.0f}" for key in numbers), str(row["steps"])])
    header = ("configuration", "peak MiB", "without files", "s", "CPU s", "steps")
    lines = [
        f"batches of {result['clips']} x {result['seconds']:g} s, {result['threads']} thread(s), "
        f"limit {result['limit_gb']:g} GiB, {'tiny' if result['small'] else 'real'} encoders, "
        f"random weights, {result['machine']['processor']}",
        tables.markdown(header, rows),
    ]
    lines += [
        f"{name} failed: {row['error']}" for name, row in result["rows"].items() if row["error"]
    ]
    lines += [f"{name} left out: {why}" for name, why in result["left_out"].items()]
    return "\n".join(lines)
