"""Locks that name who holds them: of an item while it is made, of a run while it lasts.

A lock is `flock` on a small file which says, as JSON, who took it last. The kernel lets go of it
when the last process that has the file open ends, however it ends. The command of an item inherits
the file: where only its runner was killed, nobody else writes into the folder before it ended too.

Two runs may share what is finished. What one of them makes is its own: at its start a run enters
the items that it is going to make into ``<folder>/.runs`` (one file per run, locked as long as the
run lasts), and is refused if a run that is still at work has one of them. That holds for runs
with one such folder; between others, and for single items, it is the items' own locks that count.

On NFS, Linux makes `flock` a lock on the server, which all machines see (unless the mount says
``nolock`` or ``local_lock``); if a machine is lost, the server lets go of its locks when its lease
ends (NFS 4, about 90 seconds) or when it is back (NFS 3). On file systems without locks, such as
Lustre without the option ``flock``, work goes on without, with a warning.
"""

import errno
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO

from espnet_adaltm.errors import UserError
from espnet_adaltm.files import is_running

RUNS = ".runs"
# Whoever looks whether a lock is held holds it for a moment.
_GLANCE_SECONDS = 0.5
# What a killed runner had started ends within this time, see `jobs.kill_group`.
_ENDING_SECONDS = 25.0
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def timestamp() -> str:
    """Local time with its offset, to the second: ``2026-11-21T03:54:10+00:00``."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


@dataclass(frozen=True)
class Holder:
    """Who took a lock.

    Attributes:
        host: Name of the machine.
        pid: Process to stop.
        since: As `timestamp` gives it.
        command: What was typed.
        job: Job command through which an item runs.
        items: Stamps of what a run makes.
    """

    host: str
    pid: int
    since: str
    command: str
    job: str = ""
    items: list[str] = field(default_factory=list)

    @property
    def gone(self) -> bool:
        """Whether the process ran on this machine and has ended."""
        return self.host == os.uname().nodename and not is_running(self.pid)

    def __str__(self) -> str:
        """For messages."""
        since = self.since.replace("T", " ")[:19]
        return f"process {self.pid} on {self.host}, since {since} ({self.command})"


def myself(command: str, pid: int | None = None, **more: str | list[str]) -> Holder:
    """This process, or ``pid`` on this machine, as a holder from now on."""
    return Holder(os.uname().nodename, pid or os.getpid(), timestamp(), command, **more)


def read_holder(path: Path) -> Holder | None:
    """Who took a lock last; None where that cannot be read."""
    try:
        return Holder(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def is_held(path: Path) -> bool:
    """Whether somebody holds a lock now; writes nothing."""
    try:
        with open(path, encoding="utf-8") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@contextmanager
def locked(
    path: Path, holder: Holder, what: str, patience: float = _GLANCE_SECONDS
) -> Iterator[int]:
    """Hold a lock.

    Args:
        path: Its file; made if needed, with its folder.
        holder: To be named to others.
        what: For the error: what is being made.
        patience: Seconds for which others may go on to hold it.

    Yields:
        The file's descriptor, for a command to inherit.

    Raises:
        UserError: Somebody else holds it.
        OSError: The file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b", buffering=0) as handle:
        if not _take(handle, path, patience):
            raise UserError(_in_the_making(what, path))
        _write(handle.fileno(), holder)
        yield handle.fileno()


def _write(descriptor: int, holder: Holder) -> None:
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{json.dumps(asdict(holder))}\n".encode())


def holders(path: Path) -> list[int]:
    """Other processes that have the file of a lock open; none where there is no ``/proc``."""
    found = []
    for entry in os.listdir("/proc") if os.path.isdir("/proc") else []:
        with suppress(OSError):  # gone meanwhile, or somebody else's
            if entry.isdigit() and int(entry) != os.getpid() and _has_open(entry, path):
                found.append(int(entry))
    return found


def _has_open(process: str, path: Path) -> bool:
    for name in os.listdir(f"/proc/{process}/fd"):
        with suppress(OSError):  # closed meanwhile
            if os.path.samefile(f"/proc/{process}/fd/{name}", path):
                return True
    return False


def require_free(path: Path, what: str) -> None:
    """Refuse to begin what somebody else is making.

    Raises:
        UserError: The lock ``path`` is held.
    """
    if not _patiently(lambda: not is_held(path), path):
        raise UserError(_in_the_making(what, path))


def _take(handle: IO[bytes] | int, path: Path, patience: float = _GLANCE_SECONDS) -> bool:
    """Lock a file; whether that was possible."""
    return _patiently(lambda: _lock(handle, path), path, patience)


def _lock(handle: IO[bytes] | int, path: Path) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        import logging  # seldom needed, and slow to import

        logging.warning(
            "the file system of %s has no locks (%s): nothing keeps a second run away",
            path.parent,
            error.strerror,
        )
    return True


def _patiently(attempt: Callable[[], bool], path: Path, patience: float = _GLANCE_SECONDS) -> bool:
    """Try again for a moment, and longer where the holder of a lock has ended already."""
    start = time.monotonic()
    while not attempt():
        holder = read_holder(path)
        ending = holder is not None and holder.gone
        if time.monotonic() - start > (_ENDING_SECONDS if ending else patience):
            return False
        time.sleep(0.05)
    return True


def _in_the_making(what: str, path: Path) -> str:
    holder = read_holder(path)
    if holder is None:
        return f"{what} is in the making by another run: wait for it, or stop it"
    if holder.gone:
        return (
            f"{what} is in the making by {holder}; that process is gone, but something that it "
            f"started still runs: end it (`fuser {path}` shows it)"
        )
    return f"{what} is in the making by another run: {holder}; wait for it, or stop it there"


# --------------------------------------------------------------------------------- runs
def runs_at_work(folder: Path) -> list[Holder]:
    """Runs that have entered what they make in ``<folder>/.runs`` and are still at work."""
    held = (read_holder(path) for path in _entries(folder) if is_held(path))
    return [holder for holder in held if holder is not None]


def _entries(folder: Path) -> list[Path]:
    return sorted((folder / RUNS).glob("*.json"))


def enter_run(path: Path, descriptor: int, holder: Holder) -> None:
    """Enter a run for as long as any process has ``descriptor`` open.

    Args:
        path: The run's own, empty file, ``<folder>/.runs/<anything>.json``.
        descriptor: Of that file, opened for writing by who starts the run.
        holder: The run, with the items that it is going to make.

    Raises:
        UserError: A run that is still at work makes one of them.
    """
    start = time.monotonic()
    while True:
        with locked(path.parent / "lock", holder, str(path.parent), _ENDING_SECONDS):
            others = [run for run in _others(path) if set(run.items) & set(holder.items)]
            if not others:
                _take(descriptor, path)
                _write(descriptor, holder)
                return
        waited = time.monotonic() - start
        if not all(run.gone for run in others) or waited > _ENDING_SECONDS:
            raise UserError(_at_work(others[0], holder))
        time.sleep(0.2)


def _others(path: Path) -> Iterable[Holder]:
    """Runs at work beside that of ``path``; forgets those that have ended."""
    for other in _entries(path.parent.parent):
        if other == path:
            continue
        holder = read_holder(other)
        if is_held(other):
            if holder is not None:
                yield holder
        elif holder is not None:  # one that is empty is about to enter
            with suppress(OSError):
                other.unlink(missing_ok=True)


def _at_work(other: Holder, own: Holder) -> str:
    shared = sorted(set(other.items) & set(own.items))
    first = Path(shared[0])
    more = f" and {len(shared) - 1} more" if len(shared) > 1 else ""
    return (
        f"another run is at work on what this one would make ({first.stem} in "
        f"{first.parent.parent}{more}): {other}; wait for it, stop it there, or give this run "
        "folders of its own (--expdir, --results_dir)"
    )
