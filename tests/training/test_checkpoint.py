"""Checkpoints: atomic, with a spare, loaded strictly."""

import errno
import logging
import os
from datetime import timedelta

import numpy as np
import pytest
import torch
from torch import nn

from espnet_adaltm.errors import UserError
from espnet_adaltm.training import checkpoint


def test_first_start_has_nothing_to_load(tmp_path):
    assert checkpoint.load_checkpoint(tmp_path) is None


def test_newest_and_previous_are_kept(tmp_path):
    for epoch in (1, 2, 3):
        checkpoint.save_checkpoint(tmp_path, {"epoch": epoch})
    assert checkpoint.load_checkpoint(tmp_path) == {"epoch": 3}
    assert torch.load(tmp_path / checkpoint.PREVIOUS, weights_only=True) == {"epoch": 2}
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {checkpoint.CURRENT, checkpoint.PREVIOUS}


@pytest.mark.parametrize("size", [0, 1, 100])
def test_truncated_checkpoint_falls_back_with_a_warning(tmp_path, caplog, size):
    for epoch in (1, 2):
        checkpoint.save_checkpoint(tmp_path, {"epoch": epoch, "x": torch.ones(100)})
    current = tmp_path / checkpoint.CURRENT
    current.write_bytes(current.read_bytes()[:size])
    with caplog.at_level(logging.WARNING):
        assert checkpoint.load_checkpoint(tmp_path)["epoch"] == 1
    assert "damaged" in caplog.text
    assert checkpoint.PREVIOUS in caplog.text


def test_kill_between_the_two_renames_loses_one_epoch_only(tmp_path):
    for epoch in (1, 2):
        checkpoint.save_checkpoint(tmp_path, {"epoch": epoch})
    (tmp_path / checkpoint.CURRENT).replace(tmp_path / checkpoint.PREVIOUS)
    assert checkpoint.load_checkpoint(tmp_path) == {"epoch": 2}


def test_two_damaged_checkpoints_are_an_error_not_a_fresh_start(tmp_path):
    for name in (checkpoint.CURRENT, checkpoint.PREVIOUS):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match="no readable checkpoint.*prev"):
        checkpoint.load_checkpoint(tmp_path)


def test_failed_write_leaves_the_old_file(tmp_path):
    checkpoint.save_torch(tmp_path / "x.pth", {"epoch": 1})
    with pytest.raises((AttributeError, TypeError)):
        checkpoint.save_torch(tmp_path / "x.pth", {"epoch": lambda: None})
    assert torch.load(tmp_path / "x.pth", weights_only=True) == {"epoch": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


@pytest.mark.parametrize("room", [0, 1000, 100_000])
def test_full_disk_is_one_line_and_keeps_the_old_checkpoints(tmp_path, full_disk, room):
    for epoch in (1, 2):
        checkpoint.save_checkpoint(tmp_path, {"epoch": epoch})
    states = {"epoch": 3, "x": torch.zeros(100_000), "y": torch.ones(100_000)}
    message = f"no space left on the disk of {tmp_path}: free some and run again"
    with full_disk(room), pytest.raises(UserError, match=message):
        checkpoint.save_checkpoint(tmp_path, states)
    assert checkpoint.load_checkpoint(tmp_path) == {"epoch": 2}
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {checkpoint.CURRENT, checkpoint.PREVIOUS}
    checkpoint.save_checkpoint(tmp_path, states)
    assert torch.equal(checkpoint.load_checkpoint(tmp_path)["y"], states["y"])


def test_full_disk_seen_at_the_flush_is_told_too(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="no space left"):
            checkpoint.save_torch(tmp_path / "x.pth", {"epoch": 1})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("weight"), "missing 'weight'"),
        (lambda s: s.update(extra=torch.ones(1)), "unexpected 'extra'"),
        (lambda s: s.update(weight=torch.ones(1, 3)), r"\(1, 3\), expected \(2, 3\)"),
    ],
)
def test_strict_loading_names_the_tensor(change, message):
    module = nn.Linear(3, 2)
    state = dict(module.state_dict())
    change(state)
    with pytest.raises(UserError, match=message):
        checkpoint.load_strict(module, state, "some.pth")


def test_foreign_weights_never_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (pytest.fail, ("code ran",))

    torch.save({"weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="cannot be read as model weights"):
        checkpoint.load_weights(tmp_path / "evil.pth")


def test_link_replaces_a_link(tmp_path):
    for target in ("1epoch.pth", "2epoch.pth"):
        checkpoint.link(tmp_path / "best.pth", target)
    assert (tmp_path / "best.pth").readlink().name == "2epoch.pth"
    assert len(list(tmp_path.iterdir())) == 1


def test_statistics_become_plain_without_losing_a_bit():
    stats = {
        1: {"train": {"loss": np.float64(0.1), "n": np.int64(3), "time": timedelta(minutes=2)}}
    }
    made = checkpoint.plain({"stats": stats, "epoch": 1})
    assert made == {"stats": {1: {"train": {"loss": 0.1, "n": 3, "time": 120.0}}}, "epoch": 1}
    assert [type(value) for value in made["stats"][1]["train"].values()] == [float, int, float]


def test_a_checkpoint_that_would_run_code_is_not_read(tmp_path):
    torch.save({"epoch": timedelta(1)}, tmp_path / checkpoint.CURRENT)
    with pytest.raises(UserError, match="no readable checkpoint"):
        checkpoint.load_checkpoint(tmp_path)
