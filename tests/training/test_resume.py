"""Killed and restarted trainings end bit-identical to uninterrupted ones."""

import json
import logging
import os
import signal
from pathlib import Path

import pytest
import torch
from training_common import TASKS, options, start, stats, train, weights

from espnet_adaltm.errors import UserError

pytestmark = pytest.mark.integration


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def die_on_call(owner, name, count, before=lambda *args: None):
    """Kill this process in the ``count``-th call of ``owner.name``."""
    original = getattr(owner, name)
    calls = []

    def replacement(*args, **kwargs):
        calls.append(None)
        if len(calls) == count:
            before(*args)
            die()
        return original(*args, **kwargs)

    setattr(owner, name, replacement)


def write_half(value, handle):
    """What a full disk or a kill leaves of `torch.save`."""
    import io

    buffer = io.BytesIO()
    SAVE(value, buffer)
    handle.write(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    handle.flush()


SAVE = torch.save


def interrupted(task, argv, where):
    """Train in a process of its own that kills itself."""
    from espnet_adaltm.training import espnet_models, export, trainer

    places = {
        # 4 training and 2 validation batches in an epoch
        "mid-epoch": lambda: die_on_call(espnet_models.AdaltmModel, "encode", 9),
        "validation": lambda: die_on_call(espnet_models.AdaltmModel, "encode", 6),
        "writing weights": lambda: die_on_call(torch, "save", 1, write_half),
        "writing checkpoint": lambda: die_on_call(torch, "save", 2, write_half),
        "between renames": lambda: die_on_call(Path, "replace", 2),
        "after checkpoint": lambda: die_on_call(trainer, "_link_best", 2),
        "averaging": lambda: die_on_call(trainer, "average_nbest_models", 1),
        "export": lambda: die_on_call(export, "write_json", 1),
        "nowhere": lambda: None,
    }
    places[where]()
    train(task, argv)


def run_interrupted(task, argv, where):
    process = start(interrupted, task, argv, where)
    process.join(timeout=120)
    return process.exitcode


def results(folder):
    """Every tensor that a training left, and every JSON result."""
    tensors = {
        (path.name, name): tensor
        for path in sorted(folder.glob("*.pth"))
        if not path.name.startswith("checkpoint")
        for name, tensor in weights(folder, path.name).items()
    }
    files = {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}
    for name in ("expert.json", "coefficients.json"):
        if (folder / name).exists():
            files[name] = (folder / name).read_bytes()
    return tensors, files


def assert_same(first, second):
    (tensors, files), (other_tensors, other_files) = results(first), results(second)
    assert tensors.keys() == other_tensors.keys()
    assert len(tensors) > 10
    for name, tensor in tensors.items():
        assert torch.equal(tensor, other_tensors[name]), name
    assert files == other_files


@pytest.mark.parametrize(
    ("task", "places"),
    [
        (
            "ser",
            "mid-epoch,validation,writing weights,writing checkpoint,between renames,averaging,"
            "export",
        ),
        ("merge", "mid-epoch,writing checkpoint,after checkpoint"),
    ],
)
def test_kills_anywhere_do_not_change_a_bit(corpus, tmp_path, task, places):
    changes = {
        "max_epoch": 5,
        "keep_nbest_models": 2,
        "mask_time_prob": 0.05,
        "noise_prob": 0.5,
        "patience": 10,
        "scheduler": "warmuplr",
        "scheduler_conf": "warmup_steps=10",
    }
    argv = {name: options(corpus, tmp_path / name, task, **changes) for name in ("whole", "killed")}
    whole = start(interrupted, task, argv["whole"], "nowhere")
    for place in places.split(","):
        assert run_interrupted(task, argv["killed"], place) == -signal.SIGKILL, place
        assert not (tmp_path / "killed/finished.json").exists()
    assert run_interrupted(task, argv["killed"], "nowhere") == 0
    whole.join(timeout=120)
    assert whole.exitcode == 0
    assert_same(tmp_path / "whole", tmp_path / "killed")
    assert not list((tmp_path / "killed").glob("*.new"))
    assert not list((tmp_path / "killed").glob(".*.tmp"))


def test_damaged_checkpoint_costs_one_epoch_and_no_bit(corpus, tmp_path, caplog):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train("ser", options(corpus, whole, "ser", max_epoch=4))
    train("ser", options(corpus, broken, "ser", max_epoch=3))
    content = (broken / "checkpoint.pth").read_bytes()
    (broken / "checkpoint.pth").write_bytes(content[: len(content) // 2])
    with caplog.at_level(logging.WARNING):
        train("ser", options(corpus, broken, "ser", max_epoch=4))
    assert "one epoch earlier" in caplog.text
    assert_same(whole, broken)


def test_changed_option_is_refused_and_max_epoch_is_not(corpus, tmp_path):
    train("ser", options(corpus, tmp_path, "ser", max_epoch=1))
    with pytest.raises(UserError, match=r"--head_lr was 0\.003 and is now 0\.01"):
        train("ser", options(corpus, tmp_path, "ser", max_epoch=2, head_lr=0.01))
    with pytest.raises(UserError, match=r"--optim_conf: weight_decay was 0\.01 and is now 0\.02"):
        changed = "{lr: 0.001, weight_decay: 0.02}"
        train("ser", options(corpus, tmp_path, "ser", max_epoch=2, optim_conf=changed))
    assert sorted(stats(tmp_path)) == [1]
    train("ser", options(corpus, tmp_path, "ser", max_epoch=2, log_interval=7, num_workers=1))
    assert sorted(stats(tmp_path)) == [1, 2]
    train("ser", options(corpus, tmp_path, "ser", max_epoch=1, head_lr=0.01, resume="false"))
    assert sorted(stats(tmp_path)) == [1]


def test_ill_fitting_checkpoint_is_refused(corpus, tmp_path):
    train("ser", options(corpus, tmp_path, "ser", max_epoch=1))
    states = torch.load(tmp_path / "checkpoint.pth", weights_only=True)
    states["model"] = {f"module.{name}": value for name, value in states["model"].items()}
    torch.save(states, tmp_path / "checkpoint.pth")
    with pytest.raises(UserError, match=r"missing 'encoder\.body"):
        train("ser", options(corpus, tmp_path, "ser", max_epoch=2))


def test_finished_training_is_left_alone(corpus, tmp_path, monkeypatch):
    argv = options(corpus, tmp_path, "ser", max_epoch=2)
    train("ser", argv)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    monkeypatch.setattr("espnet_adaltm.training.trainer.AdaltmTrainer.run", None)
    train("ser", argv)
    train("ser", options(corpus, tmp_path, "ser", max_epoch=1))
    after = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert {path.name for path in before if before[path] != after[path]} <= {"finished.json"}


def test_finished_training_is_recognised_without_espnet(corpus, tmp_path, monkeypatch, capsys):
    from espnet_adaltm.training import launch

    argv = options(corpus, tmp_path, "ser", max_epoch=1)
    train("ser", argv)
    monkeypatch.setattr(launch, "load_task", None)
    launch.main(TASKS["ser"], argv)
    assert "finished" in capsys.readouterr().err
    (tmp_path / "head.safetensors").unlink()
    with pytest.raises(TypeError):
        launch.main(TASKS["ser"], argv)


def test_removed_output_is_written_again_without_training(corpus, tmp_path, monkeypatch):
    argv = options(corpus, tmp_path, "ser", max_epoch=1)
    train("ser", argv)
    content = (tmp_path / "head.safetensors").read_bytes()
    (tmp_path / "head.safetensors").unlink()
    monkeypatch.setattr("espnet_adaltm.training.trainer.AdaltmTrainer.run", None)
    train("ser", argv)
    assert (tmp_path / "head.safetensors").read_bytes() == content


def test_early_stop_holds_when_started_again(corpus, tmp_path):
    frozen = {"encoder_lr": 0, "head_lr": 0, "patience": 1}
    train("ser", options(corpus, tmp_path, "ser", max_epoch=9, **frozen))
    epochs = sorted(stats(tmp_path))
    assert epochs[-1] < 9
    mark = json.loads((tmp_path / "finished.json").read_text())
    assert (mark["epoch"], mark["reason"]) == (epochs[-1], "patience")
    (tmp_path / "finished.json").unlink()  # as if it was killed while exporting
    train("ser", options(corpus, tmp_path, "ser", max_epoch=20, **frozen))
    assert sorted(stats(tmp_path)) == epochs


def test_divergence_is_an_error_and_is_not_saved(corpus, tmp_path, monkeypatch):
    from espnet_adaltm.training.espnet_models import EmotionModel

    original = EmotionModel.result
    monkeypatch.setattr(
        EmotionModel, "result", lambda self, loss, *rest: original(self, loss * torch.nan, *rest)
    )
    with pytest.raises(UserError, match="epoch 1: not one step had a finite gradient"):
        train("ser", options(corpus, tmp_path, "ser"))
    assert not (tmp_path / "checkpoint.pth").exists()


def test_user_errors_are_plain_and_exit_with_1(tmp_path, capsys):
    from espnet_adaltm.training import launch

    with pytest.raises(SystemExit) as stopped:
        launch.main(TASKS["ser"], ["--output_dir", str(tmp_path)])
    assert stopped.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: --labels is missing")


def test_error_of_a_worker_is_shown_without_its_traceback():
    from espnet_adaltm.training.launch import _plain

    wrapped = (
        'Caught UserError in worker 0.\nOriginal Traceback:\n  File "x"\na.UserError: no such\n'
    )
    assert _plain(UserError(wrapped)) == "no such"
    assert _plain(UserError("as it is")) == "as it is"
