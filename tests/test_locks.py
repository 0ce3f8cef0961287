"""Locks: who holds them, how long, and what runs keep from each other."""

import errno
import fcntl
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from espnet_adaltm import locks
from espnet_adaltm.errors import UserError
from espnet_adaltm.locks import (
    Holder,
    enter_run,
    is_held,
    locked,
    myself,
    read_holder,
    require_free,
    runs_at_work,
)

HOST = os.uname().nodename
ME = myself("./run.sh --size ci")
# Takes the lock argv[1], starts argv[2:] with it, and ends.
TAKE = """
import subprocess, sys
from pathlib import Path
from espnet_adaltm.locks import locked, myself
with locked(Path(sys.argv[1]), myself("first"), "x") as descriptor:
    subprocess.Popen(sys.argv[2:], pass_fds=[descriptor])
    print("taken", flush=True)
    {then}
"""


def take(path: Path, *command: str, then: str = "pass") -> subprocess.Popen:
    """Start a process that takes a lock, and wait until it has it."""
    process = subprocess.Popen(
        [sys.executable, "-c", TAKE.format(then=then), str(path), *command],
        stdout=subprocess.PIPE, text=True, cwd=Path(locks.__file__).parents[1],
    )  # fmt: skip
    assert process.stdout.readline() == "taken\n"
    return process


def test_the_second_is_told_who_holds_it(tmp_path):
    path = tmp_path / "new" / "n.lock"
    with locked(path, ME, "a thing"):
        assert is_held(path)
        assert read_holder(path) == ME
        with pytest.raises(UserError) as caught, locked(path, myself("other"), "the thing"):
            pass
        with pytest.raises(UserError, match="the thing is in the making"):
            require_free(path, "the thing")
    since = ME.since.replace("T", " ")[:19]
    who = f"process {os.getpid()} on {HOST}, since {since} (./run.sh --size ci)"
    assert f"the thing is in the making by another run: {who}" in str(caught.value)
    assert not is_held(path)
    require_free(path, "the thing")
    with locked(path, myself("third"), "the thing"):
        assert read_holder(path).command == "third"


def test_looking_is_no_holding(tmp_path):
    path = tmp_path / "n.lock"
    assert not is_held(path)
    assert not path.exists()
    with locked(path, ME, "x"):
        pass
    with open(path) as handle:  # somebody looks, for longer than it takes
        fcntl.flock(handle, fcntl.LOCK_SH)
        threading.Timer(0.2, lambda: fcntl.flock(handle, fcntl.LOCK_UN)).start()
        with locked(path, ME, "x"):
            pass


def test_what_is_killed_lets_go(tmp_path):
    path = tmp_path / "n.lock"
    process = take(path, "true", then="import time; time.sleep(60)")
    assert is_held(path)
    process.kill()
    process.wait()
    with locked(path, ME, "x"):
        pass
    process.stdout.close()


def test_the_command_of_a_killed_runner_is_waited_for(tmp_path):
    path = tmp_path / "n.lock"
    process = take(path, "sleep", "1.5")
    process.stdout.close()
    process.wait()
    start = time.monotonic()
    assert is_held(path)
    assert read_holder(path).gone
    with locked(path, ME, "x"):
        assert 0.3 < time.monotonic() - start < 20


def test_a_command_that_outlives_its_runner_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_ENDING_SECONDS", 0.1)
    path = tmp_path / "n.lock"
    process = take(path, "sleep", "3")
    process.stdout.close()
    process.wait()
    with pytest.raises(UserError, match=f"that process is gone.*fuser {path}"):
        require_free(path, "x")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": "h"}', '{"pid": 1, "other": 2}'])
def test_a_holder_that_cannot_be_read(tmp_path, text):
    path = tmp_path / "n.lock"
    path.write_text(text)
    assert read_holder(path) is None
    with open(path) as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="x is in the making by another run"):
            require_free(path, "x")


def test_only_a_process_of_this_machine_is_known_to_be_gone():
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert Holder(HOST, ended.pid, "", "").gone
    assert not Holder("elsewhere", ended.pid, "", "").gone
    assert not Holder(HOST, os.getpid(), "", "").gone


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_work_goes_on_with_a_warning(tmp_path, monkeypatch, caplog, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with caplog.at_level(logging.WARNING), locked(tmp_path / "n.lock", ME, "x"):
        pass
    assert f"the file system of {tmp_path} has no locks" in caplog.text


# --------------------------------------------------------------------------------- runs
class Run:
    """A run as the shell starts it: it opens a file, and the first runner enters it."""

    def __init__(self, folder: Path, name: str, *items: str, pid: int | None = None) -> None:
        self.path = folder / locks.RUNS / f"{name}.json"
        self.path.parent.mkdir(exist_ok=True)
        self.handle = open(self.path, "w")  # noqa: SIM115
        stamps = [f"{folder}/{item}/.stamps/train.json" for item in items]
        self.holder = myself(name, pid, items=stamps)

    def enter(self) -> None:
        enter_run(self.path, self.handle.fileno(), self.holder)


def test_a_run_keeps_what_it_makes(tmp_path):
    first = Run(tmp_path, "first", "a", "b", "c")
    first.enter()
    with pytest.raises(UserError) as caught:
        Run(tmp_path, "second", "d", "c", "b").enter()
    assert f"(train in {tmp_path}/b and 1 more): process {os.getpid()} on {HOST}" in str(
        caught.value
    )
    Run(tmp_path, "elsewhere", "d", "e").enter()
    first.handle.close()
    Run(tmp_path, "third", "b").enter()


def test_runs_at_work_are_listed_and_those_that_ended_forgotten(tmp_path):
    assert runs_at_work(tmp_path) == []
    first, second, new = Run(tmp_path, "1", "a"), Run(tmp_path, "2", "b"), Run(tmp_path, "3", "c")
    first.enter()
    second.enter()
    assert runs_at_work(tmp_path) == [first.holder, second.holder]
    first.handle.close()
    assert runs_at_work(tmp_path) == [second.holder]
    assert first.path.exists()  # looking writes nothing
    Run(tmp_path, "4", "d").enter()
    assert not first.path.exists()
    assert new.path.exists()  # opened, and about to enter
    new.enter()
    assert new.holder in runs_at_work(tmp_path)


def test_of_runs_that_start_together_one_goes_on(tmp_path):
    runs = [Run(tmp_path, str(number), "shared", str(number)) for number in range(6)]
    together = threading.Barrier(len(runs))
    refused: list[str] = []

    def start(run: Run) -> None:
        together.wait()
        try:
            run.enter()
        except UserError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=start, args=[run]) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == len(runs) - 1
    assert len(runs_at_work(tmp_path)) == 1


def test_what_a_killed_run_started_is_waited_for(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    old = Run(tmp_path, "old", "a", pid=ended.pid)
    old.enter()
    threading.Timer(0.5, old.handle.close).start()
    start = time.monotonic()
    Run(tmp_path, "new", "a").enter()
    assert 0.3 < time.monotonic() - start < 20
