"""One utterance as ESPnet reads it -> arrays -> the tensors of a batch."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from espnet_adaltm.data.labels import Labels

_FULL_SCALE = {"int16": 2.0**15, "int32": 2.0**31}


def to_float(audio: NDArray) -> NDArray[np.float32]:
    """Integer PCM to float32 in [-1, 1); floats keep their values.

    Args:
        audio: [N] samples, or [T, C] stored features.
    """
    scale = _FULL_SCALE.get(audio.dtype.name)
    if scale is None:
        return np.asarray(audio, dtype=np.float32)
    return np.asarray(audio, dtype=np.float32) / np.float32(scale)


class Preprocess:
    """ESPnet's per-utterance preprocessing, picklable for data-loader workers.

    Args:
        tokens: Folder with ``tokens.model`` and ``tokens.txt``; None for tasks without text.
        labels: The emotions; None for tasks without them.
    """

    def __init__(self, tokens: str | Path | None = None, labels: Labels | None = None) -> None:
        self.tokens = None if tokens is None else str(tokens)
        self.labels = labels
        self._tokenizer = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_tokenizer": None}

    def __call__(self, utt_id: str, data: Mapping[str, NDArray | str]) -> dict[str, NDArray]:
        """Convert what is present: ``speech`` [N] or [T, C], ``text`` [U], ``emotion`` [C].

        Raises:
            UserError: An emotion outside the list of labels.
        """
        result: dict[str, NDArray] = {}
        for name, value in data.items():
            if name == "speech":
                result[name] = to_float(value)
            elif name == "text":
                result[name] = np.asarray(self._encode(value), dtype=np.int64)
            elif name == "emotion":
                target = self.labels.target(value, f"utterance {utt_id!r}")
                result[name] = np.asarray(target, dtype=np.float32)
            else:
                result[name] = np.asarray(value)
        return result

    def _encode(self, text: str) -> list[int]:
        if self._tokenizer is None:
            from espnet_adaltm.data.tokens import Tokenizer

            self._tokenizer = Tokenizer(self.tokens)
        return self._tokenizer.encode(text)


class Collate:
    """Utterances to padded tensors; ESPnet's own collate function imports text-to-speech tools.

    Floats are padded with 0, integers with -1.

    Args:
        not_sequence: Names without a time axis, which get no ``<name>_lengths``.
    """

    def __init__(self, not_sequence: Collection[str] = ()) -> None:
        self.not_sequence = frozenset(not_sequence)

    def __call__(
        self, data: Sequence[tuple[str, dict[str, NDArray]]]
    ) -> tuple[list[str], dict[str, Tensor]]:
        """Pad and stack.

        Args:
            data: B times utterance id and name to array [N, ...].

        Returns:
            Utterance ids, and name to tensor [B, max N, ...] with ``<name>_lengths`` [B].
        """
        batch: dict[str, Tensor] = {}
        for name in data[0][1]:
            parts = [torch.from_numpy(arrays[name]) for _, arrays in data]
            padding = 0.0 if parts[0].is_floating_point() else -1
            batch[name] = pad_sequence(parts, batch_first=True, padding_value=padding)
            if name not in self.not_sequence:
                batch[f"{name}_lengths"] = torch.tensor([len(part) for part in parts])
        return [utt for utt, _ in data], batch
