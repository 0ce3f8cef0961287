"""Experts and vectors that a merge reads: what is missing, damaged or of another is told first."""

import argparse
import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from training_common import CONF, merge_options, options, read, stats, train, yaml

from espnet_adaltm.errors import UserError
from espnet_adaltm.merging.config import MergeConfig
from espnet_adaltm.merging.task_vector import TaskVector
from espnet_adaltm.training.merge_teachers import check_teachers

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    ("row", "change", "message"),
    [
        ("adaltm_ctc", {"asr_expert": None}, "objective: supervised_ctc needs --asr_expert"),
        ("adaltm_distill", {"ser_expert": None}, "supervised_distill needs --ser_expert"),
        ("adamerging", {"ser_expert": None}, "head_init: ser_expert needs --ser_expert"),
    ],
)
def test_a_missing_expert_is_named(corpus, experts, tmp_path, row, change, message):
    with pytest.raises(UserError, match=message):
        train("merge", merge_options(corpus, experts, tmp_path, row, **change))


def test_another_expert_than_the_merged_one_is_refused(corpus, experts, tmp_path):
    for task in ("asr", "ser"):
        train(task, options(corpus, tmp_path / task, task, max_epoch=1, seed=8))
        change = {f"{task}_expert": tmp_path / task}
        with pytest.raises(UserError, match="is not the expert that .* was made of"):
            train("merge", merge_options(corpus, experts, tmp_path, "adaltm_distill", **change))
    swapped = {"asr_expert": experts / "ser", "ser_expert": experts / "asr"}
    with pytest.raises(UserError, match="--asr_expert: .* is of kind 'ser', not asr"):
        train("merge", merge_options(corpus, experts, tmp_path / "m", "adaltm_ctc", **swapped))


@pytest.mark.parametrize("row", ["adamerging", "adaltm_plus"])
def test_the_head_of_another_expert_than_the_merged_one_is_refused(corpus, experts, tmp_path, row):
    other = shutil.copytree(experts / "ser", tmp_path / "ser")
    tensors = load_file(other / "expert.safetensors")
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, other / "expert.safetensors")
    argv = merge_options(corpus, experts, tmp_path / "m", row, ser_expert=other)
    with pytest.raises(UserError, match=r"--ser_expert: .* is not the expert that .*ser\.safet"):
        train("merge", argv)
    assert not (tmp_path / "m").exists()


def cut(path):
    path.write_bytes(path.read_bytes()[:-10])


def of_two_classes(path):
    tensors = load_file(path)
    last = ("output.2.weight", "output.2.bias")
    save_file(tensors | {name: tensors[name][:2].clone() for name in last}, path)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("expert.json", lambda path: path.write_text("{}"), "expert.json: kind None is none of"),
        ("expert.json", Path.unlink, "expert.json is missing: run stage `ser_expert` first"),
        ("head.safetensors", Path.unlink, "head.safetensors is missing: run stage `ser_expert`"),
        ("head.safetensors", cut, "head.safetensors is not a readable .* may be cut off"),
        (
            "head.safetensors",
            of_two_classes,
            r"head.safetensors does not fit .* shape \(2, 16\), expected \(3, 16\)",
        ),
    ],
)
@pytest.mark.parametrize("row", ["adamerging", "adaltm_distill"])
def test_a_damaged_emotion_expert_is_told_before_anything_is_written(
    corpus, experts, tmp_path, row, name, damage, message
):
    damage(shutil.copytree(experts / "ser", tmp_path / "ser") / name)
    change = {"ser_expert": tmp_path / "ser"}
    with pytest.raises(UserError, match=message):
        train("merge", merge_options(corpus, experts, tmp_path / "m", row, **change))
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ({"hidden": 8}, r"head.safetensors does not fit the model: .* \(16,\), expected \(8,\)"),
        ({"depth": 3}, "expert.json does not hold what stage `ser_expert` writes .*'depth'"),
    ],
)
def test_a_teacher_whose_head_is_not_as_described_is_refused(
    corpus, experts, tmp_path, described, message
):
    folder = shutil.copytree(experts / "ser", tmp_path / "ser")
    info = read(folder, "expert.json") | {"head": described}
    (folder / "expert.json").write_text(json.dumps(info))
    argv = merge_options(corpus, experts, tmp_path / "m", "adaltm_distill", ser_expert=folder)
    with pytest.raises(UserError, match=message):
        train("merge", argv)
    assert not (tmp_path / "m").exists()


def test_an_expert_of_another_base_is_refused(corpus, experts, tmp_path):
    folder = shutil.copytree(experts / "ser", tmp_path / "ser")
    info = read(folder, "expert.json") | {"base_sha256": "f" * 64}
    (folder / "expert.json").write_text(json.dumps(info))
    argv = merge_options(corpus, experts, tmp_path / "m", "adamerging", ser_expert=folder)
    with pytest.raises(UserError, match="ser was made from the base ffffffffffff"):
        train("merge", argv)
    assert not (tmp_path / "m").exists()


def test_the_head_to_start_from_has_to_be_an_emotion_head_of_the_same_shape(
    corpus, experts, tmp_path
):
    change = {"ser_expert": experts / "asr"}
    with pytest.raises(UserError, match="--ser_expert: .* is of kind 'asr', not ser"):
        train("merge", merge_options(corpus, experts, tmp_path / "m", "adamerging", **change))
    change = {"head_conf": "{hidden: 8}"}
    with pytest.raises(UserError, match=r"does not fit the model: .* \(16,\), expected \(8,\)"):
        train("merge", merge_options(corpus, experts, tmp_path / "m", "adamerging", **change))
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("row", ["adaltm", "adaltm_ctc", "adaltm_distill", "adaltm_plus"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "asr.safetensors is missing: run stage `task_vectors` first"),
        (cut, "asr.safetensors is not a readable safetensors file .* may be cut off"),
    ],
)
def test_a_damaged_vector_is_told_in_every_row(corpus, experts, tmp_path, row, damage, message):
    vectors = shutil.copytree(experts / "task_vectors", tmp_path / "vectors")
    damage(vectors / "asr.safetensors")
    argv = merge_options(corpus, experts, tmp_path / "m", row, task_vectors=vectors)
    with pytest.raises(UserError, match=message):
        train("merge", argv)
    assert not (tmp_path / "m").exists()


def test_nothing_to_learn_is_told_and_its_correction_trains(corpus, experts, tmp_path):
    fixed = "head_init: ser_expert\ntrain_head: false\nobjective: entropy\n"
    row = yaml(tmp_path, f"{fixed}preprocess: {{method: dare, density: 0.0}}")
    argv = merge_options(corpus, experts, tmp_path / "m", row)
    with pytest.raises(UserError, match="nothing to learn: .*/task_vectors move no weight under"):
        train("merge", argv)
    row.write_text(f"{fixed}preprocess: {{method: dare, density: 0.5}}")
    train("merge", argv)
    assert sorted(stats(tmp_path / "m")) == [1]
    saved = read(tmp_path / "m", "identity.json")["options"]["merge_conf"]["preprocess"]
    assert saved == {"method": "dare", "density": 0.5, "seed": 3}


def test_vectors_of_zeros_leave_nothing_but_a_head_to_learn(corpus, experts, tmp_path):
    vectors = shutil.copytree(experts / "task_vectors", tmp_path / "vectors")
    for path in vectors.iterdir():
        (0.0 * TaskVector.load(path)).save(path)
    change = {"task_vectors": vectors}
    with pytest.raises(UserError, match="nothing to learn: .*/vectors move no weight under"):
        train("merge", merge_options(corpus, experts, tmp_path / "m", "adamerging", **change))
    train("merge", merge_options(corpus, experts, tmp_path / "n", "adaltm", **change))
    assert sorted(stats(tmp_path / "n")) == [1]


@pytest.mark.parametrize(
    ("wer", "row", "warned"),
    [(0.5, "adaltm_ctc", True), (0.49, "adaltm_ctc", False), (0.5, "adaltm_distill", False)],
)
def test_a_ctc_term_warns_of_an_expert_without_words(
    corpus, experts, tmp_path, caplog, wer, row, warned
):
    folder = shutil.copytree(experts / "asr", tmp_path / "asr")
    info = read(folder, "expert.json")
    info["selected"]["metrics"]["wer"] = wer
    (folder / "expert.json").write_text(json.dumps(info))
    args = argparse.Namespace(
        asr_expert=folder,
        ser_expert=experts / "ser",
        task_vectors=experts / "task_vectors",
        labels=corpus / "labels.json",
        base=corpus / "base",
    )
    check_teachers(args, MergeConfig.from_yaml(CONF / f"{row}.yaml"))
    assert ("WER of 50 % on the validation set" in caplog.text) is warned
