"""Recipes: what they may say, what the rows of the tables become, and every mistake by name."""

import math
from pathlib import Path

import pytest
import yaml
from merging_common import LAYERS, base_encoder

from espnet_adaltm.errors import UserError
from espnet_adaltm.files import write_json
from espnet_adaltm.merging.groups import GRANULARITIES
from espnet_adaltm.merging.merged import coefficients_for
from espnet_adaltm.merging.recipe import Recipe, load_recipe

ROWS = Path(__file__).parents[2] / "conf" / "merge"
NAMES = list(base_encoder().encoder_state())
BLOCKS = ["block0", "block1", "block2"]


def spread(options, tasks=("asr", "ser")):
    recipe = Recipe.from_dict(options).for_tasks(tasks)
    return recipe.table(recipe.block_map(NAMES, norm_first=True))


def test_weights_by_number_task_list_and_group():
    assert spread({"weights": 0.5}).weights == [[0.5] * 3] * 2
    assert spread({"weights": {"asr": 0.1, "ser": 1}}).weights == [[0.1] * 3, [1.0] * 3]
    table = spread({"weights": {"asr": [0.1, 0.2, 0.3], "ser": {"block1": 2}}})
    assert table.weights == [[0.1, 0.2, 0.3], [0.0, 2.0, 0.0]]
    assert table.groups == tuple(BLOCKS)
    assert spread({"scale": {"*": 0.5, "block[12]": 0.7}}).scale == [0.5, 0.7, 0.7]
    assert spread({}).weights == [[1.0] * 3] * 2


def test_later_patterns_win_and_groups_follow_the_granularity():
    weights = {"asr": {"*": 0.1, "*.attention": 0.2, "block2.attention": 0.3}, "ser": 0}
    table = spread({"granularity": "module", "weights": weights})
    found = dict(zip(table.groups, table.weights[0], strict=True))
    assert found["block0.cnn"] == 0.1
    assert found["block1.attention"] == 0.2
    assert found["block2.attention"] == 0.3
    assert spread({"granularity": "global"}).groups == ("all",)
    assert len(spread({"granularity": "tensor"}).groups) == len(NAMES)


def test_tasks_come_from_the_recipe_its_weights_or_what_is_given():
    assert Recipe.from_dict({"tasks": ["ser"]}).for_tasks(["ser"]).tasks == ("ser",)
    weights = {"ser": 1, "asr": 1}
    assert Recipe.from_dict({"weights": weights}).for_tasks(["asr", "ser"]).tasks == ("ser", "asr")
    assert Recipe.from_dict({}).for_tasks(["b", "a"]).tasks == ("b", "a")
    assert Recipe.from_dict({"tasks": []}).for_tasks([]).tasks == ()


@pytest.mark.parametrize(
    ("options", "given", "message"),
    [
        ({"tasks": ["asr", "ser"]}, ["asr"], "task ser has no vector: .* given are asr"),
        ({"weights": {"asr": 1}}, ["asr", "ser"], "task ser is not in the recipe"),
        ({"tasks": ["asr"]}, [], "task asr has no vector: .* given are none"),
        ({}, [], "no task vectors to merge"),
        ({}, ["base"], "task 'base': give a name"),
    ],
)
def test_empty_and_one_sided_sets_are_told(options, given, message):
    with pytest.raises(UserError, match=message):
        Recipe.from_dict(options).for_tasks(given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wieghts": 1}, r"unknown key 'wieghts' \(did you mean 'weights'\?\)"),
        ({"method": "tie"}, r"method 'tie' is unknown \(did you mean 'ties'\?\)"),
        ({"method": "ties"}, "ties needs the option density"),
        ({"method": "ties", "options": {"densty": 1}}, r"'densty' \(did you mean 'density'\?\)"),
        ({"options": [1]}, "options must be like"),
        ({"granularity": "layer"}, "granularity 'layer' is unknown"),
        ({"dtype": "float8"}, "dtype 'float8' is unknown"),
        ({"weights": math.nan}, "weights: nan is not a finite number"),
        ({"weights": {"asr": [0.1, math.inf]}}, "weights of asr: inf is not a finite"),
        ({"weights": {"asr": {"block0": "much"}}}, "weights of asr: 'much' is not a finite"),
        ({"weights": True}, "True is not a finite number"),
        ({"scale": {"*": None}}, "scale: None is not a finite"),
        ({"tasks": "asr"}, "tasks must be a list"),
        ({"tasks": ["asr", "asr"]}, "each once"),
        ({"tasks": ["asr"], "weights": {"ser": 1}}, r"weights name the tasks \['ser'\]"),
        ({"seed": "one"}, "seed 'one'"),
        ({"preprocess": {"method": "nothing"}}, "'nothing' is unknown"),
        ({"preprocess": "none"}, "preprocess must be like"),
        ({"preprocess": {"method": "low_rank"}}, "give rank or energy"),
        ({"block_pattern": "x"}, "goes with any_names"),
        ({"any_names": 1}, "any_names 1 is no bool"),
        ({"any_names": True, "block_pattern": 3}, "block_pattern 3 is no text"),
        (
            {"any_names": True, "block_pattern": "x", "granularity": "tensor"},
            "block_pattern goes with granularity block or module, found tensor",
        ),
        ({"made_from": {"base_sha256": 5}}, "base_sha256 5 is no text"),
        ({"weights": {"asr": {0: 0.3, 1: 0.5}, "ser": 0.5}}, "weights of asr: 0 is no name of a"),
        ({"scale": {0: 1}}, "scale: 0 is no name of a group"),
        ({"weights": {"asr": 1, 5: 1}}, "task 5: give a name"),
        ({"weights": {"base": 1}}, "task 'base': give a name .* other than base"),
        ({"tasks": ["../evil"]}, "task '../evil': give a name of letters"),
        ({"method": "ties", "options": {"density": 20}}, "density 20: give the share"),
        ({"learned": "x"}, "unknown key 'learned'"),
    ],
)
def test_mistakes_are_named_with_their_place(options, message):
    with pytest.raises(UserError, match=f"^here: .*{message}"):
        Recipe.from_dict(options, "here")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {"asr": [0.1, 0.2], "ser": 1}}, "weights of asr: 2 numbers for 3 groups"),
        ({"scale": {"block3": 1}}, r"'block3' matches no group .*did you mean 'block2'"),
        ({"granularity": "global", "scale": {"block0": 1}}, "matches no group .* groups: all"),
    ],
)
def test_weights_that_do_not_fit_the_model_are_told(options, message):
    with pytest.raises(UserError, match=message):
        spread(options)


def test_a_recipe_survives_its_own_yaml():
    options = {"weights": {"asr": 0.0, "ser": {"*": 0.5}}, "scale": 0, "tasks": ["asr", "ser"]}
    recipe = Recipe.from_dict(options)
    back = yaml.safe_load(yaml.safe_dump(recipe.to_dict()))
    assert Recipe.from_dict(back) == recipe
    assert back["scale"] == 0


def written(folder, text, name="merge.yaml"):
    (folder / name).write_text(text)
    return folder / name


def test_a_file_is_named_in_errors_and_names_the_recipe(tmp_path):
    assert load_recipe(written(tmp_path, "weights: 0.5", "half.yaml")).name == "half"
    with pytest.raises(UserError, match=r"merge\.yaml: unknown key 'weihgts'"):
        load_recipe(written(tmp_path, "weihgts: 0.5"))
    with pytest.raises(UserError, match="give --config, --coefficients or both"):
        load_recipe(None)


def test_fixed_rows_of_the_tables_are_recipes():
    static = load_recipe(ROWS / "static.yaml")
    assert (static.method, static.weights, static.tasks) == ("task_arithmetic", 0.5, ("asr", "ser"))
    ties = load_recipe(ROWS / "ties.yaml")
    assert (ties.method, ties.scale) == ("ties", 1.0)
    assert ties.options["density"] == 0.2
    assert load_recipe(ROWS / "base.yaml").tasks == ()
    assert load_recipe(ROWS / "dare.yaml").method == "dare"


@pytest.mark.parametrize(
    ("text", "how"),
    [
        ("name: x\ntasks: [asr, ser]\ngranularity: block\n", "as a recipe it needs weights"),
        ("preprocess: {method: ties, density: 0.2}", "as a recipe it needs weights"),
        ("method: separate", "or fix them with trainable: false"),
    ],
)
def test_rows_that_say_little_are_not_taken_for_recipes(tmp_path, text, how):
    with pytest.raises(UserError, match=f"its coefficients are learned: .*{how}"):
        load_recipe(written(tmp_path, text))
    path = coefficients(tmp_path)
    assert load_recipe(tmp_path / "merge.yaml", path).weights["ser"]["block2"] == 3


def test_recipes_that_need_no_weights_are_recipes(tmp_path):
    for text, expected in (("method: slerp", "slerp"), ("tasks: []", "task_arithmetic")):
        assert load_recipe(written(tmp_path, text)).method == expected


@pytest.mark.parametrize(("row", "how"), [("adaltm", "learned"), ("static_grid", "picked")])
def test_rows_that_are_learned_need_their_coefficients(row, how):
    with pytest.raises(UserError, match=f"{row}.yaml: its coefficients are {how}"):
        load_recipe(ROWS / f"{row}.yaml")


def coefficients(folder, **changes):
    values = {"tasks": ["asr", "ser"], "groups": BLOCKS, "final": [[0.1, 0.2, 0.3], [1, 2, 3]]}
    write_json(folder / "coefficients.json", {**values, **changes})
    return folder / "coefficients.json"


def test_learned_coefficients_alone_with_a_row_or_with_their_training(tmp_path):
    path = coefficients(tmp_path)
    expected = {"asr": dict(zip(BLOCKS, [0.1, 0.2, 0.3])), "ser": dict(zip(BLOCKS, [1, 2, 3]))}
    for recipe in (load_recipe(None, path), load_recipe(ROWS / "adaltm.yaml", path)):
        assert (recipe.method, recipe.granularity) == ("task_arithmetic", "block")
        assert recipe.weights == expected
        assert recipe.table(recipe.block_map(NAMES, norm_first=True)).weights[1] == [1, 2, 3]
    preprocess = {"method": "ties", "density": 0.2}
    options = {"name": "row", "preprocess": preprocess}
    write_json(tmp_path / "merge.json", {"options": options, "base_sha256": "abc"})
    recipe = load_recipe(None, path)
    assert recipe.preprocess == preprocess
    assert recipe.made_from == {"base_sha256": "abc"}


def test_coefficients_of_a_merged_vector_become_the_scale(tmp_path):
    path = coefficients(tmp_path, tasks=["merged"], groups=["all"], final=[[0.3]])
    recipe = load_recipe(ROWS / "task_arithmetic.yaml", path)
    assert (recipe.scale, recipe.weights, recipe.granularity) == ({"all": 0.3}, 1.0, "global")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"final": [[0.1, 0.2, 0.3]]}, r"must be \(2, 3\) finite numbers"),
        ({"final": [[0.1, 0.2], [1, 2]]}, r"must be \(2, 3\) finite numbers"),
        ({"final": [[0.1, 0.2, math.nan], [1, 2, 3]]}, "finite numbers"),
        ({"final": None}, "is no coefficients.json"),
        ({"groups": [None]}, "is no coefficients.json .*: tasks and groups must be names"),
        ({"tasks": ["ser", "asr"]}, r"coefficients of \['ser', 'asr'\], the recipe merges"),
        ({"groups": ["block0", "block1", "block0"]}, "names 'block0' twice"),
        ({"tasks": [], "final": []}, "coefficients of no task"),
    ],
)
def test_coefficients_of_the_wrong_shape_are_told(tmp_path, changes, message):
    path = coefficients(tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        load_recipe(ROWS / "adaltm.yaml", path)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_coefficients_of_a_training_are_for_every_group_of_the_file(tmp_path, granularity):
    made = coefficients_for(base_encoder(), ["asr"], granularity, init=0.3)
    path = coefficients(tmp_path, tasks=["asr"], groups=made.groups, final=made.table())
    (tmp_path / "row.yaml").write_text(f"granularity: {granularity}\ntasks: [asr]\ninit: 0.3\n")
    for recipe in (load_recipe(None, path), load_recipe(tmp_path / "row.yaml", path)):
        assert recipe.granularity == granularity
        table = recipe.table(recipe.block_map(NAMES, norm_first=True))
        assert table.weights == [pytest.approx([0.3] * len(made.groups))]
        assert Recipe.from_dict(recipe.to_dict()).weights == recipe.weights


@pytest.mark.parametrize(
    ("row", "groups", "message"),
    [
        (None, BLOCKS[:2], "weights of asr by block: no number for 'block2'"),
        (None, [*BLOCKS, "block3"], "weights of asr by block: 'block3' is no group of this model"),
        (None, [], "by block: no number for 'block0'"),
        (None, ["block1.attention"], "by module: no number for 'block0.cnn'"),
        (None, [NAMES[0]], "by tensor: no number for"),
        (None, ["block*"], r"by tensor: 'block\*' is no group of this model"),
        ("global", BLOCKS, "by global: 'block0' is no group of this model; groups: all"),
        ("adaltm_module", BLOCKS, "by module: 'block0' is no group"),
    ],
)
def test_coefficients_for_some_groups_or_others_are_told(tmp_path, row, groups, message):
    final = [[1.0] * len(groups)] * 2
    path = coefficients(tmp_path, groups=groups, final=final)
    recipe = load_recipe(row and ROWS / f"{row}.yaml", path)
    with pytest.raises(UserError, match=f"{path}: .*{message}"):
        recipe.table(recipe.block_map(NAMES, norm_first=True))


def test_coefficients_of_a_merged_vector_are_for_every_group_too(tmp_path):
    path = coefficients(tmp_path, tasks=["merged"], groups=BLOCKS[:2], final=[[0.3, 0.4]])
    text = "method: task_arithmetic\ninit: 1\ngranularity: block"
    recipe = load_recipe(written(tmp_path, text), path).for_tasks(["asr", "ser"])
    with pytest.raises(UserError, match="scale by block: no number for 'block2'"):
        recipe.table(recipe.block_map(NAMES, norm_first=True))


def test_tensors_that_are_called_as_blocks_are_stay_tensors(tmp_path):
    names = ["block0.weight", "block1.weight"]
    path = coefficients(tmp_path, tasks=["x"], groups=names, final=[[1, 2]])
    for text in ("any_names: true", "any_names: true\ngranularity: tensor"):
        recipe = load_recipe(written(tmp_path, text), path)
        assert recipe.granularity == "tensor"
        assert recipe.table(recipe.block_map(names, norm_first=True)).weights == [[1, 2]]


def test_the_seed_is_that_of_a_preprocessing_without_one():
    def preprocess(**options):
        return Recipe.from_dict(options).to_dict()["preprocess"]

    dare = {"method": "dare", "density": 0.5}
    assert preprocess(seed=3, preprocess=dare) == {**dare, "seed": 3}
    assert preprocess(seed=3, preprocess={**dare, "seed": 1}) == {**dare, "seed": 1}
    assert preprocess(seed=3, preprocess={"method": "ties"}) == {"method": "ties"}
    # what a merge wrote before this was so
    written = {"base_sha256": "abc", "espnet_adaltm": "0.1.0"}
    assert preprocess(seed=3, preprocess=dare, made_from=written) == {**dare, "seed": 0}


def test_the_seed_of_a_rows_method_is_not_that_of_its_preprocessing(tmp_path):
    text = "method: dare\nmethod_conf: {density: 0.5, seed: 3}\npreprocess: {method: random}\n"
    recipe = load_recipe(written(tmp_path, f"{text}trainable: false\n"))
    assert (recipe.seed, recipe.seeded_preprocess["seed"]) == (3, 0)


def test_the_row_without_tasks_has_no_coefficients(tmp_path):
    assert load_recipe(ROWS / "base.yaml", coefficients(tmp_path, tasks=[], final=[])).tasks == ()
    with pytest.raises(UserError, match=r"\['asr', 'ser'\], the recipe merges \[\]"):
        load_recipe(ROWS / "base.yaml", coefficients(tmp_path))


def test_other_files_and_double_weights_are_told(tmp_path):
    write_json(tmp_path / "no.json", {"tasks": []})
    with pytest.raises(UserError, match="is no coefficients.json .*'groups'"):
        load_recipe(None, tmp_path / "no.json")
    with pytest.raises(UserError, match="has weights of its own"):
        load_recipe(written(tmp_path, "weights: 0.5"), coefficients(tmp_path))
    write_json(tmp_path / "merge.json", {})
    with pytest.raises(UserError, match="has no 'options'"):
        load_recipe(None, coefficients(tmp_path))


def test_tensors_of_any_network_have_places():
    names = ["layers.0.w", "layers.1.w", "head.w"]
    by_block = Recipe.from_dict({"any_names": True, "block_pattern": r"^layers\.(?P<block>\d+)\."})
    blocks = by_block.block_map(names, norm_first=True)
    assert blocks["layers.1.w"].block == 2
    assert blocks.unmatched == ("head.w",)
    optional = {"any_names": True, "block_pattern": r"^\w+(\.(?P<block>\d+))?\."}
    blocks = Recipe.from_dict(optional).block_map(names, norm_first=True)
    assert (blocks["layers.1.w"].block, blocks.unmatched) == (2, ("head.w",))
    everything = Recipe.from_dict({"any_names": True, "granularity": "tensor"})
    assert set(everything.block_map(names, norm_first=True)) == set(names)


def test_the_example_of_the_documentation_is_a_recipe():
    from espnet_adaltm.bin import merge

    text = merge.__doc__.split("merging.recipe`):\n")[1].split("\nA row")[0]
    recipe = Recipe.from_dict(yaml.safe_load(text))
    assert recipe.weights["ser"] == {"*": 0.5, "block0": 0, "block12": 0.8}
    assert LAYERS < 12


def test_the_shipped_example_gives_every_layer_of_the_large_model_its_weight():
    recipe = load_recipe(ROWS.parent / "offline" / "per_layer.yaml").for_tasks(["asr", "ser"])
    names = [f"encoder.layers.{layer}.layer_norm.weight" for layer in range(24)]
    names += ["feature_extractor.conv_layers.0.conv.weight"]
    table = recipe.table(recipe.block_map(names, norm_first=True))
    found = {
        row: dict(zip(table.groups, values)) for row, values in zip(table.tasks, table.weights)
    }
    middle = {f"block{depth}" for depth in range(6, 17)}
    assert found["asr"] == {group: 0.3 * (group != "block0") for group in table.groups}
    assert {group for group, value in found["ser"].items() if value == 0.6} == middle
    assert found["ser"]["block0"] == 0
