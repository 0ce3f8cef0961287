"""What a finished training leaves for the later stages: safetensors and JSON, no pickles."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save as to_bytes
from torch import Tensor

from espnet_adaltm.backbone.loading import read_base_info
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import Pathlike, atomic_open, write_json
from espnet_adaltm.training.checkpoint import load_checkpoint, load_strict, load_weights
from espnet_adaltm.training.espnet_models import AdaltmModel

EXPERT = "expert.safetensors"
HEAD = "head.safetensors"


def write_tensors(path: Pathlike, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file atomically; the same tensors give the same bytes.

    (More than one entry of metadata would be written in a random order.)
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_open(path, "wb") as handle:
        handle.write(to_bytes(plain, metadata={"format": "pt"}))


def best_epoch(
    args: argparse.Namespace, stats: Mapping[int, Any]
) -> tuple[tuple[str, str, str], int]:
    """The first of ``--best_model_criterion`` that every epoch reported, and its best epoch.

    Args:
        args: Options of the training.
        stats: Epoch to part to name to value, as ESPnet's reporter keeps them.

    Raises:
        UserError: None of them was.
    """
    for part, name, mode in args.best_model_criterion:
        values = {epoch: s[part][name] for epoch, s in stats.items() if name in s.get(part, {})}
        if len(values) == len(stats):
            best = (min if mode == "min" else max)(values, key=values.get)
            return (part, name, mode), best
    raise UserError(f"none of --best_model_criterion {args.best_model_criterion} was reported")


def load_selected(args: argparse.Namespace, model: AdaltmModel, folder: Path) -> dict[str, Any]:
    """Load the weights chosen by ``--best_model_criterion`` into ``model``, strictly.

    The first criterion that was reported decides; with several ``--keep_nbest_models`` the average
    of the greatest number of best epochs is taken.

    Args:
        args: Options of the training.
        model: As `AdaltmTask.build_model` made it: its frozen parameters are kept.
        folder: With the checkpoints.

    Returns:
        ``{"criterion", "best_epoch", "value", "weights", "last_epoch", "metrics"}``: ``weights`` is
        a file name, ``metrics`` are the validation statistics of the best epoch.
    """
    states = load_checkpoint(folder)
    if states is None:
        raise UserError(f"{folder} has no checkpoint: train first")
    stats = states["reporter"]["stats"]
    (part, name, mode), best = best_epoch(args, stats)
    chosen = folder / f"{part}.{name}.ave.pth"
    # The mean of n equal floats is not always that float: what was frozen keeps the base's
    # bits, so that its task vector is exactly zero.
    frozen = {n: p.detach() for n, p in model.named_parameters() if not p.requires_grad}
    weights = load_weights(chosen)
    load_strict(model, {n: frozen.get(n, value) for n, value in weights.items()}, str(chosen))
    return {
        "criterion": [part, name, mode],
        "best_epoch": best,
        "value": float(stats[best][part][name]),
        "weights": chosen.resolve().name,
        "last_epoch": max(stats),
        "metrics": _numbers(stats[best].get("valid", {})),
    }


def _numbers(stats: Mapping[str, Any]) -> dict[str, float]:
    """What was measured, without times and counters (which differ from run to run)."""
    left_out = ("time", "total_count", "gpu_max_cached_mem_GB", "gpu_cached_mem_GB")
    return {name: float(value) for name, value in stats.items() if name not in left_out}


def write_expert(
    args: argparse.Namespace,
    model: AdaltmModel,
    *,
    kind: str,
    selected: Mapping[str, Any],
    **described: Any,
) -> list[Path]:
    """Write an expert's encoder, head and description; the description comes last.

    Args:
        args: Options of the training.
        model: With the selected weights; its encoder is a `SpeechEncoder`.
        kind: ``asr`` or ``ser``.
        selected: What `load_selected` returned.
        described: Further entries of ``expert.json``.

    Returns:
        The files.
    """
    folder = Path(args.output_dir)
    base = read_base_info(args.base)["sha256"]
    write_tensors(folder / EXPERT, model.encoder.encoder_state())
    write_tensors(folder / HEAD, model.head.state_dict())
    write_json(
        folder / "expert.json",
        {
            "kind": kind,
            "base_sha256": base,
            **described,
            "feats_type": args.feats_type,
            "seed": args.seed,
            "selected": dict(selected),
        },
    )
    return [folder / name for name in (EXPERT, HEAD, "expert.json")]
