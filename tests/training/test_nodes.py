"""Trainings on several nodes: no two write into a folder, whoever is killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from reliability_run import queue_of_two
from waiting import wait_for

from espnet_adaltm.files import is_running
from espnet_adaltm.locks import is_held
from espnet_adaltm.training.nodes import init_file_prefix

ROOT = Path(__file__).parents[2]
LAUNCH = "espnet_adaltm.training.nodes"
# Both tasks say that they are there, and take their time to end, as trainings that save do.
TASK = "trap '' TERM; echo $$ >pid.${SLURM_PROCID}; while true; do sleep 0.1; done"

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def tasks() -> list[int]:
    """Process numbers of the tasks; none before both are at work."""
    texts = [path.read_text().strip() for path in map(Path, ("pid.0", "pid.1")) if path.exists()]
    return [int(text) for text in texts] if len(texts) == 2 and all(texts) else []


def children(pid: int, of: str) -> list[int]:
    """Processes that a process started, and whose command line has a word."""
    lines = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True).stdout
    rows = (line.split(None, 2) for line in lines.splitlines()[1:])
    return [int(row[0]) for row in rows if int(row[1]) == pid and of in row[2]]


@pytest.fixture
def runner(tmp_path, monkeypatch):
    """An item of two tasks at work."""
    monkeypatch.chdir(tmp_path)
    queue_of_two(tmp_path / "queue")
    path = f"{tmp_path}/queue:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    job = f"python -m {LAUNCH} --cmd queue/slurm.pl --ngpu 0 --num_nodes 2 --log {{log}} --"
    item = ["--name", "t", "--workdir", "w", "--job", job, "--log", "w/t.log"]
    words = [sys.executable, "-m", "espnet_adaltm.bin.run_item", *item, "--", "bash", "-c", TASK]
    process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)
    wait_for(tasks)
    yield process
    process.kill()
    process.communicate()
    wait_for(lambda: not is_held(Path("w/.stamps/t.lock")), seconds=30)


@pytest.mark.parametrize("victim", ["launcher", "runner"])
def test_the_lock_is_held_until_the_last_task_has_ended(runner, victim):
    lock, at_work = Path("w/.stamps/t.lock"), tasks()
    if victim == "launcher":
        [launcher] = children(runner.pid, LAUNCH)
        os.kill(launcher, signal.SIGKILL)
        assert runner.wait(30) == 1
        assert not is_held(lock)  # the runner has seen to it
    else:
        runner.kill()
        runner.wait(30)
        assert is_held(lock)
    wait_for(lambda: not is_held(lock), seconds=30)
    assert not any(is_running(pid) for pid in at_work)


def test_rendezvous_files_that_were_left_are_removed(tmp_path):
    log = tmp_path / "train.log"
    for name in (".train.init_1-a", ".other.init_1-a", ".train.log"):
        (tmp_path / name).touch()
    assert init_file_prefix(log) == f"{tmp_path}/.train.init_"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.init_1-a", ".train.log"]
