"""Job commands: Kaldi's contract, here and through a stand-in for sbatch."""

import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest

from espnet_adaltm.bin import run_job
from espnet_adaltm.errors import UserError
from espnet_adaltm.jobs import code_in_log, log_end, log_tail, parse
from espnet_adaltm.live import status
from espnet_adaltm.slurm import read_slurm_conf, run_slurm, slurm_command

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
    while any(Path(f"/proc/{number}").exists() for number in numbers):
        assert time.monotonic() < end + 20  # on a busy machine they are reaped a little later
        time.sleep(0.02)


def test_nothing_is_started_for_a_runner_that_is_gone():
    gone = subprocess.Popen(["true"])
    gone.wait()
    here = os.uname().nodename
    for runner, code in ((f"{here} {gone.pid}", 143), (f"{here} {os.getpid()}", 0), ("far 1", 0)):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "ADALTM_RUNNER": runner}
        words = [sys.executable, "-m", "espnet_adaltm.bin.run_job", "local", "log", "touch", "made"]
        assert subprocess.run(words, env=environment).returncode == code, runner
        assert Path("made").exists() == (code == 0)


# ------------------------------------------------------------------------- logs and disks
GIGABYTE = 1 << 30


def huge_log(end: str) -> Path:
    """A log of a gigabyte (mostly a hole, which takes no space)."""
    with open("huge.log", "wb") as handle:
        handle.truncate(GIGABYTE)
        handle.seek(0, os.SEEK_END)
        handle.write(end.encode())
    return Path("huge.log")


def cheaply(function, *arguments):
    """Call it, with less than a megabyte of memory."""
    tracemalloc.start()
    try:
        result = function(*arguments)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    return result


def test_of_a_log_of_a_gigabyte_only_the_end_is_read():
    lines = [f"line {number}" for number in range(100)]
    log = huge_log("\n" + "\n".join(lines) + "\n# Ended (code 7) at noon\n")
    assert cheaply(log_tail, log, 3).splitlines() == [*lines[-2:], "# Ended (code 7) at noon"]
    assert cheaply(code_in_log, log) == 7
    assert cheaply(status, cheaply(log_end, log)) == ""


def test_a_line_of_a_gigabyte_is_cut():
    log = huge_log("the end")
    shown = cheaply(log_tail, log)
    assert len(shown) < 5000
    assert shown.endswith("the end")


def test_end_of_a_log():
    Path("log").write_bytes(b"one\ntwo\nthree\xff\n")
    assert log_end(Path("log")) == "one\ntwo\nthree\ufffd\n"
    assert log_end(Path("log"), 10) == "three\ufffd\n"
    assert log_end(Path("log"), 3) == "e\ufffd\n"
    assert log_tail(Path("log"), 1) == "three\ufffd"
    assert log_tail(Path("none")).startswith("(no log: ")
    assert code_in_log(Path("none")) is None


def test_failure_with_a_log_of_a_gigabyte(capfd):
    code = f"import sys, os; os.truncate(1, {GIGABYTE}); print('\\nlast words'); sys.exit(3)"
    assert cheaply(run_job.main, ["local", "l", sys.executable, "-c", code]) == 1
    assert Path("l").stat().st_size > GIGABYTE
    assert code_in_log(Path("l")) == 3
    assert "  last words" in capfd.readouterr().err


def test_a_log_that_cannot_be_written_is_one_clear_error(capfd):
    assert run_job.main(["local", "/dev/full", "touch", "made"]) == 1
    error = capfd.readouterr().err
    assert error == "error: cannot write the log /dev/full: No space left on device\n"
    assert not Path("made").exists()


@pytest.mark.parametrize("code", [0, 3])
def test_a_disk_that_fills_up_does_not_hide_how_a_job_ended(code, capfd):
    limited = (
        "import resource, sys; from espnet_adaltm.bin import run_job\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))\n"
        "sys.exit(run_job.main(sys.argv[1:]))"
    )
    job = f"import os, sys; os.write(1, b'x' * 2000); sys.exit({code})"
    words = [sys.executable, "-c", limited, "local", "l", sys.executable, "-c", job]
    done = subprocess.run(words, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == (code != 0)
    assert Path("l").stat().st_size == 600
    assert ("the job failed: l ends with" in capfd.readouterr().err) == (code != 0)


# ------------------------------------------------------------------------------- Slurm
SBATCH = """#!/usr/bin/env python3
import os, re, subprocess, sys
open("sbatch.args", "a").write("\\n".join(sys.argv[1:]) + "\\n")
print("4711", flush=True)
span = [a for a in sys.argv if a.startswith("--array=")]
indices, codes = [1], []
if span:
    whole = re.match(r"--array=(\\d+)-(\\d+)", span[0])
    some = re.findall(r"\\d+", span[0].partition("%")[0])
    indices = range(int(whole[1]), int(whole[2]) + 1) if whole else map(int, some)
for index in indices:
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
    assert "--signal=B:USR1@120" in arguments
    assert [code_in_log(Path(f"logs/l.{index}.log")) for index in (1, 2, 3)] == [0, 0, 1]
    assert Path("logs/l.1.log").read_text().startswith("# bash -c 'echo number 1; ")
    error = capfd.readouterr().err
    assert "1 of 3 jobs failed: logs/l.3.log" in error
    assert "  number 3" in error


# Job N has saved, to be started again, until it was started N times.
SAVES = "echo x >>n.JOB; [ $(grep -c x n.JOB) -ge JOB ] || exit 75"


def test_slurm_submits_again_what_saved(sbatch, capfd):
    words = ["--max-jobs-run", "2", "--warn_seconds", "0", "JOB=1:3", "l.JOB.log"]
    assert run_job.main(["slurm", *CONF, *words, "bash", "-c", SAVES]) == 0
    arrays = [word for word in sbatch.read_text().splitlines() if word.startswith("--array")]
    assert arrays == ["--array=1-3%2", "--array=2,3%2", "--array=3%2"]
    assert "--signal" not in sbatch.read_text()
    assert [len(Path(f"n.{index}").read_text().split()) for index in (1, 2, 3)] == [1, 2, 3]
    assert [code_in_log(Path(f"l.{index}.log")) for index in (1, 2, 3)] == [0, 0, 0]
    assert code_in_log(Path("l.2.job4711.log")) == 75
    assert not Path("l.1.job4711.log").exists()
    assert "submitted again (2 of at most 100)" in capfd.readouterr().err


def test_slurm_gives_up_after_so_many_times(sbatch, capfd):
    words = ["--max_resubmits", "1", "JOB=3:3", "l.JOB.log", "bash", "-c", SAVES]
    assert run_job.main(["slurm", *CONF, *words]) == 75
    assert len(Path("n.3").read_text().split()) == 2
    with pytest.raises(UserError, match="--max_resubmits is a whole number, not 'x'"):
        run_slurm(parse([*CONF, "--max_resubmits", "x", "log", "true"]))
    # What failed is not tried again, and counts more.
    script = f"[ JOB != 1 ] || exit 1; {SAVES}"
    assert run_job.main(["slurm", *CONF, "JOB=1:2", "f.JOB", "bash", "-c", script]) == 1
    assert [code_in_log(Path(f"f.{index}")) for index in (1, 2)] == [1, 0]


def test_slurm_job_that_ended_without_a_word(sbatch, tmp_path, monkeypatch, capfd):
    (tmp_path / "bin/sbatch").write_text("#!/bin/sh\necho 4711\nexit 1\n")
    program = tmp_path / "bin/scontrol"
    program.write_text(
        f"#!/bin/sh\nprintf x >>{tmp_path}/calls\n"
        f"if [ $(wc -c <{tmp_path}/calls) -ge 3 ]; then s=TIMEOUT; else s=RUNNING; fi\n"
        'echo "JobId=4711 JobName=x JobState=$s Reason=None"\n'
    )
    program.chmod(0o755)
    monkeypatch.setattr("espnet_adaltm.slurm._POLL_SECONDS", 0.01)
    assert run_job.main(["slurm", *CONF, "log", "true"]) == 1
    error = capfd.readouterr().err
    assert "Slurm job 4711: TIMEOUT" in error
    assert "no log" in error


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
