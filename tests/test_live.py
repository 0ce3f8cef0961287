import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios
import time
import tracemalloc
from pathlib import Path

import pytest

from espnet_adaltm import live
from espnet_adaltm.live import Follower, StatusLine, status

HEAD = "[vm] 2026-11-21 03:20:43 (abs_task:1886) INFO: [train] mini-batch sizes summary: N-batch=94"
FIRST = "[vm] 2026-11-21 03:20:43,125 (trainer:275) INFO: 1/10 epoch started"
THIRD = (
    "[vm] 2026-11-21 03:59:10,852 (trainer:283) INFO: 3/10 epoch started. "
    "Estimated time to finish: 1 minute and 59.7 seconds"
)
BATCH = "[vm] 2026-11-21 03:59:12,940 (trainer:811) INFO: 3epoch:train:21-25batch: iter_time=0.003"
UNITS = "2026-11-21 03:17:33 INFO units of dump/ci/train: 120/5200 utt, 3 s, 40 s left"


@pytest.mark.parametrize(
    ("lines", "shown"),
    [
        ([], ""),
        (["# Running on vm", "nothing of interest"], ""),
        ([HEAD], ""),
        ([HEAD, FIRST], "1/10 epoch"),
        ([HEAD, FIRST, THIRD], "3/10 epoch, 1 minute and 59 seconds left"),
        ([HEAD, THIRD, BATCH], "3/10 epoch, 1 minute and 59 seconds left | 25/94 batch"),
        ([THIRD, BATCH], "3/10 epoch, 1 minute and 59 seconds left | 25 batch"),
        ([BATCH, FIRST], "1/10 epoch"),
        (["3/10epoch started. Estimated time to finish: 4 minutes"], "3/10 epoch, 4 minutes left"),
        ([UNITS], "units of dump/ci/train: 120/5200 utt, 40 s left"),
        (["x INFO: speaking: 7/? utt, 3 s"], "speaking: 7/? utt"),
        ([THIRD, BATCH, UNITS], "units of dump/ci/train: 120/5200 utt, 40 s left"),
    ],
)  # fmt: skip
def test_status_of_a_log(lines, shown):
    assert status("\n".join(lines)) == shown


def test_follower_reads_what_is_added(tmp_path):
    log = tmp_path / "train.log"
    follower = Follower(log)
    assert follower.poll().text() == ""
    log.write_text(f"{HEAD}\n{FIRST}\n{THIRD[:60]}")  # a line that is still being written
    assert follower.poll().text() == "1/10 epoch"
    with open(log, "a") as handle:
        handle.write(f"{THIRD[60:]}\n{BATCH}\n")
    assert follower.poll().text(brief=True) == "3/10 epoch"
    assert follower.poll().text().endswith("| 25/94 batch")
    log.write_text(f"{FIRST}\n")  # begun anew
    assert follower.poll().text() == "1/10 epoch"


def test_follower_reads_only_the_end_of_a_long_log(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "_MOST_BYTES", 200)
    log = tmp_path / "train.log"
    log.write_text(f"{FIRST}\n" + "x" * 10_000 + f"\n{UNITS}\n")
    follower = Follower(log)
    assert follower.poll().text() == "units of dump/ci/train: 120/5200 utt, 40 s left"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_several_commands_share_the_line(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(f"{FIRST if name == 'a' else THIRD}\n")
    with StatusLine(18, Terminal()) as line:
        line.done = 5
        assert line.text() == ""
        with line.watch("8/12 merge", "m1", tmp_path / "a"):
            assert line.text() == "[8/12 merge] 5 of 18 done | 1/10 epoch"
            with line.watch("8/12 merge", "m2", tmp_path / "b"):
                expected = "[8/12 merge] 5 of 18 done | m1 1/10 epoch | m2 3/10 epoch"
                assert line.text() == expected
        with line.watch("8/12 merge", "m1", tmp_path / "none"):
            assert line.text() == "[8/12 merge] 5 of 18 done | 0:00"


def test_a_log_of_a_gigabyte_is_not_loaded(tmp_path):
    log = tmp_path / "log"
    with open(log, "wb") as handle:
        handle.truncate(1 << 30)  # a hole, which takes no space
        handle.seek(0, os.SEEK_END)
        handle.write(f"\n{THIRD}\n".encode())
    follower = Follower(log)
    tracemalloc.start()
    try:
        assert follower.poll().position == "3/10 epoch"
        with open(log, "ab") as handle:
            handle.truncate(2 << 30)
            handle.write(f"\n{BATCH}\n".encode())
        assert follower.poll().batch == "25 batch"
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_nothing_is_written_without_a_terminal(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "PERIOD_SECONDS", 0.01)
    stream = io.StringIO()
    (tmp_path / "log").write_text(f"{FIRST}\n")
    with StatusLine(1, stream) as line, line.watch("5/12 x", "m", tmp_path / "log"):
        time.sleep(0.1)
    assert stream.getvalue() == ""


SLEEPER = f"""
import sys, time
open(sys.argv[1], "w").write({(THIRD + chr(10) + BATCH + chr(10))!r})
time.sleep(1)
open("w/out", "w").write("x")
"""
PROGRAM = """
import sys
from espnet_adaltm import live
from espnet_adaltm.bin import run_item
live.PERIOD_SECONDS = 0.05
sys.exit(run_item.main(sys.argv[1:]))
"""


def in_terminal(command: list[str], cwd: Path, columns: int) -> str:
    """What a command writes into a terminal of that width."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    path = str(Path(live.__file__).parents[1])
    process = subprocess.Popen(
        command, cwd=cwd, stdout=theirs, stderr=theirs, env={**os.environ, "PYTHONPATH": path}
    )
    os.close(theirs)
    parts = []
    try:
        while part := os.read(ours, 4096):
            parts.append(part)
    except OSError:  # Linux says so at the end of a terminal
        pass
    os.close(ours)
    assert process.wait(30) == 0
    return b"".join(parts).decode()


def screen(written: str) -> list[str]:
    """Lines that are left of what was written, with carriage returns applied."""
    lines = []
    for line in written.replace("\r\n", "\n").split("\n"):
        cells: list[str] = []
        for part in line.split("\r"):
            cells[: len(part)] = part
        lines.append("".join(cells).rstrip())
    return lines


@pytest.mark.parametrize("columns", [100, 40])
def test_line_appears_in_a_terminal_and_goes(tmp_path, columns):
    words = ["--name", "train", "--workdir", "w", "--stage", "5/12 asr_expert"]
    # The job command of this test only passes the log on.
    (tmp_path / "job").write_text('#!/bin/sh\nlog=$1; shift; exec "$@" "$log"\n')
    (tmp_path / "job").chmod(0o755)
    words += ["--outputs", "w/out", "--log", "w/train.log", "--job", str(tmp_path / "job")]
    command = [sys.executable, "-c", PROGRAM, *words, "--", sys.executable, "-c", SLEEPER]
    written = in_terminal(command, tmp_path, columns)
    full = "[5/12 asr_expert] 3/10 epoch, 1 minute and 59 seconds left | 25 batch"
    shown = full if columns == 100 else f"{full[:36]}..."
    assert f"\r{shown}\r" in written
    assert max(map(len, written.replace("\n", "\r").split("\r"))) < max(columns, 60)
    left = screen(written)
    assert left[0] == "[5/12 asr_expert] w: train ..."
    assert left[1].startswith("[5/12 asr_expert] w: train: done in")
    assert left[2:] == [""]
