"""An item whose job command is killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import wait_for

from espnet_adaltm.locks import holders, is_held

ROOT = Path(__file__).parents[2]
LOCK = Path("w/.stamps/t.lock")
# What a job may be: a script, which waits for a program that takes its time to end.
SCRIPT = """(trap 'sleep 1; touch ended; exit' TERM; touch ready; while true; do sleep 0.1; done) &
wait"""


@pytest.mark.integration
def test_what_a_killed_job_command_had_started_ends_before_the_item_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job = f"{sys.executable} -m espnet_adaltm.bin.run_job local"
    item = ["--name", "t", "--workdir", "w", "--job", job, "--log", "w/t.log"]
    words = [sys.executable, "-m", "espnet_adaltm.bin.run_item", *item, "--", "bash", "-c", SCRIPT]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)
    wait_for(Path("ready").exists)
    [command] = [pid for pid in holders(LOCK) if b"run_job" in _words(pid)]
    os.kill(command, signal.SIGKILL)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "status 137 (SIGKILL" in error
    assert Path("ended").exists()  # it was asked to, and waited for
    assert not is_held(LOCK)
    assert holders(LOCK) == []


def _words(pid: int) -> bytes:
    words = Path(f"/proc/{pid}/cmdline").read_bytes()
    return b"" if b"run_item" in words else words
