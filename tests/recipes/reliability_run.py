"""A recipe that is started as a user does it, and killed at a moment of one's choice."""

import os
import random
import shutil
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "egs" / "mini_espeak" / "adaltm1"
MARK = "ADALTM_TEST_MARK"
WORDS = (
    *("./run.sh", "--size", "ci", "--merges", "static adaltm", "--baselines", "espnet_cls"),
    *("--merge_jobs", "1", "--nj", "2"),
)
# Stages whose trainings consist of two processes.
TWO = ("ser_expert",)
# A run that takes longer than this hangs.
PATIENCE = 900.0
# What a killed runner had started ends within this time, see `espnet_adaltm.locks`.
ENDING = 40.0


class Kind(Enum):
    """What SIGKILL hits; everything else has to end by itself."""

    EVERYTHING = "all processes"
    GROUP = "the shells and the runner"
    SHELL = "the shell of the stages"
    RUNNER = "the runner of the items"
    JOB = "the job command or launcher"
    PROGRAM = "the program, or one of two ranks"


SHARES = {
    Kind.EVERYTHING: 40,
    Kind.GROUP: 12,
    Kind.SHELL: 12,
    Kind.RUNNER: 12,
    Kind.JOB: 9,
    Kind.PROGRAM: 15,
}
# How the command lines of single victims are told.
SIGNS = {
    Kind.SHELL: ("./adaltm.sh",),
    Kind.RUNNER: ("espnet_adaltm.bin.run_item",),
    Kind.JOB: ("espnet_adaltm.bin.run_job", "espnet_adaltm.training.nodes", "two_tasks.py"),
}


class Unreliable(AssertionError):
    """What must not happen."""


# --------------------------------------------------------------------------------- processes
def make_recipe(folder: Path) -> Path:
    """A copy of the demo's recipe that shares nothing but code with the checkout."""
    target = folder / "egs" / "mini_espeak" / "adaltm1"
    shutil.copytree(
        DEMO, target, ignore=shutil.ignore_patterns("data", "dump", "exp", "RESULTS.md", "plots")
    )
    (folder / "conf").symlink_to(ROOT / "conf")
    return target


def command_of(pid: int) -> list[str]:
    """The words of a process; none if it is gone or a zombie."""
    try:
        data = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return data.decode(errors="replace").split("\0")[:-1]


def processes(mark: str) -> dict[int, list[str]]:
    """Every process that inherited the mark, whatever session it moved to, with its words."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue
        if f"{MARK}={mark}".encode() in environment and int(entry.name) != os.getpid():
            found[int(entry.name)] = command_of(int(entry.name))
    return found


def kill(pid: int) -> None:
    """SIGKILL, if there is still somebody."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def kill_all(mark: str) -> None:
    """SIGKILL everything, and what it started meanwhile."""
    while alive := processes(mark):
        for pid in alive:
            kill(pid)
        time.sleep(0.05)


def victims(mark: str, kind: Kind) -> list[int]:
    """Processes of which one is to be killed, by number."""
    found = processes(mark)
    if kind in SIGNS:
        return sorted(
            pid
            for pid, words in found.items()
            if any(word.endswith(sign) for word in words[:4] for sign in SIGNS[kind])
        )
    known = {pid for other in SIGNS for pid in victims(mark, other)}
    programs = {p for p, words in found.items() if "-m" in words[:3] and p not in known}
    return sorted(programs)


def strike(mark: str, shell: int, kind: Kind, draw: random.Random) -> Kind:
    """Kill; returns what was killed, which is everything where a victim is not there now."""
    if kind is Kind.GROUP:
        os.killpg(shell, signal.SIGKILL)
        return kind
    found = victims(mark, kind) if kind is not Kind.EVERYTHING else []
    if not found:
        kill_all(mark)
        return Kind.EVERYTHING
    # Of several shells, the outermost: the others are about to become something else.
    kill(found[0] if kind is Kind.SHELL else draw.choice(found))
    return kind


def settle(mark: str) -> float:
    """Wait until nothing runs any more; returns how long that took.

    Raises:
        Unreliable: Something goes on without what started it.
    """
    start = time.monotonic()
    while alive := processes(mark):
        if time.monotonic() - start > ENDING:
            kill_all(mark)
            names = [" ".join(words)[:200] for words in alive.values()]
            raise Unreliable(f"still at work {ENDING:.0f} s after the kill: {names}")
        time.sleep(0.1)
    return time.monotonic() - start


# --------------------------------------------------------------------------------- one run
@dataclass
class Attempt:
    """One run of the recipe, and what it said.

    Attributes:
        lines: Standard output and error.
        code: Exit status of the shell; negative for a signal.
        seconds: It took.
        killed: What was hit; None if it ended before.
        at_work: Items that had begun and not ended, ``folder: name``.
        worked: Seconds for which one of those was at work at most.
        times: When each line was read (monotonic).
    """

    lines: list[str] = field(default_factory=list)
    code: int = 0
    seconds: float = 0.0
    killed: Kind | None = None
    at_work: list[str] = field(default_factory=list)
    worked: float = 0.0
    times: list[float] = field(default_factory=list)

    def titles(self, ending: str) -> list[str]:
        """Items of which a line says ``skip``, ``done`` or, for those that begin, ``...``."""
        told = [line.partition("] ")[2] for line in self.lines if line.startswith("[")]
        if ending == "...":
            told = [line.removesuffix(" ...") for line in told if line.endswith(" ...")]
            return [line.partition(" (")[0] for line in told]
        return [line.rpartition(f": {ending}")[0] for line in told if f": {ending}" in line]

    def under_way(self) -> list[str]:
        """Items that began and did not end."""
        done = self.titles("done in")
        return [title for title in self.titles("...") if title not in done]

    def note_work(self, now: float) -> None:
        """Remember what is at work now, and for how long it has been."""
        self.at_work = self.under_way()
        begun = [
            then
            for line, then in zip(self.lines, self.times)
            if line.endswith("...") and any(f"] {title}" in line for title in self.at_work)
        ]
        self.worked = max((now - then for then in begun), default=0.0)

    @property
    def said(self) -> str:
        """The end, for messages."""
        return "\n".join(self.lines[-25:])


@dataclass(frozen=True)
class Blow:
    """When and what to kill.

    Attributes:
        stage: In which.
        after: Seconds from its first item on.
        kind: What.
        at_once: Whether the recipe is started again before what was left has ended.
        first: Stage from which the recipe is run; the first one of all, unless given.
    """

    stage: str
    after: float
    kind: Kind
    at_once: bool
    first: str = ""


@dataclass
class Recipe:
    """A recipe as it is started.

    Attributes:
        folder: Where ``run.sh`` lies.
        words: The command.
        two: Stages whose trainings have two processes.
        mark: In the environment of everything that it starts.
    """

    folder: Path
    words: Sequence[str] = WORDS
    two: Sequence[str] = ()
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def scratch(self) -> Path:
        """For temporary files outside the recipe."""
        return self.folder / "scratch"

    def run(
        self, stage: str, blow: Blow | None = None, draw: random.Random | None = None
    ) -> Attempt:
        """Up to the end of ``stage``, unless it is killed on the way.

        Raises:
            Unreliable: It hangs.
        """
        more = ["--num_nodes", "2"] if stage in self.two else []
        if blow and blow.first:
            more += ["--stage", blow.first]
        begun = time.monotonic()
        process = subprocess.Popen(
            [*self.words, "--stop_stage", stage, *more],
            cwd=self.folder,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        attempt = Attempt()
        started = threading.Event()
        reader = threading.Thread(target=_read, args=(process, attempt, blow, started), daemon=True)
        reader.start()
        try:
            if blow and self._awaited(process, started, blow.after):
                attempt.note_work(time.monotonic())
                attempt.killed = strike(self.mark, process.pid, blow.kind, draw or random.Random(0))
            attempt.code = process.wait(PATIENCE)
            if attempt.code == 0:  # what was to be hit had just ended
                attempt.killed = None
        except subprocess.TimeoutExpired:
            kill_all(self.mark)
            raise Unreliable(f"hangs in {stage}: {attempt.said}") from None
        finally:
            attempt.seconds = time.monotonic() - begun
        # What survives a kill for a moment keeps the pipe open.
        reader.join(None if attempt.killed is None else 1.0)
        return attempt

    def _environment(self) -> dict[str, str]:
        self.scratch.mkdir(exist_ok=True)
        environment = {**os.environ, "ADALTM_ROOT": str(ROOT), MARK: self.mark}
        environment["TMPDIR"] = str(self.scratch)
        if self.two:
            queue = self.folder / "queue"
            if not queue.exists():
                queue_of_two(queue)
            environment |= {
                "cuda_cmd": f"{queue}/slurm.pl",
                "PATH": f"{queue}:{os.environ['PATH']}",
            }
        return environment

    def _awaited(self, process: subprocess.Popen, started: threading.Event, seconds: float) -> bool:
        """Wait for a stage to begin, and so long from then on; whether the run is still at work."""
        if not started.wait(PATIENCE):
            kill_all(self.mark)
            raise Unreliable("hangs before it begins")
        end = time.monotonic() + seconds
        while time.monotonic() < end and process.poll() is None:
            time.sleep(0.02)
        return process.poll() is None


def _read(
    process: subprocess.Popen, attempt: Attempt, blow: Blow | None, started: threading.Event
) -> None:
    """Follow what a run says."""
    for line in process.stdout:
        attempt.times.append(time.monotonic())
        attempt.lines.append(line.rstrip())
        if blow and f" {blow.stage}]" in line and line.rstrip().endswith("..."):
            started.set()
    started.set()
    process.stdout.close()


def queue_of_two(folder: Path) -> None:
    """A queue for ``--num_nodes 2``: both nodes are this machine."""
    folder.mkdir()
    programs = {
        "slurm.pl": 'exec python -m espnet_adaltm.bin.run_job local "$@"',
        "srun": f'exec python {Path(__file__).with_name("two_tasks.py")} "$@"',
    }
    for name, line in programs.items():
        path = folder / name
        path.write_text(f"#!/usr/bin/env bash\n{line}\n")
        path.chmod(0o755)
