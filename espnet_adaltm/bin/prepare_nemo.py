"""Make the data directories train, dev and test of nEMO.

Download: https://github.com/amu-cai/nEMO or https://huggingface.co/datasets/amu-cai/nEMO
Licence: CC BY-NC-SA 4.0 (non-commercial, share-alike).
The audio stays where it is: wav.scp points to it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from espnet_adaltm.bin import cli
from espnet_adaltm.data.corpora.nemo import DEV_SPEAKERS, TEST_SPEAKERS, prepare


def get_parser() -> argparse.ArgumentParser:
    """The command line of this program."""
    parser = cli.parser(__doc__)
    parser.add_argument(
        "--nemo_root", type=Path, required=True, help="folder with data.tsv and samples/"
    )
    parser.add_argument("--out_data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--dev_speakers", nargs="+", default=DEV_SPEAKERS, help="held out for dev")
    parser.add_argument(
        "--test_speakers", nargs="+", default=TEST_SPEAKERS, help="held out for test"
    )
    return parser


def _work(args: argparse.Namespace) -> None:
    sets = prepare(args.nemo_root, args.out_data, args.dev_speakers, args.test_speakers)
    for name, data in sets.items():
        print(f"{name}: {data.summary()}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    cli.run(_work, get_parser(), argv)


if __name__ == "__main__":
    main()
