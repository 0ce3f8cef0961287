"""Long recordings in overlapping windows, and what the windows say put together again.

An encoder's attention grows with the square of the length, and heads trained on utterances know
nothing of minutes. So a long recording is heard window by window. Where windows overlap, their
probabilities are averaged; of their transcripts each gives the part that is nearer to its own
middle (as CTC chunking in `transformers` does).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Probabilities = NDArray[np.float64]


class Span(NamedTuple):
    """A part of a recording, in samples; ``end`` is the first sample after it."""

    start: int
    end: int


def cut_windows(total: int, size: int, step: int, hop: int) -> list[Span]:
    """Windows that cover a recording; one if it is not longer than a window.

    Every window starts at a frame. The last one ends with the recording and overlaps more than the
    others, so that none is shorter than ``size`` (it is up to a frame longer).

    Args:
        total: Samples of the recording, at least 1.
        size: Samples of a window.
        step: Samples from one start to the next, at most ``size``; rounded down to frames.
        hop: Samples of a frame.
    """
    if total <= size:
        return [Span(0, total)]
    step = max(1, step // hop) * hop
    last = (total - size) // hop * hop
    starts = sorted({*range(0, last, step), last})
    return [Span(start, min(total, start + size)) for start in starts[:-1]] + [Span(last, total)]


def average(spans: Sequence[Span], values: Sequence[Probabilities]) -> list[tuple[Span, NDArray]]:
    """Probabilities over time: between any two borders of windows, the mean of those that overlap.

    Args:
        spans: Windows that together cover the recording.
        values: Probabilities of each window, [C].

    Returns:
        Pieces without overlap or gap, in order.
    """
    borders = sorted({border for span in spans for border in span})
    pieces = []
    for start, end in zip(borders, borders[1:]):
        inside = [
            v for span, v in zip(spans, values, strict=True) if span.start <= start < span.end
        ]
        pieces.append((Span(start, end), np.mean(inside, axis=0)))
    return pieces


def overall(pieces: Sequence[tuple[Span, NDArray]]) -> Probabilities:
    """Mean over time of what `average` returned, [C]."""
    seconds = [span.end - span.start for span, _ in pieces]
    return np.average([values for _, values in pieces], axis=0, weights=seconds)


def join_paths(spans: Sequence[Span], paths: Sequence[Tensor], hop: int) -> Tensor:
    """One path of tokens out of those of the windows, cut in the middle of every overlap.

    Args:
        spans: Windows of a recording, in order.
        paths: Tokens of their frames, [T_i].
        hop: Samples of a frame.

    Returns:
        Tokens of the frames of the recording, [T].
    """
    cuts = [(first.end + second.start) // 2 // hop for first, second in zip(spans, spans[1:])]
    kept = []
    for span, path, begin, end in zip(spans, paths, [0, *cuts], [*cuts, None], strict=True):
        first = span.start // hop
        kept.append(path[max(0, begin - first) : None if end is None else end - first])
    return torch.cat(kept)


def longest(spans: Sequence[Span], names: Sequence[str]) -> str:
    """The name given to most of the time; the first of equals."""
    seconds: dict[str, int] = {}
    for span, name in zip(spans, names, strict=True):
        seconds[name] = seconds.get(name, 0) + span.end - span.start
    return max(seconds, key=seconds.__getitem__)
