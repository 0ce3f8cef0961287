"""Decode a set with one system: emotion probabilities, transcripts, or both."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from espnet_adaltm.bin import cli
from espnet_adaltm.data.labels import check_same_labels, load_labels
from espnet_adaltm.errors import UserError

EXAMPLE = """
example:
  python -m espnet_adaltm.bin.decode --system exp/merge_adaltm_seed1 --dump dump/test \\
      --labels data/labels.json --asr_expert exp/asr_expert_x \\
      --out exp/merge_adaltm_seed1/decode/test
"""


def get_parser() -> argparse.ArgumentParser:
    """Arguments of this program."""
    parser = cli.parser(__doc__ + EXAMPLE)
    parser.add_argument("--system", type=Path, required=True, help="folder of an expert or a merge")
    parser.add_argument("--dump", type=Path, required=True, help="prepared set, e.g. dump/test")
    parser.add_argument("--labels", required=True, help="labels.json")
    parser.add_argument("--out", type=Path, help="default: SYSTEM/decode/<name of the set>")
    parser.add_argument("--base", type=Path, help="base encoder; a merge knows its own")
    parser.add_argument(
        "--asr_expert", type=Path, help="lends its CTC head, so that a merge transcribes too"
    )
    parser.add_argument("--tokens", type=Path, help="default: the ASR expert's tokens.model")
    parser.add_argument(
        "--feats_type",
        choices=("raw", "extracted"),
        default="raw",
        help="waveforms or CNN features",
    )
    parser.add_argument("--feats_dir", type=Path, help="default: BASE/feats; has a folder per set")
    parser.add_argument(
        "--batch_seconds", type=float, default=40.0, help="largest padded duration of a batch"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    return parser


def _main(args: argparse.Namespace) -> None:
    if args.batch_seconds <= 0:
        raise UserError(f"--batch_seconds {args.batch_seconds} is not positive")
    labels = load_labels(args.labels)
    # Importing torch takes seconds: mistakes in the options are told before.
    import torch

    from espnet_adaltm.decoding import batch, systems

    info = systems.read_description(args.system)
    if "labels" in info:
        check_same_labels(labels, info["labels"], f"{args.labels} and {args.system}")
    if args.asr_expert is not None and info["kind"] != "merge":
        logging.info("--asr_expert is for merges: %s is decoded without it", args.system)
    system = systems.load_system(
        args.system, base=args.base, asr_expert=args.asr_expert, tokens=args.tokens
    )
    name = args.dump.resolve().name
    if args.feats_type == "raw":
        inputs = batch.raw_inputs(args.dump)
    else:
        base = systems.base_folder(args.system, args.base)
        moved = systems.front_end_moved(system.encoder, base)
        if moved is not None:
            raise UserError(
                f"{args.system} changed the CNN front end ({moved!r}), which stored features "
                "bypass: use --feats_type raw"
            )
        root = args.feats_dir or base / "feats"
        inputs = batch.feature_inputs(args.dump, root / name, system.encoder.geometry.hop)
    device = _device(args.device, torch.cuda.is_available())
    decoded = batch.decode(system, inputs, batch_seconds=args.batch_seconds, device=device)
    out = args.out or args.system / "decode" / name
    for path in batch.write_outputs(out, decoded, labels, system.tokenizer):
        print(f"written: {path}")


def _device(wanted: str, available: bool) -> str:
    if wanted == "auto":
        return "cuda" if available else "cpu"
    if wanted.startswith("cuda") and not available:
        raise UserError(f"--device {wanted}: no GPU is usable here: use --device cpu")
    return wanted


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    cli.run(_main, get_parser(), argv)


if __name__ == "__main__":
    main()
