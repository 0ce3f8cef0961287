"""Memory that is used again instead of being asked for again.

A large block that is freed on a CPU goes back to the system, and every page of the next one has to
be mapped anew: that costs more than merging into it.
"""

import torch
from torch import Tensor

# PyTorch tells how many tensors share a memory only here; without it nothing is used again.
_count = getattr(torch._C, "_storage_Use_Count", None)


def _users(tensor: Tensor) -> int:
    return _count(tensor.untyped_storage()._cdata)


class Buffers:
    """Uninitialised flat tensors; those that nobody refers to any more are handed out again.

    Nothing is ever given back explicitly, so nothing can be given back too early: a buffer is free
    when the tensor kept here is the only one on its memory, views and what autograd saved included.
    On a GPU, whose allocator keeps freed memory itself, every tensor is new.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[int, torch.dtype], list[Tensor]] = {}
        self._alone: int | None = None

    def __deepcopy__(self, memo: dict) -> "Buffers":
        return Buffers()

    def take(self, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A tensor [size] with any contents, on memory that no other tensor uses."""
        if device.type != "cpu" or _count is None:
            return torch.empty(size, dtype=dtype, device=device)
        kept = self._kept.setdefault((size, dtype), [])
        for tensor in kept:
            if _users(tensor) == self._alone:
                return tensor.detach()
        with torch.inference_mode(False), torch.no_grad():
            tensor = torch.empty(size, dtype=dtype)
            if self._alone is None:
                self._alone = _users(tensor)
            kept.append(tensor)
            return tensor.detach()
