"""Cluster frames into units, the targets of masked prediction, and write them for every set.

    python -m espnet_adaltm.bin.fit_units --train_dump dump/train --dumps dump/train dump/dev \\
        --out exp/base_tiny/units
    ... --encoder exp/base_tiny --layer 3          # a second iteration

Writes <out>/units.safetensors and <out>/<set>/{units.ark,units.scp} for each of --dumps, one unit
per frame of the encoder's CNN.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from espnet_adaltm.backbone.geometry import CnnGeometry
from espnet_adaltm.backbone.loading import load_encoder
from espnet_adaltm.backbone.tiny import read_config
from espnet_adaltm.backbone.units import (
    KINDS,
    FeaturesFn,
    apply_units,
    fit_units,
    frame_features,
    hidden_features,
    save_units,
)
from espnet_adaltm.bin import cli
from espnet_adaltm.errors import UserError


def get_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = cli.parser(__doc__)
    parser.add_argument("--train_dump", type=Path, required=True, help="dump/<set> to fit on")
    parser.add_argument(
        "--dumps", type=Path, nargs="+", required=True, help="dump/<set> folders that get units"
    )
    parser.add_argument("--out", type=Path, required=True, help="root of the units")
    parser.add_argument("--num_units", type=int, default=100, help="number of clusters")
    parser.add_argument("--kind", choices=KINDS, default="mfcc", help="spectral features")
    parser.add_argument(
        "--mean_norm",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="subtract each utterance's mean from its spectral features",
    )
    parser.add_argument("--max_frames", type=int, default=200_000, help="frames to fit on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--config", type=Path, help="train_base.yaml: its encoder_conf tells the frame rate"
    )
    parser.add_argument("--encoder", type=Path, help="cluster a hidden layer of this encoder")
    parser.add_argument("--layer", type=int, help="layer of --encoder, 0 to L")
    return parser


def _features_fn(args: argparse.Namespace) -> tuple[FeaturesFn, dict[str, str]]:
    if (args.encoder is None) != (args.layer is None):
        raise UserError("--encoder and --layer belong together: give both or none")
    if args.encoder is not None:
        if args.config is not None:
            raise UserError("--config and --encoder exclude each other: the encoder has its own")
        described = {"encoder": str(args.encoder), "layer": str(args.layer)}
        return hidden_features(load_encoder(args.encoder), args.layer), described
    geometry = CnnGeometry.of(read_config(args.config))
    fn = partial(frame_features, geometry=geometry, kind=args.kind, mean_norm=args.mean_norm)
    return fn, {"kind": args.kind, "mean_norm": str(args.mean_norm).lower()}


def fit(args: argparse.Namespace) -> None:
    """Fit on the training set, write the units of all sets."""
    if args.num_units < 2 or args.max_frames < 1:
        raise UserError("--num_units must be at least 2 and --max_frames at least 1")
    features_fn, described = _features_fn(args)
    model = fit_units(
        args.train_dump,
        features_fn,
        num_units=args.num_units,
        max_frames=args.max_frames,
        seed=args.seed,
    )
    save_units(model, args.out / "units.safetensors", seed=str(args.seed), **described)
    for dump in args.dumps:
        count = apply_units(dump, args.out / dump.name, model, features_fn)
        print(f"{args.out / dump.name}: {count} utterances, {args.num_units} units")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    cli.run(fit, get_parser(), argv)


if __name__ == "__main__":
    main()
