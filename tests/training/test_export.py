"""Safetensors that a finished training leaves."""

import pytest
import torch

from espnet_adaltm.errors import UserError
from espnet_adaltm.training.export import write_tensors


def test_full_disk_is_one_line_and_keeps_the_old_file(tmp_path, full_disk):
    path = tmp_path / "expert.safetensors"
    write_tensors(path, {"a": torch.zeros(3)})
    old = path.read_bytes()
    message = f"no space left on the disk of {tmp_path}: free some and run again"
    with full_disk(100), pytest.raises(UserError, match=message):
        write_tensors(path, {"a": torch.ones(300)})
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]
