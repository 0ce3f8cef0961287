"""Let a module read merged weights in place of its parameters, one at a time, when it asks.

`torch.func.functional_call` needs all weights before the forward pass starts and keeps them to its
end. Here a module's parameters are replaced by look-ups, so that a weight is made when a layer
reads it and dropped soon after.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from espnet_adaltm.merging.buffers import Buffers
from espnet_adaltm.merging.pieces import Merge, MergePiece, Piece

# Pieces that stay merged during a forward pass: those that one layer reads together.
_LIVE = 8


class _LookUps(dict):
    """A module's ``_parameters`` of which some are made when read."""

    def __init__(self, stored: Mapping[str, Any], made: Mapping[str, Callable[[], Tensor]]) -> None:
        super().__init__(stored)
        self._made = made

    def __getitem__(self, name: str) -> Any:
        make = self._made.get(name)
        return super().__getitem__(name) if make is None else make()

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self._made else super().get(name, default)

    def values(self) -> Iterator[Any]:
        return (self[name] for name in self)

    def items(self) -> Iterator[tuple[str, Any]]:
        return ((name, self[name]) for name in self)


@contextmanager
def substituted(
    module: nn.Module, names: Mapping[int, str], make: Callable[[str], Tensor]
) -> Iterator[None]:
    """Inside, reading a parameter of ``module`` gives ``make(name)``; always undone at the end.

    Args:
        module: Its submodules are changed while the context lasts.
        names: ``id`` of each parameter to replace, to what it is called; a parameter that several
            modules share is replaced in all of them.
        make: Name to tensor.
    """
    swapped: list[tuple[nn.Module, dict]] = []
    try:
        for part in module.modules():
            stored = part.__dict__["_parameters"]
            made = {
                attribute: _maker(make, names[id(parameter)])
                for attribute, parameter in stored.items()
                if id(parameter) in names
            }
            if made:
                swapped.append((part, stored))
                part.__dict__["_parameters"] = _LookUps(stored, made)
        yield
    finally:
        for part, stored in swapped:
            part.__dict__["_parameters"] = stored


def _maker(make: Callable[[str], Tensor], name: str) -> Callable[[], Tensor]:
    return lambda: make(name)


class _Again(NamedTuple):
    """A saved view of merged weights, not kept but made again."""

    merge: Merge
    offset: int
    size: torch.Size
    stride: tuple[int, ...]


class MergeSession:
    """Merged weights of one forward pass.

    Args:
        pieces: What is merged.
        base: The base's tensors by name.
        values: Coefficients [K, G]; the merge is part of the graph if they require gradients.
        buffers: Where merged weights may lie.
        hold: See `pieces.Merge`.
    """

    def __init__(
        self,
        pieces: Mapping[str, Piece],
        base: Mapping[str, Tensor],
        values: Tensor,
        buffers: Buffers,
        *,
        hold: bool = False,
    ) -> None:
        self._pieces, self.base = pieces, base
        self._buffers, self._hold = buffers, hold
        self._values, self._plain = values, values.detach().clone()
        self._live: OrderedDict[Piece, tuple[int, dict[str, Tensor]]] = OrderedDict()
        self._storages: dict[int, Merge] = {}

    def tensor(self, name: str) -> Tensor:
        """One merged tensor; the piece it lies in is merged with it."""
        piece = self._pieces[name]
        if piece in self._live:
            self._live.move_to_end(piece)
        else:
            self._merge(piece)
        return self._live[piece][1][name]

    def _merge(self, piece: Piece) -> None:
        base = [self.base[name] for name in piece.names]
        merge = Merge(piece, self._plain, base, self._hold, self._buffers)
        tensors = MergePiece.apply(self._values, merge)
        storage = _storage(tensors[0])
        self._storages[storage] = merge
        self._live[piece] = (storage, dict(zip(piece.names, tensors, strict=True)))
        if len(self._live) > _LIVE:
            _, (old, _) = self._live.popitem(last=False)
            del self._storages[old]

    def close(self) -> None:
        """Drop what is merged."""
        self._live.clear()
        self._storages.clear()

    def pack(self, tensor: Tensor) -> Any:
        """Autograd's hook for tensors saved for the backward pass."""
        merge = self._storages.get(_storage(tensor))
        if merge is None or tensor.dtype != merge.dtype:
            # A hook must not keep the tensor itself (a cycle), and takes over autograd's check.
            return tensor.detach(), tensor._version
        return _Again(merge, tensor.storage_offset(), tensor.shape, tensor.stride())

    @staticmethod
    def unpack(packed: Any) -> Tensor:
        """The opposite of `pack`."""
        if isinstance(packed, _Again):
            flat = packed.merge.repeat()
            return flat.as_strided(packed.size, packed.stride, packed.offset)
        tensor, version = packed
        if tensor._version != version:
            raise RuntimeError(
                "a tensor needed for the gradient was modified by an in-place operation inside the "
                f"merged encoder (shape {tuple(tensor.shape)})"
            )
        return tensor


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else 0
