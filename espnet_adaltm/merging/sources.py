"""Where a merge's differences come from: an expert's checkpoint, or a task vector."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from espnet_adaltm.errors import UserError
from espnet_adaltm.files import Pathlike, read_json
from espnet_adaltm.merging.extract import difference_piece
from espnet_adaltm.merging.stream import Piece, Scratch, read_piece
from espnet_adaltm.merging.task_vector import (
    LazyTensors,
    TaskVector,
    check_finite,
    check_pair,
    difference,
    specs_of,
)
from espnet_adaltm.merging.tensor_file import Spec
from espnet_adaltm.merging.weights import Source, Weights, open_weights


@dataclass(frozen=True)
class DeltaSource:
    """The differences of one task.

    Attributes:
        where: What to call it in errors.
        specs: Names and shapes of the differences.
        piece: ``(piece, base's piece, scratch, slot)`` to the differences, float32, flat, in the
            thread's buffer ``slot``.
        whole: Name to the differences of a whole tensor, float32.
        of_base: Hash of the base that it says it was made from; empty if it does not say.
        expert: Checkpoint that is subtracted from, if that is not done already.
        expert_sha256: Hash that a task vector remembers.
        left_out: Keys of heads.
        stored: Name to the expert's own keys (`Weights.stored`).
    """

    where: str
    specs: dict[str, Spec]
    piece: Callable[[Piece, Tensor, Scratch, str], Tensor] = field(repr=False)
    whole: Callable[[str], Tensor] = field(repr=False)
    of_base: str = ""
    expert: Source | None = None
    expert_sha256: str = ""
    left_out: tuple[str, ...] = ()
    stored: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def vector(self) -> TaskVector:
        """The same as a task vector that makes each tensor anew when asked for it."""
        return TaskVector(LazyTensors(self.specs, self.whole), {"base_sha256": self.of_base})


@contextmanager
def open_expert(base: Weights, expert: Source, *, any_names: bool = False) -> Iterator[DeltaSource]:
    """Open an expert beside the base that it was fine-tuned from.

    Args:
        base: Open.
        expert: Safetensors, shards, a folder (whose ``expert.json`` may name the base), a state.
        any_names: As `open_weights`.

    Raises:
        UserError: As `open_weights`, or tensors that do not fit the base's.
    """
    with open_weights(expert, any_names=any_names) as new:
        names = check_pair(base, new)

        def piece(piece: Piece, before: Tensor, scratch: Scratch, slot: str) -> Tensor:
            return difference_piece(base, before, new, piece, scratch, slot)

        yield DeltaSource(
            new.source,
            {name: base.specs[name] for name in names},
            piece,
            lambda name: difference(name, base, new),
            _base_of_expert(expert),
            expert,
            left_out=new.left_out,
            stored=new.stored,
        )


def _base_of_expert(expert: Source) -> str:
    if isinstance(expert, Mapping) or not (Path(expert) / "expert.json").is_file():
        return ""
    return read_json(Path(expert) / "expert.json").get("base_sha256") or ""


@contextmanager
def open_vector(base: Weights, vector: Pathlike | TaskVector) -> Iterator[DeltaSource]:
    """Open a task vector beside its base.

    Raises:
        UserError: No task vector, or tensors that do not fit the base's.
    """
    if isinstance(vector, TaskVector):
        yield vector_source(base, vector, "the task vector")
        return
    with TaskVector.open(vector) as opened:
        yield vector_source(base, opened, str(vector))


def vector_source(base: Weights, vector: TaskVector, where: str) -> DeltaSource:
    """Read a task vector as a source.

    Raises:
        UserError: Tensors that do not fit the base's.
    """
    specs = specs_of(vector)
    _check_fit(base, specs, where)

    def whole(name: str) -> Tensor:
        delta = vector.tensors[name].float()
        check_finite(name, delta, where)
        return delta

    def fill(name: str, start: int, out: Tensor) -> None:
        out.copy_(vector.tensors[name].reshape(-1)[start : start + out.numel()])

    if isinstance(vector.tensors, LazyTensors) and vector.tensors.fill is not None:
        fill = vector.tensors.fill
    reader = Weights(where, specs, whole, fill, {name: (name,) for name in specs}, whole)

    def piece(piece: Piece, before: Tensor, scratch: Scratch, slot: str) -> Tensor:
        delta = read_piece(reader, piece, scratch, slot)
        check_finite(piece.name, delta, where)
        return delta

    hashes = [vector.metadata.get(f"{kind}_sha256") or "" for kind in ("base", "expert")]
    return DeltaSource(where, specs, piece, whole, hashes[0], expert_sha256=hashes[1])


def _check_fit(base: Weights, specs: dict[str, Spec], where: str) -> None:
    floats = {name for name, spec in base.specs.items() if spec.dtype.is_floating_point}
    different = sorted(floats ^ specs.keys())
    if different:
        holder, other = (base.source, where) if different[0] in floats else (where, base.source)
        raise UserError(
            f"tensor {different[0]!r} is in {holder} but not in {other}: the task vector belongs "
            "to another encoder"
        )
    for name, spec in specs.items():
        if spec.shape != base.specs[name].shape:
            raise UserError(
                f"tensor {name!r}: shape {spec.shape} in {where}, {base.specs[name].shape} in "
                f"{base.source}: the task vector belongs to another encoder"
            )
