"""Decoding turn by turn: what a memory heard before an utterance, and what if it had not.

Utterances are decoded in waves: the first turns of all dialogues, then their second turns and so
on, sorted by length within a wave. So batches are as full as without a memory, and no result
depends on which dialogues share one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from espnet_adaltm.backbone.features import make_batches
from espnet_adaltm.data.dialogs import Dialogs, others, shuffled
from espnet_adaltm.decoding.batch import Decoded, Inputs, pad, prefetch
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import Pathlike
from espnet_adaltm.kaldi import read_scp
from espnet_adaltm.models.memory_layer import Turns
from espnet_adaltm.progress import progress

DIALOG, NONE, FROZEN, RESET, SHUFFLED, OTHER = HISTORIES = (
    "dialog",
    "none",
    "frozen",
    "reset_each_turn",
    "shuffled",
    "other_dialog",
)
MEANS: Mapping[str, str] = {
    DIALOG: "the turns before, in their order",
    NONE: "no memory at all: the host",
    FROZEN: "a memory that is never written",
    RESET: "a memory that is emptied before every turn; as nothing reads its own turn, the same "
    "numbers as a memory that is never written",
    SHUFFLED: "as many turns of the dialogue, in a random order (some of them from later on)",
    OTHER: "the turns of another dialogue, of other speakers where there are any",
}
# Dialogues whose memories are held at a time.
_OPEN = 256


@dataclass(frozen=True)
class Wave:
    """Turns that can be decoded side by side: at most one of each dialogue.

    Attributes:
        turns: Utterance to dialogue.
        first: Whether memories of other dialogues can be forgotten before.
    """

    turns: Mapping[str, str]
    first: bool


def waves(dialogs: Dialogs, most: int = _OPEN) -> Iterator[Wave]:
    """The order in which turns are decoded, at most ``most`` dialogues at a time."""
    names = sorted(dialogs.turns, key=lambda name: -len(dialogs.turns[name]))
    for group in _groups(names, most):
        longest = len(dialogs.turns[group[0]])
        for turn in range(longest):
            utts = {dialogs.turns[n][turn]: n for n in group if turn < len(dialogs.turns[n])}
            yield Wave(utts, turn == 0)


def _groups(names: Sequence[str], most: int) -> list[list[str]]:
    """Parts of about the same size, so that none has a single dialogue unless there is only one."""
    count = -(-len(names) // most)
    return [list(part) for part in np.array_split(np.array(names, dtype=object), max(count, 1))]


def decode(
    system: nn.Module,
    inputs: Inputs,
    dialogs: Dialogs,
    history: str,
    *,
    dump: Pathlike,
    batch_seconds: float = 40.0,
    device: torch.device | str = "cpu",
) -> Decoded:
    """Recognise every utterance after its dialogue's earlier turns.

    Args:
        system: With a ``memory``; (speech, lengths, turns) to `Output`.
        inputs: What to read.
        dialogs: Of the utterances of ``inputs``.
        history: `DIALOG` or one of its ablations but `NONE` and `FROZEN`, which need no order.
        dump: The set, for its speakers.
        batch_seconds: Largest padded duration of a batch; it changes speed and memory only.
        device: Where to compute.

    Raises:
        UserError: Unreadable input, an output that is not finite, or an unknown history.
    """
    if history not in (DIALOG, RESET, SHUFFLED, OTHER):
        raise UserError(f"history {history!r} is none of {', '.join(HISTORIES)}")
    system, device = system.to(device), torch.device(device)
    if history == SHUFFLED:
        dialogs = shuffled(dialogs)
    most = int(batch_seconds * inputs.per_second)
    plan, sources = [], {}
    for wave in waves(dialogs):
        if wave.first and history == OTHER:
            sources |= _exchange(dialogs, wave, dump)
        for number, batch in enumerate(
            make_batches({u: inputs.lengths[u] for u in wave.turns}, most)
        ):
            plan.append((wave, number == 0, batch))
    rows: dict[str, list[float]] = {}
    system.memory.reset()
    arrays = prefetch(inputs, [batch for _, _, batch in plan])
    for (wave, begins, batch), loaded in progress(
        zip(plan, arrays, strict=True), "decode dialogues", total=len(plan), unit="batch"
    ):
        if begins and wave.first:
            system.memory.reset()
        if begins:
            system.memory.keep_aside()
        names = tuple(wave.turns[utt] for utt in batch)
        read = tuple(sources[name] for name in names) if history == OTHER else None
        turns = Turns(names, carry=history != RESET, sources=read)
        output = system(*pad(loaded, device), turns)
        for utt, row in zip(batch, output.probabilities.tolist(), strict=True):
            if not np.isfinite(row).all():
                raise UserError(
                    f"utterance {utt!r}: the emotion probabilities are not finite: the training "
                    "diverged, or the memory did (a smaller max_step helps)"
                )
            rows[utt] = row
    system.memory.reset()
    return Decoded({utt: rows[utt] for utt in inputs.lengths}, {})


def _exchange(dialogs: Dialogs, wave: Wave, dump: Pathlike) -> dict[str, str]:
    """For the dialogues that begin with ``wave``, whose memory each of them reads."""
    path = Path(dump) / "utt2spk"
    speakers = read_scp(path) if path.exists() else {}
    group = Dialogs({name: dialogs.turns[name] for name in sorted(wave.turns.values())})
    return others(group, speakers)
