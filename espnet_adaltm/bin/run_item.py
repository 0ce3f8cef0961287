"""Run the items of a stage, skipping what is done: see `espnet_adaltm.stamps`.

    run_item [options] -- COMMAND...      one item
    run_item --batch FILE [--jobs N]      the items of a file, as `utils/stages.sh` writes them
    run_item --batch FILE --list true     say what would be done, and why
    run_item --batch FILE --status true   say how far everything is; exit status 3 unless done

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
  --check "WORDS"        command that tells what is known to be wrong with the item; of a batch that
                         is entered (--run_file) or listed, before anything runs

options of a batch, for a run of several stages:
  --whole FILE           the items of all its stages: what it is going to make is kept from others,
                         see `espnet_adaltm.locks`; with --run_file, --run_fd and --run_pid
  --stages "N/M NAME..." a line for each stage, for --list and --status
  --run_dir DIR          where other runs are looked for, for --status
  --before FILE          items that would run before these, for --list and --status

The environment variable ADALTM_RESUME holds the command that ran the recipe; with the stage to go
on from it is written to ``resume.txt`` in the folder. In a terminal, a line below tells how far
the running items are.

Warned that its time is up (`espnet_adaltm.stopping`), it starts nothing more, and lets what runs
save or end. Exit status 75 then says that the same command goes on.
"""

import errno
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from espnet_adaltm.errors import UserError
from espnet_adaltm.files import write_text
from espnet_adaltm.items import STOPPED, Task, makers, parse_item, read_batch
from espnet_adaltm.jobs import (
    code_in_log,
    die_with_parent,
    end_all,
    kill_group,
    started_here,
    stop_on_signals,
)
from espnet_adaltm.live import StatusLine
from espnet_adaltm.locks import enter_run, holders, locked, myself, require_free
from espnet_adaltm.plan import check, dry_run, plan
from espnet_adaltm.stamps import Hashes, Verdict, begin, fail, finish, judge, refresh
from espnet_adaltm.stopping import CONTINUE, WARNING, hearing, warn

KEPT_LOGS = 5
NOT_DONE = 3


class Runner:
    """Runs tasks, and ends what runs when one fails or the program is stopped."""

    def __init__(self, status: StatusLine, hashes: Hashes | None = None) -> None:
        """Start with nothing running, and no file hashed but those of ``hashes``."""
        self.hashes = hashes or Hashes()
        self.status = status
        self.failed = False
        self.warned = self.left = False
        self.saved = 0  # commands that saved where they are, to be started again
        self._stopped = False
        self._running: set[subprocess.Popen] = set()
        self._hashing = threading.Lock()

    def stop(self) -> None:
        """End every running command, and start no other."""
        self.failed = self._stopped = True
        self.status.close()
        for process in list(self._running):
            kill_group(process, patience=15)

    def warn(self, _number: int) -> None:
        """Pass on that time is up, and start nothing more."""
        self.warned = True
        for process in list(self._running):
            warn(process.pid)

    def verdict(self, task: Task) -> Verdict:
        """Whether a task has to run."""
        with self._hashing:
            return judge(task.item, self.hashes, force=task.force)

    def run(self, task: Task) -> None:
        """Run one task unless it is done.

        Raises:
            UserError: An input or output is missing, a file cannot be read or written, the command
                failed, or another run makes the same.
        """
        self.left |= self.warned
        if self.failed or self.warned or self._skip(task, self.verdict(task)):
            return
        holder = myself(_typed(task), job=" ".join(task.job))
        with locked(task.item.lock, holder, task.title) as descriptor:
            # Another run may have made it while this one came to it.
            verdict = self.verdict(task)
            if self._skip(task, verdict):
                return
            start = time.monotonic()
            self.status.say(f"{task.title}{f' ({verdict.why})' if verdict.why else ''} ...")
            begin(task.item, verdict)
            self._write_resume(task)
            code = 0
            try:
                code = self._execute(task, descriptor)
                if code != 0:
                    verb = "was stopped" if code in STOPPED else "failed"
                    raise UserError(f"{verb} with {_explained(code)}")
                finish(task.item, verdict, time.monotonic() - start)
            except UserError as error:
                self.saved += code == CONTINUE
                if not self._stopped and code not in STOPPED:
                    fail(task.item, str(error))
                raise UserError(f"{task.title}: {error}{self._advice(task)}") from error
        self.status.done += 1
        self.status.say(f"{task.title}: done in {time.monotonic() - start:.1f} s")

    def _skip(self, task: Task, verdict: Verdict) -> bool:
        if verdict.run:
            return False
        refresh(task.item, verdict)
        self.status.say(f"{task.title}: skip, done before")
        self.status.done += 1
        return True

    def _execute(self, task: Task, lock: int) -> int:
        """Run the command; its exit status."""
        if task.log:
            task.log.parent.mkdir(parents=True, exist_ok=True)
            rotate(task.log)
        try:
            process = subprocess.Popen(
                task.words(),
                env={**os.environ, **started_here()},
                start_new_session=True,
                pass_fds=[lock],
            )
        except OSError as error:
            raise UserError(f"cannot run {task.words()[0]}: {error.strerror}") from error
        self._running.add(process)
        with self.status.watch(task.stage, task.item.workdir.name, task.log):
            code = process.wait()
        self._running.discard(process)
        if code < 0 and not self._stopped:  # killed, without a chance to end what it had started
            end_all(lambda: holders(task.item.lock), patience=15)
        return _own_code(task, code) if code != 0 else 0

    def _advice(self, task: Task) -> str:
        log = f"; log: {task.log}" if task.log else ""
        resume = task.item.workdir / "resume.txt"
        known = resume.exists() or os.environ.get("ADALTM_RESUME")
        return log + (f"; to resume: {_resume_command(task)}" if known else "")

    def _write_resume(self, task: Task) -> None:
        if os.environ.get("ADALTM_RESUME") and not task.item.shared:
            write_text(task.item.workdir / "resume.txt", f"{_resume_command(task)}\n")


def _own_code(task: Task, code: int) -> int:
    """Exit status of the command; a job command only says that it failed."""
    told = code_in_log(task.log) if task.job and task.log else None
    return told or (code if code > 0 else 128 - code)


def _explained(code: int) -> str:
    """``status 137 (SIGKILL: often for want of memory)``."""
    if code == 127:
        return f"status {code} (no such program)"
    try:
        name = signal.Signals(code - 128).name if code > 128 else ""
    except ValueError:
        name = ""
    hint = ": often for want of memory" if name == "SIGKILL" else ""
    return f"status {code}{f' ({name}{hint})' if name else ''}"


def _typed(task: Task) -> str:
    """What to name to others as the command at work."""
    return os.environ.get("ADALTM_RESUME") or shlex.join(task.item.command)


def _resume_command(task: Task) -> str:
    return task.resuming(os.environ.get("ADALTM_RESUME", ""))


def rotate(log: Path) -> None:
    """Keep the last few logs: ``train.log`` becomes ``train.1.log`` and so on."""
    for number in range(KEPT_LOGS - 1, -1, -1):
        old = log if number == 0 else log.with_suffix(f".{number}{log.suffix}")
        if old.exists():
            os.replace(old, log.with_suffix(f".{number + 1}{log.suffix}"))


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


def run_all(tasks: Sequence[Task], jobs: int, hashes: Hashes | None = None) -> int:
    """Run tasks in order, or ``jobs`` at a time; after a failure nothing new starts.

    Returns:
        Exit status.
    """
    status = StatusLine(len(tasks))
    runner = Runner(status, hashes)
    errors: list[str] = []

    def one(task: Task) -> None:
        try:
            with _plain_errors(task.title):
                runner.run(task)
        except UserError as error:
            runner.failed = True
            errors.append(str(error))

    die_with_parent()
    with stop_on_signals(runner.stop), hearing(WARNING, also=runner.warn), status:
        if jobs == 1:
            for task in tasks:
                one(task)
        else:
            _side_by_side(tasks, jobs, one)
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    if len(errors) == runner.saved and (runner.saved or runner.left):
        return CONTINUE
    return 1 if errors else 0


@contextmanager
def _plain_errors(title: str) -> Iterator[None]:
    """Turn what the file system refuses into one line."""
    try:
        yield
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        advice = {
            errno.ENOSPC: "free some space, and run again",
            errno.EDQUOT: "free some space, and run again",
            errno.EROFS: "choose folders that can be written (--expdir, --dumpdir, --datadir)",
            errno.EACCES: "choose folders that you may read and write, or change their permissions",
            errno.EPERM: "choose folders that you may read and write, or change their permissions",
        }.get(error.errno or 0, "see to that, and run again")
        raise UserError(f"{title}: {where}{error.strerror}: {advice}") from error


def enter(tasks: Sequence[Task], options: Mapping[str, str]) -> Hashes:
    """Enter this run, with all that it is going to make, where others see it.

    Args:
        tasks: Of all stages.
        options: ``run_file``, ``run_fd`` (its descriptor, which the shell keeps open) and
            ``run_pid`` (the shell).

    Returns:
        What was hashed to find out.

    Raises:
        UserError: Another run makes some of it, or it is known that something of it cannot run.
    """
    hashes = Hashes()
    planned = plan(tasks, hashes)
    check(planned)
    problems = [entry for entry in planned if entry.problem]
    if problems and problems[0].given:
        raise UserError(f"{problems[0].task.title}: {problems[0].problem}")
    wanted = [entry.task for entry in planned if entry.run]
    if wanted:
        typed = os.environ.get("ADALTM_RESUME", "")
        stamps = [str(task.item.stamp) for task in wanted]
        holder = myself(typed, int(options["run_pid"]), items=stamps)
        enter_run(Path(options["run_file"]), int(options["run_fd"]), holder)
    for task in wanted:  # runs that entered elsewhere, and single items
        require_free(task.item.lock, task.title)
    for entry in planned:
        if not entry.run and entry.verdict is not None:
            refresh(entry.task.item, entry.verdict)
    return hashes


def main(argv: Sequence[str] | None = None) -> int:
    """Run one item or a batch and return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    try:
        with _plain_errors("this run"):
            return _main(words)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _main(words: Sequence[str]) -> int:
    if words[0] != "--batch":
        return run_all([parse_item(words)], jobs=1)
    options = dict(zip(words[::2], words[1::2]))
    options = {name.removeprefix("--"): value for name, value in options.items()}
    tasks = read_batch(options["batch"])
    stages = options.get("stages", "").splitlines()
    before = read_batch(options["before"]) if options.get("before") else []
    if options.get("list") == "true":
        planned = plan(tasks, Hashes(), before)
        print("\n".join(dry_run(planned, stages, before)), flush=True)
        check(planned)
        return 0
    if options.get("status") == "true":
        from espnet_adaltm.run_status import table

        lines, done = table(tasks, stages, options["run_dir"], before)
        print("\n".join(lines), flush=True)
        return 0 if done else NOT_DONE
    hashes = enter(read_batch(options["whole"]), options) if "run_file" in options else None
    return run_all(tasks, int(options.get("jobs", "1")), hashes)


if __name__ == "__main__":
    sys.exit(main())
