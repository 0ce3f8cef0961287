"""What a memory of the dialogue adds to its host's decoding time.

The same made-up dialogues are decoded by the same programs with the memory and without it, in
turns, in one process; a ratio holds within one run. ``batches`` is how a test set is decoded
(``bin/decode.py``), ``single`` one utterance at a time, as in a conversation. The host's weights
are random, and so is the speech: neither changes the time.
"""

import argparse
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from espnet_adaltm.backbone.arks import SAMPLE_RATE
from espnet_adaltm.backbone.tiny import random_encoder, tiny_config
from espnet_adaltm.benchmark.checkpoints import wavlm_config
from espnet_adaltm.benchmark.machine import machine
from espnet_adaltm.data.dialogs import GIVEN
from espnet_adaltm.decoding import dialog
from espnet_adaltm.decoding.baselines.memory import MemorySystem, decode
from espnet_adaltm.decoding.batch import Inputs
from espnet_adaltm.errors import UserError
from espnet_adaltm.kaldi import write_scp
from espnet_adaltm.models.emotion import EmotionHead
from espnet_adaltm.models.memory import Memory
from espnet_adaltm.models.memory_layer import MemoryLayer
from espnet_adaltm.models.memory_ser import SerHost
from espnet_adaltm.progress import progress

if TYPE_CHECKING:
    from transformers import PretrainedConfig

HELP = "decoding dialogues with a memory, against the host alone"
LABELS = ("angry", "happy", "neutral", "sad")
FEATS = ("extracted", "raw")
# Name to batch_seconds: that of bin/decode.py, and one that no two utterances fit into.
MODES: Mapping[str, float] = {"batches": 40.0, "single": 0.01}
HOST, MEMORY = "host", "memory"
# Of conf/*/baselines/memory.yaml.
_MEMORIES = {
    "small": {"size": 16, "width": 16, "chunk": 32},
    "mini_espeak": {"size": 64, "width": 64, "chunk": 32},
    "base": {"size": 256, "width": 256, "chunk": 64},
    "large": {"size": 256, "width": 256, "chunk": 64},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("--size", choices=_MEMORIES, default="mini_espeak", help="of the host")
    parser.add_argument("--dialogs", type=int, default=40)
    parser.add_argument("--turns", type=int, default=8, help="of each dialogue")
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="of an utterance; half to three halves of it"
    )
    parser.add_argument(
        "--feats_type", nargs="+", choices=FEATS, default=list(FEATS), help="what decoding reads"
    )
    parser.add_argument("--rounds", type=int, default=5, help="timed, after one to warm up")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Decode everything in all ways, in turn.

    Returns:
        ``machine``, the options, ``parameters`` of host and memory, and ``added``: for
        ``<feats_type>/<mode>`` the seconds of ``host`` and ``memory``, and the shares that the
        memory adds (fractions), of the least time of all rounds, of the median, of processor time
        (least), and of processor time within the memory layers alone.

    Raises:
        UserError: An option that makes no sense.
    """
    for name in ("dialogs", "turns", "rounds", "threads"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: give 1 or more")
    if args.seconds < 0.2:
        raise UserError(f"--seconds {args.seconds}: give 0.2 or more")
    torch.set_num_threads(args.threads)
    system = build_system(args.size)
    with TemporaryDirectory() as folder:
        added = {
            f"{feats_type}/{mode}": compare(system, inputs, Path(folder), seconds, args)
            for feats_type, inputs in build_inputs(system, args, Path(folder)).items()
            if feats_type in args.feats_type
            for mode, seconds in MODES.items()
        }
    names = ("size", "dialogs", "turns", "seconds", "rounds", "threads", "device")
    return {
        "benchmark": "memory",
        "machine": machine("transformers"),
        **{name: getattr(args, name) for name in names},
        "memory_options": _MEMORIES[args.size],
        "parameters": {
            HOST: _count(system.host),
            MEMORY: _count(system.memory),
        },
        "added": added,
    }


def table(result: Mapping[str, Any]) -> str:
    """Format a result for reading."""
    lines = [
        f"memory: host {result['size']}, {result['parameters'][HOST]:,} parameters, memory "
        f"{result['parameters'][MEMORY]:,}, {result['dialogs']} dialogues of {result['turns']} "
        f"turns of about {result['seconds']:g} s, {result['threads']} threads, "
        f"{result['machine']['processor']}",
        "",
        "| reads / decodes | host, s | with memory, s | adds | median | processor time "
        "| memory layers alone |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in result["added"].items():
        cells = [f"{min(row['seconds'][program]):.3f}" for program in (HOST, MEMORY)]
        shares = (row["share"], row["share_median"], row["cpu_share"], row["layer_share"])
        cells += [f"{100 * share:.1f} %" for share in shares]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def build_system(size: str) -> MemorySystem:
    """A recogniser of random weights with an opened memory after its middle layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = random_encoder(_config(size), seed=0)
        host = SerHost(encoder, EmotionHead(encoder.num_layers, encoder.hidden_size, len(LABELS)))
        memory = Memory(host.hidden_size, [(host.num_layers + 1) // 2], **_MEMORIES[size])
    for layer in memory:
        layer.gate.data.fill_(0.5)  # a closed one is not read
    return MemorySystem(host, memory, LABELS, dialogs={"kind": GIVEN, "pseudo_turns": 1})


def _config(size: str) -> "PretrainedConfig":
    if size != "mini_espeak":
        return wavlm_config(size)
    # As in egs/mini_espeak/adaltm1/conf/full/train_base.yaml.
    return tiny_config(
        conv_dim=(32, 64, 128, 128), conv_kernel=(20, 8, 8, 4), conv_stride=(10, 4, 4, 2)
    )


def build_inputs(system: MemorySystem, args: argparse.Namespace, dump: Path) -> dict[str, Inputs]:
    """Random speech of dialogues, as waveforms and as stored features, in memory.

    Args:
        system: Its CNN makes the features.
        args: ``dialogs``, ``turns``, ``seconds``.
        dump: Gets ``utt2dialog``.
    """
    rng = np.random.default_rng(0)
    waves, places = {}, {}
    for number in range(args.dialogs):
        for turn in range(args.turns):
            samples = int(SAMPLE_RATE * args.seconds * rng.uniform(0.5, 1.5))
            utt = f"d{number:04d}-t{turn}"
            waves[utt] = rng.standard_normal(samples, dtype=np.float32)
            places[utt] = f"d{number:04d} {turn}"
    write_scp(dump / "utt2dialog", places)
    found = {"raw": _inputs(waves, SAMPLE_RATE)}
    if "extracted" in args.feats_type:
        encoder = system.encoder
        with torch.inference_mode():
            feats = {
                utt: encoder.cnn(torch.from_numpy(wave)[None], torch.tensor([len(wave)]))[0][0]
                for utt, wave in waves.items()
            }
        arrays = {utt: tensor.numpy() for utt, tensor in feats.items()}
        found["extracted"] = _inputs(arrays, SAMPLE_RATE / encoder.geometry.hop)
    return found


def _inputs(arrays: Mapping[str, np.ndarray], per_second: float) -> Inputs:
    lengths = {utt: len(array) for utt, array in arrays.items()}
    return Inputs(lengths, arrays.__getitem__, per_second)


@dataclass
class Clock:
    """Times of a program's rounds."""

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    layers: list[float] = field(default_factory=list)


def compare(
    system: MemorySystem,
    inputs: Inputs,
    dump: Path,
    batch_seconds: float,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Time decoding with and without the memory; see `measure`."""
    run = partial(decode, system, inputs, dump=dump, batch_seconds=batch_seconds)
    clocks = {HOST: Clock(), MEMORY: Clock()}
    programs = {HOST: dialog.NONE, MEMORY: dialog.DIALOG}
    for number in progress(range(args.rounds + 1), "memory", unit="round"):
        for name, history in programs.items():
            system.history = history
            with _timed(clocks[name] if number else Clock(), system.memory):
                run(device=args.device)
    return summary(clocks)


@contextmanager
def _timed(clock: Clock, layers: Sequence[MemoryLayer] | Memory) -> Iterator[None]:
    spent = 0.0
    begun = 0.0

    def before(*_: Any) -> None:
        nonlocal begun
        begun = time.process_time()

    def after(*_: Any) -> None:
        nonlocal spent
        spent += time.process_time() - begun

    hooks = [layer.register_forward_pre_hook(before) for layer in layers]
    hooks += [layer.register_forward_hook(after) for layer in layers]
    start, cpu = time.perf_counter(), time.process_time()
    yield
    clock.seconds.append(time.perf_counter() - start)
    clock.cpu.append(time.process_time() - cpu)
    clock.layers.append(spent)
    for hook in hooks:
        hook.remove()


def summary(clocks: Mapping[str, Clock]) -> dict[str, Any]:
    """Times, and what the memory adds as shares of the host's."""
    host, memory = clocks[HOST], clocks[MEMORY]

    def share(of: Any, name: str) -> float:
        return of(getattr(memory, name)) / of(getattr(host, name)) - 1

    return {
        "seconds": {name: clock.seconds for name, clock in clocks.items()},
        "cpu_seconds": {name: clock.cpu for name, clock in clocks.items()},
        "share": share(min, "seconds"),
        "share_median": share(statistics.median, "seconds"),
        "cpu_share": share(min, "cpu"),
        "layer_share": min(memory.layers) / min(host.cpu),
    }


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
