"""Decode a set with one system: emotion probabilities, transcripts, speakers, in one pass."""

import argparse
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from espnet_adaltm.bin import cli
from espnet_adaltm.data.labels import check_same_labels, load_labels
from espnet_adaltm.errors import UserError
from espnet_adaltm.kaldi import read_scp

if TYPE_CHECKING:
    from espnet_adaltm.backbone.encoder import SpeechEncoder
    from espnet_adaltm.decoding.batch import Decoded, Inputs

EXAMPLE = """
example:
  python -m espnet_adaltm.bin.decode --system exp/merge_adaltm_seed1 --dump dump/test \\
      --labels data/labels.json --asr_expert exp/asr_expert_x \\
      --out exp/merge_adaltm_seed1/decode/test
"""


_DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]{1,3})?")


def get_parser() -> argparse.ArgumentParser:
    """Arguments of this program."""
    parser = cli.parser(__doc__ + EXAMPLE)
    parser.add_argument(
        "--system", type=Path, required=True, help="folder of an expert, merge or baseline"
    )
    parser.add_argument("--dump", type=Path, required=True, help="prepared set, e.g. dump/test")
    parser.add_argument("--labels", required=True, help="labels.json")
    parser.add_argument("--out", type=Path, help="default: SYSTEM/decode/<name of the set>")
    parser.add_argument(
        "--only", type=Path, help="decode only the utterances that this file's lines begin with"
    )
    parser.add_argument("--base", type=Path, help="base encoder; a merge knows its own")
    parser.add_argument(
        "--asr_expert", type=Path, help="lends its CTC head, so that a merge transcribes too"
    )
    parser.add_argument("--tokens", type=Path, help="default: the ASR expert's tokens.model")
    parser.add_argument(
        "--feats_type",
        choices=("raw", "extracted"),
        default="raw",
        help="waveforms or CNN features; a baseline that needs waveforms gets them anyway",
    )
    parser.add_argument("--feats_dir", type=Path, help="default: BASE/feats; has a folder per set")
    parser.add_argument(
        "--batch_seconds", type=float, default=40.0, help="largest padded duration of a batch"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    return parser


def _main(args: argparse.Namespace) -> None:
    cli.check_positive("batch_seconds", args.batch_seconds)
    labels = load_labels(args.labels)
    # Importing torch takes seconds: mistakes in the options are told before.
    import torch

    from espnet_adaltm.decoding import batch, systems

    info = systems.read_description(args.system)
    if "labels" in info:
        check_same_labels(labels, info["labels"], f"{args.labels} and {args.system}")
    if info.get("feats_type") == "raw" and systems.is_baseline(args.system):
        args.feats_type = "raw"
    if args.asr_expert is not None and info["kind"] != "merge":
        logging.info("--asr_expert is for merges: %s is decoded without it", args.system)
    system = systems.load_system(
        args.system, base=args.base, asr_expert=args.asr_expert, tokens=args.tokens
    )
    base = systems.base_folder(args.system, args.base) if args.feats_type == "extracted" else None
    encoder = getattr(system, "encoder", None)
    if encoder is None and args.feats_type == "extracted":
        raise UserError(f"{args.system} reads waveforms: use --feats_type raw")
    inputs = open_inputs(args, base, {args.system: encoder})
    if args.only is not None:
        chosen = read_scp(args.only, allow_empty_value=True, require_sorted=False)
        inputs = inputs.only(chosen, f"--only {args.only}")
    options = {
        "batch_seconds": args.batch_seconds,
        "device": choose_device(args.device, torch.cuda.is_available()),
    }
    decoded = _loop_of(args, info)(system, inputs, **options)
    out = args.out or args.system / "decode" / args.dump.resolve().name
    for path in batch.write_outputs(out, decoded, labels, getattr(system, "tokenizer", None)):
        print(f"written: {path}")


def _loop_of(args: argparse.Namespace, info: Mapping[str, Any]) -> "Callable[..., Decoded]":
    """The function that runs a system over inputs; some kinds of baselines have their own."""
    from espnet_adaltm.decoding import baselines, batch, systems

    if systems.is_baseline(args.system):
        own = getattr(baselines.module_of(info["kind"], str(args.system)), "decode", None)
        if own is not None:
            return partial(own, dump=args.dump)
    return batch.decode


def open_inputs(
    args: argparse.Namespace, base: Path | None, encoders: "Mapping[Path, SpeechEncoder | None]"
) -> "Inputs":
    """Waveforms or stored features of ``args.dump``, as ``args.feats_type`` says.

    Args:
        args: With ``dump``, ``feats_type`` and ``feats_dir``.
        base: The base encoder's folder, needed for stored features.
        encoders: What will hear them, by folder; None only for waveforms.

    Raises:
        UserError: Features are missing, or an encoder has another front end than the base.
    """
    from espnet_adaltm.decoding import batch, systems

    if args.feats_type == "raw":
        return batch.raw_inputs(args.dump)
    for folder, encoder in encoders.items():
        moved = systems.front_end_moved(encoder, base)
        if moved is not None:
            raise UserError(
                f"{folder} changed the CNN front end ({moved!r}), which stored features "
                "bypass: use --feats_type raw"
            )
    hop = next(iter(encoders.values())).geometry.hop
    root = args.feats_dir or base / "feats"
    return batch.feature_inputs(args.dump, root / args.dump.resolve().name, hop)


def choose_device(wanted: str, available: bool) -> str:
    """The device that ``--device`` means.

    Raises:
        UserError: A GPU is wanted and there is none.
    """
    if wanted == "auto":
        return "cuda" if available else "cpu"
    if not _DEVICE.fullmatch(wanted):
        raise UserError(f"--device {wanted} is none of auto, cpu, cuda, cuda:1 ...")
    if wanted.startswith("cuda") and not available:
        raise UserError(f"--device {wanted}: no GPU is usable here: use --device cpu")
    return wanted


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    cli.run(_main, get_parser(), argv)


if __name__ == "__main__":
    main()
