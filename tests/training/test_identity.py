"""Two runs of one training are told from two trainings."""

import argparse

import pytest

from espnet_adaltm.errors import UserError
from espnet_adaltm.training import identity


def made(inputs=None, **options):
    args = argparse.Namespace(**{"head_lr": 0.001, "output_dir": "a", "max_epoch": 3, **options})
    return identity.make_identity(args, inputs or {"the train text": "1"})


def begin(folder, found):
    """Leave what a training with this identity leaves after its first epoch."""
    identity.write_identity(folder, found)
    (folder / "checkpoint.pth").touch()


def test_same_options_are_accepted(tmp_path):
    begin(tmp_path, made())
    identity.check_identity(tmp_path, made())


@pytest.mark.parametrize("name", ["max_epoch", "output_dir", "num_workers", "log_interval", "base"])
def test_options_that_do_not_change_the_result_may_change(tmp_path, name):
    begin(tmp_path, made(**{name: 1}))
    identity.check_identity(tmp_path, made(**{name: 2}))


def test_places_that_an_earlier_version_wrote_down_do_not_count(tmp_path):
    begin(tmp_path, {**made(), "options": {**made()["options"], "base": "a"}})
    identity.check_identity(tmp_path, made())


def test_changed_option_is_named_with_both_values(tmp_path):
    begin(tmp_path, made())
    with pytest.raises(UserError, match=r"--head_lr was 0.001 and is now 0.01.*--output_dir"):
        identity.check_identity(tmp_path, made(head_lr=0.01))


def test_of_nested_options_only_what_changed_is_named(tmp_path):
    old = {"name": "a", "init": 0.5, "preprocess": {"method": "ties", "density": 0.2}}
    new = {**old, "init": 0.4, "preprocess": {"method": "ties", "seed": 1}}
    begin(tmp_path, made(merge_conf=old))
    with pytest.raises(UserError) as error:
        identity.check_identity(tmp_path, made(merge_conf=new))
    assert (
        "other options: --merge_conf: init was 0.5 and is now 0.4; "
        "--merge_conf: preprocess: density was 0.2 and is now not given; "
        "--merge_conf: preprocess: seed was not given and is now 1. Resuming"
    ) in str(error.value)
    with pytest.raises(UserError, match="--merge_conf was .*'init': 0.5.* and is now None"):
        identity.check_identity(tmp_path, made(merge_conf=None))


def test_an_identity_before_anything_is_trained_gives_way(tmp_path):
    identity.write_identity(tmp_path, made())
    identity.check_identity(tmp_path, made(head_lr=0.01))
    begin(tmp_path, made(head_lr=0.01))
    identity.write_identity(tmp_path, made(head_lr=0.02))  # from now on it stays
    identity.check_identity(tmp_path, made(head_lr=0.01))
    with pytest.raises(UserError, match="--head_lr was 0.01 and is now 0.001"):
        identity.check_identity(tmp_path, made())


@pytest.mark.parametrize("left", ["checkpoint.pth", "checkpoint.prev.pth", "grid", "finished.json"])
def test_whatever_a_training_left_keeps_its_identity(tmp_path, left):
    identity.write_identity(tmp_path, made())
    (tmp_path / left).mkdir()
    with pytest.raises(UserError, match="--head_lr was"):
        identity.check_identity(tmp_path, made(head_lr=0.01))


def test_unknown_options_count(tmp_path):
    begin(tmp_path, made())
    with pytest.raises(UserError, match="--novelty was not given and is now 3"):
        identity.check_identity(tmp_path, made(novelty=3))


def test_changed_input_is_named(tmp_path):
    begin(tmp_path, made())
    with pytest.raises(UserError, match="the contents of the train text changed"):
        identity.check_identity(tmp_path, made({"the train text": "2"}))


def test_tuples_and_lists_are_the_same(tmp_path):
    begin(tmp_path, made(criterion=("valid", "loss")))
    identity.check_identity(tmp_path, made(criterion=["valid", "loss"]))


def test_checkpoint_without_identity_is_refused(tmp_path):
    (tmp_path / "checkpoint.pth").touch()
    with pytest.raises(UserError, match="no identity.json"):
        identity.check_identity(tmp_path, made())


def test_call_hash_sees_the_contents_of_the_configuration(tmp_path):
    config = tmp_path / "a.yaml"
    hashes = []
    for text in ("a: 1", "a: 2"):
        config.write_text(text)
        hashes += [identity.call_hash(argv) for argv in (["--config", str(config)],)]
        hashes += [identity.call_hash([f"--config={config}"])]
    assert len(set(hashes)) == 4


def finished(tmp_path, **changes):
    (tmp_path / "out").touch()
    (tmp_path / "in").write_text("x")
    values = {
        "epoch": 3,
        "reason": "max_epoch",
        "outputs": [str(tmp_path / "out")],
        "call": identity.call_hash(["--a", "1"]),
        "inputs": {str(tmp_path / "in"): identity.fingerprint(tmp_path / "in")},
    }
    identity.write_finished(tmp_path, identity.Finished(**{**values, **changes}))
    return identity.read_finished(tmp_path)


def test_finished_is_honoured_only_for_the_same_job(tmp_path):
    mark = finished(tmp_path)
    assert mark.same_job(["--a", "1"])
    assert not mark.same_job(["--a", "2"])
    (tmp_path / "in").write_text("y")
    assert not mark.same_job(["--a", "1"])


def test_finished_misses_a_removed_output(tmp_path):
    mark = finished(tmp_path)
    assert mark.is_complete
    (tmp_path / "out").unlink()
    assert not mark.is_complete


def test_more_epochs_reopen_a_training_unless_it_stopped_early(tmp_path):
    mark = finished(tmp_path)
    assert mark.ends_at(3)
    assert not mark.ends_at(4)
    assert finished(tmp_path, reason="patience").ends_at(4)


def test_fingerprint_of_safetensors_reads_the_header_only(tmp_path):
    from safetensors.torch import save_file
    from torch import ones, zeros

    for name, value, note in (("a", ones(3), "x"), ("b", zeros(3), "x"), ("c", ones(3), "y")):
        metadata = {"task_vector": f'{{"base_sha256": "z", "expert_sha256": "{note}"}}'}
        save_file({"t": value}, tmp_path / f"{name}.safetensors", metadata=metadata)
    a, b, c = (identity.fingerprint(tmp_path / f"{name}.safetensors") for name in "abc")
    assert a == b != c
