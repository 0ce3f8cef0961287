"""What a run tells about itself, and what keeps two runs apart: --status, --dry_run, locks."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from waiting import wait_for

from espnet_adaltm.files import is_running

TEMPLATE = Path(__file__).parents[2] / "egs" / "TEMPLATE" / "adaltm1"

# Three stages that copy a file on, and one that is not asked for. What `two` does is up to a test.
RECIPE = r"""
set -euo pipefail
. utils/parse_options.sh
. utils/stages.sh
option out "" "folder"
option seed 1 ""
option first 1 ""
option last 4 ""
option force false ""
option dry_run false ""
option status false ""
parse_options "$@"
train_cmd=utils/run.pl
run_dir=${out}
stages=("one: makes one" "two: needs it" "three: needs two" "four: nothing")
stage_one() {
    item make "${out}/1" --inputs "${out}/conf.yaml" --outputs "${out}/1/x" \
        -- cp "${out}/conf.yaml" "${out}/1/x"
}
stage_two() {
    item make "${out}/2_${seed}" --inputs "${out}/1/x@one" --outputs "${out}/2_${seed}/x" \
        -- bash "${out}/two.sh" "${out}/1/x" "${out}/2_${seed}/x"
}
stage_three() {
    item make "${out}/3_${seed}" --inputs "${out}/2_${seed}/x@two" \
        --outputs "${out}/3_${seed}/x" -- cp "${out}/2_${seed}/x" "${out}/3_${seed}/x"
}
stage_four() { :; }
. ../../../tools/activate_python.sh
export PYTHONPATH=../../..
run_stages "${first}" "${last}"
"""
COPY = 'cp "$1" "$2"\n'
TYPED = "./run.sh --size ci"
# Says that it runs, and goes on when it may.
WAIT = 'echo $$ >"$2.pid"\nwhile [ ! -e "${2%/*/x}/go" ]; do sleep 0.05; done\n'


@pytest.fixture
def out(tmp_path):
    """The folder of a recipe in which nothing was done yet."""
    (tmp_path / "conf.yaml").write_text("lr: 1\n")
    (tmp_path / "two.sh").write_text(COPY)
    return tmp_path


def start(out: Path, *words: str, columns: int = 80, typed: str = TYPED) -> subprocess.Popen:
    environment = {**os.environ, "COLUMNS": str(columns), "ADALTM_RESUME": typed}
    return subprocess.Popen(
        ["bash", "-c", RECIPE, "recipe", "--out", str(out), *words],
        cwd=TEMPLATE, env=environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def end(process: subprocess.Popen) -> subprocess.CompletedProcess:
    stdout, stderr = process.communicate(timeout=120)
    return subprocess.CompletedProcess([], process.returncode, stdout, stderr)


def run(out: Path, *words: str, **more: object) -> subprocess.CompletedProcess:
    return end(start(out, *words, **more))


def contents(out: Path) -> dict[str, tuple[bytes, int]]:
    """Every file with what it holds and when it was written."""
    files = (path for path in out.rglob("*") if path.is_file())
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def states(text: str) -> dict[str, tuple[str, str]]:
    """The rows of the table: stage to state and count."""
    rows = re.findall(r"^ ?\d+  (\w+) +(\S+(?: \S+)*?)(?: +(\d+/\d+).*)?$", text, re.MULTILINE)
    return {name: (state, count) for name, state, count in rows}


def cpu_seconds() -> float:
    """That children took: unlike a clock, it knows nothing of other programs."""
    times = os.times()
    return times.children_user + times.children_system


@pytest.fixture
def at_work(out):
    """A run whose second stage waits."""
    (out / "two.sh").write_text(WAIT + COPY)
    process = start(out)
    wait_for((out / "2_1" / "x.pid").exists)
    yield process
    if process.poll() is None:
        (out / "go").touch()
        process.wait(30)
    process.stdout.close()
    process.stderr.close()


def test_a_table_before_and_after(out):
    before = contents(out)
    result = run(out, "--status")
    assert result.returncode == 3, result.stderr
    assert states(result.stdout) == {
        "one": ("not started", "0/1"),
        "two": ("waiting", "0/1"),
        "three": ("waiting", "0/1"),
        "four": ("not asked for", ""),
    }
    assert "needs what 1 one makes" in result.stdout
    assert contents(out) == before

    assert run(out).returncode == 0
    before = contents(out)
    began = cpu_seconds()
    result = run(out, "--status")
    assert cpu_seconds() - began < 2
    assert result.returncode == 0
    assert {state for state, _ in states(result.stdout).values()} == {"done", "not asked for"}
    assert re.search(r"^ 2  two +done +1/1  20\d\d-\d\d-\d\d \d\d:\d\d, \d s$", result.stdout, re.M)
    assert len(result.stdout.splitlines()) == 5
    assert contents(out) == before

    limited = run(out, "--status", "--first", "2", "--last", "3")
    assert list(states(limited.stdout)) == ["two", "three"]


def test_what_changed_and_what_follows_from_it(out):
    run(out)
    (out / "conf.yaml").write_text("# a comment\nlr: 1\n")
    assert run(out, "--status").returncode == 0
    (out / "conf.yaml").write_text("lr: 2\n")
    before = contents(out)
    result = run(out, "--status")
    assert result.returncode == 3
    found = [state for state, _ in states(result.stdout).values()]
    assert found == ["stale", "stale", "stale", "not asked for"]
    joined = " ".join(result.stdout.split())
    assert f"changed: {out}/conf.yaml" in joined
    assert f"{out}/2_1: make follows from 1 one" in joined
    assert f"{out}/3_1: make follows from 2 two" in joined
    told = run(out, "--dry_run").stdout.splitlines()
    assert told == [
        f"[1/4 one] {out}/1: make: run (changed: {out}/conf.yaml)",
        f"[2/4 two] {out}/2_1: make: run (follows from 1 one ({out}/1: make))",
        f"[3/4 three] {out}/3_1: make: run (follows from 2 two ({out}/2_1: make))",
        "[4/4 four] none asked for",
    ]
    assert contents(out) == before
    done = run(out).stdout
    assert done.count(": done in") == 3
    assert (out / "3_1" / "x").read_text() == "lr: 2\n"


def test_a_dry_run_from_the_middle_says_what_is_missing(out):
    result = run(out, "--dry_run", "--first", "2")
    assert result.returncode == 0
    assert f"cannot run: {out}/1/x is missing: run stage 1 (one) first" in result.stdout
    assert f"[3/4 three] {out}/3_1: make: run (first time, follows from 2 two" in result.stdout


def test_a_failure_is_told_with_its_log(out):
    (out / "two.sh").write_text("echo line one\necho it broke here >&2\nexit 4\n")
    result = run(out)
    assert result.returncode == 1
    told = f"[2/4 two] {out}/2_1: make: failed with status 4; log: {out}/2_1/make.log; to resume: "
    assert f"error: {told}{TYPED} --stage 2\n" in result.stderr
    assert "it broke here" in result.stderr
    assert "Traceback" not in result.stderr
    before = contents(out)
    result = run(out, "--status")
    assert result.returncode == 3
    found = states(result.stdout)
    assert (found["one"][0], found["two"][0], found["three"][0]) == ("done", "failed", "waiting")
    joined = " ".join(result.stdout.split())
    assert "failed with status 4" in joined
    assert f"goes on with: {TYPED} --stage 2 log: {out}/2_1/make.log" in joined
    assert "| line one | it broke here" in joined
    assert contents(out) == before
    (out / "two.sh").write_text(COPY)
    assert run(out).returncode == 0
    assert run(out, "--status").returncode == 0


@pytest.mark.parametrize("columns", [80, 120])
def test_the_table_fits(out, columns):
    (out / "two.sh").write_text(f"echo {'long ' * 60}\nexit 4\n")
    run(out)
    text = run(out, "--status", columns=columns).stdout
    for line in text.splitlines():
        words = line.split()
        assert len(line) < columns or len(words) <= 2 and str(out) in line
    assert any(line.endswith("...") and len(line) == columns - 1 for line in text.splitlines())


def test_a_second_run_is_told_who_is_at_work(out, at_work):
    before = contents(out)
    for _ in range(3):  # looking does not disturb
        result = run(out, "--status")
    assert contents(out) == before
    assert result.returncode == 3
    assert states(result.stdout)["two"] == ("running", "0/1")
    joined = " ".join(result.stdout.split())
    who = f"process {at_work.pid} on {os.uname().nodename}, since 20"
    assert f"At work: {who}" in joined
    assert re.search(r"since 20\S+ \S+ \(\d+ s\), process \d+ on \S+, through utils/run.pl", joined)

    second = run(out, typed="./run.sh --other")
    assert second.returncode == 1
    assert second.stdout == ""
    assert who in second.stderr
    assert f"({TYPED})" in second.stderr
    assert second.stderr.count("error: ") == 1
    # What the first is going to make is its own, before it has come to it.
    third = run(out, "--first", "3")
    assert third.returncode == 1
    assert f"(make in {out}/3_1): {who}" in third.stderr
    assert {name: c for name, c in contents(out).items() if ".runs" not in name} == {
        name: c for name, c in before.items() if ".runs" not in name
    }
    # A dry run is allowed, and tells as well.
    assert "in the making by process" in run(out, "--dry_run").stdout

    (out / "go").touch()
    assert at_work.wait(30) == 0
    assert run(out, "--status").returncode == 0
    assert run(out).stdout.count("skip") == 3
    assert not list((out / ".runs").glob("*.json"))


def test_runs_that_share_only_what_is_done_go_side_by_side(out, at_work):
    other = start(out, "--seed", "2")
    wait_for((out / "2_2" / "x.pid").exists)
    assert at_work.poll() is None
    (out / "go").touch()
    assert end(other).returncode == 0
    assert at_work.wait(30) == 0
    assert (out / "3_1" / "x").read_text() == (out / "3_2" / "x").read_text() == "lr: 1\n"


def test_a_killed_run_blocks_nobody(out, at_work):
    command = int((out / "2_1" / "x.pid").read_text())
    # The shell and the runner, not the job: what it started ends within seconds, and is waited for.
    os.killpg(at_work.pid, signal.SIGKILL)
    at_work.wait(30)
    (out / "two.sh").write_text(COPY)
    result = run(out)
    assert result.returncode == 0, result.stderr
    assert "[2/4 two] " in result.stdout and "(continuing) ..." in result.stdout
    assert not is_running(command)
    assert (out / "3_1" / "x").read_text() == "lr: 1\n"


def test_an_interrupted_item_says_so(out, at_work):
    at_work.terminate()
    assert at_work.wait(30) == 143
    result = run(out, "--status")
    assert result.returncode == 3
    assert states(result.stdout)["two"] == ("interrupted", "0/1")
    joined = " ".join(result.stdout.split())
    assert f"nobody is at it now; goes on with: {TYPED} --stage 2" in joined
    assert "--stop_stage" not in joined


def test_a_clock_that_was_set_back_changes_nothing(out):
    run(out)
    ahead = time.time() + 10 * 365 * 86400
    for path in out.rglob("*"):
        os.utime(path, (ahead, ahead))
    for stamp in out.rglob(".stamps/make.json"):
        stamp.write_text(stamp.read_text().replace('"done": "20', '"done": "21'))
    result = run(out, "--status")
    assert result.returncode == 0, result.stdout
    assert "2126-" in result.stdout


def test_everything_done_needs_no_writing(out):
    """On a read-only copy, done stays done, and what has to run is one clear error."""
    run(out)
    os.utime(out / "conf.yaml", (1, 1))
    conf = out / "conf.yaml"
    for path in [*out.rglob("*"), out]:
        if path != conf:
            path.chmod(0o555 if path.is_dir() else 0o444)
    words = ["bash", "-c", RECIPE, "recipe", "--out", str(out)]
    if os.geteuid() == 0:  # root may write everywhere, unless it gives that up
        words = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *words]
    try:
        skipped = subprocess.run(words, cwd=TEMPLATE, capture_output=True, text=True)
        status = subprocess.run([*words, "--status"], cwd=TEMPLATE, capture_output=True, text=True)
        conf.write_text("lr: 2\n")
        before = contents(out)
        refused = subprocess.run(words, cwd=TEMPLATE, capture_output=True, text=True)
        assert contents(out) == before
    finally:
        for path in [out, *out.rglob("*")]:
            if path.is_dir():
                path.chmod(0o755)
    assert (skipped.returncode, status.returncode) == (0, 0), skipped.stderr + status.stderr
    assert skipped.stdout.count("skip") == 3
    assert refused.returncode == 1
    assert len(refused.stderr.splitlines()) == 1
    assert "Permission denied" in refused.stderr
    assert refused.stderr.startswith("error: ")


def test_flags_need_no_value():
    script = RECIPE.partition("train_cmd=")[0] + 'echo "${status} ${dry_run} ${seed}"'
    for words, shown in (
        (["--status", "--seed", "7"], "true false 7"),
        (["--seed=7", "--dry-run"], "false true 7"),
        (["--status", "false", "--seed", "7"], "false false 7"),
    ):
        result = subprocess.run(
            ["bash", "-c", script, "x", *words], cwd=TEMPLATE, capture_output=True, text=True
        )
        assert result.stdout.strip() == shown, result.stderr
    kept = script.replace('parse_options "$@"', 'take_options "$@"').replace("option status", ": ")
    kept = kept.replace("${status}", "${rest[*]}")
    words = ["--status", "--seed", "7", "--other", "--seed"]
    result = subprocess.run(
        ["bash", "-c", kept, "x", *words], cwd=TEMPLATE, capture_output=True, text=True
    )
    assert result.stdout.strip() == "--status true --other --seed false 7"


@pytest.mark.parametrize(
    ("recipe", "words", "asked"),
    [
        ("mini_espeak", ("--size", "ci", "--datadir", "none", "--dumpdir", "none"), 1),
        ("nemo", ("--nemo_root", "none"), 1),
        ("msp_podcast", ("--msp_root", "none", "--msp_version", "1.12"), 1),
        ("iemocap", ("--iemocap_root", "none", "--only_folds", "1 3"), 4),  # corpus, split, 2 folds
    ],
)
def test_every_recipe_tells_its_state(recipe, words, asked):
    folder = TEMPLATE.parents[1] / recipe / "adaltm1"
    before = set(folder.iterdir())
    given = ["./run.sh", "--status", *words, "--stop_stage", "tokens"]
    result = subprocess.run(given, cwd=folder, capture_output=True, text=True)
    assert result.returncode == 3, result.stderr
    assert result.stderr == ""
    assert result.stdout.count(" #  stage         state         items  done\n") == asked
    assert re.search(r"^ 3  tokens        (waiting|not started|stale) ", result.stdout, re.M)
    assert set(folder.iterdir()) == before


# ------------------------------------------------------------------------- Weights & Biases
def adaltm(tmp_path: Path, installed: bool, *words: str) -> subprocess.CompletedProcess:
    """adaltm.sh with a stand-in for Python, which has wandb or has not, and shows its items."""
    program = tmp_path / "bin" / "python"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/bash\nif [ "$1" = -c ]; then exit {int(not installed)}; fi\n'
        'while [ "$1" != --batch ]; do shift; done\ntr "\\0" " " <"$2"\n'
    )
    program.chmod(0o755)
    demo = TEMPLATE.parents[1] / "mini_espeak" / "adaltm1"
    places = [f"--{name}dir={tmp_path}/{name}" for name in ("data", "dump", "exp")]
    return subprocess.run(
        ["./adaltm.sh", f"--python={program}", *places, "--merges", "static", *words],
        cwd=demo, capture_output=True, text=True,
    )  # fmt: skip


def test_wandb_that_is_not_installed_is_told_before_anything_runs(tmp_path):
    result = adaltm(tmp_path, False, "--use_wandb", "true")
    assert result.returncode == 1
    assert "--use_wandb: there is no wandb in this Python environment" in result.stderr
    assert result.stdout == ""
    assert not (tmp_path / "exp").exists()


def test_curves_go_where_they_are_wanted(tmp_path):
    plain = adaltm(tmp_path, True).stdout
    trained = [part for part in plain.split("--name ") if "espnet_adaltm.bin.train_" in part]
    assert len(trained) == 6
    assert all("--use_tensorboard true" in part and "wandb" not in part for part in trained)
    shutil.rmtree(tmp_path / "bin")
    words = ("--use_wandb=true", "--use_tensorboard", "false", "--wandb_project", "mine")
    chosen = adaltm(tmp_path, True, *words).stdout
    wanted = "--use_tensorboard false --use_wandb true --wandb_project mine"
    assert chosen.count(wanted) == 6
    folders = r"--name \S+ --workdir \S+"  # which do not depend on it
    assert re.findall(folders, chosen) == re.findall(folders, plain)
