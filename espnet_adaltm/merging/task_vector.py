"""What fine-tuning added to an encoder: `tau = W_expert - W_base` (AdaLTM, section 1)."""

import itertools
import json
import logging
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from espnet_adaltm.errors import UserError
from espnet_adaltm.files import Pathlike, atomic_path, sha256_file
from espnet_adaltm.merging.groups import group_names, group_of
from espnet_adaltm.merging.weights import Weights, open_weights, weight_file

FORMAT = "task_vector"
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
_LAYER = re.compile(r"^encoder\.layers\.(\d+)\.")
# Some checkpoints lack it; it takes part only where an input is masked.
_OPTIONAL = "masked_spec_embed"
Source = Pathlike | Mapping[str, Tensor]


@dataclass(frozen=True)
class TaskVector:
    """Differences of all float tensors of an encoder, by Hugging Face name.

    Attributes:
        tensors: Name to difference; float32 (always subtracted so), or bfloat16 where read so.
        metadata: ``base_sha256`` and ``expert_sha256`` (empty if unknown).
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_checkpoints(
        cls,
        base: Source,
        expert: Source,
        *,
        base_sha256: str | None = None,
        expert_sha256: str | None = None,
    ) -> "TaskVector":
        """Subtract two checkpoints, tensor by tensor, in float32.

        Args:
            base: Safetensors file, encoder folder or state dictionary of the base.
            expert: The same of the fine-tuned encoder; its known heads are left out.
            base_sha256: Identity of the base; computed where ``base`` is a path.
            expert_sha256: Identity of the expert, likewise.

        Raises:
            UserError: A tensor is missing, extra, of another shape or dtype, not finite, or an
                integer tensor that differs; a file is unreadable. The message names it.
        """
        with open_weights(base) as old, open_weights(expert) as new:
            tensors = _subtract(old, new)
        hashes = {
            "base_sha256": base_sha256 or _identity(base),
            "expert_sha256": expert_sha256 or _identity(expert),
        }
        return cls(tensors, hashes)

    @property
    def num_layers(self) -> int:
        """Number of transformer layers that the names tell of."""
        return 1 + max((int(m[1]) for n in self.tensors if (m := _LAYER.match(n))), default=-1)

    def save(self, path: Pathlike, dtype: torch.dtype = torch.float32) -> None:
        """Write safetensors, atomically.

        Args:
            path: File to write.
            dtype: ``torch.float32``, or ``torch.bfloat16`` for half the size and a relative error
                of 0.17 % (`merging.md`, "Precision").

        Raises:
            UserError: The disk is full.
        """
        tensors = {name: tensor.to(dtype).contiguous() for name, tensor in self.tensors.items()}
        described = {**self.metadata, "dtype": str(dtype).removeprefix("torch.")}
        # safetensors writes several entries in a random order: one makes the bytes reproducible
        metadata = {FORMAT: json.dumps(described, sort_keys=True)}
        # by name, not as bytes: a second copy of a large vector would take gigabytes
        with atomic_path(path) as temporary:
            try:
                save_file(tensors, temporary, metadata=metadata)
            except SafetensorError as error:
                raise _system_error(error) from error

    @classmethod
    def load(cls, path: Pathlike) -> "TaskVector":
        """Read what `save` wrote.

        Raises:
            UserError: The file is missing, cut off, or is not a task vector.
        """
        if not Path(path).is_file():
            raise UserError(f"{path} does not exist: run stage task_vectors first")
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{path} is not a readable safetensors file ({error}): "
                "it may be cut off; run stage task_vectors again"
            ) from error
        if FORMAT not in metadata:
            raise UserError(f"{path} is not a task vector: make one with stage task_vectors")
        return cls(tensors, json.loads(metadata[FORMAT]))

    def __add__(self, other: "TaskVector") -> "TaskVector":
        """Add two vectors of one base."""
        return self._combine(other, operator.add)

    def __sub__(self, other: "TaskVector") -> "TaskVector":
        """Subtract two vectors of one base."""
        return self._combine(other, operator.sub)

    def __mul__(self, scale: float) -> "TaskVector":
        """Scale all differences."""
        tensors = {name: tensor.float() * scale for name, tensor in self.tensors.items()}
        return replace(self, tensors=tensors)

    __rmul__ = __mul__

    def _combine(
        self, other: "TaskVector", combine: Callable[[Tensor, Tensor], Tensor]
    ) -> "TaskVector":
        check_compatible(self, other)
        tensors = {
            name: combine(tensor.float(), other.tensors[name].float())
            for name, tensor in self.tensors.items()
        }
        base = self.metadata.get("base_sha256") or other.metadata.get("base_sha256", "")
        return TaskVector(tensors, {"base_sha256": base, "expert_sha256": ""})

    def norms(self, by: str = "block", *, norm_first: bool = True) -> dict[str, float]:
        """Return the Euclidean norm of every group, summed in float64.

        Args:
            by: ``global``, ``block``, ``module`` or ``tensor`` (`merging.groups`).
            norm_first: True for pre-norm encoders.
        """
        squares = self._inner(self, by, norm_first)
        return {group: math.sqrt(value) for group, value in squares.items()}

    def cosine(
        self, other: "TaskVector", by: str = "block", *, norm_first: bool = True
    ) -> dict[str, float]:
        """Return the cosine to another vector in every group; NaN where one of them is zero."""
        check_compatible(self, other)
        products = self._inner(other, by, norm_first)
        mine, theirs = (vector.norms(by, norm_first=norm_first) for vector in (self, other))
        return {
            group: value / scale if (scale := mine[group] * theirs[group]) else math.nan
            for group, value in products.items()
        }

    def _inner(self, other: "TaskVector", by: str, norm_first: bool) -> dict[str, float]:
        layers = self.num_layers
        groups = group_names(self.tensors, layers, by, norm_first=norm_first)
        sums = dict.fromkeys(groups, 0.0)
        for name, tensor in self.tensors.items():
            group = group_of(name, layers, by, norm_first=norm_first)
            sums[group] += inner(tensor, other.tensors[name])
        return sums


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
    different = sorted(first.tensors.keys() ^ second.tensors.keys())
    if different:
        raise UserError(f"task vectors: tensor {different[0]!r} is in only one of them")
    for name, tensor in first.tensors.items():
        if tensor.shape != second.tensors[name].shape:
            raise UserError(
                f"task vectors: tensor {name!r} has shape {tuple(tensor.shape)} in one, "
                f"{tuple(second.tensors[name].shape)} in the other"
            )


def _identity(source: Source) -> str:
    return "" if isinstance(source, Mapping) else sha256_file(weight_file(source))


def _subtract(old: Weights, new: Weights) -> dict[str, Tensor]:
    _same_names(old, new)
    tensors: dict[str, Tensor] = {}
    for name in old.names:
        before = _read(old, name)
        after = _read(new, name) if name in new.names else before
        _comparable(name, before, after, old.source, new.source)
        if before.is_floating_point():
            tensors[name] = after.float() - before.float()
    if any(not torch.isfinite(tensor).all() for tensor in tensors.values()):
        bad = next(name for name, tensor in tensors.items() if not torch.isfinite(tensor).all())
        raise UserError(
            f"tensor {bad!r} has NaN or infinite values in {old.source} or {new.source}: "
            "the training diverged; train again with a lower learning rate"
        )
    return tensors


def _read(weights: Weights, name: str) -> Tensor:
    try:
        return weights.load(name)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{weights.source}: tensor {name!r} is unreadable ({error})") from error


def _same_names(old: Weights, new: Weights) -> None:
    missing = set(old.names) - set(new.names) - {_OPTIONAL}
    extra = set(new.names) - set(old.names) - {_OPTIONAL}
    if missing or extra:
        name = min(itertools.chain(missing, extra))
        holder, other = (old, new) if name in missing else (new, old)
        raise UserError(
            f"tensor {name!r} is in {holder.source} but not in {other.source}: "
            "base and expert must be the same kind of encoder"
        )
    if (_OPTIONAL in old.names) != (_OPTIONAL in new.names):
        logging.info("%s is in only one of base and expert: taken as unchanged", _OPTIONAL)


def _comparable(name: str, before: Tensor, after: Tensor, old: str, new: str) -> None:
    for what in ("shape", "dtype"):
        mine, theirs = getattr(before, what), getattr(after, what)
        if mine != theirs:
            raise UserError(
                f"tensor {name!r}: {what} {_plain(mine)} in {old}, {_plain(theirs)} in {new}: "
                "base and expert must agree (save both in float32)"
            )
    if not before.is_floating_point() and not torch.equal(before, after):
        raise UserError(
            f"tensor {name!r} is a constant ({_plain(before.dtype)}) but differs between {old} "
            f"and {new}: it cannot be merged"
        )


def _system_error(error: SafetensorError) -> Exception:
    """The `OSError` behind an error of safetensors, which keeps its number in the text only."""
    found = _OS_ERROR.search(str(error))
    return OSError(int(found[1]), str(error)) if found else error


def _plain(value: object) -> object:
    return tuple(value) if isinstance(value, torch.Size) else value
