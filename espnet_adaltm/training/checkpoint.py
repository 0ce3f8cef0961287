"""Checkpoints that survive a crash at any moment.

ESPnet writes ``checkpoint.pth`` in place and keeps one copy, so that a kill while writing loses the
training. Here every file is written beside its name and renamed, the checkpoint before the newest
is kept, and loading falls back to it.
"""

import logging
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor, nn

from espnet_adaltm.config import nearest
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import Pathlike, atomic_open
from espnet_adaltm.merging.tensor_file import Spec
from espnet_adaltm.text import some
from espnet_adaltm.training.identity import CHECKPOINTS

CURRENT, PREVIOUS = CHECKPOINTS


class _Sink:
    """Keeps the error of a failed write: `torch.save` would replace it by one of its own."""

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle = handle
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        self._try(lambda: self._handle.write(data))
        return len(data)

    def flush(self) -> None:
        self._try(self._handle.flush)

    def _try(self, action: Callable[[], object]) -> None:
        if self.error is None:
            try:
                action()
            except OSError as error:
                self.error = error


def save_torch(path: Pathlike, value: Any) -> None:
    """`torch.save` to a temporary name, fsync, rename.

    Nothing is copied in memory first: the states of a large model take gigabytes.

    Raises:
        UserError: The disk is full. The old file, if any, is untouched.
    """
    with atomic_open(path, "wb") as handle:
        sink = _Sink(handle)
        torch.save(value, sink)
        if sink.error is not None:
            raise sink.error


def link(path: Path, target: str) -> None:
    """Make ``path`` a symbolic link to ``target`` (a name in the same folder), atomically."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(path)


def save_checkpoint(folder: Path, states: Mapping[str, Any]) -> None:
    """Write ``checkpoint.pth``; the one that it replaces stays as ``checkpoint.prev.pth``.

    Args:
        folder: The experiment directory.
        states: Everything that a resumed training needs.
    """
    new = folder / f".{CURRENT}.new"
    save_torch(new, dict(states))
    current = folder / CURRENT
    if current.exists():
        current.replace(folder / PREVIOUS)
    new.replace(current)


def load_checkpoint(folder: Path, device: str | torch.device = "cpu") -> dict[str, Any] | None:
    """Read the newest readable checkpoint of an experiment directory.

    Args:
        folder: The experiment directory.
        device: Where tensors go.

    Returns:
        The saved states, or None when nothing was saved yet.

    Raises:
        UserError: There are checkpoints, but none of them can be read.
    """
    broken: list[str] = []
    for name in CHECKPOINTS:
        path = folder / name
        if not path.exists():
            continue
        try:
            states = torch.load(path, map_location=device, weights_only=True)
        except Exception as error:  # noqa: BLE001  (any damage shows as any exception)
            logging.warning("%s cannot be read (%s): it is damaged", path, _first_line(error))
            broken.append(str(path))
            continue
        if broken:
            logging.warning("Continuing from %s instead, one epoch earlier", path)
        return states
    if broken:
        raise UserError(
            f"no readable checkpoint: {' and '.join(broken)} are damaged; delete them to train "
            f"from the start, or restore them from a copy"
        )
    return None


def plain(value: Any) -> Any:
    """The same without NumPy scalars and time spans, which only a full unpickler could read.

    Args:
        value: Nested dictionaries and lists, as ESPnet's reporter keeps its statistics.

    Returns:
        NumPy scalars as Python numbers (exactly), time spans in seconds, the rest as it is.
    """
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, np.generic):
        return value.item()
    return value.total_seconds() if isinstance(value, timedelta) else value


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def load_strict(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load ``state`` into ``module``, names and shapes being exactly the module's.

    Args:
        module: Anything with a state dict.
        state: Name to tensor.
        where: The file that ``state`` comes from, for the error.

    Raises:
        UserError: As `check_fit`.
    """
    check_fit(module, state, where)
    module.load_state_dict(dict(state), strict=True)


def check_fit(module: nn.Module, state: Mapping[str, Tensor | Spec], where: str) -> None:
    """Refuse a state whose names and shapes are not exactly the module's.

    Args:
        module: Anything with a state dict.
        state: Name to tensor, or to what a file's header says of it.
        where: The file that ``state`` comes from, for the error.

    Raises:
        UserError: A name is missing or unexpected, or a shape differs; it lists them.
    """
    own = module.state_dict()
    problems = [f"missing {name!r}{nearest(name, state)}" for name in own if name not in state]
    problems += [f"unexpected {name!r}" for name in state if name not in own]
    problems += [
        f"{name!r} has shape {tuple(state[name].shape)}, expected {tuple(value.shape)}"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    if problems:
        raise UserError(
            f"{where} does not fit the model: {some(problems, between='; ')}. "
            f"It was trained with other options: use the matching configuration or file"
        )


def load_weights(path: Pathlike) -> dict[str, Tensor]:
    """Read a ``*.pth`` file of model weights without unpickling code.

    Raises:
        UserError: The file is missing, damaged, or holds more than tensors.
    """
    path = Path(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: train the model first") from error
    except Exception as error:
        raise UserError(
            f"{path} cannot be read as model weights ({_first_line(error)}): it is damaged or was "
            f"not written by this training"
        ) from error
