"""Task vectors from checkpoints, file to file, in pieces."""

from collections.abc import Mapping
from contextlib import ExitStack

import torch

from espnet_adaltm.files import Pathlike, atomic_path
from espnet_adaltm.merging.differences import (
    as_stored,
    check_difference,
    check_pair,
    check_storable,
)
from espnet_adaltm.merging.stream import Piece, Scratch, cut, read_piece, run_threads
from espnet_adaltm.merging.tensor_file import Spec, TensorWriter
from espnet_adaltm.merging.vector_metadata import file_metadata, vector_metadata
from espnet_adaltm.merging.weight_files import identity
from espnet_adaltm.merging.weights import Source, Weights, open_weights


def extract_vectors(
    base: Source,
    experts: Mapping[str, Source],
    paths: Mapping[str, Pathlike],
    *,
    dtype: torch.dtype = torch.float32,
    base_sha256: str | None = None,
    threads: int | None = None,
) -> None:
    """Subtract a base from its experts, reading the base once.

    The files have the bytes that `TaskVector.from_checkpoints` and `TaskVector.save` give; memory
    is a few megabytes for each thread, whatever the size of the models.

    Args:
        base: Safetensors (a file, shards, a folder) or state dictionary of the base.
        experts: Task to the same of its fine-tuned encoder.
        paths: Task to the file to write; all appear when all are complete.
        dtype: How differences are stored; they are taken in float32.
        base_sha256: Identity of the base; computed if not given.
        threads: How many; all processors by default.

    Raises:
        UserError: As `TaskVector.from_checkpoints` and `TaskVector.save`, before anything is
            written but for values that are not finite or too large; no file is left then either.
    """
    check_storable(dtype)
    with ExitStack() as stack:
        old = stack.enter_context(open_weights(base))
        new = {task: stack.enter_context(open_weights(x)) for task, x in experts.items()}
        for weights in new.values():
            names = check_pair(old, weights)
        if not new:
            return
        metadata = vector_metadata(base, base_sha256, "")
        specs = {name: Spec(dtype, old.specs[name].shape) for name in names}
        writers = {}
        for task, expert in experts.items():
            described = {**metadata, "expert_sha256": identity(expert)}
            temporary = stack.enter_context(atomic_path(paths[task]))
            entries = file_metadata(described, specs)
            writers[task] = stack.enter_context(TensorWriter(temporary, specs, entries))

        def work(piece: Piece, scratch: Scratch) -> None:
            before = read_piece(old, piece, scratch, "base")
            for task, weights in new.items():
                delta = difference_piece(old, before, weights, piece, scratch)
                stored = as_stored(piece.name, delta, dtype)
                writers[task].write(piece.name, stored, piece.start)

        run_threads(cut(old, names), work, threads=threads, desc="task vectors")


def difference_piece(
    old: Weights,
    before: torch.Tensor,
    new: Weights,
    piece: Piece,
    scratch: Scratch,
    slot: str = "delta",
) -> torch.Tensor:
    """Expert minus base in one piece, float32, in one of the thread's buffers.

    Args:
        old: The base.
        before: Its piece, float32.
        new: The expert; a tensor that it lacks is taken as unchanged.
        piece: Which.
        scratch: The thread's buffers.
        slot: Which of them.

    Raises:
        UserError: It is not finite.
    """
    if piece.name not in new.specs:
        return scratch.get(slot, piece.size).zero_()
    delta = read_piece(new, piece, scratch, slot).sub_(before)
    check_difference(piece.name, delta, old, new)
    return delta
