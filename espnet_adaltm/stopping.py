"""Asking a command to stop where it can go on later: two signals and two exit statuses.

A queue with a time limit warns its jobs before it kills them (Slurm: ``--signal=B:USR1@120``).
A command that hears `WARNING` saves where it is and ends with the status `CONTINUE`: whoever
started it is to start the same command again. SIGTERM asks for the same, but for good: the status
is 143, as of everything that was terminated, and nobody starts it again by himself. Trainings hear
both (see `espnet_adaltm.training.suspend`); the runners of jobs and items pass the warning on to
whatever hears it. Standard library only.
"""

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

WARNING = signal.SIGUSR1
CONTINUE = os.EX_TEMPFAIL  # 75: the user is invited to try again

_asked = 0


class Suspended(SystemExit):
    """A training saved where it is and ends; the exit status says which signal asked for it."""

    def __init__(self, number: int) -> None:
        """For the signal ``number``."""
        super().__init__(status_of(number))


def status_of(number: int) -> int:
    """Exit status of what saved and stopped because of a signal."""
    return CONTINUE if number == WARNING else 128 + number


def asked() -> int:
    """The signal that asked this process to stop while it was `hearing`; 0 if none did."""
    return _asked


@contextmanager
def hearing(*numbers: int, also: Callable[[int], None] = lambda number: None) -> Iterator[None]:
    """Remember these signals instead of dying of them.

    What was heard is remembered beyond the block, so that blocks may be nested; a thread other
    than the main one can hear nothing.

    Args:
        numbers: The signals.
        also: Called with the signal, in the handler.
    """

    def handler(number: int, _frame: object) -> None:
        global _asked
        # SIGTERM is the last word: after it nobody goes on.
        _asked = number if number != WARNING else _asked or number
        also(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def forget() -> None:
    """Forget what was heard (a process that trains again has not been asked to stop again)."""
    global _asked
    _asked = 0


def warn(process: int) -> None:
    """Send `WARNING` to a process that hears it; all others would die of it."""
    if hears(process, WARNING):
        with suppress(ProcessLookupError):
            os.kill(process, WARNING)


def hears(process: int, number: int) -> bool:
    """Whether a process handles or waits for a signal; where there is no ``/proc``, yes."""
    if not Path("/proc/self/status").exists():
        return True
    try:
        text = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except OSError:
        return False
    # Caught, or blocked by the main thread while another waits for it, as in Slurm's srun.
    masks = re.findall(r"^Sig(?:Cgt|Blk):\s*([0-9a-f]+)", text, re.MULTILINE)
    return any(int(mask, 16) >> (number - 1) & 1 for mask in masks)
