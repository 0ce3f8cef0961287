"""Bring a base encoder into a folder that every later stage, and transformers, load.

    python -m espnet_adaltm.bin.build_base --base microsoft/wavlm-large --out exp/base_wavlm_large
    python -m espnet_adaltm.bin.build_base --base WavLM-Large.pt --out exp/base_wavlm_large
    python -m espnet_adaltm.bin.build_base --base random --seed 0 --out exp/base_random

Writes config.json, preprocessor_config.json, model.safetensors and base.json. An encoder that is
pre-trained here comes from bin/train_base.py.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from espnet_adaltm.backbone.encoder import SpeechEncoder
from espnet_adaltm.backbone.loading import load_encoder, save_encoder, write_base_info
from espnet_adaltm.backbone.tiny import random_encoder, read_config
from espnet_adaltm.bin import cli
from espnet_adaltm.errors import UserError


def get_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = cli.parser(__doc__)
    parser.add_argument("--base", required=True, help="Hub id, folder, UniLM .pt file, or 'random'")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--config", type=Path, help="only with random: train_base.yaml, its encoder_conf is used"
    )
    parser.add_argument("--seed", type=int, default=0, help="only with random")
    return parser


def _load(args: argparse.Namespace) -> tuple[SpeechEncoder, str]:
    if args.base == "random":
        return random_encoder(read_config(args.config), args.seed), "random"
    if args.config:
        raise UserError(f"--config belongs to --base random; {args.base} has its own configuration")
    path = Path(args.base)
    if path.is_dir() and path.resolve() == args.out.resolve():
        raise UserError(f"--base and --out are both {path}: write to another folder")
    kind = "folder" if path.is_dir() else "unilm" if path.is_file() else "hub"
    return load_encoder(args.base), kind


def build(args: argparse.Namespace) -> None:
    """Load the encoder and write the folder; base.json comes last."""
    encoder, kind = _load(args)
    (args.out / "base.json").unlink(missing_ok=True)
    save_encoder(encoder, args.out)
    extra = {"seed": args.seed} if kind == "random" else {}
    info = write_base_info(args.out, kind, str(args.base), **extra)
    print(
        f"{args.out}: {encoder.num_layers} layers of {encoder.hidden_size}, {info['sha256'][:12]}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    cli.run(build, get_parser(), argv)


if __name__ == "__main__":
    main()
