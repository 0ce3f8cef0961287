"""The benchmark of the coefficient step: its programs agree, its figures are what they say."""

import argparse
import sys

import pytest
import torch

from espnet_adaltm.benchmark import merge_step, steps
from espnet_adaltm.benchmark.steps import PROGRAMS, Task
from espnet_adaltm.errors import UserError

KEYS = {"step_seconds", "step_cpu_seconds", "resident_mb", "peak_mb", "gradient", "parameters"}


def task(program, **options):
    return Task(program, **{"seconds": 0.4, "steps": 1, "cnn": "frozen", **options})


def need(program):
    if "fusion_bench" in program:
        pytest.importorskip("fusion_bench.models.wrappers.layer_wise_fusion")


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_runs(program):
    need(program)
    found = steps.run_task(task(program))
    assert found.keys() >= KEYS
    assert len(found["step_seconds"]) == 1
    assert found["peak_mb"] > 0
    learns = program.startswith(("ours", "fusion_bench"))
    assert (found["gradient"] is not None) == learns
    if learns:
        assert torch.tensor(found["gradient"]).shape == (2, 5)


@pytest.mark.parametrize("cnn", ["frozen", "merged"])
def test_all_programs_compute_one_gradient(cnn):
    def gradient(program):
        return torch.tensor(steps.run_task(task(program, cnn=cnn))["gradient"])

    wanted = gradient("ours")
    others = ["ours_kept", "ours_micro", "ours_accumulated"] + ["ours_extracted"] * (
        cnn == "frozen"
    )
    for program in others:
        assert ((gradient(program) - wanted).norm() / wanted.norm()).item() < 1e-4, program
    need("fusion_bench")
    assert ((gradient("fusion_bench") - wanted).norm() / wanted.norm()).item() < 1e-3


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_other_precisions_stay_close(precision):
    exact, found = (
        torch.tensor(steps.run_task(task("ours", precision=kind))["gradient"])
        for kind in ("float32", precision)
    )
    assert ((found - exact).norm() / exact.norm()).item() < 0.2


def options(**changes):
    parser = argparse.ArgumentParser()
    merge_step.add_arguments(parser)
    values = {"size": "small", "rounds": 2, "steps": 2, "threads": 1, **changes}
    return argparse.Namespace(**{**vars(parser.parse_args([])), **values})


def run(seconds, peak, gradient=None):
    return {
        "step_seconds": seconds,
        "step_cpu_seconds": seconds,
        "resident_mb": peak / 2,
        "peak_mb": peak,
        "parameters": 1234,
        "gradient": gradient,
    }


def test_figures_are_medians_over_rounds_and_ratios_of_them(monkeypatch):
    seconds = {"floor": 2.0, "cnn": 0.4, "ours": 2.1, "ours_extracted": 1.74, "fusion_bench": 3.0}
    peaks = {"floor": 10, "cnn": 1, "ours": 6, "ours_extracted": 5, "fusion_bench": 12}
    gradients = {"ours": [[3.0, 4.0]], "fusion_bench": [[3.0, 4.5]]}
    order = []

    def fake(one):
        order.append(one.program)
        name = one.program
        return run([seconds[name], 100.0, seconds[name]], peaks[name], gradients.get(name))

    monkeypatch.setattr(merge_step, "run_process", fake)
    result = merge_step.measure(options(programs=list(seconds)))
    assert order == [*seconds, *seconds]  # in turn
    row = result["programs"]["ours"]
    assert (row["median"], row["min"], row["peak_mb"], row["resident_mb"]) == (2.1, 2.1, 6, 3)
    assert len(row["seconds"]) == 6
    ratios = result["ratios"]["ours"]
    assert ratios["floor"]["seconds"] == pytest.approx(1.05)
    assert ratios["fusion_bench"]["seconds"] == pytest.approx(0.7)
    assert ratios["fusion_bench"]["peak_mb"] == pytest.approx(0.5)
    assert "fusion_bench_hugging_face" not in ratios
    assert result["cnn_saved"] == pytest.approx(0.9)
    assert result["gradient_difference"] == pytest.approx(0.5 / (9 + 20.25) ** 0.5)
    text = merge_step.table(result)
    assert "| ours | 2.100 | 2.100 | 1.050 | 0.700 |  | 3 | 6 | 0.500 |  |" in text
    assert "stored features save 90 % of the front end's time" in text


def test_what_was_not_run_is_not_told(monkeypatch):
    monkeypatch.setattr(merge_step, "run_process", lambda one: run([1.0], 1))
    result = merge_step.measure(options(programs=["ours"]))
    assert result["ratios"] == {"ours": {}}
    assert result["cnn_saved"] is None
    assert result["gradient_difference"] is None
    assert "| ours | 1.000 | 1.000 |  |  |  | 0 | 1 |  |  |" in merge_step.table(result)


@pytest.mark.integration
def test_a_process_of_its_own(monkeypatch):
    found = merge_step.run_process(task("floor"))
    assert found["program"] == "floor"
    assert found["step_seconds"][0] > 0
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(UserError, match="ours failed"):
        merge_step.run_process(task("ours"))


@pytest.mark.parametrize(
    "change", [{"batch": 6}, {"batch": 0}, {"rounds": 0}, {"steps": -1}, {"threads": 0}]
)
def test_senseless_options_are_told(change):
    with pytest.raises(UserError, match=f"--{next(iter(change))}"):
        merge_step.measure(options(**change))
