"""The whole pipeline on the smallest synthetic corpus, through the `run.sh` that a user types."""

import json
import os
import random
import subprocess
from pathlib import Path

import pytest
from reliability import Pass, Plan
from reliability_run import Recipe, make_recipe

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.integration, pytest.mark.slow]


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


def test_killed_in_every_stage_it_ends_as_if_nothing_had_been(finished, tmp_path):
    """One kill for every stage; `make test-reliability` makes a hundred."""
    # Early in what a stage takes: by chance the machine is twice as fast now as it was then.
    took = Plan.of(Recipe(finished, command())).stages
    plan = Plan({s: {item: t / 2 for item, t in items.items()} for s, items in took.items()})
    recipe = Recipe(make_recipe(tmp_path), command())
    killed = Pass(recipe, plan, finished, random.Random(4))
    for stage in plan.stages:
        killed.stage(stage, 1)
    assert killed.end()["compared"] >= 15
    assert len({record["stage"] for record in killed.records}) >= 8


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
