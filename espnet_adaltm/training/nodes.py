"""ESPnet's launcher of trainings on several nodes, as a part of an item.

    python -m espnet_adaltm.training.nodes --cmd utils/slurm.pl --ngpu 4 --num_nodes 2 --log LOG \\
        -- PROGRAM...

Options are those of `espnet2.bin.launch`. Beyond it: this program ends when the one that started it
does; what it starts inherits the lock of the item (`espnet_adaltm.locks`), so that nobody else
writes into the folder before a training ended whose runner or launcher was killed; and the file
through which the processes find each other lies beside the log, where the next start removes what a
killed one left.
"""

import argparse
import functools
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from espnet_adaltm.jobs import die_with_parent


def init_file_prefix(log: Path) -> str:
    """Begin of the names of a job's rendezvous files; removes those that were left.

    Only to be called by who holds the lock of the item that logs there.
    """
    prefix = f".{log.stem}.init_"
    for left in log.parent.glob(f"{prefix}*"):
        left.unlink()
    return str(log.parent / prefix)


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    die_with_parent()
    from espnet2.bin import launch

    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--log", type=Path, required=True)
    log = parser.parse_known_args(words[: words.index("--")])[0].log
    # Called as this attribute there.
    subprocess.Popen = functools.partial(subprocess.Popen, close_fds=False)
    launch.main(["--init_file_prefix", init_file_prefix(log), *words])


if __name__ == "__main__":
    main()
