"""The program that makes items: its jobs and logs, batches, and what a kill leaves."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_for

from espnet_adaltm.bin import run_item
from espnet_adaltm.files import is_running
from espnet_adaltm.locks import holders, is_held

ROOT = Path(__file__).parents[2]
LOCK = Path("w/.stamps/t.lock")
# What a job may be: a script, which waits for a program that takes its time to end.
SCRIPT = """(trap 'sleep 1; touch ended; exit' TERM; touch ready; while true; do sleep 0.1; done) &
wait"""


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    """Work in an empty folder with one input."""
    monkeypatch.chdir(tmp_path)
    Path("in.txt").write_text("one")


def test_logs_of_earlier_runs_are_kept():
    job = Path("job")
    job.write_text('#!/bin/sh\nlog=$1; shift; "$@" >$log\n')
    job.chmod(0o755)
    words = ["--name", "n", "--workdir", "w", "--job", str(job.resolve()), "--log", "w/train.log"]
    words += ["--outputs", "w/out", "--", "bash", "-c"]
    code = "echo x >>w/out; wc -l <w/out; [ $(wc -l <w/out) -ge 3 ]"
    assert [run_item.main([*words, code]) for _ in range(3)] == [1, 1, 0]
    logs = [Path(f"w/train{part}.log").read_text().strip() for part in (".2", ".1", "")]
    assert logs == ["1", "2", "3"]


def test_place_of_the_log_in_the_job_command():
    words = ["--name", "n", "--workdir", "w", "--log", "w/l", "--job", "launch --log {log} --"]
    task = run_item.parse_item([*words, "--", "python", "x.py"])
    assert task.words() == ["launch", "--log", "w/l", "--", "python", "x.py"]


def batch(*items: list[str]) -> str:
    """Write a batch file as the shell does."""
    fields = [field for item in items for field in (str(len(item)), *item)]
    Path("batch").write_bytes("".join(f"{field}\0" for field in fields).encode())
    return "batch"


def item_words(name: str, code: str) -> list[str]:
    return ["--name", name, "--workdir", name, "--outputs", f"{name}/out", "--",
            sys.executable, "-c", code]  # fmt: skip


def test_batch_stops_after_a_failure(capsys):
    make = "open('{0}/out', 'w').write('x')"
    path = batch(
        item_words("a", make.format("a")),
        item_words("b", "raise SystemExit(4)"),
        item_words("c", make.format("c")),
    )
    assert run_item.main(["--batch", path]) == 1
    assert Path("a/out").exists()
    assert not Path("c/out").exists()
    assert "b: b: failed with status 4" in capsys.readouterr().err


def test_batch_in_parallel():
    wait = (
        "import os, time\nopen('{0}/here', 'w')\n"
        "while not os.path.exists('{1}/here'): time.sleep(0.01)\nopen('{0}/out', 'w').write('x')"
    )
    path = batch(item_words("a", wait.format("a", "b")), item_words("b", wait.format("b", "a")))
    assert run_item.main(["--batch", path, "--jobs", "2"]) == 0


def chain_words(name: str, needs: tuple[str, ...], code: str) -> list[str]:
    """An item that says when it begins and ends."""
    inputs = [f"{other}/out@stage 9 (x)" for other in needs]
    told = (
        f"import time\nlog = lambda what: open('log', 'a').write(what + '\\n')\nlog('+{name}')\n"
        f"{code}\nopen('{name}/out', 'w').write('x')\nlog('-{name}')"
    )
    words = item_words(name, told)
    return [*words[:4], "--inputs", "in.txt@stage 1", *inputs, *words[4:]]


def test_an_item_waits_for_those_that_make_its_inputs():
    """And those behind it that need nothing don't wait with it."""
    until_c = "import os\nwhile not os.path.exists('c/out'): time.sleep(0.01)"
    path = batch(
        chain_words("a", (), until_c),
        chain_words("b", ("a",), "pass"),
        chain_words("c", (), "pass"),
        chain_words("d", ("b", "c"), "pass"),
    )
    assert run_item.main(["--batch", path, "--jobs", "2"]) == 0
    told = Path("log").read_text().split()
    for earlier, later in (("-a", "+b"), ("-c", "-a"), ("-b", "+d")):
        assert told.index(earlier) < told.index(later)
    assert len(told) == 8


def test_only_earlier_items_are_waited_for():
    words = [chain_words(name, needs, "") for name, needs in (("a", ("b",)), ("b", ("a", "b")))]
    tasks = [run_item.parse_item(word) for word in words]
    assert run_item.makers(tasks) == [set(), {0}]


def test_what_waits_for_a_failure_does_not_start(capsys):
    path = batch(
        chain_words("a", (), "raise SystemExit(4)"),
        chain_words("b", ("a",), "pass"),
        chain_words("c", ("b",), "pass"),
    )
    assert run_item.main(["--batch", path, "--jobs", "2"]) == 1
    assert "a: a: failed with status 4" in capsys.readouterr().err
    assert Path("log").read_text().split() == ["+a"]


def test_batch_list_runs_nothing(capsys):
    path = batch(item_words("a", "open('a/out', 'w').write('x')"))
    assert run_item.main(["--batch", path, "--list", "true"]) == 0
    assert "run (first time)" in capsys.readouterr().out
    assert not Path("a").exists()


def start(*words: str, **pipes: Any) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "espnet_adaltm.bin.run_item", *words], env=environment, **pipes
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_killed_run_ends_its_children_and_goes_on(number):
    Path("w").mkdir()
    code = (
        "import os, sys, time\n"
        "if os.path.exists('w/go'): open('w/out', 'w').write('x'); sys.exit()\n"
        "open('w/pid.tmp', 'w').write(str(os.getpid())); os.rename('w/pid.tmp', 'w/pid')\n"
        "time.sleep(60)"
    )
    words = item_words("w", code)
    process = start(*words)
    wait_for(Path("w/pid").exists, seconds=20)
    pid = int(Path("w/pid").read_text())
    process.send_signal(number)
    assert process.wait(20) == 128 + number
    wait_for(lambda: not is_running(pid), seconds=20)
    Path("w/go").touch()
    # The same item again: the folder, with what the killed run left, is still there.
    assert start(*words).wait(20) == 0
    assert Path("w/pid").exists()
    assert Path("w/.stamps/w.json").exists()


def test_nothing_heavy_is_imported():
    code = "import sys, espnet_adaltm.bin.run_item; print([m for m in sys.modules if m in {heavy}])"
    heavy = {"numpy", "torch", "yaml", "espnet2", "transformers"}
    command = [sys.executable, "-c", code.format(heavy=heavy)]
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout == "[]\n"


@pytest.mark.integration
def test_what_a_killed_job_command_had_started_ends_before_the_item_does():
    job = f"{sys.executable} -m espnet_adaltm.bin.run_job local"
    item = ["--name", "t", "--workdir", "w", "--job", job, "--log", "w/t.log"]
    process = start(*item, "--", "bash", "-c", SCRIPT, stderr=subprocess.PIPE, text=True)
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
