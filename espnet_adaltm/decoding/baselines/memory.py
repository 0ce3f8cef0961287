"""Memory-as-a-Layer: a recogniser of ours, or Qwen2-Audio, that remembers the dialogue.

``"history"`` in ``baseline.json`` says what its memory hears, see `decoding.dialog`: ``dialog``, or
an ablation made by ``bin/memory_history.py``, which shares the weights of its ``"weights"``.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from espnet_adaltm.backbone.encoder import SpeechEncoder
from espnet_adaltm.data.dialogs import read_dialogs
from espnet_adaltm.decoding import batch, dialog, systems
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import require, sha256_file
from espnet_adaltm.models.memory import Memory
from espnet_adaltm.models.memory_layer import Turns
from espnet_adaltm.models.memory_ser import SerHost

MEMORY = "memory.safetensors"
SER, QWEN = HOSTS = ("ser", "qwen2_audio")
_NEEDED = ("labels", "options", "host_kind", "history", "dialogs", "learn", "memory_sha256")
# What says that a host is the one that the memory was trained for.
_WEIGHTS = {"ser": systems.WEIGHTS, "merge": "coefficients.json"}


class MemorySystem(nn.Module):
    """A host with its memory, always in evaluation mode.

    Args:
        host: See `training.memory_model`.
        memory: Attached to it here.
        labels: The host's outputs, in order.
        dialogs: ``kind`` and ``pseudo_turns``, for `read_dialogs`.
        history: One of `dialog.HISTORIES`.
        learn: False for a memory that was trained never to be written.
    """

    tokenizer = None

    def __init__(
        self,
        host: nn.Module,
        memory: Memory,
        labels: Sequence[str],
        *,
        dialogs: Mapping[str, Any],
        history: str = dialog.DIALOG,
        learn: bool = True,
    ) -> None:
        super().__init__()
        if history not in dialog.HISTORIES:
            raise UserError(f"history {history!r} is none of {', '.join(dialog.HISTORIES)}")
        self.host, self.memory, self.labels = host, memory, tuple(labels)
        self.dialogs, self.history, self.learn = dict(dialogs), history, learn
        host.attach(memory)
        self.requires_grad_(False).eval()

    @property
    def encoder(self) -> SpeechEncoder | None:
        """The host's speech encoder, if it is one of ours."""
        return getattr(self.host, "encoder", None)

    @torch.inference_mode()
    def forward(
        self, speech: Tensor, lengths: Tensor, turns: Turns | None = None
    ) -> systems.Output:
        """Recognise a padded batch.

        Args:
            speech: Waveforms [B, N] or CNN features [B, T, C].
            lengths: Valid samples or frames, [B].
            turns: Dialogues of the rows; without, every utterance is the first of its own.
        """
        if turns is None:
            turns = Turns(tuple(str(row) for row in range(len(speech))), learn=False)
        logits = self.host(speech, lengths, self.memory, turns)
        return systems.Output(logits.double().softmax(-1).cpu(), None)


def decode(
    system: MemorySystem,
    inputs: batch.Inputs,
    *,
    dump: Path,
    batch_seconds: float,
    device: torch.device | str,
) -> batch.Decoded:
    """Decode a set in the order of its dialogues, or as ``history`` says."""
    options = {"batch_seconds": batch_seconds, "device": device}
    if system.history == dialog.NONE:
        with system.memory.paused():
            return batch.decode(system, inputs, **options)
    if system.history == dialog.FROZEN or not system.learn:
        return batch.decode(system, inputs, **options)
    dialogs = read_dialogs(
        dump, inputs.lengths, system.dialogs["kind"], system.dialogs["pseudo_turns"]
    )
    return dialog.decode(system, inputs, dialogs, system.history, dump=dump, **options)


def load(folder: Path, info: Mapping[str, Any], *, base: Path | None = None) -> MemorySystem:
    """Load a trained memory and its host.

    Args:
        folder: With ``baseline.json``; ``memory.safetensors`` is in its ``"weights"``.
        info: ``baseline.json``.
        base: Folder of the base encoder; the host's own unless given.

    Raises:
        UserError: Something is missing or damaged, or the host or the weights are others.
    """
    lacking = [key for key in _NEEDED if key not in info]
    if lacking:
        raise UserError(
            f"{folder / systems.BASELINE} lacks {', '.join(lacking)}: run its training again"
        )
    weights = folder / info.get("weights", ".")
    path = require(weights / MEMORY, "stage `baselines`")
    if sha256_file(path) != info["memory_sha256"]:
        raise UserError(f"{path} is not what {folder} was made of: run stage `baselines` again")
    host = _load_host(folder, info, base)
    if info.get("trained_head"):
        systems.load_module(host.head, weights / systems.HEAD)
    memory = Memory(host.hidden_size, **info["options"])
    systems.load_module(memory, path)
    return MemorySystem(
        host,
        memory,
        info["labels"],
        dialogs=info["dialogs"],
        history=info["history"],
        learn=info["learn"],
    )


def _load_host(folder: Path, info: Mapping[str, Any], base: Path | None) -> nn.Module:
    if info["host_kind"] == QWEN:
        from espnet_adaltm.models.qwen2_audio_host import Qwen2AudioHost

        return Qwen2AudioHost.from_pretrained(labels=info["labels"], **info["host_conf"])
    source = folder / info["host"]
    if host_hash(source) != info["host_sha256"]:
        raise UserError(
            f"{source} is not the host that {folder} was trained with: run stage `baselines` again"
        )
    return load_ser_host(source, systems.base_folder(folder, base))


def host_hash(source: Path) -> str:
    """SHA-256 of what decides a host of ours: an expert's weights or a merge's coefficients.

    Raises:
        UserError: It does not recognise emotions.
    """
    kind = systems.read_description(source)["kind"]
    if kind not in _WEIGHTS:
        raise UserError(
            f"{source} is of kind {kind!r}: a memory needs an SER expert or a merge as its host"
        )
    return sha256_file(require(source / _WEIGHTS[kind], "the training of its folder"))


def load_ser_host(source: Path, base: Path | None) -> SerHost:
    """Load a SER expert or a merge as a host.

    Args:
        source: Its folder.
        base: Folder of its base encoder.
    """
    system = systems.load_system(source, base=base)
    return SerHost(system.encoder, system.emotion_head)
