"""What every command line of this package shares: help with defaults, logging, plain errors."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence

from espnet_adaltm.errors import UserError


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Show every default, and keep the line breaks of the description."""


def parser(description: str) -> argparse.ArgumentParser:
    """Make an argument parser whose ``--help`` shows every default."""
    return argparse.ArgumentParser(
        description=description, formatter_class=_HelpFormatter, allow_abbrev=False
    )


def run(
    work: Callable[[argparse.Namespace], None],
    arguments: argparse.ArgumentParser,
    argv: Sequence[str] | None = None,
) -> None:
    """Parse, log to standard error, and turn a `UserError` into one line and exit status 1.

    Programs with an option ``--verbose`` only log warnings without it.
    """
    args = arguments.parse_args(argv)
    logging.basicConfig(
        level=logging.INFO if getattr(args, "verbose", True) else logging.WARNING,
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%Y-%m-%d %H:%M:%S",
        stream=sys.stderr,
    )
    try:
        work(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
