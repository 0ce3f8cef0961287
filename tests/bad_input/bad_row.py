"""A row of the table of bad input."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass

SHELL, CONSOLE = "./run.sh", "espnet-adaltm"


@dataclass(frozen=True)
class Row:
    """Something wrong that is typed.

    Attributes:
        entry: A module of `espnet_adaltm.bin`, `CONSOLE` or `SHELL`.
        what: Is wrong, in words.
        words: What follows the name of the program.
        culprits: What the error has to name.
    """

    entry: str
    what: str
    words: tuple[str, ...]
    culprits: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.entry}: {self.what}"


def program(entry: str) -> Callable[..., Row]:
    """Makes rows of one entry point: ``(what, words, *culprits)``."""

    def row(what: str, words: str, *culprits: str) -> Row:
        return Row(entry, what, tuple(shlex.split(words)), culprits)

    return row


def programs(*entries: str) -> list[Callable[..., Row]]:
    """`program` of several."""
    return [program(entry) for entry in entries]
