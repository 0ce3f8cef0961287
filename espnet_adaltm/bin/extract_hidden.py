"""Store hidden states of a frozen encoder for a dump directory.

    python -m espnet_adaltm.bin.extract_hidden --base exp/base_tiny --dump dump/train \\
        --out exp/base_tiny/hidden_last/train

Writes feats.ark (float16), feats.scp, feats_shape and hidden.json. The encoder starts from
waveforms, or from the stored outputs of its CNN (--feats_type extracted). The dump directory may be
that of another recipe, whose audio is found although its paths begin at that recipe's folder.
"""

import argparse
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from espnet_adaltm.bin import cli
from espnet_adaltm.bin.decode import choose_device

if TYPE_CHECKING:
    from espnet_adaltm.backbone.arks import Waveforms


def get_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = cli.parser(__doc__)
    parser.add_argument("--base", type=Path, required=True, help="folder of the base encoder")
    parser.add_argument("--dump", type=Path, required=True, help="dump/<set>")
    parser.add_argument(
        "--out", type=Path, help="folder to write (default: <base>/hidden_<layer>/<set>)"
    )
    parser.add_argument(
        "--layer", default="last", help="last, mean (of all layers), or a number; 0 is their input"
    )
    parser.add_argument("--feats_type", choices=("raw", "extracted"), default="raw")
    parser.add_argument("--feats_dir", type=Path, help="default: BASE/feats; has a folder per set")
    parser.add_argument("--batch_seconds", type=float, default=60.0, help="audio in one batch")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda, cuda:1 ...")
    return parser


def located(dump: Path) -> "Waveforms":
    """The audio of a dump directory; relative paths begin at the nearest folder above that has it.

    Those of this recipe begin here, those of another one in its own folder.
    """
    from espnet_adaltm.backbone.arks import Waveforms

    waveforms = Waveforms(dump)
    above = Path(os.path.abspath(dump)).parents
    roots: dict[Path, Path] = {}
    for utt, entry in waveforms.entries.items():
        path, colon, offset = entry.partition(".ark:")
        path += colon[:-1]
        first = Path(path).parent
        if first not in roots:
            roots[first] = next((root for root in above if (root / path).exists()), Path())
        waveforms.entries[utt] = f"{roots[first] / path}{colon[-1:]}{offset}"
    return waveforms


def extract(args: argparse.Namespace) -> None:
    """Extract one set."""
    cli.check_positive("batch_seconds", args.batch_seconds)
    import torch

    from espnet_adaltm.backbone.hidden import extract_hidden
    from espnet_adaltm.backbone.loading import load_encoder, read_base_info
    from espnet_adaltm.decoding import batch

    device = choose_device(args.device, torch.cuda.is_available())
    encoder = load_encoder(args.base).to(device)
    if args.feats_type == "raw":
        inputs = batch.raw_inputs(args.dump)
        inputs = dataclasses.replace(inputs, load=located(args.dump).__getitem__)
    else:
        feats = args.feats_dir or args.base / "feats"
        name = args.dump.resolve().name
        inputs = batch.feature_inputs(args.dump, feats / name, encoder.geometry.hop)
    out = args.out or args.base / f"hidden_{args.layer}" / args.dump.resolve().name
    count = extract_hidden(
        encoder,
        inputs.lengths,
        inputs.load,
        out,
        layer=args.layer,
        max_length=int(args.batch_seconds * inputs.per_second),
        base_sha256=read_base_info(args.base)["sha256"],
        feats_type=args.feats_type,
    )
    print(f"{out}: {count} utterances")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    cli.run(extract, get_parser(), argv)


if __name__ == "__main__":
    main()
