"""Run the items of a stage, skipping what is done: see `espnet_adaltm.stamps`.

    run_item [options] -- COMMAND...      one item
    run_item --batch FILE [--jobs N]      the items of a file, as `utils/stages.sh` writes them
    run_item --batch FILE --list true     say what would be done

With several jobs, an item waits for those before it in the file that make one of its inputs.

options of an item:
  --name NAME            of the stamp and in messages
  --stage "N (NAME)"     for messages and for the command that resumes
  --workdir DIR          folder that the command fills
  --inputs FILE[@STAGE]...   what it reads; if one is missing, STAGE is what to run first
  --outputs FILE...      what it makes
  --ignore_options a,b   options of the command that do not change the result
  --shared true          other items write into the folder, too
  --force true           run whatever the stamp says
  --job "WORDS"          job command to run it with (Kaldi's contract: the log follows; for
                         others, {log} says where it belongs)
  --log FILE             log of the job command

The environment variable ADALTM_RESUME holds the command that ran the recipe; with the number of
the stage it is written to ``resume.txt`` in the folder. In a terminal, a line below tells how far
the running items are.
"""

import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from espnet_adaltm.errors import UserError
from espnet_adaltm.files import write_text
from espnet_adaltm.jobs import die_with_parent, kill_group, stop_on_signals
from espnet_adaltm.live import StatusLine
from espnet_adaltm.stamps import (
    Hashes,
    Item,
    Verdict,
    begin,
    finish,
    judge,
    locked,
    split_input,
)

LISTS = ("inputs", "outputs")
SINGLE = ("name", "stage", "workdir", "ignore_options", "shared", "force", "job", "log")
KEPT_LOGS = 5


@dataclass
class Task:
    """An item and how to run it: for a stage, with a job command, into a log."""

    item: Item
    stage: str
    job: list[str] = field(default_factory=list)
    log: Path | None = None
    force: bool = False

    @property
    def title(self) -> str:
        """What progress lines begin with."""
        name = f"{self.item.workdir}: {self.item.name}"
        return f"[{self.stage}] {name}" if self.stage else name

    def words(self) -> list[str]:
        """The whole command line."""
        if self.job and self.log:
            log = str(self.log)
            job = [log if word == "{log}" else word for word in self.job]
            return [*job, *([] if "{log}" in self.job else [log]), *self.item.command]
        return self.item.command


def parse_item(words: Sequence[str]) -> Task:
    """Read the options of one item.

    Raises:
        UserError: An unknown option, a missing value or command.
    """
    options, single = _read_options(words)
    for name in ("name", "workdir"):
        if not single.get(name):
            raise UserError(f"an item needs --{name}")
    item = Item(
        name=single["name"],
        workdir=Path(single["workdir"]),
        command=options["command"],
        inputs=options["inputs"],
        outputs=[Path(path) for path in options["outputs"]],
        ignored=frozenset(single.get("ignore_options", "").split(",")),
        shared=_true(single, "shared"),
    )
    return Task(
        item,
        stage=single.get("stage", ""),
        job=shlex.split(single.get("job", "")),
        log=Path(single["log"]) if single.get("log") else None,
        force=_true(single, "force"),
    )


def _read_options(words: Sequence[str]) -> tuple[dict[str, list[str]], dict[str, str]]:
    lists: dict[str, list[str]] = {name: [] for name in (*LISTS, "command")}
    single: dict[str, str] = {}
    rest = list(words)
    current = ""
    while rest:
        word = rest.pop(0)
        if word == "--":
            lists["command"] = rest
            break
        name = word.removeprefix("--")
        if word.startswith("--") and name in LISTS:
            current = name
        elif word.startswith("--") and name in SINGLE and rest:
            single[name], current = rest.pop(0), ""
        elif current and not word.startswith("--"):
            lists[current].append(word)
        else:
            raise UserError(f"unknown or incomplete option of an item: {word!r}")
    if not lists["command"]:
        raise UserError(f"no command after -- for item {single.get('name', '')!r}")
    return lists, single


def _true(options: dict[str, str], name: str) -> bool:
    value = options.get(name, "false")
    if value not in ("true", "false"):
        raise UserError(f"--{name} is true or false, not {value!r}")
    return value == "true"


def read_batch(path: str) -> list[Task]:
    """Read items from NUL-separated fields: the number of words, then the words."""
    fields = Path(path).read_text(encoding="utf-8").split("\0")[:-1]
    tasks = []
    while fields:
        count = int(fields.pop(0))
        tasks.append(parse_item(fields[:count]))
        fields = fields[count:]
    return tasks


class Runner:
    """Runs tasks, and ends what runs when one fails or the program is stopped."""

    def __init__(self, status: StatusLine) -> None:
        """Start with nothing running and no file hashed."""
        self.hashes = Hashes()
        self.status = status
        self.failed = False
        self._running: set[subprocess.Popen] = set()
        self._hashing = threading.Lock()

    def stop(self) -> None:
        """End every running command, and start no other."""
        self.failed = True
        self.status.close()
        for process in list(self._running):
            kill_group(process, patience=15)

    def verdict(self, task: Task) -> Verdict:
        """Whether a task has to run."""
        with self._hashing:
            return judge(task.item, self.hashes, force=task.force)

    def run(self, task: Task) -> None:
        """Run one task unless it is done.

        Raises:
            UserError: An input or output is missing or the command failed.
        """
        if self.failed:
            return
        verdict = self.verdict(task)
        if not verdict.run:
            self.status.say(f"{task.title}: skip, done before")
            self.status.done += 1
            return
        with locked(task.item):
            start = time.monotonic()
            self.status.say(f"{task.title}{f' ({verdict.why})' if verdict.why else ''} ...")
            begin(task.item, verdict)
            self._write_resume(task)
            self._execute(task)
            finish(task.item, verdict)
        self.status.done += 1
        self.status.say(f"{task.title}: done in {time.monotonic() - start:.1f} s")

    def _execute(self, task: Task) -> None:
        if task.log:
            task.log.parent.mkdir(parents=True, exist_ok=True)
            rotate(task.log)
        try:
            process = subprocess.Popen(task.words(), start_new_session=True)
        except OSError as error:
            raise UserError(f"cannot run {task.words()[0]}: {error.strerror}") from error
        self._running.add(process)
        with self.status.watch(task.stage, task.item.workdir.name, task.log):
            code = process.wait()
        self._running.discard(process)
        if code != 0:
            raise UserError(f"{task.title} failed with status {code}{self._advice(task)}")

    def _advice(self, task: Task) -> str:
        log = f"; log: {task.log}" if task.log else ""
        resume = task.item.workdir / "resume.txt"
        return log + (f"; to resume: {_resume_command(task)}" if resume.exists() else "")

    def _write_resume(self, task: Task) -> None:
        if os.environ.get("ADALTM_RESUME") and not task.item.shared:
            write_text(task.item.workdir / "resume.txt", f"{_resume_command(task)}\n")


def _resume_command(task: Task) -> str:
    number = task.stage.partition("/")[0]
    stage = f" --stage {number} --stop_stage {number}" if number else ""
    return f"{os.environ.get('ADALTM_RESUME', '')}{stage}"


def rotate(log: Path) -> None:
    """Keep the last few logs: ``train.log`` becomes ``train.1.log`` and so on."""
    for number in range(KEPT_LOGS - 1, -1, -1):
        old = log if number == 0 else log.with_suffix(f".{number}{log.suffix}")
        if old.exists():
            os.replace(old, log.with_suffix(f".{number + 1}{log.suffix}"))


def makers(tasks: Sequence[Task]) -> list[set[int]]:
    """For every task, the places of the tasks before it that make one of its inputs."""
    made: dict[Path, int] = {}
    found = []
    for place, task in enumerate(tasks):
        inputs = (Path(split_input(word)[0]) for word in task.item.inputs)
        found.append({made[path] for path in inputs if path in made})
        made |= dict.fromkeys(task.item.outputs, place)
    return found


def _side_by_side(tasks: Sequence[Task], jobs: int, run: Callable[[Task], None]) -> None:
    """Run tasks ``jobs`` at a time, each after its `makers`, otherwise in order."""
    from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

    waiting = dict(enumerate(makers(tasks)))
    running: dict[Future, int] = {}
    with ThreadPoolExecutor(jobs) as pool:
        while waiting or running:
            under_way = {*waiting, *running.values()}
            ready = [place for place, needed in waiting.items() if not needed & under_way]
            for place in ready[: jobs - len(running)]:
                del waiting[place]
                running[pool.submit(run, tasks[place])] = place
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                del running[future]
                future.result()


def run_all(tasks: Sequence[Task], jobs: int) -> int:
    """Run tasks in order, or ``jobs`` at a time; after a failure nothing new starts.

    Returns:
        Exit status.
    """
    status = StatusLine(len(tasks))
    runner = Runner(status)
    errors: list[str] = []

    def one(task: Task) -> None:
        try:
            runner.run(task)
        except UserError as error:
            runner.failed = True
            errors.append(str(error))

    die_with_parent()
    with stop_on_signals(runner.stop), status:
        if jobs == 1:
            for task in tasks:
                one(task)
        else:
            _side_by_side(tasks, jobs, one)
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    return 1 if errors else 0


def list_all(tasks: Sequence[Task]) -> int:
    """Say what would run; inputs that earlier items make may be missing."""
    runner = Runner(StatusLine(len(tasks)))
    for task in tasks:
        try:
            verdict = runner.verdict(task)
            state = "skip" if not verdict.run else f"run ({verdict.why or 'first time'})"
        except UserError as error:
            state = f"run ({error})"
        print(f"{task.title}: {state}", flush=True)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one item or a batch and return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    try:
        if words[0] != "--batch":
            return run_all([parse_item(words)], jobs=1)
        options = dict(zip(words[::2], words[1::2]))
        tasks = read_batch(options["--batch"])
        if options.get("--list") == "true":
            return list_all(tasks)
        return run_all(tasks, int(options.get("--jobs", "1")))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
