"""The program: a folder that transformers loads, its recipe beside it, mistakes in one line."""

import json
import os
import re
import shutil

import pytest
import torch
import yaml
from merging_common import LAYERS, base_encoder, batch, moved
from safetensors.torch import load_file, save_file

from espnet_adaltm.backbone.loading import load_encoder, save_encoder, write_base_info
from espnet_adaltm.bin import merge
from espnet_adaltm.files import read_json, sha256_file, write_json
from espnet_adaltm.merging.offline import merge_state
from espnet_adaltm.merging.recipe import Recipe
from espnet_adaltm.merging.task_vector import TaskVector
from espnet_adaltm.merging.weights import open_weights

TASKS = ("asr", "ser")
NAME = "encoder.layers.1.attention.k_proj.weight"
WEIGHTS = {"asr": {"*": 0.3, "block0": 0}, "ser": [0.7, 0.2, 0.4]}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Base, experts as the pipeline leaves them, their vectors, and a recipe."""
    root = tmp_path_factory.mktemp("program")
    base = base_encoder()
    save_encoder(base, root / "base")
    info = write_base_info(root / "base", "random", "test")
    for seed, task in enumerate(TASKS, 11):
        folder = root / task
        folder.mkdir()
        save_file(dict(moved(base, seed).encoder_state()), folder / "expert.safetensors")
        write_json(folder / "expert.json", {"kind": task, "base_sha256": info["sha256"]})
        vector = TaskVector.from_checkpoints(root / "base", folder)
        vector.save(root / f"{task}.safetensors")
    (root / "row.yaml").write_text(yaml.safe_dump({"weights": WEIGHTS}))
    return root


@pytest.fixture
def folder(made, tmp_path, monkeypatch):
    """A copy to work in, as the current directory."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


EXPERTS = ("--experts", "asr=asr", "ser=ser")
VECTORS = ("--vectors", "asr=asr.safetensors", "ser=ser.safetensors")


def run(*words, config="row.yaml", inputs=EXPERTS):
    options = ("--config", config) if config else ()
    merge.main([*options, "--base", "base", "--out", "out", *inputs, *words])


def refused(capsys, *words, **options):
    with pytest.raises(SystemExit) as status:
        run(*words, **options)
    assert status.value.code == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(said) == 1
    return said[0]


def expected_state(folder):
    found = {task: TaskVector.load(folder / f"{task}.safetensors") for task in TASKS}
    with open_weights(folder / "base") as weights:
        return merge_state(dict(weights.items()), found, Recipe.from_dict({"weights": WEIGHTS}))


@pytest.mark.parametrize("inputs", [EXPERTS, VECTORS])
def test_the_folder_loads_in_transformers_with_the_merged_weights(folder, inputs):
    from transformers import AutoModel, WavLMModel

    run(inputs=inputs)
    expected = expected_state(folder)
    model, info = WavLMModel.from_pretrained(folder / "out", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    in_memory = base_encoder()
    in_memory.load_encoder_state(expected)
    found = load_encoder(folder / "out")
    for name, tensor in found.encoder_state().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-6)
        if "pos_conv" not in name:
            assert torch.equal(tensor, expected[name])
            assert torch.equal(model.state_dict()[name], expected[name])
    save_encoder(in_memory, folder / "plain")
    plain = AutoModel.from_pretrained(folder / "plain").eval()
    speech, _ = batch()
    with torch.no_grad():
        ours = model.eval()(speech, output_hidden_states=True).hidden_states
        theirs = plain(speech, output_hidden_states=True).hidden_states
    assert len(ours) == LAYERS + 1
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_what_is_written_and_told(folder, capsys):
    state = load_file(folder / "ser" / "expert.safetensors")
    save_file({**state, "lm_head.weight": torch.ones(3)}, folder / "ser" / "expert.safetensors")
    (folder / "half.yaml").write_text("weights: {asr: {block1: 0.25}, ser: {block1: 0.5}}")
    run(config="half.yaml")
    names = {path.name for path in (folder / "out").iterdir()}
    expected = {"config.json", "preprocessor_config.json", "model.safetensors"}
    assert names == expected | {"merge_recipe.yaml", "merge_report.txt"}
    told = capsys.readouterr().out
    assert (folder / "out" / "merge_report.txt").read_text() in told
    rows = {line.split()[0]: line.split() for line in told.splitlines() if line}
    assert rows["block1"][3:5] == ["0.25", "0.5"]
    assert 0 < float(rows["block1"][5]) < 1
    assert rows["block0"][3:] == ["0", "0", "-", "-"]
    kept = next(line for line in told.splitlines() if line.startswith("kept"))
    assert "kept as in the base (coefficients are 0)" in kept
    assert "left out, heads of ser: lm_head.weight" in told
    config = read_json(folder / "out" / "config.json")
    assert config["architectures"] == ["WavLMModel"]
    assert config["num_hidden_layers"] == LAYERS


def test_preprocessing_changes_neither_what_is_kept_nor_what_is_told(folder):
    state = load_file(folder / "asr" / "expert.safetensors")
    save_file({**state, "lm_head.weight": torch.ones(3)}, folder / "asr" / "expert.safetensors")
    text = "weights: 0.5\npreprocess: {method: magnitude, density: 0.1}\n"
    (folder / "row.yaml").write_text(text)
    run("--save_vectors", "kept")
    for task in TASKS:
        kept, made = (
            TaskVector.load(p) for p in (f"kept/{task}.safetensors", f"{task}.safetensors")
        )
        assert all(torch.equal(kept.tensors[n], made.tensors[n]) for n in made.tensors)
    recipe = yaml.safe_load((folder / "out" / "merge_recipe.yaml").read_text())
    assert recipe["made_from"]["tasks"]["asr"]["from"] == "asr/expert.safetensors"
    told = (folder / "out" / "merge_report.txt").read_text()
    assert "left out, heads of asr: lm_head.weight" in told
    base, out = (load_file(folder / name / "model.safetensors") for name in ("base", "out"))
    moved = (out[NAME] != base[NAME]).float().mean()
    assert 0.1 <= moved < 0.2  # a tenth of each vector, not all of it
    first = sha256_file(folder / "out" / "model.safetensors")
    shutil.rmtree(folder / "out")
    run()
    assert sha256_file(folder / "out" / "model.safetensors") == first


def test_a_seed_reaches_the_preprocessing(folder):
    found = set()
    for seed in (1, 2):
        text = f"weights: 1\nseed: {seed}\npreprocess: {{method: dare, density: 0.5}}\n"
        (folder / "row.yaml").write_text(text)
        run()
        first = sha256_file(folder / "out" / "model.safetensors")
        run(config="out/merge_recipe.yaml")
        assert sha256_file(folder / "out" / "model.safetensors") == first
        found.add(first)
    assert len(found) == 2


def test_the_recipe_beside_the_weights_makes_them_again(folder):
    run()
    recipe = yaml.safe_load((folder / "out" / "merge_recipe.yaml").read_text())
    assert recipe["weights"] == WEIGHTS
    assert recipe["made_from"]["base_sha256"] == sha256_file(folder / "base/model.safetensors")
    ser = recipe["made_from"]["tasks"]["ser"]
    assert ser["expert_sha256"] == sha256_file(folder / "ser/expert.safetensors")
    first = sha256_file(folder / "out" / "model.safetensors")
    shutil.copy(folder / "out" / "merge_recipe.yaml", folder / "again.yaml")
    run(config="again.yaml")
    assert sha256_file(folder / "out" / "model.safetensors") == first
    run(config="again.yaml", inputs=VECTORS)
    assert sha256_file(folder / "out" / "model.safetensors") == first


def test_low_precision_is_told_to_transformers(folder):
    from transformers import AutoModel

    config = read_json(folder / "base" / "config.json")
    write_json(folder / "base" / "config.json", {**config, "dtype": "float32"})
    (folder / "low.yaml").write_text("dtype: bfloat16\nweights: 0.5")
    run(config="low.yaml")
    assert AutoModel.from_pretrained(folder / "out").dtype == torch.bfloat16


def test_a_row_of_the_tables_and_learned_coefficients(folder, capsys):
    row = "name: adaltm\ntasks: [asr, ser]\ngranularity: block\ninit: 0.5\n"
    (folder / "adaltm.yaml").write_text(row)
    assert "its coefficients are learned" in refused(capsys, config="adaltm.yaml")
    final = [[0.3, 0.3, 0.3], [0.7, 0.2, 0.4]]
    blocks = ["block0", "block1", "block2"]
    values = {"tasks": list(TASKS), "groups": blocks, "epochs": [], "final": final}
    write_json(folder / "coefficients.json", values)
    run("--coefficients", "coefficients.json", config="adaltm.yaml")
    row = yaml.safe_load((folder / "out" / "merge_recipe.yaml").read_text())
    assert row["weights"]["ser"] == dict(zip(blocks, final[1]))
    (folder / "asr_only.yaml").write_text("tasks: [asr]\ninit: 1.0\ntrainable: false\n")
    run(config="asr_only.yaml")
    assert "not used, as the recipe does not name it: ser" in capsys.readouterr().out


def test_vectors_are_kept_on_the_way(folder):
    run("--save_vectors", "kept")
    run("--save_vectors", "kept")
    for task in TASKS:
        kept, made = (
            TaskVector.load(p) for p in (f"kept/{task}.safetensors", f"{task}.safetensors")
        )
        assert all(torch.equal(kept.tensors[n], made.tensors[n]) for n in made.tensors)
        assert kept.metadata == made.metadata


def test_a_dry_run_tells_and_writes_nothing(folder, capsys):
    before = sorted(os.listdir(folder))
    run("--dry_run", "--mergekit_yaml", "mk.yaml", inputs=("--experts", "asr=base", "ser=base"))
    assert "merged: " in capsys.readouterr().out
    assert sorted(os.listdir(folder)) == before


def test_a_mergekit_configuration_that_cannot_be_written_costs_no_merge(folder, capsys):
    experts = ("--experts", "asr=base", "ser=base")
    said = refused(capsys, "--mergekit_yaml", "row.yaml/mk.yaml", inputs=experts)
    assert "row.yaml" in said
    assert not (folder / "out").exists()


def test_a_mergekit_configuration_is_written_on_request(folder):
    for place in ("mk.yaml", "out/mk.yaml", "out/mk.yaml"):  # the last time over the one before
        run("--mergekit_yaml", place, inputs=("--experts", "asr=base", "ser=base"))
        written = yaml.safe_load((folder / place).read_text())
        assert written["merge_method"] == "task_arithmetic"


def test_a_merge_may_lie_in_a_folder_that_it_reads(folder):
    before = sha256_file(folder / "base" / "model.safetensors")
    for _ in range(2):
        run("--out", "base/m")
    assert (folder / "base" / "m" / "model.safetensors").is_file()
    assert sha256_file(folder / "base" / "model.safetensors") == before


def test_any_network_is_merged_under_its_own_names(folder):
    for name, value in (("b", 0.0), ("a1", 1.0), ("a2", 3.0)):
        (folder / name).mkdir()
        state = {"layers.0.w": torch.full((3,), value), "out.w": torch.full((2,), value)}
        save_file(state, folder / name / "model.safetensors")
    text = r"""
any_names: true
block_pattern: '^layers\.(?P<block>\d+)\.'
weights: {x: 0.5, y: 0.25}
"""
    (folder / "any.yaml").write_text(text)
    words = ["--config", "any.yaml", "--base", "b", "--experts", "x=a1", "y=a2", "--out", "o"]
    merge.main(words)
    state = load_file(folder / "o" / "model.safetensors")
    assert state["layers.0.w"].tolist() == [1.25] * 3
    assert state["out.w"].tolist() == [0.0] * 2


def cut(folder):
    path = folder / "ser" / "expert.safetensors"
    path.write_bytes(path.read_bytes()[:-40])


def spoil(folder):
    state = load_file(folder / "ser" / "expert.safetensors")
    state[NAME][0, 0] = torch.nan
    save_file(state, folder / "ser" / "expert.safetensors")


def other_base(folder):
    write_json(folder / "ser" / "expert.json", {"base_sha256": "f" * 64})


def deeper(folder):
    config = read_json(folder / "base" / "config.json")
    write_json(folder / "base" / "config.json", {**config, "num_hidden_layers": 5})


def bert(folder):
    write_json(folder / "base" / "config.json", {"model_type": "bert"})


def bare(folder):
    (folder / "base" / "config.json").unlink()


def misspelt(folder):
    (folder / "row.yaml").write_text("weigths: {asr: 1, ser: 1}")


def too_many(folder):
    (folder / "row.yaml").write_text("weights: {asr: [1, 2], ser: 1}")


def only_vectors(folder):
    (folder / "out").mkdir()
    for task in TASKS:
        shutil.copy(folder / f"{task}.safetensors", folder / "out")


def a_recipe_alone(folder):
    (folder / "out").mkdir()
    shutil.copy(folder / "row.yaml", folder / "out" / "merge_recipe.yaml")


def experts_by_task(folder):
    (folder / "kept").mkdir()
    for task in TASKS:
        shutil.copy(folder / task / "expert.safetensors", folder / f"kept/{task}.safetensors")


def an_earlier_merge(folder):
    (folder / "kept").mkdir()
    for name in ("model.safetensors", "merge_recipe.yaml"):
        (folder / "kept" / name).write_text("x")


def occupied(folder):
    (folder / "out").mkdir()
    (folder / "out" / "thesis.tex").write_text("mine")


@pytest.mark.parametrize(
    ("change", "words", "message"),
    [
        (cut, (), "expert.safetensors is not a readable safetensors file .*cut off"),
        (spoil, (), f"'{NAME}' has NaN or infinite values"),
        (other_base, (), "ser/expert.safetensors was made from the base ffffffffffff, but"),
        (deeper, (), "config.json tells of 5 layers, .* has 2"),
        (bert, (), "model_type 'bert' is not supported"),
        (bare, (), "--base must be a folder with a configuration"),
        (misspelt, (), r"row.yaml: unknown key 'weigths' \(did you mean 'weights'\?\)"),
        (too_many, (), "weights of asr: 2 numbers for 3 groups"),
        (occupied, (), "out holds other files"),
        (only_vectors, (), "out holds other files"),
        (a_recipe_alone, (), "out holds other files"),
        (experts_by_task, ("--save_vectors", "kept"), "kept holds other files"),
        (an_earlier_merge, ("--save_vectors", "kept"), "kept holds other files"),
        (None, ("--save_vectors", "out"), "--save_vectors out is the same as --out out"),
        (None, ("--save_vectors", "out/vec"), "--save_vectors out/vec lies in --out out"),
        (None, ("--save_vectors", "o", "--out", "o/m"), "o would replace what holds --out o/m"),
        (None, ("--save_vectors", "base/config.json"), "base/config.json lies in --base"),
        (None, ("--save_vectors", "asr"), "--save_vectors asr is the same as --experts asr asr"),
        (None, ("--mergekit_yaml", "out/a/mk.yaml"), "out/a/mk.yaml lies in --out out"),
        (None, ("--mergekit_yaml", "out/config.json"), "is a file of the merge itself"),
        (
            None,
            ("--mergekit_yaml", "out/preprocessor_config.json"),
            "is a file of the merge itself",
        ),
        (None, ("--mergekit_yaml", "row.yaml"), "is the same as --config row.yaml"),
        (None, ("--mergekit_yaml", "ser/expert.safetensors"), "lies in --experts ser ser"),
        (None, ("--mergekit_yaml", "base"), "base is a folder: give a file"),
        (None, ("--experts", "asr=asr.safetensors", "ser=ser"), "asr.safetensors is a task vector"),
        (None, ("--experts", "base=asr"), "--experts 'base=asr': task 'base': give a name"),
        (None, ("--experts", "../evil=asr"), "task '../evil': give a name"),
        (None, ("--threads", "0"), "--threads 0"),
        (None, ("--experts", "asr=asr"), "task ser has no vector"),
        (None, ("--experts", "asr=asr", "ser=nowhere"), "nowhere does not exist"),
        (None, ("--experts", "asr=asr", "asr=ser"), "names the task asr twice"),
        (None, ("--experts", "asr"), "expected TASK=PATH"),
        (None, ("--vectors", "asr=asr.safetensors"), "task asr has both"),
        (None, ("--mergekit_yaml", "mk.yaml"), "under other keys than"),
        (None, ("--out", "."), "holds other files"),
        (None, ("--out", "row.yaml"), "row.yaml is a file"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(folder, capsys, change, words, message):
    if change:
        change(folder)
    before = sorted(path.relative_to(folder) for path in folder.rglob("*"))
    said = refused(capsys, *words)
    assert re.search(message, said), said
    assert sorted(path.relative_to(folder) for path in folder.rglob("*")) == before


def test_vectors_of_another_base_and_other_files_are_refused(folder, capsys):
    vector = TaskVector.load(folder / "ser.safetensors")
    metadata = {**vector.metadata, "base_sha256": "e" * 64}
    TaskVector(vector.tensors, metadata).save(folder / "ser.safetensors")
    said = refused(capsys, inputs=VECTORS)
    assert "ser.safetensors was made from the base eeeeeeeeeeee" in said
    words = ("--vectors", "asr=asr.safetensors", "ser=base/model.safetensors")
    assert "is not a task vector" in refused(capsys, inputs=words)
    said = refused(capsys, "--save_vectors", "kept", inputs=VECTORS)
    assert "--save_vectors takes differences of --experts" in said
    assert not (folder / "out").exists()


def test_a_full_disk_is_one_line_and_keeps_the_old_merge(folder, capsys, monkeypatch):
    run()
    first = sha256_file(folder / "out" / "model.safetensors")
    monkeypatch.setattr(os, "pwrite", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    assert "no space left on the disk" in refused(capsys)
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    usage = shutil.disk_usage(folder)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert "has 0.0 GB left" in refused(capsys)
    assert sha256_file(folder / "out" / "model.safetensors") == first
    assert not [name for name in os.listdir(folder) if name.endswith(".tmp")]


def test_the_recipe_of_another_base_is_refused(folder, capsys):
    (folder / "row.yaml").write_text(
        json.dumps({"weights": 1, "made_from": {"base_sha256": "d" * 64}})
    )
    assert "the recipe row was made from the base dddddddddddd" in refused(capsys)
