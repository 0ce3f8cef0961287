"""Waiting for what other processes do."""

import time
from collections.abc import Callable


def wait_for(
    condition: Callable[[], object], what: str = "it", seconds: float = 60.0, *, firm: bool = True
) -> bool:
    """Return True as soon as a condition holds.

    Args:
        condition: Asked again and again.
        what: Is waited for, for the failure.
        seconds: It may take.
        firm: Fail when it does not hold by then; otherwise return False.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            assert not firm, f"no {what} within {seconds} s"
            return False
        time.sleep(0.05)
    return True
