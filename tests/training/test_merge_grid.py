"""Fixed coefficients tried one after another."""

import json
import shutil

import pytest
from test_resume import assert_same
from training_common import merge_options, read, start, stats, train, yaml

from espnet_adaltm.errors import UserError
from espnet_adaltm.training.trainer import AdaltmTrainer

pytestmark = pytest.mark.integration
GRID = "granularity: global\ntrainable: false\ngrid: {asr: [0.0], ser: [0.0, 0.5, 1.0]}"
LEARNS = {"max_epoch": 3, "head_lr": 0.01}


@pytest.fixture(scope="module")
def tried(corpus, experts, tmp_path_factory):
    root = tmp_path_factory.mktemp("grid")
    argv = merge_options(corpus, experts, root / "m", yaml(root, GRID), **LEARNS)
    train("merge", argv)
    return root / "m", argv


def test_every_value_is_recorded_and_the_best_is_kept(tried):
    folder, _ = tried
    grid = read(folder, "merge.json")["grid"]
    assert grid == read(folder, "grid.json")
    assert [entry["init"] for entry in grid["tried"]] == [
        {"asr": 0.0, "ser": value} for value in (0.0, 0.5, 1.0)
    ]
    for number, entry in enumerate(grid["tried"]):
        values = stats(folder / f"grid/{number}")
        losses = {epoch: parts["valid"]["loss"] for epoch, parts in values.items()}
        assert entry["best_epoch"] == min(losses, key=losses.get)  # --best_model_criterion
        assert entry["macro_f1"] == values[entry["best_epoch"]]["valid"]["macro_f1"]
    scores = [entry["macro_f1"] for entry in grid["tried"]]
    assert len(set(scores)) > 1
    assert grid["chosen"] == scores.index(max(scores))
    chosen = grid["tried"][grid["chosen"]]
    final = read(folder, "coefficients.json")["final"]
    assert final == [[chosen["init"]["asr"]], [chosen["init"]["ser"]]]
    history = read(folder, "history.json")
    assert history == read(folder / chosen["folder"], "history.json")
    assert read(folder, "merge.json")["selected"]["best_epoch"] == chosen["best_epoch"]


def test_each_value_is_what_it_would_be_alone(corpus, experts, tmp_path, tried):
    folder, _ = tried
    content = "granularity: global\ntrainable: false\ninit: {asr: 0.0, ser: 0.5}"
    argv = merge_options(corpus, experts, tmp_path / "m", yaml(tmp_path, content), **LEARNS)
    train("merge", argv)
    alone, inside = stats(tmp_path / "m"), stats(folder / "grid/1")
    for epoch, parts in alone.items():
        for name in ("loss", "macro_f1"):
            assert parts["valid"][name] == inside[epoch]["valid"][name]


def test_a_finished_grid_is_left_alone(tried, monkeypatch):
    folder, argv = tried
    before = (folder / "merge.json").stat().st_mtime_ns
    monkeypatch.setattr(AdaltmTrainer, "run", None)
    train("merge", argv)
    assert (folder / "merge.json").stat().st_mtime_ns == before


def test_a_changed_grid_is_refused(corpus, experts, tmp_path, tried):
    folder, _ = tried
    other = yaml(tmp_path, GRID.replace("1.0", "0.9"))
    with pytest.raises(UserError, match=r"grid: ser was .*1\.0\] and is now .*0\.9\]"):
        train("merge", merge_options(corpus, experts, folder, other, **LEARNS))


def killed_in_the_second_value(argv, corpus):
    from test_resume import die_on_call

    from espnet_adaltm.training import espnet_models

    # 3 epochs of 4 + 2 batches are the first value
    die_on_call(espnet_models.AdaltmModel, "encode", 18 + 9)
    train("merge", argv)


def test_a_killed_grid_goes_on_and_changes_no_bit(corpus, experts, tmp_path, tried):
    folder, argv = tried
    shutil.copy(argv[argv.index("--merge_config") + 1], tmp_path / "mine.yaml")
    argv = merge_options(corpus, experts, tmp_path / "m", tmp_path / "mine.yaml", **LEARNS)
    process = start(killed_in_the_second_value, argv, corpus)
    process.join(timeout=120)
    assert process.exitcode < 0
    assert not (tmp_path / "m/grid.json").exists()
    train("merge", argv)
    assert (tmp_path / "m/grid.json").read_text() == (folder / "grid.json").read_text()
    for number in range(3):
        assert_same(folder / f"grid/{number}", tmp_path / f"m/grid/{number}")
    for name in ("coefficients.json", "head.safetensors"):
        assert (tmp_path / "m" / name).read_bytes() == (folder / name).read_bytes()


def test_afresh_forgets_every_value(corpus, experts, tmp_path):
    row = yaml(tmp_path, GRID)
    train("merge", merge_options(corpus, experts, tmp_path / "m", row))
    (tmp_path / "m/grid/7").mkdir()
    train("merge", merge_options(corpus, experts, tmp_path / "m", row, seed=4, resume="false"))
    assert not (tmp_path / "m/grid/7").exists()
    assert json.loads((tmp_path / "m/merge.json").read_text())["seed"] == 4


def test_a_grid_is_not_spread_over_machines(corpus, experts, tmp_path):
    argv = merge_options(corpus, experts, tmp_path / "m", yaml(tmp_path, GRID), dist_rank=0)
    with pytest.raises(UserError, match="a grid trains on one machine"):
        train("merge", argv)
