"""Whatever configurations, coefficients, labels and weights hold, it is valid, or an error tells.

The examples are drawn from a fixed seed: a failure is the same everywhere.
"""

import json
import os
from dataclasses import fields

import numpy as np
import pytest
import yaml
from fuzz_common import fuzz, junk, numbers, texts, valid, words
from hypothesis import example, given
from hypothesis import strategies as st

from espnet_adaltm.config import load_yaml
from espnet_adaltm.data.labels import Labels, load_labels, save_labels
from espnet_adaltm.files import read_json, write_json
from espnet_adaltm.merging.coefficients import CONSTRAINTS, Coefficients
from espnet_adaltm.merging.config import MergeConfig
from espnet_adaltm.merging.recipe import Recipe, load_recipe
from espnet_adaltm.merging.tensor_file import TensorFile, write_tensor_file
from espnet_adaltm.scoring.tables import markdown
from espnet_adaltm.text import markdown_cell, markdown_uncell, printable


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)  # what is written here need not last
        yield tmp_path_factory.mktemp("fuzz")


# --------------------------------------------------------------------------------- YAML and JSON
tokens = st.sampled_from(
    ["a", "b", ":", ": ", "- ", "\n", "  ", "&x ", "*x", "<<", "[", "]", "{", "}", ",", "'",
     "!!int ", "!!timestamp ", "!!python/name:os.system ", "|", ">", "#", "? ", "---", "...", "0b_",
     "1:9", "~"]
)  # fmt: skip


@fuzz(200)
@given(text=st.one_of(st.lists(tokens, max_size=14).map("".join), texts, st.binary(max_size=20)))
@example(text="a: &x [*x]")
@example(text="a: 2001-99-99")
def test_any_yaml(folder, text):
    path = folder / "x.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    found = valid(load_yaml, path)
    assert found is None or all(isinstance(key, str) for key in found)


settled = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(10**9), 10**9), texts, st.floats(allow_nan=False)
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=3)),
    max_leaves=6,
)


@fuzz(60)
@given(value=st.dictionaries(words, settled, min_size=1, max_size=4))
def test_yaml_and_json_come_back(folder, value):
    (folder / "x.yaml").write_text(yaml.safe_dump(value, allow_unicode=True), encoding="utf-8")
    assert load_yaml(folder / "x.yaml") == value
    write_json(folder / "x.json", value)
    assert read_json(folder / "x.json") == value


@fuzz(80)
@given(
    content=st.one_of(
        st.binary(max_size=40), junk.map(lambda v: json.dumps(v, default=str).encode())
    )
)
@example(content=b"[" * 100_000)
@example(content=b"1" * 10_000)
def test_any_json(folder, content):
    (folder / "x.json").write_bytes(content)
    found = valid(read_json, folder / "x.json")
    assert found is None or isinstance(found, dict)


KNOWN = {
    "tasks": [["asr", "ser"], [], "asr", ["asr", "asr"]],
    "preprocess": [{"method": "ties", "density": 0.2}, {"method": "none"}, {"method": 1}],
    "method": ["separate", "ties", "dare", "task_arithmetic", "slerp"],
    "method_conf": [{"density": 0.2}, {"weights": 1}], "options": [{"density": 0.2}],
    "granularity": ["global", "block", "module", "tensor"],
    "init": [0.5, {"asr": 0.1, "ser": 2}], "constraint": list(CONSTRAINTS),
    "grid": [[0.1, 0.2], {"asr": [1], "ser": [2]}], "head_init": ["scratch", "ser_expert"],
    "objective": ["supervised", "entropy", "supervised_ctc", "supervised_distill"],
    "learn_on": ["train", "held_out", "adapt"], "weights": [1, {"asr": {"*": 1}, "ser": [1, 2]}],
    "scale": [1, {"block*": 2}, [1]], "dtype": ["float32", "bfloat16"], "seed": [0, -1],
}  # fmt: skip


def options_of(kind):
    """Some options of a configuration, most of them of the right kind."""
    return st.fixed_dictionaries(
        {"name": st.just("x")},
        optional={
            item.name: st.one_of(st.sampled_from(KNOWN.get(item.name, [True, False, 0.5, 3])), junk)
            for item in fields(kind)
            if item.name != "name"
        },
    )


@fuzz(250)
@given(options=options_of(MergeConfig))
def test_any_row_of_the_merging_tables(options):
    row = valid(MergeConfig.from_dict, options)
    if row is not None:
        assert MergeConfig.from_dict(row.to_dict()).to_dict() == row.to_dict()


@fuzz(250)
@given(options=options_of(Recipe))
def test_any_recipe(options):
    recipe = valid(Recipe.from_dict, options)
    if recipe is not None:
        assert Recipe.from_dict(recipe.to_dict()).to_dict() == recipe.to_dict()


# ---------------------------------------------------------------------- coefficients and labels
coefficient_files = st.fixed_dictionaries(
    {},
    optional={
        "tasks": st.one_of(st.just(["asr", "ser"]), st.just(["merged"]), junk),
        "groups": st.one_of(st.just(["block0", "block1"]), st.just(["all"]), junk),
        "final": st.one_of(st.lists(st.lists(numbers, min_size=1, max_size=2), max_size=2), junk),
    },
)


@fuzz(150)
@given(table=coefficient_files, merge=st.one_of(st.none(), junk, options_of(MergeConfig)))
@example(table={"tasks": [], "groups": [None], "final": []}, merge=None)
def test_any_coefficients(folder, table, merge):
    path = folder / "merge" / "coefficients.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(table, default=str))
    beside = path.with_name("merge.json")
    beside.unlink(missing_ok=True)
    if merge is not None:
        beside.write_text(json.dumps({"options": merge}, default=str))
    recipe = valid(load_recipe, None, path)
    if recipe is not None:
        assert Recipe.from_dict(recipe.to_dict()).to_dict() == recipe.to_dict()


@fuzz(60)
@given(
    constraint=st.sampled_from(CONSTRAINTS),
    table=st.lists(st.lists(st.floats(-1.5, 1.5), min_size=2, max_size=2), min_size=2, max_size=2),
)
def test_coefficients_come_back(constraint, table):
    def filled():
        made = Coefficients(["asr", "ser"], ["block0", "block1"], constraint=constraint)
        made.fill(table)
        return made

    made = valid(filled)
    if made is not None:
        assert np.allclose(made.table(), table, atol=2e-6)


@fuzz(100)
@given(value=st.one_of(junk, st.fixed_dictionaries(
    {"labels": st.one_of(junk, st.lists(words, max_size=4))},
    optional={"codes": junk, "counts": junk, "policy": junk, "more": junk})))  # fmt: skip
def test_any_labels(folder, value):
    path = folder / "labels.json"
    path.write_text(json.dumps(value, default=str))
    labels = valid(load_labels, path)
    if labels is not None:
        save_labels(path, labels)
        assert load_labels(path) == labels
        assert all(labels.index(name) == place for place, name in enumerate(labels.labels))
        valid(labels.target, "sad=1")


@fuzz(60)
@given(
    names=st.lists(words.filter(lambda w: "=" not in w), min_size=2, max_size=5, unique=True),
    codes=st.dictionaries(words, words, max_size=2),
    policy=texts,
)
def test_labels_come_back(folder, names, codes, policy):
    labels = Labels(tuple(names), codes, {"train": dict.fromkeys(names, 3)}, policy)
    save_labels(folder / "labels.json", labels)
    assert load_labels(folder / "labels.json") == labels


# ----------------------------------------------------------------------------- weights and text
@fuzz(150)
@given(
    changes=st.lists(st.tuples(st.integers(0, 120), st.integers(0, 255)), min_size=1, max_size=4),
    size=st.integers(0, 200),
)
def test_any_damage_to_weights(folder, changes, size):
    import torch

    path = folder / "x.safetensors"
    if not path.exists():
        write_tensor_file(path, {"a": torch.ones(2, 3), "b": torch.zeros(4)}, {"x": "y"})
    content = bytearray(path.read_bytes()[: max(size, 100)])
    for place, value in changes:
        content[place : place + 1] = bytes([value]) if place < len(content) else b""
    (folder / "y.safetensors").write_bytes(content)
    opened = valid(TensorFile, folder / "y.safetensors")
    if opened is not None:
        with opened:
            for name in opened.specs:
                valid(opened.read, name)


@fuzz(100)
@given(text=texts)
def test_text_for_terminals_and_tables(text):
    assert all(line.isprintable() for line in printable(text).split("\n"))
    cell = markdown_cell(text)
    assert "<" not in cell
    assert "\n" not in cell
    if "\\|" not in text:
        assert markdown_uncell(cell) == text.replace("\n", " ")
    assert len(markdown([text], [[text]]).split("\n")) == 3
