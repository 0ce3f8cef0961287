"""A test-time memory that is plugged into one layer of any speech or audio language model.

    layer = MemoryLayer(dim=768)
    layer.attach(host.layers[6])          # any module whose output is hidden states [B, T, D]
    host(first_turns)                     # row i of every call is the next turn of dialogue i
    host(second_turns)
    layer.reset()                         # other dialogues begin

[P] Titans-as-a-Layer (arXiv 2606.08573): the dialogue's history is written into a small neural
memory at test time and read back as a residual at the audio tokens; the host's token positions and
weights stay as they are. The rule is Titans' (`titans.py`).

Ours, for what is unknown: `h' = h + tanh(g) W_out read(x)` with `x = W_in LayerNorm(h)`, and g = 0
at first, so that an untrained layer changes nothing; the learned weights of an empty memory;
reading before writing, so that a turn never hears itself; steps that are the shorter, the longer
momentum repeats them and the steeper the loss is; float32 (the layer's own type; a host may have
another); the biases that the three gates start with. From the original: `k, v, q = silu(x W)`, k
and q being L2-normalised, and gates that are sigmoids of a linear map.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from espnet_adaltm.errors import UserError
from espnet_adaltm.models import titans
from espnet_adaltm.models.masks import length_mask
from espnet_adaltm.models.titans import Gates, State

# Where the gates start: past surprise fades over ten frames, a step is a quarter of the largest,
# and a turn of three seconds forgets a tenth.
_MOMENTUM, _STEP, _FORGET = 2.2, -1.1, -7.0


@dataclass(frozen=True)
class Turns:
    """Which dialogue every row of a batch belongs to.

    Attributes:
        dialogs: The dialogue of each row; rows of one are in the order of its turns.
        carry: Start with what earlier calls left of these dialogues, and keep what this one
            leaves (without gradients). Otherwise every dialogue begins with an empty memory.
        learn: Write at all.
        sources: The dialogue whose memory each row reads instead of its own, as `keep_aside` found
            it; for ablations, with ``carry`` and at most one row per dialogue.
    """

    dialogs: tuple[str, ...]
    carry: bool = False
    learn: bool = True
    sources: tuple[str, ...] | None = None

    @cached_property
    def names(self) -> list[str]:
        """The dialogues, those with the most turns first."""
        counts: dict[str, int] = {}
        for dialog in self.dialogs:
            counts[dialog] = counts.get(dialog, 0) + 1
        return sorted(counts, key=lambda dialog: -counts[dialog])

    @cached_property
    def steps(self) -> list[list[int]]:
        """The rows of every dialogue's first turn, of its second turn and so on.

        A step has a row for the first dialogues of `names`, as many as have that turn.
        """
        rows: dict[str, list[int]] = {dialog: [] for dialog in self.names}
        for row, dialog in enumerate(self.dialogs):
            rows[dialog].append(row)
        longest = len(rows[self.names[0]]) if self.names else 0
        return [
            [rows[name][turn] for name in self.names if turn < len(rows[name])]
            for turn in range(longest)
        ]


class MemoryLayer(nn.Module):
    """Memories of dialogues, and the adapter between them and a host's layer.

    Args:
        dim: D, width of the host's hidden states.
        size: Width of keys, values and queries.
        width: Width of the memory's inner layer.
        chunk: Frames that are written together; 1 is the exact rule, see `titans.write`.
        truncate: Turns of a batch through which gradients flow back.
        max_step: Greatest step that the frames of a chunk take together, with all that their
            momentum adds later: theta is at most `(1 - eta) max_step / chunk`.
        bounded: Shorten steps that would overshoot, see `titans.write`; without it, and from a
            `max_step` of about 1 on with it, a memory may diverge.
    """

    def __init__(
        self,
        dim: int,
        *,
        size: int = 256,
        width: int = 256,
        chunk: int = 64,
        truncate: int = 8,
        max_step: float = 0.5,
        bounded: bool = True,
    ) -> None:
        super().__init__()
        if min(size, width, chunk, truncate) < 1 or max_step <= 0:
            raise UserError(
                f"memory: size {size}, width {width}, chunk {chunk}, truncate {truncate} and "
                f"max_step {max_step} must be positive"
            )
        self.chunk, self.truncate, self.max_step = chunk, truncate, max_step
        self.bounded = bounded
        self.norm = nn.LayerNorm(dim)
        self.w_in = nn.Linear(dim, size, bias=False)
        self.keys, self.values, self.queries = (nn.Linear(size, size, bias=False) for _ in range(3))
        self.gates = nn.Linear(size, 3)
        self.w_out = nn.Linear(size, dim, bias=False)
        self.gate = nn.Parameter(torch.zeros(()))
        # For unit keys the inner layer then has a norm of about one, whatever its width.
        self.first = nn.Parameter(torch.randn(width, size) * 2 / width**0.5)
        # Not zero: behind a closed gate a memory that nobody writes to could never learn anything.
        self.second = nn.Parameter(torch.randn(size, width) * 0.1 / width**0.5)
        nn.init.zeros_(self.gates.weight)
        with torch.no_grad():
            self.gates.bias.copy_(torch.tensor([_MOMENTUM, _STEP, _FORGET]))
        self.enabled = True
        self._states: dict[str, State] = {}
        self._aside: dict[str, State] = {}
        self._turns: Turns | None = None
        self._mask: Tensor | None = None
        self._lengths: Tensor | None = None

    def attach(self, module: nn.Module) -> RemovableHandle:
        """Add this layer's residual to what ``module`` returns from now on.

        Args:
            module: Returns hidden states [B, T, D], or a tuple that begins with them. A host that
                bypasses its modules' ``__call__`` does not run hooks.

        Returns:
            Its ``remove()`` detaches the layer.
        """

        def hook(_: nn.Module, __: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (self._heard(output[0]), *output[1:])
            return self._heard(output)

        return module.register_forward_hook(hook)

    @contextmanager
    def listen(
        self,
        turns: Turns | None = None,
        *,
        mask: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> Iterator[None]:
        """Say what the host's calls inside the block are about.

        Args:
            turns: Dialogues of the rows; by default row i is the next turn of dialogue i.
            mask: Audio positions, bool [B, T]; everything else is neither read nor written.
            lengths: [B], instead of ``mask``: the first positions of each row. All by default.
        """
        before = self._turns, self._mask, self._lengths
        self._turns, self._mask, self._lengths = turns, mask, lengths
        try:
            yield
        finally:
            self._turns, self._mask, self._lengths = before

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the host alone inside the block, e.g. while it generates text."""
        before, self.enabled = self.enabled, False
        try:
            yield
        finally:
            self.enabled = before

    def _heard(self, hidden: Tensor) -> Tensor:
        if not self.enabled:
            return hidden
        mask = self._mask
        if mask is None and self._lengths is not None:
            mask = length_mask(self._lengths, hidden.shape[1])
        return self(hidden, mask, self._turns)

    def forward(
        self, hidden: Tensor, mask: Tensor | None = None, turns: Turns | None = None
    ) -> Tensor:
        """Read, add and write.

        Args:
            hidden: [B, T, D], a turn per row.
            mask: Audio positions, bool [B, T]; all by default.
            turns: See `listen`.

        Returns:
            [B, T, D] in the type of ``hidden``; unchanged outside the mask, and everywhere while
            the gate is 0.
        """
        if turns is None:
            turns = Turns(tuple(str(row) for row in range(len(hidden))), carry=True)
        if mask is None:
            mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        if len(turns.dialogs) != len(hidden) or mask.shape != hidden.shape[:2]:
            raise ValueError(
                f"hidden states {tuple(hidden.shape)} do not go with a mask {tuple(mask.shape)} "
                f"and {len(turns.dialogs)} turns"
            )
        with torch.autocast(hidden.device.type, enabled=False):
            # Only audio positions, in a row: where they stand in a text must not matter.
            places = _true_places(mask)
            frames = hidden.flatten(0, 1)
            frames = (frames if places is None else frames[places]).to(self.first.dtype)
            answers = self._converse(frames, mask, turns)
            if not torch.is_grad_enabled() and float(self.gate) == 0.0:
                return hidden
            changed = frames + torch.tanh(self.gate) * self.w_out(answers)
            changed = changed.to(hidden.dtype)
            if places is not None:
                changed = hidden.flatten(0, 1).index_copy(0, places, changed)
        return changed.view_as(hidden)

    def _converse(self, frames: Tensor, mask: Tensor, turns: Turns) -> Tensor:
        """Let every dialogue's turns read and write in their order.

        Args:
            frames: All audio positions, [V, D].
            mask: Where they are, [B, T].
            turns: Of the rows.

        Returns:
            What they read, [V, size].
        """
        lengths = mask.sum(1)
        sizes = lengths.tolist()
        valid = length_mask(lengths, max(sizes, default=0))
        inside = _true_places(valid)

        def padded(values: Tensor) -> Tensor:
            if inside is not None:
                empty = values.new_zeros(valid.numel(), values.shape[-1])
                values = empty.index_copy(0, inside, values)
            return values.unflatten(0, valid.shape)

        x = self.w_in(self.norm(frames))
        parts = (self.queries, self.keys, self.values)
        heard = functional.silu(functional.linear(x, torch.cat([part.weight for part in parts])))
        heard = heard.unflatten(-1, (3, -1))
        unit = functional.normalize(heard[:, :2], dim=-1)
        queries, keys = padded(unit.flatten(1)).chunk(2, -1)
        values = padded(heard[:, 2])
        weights = None
        if turns.learn:
            eta, theta, alpha = padded(self.gates(x).sigmoid()).unbind(-1)
            # Momentum repeats a step 1 / (1 - eta) times: without this factor, a training that
            # learns to remember its surprises for longer makes the memory diverge.
            gates = Gates(eta, theta * (1 - eta) * self.max_step / self.chunk, alpha)
            weights = titans.plan(gates, valid, self.chunk)
        state, ended, answers = self._begin(turns), [], []
        for number, step in enumerate(turns.steps):
            longest = max(sizes[row] for row in step)
            # With a turn of each dialogue only, the rows are in the order of the dialogues.
            rows = step if len(turns.steps) > 1 else slice(None)
            if len(step) < len(state.first):
                ended.append(state.pick(slice(len(step), None)))
                state = state.pick(slice(len(step)))
            if number and number % self.truncate == 0:
                state = state.detach()
            source = state if turns.sources is None else self._sources(turns, step)
            answer = titans.recall(source, queries[rows, :longest])
            answers.append(functional.pad(answer, (0, 0, 0, valid.shape[1] - longest)))
            if turns.learn:
                now = weights.rows(rows, longest)
                heard = keys[rows, :longest], values[rows, :longest]
                state = titans.write(state, *heard, now, bounded=self.bounded)
        if turns.carry:
            self._keep(turns, titans.join([state, *ended[::-1]]) if ended else state)
        if len(answers) > 1:
            order = torch.tensor(list(chain(*turns.steps)), device=x.device).argsort()
            answers = [torch.cat(answers)[order]]
        found = answers[0].flatten(0, 1) if answers else x
        return found if inside is None else found[inside]

    def _begin(self, turns: Turns) -> State:
        """The memories of `Turns.names` before the batch."""
        if not turns.carry or not any(name in self._states for name in turns.names):
            return self._empty(len(turns.names))
        return self._stack([self._states.get(name) for name in turns.names])

    def _empty(self, count: int) -> State:
        return titans.new_state(self.first, self.second, count)

    def _stack(self, found: list[State | None]) -> State:
        empty, device = self._empty(1), self.first.device
        return titans.join([empty if one is None else one.to(device) for one in found])

    def _keep(self, turns: Turns, state: State) -> None:
        state = state.detach()
        for index, name in enumerate(turns.names):
            # A copy: a view would keep the memories of the whole batch alive.
            one = state.pick(slice(index, index + 1))
            self._states[name] = State(*(part.clone() for part in one))

    def _sources(self, turns: Turns, step: list[int]) -> State:
        if not turns.carry or len(turns.steps) > 1:
            raise ValueError("reading other dialogues needs carry, and one row per dialogue")
        return self._stack([self._aside.get(turns.sources[row]) for row in step])

    def keep_aside(self) -> None:
        """Remember the memories of this moment for `Turns.sources`."""
        self._aside = dict(self._states)

    def reset(self, dialog: str | None = None) -> None:
        """Forget one dialogue, or all of them."""
        if dialog is None:
            self._states.clear()
            self._aside.clear()
        else:
            self._states.pop(dialog, None)

    def fingerprint(self) -> str:
        """SHA-256 of the layer's weights: memories make sense to these only."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode() + tensor.detach().cpu().float().numpy().tobytes())
        return digest.hexdigest()

    def memory_state(self) -> dict[str, Tensor]:
        """What is remembered of all dialogues, ``<part>/<dialogue>`` to [..] on the CPU."""
        return {
            f"{part}/{dialog}": tensor[0].cpu()
            for dialog, state in self._states.items()
            for part, tensor in state._asdict().items()
        }

    def load_memory_state(self, tensors: Mapping[str, Tensor], where: str = "memory") -> None:
        """Replace everything that is remembered by what `memory_state` returned.

        Raises:
            UserError: Parts are missing, or belong to memories of another size.
        """
        shapes = {name: part.shape[1:] for name, part in self._empty(1)._asdict().items()}
        dialogs = dict.fromkeys(name.partition("/")[2] for name in tensors)
        states = {}
        for dialog in dialogs:
            parts = {name: tensors.get(f"{name}/{dialog}") for name in shapes}
            for name, part in parts.items():
                if part is None or part.shape != shapes[name]:
                    found = "nothing" if part is None else f"shape {tuple(part.shape)}"
                    raise UserError(
                        f"{where}: dialogue {dialog!r} has {found} for {name}, expected shape "
                        f"{tuple(shapes[name])}: it was saved by another memory"
                    )
            states[dialog] = State(**{k: v.to(self.first)[None] for k, v in parts.items()})
        self._states, self._aside = states, {}


def _true_places(mask: Tensor) -> Tensor | None:
    """Where a mask of any shape is true, as places in it laid flat; None if it is everywhere."""
    return None if bool(mask.all()) else mask.flatten().nonzero()[:, 0]
