"""Processes for work that a single processor would take too long for."""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process

from espnet_adaltm.errors import UserError


@contextmanager
def process_pool(
    num_workers: int, prepare: Callable[[], None] | None = None
) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes that end when this one does, however it ends.

    Args:
        num_workers: Processes.
        prepare: Called once in each of them, before its work.

    Raises:
        UserError: One of them was killed.
    """
    # Forked children inherit locks of libraries with threads; spawned ones do not.
    context = get_context("spawn")
    with ProcessPoolExecutor(num_workers, context, _begin, (prepare,)) as pool:
        try:
            yield pool
        except BrokenProcessPool as error:
            raise UserError(
                "a worker was killed, most often for want of memory: lower --num_workers"
            ) from error


def _begin(prepare: Callable[[], None] | None) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if prepare is not None:
        prepare()


def _end_with_parent() -> None:
    # The standard library's workers wait for work for ever when whoever gave it was killed.
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
