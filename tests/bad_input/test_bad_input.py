"""Every program refuses bad input with one line that names it, and leaves nothing behind."""

import importlib
import io
import re
import subprocess
import sys
from pathlib import Path

import bad_merging
import bad_rows_data
import bad_rows_models
import pytest
import torch
from bad_row import CONSOLE, SHELL, Row
from bad_world import build

import espnet_adaltm.bin

ROOT = Path(__file__).parents[2]
ROWS = [*bad_rows_data.ROWS, *bad_rows_models.ROWS, *bad_merging.ROWS]
NO_PROGRAMS = {"__init__", "cli", "main"}  # main is `CONSOLE`
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (INFO|WARNING) ")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    torch.set_num_threads(1)
    root = build(tmp_path_factory.mktemp("world"))
    setup = ROOT / "egs/TEMPLATE/adaltm1/setup.sh"
    recipe = root / "egs/corpus/adaltm1"
    subprocess.run([setup, recipe], check=True, capture_output=True)
    (recipe / "exp").mkdir()
    return root


def contents(root: Path) -> dict[str, tuple[int, int]]:
    """Every file with its size and time, every folder, every link; but for who runs a recipe."""
    found = {}
    for path in root.rglob("*"):
        status = path.lstat()
        time = 0 if path.is_dir() and not path.is_symlink() else status.st_mtime_ns
        if ".runs" in path.parts:
            continue
        found[str(path.relative_to(root))] = (0 if path.is_dir() else status.st_size, time)
    return found


def started(row: Row, root: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run a row: exit status and standard error."""
    if row.entry == SHELL:
        done = subprocess.run(
            ["./run.sh", *row.words],
            cwd=root / "egs/corpus/adaltm1",
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stderr
    module = "main" if row.entry == CONSOLE else row.entry
    try:
        code = importlib.import_module(f"espnet_adaltm.bin.{module}").main(list(row.words))
    except SystemExit as end:
        code = end.code
    return code or 0, capsys.readouterr().err


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_one_line_names_the_culprit_and_nothing_is_left(row, world, monkeypatch, capsys):
    monkeypatch.chdir(world)
    monkeypatch.delenv("ADALTM_MODEL", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    before = contents(world)
    code, said = started(row, world, capsys)
    lines = [line for line in said.splitlines() if not LOG_LINE.match(line)]
    errors = [line for line in lines if line.startswith("error: ")]
    assert isinstance(code, int), said
    assert code != 0, said
    assert "Traceback" not in said
    assert len(errors) == 1, said
    # A list of what is broken goes on in lines of its own, set in.
    message = "\n".join(lines[lines.index(errors[0]) :])
    assert all(line.startswith("  ") for line in message.split("\n")[1:]), said
    for culprit in row.culprits:
        assert culprit in message
    assert all(len(line) < 1200 for line in lines), "a line that nobody reads"
    assert contents(world) == before


def test_the_table_is_long_and_covers_every_program():
    modules = {path.stem for path in Path(espnet_adaltm.bin.__file__).parent.glob("*.py")}
    assert {row.entry for row in ROWS} >= modules - NO_PROGRAMS | {CONSOLE, SHELL}
    assert len(set(map(str, ROWS))) == len(ROWS) >= 60
