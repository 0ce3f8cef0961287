"""Measure speed and memory beside the reference implementations, in one run.

    python -m espnet_adaltm.bin.benchmark merge_offline --size large --json offline.json

Figures hold for the machine that they were measured on, which is named beside them.
"""

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from espnet_adaltm.bin import cli
from espnet_adaltm.files import write_json

BENCHMARKS = (
    "merge_offline",
    "merge_step",
    "encoder",
    "denormals",
    "configs",
    "memory",
    "prepare",
    "decode",
)


def _module(name: str) -> ModuleType:
    """Has ``HELP``, ``add_arguments(parser)``, ``measure(args)`` to a result, ``table(result)``."""
    return importlib.import_module(f"espnet_adaltm.benchmark.{name}")


def get_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = cli.parser(__doc__)
    commands = parser.add_subparsers(dest="benchmark", required=True)
    for name in BENCHMARKS:
        module = _module(name)
        command = commands.add_parser(
            name,
            help=module.HELP,
            description=module.__doc__,
            formatter_class=parser.formatter_class,
        )
        module.add_arguments(command)
        command.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    return parser


def work(args: argparse.Namespace) -> None:
    """Do what the module says."""
    module = _module(args.benchmark)
    result = module.measure(args)
    if args.json:
        write_json(args.json, result)
    print(module.table(result))


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    cli.run(work, get_parser(), argv)


if __name__ == "__main__":
    main()
