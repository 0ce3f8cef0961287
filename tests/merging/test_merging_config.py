"""Merging options: every shipped file, every mistake."""

from pathlib import Path

import pytest
from merging_common import LAYERS, base_encoder

from espnet_adaltm.errors import UserError
from espnet_adaltm.merging.config import MergeConfig
from espnet_adaltm.merging.groups import group_names

FOLDER = Path(__file__).parents[2] / "conf" / "merge"
BLOCKS = LAYERS + 1
NAMES = [name for name, _ in base_encoder().named_encoder_parameters()]
MODULES = len(group_names(NAMES, LAYERS, "module"))
ROWS = {  # learned coefficients on the test encoder (tasks x groups), and their first value
    "base": (0, 0.5),
    "asr_only": (BLOCKS, 0.5),
    "ser_only": (BLOCKS, 0.5),
    "static": (0, 0.5),
    "static_grid": (0, 0.5),
    "task_arithmetic": (0, 0.5),
    "ties": (0, 1.0),
    "dare": (0, 0.5),
    "dare_ties": (0, 1.0),
    "adamerging": (2 * len(NAMES), 0.3),
    "adamerging_test": (2 * len(NAMES), 0.3),
    "global": (2, 0.5),
    "adaltm": (2 * BLOCKS, 0.5),
    "adaltm_ood": (2 * BLOCKS, 0.5),
    "adaltm_module": (2 * MODULES, 0.5),
    "adaltm_tensor": (2 * len(NAMES), 0.5),
    "adaltm_ties": (2 * BLOCKS, 0.5),
    "adaltm_ctc": (2 * BLOCKS, 0.5),
    "adaltm_distill": (2 * BLOCKS, 0.5),
    "random_vectors": (2 * BLOCKS, 0.5),
    "shuffled_blocks": (2 * BLOCKS, 0.5),
    "adaltm_plus": (2 * BLOCKS, 0.5),
}


def test_every_row_is_shipped_and_no_other():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == ROWS.keys()


@pytest.mark.parametrize("name", ROWS)
def test_every_shipped_file(name):
    config = MergeConfig.from_yaml(FOLDER / f"{name}.yaml")
    assert config.name == name
    assert MergeConfig.from_dict(config.to_dict()) == config
    raw = config.coefficients(base_encoder()).raw
    count, first = ROWS[name]
    assert (raw.numel() if raw.requires_grad else 0) == count
    assert (raw == first).all()


def test_adaltm_is_the_paper_and_the_default():
    """Section 3 of arXiv 2603.25041: all choices that it states."""
    config = MergeConfig.from_yaml(FOLDER / "adaltm.yaml")
    assert config == MergeConfig("adaltm")
    assert (config.init, config.granularity, config.constraint) == (0.5, "block", "none")
    assert (config.objective, config.learn_on, config.head_init) == (
        "supervised",
        "train",
        "scratch",
    )
    assert not config.teachers
    assert not config.changes_vectors


def test_name_and_defaults(tmp_path):
    (tmp_path / "mine.yaml").write_text("init: {asr: 0.0, ser: 1.0}\n")
    config = MergeConfig.from_yaml(tmp_path / "mine.yaml")
    assert (config.name, config.tasks, config.granularity) == ("mine", ("asr", "ser"), "block")
    assert config.coefficients(base_encoder()).table() == [[0.0] * 3, [1.0] * 3]


def test_grids_are_lists_or_every_combination():
    def values(grid):
        return MergeConfig.from_dict({"name": "x", "trainable": False, "grid": grid}).grid_values()

    assert values([0.1, 1]) == [0.1, 1]
    pairs = values({"asr": [0, 0.5], "ser": [1.0, 2.0]})
    assert [tuple(pair.values()) for pair in pairs] == [(0, 1), (0, 2), (0.5, 1), (0.5, 2)]
    assert MergeConfig("x").grid_values() == []


def test_random_methods_take_the_seed_of_the_run_unless_they_have_one():
    def seeded(**options):
        return MergeConfig.from_dict({"name": "x", **options}).with_seed(5)

    assert seeded(preprocess={"method": "random"}).preprocess["seed"] == 5
    assert seeded(preprocess={"method": "dare", "seed": 2}).preprocess["seed"] == 2
    assert "seed" not in seeded(preprocess={"method": "ties"}).preprocess
    dare = {"method": "dare", "method_conf": {"density": 0.5}}
    assert seeded(**dare).method_conf == {"density": 0.5, "seed": 5}
    assert seeded().to_dict() == MergeConfig("x").to_dict()


def test_teachers_are_those_that_the_objective_asks_for():
    def teachers(**options):
        return MergeConfig.from_dict({"name": "x", **options}).teachers

    assert teachers() == ()
    assert teachers(objective="supervised_ctc") == ("asr",)
    assert teachers(objective="supervised_distill") == ("asr", "ser")
    assert teachers(objective="supervised_distill", distill_weight={"ser": 1}) == ("ser",)


@pytest.mark.parametrize(
    "line",
    [
        "init: 1e-1",
        "init: {asr: 1e-1, ser: 1}",
        "trainable: false\ngrid: [1e-1, 0.5]",
        "trainable: false\ngrid: {asr: [1e-1], ser: [0.5, 1e-1]}",
        "objective: supervised_ctc\nctc_weight: 1e-1",
        "objective: supervised_distill\ndistill_weight: 1e-1",
        "objective: supervised_distill\ndistill_weight: {ser: 1e-1}",
        "coef_lr: 1e-1",
        "epoch_factor: 1e-1",
        "preprocess: {method: ties, density: 1e-1}",
        "method: dare\nmethod_conf: {density: 1e-1, weights: {asr: 1e-1, ser: 1}}",
    ],
)
def test_every_number_may_be_written_without_a_point(tmp_path, line):
    read = []
    for number in ("1e-1", "0.1"):
        path = tmp_path / "row.yaml"
        path.write_text(line.replace("1e-1", number))
        read.append(MergeConfig.from_yaml(path).to_dict())
    assert read[0] == read[1]


def test_words_that_look_like_numbers_stay_words():
    assert MergeConfig.from_dict({"name": "1e-1"}).name == "1e-1"


def test_experts_are_teachers_and_where_the_head_comes_from():
    def experts(**options):
        return MergeConfig.from_dict({"name": "x", **options}).experts

    assert experts() == ()
    assert experts(head_init="ser_expert") == ("ser",)
    assert experts(objective="supervised_ctc") == ("asr",)
    assert experts(objective="supervised_ctc", head_init="ser_expert") == ("asr", "ser")
    assert experts(objective="supervised_distill", distill_weight={"ser": 1}) == ("ser",)


ENTROPY = "objective: entropy\nhead_init: ser_expert\ntrain_head: false"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("granularty: block", r"unknown key 'granularty' \(did you mean 'granularity'"),
        ("granularity: layer", "granularity 'layer' is unknown: use global, block"),
        ("tasks: [asr, emotion]", "tasks 'emotion' is unknown: use asr, ser"),
        ("tasks: asr", "tasks must be a list"),
        ("tasks: [asr, asr]", "named once"),
        ("init: high", "init 'high' is not a number"),
        ("init: {asr: 1}", "init names the tasks"),
        ("trainable: maybe", "trainable must be true or false, found 'maybe'"),
        ("train_head: 1", "train_head must be true or false, found 1"),
        ("constraint: relu", "constraint 'relu' is unknown"),
        ("constraint: [clamp]", "constraint"),
        ("head_init: expert", "head_init 'expert' is unknown: use scratch, ser_expert"),
        ("name: ''", "name must be a word"),
        ("objective: entopy", "objective 'entopy' is unknown: use supervised, entropy"),
        ("learn_on: dev", "learn_on 'dev' is unknown: use train, held_out, adapt"),
        ("learn_on: adapt", "learn_on adapt has no labels: it goes with objective: entropy"),
        ("objective: entropy", "no labels to learn a head from .it would collapse"),
        (f"{ENTROPY}\ntrainable: false", "nothing is learned"),
        ("train_head: false\nhead_init: scratch", "must come from somewhere"),
        ("tasks: []\nobjective: supervised_ctc", "is about the coefficients"),
        ("trainable: false\nobjective: supervised_ctc", "is about the coefficients"),
        ("ctc_weight: 0.5", "ctc_weight belongs to objective: supervised_ctc, found supervised"),
        ("distill_on: hidden", "distill_on belongs to objective: supervised_distill"),
        ("objective: supervised_ctc\nctc_weight: -1", "ctc_weight must be a number above 0"),
        ("objective: supervised_ctc\nctc_weight: 1e-1x", "ctc_weight must be a number above 0"),
        ("objective: supervised_distill\ndistill_weight: {mtl: 1}", "one for some of asr, ser"),
        ("coef_lr: fast", "coef_lr must be a number above 0, found 'fast'"),
        ("epoch_factor: 0", "epoch_factor must be a number above 0, found 0"),
        ("epoch_factor: null", "epoch_factor must be a number above 0, found None"),
        ("held_out_seed: 1.5", "held_out_seed must be a whole number"),
        ("grid: [0.1, 0.2]", "grid tries fixed coefficients: give trainable: false"),
        (
            "trainable: false\ntrain_head: false\nhead_init: ser_expert\ngrid: [0.5]",
            "nothing is learned",
        ),
        ("objective: supervised_distill\ndistill_weight: {}", "one for some of asr, ser"),
        ("objective: supervised_ctc\nctc_weight: .inf", "ctc_weight must be a number above 0"),
        ("trainable: false\ngrid: []", "grid must be a list of numbers"),
        ("trainable: false\ngrid: 0.5", "grid must be a list of numbers"),
        ("trainable: false\ngrid: {asr: [1], sre: [1]}", "init names the tasks"),
        ("preprocess: ties", "preprocess must be like .method: ties, density: 0.2."),
        ("preprocess: {method: tie}", "preprocess: method 'tie' is unknown.*did you mean 'ties'"),
        ("preprocess: {method: ties, densty: 1}", "unknown key 'densty' .did you mean 'density'"),
        ("preprocess: {method: ties, density: -1}", "density -1"),
        ("method: tiers", "method 'tiers' is unknown: use separate, task_arithmetic"),
        ("method: ties", "method ties needs the option density"),
        ("method: ties\nmethod_conf: {density: 0.2, sign: 1}", "unknown key 'sign'"),
        ("method: task_arithmetic\nmethod_conf: {weights: {asr: 1}}", "weights are given for"),
        ("method: task_arithmetic\nmethod_conf: {weights: null}", "weights None: give one number"),
        ("method: task_arithmetic\nmethod_conf: {weights: {asr: 1, 3: 1}}", r"\['3', 'asr'\]"),
        ("method: task_arithmetic\nmethod_conf: {thresholds: {}}", "unknown key 'thresholds'"),
        ("method: dare\nmethod_conf: {density: 0.5, seed: x}", "seed 'x': give a whole number"),
        (f"preprocess: {{method: shuffled_blocks, seed: {10**20}}}", "seed is out of range"),
        ("tasks: [asr, asr]\nmethod: task_arithmetic", "tasks .*: each may be named once"),
        ("init: {asr: 1, 3: 1}", "init: 3 is no name"),
        ("trainable: false\ngrid: {asr: [1], 3: [1]}", "grid: 3 is no name"),
        ("method_conf: {density: 0.2}", "method_conf without a method"),
        ("method: task_arithmetic\ntasks: []", "method task_arithmetic needs tasks"),
        ("method: task_arithmetic\ninit: {asr: 1, ser: 1}", "the merge has .'merged'."),
    ],
)
def test_mistakes_name_the_file(tmp_path, lines, message):
    path = tmp_path / "bad.yaml"
    path.write_text(f"{lines}\n")
    with pytest.raises(UserError, match=message) as error:
        MergeConfig.from_yaml(path)
    assert str(path) in str(error.value)
