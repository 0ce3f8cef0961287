"""What every command line of this package shares: help with defaults, logging, plain errors."""

import argparse
import logging
import math
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from espnet_adaltm.errors import UserError
from espnet_adaltm.text import printable

WRONG_OPTIONS = 2


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Show every default, and keep the line breaks of the description."""


class _Parser(argparse.ArgumentParser):
    """Tells a mistake in one line; argparse's own puts dozens of options before it."""

    def error(self, message: str) -> NoReturn:
        tell(f"{message} (--help lists the options)")
        sys.exit(WRONG_OPTIONS)


def parser(description: str) -> argparse.ArgumentParser:
    """Make an argument parser whose ``--help`` shows every default."""
    return _Parser(description=description, formatter_class=_HelpFormatter, allow_abbrev=False)


def tell(error: object) -> None:
    """Print ``error: ...`` to standard error, with nothing in it that a terminal would act on."""
    print(f"error: {printable(str(error))}", file=sys.stderr)


def check_positive(name: str, value: float) -> None:
    """Refuse a number that is no size, NaN among them.

    Raises:
        UserError: The message names the option.
    """
    if not 0 < value < math.inf:
        raise UserError(f"--{name} {value} is not positive and finite")


def run(
    work: Callable[[argparse.Namespace], None],
    arguments: argparse.ArgumentParser,
    argv: Sequence[str] | None = None,
) -> None:
    """Parse, log to standard error, and turn a `UserError` into one line and exit status 1.

    So is what the file system refuses (no such file, no permission, a full disk), which always
    names its file. Programs with an option ``--verbose`` only log warnings without it.
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
        tell(error)
        sys.exit(1)
    except OSError as error:
        if not error.filename or not error.strerror:
            raise
        tell(f"{error.filename}: {error.strerror}")
        sys.exit(1)
