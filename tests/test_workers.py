"""Worker processes: they end with whoever started them, and a killed one is told as an error."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import wait_for

from espnet_adaltm.errors import UserError
from espnet_adaltm.files import is_running
from espnet_adaltm.workers import process_pool

ROOT = Path(__file__).parents[1]
PROGRAM = """
import os, sys, time
from pathlib import Path
from espnet_adaltm.workers import process_pool

def work(seconds):
    Path(f"worker.{os.getpid()}").touch()
    time.sleep(seconds)

if __name__ == "__main__":
    with process_pool(2) as pool:
        # One is at work, the other has nothing to do.
        list(pool.map(work, [0.2, 0.2]))
        list(pool.map(work, [60]))
"""


@pytest.mark.integration
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_whoever_started_them(tmp_path, number):
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    program = subprocess.Popen([sys.executable, "program.py"], cwd=tmp_path, env=environment)
    wait_for(lambda: len(list(tmp_path.glob("worker.*"))) == 2)
    workers = [int(path.suffix[1:]) for path in tmp_path.glob("worker.*")]
    assert all(map(is_running, workers))
    program.send_signal(number)
    program.wait(30)
    wait_for(lambda: not any(map(is_running, workers)), seconds=20)


def test_workers_are_prepared_and_keep_the_order():
    with process_pool(2, prepare=_prepare) as pool:
        assert list(pool.map(_prepared, range(5))) == [f"{n} prepared" for n in range(5)]


def test_a_killed_worker_is_an_error():
    with pytest.raises(UserError, match="lower --num_workers"), process_pool(2) as pool:
        list(pool.map(_killed, range(3)))


def _prepare() -> None:
    os.environ["WORKER_SAYS"] = "prepared"


def _prepared(number: int) -> str:
    return f"{number} {os.environ['WORKER_SAYS']}"


def _killed(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
