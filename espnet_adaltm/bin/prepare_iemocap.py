"""Make the data directory of IEMOCAP, data/all, of which bin/make_folds.py makes the folds.

The corpus is given under a licence: https://sail.usc.edu/iemocap
The audio stays where it is: wav.scp points to it.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from espnet_adaltm.bin import cli
from espnet_adaltm.data.corpora.iemocap import DROP, EXPECTED_TOTAL, LEFT_OUT, prepare


def get_parser() -> argparse.ArgumentParser:
    """The command line of this program."""
    parser = cli.parser(__doc__)
    parser.add_argument(
        "--iemocap_root", type=Path, required=True, help="folder with Session1 to Session5"
    )
    parser.add_argument("--out_data", type=Path, required=True, help="folder of the data set")
    parser.add_argument(
        "--expect_utts",
        type=int,
        default=EXPECTED_TOTAL,
        help="utterances of the four classes; anything else is refused",
    )
    parser.add_argument(
        "--left_out",
        choices=LEFT_OUT,
        default=DROP,
        help="other emotions are dropped, or kept for their words, without an emotion",
    )
    return parser


def _work(args: argparse.Namespace) -> None:
    data = prepare(
        args.iemocap_root, args.out_data, expected=args.expect_utts, left_out=args.left_out
    )
    counts = Counter(data.utt2emo.values())
    told = ", ".join(f"{emotion} {number}" for emotion, number in sorted(counts.items()))
    print(f"{len(data.utterances)} utterances, {len(data.spk2utt)} speakers: {told}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    cli.run(_work, get_parser(), argv)


if __name__ == "__main__":
    main()
