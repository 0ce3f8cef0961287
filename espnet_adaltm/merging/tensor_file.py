"""Safetensors files, read and written piece by piece.

The safetensors package reads and writes whole tensors, and its reader counts the mapped file as
this process's memory. Merging needs neither: here a piece of a tensor goes straight between the
file and a buffer that is used again, from any thread. The bytes are those that the package writes
(https://github.com/huggingface/safetensors, "Format").
"""

import json
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from espnet_adaltm.errors import UserError
from espnet_adaltm.files import Pathlike

# In the order in which the package stores them: by descending kind, then by name.
_KINDS = {
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "F32": torch.float32,
    "U32": torch.uint32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "U16": torch.uint16,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: kind for kind, dtype in _KINDS.items()}
_ORDER = {dtype: place for place, dtype in enumerate(_KINDS.values())}
_METADATA = "__metadata__"
_LONGEST_HEADER = 100_000_000  # the package's own limit
_MOST_BYTES = 1 << 30  # Linux moves at most 2 GiB in one call


@dataclass(frozen=True)
class Spec:
    """What a tensor is, without its values."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> "Spec":
        """Describe a tensor."""
        return cls(tensor.dtype, tuple(tensor.shape))

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in a file."""
        return self.size * self.dtype.itemsize


class TensorFile:
    """An open safetensors file; a context manager, usable from several threads.

    Args:
        path: The file; its header is read and checked, no tensor is.

    Attributes:
        metadata: The file's own entries.
        specs: Name to what the tensor is.

    Raises:
        UserError: Missing, cut off, or no safetensors file.
    """

    def __init__(self, path: Pathlike) -> None:
        self.path = Path(path)
        try:
            self._handle = open(self.path, "rb", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise UserError(f"{path} cannot be opened: {error.strerror}") from error
        try:
            header, self._start = _read_header(self._handle)
            self.metadata: dict[str, str] = dict(header.pop(_METADATA, {}))
            self.specs, self._offsets = _parse(header, _size(self._handle) - self._start)
        except (
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            OSError,
            RecursionError,
        ) as error:
            self._handle.close()
            reason = f"no entry {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(
                f"{path} is not a readable safetensors file ({reason}): it may be cut off; make "
                "it again"
            ) from error

    def __enter__(self) -> "TensorFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.close()

    def read(self, name: str) -> Tensor:
        """Read a whole tensor."""
        spec = self.specs[name]
        tensor = torch.empty(spec.shape, dtype=spec.dtype)
        self.read_into(name, 0, tensor.reshape(-1))
        return tensor

    def read_into(self, name: str, start: int, out: Tensor) -> None:
        """Fill ``out`` with the elements from ``start`` on.

        Args:
            name: Which tensor.
            start: First element, counted in the flattened tensor.
            out: Contiguous, on the CPU, of the tensor's dtype; at most as long as what is left.

        Raises:
            UserError: The file has become shorter or unreadable meanwhile.
        """
        begin = self._start + self._offsets[name] + start * out.itemsize
        try:
            _each_part(out, lambda part, at: os.preadv(self._handle.fileno(), [part], begin + at))
        except OSError as error:
            raise UserError(f"{self.path}: tensor {name!r} is unreadable ({error})") from error


class TensorWriter:
    """A safetensors file whose tensors arrive in pieces, in any order, from any thread.

    Use as a context manager. It writes where it is told: atomicity is the caller's
    (`files.atomic_path`).

    Args:
        path: File to write.
        specs: All that will be written.
        metadata: Entries of the header. With more than one, the package itself writes them in a
            random order.
        sync: Wait at the end until the disk has everything.

    Raises:
        OSError: Where writing fails.
    """

    def __init__(
        self,
        path: Pathlike,
        specs: Mapping[str, Spec],
        metadata: Mapping[str, str] | None = None,
        *,
        sync: bool = False,
    ) -> None:
        header, self._offsets, end = _layout(specs, metadata)
        self._specs = dict(specs)
        self._start = len(header)
        self._missing = {name: spec.size for name, spec in specs.items()}
        self._lock = threading.Lock()
        self._sync = sync
        self._handle = open(path, "wb", buffering=0)  # noqa: SIM115
        try:
            self._handle.write(header)
            self._handle.truncate(self._start + end)
        except BaseException:
            self._handle.close()
            raise

    def __enter__(self) -> "TensorWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        with self._handle:
            left = next((name for name, missing in self._missing.items() if missing), None)
            if kind is None and left is not None:
                raise RuntimeError(f"tensor {left!r} was not written to its end")
            if kind is None and self._sync:
                os.fsync(self._handle.fileno())

    def write(self, name: str, tensor: Tensor, start: int = 0) -> None:
        """Write contiguous elements of a tensor.

        Args:
            name: Which tensor.
            tensor: Its elements, or a part of them; any shape, of the dtype that was announced.
            start: Place of the first in the flattened tensor.
        """
        spec = self._specs[name]
        if tensor.dtype != spec.dtype or start + tensor.numel() > spec.size:
            raise ValueError(f"tensor {name!r}: {Spec.of(tensor)} does not fit {spec}")
        begin = self._start + self._offsets[name] + start * tensor.itemsize
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        _each_part(flat, lambda part, at: os.pwrite(self._handle.fileno(), part, begin + at))
        with self._lock:
            self._missing[name] -= tensor.numel()


def write_tensor_file(
    path: Pathlike, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors that are in memory."""
    specs = {name: Spec.of(tensor) for name, tensor in tensors.items()}
    with TensorWriter(path, specs, metadata, sync=True) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)


def _each_part(flat: Tensor, move: Callable[[memoryview, int], int]) -> None:
    """Call ``move(bytes, offset)`` until all bytes of a flat tensor are moved."""
    if not flat.numel():
        return
    view = memoryview(flat.view(torch.uint8).numpy())
    done = 0
    while done < len(view):
        moved = move(view[done : done + _MOST_BYTES], done)
        if moved == 0:
            raise OSError("unexpected end of the file")
        done += moved


def _size(handle: Any) -> int:
    return os.fstat(handle.fileno()).st_size


def _read_header(handle: Any) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(handle.read(8), "little")
    if not 0 < length <= min(_size(handle) - 8, _LONGEST_HEADER):
        raise ValueError("its header is longer than the file")
    header = json.loads(handle.read(length).decode("utf-8"))
    if not isinstance(header, dict):
        raise ValueError("its header is no mapping")
    return header, 8 + length


def _parse(header: dict[str, Any], room: int) -> tuple[dict[str, Spec], dict[str, int]]:
    """Check the entries against each other and against ``room`` bytes of data."""
    specs, offsets, spans = {}, {}, []
    for name, entry in header.items():
        if entry["dtype"] not in _KINDS:
            raise ValueError(f"tensor {name!r} has the unsupported dtype {entry['dtype']}")
        shape = tuple(entry["shape"])
        if not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError(f"tensor {name!r} has the shape {list(shape)}")
        specs[name] = Spec(_KINDS[entry["dtype"]], shape)
        start, stop = entry["data_offsets"]
        if stop - start != specs[name].nbytes:
            raise ValueError(f"tensor {name!r} has {stop - start} bytes for {specs[name]}")
        offsets[name] = start
        spans.append((start, stop))
    end = 0
    for start, stop in sorted(spans):
        if start != end:
            raise ValueError(f"its tensors do not join at byte {end}")
        end = stop
    if end != room:
        raise ValueError(f"its header tells of {end} bytes, it has {room}")
    return specs, offsets


def _layout(
    specs: Mapping[str, Spec], metadata: Mapping[str, str] | None
) -> tuple[bytes, dict[str, int], int]:
    """The header, where each tensor begins behind it, and where the last one ends."""
    header: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    offsets, end = {}, 0
    for name in sorted(specs, key=lambda name: (_ORDER[specs[name].dtype], name)):
        spec, offsets[name] = specs[name], end
        end += spec.nbytes
        header[name] = {
            "dtype": _NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [offsets[name], end],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, offsets, end
