"""A warning that time is up goes from the outermost command to whatever hears it; 75 comes back."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from espnet_adaltm import stopping
from espnet_adaltm.jobs import code_in_log, outcome

ROOT = Path(__file__).parents[1]
TEMPLATE = ROOT / "egs" / "TEMPLATE" / "adaltm1"
# Ends well when `go` is there; before that it waits, and if it hears SIGUSR1, saves and says so.
WORK = """
import os, signal, sys, time
folder, hears = sys.argv[1:]
def save(*_):
    open(f"{folder}/saved", "w").close()
    sys.exit(75)
if hears == "hears":
    signal.signal(signal.SIGUSR1, save)
open(f"{folder}/ready", "w").close()
while not os.path.exists(f"{folder}/go"):
    time.sleep(0.02)
open(f"{folder}/out", "w").write("done")
"""
RECIPE = r"""
set -euo pipefail
. utils/parse_options.sh
. utils/stages.sh
option out "" ""
option work "" ""
option force false ""
option dry_run false ""
parse_options "$@"
train_cmd=utils/run.pl
stages=("one: works" "two: needs it")
stage_one() { item make "${out}/1" --outputs "${out}/out" -- ${work}; }
stage_two() { item make "${out}/2" --inputs "${out}/out@one" --outputs "${out}/end" \
    -- cp "${out}/out" "${out}/end"; }
. ../../../tools/activate_python.sh
export PYTHONPATH=../../..
run_stages 1 2
"""


@pytest.fixture(autouse=True)
def work(tmp_path):
    (tmp_path / "work.py").write_text(WORK)
    yield
    stopping.forget()


def words(folder, hears):
    return [sys.executable, str(folder / "work.py"), str(folder), hears]


def recipe(folder, hears):
    given = ["--out", str(folder), "--work", " ".join(words(folder, hears))]
    return subprocess.Popen(
        ["bash", "-c", RECIPE, "recipe", *given], cwd=TEMPLATE, stdout=subprocess.DEVNULL
    )


def job(folder, hears):
    command = ["-m", "espnet_adaltm.bin.run_job", "local", str(folder / "log")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, *command, *words(folder, hears)], env=environment)


def warned(process, folder):
    """Warn a program once its command is at work."""
    end = time.monotonic() + 60
    while not (folder / "ready").exists():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(stopping.WARNING)


def test_a_job_passes_the_warning_on_and_tells_what_comes_back(tmp_path):
    process = job(tmp_path, "hears")
    warned(process, tmp_path)
    assert process.wait(60) == stopping.CONTINUE == 75
    assert (tmp_path / "saved").exists()
    assert code_in_log(tmp_path / "log") == 75


def test_a_command_that_does_not_hear_goes_on(tmp_path):
    process = job(tmp_path, "deaf")
    warned(process, tmp_path)
    time.sleep(0.3)
    assert process.poll() is None
    (tmp_path / "go").touch()
    assert process.wait(60) == 0
    assert (tmp_path / "out").read_text() == "done"


@pytest.mark.parametrize("hears", ["hears", "deaf"])
def test_a_run_stops_where_it_is_and_goes_on_by_the_same_command(tmp_path, hears):
    process = recipe(tmp_path, hears)
    warned(process, tmp_path)
    if hears == "deaf":
        time.sleep(0.3)
        assert process.poll() is None
        (tmp_path / "go").touch()
    assert process.wait(60) == 75
    assert (tmp_path / "saved").exists() == (hears == "hears")
    assert (tmp_path / "out").exists() == (hears == "deaf")
    assert not (tmp_path / "end").exists()  # nothing new began
    (tmp_path / "go").touch()
    assert recipe(tmp_path, hears).wait(60) == 0
    assert (tmp_path / "end").read_text() == "done"


def test_status_of_several_jobs():
    assert outcome({1: 0, 2: 0}) == 0
    assert outcome({1: 0, 2: 75}) == 75
    assert outcome({1: 75, 2: 1}) == outcome({1: 143}) == outcome({1: 137, 2: 0}) == 1


def test_status_of_a_signal():
    assert stopping.status_of(signal.SIGUSR1) == stopping.Suspended(signal.SIGUSR1).code == 75
    assert stopping.status_of(signal.SIGTERM) == 143


def test_sigterm_is_the_last_word():
    with stopping.hearing(signal.SIGTERM, stopping.WARNING):
        assert stopping.asked() == 0
        os.kill(os.getpid(), stopping.WARNING)
        assert stopping.asked() == stopping.WARNING
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), stopping.WARNING)
        assert stopping.asked() == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_only_who_hears_a_warning_gets_it():
    deaf = subprocess.Popen(["sleep", "30"])
    code = (
        "import signal, sys; signal.signal(signal.SIGUSR1, lambda *_: sys.exit(7)); print('ready', "
        "flush=True); signal.pause()"
    )
    hearing = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    code = (  # as Slurm's srun does it: blocked, and a thread waits for it
        "import os, signal, threading\nsignal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})\n"
        "threading.Thread(target=lambda: os._exit(signal.sigwait({signal.SIGUSR1}) - 2)).start()\n"
        "print('ready', flush=True)"
    )
    waiting = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        for process in (hearing, waiting):
            assert process.stdout.readline() == b"ready\n"
        for process in (deaf, hearing, waiting):
            stopping.warn(process.pid)
        assert hearing.wait(20) == 7
        assert waiting.wait(20) == 8
        time.sleep(0.1)
        assert deaf.poll() is None
        assert not stopping.hears(hearing.pid, stopping.WARNING)  # it is gone
    finally:
        for process in (deaf, hearing, waiting):
            process.kill()
            process.wait()
