"""Fixtures for all packages."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import IO, Any

import pytest


class _Full:
    """A file on a disk with room for a few more bytes."""

    def __init__(self, handle: IO[Any], room: int) -> None:
        self._handle = handle
        self._room = room

    def __enter__(self) -> "_Full":
        self._handle.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._handle.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)

    def write(self, data: Any) -> int:
        self._room -= len(data)
        if self._room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._handle.write(data)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], AbstractContextManager[None]]:
    """``with full_disk(room):`` atomic writes fail after ``room`` bytes of a file."""

    @contextmanager
    def simulate(room: int) -> Iterator[None]:
        opened = os.fdopen
        with monkeypatch.context() as patched:
            patched.setattr(os, "fdopen", lambda *a, **k: _Full(opened(*a, **k), room))
            yield

    return simulate
