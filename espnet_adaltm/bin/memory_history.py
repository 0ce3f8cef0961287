"""An ablation of a trained memory: the same weights with another history.

    python -m espnet_adaltm.bin.memory_history --system exp/memory_tiny_seed1 --history shuffled \\
        --out exp/memory_shuffled_tiny_seed1

What it writes is a system of its own for decode, score and report. Histories: dialog, none, frozen,
reset_each_turn, shuffled, other_dialog; see espnet_adaltm/decoding/dialog.py.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from espnet_adaltm.bin import cli
from espnet_adaltm.config import nearest
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import read_json, require, write_json

DESCRIPTION = "baseline.json"
_PLACES = ("base", "host", "weights")


def get_parser() -> argparse.ArgumentParser:
    """Arguments of this program."""
    parser = cli.parser(__doc__)
    parser.add_argument("--system", type=Path, required=True, help="folder of a trained memory")
    parser.add_argument("--history", required=True, help="what its memory shall hear")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    return parser


def _main(args: argparse.Namespace) -> None:
    from espnet_adaltm.decoding.dialog import HISTORIES, MEANS

    if args.history not in HISTORIES:
        raise UserError(
            f"--history {args.history!r}{nearest(args.history, HISTORIES)} is none of "
            f"{', '.join(HISTORIES)}"
        )
    info = read_json(require(args.system / DESCRIPTION, "stage `baselines`"))
    if info.get("kind") != "memory":
        raise UserError(f"{args.system} is of kind {info.get('kind')!r}, not memory")
    moved = {
        name: Path(
            os.path.relpath((args.system / info[name]).resolve(), args.out.resolve())
        ).as_posix()
        for name in _PLACES
        if info.get(name) is not None
    }
    described = {"history": args.history, "history_means": MEANS[args.history]}
    write_json(args.out / DESCRIPTION, {**info, **moved, **described})
    print(f"written: {args.out / DESCRIPTION}")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    cli.run(_main, get_parser(), argv)


if __name__ == "__main__":
    main()
