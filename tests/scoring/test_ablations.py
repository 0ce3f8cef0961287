"""Ablations: their configuration, and the program on a recipe that takes no time."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ablation_common import CONFIG, run

from espnet_adaltm.bin import ablations as program
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import read_json, write_json
from espnet_adaltm.scoring import ablations as abl

ROOT = Path(__file__).parents[2]


# ------------------------------------------------------------------------------ configuration
def test_configuration(recipe):
    config = abl.load_ablations("ablations.yaml")
    assert [point.key for point in config.points] == [
        "rate/0.01",
        "rate/0.1",
        "size/small",
        "size/large",
    ]
    slow, fast, small, large = config.points
    assert (slow.rows, fast.row_names, small.rows) == (("adaltm",), ("fast",), ("adaltm", "global"))
    assert large.options == {"score_args": "--resamples 400", "note": "", "n_tokens": "60"}
    assert small.options == {**large.options, "ser_args": "--lr 1 --x 2", "force": "false"}
    rate, size = config.axes
    assert (rate.title, size.title, size.label) == ("Learning rate", "size", "size")
    assert [rate.place(fast), size.place(large)] == [0.1, 1.0]


def test_command_of_a_point(recipe):
    fast = abl.load_ablations("ablations.yaml").points[1]
    command = abl.point_command(["./run.sh"], ["ser_only", "fast"], fast, Path("exp/rate/0.1"))
    assert shlex.join(command) == (
        "./run.sh --score_args '--resamples 400' --note '' --merges 'ser_only fast rows/fast.yaml' "
        "--compare fast:ser_only --results_dir exp/rate/0.1 --stop_stage score"
    )


def test_commands_that_compute_the_same():
    command = ["./run.sh", "--ngpu", "1", "--seeds", "1 2", "--stage=merge"]
    assert abl.same_command(command, ["./run.sh", "--merge_jobs", "4", "--seeds", "1 2"])
    assert not abl.same_command(command, ["./run.sh", "--seeds", "1 3"])
    here, there = ("./run.sh", "--nemo_root", "/here"), ("./run.sh", "--nemo_root=/there")
    assert abl.same_command(here, there)
    assert not abl.same_command(here, [*there, "--seeds", "1 3"])


@pytest.mark.parametrize(
    ("axes", "points", "chosen"),
    [
        ([], [], ["rate/0.01", "rate/0.1", "size/small", "size/large"]),
        (["size"], [], ["size/small", "size/large"]),
        ([], ["size/large", "rate/0.01"], ["rate/0.01", "size/large"]),
        (["size"], ["rate/0.1"], ["rate/0.1", "size/small", "size/large"]),
    ],
)
def test_selection(recipe, axes, points, chosen):
    config = abl.load_ablations("ablations.yaml")
    assert [point.key for point in config.select(axes, points)] == chosen


def test_unknown_selection_is_refused(recipe):
    config = abl.load_ablations("ablations.yaml")
    with pytest.raises(UserError, match="--axes: there is no 'sise'.*did you mean 'size'"):
        config.select(["sise"], [])
    with pytest.raises(UserError, match="--points: there is no '0.1'.* there are rate/0.01"):
        config.select([], ["0.1"])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("axes:", "axis:", "unknown key 'axis'.*did you mean 'axes'"),
        ("about:", "abut:", "rate: unknown key 'abut'"),
        ("about: Of lambda.", "about: 3", "rate: about must be text, found 3"),
        ("about: Of lambda.", "about: [Of, lambda]", "rate: about must be text, found .'Of'"),
        ("label: rate", "label: 0.1", "rate: label must be text, found 0.1"),
        ("0.1: {rows:", "0.1: {row:", "rate/0.1: unknown key 'row'"),
        ("scale: log", "scale: cubic", "rate: scale 'cubic' is unknown: use names, linear, log"),
        ("0.01: {}", "0: {}", "rate/0 is no number for the scale log"),
        ("0.01: {}", "slow: {}", "rate/slow is no number"),
        ("0.01: {}", "a/b: {}", "point 'a/b' is no name for a folder"),
        ("rows/fast.yaml", "rows/past.yaml", "the row rows/past.yaml does not exist"),
        ("rows: [rows/fast.yaml]", "rows: [fast, x]", "rate/0.1 has 2 rows"),
        ("rows: [rows/fast.yaml]", "rows: adaltm", "rate/0.1: rows must be a list"),
        ("rows: [rows/fast.yaml]", "rows: []", "rate/0.1 has no rows"),
        ("static]", "fast]", "the rows fast and rows/fast.yaml have one name"),
        ("n_tokens: 60", "merges: base", "size: the option merges is given by the program"),
        ("n_tokens: 60", "n_tokens: [60]", "size: the option n_tokens takes text"),
        ("large: {}", "small: {}\n", "key 'small' is given twice"),
    ],
)
def test_mistakes_in_a_configuration(recipe, old, new, message):
    assert old in CONFIG
    Path("ablations.yaml").write_text(CONFIG.replace(old, new))
    with pytest.raises(UserError, match=rf"ablations.yaml:(\d+:)? .*{message}"):
        abl.load_ablations("ablations.yaml")


@pytest.mark.parametrize("key", ["title", "about", "label"])
def test_empty_texts_are_as_good_as_none(recipe, key):
    text = "".join(line for line in CONFIG.splitlines(True) if f"    {key}: " not in line)
    Path("ablations.yaml").write_text(text)
    without = abl.load_ablations("ablations.yaml")
    Path("ablations.yaml").write_text(text.replace("  rate:\n", f"  rate:\n    {key}:\n"))
    assert abl.load_ablations("ablations.yaml") == without


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("nonsense: 1", "options: unknown key 'nonsense'"),
        ("granularity: blok", "granularity 'blok' is unknown"),
        ("name: slow", "name is 'slow', but a row is called after its file"),
        ("learn_on: 'held_out'", "write 'learn_on: held_out' on a line of its own"),
    ],
)
def test_rows_are_read_before_anything_is_run(recipe, capsys, row, message):
    Path("rows/fast.yaml").write_text(row)
    assert run() == 1
    captured = capsys.readouterr()
    assert f"ablations.yaml: rows/fast.yaml: {message}" in captured.err
    assert captured.out == ""
    assert not Path("exp").exists()


# ------------------------------------------------------------------------------ the program
def test_every_point_is_run_and_reported(recipe, capsys):
    assert run("--recipe", "demo") == 0
    shown = capsys.readouterr().out
    assert "[4/4 size/large] done in" in shown
    assert "4 of 4 points in ABLATIONS.md" in shown
    log = (recipe / "exp/ablations/rate/0.1/run.log").read_text().splitlines()
    assert log[0].startswith("# ")
    assert log[1] == "running ser_only static fast"
    text = (recipe / "ABLATIONS.md").read_text()
    # fast: 4 letters, static 6, adaltm 6, ser_only 8; Holm over 4 tests of p 0.004: 0.016
    row = next(line for line in text.splitlines() if line.startswith("|0.1|fast|"))
    assert row == (
        "|0.1|fast|2|4.0 ±1.0 σ 0.0|-|-|-4.0 [-25.0, +50.0] \\*|-2.0 [-25.0, +50.0] \\*|"
    )
    for expected in (
        "# Ablations of demo",
        "```sh\n. ./path.sh\npython -m espnet_adaltm.bin.ablations",
        "python -m espnet_adaltm.bin.ablations --config ablations.yaml -- /path/to/python",
        " run.py --size ci\n```",
        "## At a glance\n",
        "![All points, test](plots/ablations_test.png)",
        "## Learning rate\n\nOf lambda.\n\nSet `test`:",
        "|rate|merge|seeds|macro-F1|UAR|WER|minus ser_only|minus static|",
        "![Learning rate, test](plots/ablation_rate_test.png)",
        "|fast - static|0.1|macro-F1|**-2.0** \\*|[-25.0, +50.0]|0.004|0.016|0.500|",
        "p is at least 0.005",
        '"p (by speaker)", where a run has it, resamples speakers',
        "below 0.05 (\\*), 0.01 (\\*\\*), 0.001 (\\*\\*\\*)",
    ):
        assert expected in text, expected
    assert str(recipe) not in text
    assert "Not in the tables" not in text
    assert (recipe / "plots" / "ablation_size_test.png").stat().st_size > 5_000
    assert (recipe / "plots" / "ablations_test.png").stat().st_size > 5_000
    found = read_json(recipe / "ablations.json")
    assert found["references"] == ["ser_only", "static"]
    fast = found["axes"]["rate"]["points"]["0.1"]
    assert (fast["state"], fast["rows"]) == ("done", ["fast"])
    assert fast["systems"]["fast"]["test"]["macro_f1"]["mean"] == 0.04
    assert {test["point"] for test in found["axes"]["size"]["tests"]["test"]} == {"small", "large"}
    assert [test["p_holm"] for test in found["axes"]["rate"]["tests"]["test"]] == [0.016] * 4


def test_a_failed_point_does_not_keep_the_others_from_running(recipe, capsys, caplog):
    (recipe / "broken").touch()
    assert run() == 1
    captured = capsys.readouterr()
    assert "[2/4 rate/0.1] failed (1)" in captured.out
    assert "[4/4 size/large] done" in captured.out
    assert "1 of 4 points failed (rate/0.1): see their run.log" in captured.err
    assert "the disk is full" in caplog.text
    text = (recipe / "ABLATIONS.md").read_text()
    assert "Not in the tables:\n\n- `0.1`: failed with status 1" in text
    assert read_json(recipe / "ablations.json")["axes"]["rate"]["points"]["0.1"]["state"] == (
        "failed with status 1"
    )
    # Two tests are left on the axis.
    assert "|0.01|adaltm|2|6.0 ±1.0 σ 0.0|-|-|-2.0 [-25.0, +50.0] \\*\\*|" in text
    (recipe / "broken").unlink()
    assert run("--points", "rate/0.1") == 0
    assert "[1/1 rate/0.1] done" in capsys.readouterr().out
    assert "Not in the tables" not in (recipe / "ABLATIONS.md").read_text()
    kept = sorted(path.name for path in (recipe / "exp/ablations/rate/0.1").iterdir())
    assert kept == ["environment.json", "point.json", "results.json", "run.1.log", "run.log"]


def test_a_run_without_results_failed(recipe, caplog):
    assert run("--points", "rate/0.1", command=("true", "--size", "ci")) == 1
    assert "true ended well but left no exp/ablations/rate/0.1/results.json" in caplog.text


def test_report_only_uses_what_fits_the_command(recipe, capsys):
    assert run("--axes", "rate") == 0
    for path in (recipe / "exp").rglob("run.log"):
        path.write_text("kept")
    assert run("--report_only") == 0
    assert "2 of 4 points" in capsys.readouterr().out
    assert "- `small`: not run\n- `large`: not run" in (recipe / "ABLATIONS.md").read_text()
    assert (recipe / "exp/ablations/rate/0.1/run.log").read_text() == "kept"
    faster = (sys.executable, "run.py", "--size", "ci", "--nj", "4")
    assert run("--report_only", command=faster) == 0
    assert "2 of 4 points" in capsys.readouterr().out
    other = (sys.executable, "run.py", "--size", "full")
    assert run("--report_only", "--recorded", "none", command=other) == 0
    assert "0 of 4 points" in capsys.readouterr().out
    assert "- `0.1`: run with other options" in (recipe / "ABLATIONS.md").read_text()


def test_dry_run_prints_commands_and_writes_nothing(recipe, capsys):
    before = sorted(recipe.rglob("*"))
    assert run("--dry_run", "--axes", "rate", command=("./run.sh", "--size", "ci")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "# rate/0.01"
    assert lines[1].startswith("./run.sh --size ci --score_args '--resamples 400' --note ''")
    assert "--results_dir exp/ablations/rate/0.1 " in lines[3]
    assert len(lines) == 4
    assert sorted(recipe.rglob("*")) == before


def test_the_same_runs_give_the_same_json(recipe):
    run()
    first = (recipe / "ablations.json").read_bytes()
    run("--report_only")
    assert (recipe / "ablations.json").read_bytes() == first


def test_the_revision_is_taken_before_results_change(recipe, monkeypatch):
    def facts():
        return {"git hash": "changed" if (recipe / "plots").exists() else "clean"}

    monkeypatch.setattr(program, "environment", facts)
    run()
    assert (recipe / "plots").exists()
    assert "git hash: `clean`" in (recipe / "ABLATIONS.md").read_text()


def test_damaged_results_are_named(recipe, capsys):
    run()
    path = recipe / "exp/ablations/rate/0.1/results.json"
    result = read_json(path)
    result["systems"].pop("fast")
    write_json(path, result)
    assert run("--report_only") == 1
    assert "rate/0.1/results.json has no system 'fast': run rate/0.1 again" in (
        capsys.readouterr().err
    )


def test_an_interrupted_ablation_ends_what_it_started(recipe):
    (recipe / "run.py").write_text(
        "import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(60)\n"
    )
    words = ["--config", "ablations.yaml", "--", sys.executable, "run.py"]
    process = subprocess.Popen(
        [sys.executable, "-m", "espnet_adaltm.bin.ablations", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
    )
    end = time.monotonic() + 60
    while not ((recipe / "pid").exists() and (recipe / "pid").read_text()):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    status = Path("/proc", (recipe / "pid").read_text(), "stat")  # of a zombie until init reaps it
    assert not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"
    assert not (recipe / "exp/ablations/rate/0.1").exists()
