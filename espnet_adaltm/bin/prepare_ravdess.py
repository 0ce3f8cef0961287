"""Make the data directories train, dev and test of RAVDESS speech.

Download: https://zenodo.org/records/1188976 (Audio_Speech_Actors_01-24.zip)
Licence: CC BY-NC-SA 4.0 (non-commercial, share-alike).
The audio stays where it is: wav.scp points to it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from espnet_adaltm.bin import cli
from espnet_adaltm.data.corpora.ravdess import DEV_ACTORS, TEST_ACTORS, prepare


def get_parser() -> argparse.ArgumentParser:
    """The command line of this program."""
    parser = cli.parser(__doc__)
    parser.add_argument("--ravdess_root", type=Path, required=True, help="folder with Actor_01 ...")
    parser.add_argument("--out_data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--dev_actors", nargs="+", default=DEV_ACTORS, help="held out for dev")
    parser.add_argument("--test_actors", nargs="+", default=TEST_ACTORS, help="held out for test")
    return parser


def _work(args: argparse.Namespace) -> None:
    sets = prepare(args.ravdess_root, args.out_data, args.dev_actors, args.test_actors)
    for name, data in sets.items():
        print(f"{name}: {data.summary()}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    cli.run(_work, get_parser(), argv)


if __name__ == "__main__":
    main()
