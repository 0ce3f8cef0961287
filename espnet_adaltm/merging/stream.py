"""Work on the tensors of large files in pieces, on several threads, with buffers used again.

A piece is small enough for the processor's cache: a merge reads every number from memory once and
writes it once, whatever is done with it in between. Reading, writing and PyTorch's arithmetic all
release the interpreter's lock, so threads share the work.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from espnet_adaltm.merging.weights import Weights, one_thread
from espnet_adaltm.progress import progress

PIECE = 1 << 18  # elements: 1 MiB of float32, and four buffers of it fit into most second caches
_AT_ONCE = 64  # pieces of one call of a worker, so that handing them out costs nothing
_MOST_THREADS = 8


@dataclass(frozen=True)
class Piece:
    """A stretch of a flattened tensor.

    Attributes:
        name: The tensor.
        start: First element.
        stop: The one behind the last.
    """

    name: str
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.stop - self.start


@dataclass
class Scratch:
    """Buffers of one thread, by name; they grow to what is asked of them and are used again."""

    _buffers: dict[tuple[str, torch.dtype], Tensor] = field(default_factory=dict)

    def get(self, name: str, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return a flat tensor of ``size`` elements; its values are what was left there."""
        buffer = self._buffers.get((name, dtype))
        if buffer is None or buffer.numel() < size:
            buffer = self._buffers[name, dtype] = torch.empty(size, dtype=dtype)
        return buffer[:size]


def default_threads() -> int:
    """Processors that this process may use, at most 8."""
    return max(1, min(len(os.sched_getaffinity(0)), _MOST_THREADS))


def cut(weights: Weights, names: Iterable[str]) -> list[Piece]:
    """Cut tensors into pieces of `PIECE` elements.

    A tensor that is not stored as it is (a weight norm's product) stays in one.
    """
    found = []
    for name in names:
        total = weights.specs[name].size
        step = PIECE if len(weights.stored[name]) == 1 else max(total, 1)
        found += [Piece(name, at, min(at + step, total)) for at in range(0, total, step)]
    return found


def read_piece(weights: Weights, piece: Piece, scratch: Scratch, slot: str) -> Tensor:
    """Read a piece as float32 into this thread's buffer ``slot``; flat."""
    out = scratch.get(slot, piece.size)
    if len(weights.stored[piece.name]) > 1:
        return out.copy_(weights.load(piece.name).reshape(-1)[piece.start : piece.stop])
    dtype = weights.specs[piece.name].dtype
    if dtype == out.dtype:
        weights.fill(piece.name, piece.start, out)
        return out
    raw = scratch.get(slot, piece.size, dtype)
    weights.fill(piece.name, piece.start, raw)
    return out.copy_(raw)


def run_threads(
    items: Sequence[Piece],
    work: Callable[[Piece, Scratch], None],
    *,
    threads: int | None = None,
    desc: str = "merge",
) -> None:
    """Call ``work(piece, scratch)`` for every piece; the first error ends it all.

    Args:
        items: What to go through; memory is what ``threads`` pieces take at a time.
        work: Must not depend on the order.
        threads: How many; `default_threads` by default.
        desc: What is being done, for the progress.
    """
    threads = threads or default_threads()
    local = threading.local()
    stop = threading.Event()

    def run(batch: Sequence[Piece]) -> None:
        if not hasattr(local, "scratch"):
            local.scratch = Scratch()
        for item in batch:
            if stop.is_set():
                return
            work(item, local.scratch)

    batches = list(_batches(items))
    with one_thread(), ThreadPoolExecutor(threads) as pool:  # each alone: together they take all
        futures = [pool.submit(partial(run, batch)) for batch in batches]
        try:
            for future in progress(as_completed(futures), desc, len(futures), "piece"):
                future.result()
        except BaseException:
            stop.set()
            wait(futures, return_when=FIRST_EXCEPTION)
            raise


def _batches(items: Sequence[Piece]) -> Iterator[Sequence[Piece]]:
    """Runs of neighbouring pieces that together are not much longer than one whole piece."""
    batch: list[Piece] = []
    size = 0
    for item in items:
        batch.append(item)
        size += item.size
        if size >= PIECE or len(batch) == _AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
