"""Preparation of a corpus of MSP-Podcast's size: lists, labels, audit; and the audio of an hour.

A corpus in the layout of a release is generated first, with a text file and a (linked) recording
per turn. Then the programs of the recipe run on it, each as a whole, interpreter included:

- lists: the data directories, with the annotators' distributions
- labels: ``labels.json`` from the data directories
- audit: comparison of the sets, on made-up statistics of their audio

For the audio, the seconds of speech that one core formats in a second are measured: decoding,
mixing down, resampling, measuring and FLAC encoding.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from espnet_adaltm.benchmark.machine import machine
from espnet_adaltm.benchmark.process import run_program
from espnet_adaltm.data.audio import AudioStats
from espnet_adaltm.data.audit import STATS_FILE, write_stats
from espnet_adaltm.data.corpora.miniature import SAMPLE_RATE, tone, write_wav
from espnet_adaltm.data.corpora.miniature_msp import write_msp_podcast
from espnet_adaltm.data.corpora.msp_podcast_options import EMOTIONS, Options
from espnet_adaltm.data.dump import Limits, Recording, process
from espnet_adaltm.kaldi import read_scp
from espnet_adaltm.scoring import tables

HELP = "preparation of a large corpus, and the speed of formatting audio"
TARGET_SECONDS = 60.0
TARGET_SPEED = 200.0
_UTTERANCE = 6.0  # seconds, about MSP-Podcast's mean
_SETS = ("train", "dev", "test1", "test2")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--turns", type=int, default=300_000, help="labelled turns of the corpus")
    parser.add_argument("--num_workers", type=int, default=2, help="processes")
    parser.add_argument("--audio_seconds", type=float, default=600.0, help="of each kind of audio")
    parser.add_argument(
        "--workdir", type=Path, help="where to make the corpus; an existing one is used again"
    )


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run everything; see the module."""
    folder = args.workdir or Path(tempfile.mkdtemp(prefix="prepare_"))
    try:
        corpus = folder / "corpus"
        start = time.monotonic()
        if not corpus.exists():
            temporary = folder / "corpus.part"
            shutil.rmtree(temporary, ignore_errors=True)
            write_msp_podcast(temporary, "2.0", args.turns, test3=args.turns // 100, linked=True)
            temporary.rename(corpus)
        generated = time.monotonic() - start
        steps = _steps(folder, corpus, args.num_workers)
        audio = _audio(folder / "audio", args.audio_seconds)
    finally:
        if args.workdir is None:
            shutil.rmtree(folder, ignore_errors=True)
    return {
        "machine": machine("soundfile", "soxr"),
        "turns": args.turns,
        "num_workers": args.num_workers,
        "generated_seconds": generated,
        "steps": steps,
        "seconds": sum(step["seconds"] for step in steps.values()),
        "target_seconds": TARGET_SECONDS,
        "audio": audio,
        "target_speed": TARGET_SPEED,
    }


def _steps(folder: Path, corpus: Path, num_workers: int) -> dict[str, dict[str, float]]:
    data = folder / "data"
    shutil.rmtree(data, ignore_errors=True)
    dumps = [str(data / name) for name in _SETS]
    options = Options()
    commands = {
        "lists": ["prepare_msp_podcast", "--msp_root", corpus, "--msp_version", "2.0"]
        + ["--targets", "votes", "--out_data", data, "--num_workers", num_workers]
        + ["--max_missing", 10],
        "labels": ["prepare_labels", "--out", data / "labels.json", "--sets"]
        + [f"{name}={path}" for name, path in zip(_SETS, dumps, strict=True)]
        + ["--labels", " ".join(EMOTIONS[code] for code in options.codes)],
        "audit": ["audit", "--dumps", *dumps, "--train", dumps[0], "--valid", dumps[1]]
        + ["--out", data / "audit.md", "--allow_speaker_overlap"],
    }
    result = {}
    for name, (program, *words) in commands.items():
        if name == "audit":
            _write_statistics(dumps)
        command = [sys.executable, "-m", f"espnet_adaltm.bin.{program}", *map(str, words)]
        run = run_program(command, folder / f"{name}.log", {"OMP_NUM_THREADS": "1"})
        result[name] = asdict(run)
    return result


def _write_statistics(dumps: Sequence[str]) -> None:
    """What formatting the audio would have measured; every recording is another one."""
    for set_number, dump in enumerate(dumps):
        stats = {
            utt: AudioStats(96_000, f"{set_number:08x}{number:08x}", 0.4, 0.0, 0.1)
            for number, utt in enumerate(read_scp(Path(dump) / "wav.scp"))
        }
        write_stats(Path(dump) / STATS_FILE, stats)


def _audio(folder: Path, seconds: float) -> dict[str, float]:
    """Kind of audio to seconds of it that a second of one core formats."""
    import soundfile

    number = max(1, round(seconds / _UTTERANCE))
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, list[Path]] = {"wav": [], "flac": [], "wav, 44.1 kHz stereo": []}
    for place in range(number):
        samples = _speech(place, generator, SAMPLE_RATE)
        path = folder / f"{place}.wav"
        write_wav(path, samples)
        files["wav"].append(path)
        path = folder / f"{place}.flac"
        soundfile.write(path, samples, SAMPLE_RATE, subtype="PCM_16")
        files["flac"].append(path)
        path = folder / f"{place}_stereo.wav"
        write_wav(path, _speech(place, generator, 44_100), 44_100, 2)
        files["wav, 44.1 kHz stereo"].append(path)
    speeds = {kind: _speed(paths) for kind, paths in files.items()}
    shutil.rmtree(folder)
    return speeds


def _speech(
    place: int, generator: np.random.Generator, rate: int
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Something with the loudness and the pauses of speech."""
    signal = tone(place % 8, _UTTERANCE, generator, rate)
    beats = np.abs(np.sin(2 * np.pi * 1.5 * np.arange(len(signal)) / rate)) ** 2
    return signal * beats + 0.002 * generator.standard_normal(len(signal))


def _speed(paths: Sequence[Path]) -> float:
    recordings = [Recording(path.stem, str(path), ((path.stem, 0.0, -1.0),)) for path in paths]
    process(recordings[0], Limits())  # imports
    start = time.process_time()
    for recording in recordings:
        if not process(recording, Limits()).records:
            raise RuntimeError(f"{recording.source} was not formatted")
    spent = time.process_time() - start
    return len(paths) * _UTTERANCE / spent


def table(result: Mapping[str, Any]) -> str:
    """For people."""
    steps = [
        [name, f"{step['seconds']:.1f}", f"{step['cpu_seconds']:.1f}", f"{step['peak_mb']:.0f}"]
        for name, step in result["steps"].items()
    ]
    steps.append(["all", f"{result['seconds']:.1f}", "", ""])
    speeds = [[kind, f"{speed:.0f}"] for kind, speed in result["audio"].items()]
    return "\n".join(
        [
            f"{result['turns']} turns, {result['num_workers']} processes on "
            f"{result['machine']['cores']} cores; target: {result['target_seconds']:.0f} s",
            tables.plain(["step", "s", "CPU s", "peak MiB"], steps),
            "",
            f"audio, times real time per core; target: {result['target_speed']:.0f}",
            tables.plain(["from", "speed"], speeds),
            f"load of the machine: {os.getloadavg()[0]:.1f}",
        ]
    )
