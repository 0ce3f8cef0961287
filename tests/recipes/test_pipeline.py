"""The whole pipeline on the smallest synthetic corpus, through the `run.sh` that a user types."""

import json
import os
import shutil
import signal
import subprocess
import time
import uuid
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "egs" / "mini_espeak" / "adaltm1"
STAGES = [
    "data",
    "audio",
    "tokens",
    "base",
    "asr_expert",
    "ser_expert",
    "task_vectors",
    "merge",
    "decode",
    "score",
]
MARK = "ADALTM_TEST_MARK"

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def make_recipe(folder: Path) -> Path:
    """A copy of the demo's recipe that shares nothing but code with the checkout."""
    target = folder / "egs" / "mini_espeak" / "adaltm1"
    shutil.copytree(
        DEMO, target, ignore=shutil.ignore_patterns("data", "dump", "exp", "RESULTS.md", "plots")
    )
    (folder / "conf").symlink_to(ROOT / "conf")
    return target


def command(*words: str) -> list[str]:
    return ["./run.sh", "--size", "ci", "--merges", "base static adaltm", *words]


def run(recipe: Path, *words: str) -> list[str]:
    """Run the recipe to its end and return what it printed, line by line."""
    environment = {**os.environ, "ADALTM_ROOT": str(ROOT)}
    done = subprocess.run(
        command(*words), cwd=recipe, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout.splitlines()


def items(lines: list[str]) -> tuple[list[str], list[str]]:
    """Items that were skipped and items that were run."""
    told = [line for line in lines if line.startswith("[")]
    skipped = [line for line in told if ": skip" in line]
    return skipped, [line for line in told if ": done in" in line]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe run to the end, in stage ranges by number and by name."""
    recipe = make_recipe(tmp_path_factory.mktemp("whole"))
    run(recipe, "--stop_stage", "3")
    run(recipe, "--stage=base", "--stop_stage", "task_vectors")
    run(recipe, "--stage", "8")
    return recipe


def test_everything_that_a_user_looks_for_is_there(finished):
    exp = finished / "exp" / "ci"
    results = json.loads((exp / "results.json").read_text())
    text = (exp / "RESULTS.md").read_text()
    for name in ("asr_expert", "ser_expert", "base", "static", "adaltm"):
        assert name in json.dumps(results)
        assert name in text
    pictures = list((exp / "plots").rglob("*.png"))
    assert len(pictures) >= 5
    assert all(picture.stat().st_size > 5_000 for picture in pictures)
    merge = next(exp.glob("merge_adaltm*"))
    for path in merge.glob("*epoch.pth"):  # coefficients, layer sum and head: no encoder
        assert path.stat().st_size < 2_000_000
    assert (merge / "export" / "model.safetensors").is_file()


def test_a_second_run_skips_everything_and_a_changed_input_redoes_what_follows(finished):
    before = (finished / "exp/ci/results.json").read_bytes()
    skipped, ran = items(run(finished))
    assert len(skipped) >= 20
    assert ran == []
    merge = next((finished / "exp/ci").glob("merge_static*"))
    (merge / "head.safetensors").unlink()
    _, ran = items(run(finished))
    assert any("merge_static" in line and "[8/" in line for line in ran)
    assert not any("merge_adaltm" in line or "expert" in line for line in ran)
    assert (finished / "exp/ci/results.json").read_bytes() == before


def processes(mark: str) -> list[int]:
    """Every process that inherited the mark, whatever session it moved to."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue
        if f"{MARK}={mark}".encode() in environment:
            found.append(int(entry.name))
    return found


def run_and_kill(recipe: Path, stage: str, seconds: float) -> bool:
    """Start the recipe and SIGKILL all of it some time after ``stage`` began; True if in time."""
    mark = uuid.uuid4().hex
    environment = {**os.environ, "ADALTM_ROOT": str(ROOT), MARK: mark}
    process = subprocess.Popen(
        command("--stop_stage", "score"),
        cwd=recipe,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for line in process.stdout:
        if f" {stage}]" in line and line.rstrip().endswith("..."):
            time.sleep(seconds)
            break
    in_time = process.poll() is None
    while alive := [pid for pid in processes(mark) if pid != os.getpid()]:
        for pid in alive:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.05)
    process.wait()
    process.stdout.close()
    return in_time


# Long enough for a training to be in its epochs, short enough for the others not to have ended.
DELAYS = {"base": 9.0, "asr_expert": 8.0, "ser_expert": 8.0, "merge": 9.0, "decode": 3.0}


def test_killed_in_every_stage_it_ends_with_the_same_results(finished, tmp_path):
    recipe = make_recipe(tmp_path)
    killed = [stage for stage in STAGES if run_and_kill(recipe, stage, DELAYS.get(stage, 0.3))]
    assert len(killed) >= 8, f"only {killed} were killed before they ended"
    run(recipe, "--stop_stage", "score")
    name = "exp/ci/results.json"
    assert (recipe / name).read_bytes() == (finished / name).read_bytes()


def test_a_stage_without_its_inputs_names_the_stage_that_makes_them(tmp_path):
    recipe = make_recipe(tmp_path)
    environment = {**os.environ, "ADALTM_ROOT": str(ROOT)}
    done = subprocess.run(
        command("--stage", "asr_expert", "--stop_stage", "asr_expert"),
        cwd=recipe,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "stage 4 (base)" in done.stderr
    assert "Traceback" not in done.stderr
