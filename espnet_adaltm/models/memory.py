"""Memory layers at one or more layers of a host, used as one: the plug-in adapter.

See `memory_layer.py` for what a layer does. A dialogue can be continued in another process:

    memory.save("dialogues.safetensors")        # here
    memory.load("dialogues.safetensors")        # there, with the same adapter weights
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from espnet_adaltm.config import check_keys
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import Pathlike, atomic_open, require
from espnet_adaltm.models.memory_layer import MemoryLayer, Turns

OPTIONS = ("layers", "size", "width", "chunk", "truncate", "max_step", "bounded")
_ADAPTER = "adapter"


def memory_options(given: Mapping[str, Any], num_layers: int, where: str) -> dict[str, Any]:
    """Complete and check the options of `Memory`.

    Args:
        given: Any of `OPTIONS`. ``layers`` counts a host's from 1; by default the middle one.
        num_layers: Of the host.
        where: For the error.

    Raises:
        UserError: An unknown option, or a layer that the host doesn't have.
    """
    check_keys(given, OPTIONS, where)
    layers = given.get("layers") or [(num_layers + 1) // 2]
    layers = sorted({layers} if isinstance(layers, int) else set(layers))
    wrong = [layer for layer in layers if not 1 <= layer <= num_layers]
    if wrong:
        raise UserError(f"{where}: layer {wrong[0]} is not one of the host's 1 to {num_layers}")
    rest = {name: value for name, value in given.items() if name != "layers"}
    return {"layers": layers, **rest}


class Memory(nn.Module):
    """Several memory layers over one host.

    Args:
        dim: D, width of the host's hidden states.
        layers: The host's layers after which memories sit, from 1.
        **options: Of every `MemoryLayer`.
    """

    def __init__(self, dim: int, layers: Sequence[int], **options: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({str(n): MemoryLayer(dim, **options) for n in layers})

    def __iter__(self) -> Iterator[MemoryLayer]:
        return iter(self.layers.values())

    def attach(self, host_layers: Sequence[nn.Module]) -> list[RemovableHandle]:
        """Hook every memory to its layer; ``host_layers[0]`` is layer 1."""
        return [memory.attach(host_layers[int(n) - 1]) for n, memory in self.layers.items()]

    @contextmanager
    def listen(
        self,
        turns: Turns | None = None,
        *,
        mask: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> Iterator[None]:
        """See `MemoryLayer.listen`."""
        with ExitStack() as stack:
            for layer in self:
                stack.enter_context(layer.listen(turns, mask=mask, lengths=lengths))
            yield

    @contextmanager
    def paused(self) -> Iterator[None]:
        """See `MemoryLayer.paused`."""
        with ExitStack() as stack:
            for layer in self:
                stack.enter_context(layer.paused())
            yield

    def keep_aside(self) -> None:
        """See `MemoryLayer.keep_aside`."""
        for layer in self:
            layer.keep_aside()

    def reset(self, dialog: str | None = None) -> None:
        """Forget one dialogue, or all of them."""
        for layer in self:
            layer.reset(dialog)

    def gate(self) -> float:
        """Mean of |tanh g| over the layers: how much the host is changed, 0 to 1."""
        values = [float(layer.gate.detach().tanh().abs()) for layer in self]
        return sum(values) / len(values)

    def fingerprint(self) -> str:
        """SHA-256 of the adapter's weights."""
        parts = "".join(layer.fingerprint() for layer in self)
        return hashlib.sha256(parts.encode()).hexdigest()

    def memory_state(self) -> dict[str, Tensor]:
        """What is remembered, ``<layer>/<part>/<dialogue>`` to tensor on the CPU."""
        return {
            f"{number}/{name}": tensor
            for number, layer in self.layers.items()
            for name, tensor in layer.memory_state().items()
        }

    def load_memory_state(self, tensors: Mapping[str, Tensor], where: str = "memory") -> None:
        """Replace everything that is remembered.

        Raises:
            UserError: Memories of other layers or sizes.
        """
        parts: dict[str, dict[str, Tensor]] = {number: {} for number in self.layers}
        for name, tensor in tensors.items():
            number, _, rest = name.partition("/")
            if number not in parts:
                raise UserError(
                    f"{where}: a memory of layer {number}, expected {', '.join(parts)}: it was "
                    "saved by another memory"
                )
            parts[number][rest] = tensor
        for number, layer in self.layers.items():
            layer.load_memory_state(parts[number], where)

    def save(self, path: Pathlike) -> None:
        """Write all memories as safetensors, atomically, with the hash of the adapter's weights."""
        data = to_bytes(self.memory_state(), metadata={_ADAPTER: self.fingerprint()})
        with atomic_open(path, "wb") as handle:
            handle.write(data)

    def load(self, path: Pathlike) -> None:
        """Replace all memories by those of a file.

        Raises:
            UserError: Missing, damaged, or written with other adapter weights.
        """
        path = require(path, "Memory.save")
        try:
            with safe_open(path, "pt") as file:
                adapter = (file.metadata() or {}).get(_ADAPTER)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is damaged ({error}): save the memory again") from error
        if adapter != self.fingerprint():
            raise UserError(
                f"{path} holds memories of an adapter with other weights, which this one cannot "
                "read: load the adapter that wrote it, or start without"
            )
        self.load_memory_state(tensors, str(path))
