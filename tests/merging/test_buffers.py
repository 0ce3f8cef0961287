"""Buffers are used again only when nothing refers to them any more."""

import copy

import pytest
import torch

from espnet_adaltm.merging import buffers
from espnet_adaltm.merging.buffers import Buffers

CPU = torch.device("cpu")


def address(tensor):
    return tensor.untyped_storage().data_ptr()


def test_a_free_buffer_is_used_again():
    pool = Buffers()
    first = pool.take(100, torch.float32, CPU)
    place = address(first)
    assert first.shape == (100,)
    del first
    assert address(pool.take(100, torch.float32, CPU)) == place


@pytest.mark.parametrize(
    "keep",
    [
        lambda tensor: tensor,
        lambda tensor: tensor[3:5],
        lambda tensor: tensor.view(10, 10).T,
        lambda tensor: tensor.detach(),
        lambda tensor: [[{"deep": tensor[:1]}]],
        lambda tensor: torch.nn.Parameter(tensor),
        lambda tensor: torch.ones(100, requires_grad=True) * tensor,  # saved by autograd
        lambda tensor: tensor.as_strided((2, 2), (1, 1), 7),
    ],
)
def test_a_buffer_in_use_is_never_handed_out(keep):
    pool = Buffers()
    for _ in range(3):
        first = pool.take(100, torch.float32, CPU)
        place = address(first)
        kept = keep(first)
        del first
        others = [pool.take(100, torch.float32, CPU) for _ in range(3)]
        assert place not in {address(other) for other in others}
        assert len({address(other) for other in others}) == 3
        del kept, others
    free = [pool.take(100, torch.float32, CPU) for _ in range(4)]
    assert len({address(tensor) for tensor in free}) == 4
    assert len(pool._kept[100, torch.float32]) == 4  # all of them found free in the end


def test_sizes_and_types_are_apart_and_copies_start_empty():
    pool = Buffers()
    pool.take(100, torch.float32, CPU)
    assert pool.take(50, torch.float32, CPU).shape == (50,)
    assert pool.take(100, torch.float64, CPU).dtype == torch.float64
    assert copy.deepcopy(pool)._kept == {}


def test_buffers_from_inference_mode_are_ordinary():
    pool = Buffers()
    with torch.inference_mode():
        tensor = pool.take(10, torch.float32, CPU)
        tensor.zero_()
    assert not tensor.is_inference()
    tensor.add_(1)


def test_without_the_count_every_tensor_is_new(monkeypatch):
    monkeypatch.setattr(buffers, "_count", None)
    pool = Buffers()
    pool.take(100, torch.float32, CPU)
    assert pool._kept == {}
