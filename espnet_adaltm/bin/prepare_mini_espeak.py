"""Make the synthetic corpus mini_espeak: wav files and the data directories train, dev and test."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from espnet_adaltm.bin import cli
from espnet_adaltm.data.corpora.mini_espeak import SIZES, Options, prepare


def get_parser() -> argparse.ArgumentParser:
    """The command line of this program."""
    parser = cli.parser(__doc__)
    parser.add_argument("--size", choices=tuple(SIZES), required=True, help="preset of the corpus")
    parser.add_argument("--out_data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--audio_dir", type=Path, required=True, help="folder of the wav files")
    parser.add_argument("--seed", type=int, default=2025, help="seed of everything random")
    parser.add_argument(
        "--labelled_share",
        type=float,
        help="share of train that keeps its emotion label (0.5 unless given)",
    )
    parser.add_argument(
        "--voice_share", type=float, default=0.40, help="emotion in the voice only, share"
    )
    parser.add_argument(
        "--words_share", type=float, default=0.45, help="emotion in the words only, share"
    )
    parser.add_argument("--num_workers", type=int, default=2, help="processes that speak")
    return parser


def _work(args: argparse.Namespace) -> None:
    both = round(1 - args.voice_share - args.words_share, 9)
    shares = {"voice": args.voice_share, "words": args.words_share, "both": both}
    options = Options(args.size, args.seed, args.labelled_share, shares)
    for name, row in prepare(options, args.out_data, args.audio_dir, args.num_workers).items():
        print(
            f"{name}: {row['utterances']} utterances, {row['speakers']} speakers, "
            f"{row['labelled']} with emotion; ceiling of the voice alone {row['voice']:.3f}, "
            f"of the words alone {row['words']:.3f}"
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    cli.run(_work, get_parser(), argv)


if __name__ == "__main__":
    main()
