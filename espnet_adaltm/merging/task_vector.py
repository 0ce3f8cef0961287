"""What fine-tuning added to an encoder: `tau = W_expert - W_base` (AdaLTM, section 1)."""

import math
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from espnet_adaltm.backbone.blocks import BlockMap
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import Pathlike, atomic_path
from espnet_adaltm.merging.differences import (
    as_stored,
    check_finite,
    check_pair,
    check_storable,
    depth,
    difference,
)
from espnet_adaltm.merging.groups import map_group, map_groups
from espnet_adaltm.merging.tensor_file import Spec, TensorFile, write_tensor_file
from espnet_adaltm.merging.vector_metadata import (
    block_map,
    described_map,
    file_metadata,
    read_metadata,
    vector_metadata,
    without_expert,
)
from espnet_adaltm.merging.weight_files import identity
from espnet_adaltm.merging.weights import FORMAT, Source, open_weights


class LazyTensors(Mapping[str, Tensor]):
    """Tensors that are made anew at every access, so that only those in use take memory.

    Args:
        specs: Name to what the tensor is.
        load: Name to tensor.
        fill: Where single stretches can be read: ``(name, start, out)`` fills a flat tensor.
    """

    def __init__(
        self,
        specs: Mapping[str, Spec],
        load: Callable[[str], Tensor],
        fill: Callable[[str, int, Tensor], None] | None = None,
    ) -> None:
        self.specs = dict(specs)
        self.fill = fill
        self._load = load

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.specs:
            raise KeyError(name)
        return self._load(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)


@dataclass(frozen=True)
class TaskVector:
    """Differences of all float tensors of an encoder, by Hugging Face name.

    Attributes:
        tensors: Name to difference; float32 (always subtracted so), or bfloat16 where read so.
        metadata: ``base_sha256`` and ``expert_sha256`` (empty if unknown, or if these are no longer
            the expert's differences); where known, ``norm_first`` of the base and ``blocks``, the
            map of its tensors (`vector_metadata.described_map`).
    """

    tensors: Mapping[str, Tensor]
    metadata: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_checkpoints(
        cls,
        base: Source,
        expert: Source,
        *,
        base_sha256: str | None = None,
        expert_sha256: str | None = None,
        any_names: bool = False,
        blocks: BlockMap | None = None,
    ) -> "TaskVector":
        """Subtract two checkpoints, tensor by tensor, in float32.

        Args:
            base: Safetensors file, encoder folder or state dictionary of the base.
            expert: The same of the fine-tuned encoder; its known heads are left out.
            base_sha256: Identity of the base; computed where ``base`` is a path.
            expert_sha256: Identity of the expert, likewise.
            any_names: Accept any network: every tensor under its own key, nothing left out.
            blocks: Where its tensors are, to be remembered; of a WavLM, HuBERT or wav2vec 2.0
                encoder the names tell it.

        Raises:
            UserError: A tensor is missing, extra, of another shape or dtype, not finite, or an
                integer tensor that differs; a file is unreadable. The message names it.
        """
        with (
            open_weights(base, any_names=any_names) as old,
            open_weights(expert, any_names=any_names) as new,
        ):
            names = check_pair(old, new)
            tensors = {name: difference(name, old, new) for name in names}
        metadata = vector_metadata(base, base_sha256, expert_sha256 or identity(expert))
        if blocks is not None:
            metadata["blocks"] = described_map(blocks)
        return cls(tensors, metadata)

    @staticmethod
    def extract(
        base: Source, expert: Source, path: Pathlike, dtype: torch.dtype = torch.float32
    ) -> None:
        """Subtract two checkpoints into a file, a piece at a time: a few megabytes of memory.

        The file has the bytes that `from_checkpoints` and `save` give.

        Raises:
            UserError: As there.
        """
        from espnet_adaltm.merging.extract import extract_vectors

        extract_vectors(base, {"": expert}, {"": path}, dtype=dtype)

    @property
    def num_layers(self) -> int:
        """Number of transformer layers that the names tell of."""
        return depth(self.tensors)

    def save(self, path: Pathlike, dtype: torch.dtype = torch.float32) -> None:
        """Write safetensors, atomically.

        Args:
            path: File to write.
            dtype: ``torch.float32``, or ``torch.bfloat16`` for half the size and a relative error
                of 0.17 % (`merging.md`, "Precision").

        Raises:
            UserError: The disk is full, the dtype is no floating one, or differences are too large
                for it.
        """
        check_storable(dtype)
        specs = {n: Spec(dtype, tuple(t.shape)) for n, t in self.tensors.items()}
        with atomic_path(path) as temporary:
            write_tensor_file(
                temporary,
                LazyTensors(specs, lambda name: as_stored(name, self.tensors[name], dtype)),
                file_metadata(self.metadata, specs),
            )

    @classmethod
    def load(cls, path: Pathlike) -> "TaskVector":
        """Read what `save` wrote.

        Raises:
            UserError: The file is missing, cut off, is not a task vector, or has values that are
                not finite.
        """
        with cls.open(path) as vector:
            loaded = cls(dict(vector.tensors), vector.metadata)
        for name, tensor in loaded.tensors.items():
            check_finite(name, tensor, str(path))
        return loaded

    @classmethod
    @contextmanager
    def open(cls, path: Pathlike) -> Iterator["TaskVector"]:
        """Open what `save` wrote without reading it: tensors are read whenever they are asked for.

        Raises:
            UserError: The file is missing, cut off, or is not a task vector.
        """
        if not Path(path).is_file():
            raise UserError(f"{path} does not exist: run stage task_vectors first")
        with TensorFile(path) as file:
            if FORMAT not in file.metadata:
                raise UserError(f"{path} is not a task vector: make one with stage task_vectors")
            metadata = read_metadata(path, file.metadata[FORMAT])
            yield cls(LazyTensors(file.specs, file.read, file.read_into), metadata)

    def __add__(self, other: "TaskVector") -> "TaskVector":
        """Add two vectors of one base."""
        return self._combine(other, operator.add)

    def __sub__(self, other: "TaskVector") -> "TaskVector":
        """Subtract two vectors of one base."""
        return self._combine(other, operator.sub)

    def __mul__(self, scale: float) -> "TaskVector":
        """Scale all differences."""
        tensors = {name: tensor.float() * scale for name, tensor in self.tensors.items()}
        return TaskVector(tensors, {**self.metadata, "expert_sha256": ""})

    __rmul__ = __mul__

    def _combine(
        self, other: "TaskVector", combine: Callable[[Tensor, Tensor], Tensor]
    ) -> "TaskVector":
        check_compatible(self, other)
        tensors = {
            name: combine(tensor.float(), other.tensors[name].float())
            for name, tensor in self.tensors.items()
        }
        return TaskVector(tensors, without_expert(self.metadata, other.metadata))

    def norms(
        self,
        by: str = "block",
        *,
        blocks: BlockMap | None = None,
        norm_first: bool | None = None,
    ) -> dict[str, float]:
        """Return the Euclidean norm of every group, summed in float64.

        Args:
            by: ``global``, ``block``, ``module`` or ``tensor`` (`merging.groups`).
            blocks: Where the tensors are; those in no block are not part of the sums. By default
                the metadata's map, or else what the names of a WavLM, HuBERT or wav2vec 2.0
                encoder tell; ``global`` and ``tensor`` then take every tensor of any network.
            norm_first: Read the names as those of a pre-norm (True) or post-norm encoder, whatever
                the metadata says.

        Raises:
            UserError: None of the tensors is in a block.
        """
        squares = self._inner(self, by, self._blocks(by, blocks, norm_first))
        return {group: math.sqrt(value) for group, value in squares.items()}

    def cosine(
        self,
        other: "TaskVector",
        by: str = "block",
        *,
        blocks: BlockMap | None = None,
        norm_first: bool | None = None,
    ) -> dict[str, float]:
        """Return the cosine to another vector in every group; NaN where one of them is zero.

        Args:
            other: Of the same base.
            by: As for `norms`.
            blocks: As for `norms`; by default this vector's.
            norm_first: As for `norms`.

        Raises:
            UserError: As `norms`, or the vectors do not belong together.
        """
        check_compatible(self, other)
        chosen = self._blocks(by, blocks, norm_first)
        products = self._inner(other, by, chosen)
        mine, theirs = (vector.norms(by, blocks=chosen) for vector in (self, other))
        return {
            group: value / scale if (scale := mine[group] * theirs[group]) else math.nan
            for group, value in products.items()
        }

    def _blocks(self, by: str, given: BlockMap | None, norm_first: bool | None) -> BlockMap:
        known = self.metadata if norm_first is None else {"norm_first": norm_first}
        places = dict(block_map(known, self.tensors) if given is None else given)
        if given is None and by in ("global", "tensor"):
            places = {name: places.get(name, (0, "")) for name in self.tensors}
        found = {name: places[name] for name in self.tensors if name in places}
        if self.tensors and not found:
            raise UserError(
                "no tensor of the task vector is in a block: give blocks=, a map such as "
                r"BlockMap.by_pattern(names, r'^layers\.(?P<block>\d+)\.')"
            )
        return BlockMap(found)

    def _inner(self, other: "TaskVector", by: str, blocks: BlockMap) -> dict[str, float]:
        sums = dict.fromkeys(map_groups(blocks, by), 0.0)
        for name in blocks:
            sums[map_group(blocks, name, by)] += inner(self.tensors[name], other.tensors[name])
        return sums


def is_task_vector(path: Pathlike) -> bool:
    """Whether a safetensors file says of itself that it is a task vector.

    Raises:
        UserError: It is not readable.
    """
    with TensorFile(path) as file:
        return FORMAT in file.metadata


def specs_of(vector: TaskVector) -> dict[str, Spec]:
    """What a vector's tensors are; reads none of an open file."""
    if isinstance(vector.tensors, LazyTensors):
        return vector.tensors.specs
    return {name: Spec.of(tensor) for name, tensor in vector.tensors.items()}


def inner(first: Tensor, second: Tensor) -> float:
    """Inner product in float64."""
    return float(torch.dot(first.flatten().double(), second.flatten().double()))


def check_compatible(first: TaskVector, second: TaskVector) -> None:
    """Refuse two vectors of different bases, names or shapes.

    Raises:
        UserError: The message names the tensor or both hashes.
    """
    bases = [vector.metadata.get("base_sha256", "") for vector in (first, second)]
    if all(bases) and bases[0] != bases[1]:
        raise UserError(
            f"task vectors of two bases ({bases[0][:12]} and {bases[1][:12]}): "
            "fine-tune both experts from the same base"
        )
    mine, theirs = specs_of(first), specs_of(second)
    different = sorted(mine.keys() ^ theirs.keys())
    if different:
        raise UserError(f"task vectors: tensor {different[0]!r} is in only one of them")
    for name, spec in mine.items():
        if spec.shape != theirs[name].shape:
            raise UserError(
                f"task vectors: tensor {name!r} has shape {spec.shape} in one, "
                f"{theirs[name].shape} in the other"
            )
