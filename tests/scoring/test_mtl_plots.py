import math

import numpy as np
import pytest

from espnet_adaltm.bin import mtlser_sweep
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import read_json, write_json
from espnet_adaltm.scoring import mtl_plots

BLOCKS = ["block0", "block1", "block2"]
PNG = b"\x89PNG"


def conflict(*epochs):
    return {
        "blocks": BLOCKS,
        "interval": 5,
        "epochs": {
            str(i): {"steps": 2, "cosine": {"emotion,ctc": row}, "opposed": {"emotion,ctc": row}}
            for i, row in enumerate(epochs, 1)
        },
    }


def test_conflicts_are_averaged_over_seeds_and_shared_epochs():
    first = conflict([0.1, None, 0.3], [0.2, 0.5, 0.3], [9, 9, 9])
    second = conflict([0.3, None, None], [-0.4, 0.1, 0.5])
    values = mtl_plots.mean_conflict([first, second])["cosine"]["emotion,ctc"]
    np.testing.assert_allclose(values, [[0.2, math.nan, 0.3], [-0.1, 0.3, 0.4]])
    with pytest.raises(UserError, match="different encoders"):
        mtl_plots.mean_conflict([first, {**second, "blocks": BLOCKS[:2]}])


def test_conflict_is_drawn_with_and_without_a_merge(tmp_path):
    report = conflict([0.1, None, 0.3], [0.2, 0.5, -0.3])
    merge = {"name": "adaltm", "tasks": ["asr", "ser"], "groups": BLOCKS, "final": [[0.5] * 3] * 2}
    with_merge = mtl_plots.conflict_plot(tmp_path / "a.png", "x", [report], merge)
    other = {**merge, "groups": ["all"]}
    without = mtl_plots.conflict_plot(tmp_path / "b.png", "x", [report], other)
    sizes = [int.from_bytes(path.read_bytes()[20:24], "big") for path in (with_merge, without)]
    assert sizes[0] > 1.5 * sizes[1]  # pixels of height


def fake(scores):
    """A trainer that only writes what a training leaves."""
    calls = []

    def train(argv, log):
        values = {
            name: argv[argv.index(name) + 1] for name in ("--alpha", "--beta", "--output_dir")
        }
        pair = (float(values["--alpha"]), float(values["--beta"]))
        calls.append((pair, argv))
        info = {"selected": {"metrics": {"loss": 3.0, "macro_f1": scores[pair], "wer": 0.5}}}
        if pair[1]:
            info["held_out"] = {"utterances": 9, "spk_acc": 0.75}
        write_json(log.parent / "baseline.json", info)

    return train, calls


def parse(tmp_path, *words):
    return mtlser_sweep.get_parser().parse_args(["--out", str(tmp_path), *words])


def test_every_pair_is_trained_and_collected(tmp_path):
    scores = {(a, b): a + b / 10 for a in (0.0, 0.1, 0.5) for b in (0.0, 0.2)}
    trainer, calls = fake(scores)
    words = ["--alphas", "0.5", "0", "0.1", "--betas", "0.2", "0", "--jobs", "2", "--"]
    args = parse(tmp_path, *words, "--config", "x.yaml", "--lr", "1")
    report = mtlser_sweep.sweep(args, trainer)
    assert report["alphas"] == [0.0, 0.1, 0.5]
    assert report["betas"] == [0.0, 0.2]
    assert {pair for pair, _ in calls} == set(scores)
    assert all(argv[:4] == ["--config", "x.yaml", "--lr", "1"] for _, argv in calls)
    assert (tmp_path / "alpha0.5_beta0.2" / "baseline.json").exists()
    for run in report["runs"]:
        expected = {"macro_f1": scores[run["alpha"], run["beta"]], "wer": 0.5}
        assert run["metrics"] == expected | ({"spk_acc": 0.75} if run["beta"] else {})
    grid = mtl_plots._grid(report, "spk_acc")
    np.testing.assert_array_equal(grid, [[math.nan, 0.75]] * 3)
    assert mtl_plots.sweep_plot(tmp_path / "map.png", report).read_bytes()[:4] == PNG
    line = {**report, "betas": [0.2]}
    assert mtl_plots.sweep_plot(tmp_path / "line.png", line).read_bytes()[:4] == PNG


def test_options_of_the_sweep_are_its_own(tmp_path):
    words = ["--alphas", "0.1", "--betas", "0.1"]
    with pytest.raises(UserError, match="--alpha=3 is set by the sweep"):
        mtlser_sweep.sweep(parse(tmp_path, *words, "--", "--alpha=3"), fake({})[0])
    with pytest.raises(UserError, match="--jobs 0"):
        mtlser_sweep.sweep(parse(tmp_path, *words, "--jobs", "0"), fake({})[0])


def test_a_training_that_fails_is_named(tmp_path, monkeypatch, capsys):
    program = tmp_path / "python"
    program.write_text('#!/bin/sh\necho "asked for $4"\necho "error: no such base" >&2\nexit 1\n')
    program.chmod(0o755)
    monkeypatch.setattr(mtlser_sweep.sys, "executable", str(program))
    argv = ["--alphas", "0.1", "--betas", "0.1", "--out", str(tmp_path), "--", "--base", "x"]
    with pytest.raises(SystemExit):
        mtlser_sweep.main(argv)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "alpha0.1_beta0.1: the training failed: error: no such base (see" in error
    log = (tmp_path / "alpha0.1_beta0.1/train.log").read_text()
    assert log.splitlines()[0] == "asked for x"
    assert not (tmp_path / "sweep.json").exists()


def test_the_command_line_writes_numbers_and_picture(tmp_path, monkeypatch, capsys):
    trainer, _ = fake({(0.1, 0.2): 0.5, (0.3, 0.2): 0.625})
    monkeypatch.setattr(mtlser_sweep.sweep, "__defaults__", (trainer,))
    mtlser_sweep.main(["--alphas", "0.1", "0.3", "--betas", "0.2", "--out", str(tmp_path)])
    assert "alpha 0.3, beta 0.2: macro_f1 62.5, wer 50.0, spk_acc 75.0" in capsys.readouterr().out
    assert len(read_json(tmp_path / "sweep.json")["runs"]) == 2
    assert (tmp_path / "sweep.png").read_bytes()[:4] == PNG
