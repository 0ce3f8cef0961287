"""One line in a terminal that says how far the running commands are, read from their logs.

    [5/12 asr_expert] 3/10 epoch, 4 minutes left | 25/94 batch

Commands of the recipes write into logs, where nobody sees them. `StatusLine` reads about once a
second what was added to the logs, and shows the last thing that tells a position: ESPnet's
``3/10 epoch started`` and ``3epoch:train:16-25batch``, or a line of `espnet_adaltm.progress`.
Where standard error is no terminal, nothing of this happens. Standard library only: it is loaded
at every start of a stage.
"""

import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TextIO

PERIOD_SECONDS = 1.0
_MOST_BYTES = 65_536  # read from a log at a time; older lines say nothing about now
_SHORTEST = 20  # columns; a narrower terminal is left alone

_EPOCH = re.compile(r"(\d+/\d+) ?epoch started(?:\. Estimated time to finish: (.+))?$")
_BATCH = re.compile(r"\d+epoch:train:\d+-(\d+)batch:")
_BATCHES = re.compile(r"\[train\] mini-batch sizes summary: N-batch=(\d+)")
_ITEMS = re.compile(r"INFO:? (.+): (\d+/[\d?]+ \S+), \d+ s(?:, (\d+) s left)?$")


@dataclass
class Progress:
    """The position that a log tells, made up to date line by line."""

    position: str = ""
    left: str = ""
    batch: str = ""
    batches: str = ""

    def feed(self, line: str) -> None:
        """Take in one line."""
        if match := _BATCHES.search(line):
            self.batches = match[1]
        elif match := _EPOCH.search(line):
            # Fractions of a second are noise.
            left = re.sub(r"(\d+)\.\d+ second", r"\1 second", match[2] or "")
            self.position, self.left, self.batch = f"{match[1]} epoch", left, ""
        elif match := _BATCH.search(line):
            total = f"/{self.batches}" if self.batches else ""
            self.batch = f"{match[1]}{total} batch"
        elif match := _ITEMS.search(line):
            left = f"{match[3]} s" if match[3] else ""
            self.position, self.left, self.batch = f"{match[1]}: {match[2]}", left, ""

    def text(self, *, brief: bool = False) -> str:
        """``3/10 epoch, 4 minutes left | 25/94 batch``, or only the position; may be empty."""
        if brief:
            return self.position
        parts = [f"{self.position}{f', {self.left} left' if self.left else ''}", self.batch]
        return " | ".join(part for part in parts if part)


def status(text: str) -> str:
    """What the text of a log says about the position of its command; may be empty."""
    progress = Progress()
    for line in text.splitlines():
        progress.feed(line)
    return progress.text()


@dataclass
class Follower:
    """Reads what is added to a log; a log that is not there yet or begins anew is no error."""

    log: Path
    progress: Progress = field(default_factory=Progress)
    _offset: int = 0

    def poll(self) -> Progress:
        """Read on, to the end of the last complete line."""
        try:
            with open(self.log, "rb") as handle:
                size = handle.seek(0, os.SEEK_END)
                if size < self._offset:
                    self._offset, self.progress = 0, Progress()
                start = max(self._offset, size - _MOST_BYTES)
                handle.seek(start)
                new = handle.read(_MOST_BYTES)
        except OSError:
            return self.progress
        complete = new[: new.rfind(b"\n") + 1]
        self._offset = start + len(complete)
        for line in complete.decode("utf-8", errors="replace").splitlines():
            self.progress.feed(line)
        return self.progress


@dataclass
class _Running:
    name: str
    start: float
    follower: Follower

    def text(self, *, brief: bool) -> str:
        seconds = int(time.monotonic() - self.start)
        return self.follower.poll().text(brief=brief) or f"{seconds // 60}:{seconds % 60:02d}"


class StatusLine:
    """The status line of the commands of one stage, as a context manager.

    Args:
        total: Number of commands, of which some may be skipped.
        stream: Where the line goes; standard error if None.
    """

    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        """Show nothing yet."""
        self.done = 0
        self._total = total
        self._stream = stream or sys.stderr
        self._running: dict[int, _Running] = {}
        self._stage = ""
        self._shown = 0
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "StatusLine":
        """Start to look at the logs, if there is somebody to see it."""
        if self._stream.isatty():
            self._thread = threading.Thread(target=self._refresh, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the line."""
        self.close()

    def close(self) -> None:
        """Remove the line for good."""
        self._ended.set()
        self._clear()

    @contextmanager
    def watch(self, stage: str, name: str, log: Path | None) -> Iterator[None]:
        """Show a command while it runs.

        Args:
            stage: ``5/12 asr_expert``, in brackets at the beginning.
            name: Of the command, where several run.
            log: Its log; without one there is nothing to show, and the command may itself write
                to the terminal.
        """
        if self._thread is None or log is None:
            yield
            return
        running = _Running(name, time.monotonic(), Follower(log))
        with self._lock:
            self._stage = stage
            self._running[id(running)] = running
        try:
            yield
        finally:
            with self._lock:
                del self._running[id(running)]
                self._clear()

    def say(self, line: str) -> None:
        """Print a line on standard output that stays, above the status line."""
        with self._lock:
            self._clear()
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()

    def text(self) -> str:
        """The line as it would be shown now; empty while nothing runs."""
        with self._lock:
            running = list(self._running.values())
            if not running:
                return ""
            brief = len(running) > 1
            parts = [f"{self.done} of {self._total} done"] if self._total > 1 else []
            for command in running:
                name = f"{command.name} " if brief else ""
                parts.append(f"{name}{command.text(brief=brief)}")
            return f"{f'[{self._stage}] ' if self._stage else ''}{' | '.join(parts)}"

    def _refresh(self) -> None:
        while not self._ended.wait(PERIOD_SECONDS):
            with self._lock:
                text = self.text()
                width = self._width()
                if text and width >= _SHORTEST and not self._ended.is_set():
                    self._draw(text if len(text) <= width else f"{text[: width - 3]}...")

    def _width(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns - 1
        except (OSError, ValueError):
            return 79

    def _draw(self, text: str) -> None:
        # The cursor goes back to the first column: what a command writes itself covers the line.
        self._write(f"\r{text.ljust(self._shown)}\r")
        self._shown = len(text)

    def _clear(self) -> None:
        with self._lock:
            if self._shown:
                self._write(f"\r{' ' * self._shown}\r")
            self._shown = 0

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError, RuntimeError):
            # The terminal is gone, or a signal came while it was written to; the work goes on.
            self._shown = 0
