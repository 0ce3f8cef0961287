"""Pieces on threads: each element once, buffers reused, the first error ends it."""

import threading
import time

import pytest
import torch

from espnet_adaltm.merging import stream
from espnet_adaltm.merging.stream import Piece, Scratch, cut, read_piece, run_threads
from espnet_adaltm.merging.weights import POS_CONV, POS_WEIGHT, open_weights

STATE = {
    "encoder.layers.0.layer_norm.weight": torch.arange(25.0).reshape(5, 5),
    "encoder.layers.0.layer_norm.bias": torch.arange(7.0).bfloat16(),
    "encoder.layers.0.none": torch.zeros(0),
    f"{POS_CONV}.weight_g": torch.ones(1, 1, 4),
    f"{POS_CONV}.weight_v": torch.randn(3, 2, 4),
}


def test_pieces_cover_every_element_once_and_a_weight_norm_in_one(monkeypatch):
    monkeypatch.setattr(stream, "PIECE", 4)
    with open_weights(STATE) as weights:
        pieces = cut(weights, weights.names)
        for name, spec in weights.specs.items():
            mine = [piece for piece in pieces if piece.name == name]
            covered = [at for piece in mine for at in range(piece.start, piece.stop)]
            assert covered == list(range(spec.size))
            limit = spec.size if name == POS_WEIGHT else 4
            assert all(piece.size <= limit for piece in mine)


def test_pieces_are_read_as_float32_into_the_same_buffer():
    scratch = Scratch()
    with open_weights(STATE) as weights:
        first = read_piece(weights, Piece("encoder.layers.0.layer_norm.weight", 3, 9), scratch, "a")
        assert first.tolist() == [3, 4, 5, 6, 7, 8]
        low = read_piece(weights, Piece("encoder.layers.0.layer_norm.bias", 2, 5), scratch, "a")
        assert low.dtype == torch.float32
        assert low.tolist() == [2, 3, 4]
        assert low.data_ptr() == first.data_ptr()
        whole = read_piece(weights, Piece(POS_WEIGHT, 0, 24), scratch, "b")
        assert torch.equal(whole, weights.load(POS_WEIGHT).flatten())


@pytest.mark.parametrize("threads", [1, 4])
def test_all_pieces_are_done_once_each_thread_with_its_own_buffers(threads):
    pieces = [Piece(str(at), 0, stream.PIECE) for at in range(50)]
    done, owners, lock = [], {}, threading.Lock()

    def work(piece, scratch):
        with lock:
            done.append(piece.name)
            owners.setdefault(id(scratch), set()).add(threading.get_ident())

    before = torch.get_num_threads()
    run_threads(pieces, work, threads=threads)
    assert sorted(done, key=int) == [piece.name for piece in pieces]
    assert all(len(idents) == 1 for idents in owners.values())
    assert len(owners) <= threads
    assert torch.get_num_threads() == before


def test_the_first_error_ends_the_work():
    pieces = [Piece(str(at), 0, stream.PIECE) for at in range(1000)]
    done = []

    def work(piece, scratch):
        done.append(piece.name)
        if piece.name == "3":
            raise ValueError("three")
        time.sleep(0.005)  # or the other thread could finish all before the error is seen

    with pytest.raises(ValueError, match="three"):
        run_threads(pieces, work, threads=2)
    assert len(done) < 1000
