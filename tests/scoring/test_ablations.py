"""Ablations: their configuration, and the program on a recipe that takes no time."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from espnet_adaltm.bin import ablations as program
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import read_json, write_json
from espnet_adaltm.scoring import ablations as abl

ROOT = Path(__file__).parents[2]

CONFIG = """
references: [ser_only, static]
options: {score_args: --resamples 400, note: ""}
axes:
  rate:
    title: Learning rate
    about: Of lambda.
    label: rate
    scale: log
    points:
      0.01: {}
      0.1: {rows: [rows/fast.yaml]}
  size:
    rows: [adaltm, global]
    options: {n_tokens: 60}
    points:
      small: {options: {ser_args: --lr 1 --x 2, force: false}}
      large: {}
"""
# As a recipe: every score is the length of its system's name; `fast` fails while `broken` exists.
FAKE = """
import itertools, json, os, sys
words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
names = [os.path.basename(w).removesuffix(".yaml") for w in words["--merges"].split()]
print("running", *names)
if os.path.exists("broken") and "fast" in names:
    sys.exit("the disk is full")
scores = {name: {"seeds": [len(name) / 100] * 2, "mean": len(name) / 100, "std": 0.0,
                 "low": len(name) / 100 - 0.01, "high": len(name) / 100 + 0.01} for name in names}
tests = [{"first": a, "second": b, "view": "all", "metric": "macro_f1", "p": 0.004, "p_holm": 1.0,
          "difference": (len(a) - len(b)) / 100, "low": -0.5, "high": 0.25, "p_seeds": 0.5}
         for a, b in itertools.combinations(names, 2)]
os.makedirs(words["--results_dir"], exist_ok=True)
with open(words["--results_dir"] + "/results.json", "w") as handle:
    json.dump({
        "bootstrap": {"resamples": 400, "level": 0.95, "seed": 0, "unit": "utterance"},
        "systems": {name: {"seeds": [1, 2], "sets": {"test": {"all": {"macro_f1": scores[name]}}}}
                    for name in names},
        "all_pairs": {"test": tests},
    }, handle)
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A folder with `CONFIG` and `FAKE`, the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "fast.yaml").write_text("coef_lr: 0.1\n")
    (tmp_path / "ablations.yaml").write_text(CONFIG)
    (tmp_path / "run.py").write_text(FAKE)
    return tmp_path


def run(*words, command=(sys.executable, "run.py", "--size", "ci")):
    """Call the program; returns its exit status."""
    try:
        program.main(["--config", "ablations.yaml", *words, "--", *command])
    except SystemExit as end:
        return end.code
    return 0


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
        "python -m espnet_adaltm.bin.ablations --config ablations.yaml -- /path/to/python",
        " run.py --size ci\n```",
        "## At a glance\n",
        "![All points, test](plots/ablations_test.png)",
        "## Learning rate\n\nOf lambda.\n\nSet `test`:",
        "|rate|merge|seeds|macro-F1|UAR|WER|minus ser_only|minus static|",
        "![Learning rate, test](plots/ablation_rate_test.png)",
        "|fast - static|0.1|macro-F1|**-2.0** \\*|[-25.0, +50.0]|0.004|0.016|0.500|",
        "p is at least 0.005",
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
    assert run("--report_only", command=(sys.executable, "run.py", "--size", "full")) == 0
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


def runs_of(monkeypatch, **facts):
    """Let what follows run in an environment of the given date and hash."""
    monkeypatch.setattr(program, "environment", lambda: {"torch": "2", **facts})


def runs_table():
    """Rows of the table that tells when the points were run."""
    text = Path("ABLATIONS.md").read_text()
    return re.findall(r"^\|([\d-]+|not recorded)\|(.*?)\|(\d)\|(.*)\|$", text, re.M)


def test_a_point_keeps_the_environment_of_its_results(recipe, monkeypatch):
    runs_of(monkeypatch, date="2026-01-02", **{"git hash": "aaa"})
    run("--axes", "rate")
    assert runs_table() == [("2026-01-02", "aaa", "2", "`rate/0.01` `rate/0.1`")]
    # What a recipe skips, or ends alike, keeps its day; what has other results gets a new one.
    runs_of(monkeypatch, date="2026-01-03", **{"git hash": "bbb"})
    earlier = {"results": "of others", "environment": {"date": "2026-01-01"}}
    write_json(recipe / "exp/ablations/rate/0.1/environment.json", earlier)
    run()
    second = ("2026-01-03", "bbb", "3", "`rate/0.1` `size/small` `size/large`")
    assert runs_table() == [("2026-01-02", "aaa", "1", "`rate/0.01`"), second]
    assert "git hash: `bbb`" in (recipe / "ABLATIONS.md").read_text()  # of the document
    points = read_json(recipe / "ablations.json")["axes"]["rate"]["points"]
    assert points["0.01"]["environment"] == {
        "torch": "2", "date": "2026-01-02", "git hash": "aaa",
    }  # fmt: skip
    # Results that somebody else wrote into the folder are of unknown origin.
    path = recipe / "exp/ablations/rate/0.01/results.json"
    write_json(path, {**read_json(path), "more": 1})
    run("--report_only")
    unknown = ("not recorded", "not recorded", "1", "`rate/0.01`")
    assert runs_table()[1] == unknown
    write_json(recipe / "exp/ablations/rate/0.01/environment.json", {})
    assert run("--report_only") == 0
    assert runs_table()[1] == unknown


def test_recorded_points_stand_in_for_runs_that_are_gone(recipe, capsys, monkeypatch):
    runs_of(monkeypatch, date="2026-01-02", **{"git hash": "aaa"})
    run()
    whole = (recipe / "ablations.json").read_bytes()
    text = (recipe / "ABLATIONS.md").read_text()
    (recipe / "before.json").write_bytes(whole)
    shutil.rmtree(recipe / "exp/ablations")
    recorded = ("--recorded", "before.json")
    assert run("--report_only", *recorded) == 0
    assert (recipe / "ablations.json").read_bytes() == whole
    assert (recipe / "ABLATIONS.md").read_text() == text.replace(
        "ablations.yaml --", "ablations.yaml --recorded before.json --"
    )
    # One run anew, from which the others differ in nothing but the day.
    runs_of(monkeypatch, date="2026-01-03", **{"git hash": "bbb"})
    assert run("--points", "rate/0.1", *recorded) == 0
    assert "4 of 4 points" in capsys.readouterr().out
    assert runs_table() == [
        ("2026-01-02", "aaa", "3", "`rate/0.01` `size/small` `size/large`"),
        ("2026-01-03", "bbb", "1", "`rate/0.1`"),
    ]
    # A file of the time before days were recorded.
    found = read_json(recipe / "before.json")
    del found["axes"]["rate"]["points"]["0.01"]["environment"]
    write_json(recipe / "before.json", found)
    assert run("--report_only", *recorded) == 0
    assert runs_table()[2] == ("not recorded", "not recorded", "1", "`rate/0.01`")
    # What changed in the configuration since is not run.
    text = (recipe / "ablations.yaml").read_text()
    shutil.rmtree(recipe / "exp/ablations")
    (recipe / "ablations.yaml").write_text(text.replace("--resamples 400", "--resamples 500"))
    assert run("--report_only", *recorded) == 0
    assert "0 of 4 points" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "before.json"),
        ("{}", "before.json is no ablations.json: KeyError 'references'"),
        ("[]", "before.json"),
        ('{"references": ["ser_only", "static"], "axes": 3}', "before.json is no ablations.json"),
        ('{"references": ["static"]}', r"compares with ['static'], the configuration with"),
    ],
)
def test_other_files_are_no_record(recipe, capsys, content, message):
    if content is not None:
        (recipe / "before.json").write_text(content)
    assert run("--recorded", "before.json") == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert "rate" not in captured.out  # told before anything runs
    assert not (recipe / "ABLATIONS.md").exists()


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
