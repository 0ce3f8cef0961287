"""Pictures of more tasks than usual: whatever there is, is drawn, and looks like nothing else."""

import itertools

import numpy as np
import pytest

from espnet_adaltm.scoring import mtl_plots, plots, vector_plots

TASKS = ["asr", "ser", "age", "sex"]
PAIRS = [",".join(pair) for pair in itertools.combinations(TASKS, 2)]


@pytest.fixture
def drawn(monkeypatch):
    """Figures instead of files."""
    for module in (plots, vector_plots, mtl_plots):
        monkeypatch.setattr(module, "save", lambda figure, path: figure)


def looks(axis):
    """Colour, marker and dashes of every line with a name."""
    return {
        line.get_label(): (line.get_color(), line.get_marker(), str(line._dash_pattern))
        for line in axis.lines
        if not line.get_label().startswith("_")
    }


def legend(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


@pytest.mark.parametrize("groups", [2, 40])
def test_all_tasks_have_coefficients_of_their_own_look(drawn, tmp_path, groups):
    tasks = [f"task{i}" for i in range(40)]
    names = [f"block{i}" for i in range(groups)]
    seeds = np.random.default_rng(0).random((2, len(tasks), groups))
    figure = plots.final_coefficients(tmp_path, "x", tasks, names, seeds)
    found = looks(figure.axes[0])
    assert list(found) == legend(figure.axes[0]) == tasks
    assert len(set(found.values())) == len(tasks)
    assert len(figure.axes[0].lines) == 3 * len(tasks)


def report(tasks, pairs, groups):
    return {
        "relative_norm": {task: [0.1] * groups for task in tasks},
        "cosine": {pair: [0.3] * groups for pair in pairs},
        "sign_conflict": {pair: [0.4] * groups for pair in pairs},
    }


def test_all_vectors_and_pairs_are_drawn_by_block(drawn, tmp_path):
    blocks = ["block0", "block1"]
    pairs = ["asr,ser", *(f"{a},{b}" for a, b in itertools.combinations("abcd", 2)), "x,y"]
    tasks = [f"task{i}" for i in range(9)]
    figure = vector_plots.by_block(tmp_path, {"blocks": blocks, **report(tasks, pairs, 2)})
    for axis, names in zip(figure.axes, (tasks, pairs, pairs)):
        found = looks(axis)
        assert list(found) == [name.replace(",", " and ") for name in names]
        assert len(set(found.values())) == len(names)
    # As ever: the first pair does not look as a vector.
    assert looks(figure.axes[1])["asr and ser"][:2] == (plots.COLOURS[2], plots.MARKERS[2])


def test_all_pairs_and_modules_are_drawn_by_module(drawn, tmp_path):
    parts = [f"part{i:02d}" for i in range(12)]
    groups = [f"block{i}.{part}" for i in range(2) for part in parts]
    modules = {"groups": groups, **report(TASKS, PAIRS, len(groups))}
    figure = vector_plots.by_module(tmp_path, {"tasks": TASKS, "modules": modules})
    *norms, cosine, conflict = figure.axes
    assert len(norms) == len(TASKS)
    assert legend(norms[1]) == parts
    for axis in (cosine, conflict):
        lines = [line for line in axis.lines if not line.get_label().startswith("_")]
        assert len(lines) == len(PAIRS) * len(parts)
        shown = {(line.get_color(), line.get_marker(), str(line._dash_pattern)) for line in lines}
        assert len(shown) == len(lines)
    assert legend(conflict) == [pair.replace(",", " and ") for pair in PAIRS]


def test_all_pairs_of_a_joint_training_are_drawn(drawn, tmp_path):
    pairs = [f"task{i},b" for i in range(9)]
    rows = {pair: [0.1, 0.2] for pair in pairs}
    epochs = {"1": {"steps": 2, "cosine": rows, "opposed": rows}}
    blocks = ["block0", "block1"]
    merge = {"name": "adaltm", "tasks": TASKS, "groups": blocks, "final": [[0.5] * 2] * 4}
    trained = {"blocks": blocks, "interval": 5, "epochs": epochs}
    figure = mtl_plots.conflict_plot(tmp_path, "x", [trained], merge)
    cosine, course, coefficients, opposed = figure.axes
    for axis in (cosine, course):
        assert len(set(looks(axis).values())) == len(pairs)
    assert list(looks(coefficients)) == [f"{task} vector" for task in TASKS]
    assert len(opposed.lines) == len(pairs) + 1  # and a line at random
