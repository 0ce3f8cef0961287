"""A training step of an encoder with and without numbers below 1.2e-38, which trainings flush to 0.

GELU's derivative ends in such numbers where units are saturated, which those of trained encoders
are and those of random ones are not: the encoder and the speech have to be given. The passes begin
at the CNN's features, are timed in turn in one process, and use one thread.
"""

import argparse
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from espnet_adaltm.backbone.arks import Waveforms
from espnet_adaltm.backbone.encoder import SpeechEncoder
from espnet_adaltm.backbone.features import pad_batch
from espnet_adaltm.backbone.loading import load_encoder
from espnet_adaltm.benchmark.machine import machine
from espnet_adaltm.errors import UserError
from espnet_adaltm.scoring import tables

HELP = "forward and backward pass of a trained encoder, with and without denormal numbers"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("--base", required=True, help="encoder: folder, file or name on the hub")
    parser.add_argument("--dump", type=Path, required=True, help="dump/<set>, for its wav.scp")
    parser.add_argument("--clips", type=int, default=12, help="in the batch: the first ones")
    parser.add_argument("--rounds", type=int, default=5, help="timed passes of each kind, in turn")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Time both kinds of passes.

    Returns:
        ``machine``, ``shape`` of the features, ``seconds`` (``kept`` and ``flushed``, medians of
        the rounds), ``ratio``, and ``difference``, the largest one between the gradients of both,
        relative to the largest gradient.

    Raises:
        UserError: An option that makes no sense, or an encoder or speech that cannot be read.
    """
    for name in ("clips", "rounds"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: give 1 or more")
    encoder = load_encoder(args.base).eval().requires_grad_()
    waveforms = Waveforms(args.dump)
    batch = pad_batch([waveforms[utt] for utt in list(waveforms)[: args.clips]])
    with torch.no_grad():
        features, lengths = encoder.cnn(*batch)
    seconds: dict[str, list[float]] = {"kept": [], "flushed": []}
    gradients = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the flag is a thread's own
    try:
        for kind in [*seconds, *args.rounds * list(seconds)]:
            torch.set_flush_denormal(kind == "flushed")
            start = time.perf_counter()
            gradients[kind] = _gradients(encoder, features, lengths)
            seconds[kind].append(time.perf_counter() - start)
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)
    medians = {kind: statistics.median(times[1:]) for kind, times in seconds.items()}
    return {
        "machine": machine(),
        "shape": list(features.shape),
        "seconds": medians,
        "ratio": medians["kept"] / medians["flushed"],
        "difference": float(
            (gradients["kept"] - gradients["flushed"]).abs().max() / gradients["kept"].abs().max()
        ),
    }


def _gradients(encoder: SpeechEncoder, features: Tensor, lengths: Tensor) -> Tensor:
    """Of a random mean of the last hidden states, by all weights behind the CNN, in a row."""
    weights = [w for name, w in encoder.named_parameters() if "feature_extractor" not in name]
    last = encoder(features, lengths).hidden[-1]
    found = torch.autograd.grad((last * _noise(last.shape)).mean(), weights, allow_unused=True)
    return torch.cat([grad.flatten() for grad in found if grad is not None])


def _noise(shape: torch.Size) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def table(result: Mapping[str, Any]) -> str:
    """For people."""
    rows = [[kind, f"{seconds:.3f}"] for kind, seconds in result["seconds"].items()]
    return "\n".join(
        [
            "features " + " x ".join(map(str, result["shape"])),
            tables.plain(["denormals", "s"], rows),
            f"flushed, a pass is {result['ratio']:.2f} x as fast; gradients differ by "
            f"{result['difference']:.1g}",
        ]
    )
