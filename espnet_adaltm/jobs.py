"""Kaldi's job commands: run a command, or an array of them, with a log each.

    <cmd> [--option value]... [JOB=1:N] LOG COMMAND...

blocks until all jobs ended, replaces ``JOB`` in LOG and COMMAND, writes the command as the log's
first line, ends the log with ``# Ended (code C) at ...``, exits non-zero if any job failed and
then shows the end of the log of a failed job. Commands are executed as they are, without a shell.
This module runs jobs here, `espnet_adaltm.slurm` through ``sbatch``; ``bin/run_job.py`` is the
program. Only the standard library is imported: job commands have to start fast.
"""

import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from espnet_adaltm.errors import UserError
from espnet_adaltm.files import is_running
from espnet_adaltm.stopping import CONTINUE, WARNING, hearing, warn

TAIL_LINES = 30
LONGEST_LINE = 2000
KILL_AFTER_SECONDS = 5.0
RUNNER = "ADALTM_RUNNER"
_ARRAY = re.compile(r"^([A-Za-z_]\w*)=(\d+)(?::(\d+))?$")
_ENDED = re.compile(r"^# Ended \(code (\d+)\)", re.MULTILINE)


@dataclass
class Job:
    """One call of a job command.

    Attributes:
        command: Program and arguments, with the array's name where the index belongs.
        log: Log file, likewise.
        options: ``--name value`` options in front, without dashes and with ``_`` for ``-``.
        array: Name of the array variable, or an empty string for a single job.
        first: First index.
        last: Last index, inclusive.
    """

    command: list[str]
    log: str
    options: dict[str, str] = field(default_factory=dict)
    array: str = ""
    first: int = 1
    last: int = 1

    def indices(self) -> range:
        """Indices of all jobs."""
        return range(self.first, self.last + 1)

    def fill(self, text: str, index: int | str) -> str:
        """Put an index in the place of the array's name."""
        return text.replace(self.array, str(index)) if self.array else text

    def log_of(self, index: int | str) -> Path:
        """Log file of one job."""
        return Path(self.fill(self.log, index))

    def command_of(self, index: int | str) -> list[str]:
        """Command of one job."""
        return [self.fill(word, index) for word in self.command]


def parse(argv: Sequence[str]) -> Job:
    """Read the arguments of a job command.

    Raises:
        UserError: No log or command, a value is missing, or an array's log lacks the index.
    """
    words = list(argv)
    options: dict[str, str] = {}
    array, first, last = "", 1, 1
    while words:
        match = _ARRAY.match(words[0])
        if match:
            array, first = match[1], int(match[2])
            last = int(match[3] or first)
            words.pop(0)
        elif words[0].startswith("-") and words[0] != "-":
            if len(words) < 2:
                raise UserError(f"option {words[0]} has no value")
            name = words.pop(0).lstrip("-").replace("-", "_")
            options[name] = words.pop(0)
        else:
            break
    if len(words) < 2:
        raise UserError("expected [--option value]... [JOB=1:N] LOG COMMAND...")
    log, *command = words
    if first > last:
        raise UserError(f"the array {array}={first}:{last} is empty")
    if last > first and array not in log:
        raise UserError(f"all jobs of {array}={first}:{last} would write {log}: put {array} in it")
    return Job(command, log, options, array, first, last)


def log_end(log: Path, most: int = 65_536) -> str:
    """The end of a log, whatever its size: at most so many bytes, in whole lines if there are any.

    Raises:
        OSError: It cannot be read.
    """
    with open(log, "rb") as handle:
        start = max(0, handle.seek(0, os.SEEK_END) - most)
        handle.seek(start)
        end = handle.read(most)
    if start > 0:
        end = end[end.find(b"\n") + 1 :] or end
    return end.decode("utf-8", errors="replace")


def log_tail(log: Path, lines: int = TAIL_LINES) -> str:
    """Last lines of a log, the end of each if it is long; says so when there is none."""
    try:
        text = log_end(log)
    except OSError as error:
        return f"(no log: {error})"
    return "\n".join(line[-LONGEST_LINE:] for line in text.splitlines()[-lines:])


def code_in_log(log: Path) -> int | None:
    """Exit status that the last line of a log tells; None when the job did not get there."""
    try:
        ends = _ENDED.findall(log_end(log))
    except OSError:
        return None
    return int(ends[-1]) if ends else None


def failure(job: Job, codes: Mapping[int, int]) -> str:
    """Tell about failed jobs.

    Args:
        job: The call.
        codes: Exit status of each job; one that is missing counts as failed.

    Returns:
        Which failed and the end of the first one's log; an empty string if none did.
    """
    failed = [index for index in job.indices() if codes.get(index, 1) != 0]
    if not failed:
        return ""
    log = job.log_of(failed[0])
    what = f"{len(failed)} of {len(job.indices())} jobs" if job.array else "the job"
    tail = "\n".join(f"  {line}" for line in log_tail(log).splitlines())
    return f"{what} failed: {log} ends with\n{tail}"


def outcome(codes: Mapping[int, int]) -> int:
    """Exit status of a job command: `CONTINUE` if some jobs want to go on and none failed."""
    ended = set(codes.values()) - {0}
    return 0 if not ended else CONTINUE if ended == {CONTINUE} else 1


# --------------------------------------------------------------------------------- children
def kill_group(process: subprocess.Popen, patience: float = KILL_AFTER_SECONDS) -> None:
    """End a process that leads its own group, and the rest of the group, firmly.

    Nothing is waited for with ``process.wait``: in a signal handler its lock may be held by the
    very call that the signal interrupted.
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        end = time.monotonic() + patience
        while time.monotonic() < end:
            if not _group_runs(process.pid):
                return
            time.sleep(0.02)


def end_all(find: Callable[[], list[int]], patience: float = KILL_AFTER_SECONDS) -> None:
    """End processes, firmly; ``find`` says which are left."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in find():
            with suppress(ProcessLookupError):
                os.kill(process, number)
        end = time.monotonic() + patience
        while time.monotonic() < end:
            if not find():
                return
            time.sleep(0.1)


def _group_runs(group: int) -> bool:
    """Whether a process group has a member that is not a zombie."""
    if not Path("/proc/self/stat").exists():
        try:
            os.killpg(group, 0)
        except OSError:
            return False
        return True
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == group and fields[0] != "Z":
                return True
    return False


def started_here() -> dict[str, str]:
    """What tells a command, in its environment, that this process started it."""
    return {RUNNER: f"{os.uname().nodename} {os.getpid()}"}


def die_with_parent() -> None:
    """Ask Linux for SIGTERM when the parent goes, however it goes; elsewhere do nothing.

    Raises:
        SystemExit: It went before it could be asked for (`started_here` told who it was).
    """
    try:
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    except (ImportError, OSError, AttributeError):
        pass
    host, _, runner = os.environ.get(RUNNER, "").partition(" ")
    if host == os.uname().nodename and runner.isdecimal() and not is_running(int(runner)):
        raise SystemExit(128 + signal.SIGTERM)


@contextmanager
def stop_on_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Call ``stop`` and exit with 128 + signal when this process is interrupted or terminated."""

    def handler(number: int, _frame: object) -> None:
        # Until everything has ended, a second Ctrl-C must not leave half of it running.
        for again in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(again, signal.SIG_IGN)
        stop()
        os._exit(128 + number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


# --------------------------------------------------------------------------------- here
def run_local(job: Job) -> dict[int, int]:
    """Run all jobs on this machine, at most ``--max_jobs_run`` at a time.

    A warning that time runs out is passed on to those that hear it.

    Returns:
        Exit status of each.
    """
    at_once = int(job.options.get("max_jobs_run", len(job.indices())))
    running: set[subprocess.Popen] = set()

    stopped: list[bool] = []

    def stop() -> None:
        stopped.append(True)
        for process in list(running):
            kill_group(process)

    def pass_on(_number: int) -> None:
        for process in list(running):
            warn(process.pid)

    def one(index: int) -> int:
        return 1 if stopped else _execute(job.command_of(index), job.log_of(index), running)

    from concurrent.futures import ThreadPoolExecutor

    die_with_parent()
    pool = ThreadPoolExecutor(max(1, at_once))
    with stop_on_signals(stop), hearing(WARNING, also=pass_on), pool:
        return dict(zip(job.indices(), pool.map(one, job.indices())))


def _execute(command: list[str], log: Path, running: set[subprocess.Popen]) -> int:
    begun = time.monotonic()
    head = f"# {shlex.join(command)}\n# Running on {os.uname().nodename}\n"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_bytes(f"{head}# Started at {time.ctime()}\n#\n".encode())
    except OSError as error:
        raise UserError(f"cannot write the log {log}: {error.strerror}") from error
    with open(log, "ab", buffering=0) as handle:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=handle,
                stderr=handle,
                start_new_session=True,
                close_fds=False,  # the lock of the item, if there is one, is handed on
            )
        except OSError as error:
            handle.write(f"{command[0]}: {error.strerror}\n".encode())
            process = None
        else:
            running.add(process)
        code = 127 if process is None else process.wait()
        running.discard(process)
    if code < 0:
        code = 128 - code
    # On a disk that is full by now, the job has ended as it has.
    with suppress(OSError), open(log, "ab") as handle:
        elapsed = time.monotonic() - begun
        footer = f"# Ended (code {code}) at {time.ctime()}, elapsed time {elapsed:.0f} s\n"
        handle.write(b"" if _ends_with_newline(log) else b"\n")
        handle.write(footer.encode())
    return code


def _ends_with_newline(path: Path) -> bool:
    with open(path, "rb") as handle:
        if handle.seek(0, os.SEEK_END) == 0:
            return True
        handle.seek(-1, os.SEEK_END)
        return handle.read(1) == b"\n"
