"""Progress with an ETA: a bar in a terminal, plain lines in a log."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

Item = TypeVar("Item")
_LINES = 10


def progress(
    items: Iterable[Item], desc: str, total: int | None = None, unit: str = "utt"
) -> Iterator[Item]:
    """Yield ``items``, telling how far the work is and when it will end.

    Args:
        items: What to go through.
        desc: What is being done, in a word or two.
        total: Number of items; taken from ``len(items)`` where that exists.
        unit: Name of one item.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, desc=desc, total=total, unit=unit)
        return
    yield from _logged(items, desc, total, unit)


def _logged(items: Iterable[Item], desc: str, total: int | None, unit: str) -> Iterator[Item]:
    start = time.monotonic()
    step = max(1, (total or 10_000) // _LINES)
    for count, item in enumerate(items, 1):
        yield item
        if count % step == 0 or count == total:
            elapsed = time.monotonic() - start
            left = f", {elapsed / count * (total - count):.0f} s left" if total else ""
            logging.info("%s: %d/%s %s, %.0f s%s", desc, count, total or "?", unit, elapsed, left)
