"""Store the CNN front end's output of a dump directory.

    python -m espnet_adaltm.bin.extract_features --base exp/base_tiny --dump dump/train

Writes feats.ark, feats.scp and feats_shape; by default into <base>/feats/<name of the dump folder>.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from espnet_adaltm.backbone.features import extract_features
from espnet_adaltm.backbone.loading import load_encoder
from espnet_adaltm.bin import cli
from espnet_adaltm.bin.decode import choose_device


def get_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = cli.parser(__doc__)
    parser.add_argument("--base", type=Path, required=True, help="folder of the base encoder")
    parser.add_argument("--dump", type=Path, required=True, help="dump/<set>")
    parser.add_argument("--out", type=Path, help="folder to write (default: <base>/feats/<set>)")
    parser.add_argument("--batch_seconds", type=float, default=60.0, help="audio in one batch")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda, cuda:1 ...")
    return parser


def extract(args: argparse.Namespace) -> None:
    """Extract one set."""
    cli.check_positive("batch_seconds", args.batch_seconds)
    device = choose_device(args.device, torch.cuda.is_available())
    encoder = load_encoder(args.base).to(device)
    out = args.out or args.base / "feats" / args.dump.name
    count = extract_features(encoder, args.dump, out, args.batch_seconds)
    print(f"{out}: {count} utterances")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    cli.run(extract, get_parser(), argv)


if __name__ == "__main__":
    main()
