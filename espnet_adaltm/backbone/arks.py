"""Waveforms out of a dump directory, arrays into a Kaldi ark."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from espnet_adaltm.errors import UserError
from espnet_adaltm.files import Pathlike, require
from espnet_adaltm.kaldi import read_scp, safe_kaldiio, write_scp

SAMPLE_RATE = 16000


class Waveforms:
    """The audio of a dump directory, read on demand.

    Args:
        dump_dir: Folder with ``wav.scp`` (``utt ark:offset``), 16 kHz mono.
    """

    def __init__(self, dump_dir: Pathlike) -> None:
        self.path = require(Path(dump_dir) / "wav.scp", "the stage 'audio'")
        self.entries = read_scp(self.path)

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __getitem__(self, utt: str) -> np.ndarray:
        """Samples of one utterance, float32 ``[N]``, integers scaled to [-1, 1).

        Raises:
            UserError: Unreadable, empty, not mono, or not 16 kHz.
        """
        where = f"{self.path}: utterance {utt!r}"
        try:
            rate, samples = safe_kaldiio().load_mat(self.entries[utt])
        except Exception as error:  # kaldiio raises whatever the damage leads to
            raise UserError(
                f"{where}: cannot read {self.entries[utt]} ({error}): run the stage 'audio' again"
            ) from error
        if np.ndim(rate) or rate != SAMPLE_RATE or samples.ndim != 1 or not len(samples):
            raise UserError(
                f"{where}: found {rate} Hz, shape {samples.shape}; expected {SAMPLE_RATE} Hz, mono "
                "and not empty: run the stage 'audio' again"
            )
        if np.issubdtype(samples.dtype, np.integer):
            return samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)
        return samples.astype(np.float32)


class ArkWriter:
    """Writes NumPy arrays of any type into ``<name>.ark``, and ``<name>.scp`` at the end.

    Args:
        temporary: Folder to write to.
        final: Folder that ``temporary`` will become; the paths in the scp begin with it, as given.
        name: Stem of both files.
    """

    def __init__(self, temporary: Path, final: Path, name: str) -> None:
        self._scp = temporary / f"{name}.scp"
        self._target = final / f"{name}.ark"
        self._ark = (temporary / f"{name}.ark").open("wb")
        self._entries: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ark.flush()
        os.fsync(self._ark.fileno())
        self._ark.close()
        if kind is None:
            write_scp(self._scp, self._entries)

    def write(self, utt: str, array: np.ndarray) -> None:
        """Append one array."""
        offset = self._ark.tell() + len(f"{utt} ".encode())
        safe_kaldiio().save_ark(self._ark, {utt: array}, write_function="numpy")
        self._entries[utt] = f"{self._target}:{offset}"
