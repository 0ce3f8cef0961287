"""Decoding beside `transformers.pipeline`: the same weights, files and threads, in turn.

Emotions, words, and both, of WAV files of very different lengths. A pipeline hears one file at a
time unless it is told a batch size: both are measured, and the faster is compared with. The
answers are compared too. ``plain`` and ``merged`` are a base encoder and a merge on it, decoded by
the same program: a merge has no more parameters and no other operations. Weights are random unless
a model is given (of which the encoder is used): they do not change the time.
"""

import argparse
import contextlib
import io
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from espnet_adaltm.backbone.arks import SAMPLE_RATE
from espnet_adaltm.backbone.encoder import SpeechEncoder
from espnet_adaltm.backbone.loading import load_encoder
from espnet_adaltm.benchmark.checkpoints import SIZES, write_checkpoints
from espnet_adaltm.benchmark.machine import machine
from espnet_adaltm.data.audio import load_audio, resample
from espnet_adaltm.data.tokens import MODEL_FILE, Tokenizer, train_tokens
from espnet_adaltm.decoding.batch import Decoded, Inputs, decode
from espnet_adaltm.decoding.sources import open_clips
from espnet_adaltm.decoding.systems import SpeechSystem
from espnet_adaltm.errors import UserError
from espnet_adaltm.export.folder import save_system
from espnet_adaltm.files import write_text
from espnet_adaltm.models.ctc import CTCHead
from espnet_adaltm.models.emotion import build_head
from espnet_adaltm.progress import progress

HELP = "decoding, against transformers.pipeline; merged against plain encoders"
LABELS = ("angry", "happy", "neutral", "sad")
TASKS = ("emotion", "words", "both")
TARGET = 1.5
_PIPELINES = {"emotion": "audio-classification", "words": "automatic-speech-recognition"}
_LETTERS = "the quick brown fox jumps over the lazy dog"
_RECIPE = "method: task_arithmetic\nweights: {asr: 0.3, ser: 0.5}\n"
_SHORTEST, _LONGEST = 1.0, 10.0  # seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("--size", choices=SIZES, default="base", help="of a random encoder")
    parser.add_argument("--model", type=Path, help="folder whose encoder is used instead")
    parser.add_argument("--files", nargs="+", type=Path, help="audio instead of noise")
    parser.add_argument("--clips", type=int, default=24, help="of noise, 1 to 10 seconds each")
    parser.add_argument("--rounds", type=int, default=3, help="timed, after one to warm up")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--batch_seconds", type=float, default=40.0, help="of ours")
    parser.add_argument(
        "--pipeline_batches", nargs="+", type=int, default=[1, 8], help="batch sizes of pipelines"
    )


@dataclass(frozen=True)
class _Program:
    """Something that decodes all files; ``answers`` are of its last run."""

    name: str
    run: Callable[[], Any]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Decode everything in all ways, in turn.

    Returns:
        ``machine``, the options, ``seconds_of_audio``, ``programs`` (name to least and median
        seconds, least processor seconds, ``real_time_factor``), ``times_faster`` (task to our
        throughput by that of the fastest pipeline: least wall and least processor time), ``merged``
        (parameters of both, and its time by the plain encoder's), and ``difference`` of answers.
    """
    for name in ("rounds", "clips", "threads"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: give 1 or more")
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory(prefix="decode_") as name:
        folder = Path(name)
        files = args.files or _noise(folder, args.clips)
        inputs = _inputs(files)
        plain, merged = _encoders(folder, args)
        system = _system(merged, folder)
        save = folder / "export"
        save.mkdir()
        save_system(system, save)
        programs = _programs(system, plain, save, inputs, files, args)
        times, answers = _time(programs, args.rounds)
    seconds = sum(inputs.lengths.values()) / SAMPLE_RATE
    summary = {name: _summary(rows, seconds) for name, rows in times.items()}
    return {
        "benchmark": "decode",
        "machine": machine("tokenizers"),
        "model": str(args.model) if args.model else f"WavLM {args.size}, random",
        "files": len(inputs.lengths),
        "seconds_of_audio": seconds,
        "threads": args.threads,
        "batch_seconds": args.batch_seconds,
        "programs": summary,
        "times_faster": {task: _faster(task, summary) for task in TASKS},
        "merged": {
            "parameters": {"plain": _count(plain), "merged": _count(merged)},
            "time": {
                key: summary["ours emotion"][key] / summary["plain emotion"][key]
                for key in ("least", "least_cpu")
            },
        },
        "difference": _difference(answers, args),
    }


def _noise(folder: Path, count: int) -> list[Path]:
    import soundfile

    rng = np.random.default_rng(0)
    files = []
    for index in range(count):
        size = int(rng.uniform(_SHORTEST, _LONGEST) * SAMPLE_RATE)
        files.append(folder / f"{index:04d}.wav")
        soundfile.write(files[-1], 0.1 * rng.standard_normal(size), SAMPLE_RATE)
    return files


def _read(path: Path) -> np.ndarray:
    samples, rate = load_audio(str(path))
    return resample(samples, rate, SAMPLE_RATE)


def _inputs(files: Sequence[Path]) -> Inputs:
    _, clips = open_clips(list(files))
    lengths = {clip.name: len(clip.load()) for clip in clips}
    loaders = {clip.name: clip.load for clip in clips}
    return Inputs(lengths, lambda name: loaders[name](), SAMPLE_RATE)


def _encoders(folder: Path, args: argparse.Namespace) -> tuple[SpeechEncoder, SpeechEncoder]:
    """A plain encoder and a merged one."""
    if args.model:
        plain, merged = load_encoder(args.model), load_encoder(args.model)
        with torch.no_grad():  # other numbers in the same places
            for parameter in plain.parameters():
                parameter.mul_(1.001)
        return plain, merged
    from espnet_adaltm.bin import merge

    experts = [folder / task for task in ("asr", "ser")]
    write_checkpoints(args.size, folder / "base", experts)
    write_text(folder / "merge.yaml", _RECIPE)
    words = ["--config", folder / "merge.yaml", "--base", folder / "base", "--experts"]
    words += [f"{path.name}={path}" for path in experts] + ["--out", folder / "merged"]
    with contextlib.redirect_stdout(io.StringIO()):
        merge.main([str(word) for word in words])
    return load_encoder(folder / "base"), load_encoder(folder / "merged")


def _system(encoder: SpeechEncoder, folder: Path) -> SpeechSystem:
    (folder / MODEL_FILE).write_bytes(train_tokens([_LETTERS], "char"))
    tokenizer = Tokenizer(folder / MODEL_FILE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        options = {"kind": "projector", "hidden": 256}
        head = build_head(encoder.num_layers, encoder.hidden_size, len(LABELS), **options)
        ctc = CTCHead(encoder.hidden_size, tokenizer.vocab_size)
    return SpeechSystem(
        encoder,
        emotion_head=head,
        labels=LABELS,
        ctc_head=ctc,
        tokenizer=tokenizer,
        head_options=options,
    )


def _programs(
    system: SpeechSystem,
    plain: SpeechEncoder,
    folder: Path,
    inputs: Inputs,
    files: Sequence[Path],
    args: argparse.Namespace,
) -> list[_Program]:
    from transformers import pipeline

    def only(encoder: SpeechEncoder, *parts: str) -> SpeechSystem:
        found = {part: getattr(system, part) for part in parts}
        return SpeechSystem(encoder, labels=LABELS, tokenizer=system.tokenizer, **found)

    def ours(name: str, part: nn.Module) -> _Program:
        return _Program(name, lambda: decode(part, inputs, batch_seconds=args.batch_seconds))

    programs = [
        ours("ours emotion", only(system.encoder, "emotion_head")),
        ours("plain emotion", only(plain, "emotion_head")),
        ours("ours words", only(system.encoder, "ctc_head")),
        ours("ours both", system),
    ]
    for task, kind in _PIPELINES.items():
        options = {"top_k": len(LABELS)} if task == "emotion" else {}
        theirs = pipeline(kind, model=str(folder), device="cpu", **options)
        for size in args.pipeline_batches:

            def run(theirs: Any = theirs, size: int = size) -> list[Any]:
                return list(theirs(_stream(files), batch_size=size))

            programs.append(_Program(f"pipeline {task}, batch {size}", run))
    return programs


def _stream(files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    for path in files:
        yield {"raw": _read(path), "sampling_rate": SAMPLE_RATE}


def _time(
    programs: Sequence[_Program], rounds: int
) -> tuple[dict[str, list[tuple[float, float]]], dict[str, Any]]:
    """Wall and processor seconds of every program and round, and its last answers."""
    times: dict[str, list[tuple[float, float]]] = {program.name: [] for program in programs}
    answers = {}
    turns = [(number, program) for number in range(rounds + 1) for program in programs]
    for number, program in progress(turns, "benchmark", unit="run"):
        logging.disable(logging.INFO)  # of decoding, which tells its progress too
        wall, cpu = time.perf_counter(), time.process_time()
        answers[program.name] = program.run()
        spent = time.perf_counter() - wall, time.process_time() - cpu
        logging.disable(logging.NOTSET)
        if number:  # the first one warms up
            times[program.name].append(spent)
    return times, answers


def _summary(rows: Sequence[tuple[float, float]], audio: float) -> dict[str, float]:
    walls = [wall for wall, _ in rows]
    return {
        "least": min(walls),
        "median": statistics.median(walls),
        "least_cpu": min(cpu for _, cpu in rows),
        "real_time_factor": min(walls) / audio,
    }


def _faster(task: str, summary: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    def theirs(kind: str, key: str) -> float:
        found = [row[key] for name, row in summary.items() if name.startswith(f"pipeline {kind},")]
        return min(found)

    kinds = tuple(_PIPELINES) if task == "both" else (task,)
    return {
        name: sum(theirs(kind, key) for kind in kinds) / summary[f"ours {task}"][key]
        for name, key in (("wall", "least"), ("processor", "least_cpu"))
    }


def _difference(answers: Mapping[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Of ours and of pipelines that hear one file at a time (batches change theirs)."""
    if 1 not in args.pipeline_batches:
        return {}
    ours: Decoded = answers["ours both"]
    rows = [
        {entry["label"]: entry["score"] for entry in said}
        for said in answers["pipeline emotion, batch 1"]
    ]
    largest = max(
        abs(row[name] - value)
        for row, values in zip(rows, ours.probabilities.values(), strict=True)
        for name, value in zip(LABELS, values, strict=True)
    )
    texts = [said["text"] for said in answers["pipeline words, batch 1"]]
    same = sum(a == b for a, b in zip(texts, ours.texts.values(), strict=True))
    return {"probabilities": largest, "same_transcripts": same / len(texts)}


def _count(encoder: SpeechEncoder) -> int:
    return sum(parameter.numel() for parameter in encoder.parameters())


def table(result: Mapping[str, Any]) -> str:
    """Format a result for reading."""
    lines = [
        f"decode: {result['model']}, {result['files']} files, {result['seconds_of_audio']:.0f} s, "
        f"{result['threads']} threads, {result['machine']['processor']}",
        "",
        "| program | seconds, least | median | processor | real-time factor |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, row in result["programs"].items():
        lines.append(
            f"| {name} | {row['least']:.2f} | {row['median']:.2f} | {row['least_cpu']:.2f} | "
            f"{row['real_time_factor']:.3f} |"
        )
    heading = f"| ours against the fastest pipeline (wanted: {TARGET} x) | wall | processor |"
    lines += ["", heading, "|---|---:|---:|"]
    for task, row in result["times_faster"].items():
        lines.append(f"| {task} | {row['wall']:.2f} x | {row['processor']:.2f} x |")
    merged = result["merged"]
    counts = merged["parameters"]
    lines += [
        "",
        f"Merged {counts['merged']:,} parameters, plain {counts['plain']:,}; time of the merged by "
        f"that of the plain {merged['time']['least']:.3f} (processor "
        f"{merged['time']['least_cpu']:.3f}).",
    ]
    if result["difference"]:
        found = result["difference"]
        lines.append(
            f"Probabilities differ by at most {found['probabilities']:.1e}; "
            f"{100 * found['same_transcripts']:.0f} % of the transcripts are the same."
        )
    return "\n".join(lines)
