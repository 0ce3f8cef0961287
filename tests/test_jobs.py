"""Job commands: Kaldi's contract, here and through a stand-in for sbatch."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from espnet_adaltm.bin import run_job
from espnet_adaltm.errors import UserError
from espnet_adaltm.jobs import code_in_log, parse
from espnet_adaltm.slurm import read_slurm_conf, slurm_command

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_parse():
    job = parse(["--gpu", "2", "--max-jobs-run", "3", "JOB=2:5", "l.JOB", "echo", "JOB/x", "--gpu"])
    assert job.options == {"gpu": "2", "max_jobs_run": "3"}
    assert list(job.indices()) == [2, 3, 4, 5]
    assert job.log_of(4) == Path("l.4")
    assert job.command_of(4) == ["echo", "4/x", "--gpu"]


def test_options_may_follow_the_array():
    assert parse(["JOB=1:2", "--mem", "2G", "l.JOB", "true"]).options == {"mem": "2G"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpu"], "--gpu has no value"),
        (["log"], "expected"),
        (["JOB=3:1", "l.JOB", "true"], "is empty"),
        (["JOB=1:2", "log", "true"], "put JOB in it"),
    ],
)
def test_wrong_calls(words, message):
    with pytest.raises(UserError, match=message):
        parse(words)


def test_log_of_a_job():
    assert run_job.main(["local", "a/b.log", "echo", "two words"]) == 0
    lines = Path("a/b.log").read_text().splitlines()
    assert lines[0] == "# echo 'two words'"
    assert "two words" in lines
    assert lines[-1].startswith("# Ended (code 0) at ")


def test_array_with_a_failure(capfd):
    code = "import sys; print('number', sys.argv[1]); sys.exit(3 * (sys.argv[1] == '2'))"
    assert run_job.main(["local", "JOB=1:3", "l.JOB", sys.executable, "-c", code, "JOB"]) == 1
    assert [code_in_log(Path(f"l.{index}")) for index in (1, 2, 3)] == [0, 3, 0]
    error = capfd.readouterr().err
    assert "1 of 3 jobs failed: l.2" in error
    assert "  number 2" in error


def test_at_most_so_many_at_once():
    code = (
        "import os, time; open(f'r{JOB}', 'w'); n = len([f for f in os.listdir() if f[0] == 'r'])\n"
        "time.sleep(0.1); os.unlink(f'r{JOB}'); assert n <= 2, n"
    )
    words = ["--max-jobs-run", "2", "JOB=1:6", "l.JOB", sys.executable, "-c", code]
    assert run_job.main(["local", *words]) == 0


def test_program_that_does_not_exist(capfd):
    assert run_job.main(["local", "log", "/no/such/program"]) == 1
    assert code_in_log(Path("log")) == 127
    assert "No such file" in capfd.readouterr().err


def test_killed_job_has_shells_status():
    assert run_job.main(["local", "log", "bash", "-c", "kill -9 $$"]) == 1
    assert code_in_log(Path("log")) == 137


def test_output_without_newline_keeps_the_footer_on_its_own_line():
    run_job.main(["local", "log", "printf", "abc"])
    assert Path("log").read_text().splitlines()[-2] == "abc"


def test_terminated_command_ends_its_jobs():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "espnet_adaltm.bin.run_job", "local", "JOB=1:2", "l.JOB", "bash"]
    process = subprocess.Popen([*words, "-c", "echo $$ >pid.JOB; sleep 60"], env=environment)
    end = time.monotonic() + 20
    pids = [Path("pid.1"), Path("pid.2")]
    while not all(pid.exists() and pid.read_text() for pid in pids):
        assert time.monotonic() < end
        time.sleep(0.02)
    numbers = [int(pid.read_text()) for pid in pids]
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 128 + signal.SIGTERM
    for number in numbers:
        with pytest.raises(ProcessLookupError):
            os.kill(number, 0)


# ------------------------------------------------------------------------------- Slurm
SBATCH = """#!/usr/bin/env python3
import os, re, subprocess, sys
open("sbatch.args", "w").write("\\n".join(sys.argv[1:]))
print("4711", flush=True)
span = [a for a in sys.argv if a.startswith("--array=")]
first, last = map(int, re.findall(r"\\d+", span[0])[:2]) if span else (1, 1)
codes = []
for index in range(first, last + 1):
    extra = {"SLURM_ARRAY_TASK_ID": str(index)} if span else {}
    codes.append(subprocess.run(["bash", sys.argv[-1]], env={**os.environ, **extra}).returncode)
sys.exit(max(codes))
"""


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """Put a stand-in for sbatch, which runs the script at once, in PATH."""
    program = tmp_path / "bin" / "sbatch"
    program.parent.mkdir()
    program.write_text(SBATCH)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return tmp_path / "sbatch.args"


CONF = ["--config", str(ROOT / "conf" / "slurm.conf")]


def test_slurm_array(sbatch, capfd):
    words = ["--gpu", "2", "--max-jobs-run", "4", "JOB=1:3", "logs/l.JOB.log"]
    command = ["bash", "-c", "echo number JOB; [ JOB != 3 ]"]
    assert run_job.main(["slurm", *CONF, *words, *command]) == 1
    arguments = sbatch.read_text().splitlines()
    assert "--gres=gpu:2" in arguments
    assert "--array=1-3%4" in arguments
    assert "--wait" in arguments
    assert "--export=ALL" in arguments
    assert [code_in_log(Path(f"logs/l.{index}.log")) for index in (1, 2, 3)] == [0, 0, 1]
    assert Path("logs/l.1.log").read_text().startswith("# bash -c 'echo number 1; ")
    error = capfd.readouterr().err
    assert "1 of 3 jobs failed: logs/l.3.log" in error
    assert "  number 3" in error


def test_slurm_single_job(sbatch):
    assert run_job.main(["slurm", *CONF, "--num_nodes", "2", "train.log", "echo", "a b"]) == 0
    assert "a b" in Path("train.log").read_text().splitlines()
    arguments = sbatch.read_text().splitlines()
    assert "--nodes=2" in arguments
    assert "--job-name=train" in arguments


def test_refused_submission(tmp_path, monkeypatch, capfd):
    program = tmp_path / "sbatch"
    program.write_text("#!/bin/sh\nexit 7\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert run_job.main(["slurm", *CONF, "log", "true"]) == 1
    assert "sbatch refused the job with status 7" in capfd.readouterr().err


def test_slurm_conf(tmp_path, monkeypatch):
    path = tmp_path / "slurm.conf"
    path.write_text(
        "# comment\ncommand sbatch --export=PATH\noption name=* --job-name $0\ndefault gpu=0\n"
        "option gpu=0 -p cpu\noption gpu=* -p gpu --gres=gpu:$0\n"
    )
    monkeypatch.setenv("HF_HOME", "/cache")
    monkeypatch.setenv("https_proxy", "http://proxy")
    conf = read_slurm_conf(path)
    command = slurm_command(parse(["--gpu", "3", "my.log", "true"]), conf, Path("s.sh"))
    assert command[:5] == ["sbatch", "-p", "gpu", "--gres=gpu:3", "--job-name"]
    exported = (
        next(word for word in command if word.startswith("--export=")).split("=")[1].split(",")
    )
    assert {"PATH", "HF_HOME", "https_proxy"} <= set(exported)
    assert "-p cpu" in " ".join(slurm_command(parse(["my.log", "true"]), conf, Path("s.sh")))
    with pytest.raises(UserError, match="no line `option mem="):
        slurm_command(parse(["--mem", "2G", "my.log", "true"]), conf, Path("s.sh"))


def test_slurm_conf_names_a_bad_line(tmp_path):
    path = tmp_path / "slurm.conf"
    path.write_text("command sbatch\nnonsense here\n")
    with pytest.raises(UserError, match="slurm.conf:2"):
        read_slurm_conf(path)
