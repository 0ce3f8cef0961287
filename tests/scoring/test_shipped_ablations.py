"""The ablations that the recipes ship: a row changes what its axis is about, and nothing else."""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from espnet_adaltm.config import load_yaml
from espnet_adaltm.merging.config import MergeConfig
from espnet_adaltm.scoring import ablations as abl

ROOT = Path(__file__).parents[2]
RECIPES = [ROOT / "egs" / name / "adaltm1" for name in ("mini_espeak", "nemo")]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.parent.name)
def test_shipped_axes(recipe, monkeypatch):
    monkeypatch.chdir(recipe)
    config = abl.load_ablations("conf/ablations.yaml")
    assert config.references == (
        "ser_only",
        "static",
        "adaltm",
        "ser_expert",
        "asr_expert",
    )
    assert {axis.name for axis in config.axes} == {
        "learning_rate",
        "constraint",
        "granularity",
        "head",
        "vectors",
        "objective",
        "epoch_choice",
        "ctc_weight",
        "head_and_ctc",
        "asr_expert",
        "labelled_share",
        *(["epochs", "learned_on", "seeds"] if recipe.parent.name == "mini_espeak" else []),
    }
    shares = next(axis for axis in config.axes if axis.name == "labelled_share")
    assert [point.name for point in shares.points] == ["5", "10", "25", "50", "100"]
    text = "".join(Path(name).read_text() for name in ("run.sh", "adaltm.sh"))
    known = re.findall(r"^option (\w+) ", text, re.MULTILINE)
    for point in config.points:
        assert point.options.keys() <= set(known), point.key
        if "asr_config" in point.options:
            # Its name has to tell: the number of epochs is in no folder's name.
            epochs = load_yaml(point.options["asr_config"])["max_epoch"]
            assert point.options["asr_config"].endswith(f"_{epochs}.yaml")
            assert point.name == str(epochs)
        if "merge_config" in point.options:
            usual = {"mini_espeak": "conf/full", "nemo": ROOT / "conf/tiny"}[recipe.parent.name]
            changes = {
                "train_merge_f1.yaml": {"best_model_criterion": [["valid", "macro_f1", "max"]]},
                "train_merge_10.yaml": {"max_epoch": 10},
            }
            file = Path(point.options["merge_config"])
            expected = {**load_yaml(Path(usual, "train_merge.yaml")), **changes[file.name]}
            assert load_yaml(file) == expected


CHANGED = {  # of adaltm
    "learning_rate": {"coef_lr"},
    "constraint": {"constraint"},
    "learned_on": {"learn_on"},
    "granularity": {"granularity"},
    "head": {"head_init", "train_head"},
    "vectors": {"preprocess"},
    "objective": {"objective", "distill_weight", "head_init", "train_head"},
    "epoch_choice": set(),
    "ctc_weight": {"objective", "ctc_weight"},
    "head_and_ctc": {"head_init", "train_head", "objective", "epoch_factor"},
    "asr_expert": set(),
    "seeds": set(),
    "epochs": {"head_init", "objective"},
    "labelled_share": set(),
}


def test_shipped_rows_change_one_thing(monkeypatch):
    monkeypatch.chdir(RECIPES[0])
    adaltm = MergeConfig.from_yaml(ROOT / "conf/merge/adaltm.yaml")
    seen = set()
    for point in abl.load_ablations("conf/ablations.yaml").points:
        for row in point.rows:
            path = Path(row if row.endswith(".yaml") else ROOT / "conf/merge" / f"{row}.yaml")
            merge = MergeConfig.from_yaml(path)
            assert merge.name == path.stem
            values = [(item.name, getattr(merge, item.name)) for item in fields(merge)]
            changed = {name for name, value in values if value != getattr(adaltm, name)} - {"name"}
            assert changed <= CHANGED[point.axis], point.key
            assert changed or row == "adaltm"
            seen.add(path.stem)
            if point.axis in ("learning_rate", "ctc_weight") and changed:
                value = {"learning_rate": merge.coef_lr, "ctc_weight": merge.ctc_weight}
                assert value[point.axis] == float(point.name)
    assert {path.stem for path in Path("conf/ablations/rows").glob("*.yaml")} <= seen
    assert load_yaml("conf/full/train_merge.yaml")["coef_lr"] == 0.01  # the point of adaltm
    assert load_yaml("../../../conf/tiny/train_merge.yaml")["coef_lr"] == 0.01


def test_rows_of_the_recipes_are_the_same_files():
    mini, nemo = (recipe / "conf" / "ablations" / "rows" for recipe in RECIPES)
    assert nemo.resolve() == mini.resolve()


@pytest.mark.parametrize(
    ("recipe", "default", "shown"),
    [(RECIPES[0], RECIPES[0] / "conf/full", "6"), (RECIPES[1], ROOT / "conf/tiny", "30")],
)
def test_shipped_recognisers_differ_in_their_epochs_only(recipe, default, shown):
    usual = load_yaml(default / "train_asr.yaml")
    assert str(usual["max_epoch"]) == shown
    axes = load_yaml(recipe / "conf/ablations.yaml")["axes"]
    assert int(shown) in axes["asr_expert"]["points"]
    files = sorted((recipe / "conf/ablations").glob("train_asr_*.yaml"))
    assert len(files) >= 2
    for path in files:
        found = load_yaml(path)
        changed = {key for key in {*usual, *found} if usual.get(key) != found.get(key)}
        assert changed - {"keep_nbest_models"} == {"max_epoch"}
        assert json.dumps(found["keep_nbest_models"]) == str(min(3, found["max_epoch"]))
