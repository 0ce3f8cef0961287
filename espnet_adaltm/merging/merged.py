"""An encoder whose weights are `W_base + sum_k lambda_k tau_k`, exact in the forward and backward.

    base = WavLMModel.from_pretrained(...)                     # or SpeechEncoder, or any nn.Module
    model = MergedEncoder(base, {"asr": tau, "ser": other}, coefficients_for(base, ["asr", "ser"]))
    model(speech, lengths)                                     # whatever the base is called with

The method is AdaLTM's (arXiv 2603.25041), how it is computed is ours. A weight is merged when a
layer reads it and dropped after use; the backward pass merges it again instead of keeping it, and
its gradient is turned into `dL/dlambda[k] = <dL/dW, tau[k]>` and freed as soon as it is complete.
So nothing merged outlives a call: there is no copy that could go stale.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from espnet_adaltm.backbone.blocks import BlockMap, common_name
from espnet_adaltm.backbone.parametrized import make_plain
from espnet_adaltm.errors import UserError
from espnet_adaltm.merging.buffers import Buffers
from espnet_adaltm.merging.coefficients import Coefficients
from espnet_adaltm.merging.fit import (
    check_exchangeable,
    check_groups,
    check_map,
    check_tensors,
    chosen_vectors,
    refuse_checkpointing,
    untied,
)
from espnet_adaltm.merging.groups import map_groups
from espnet_adaltm.merging.pieces import Root, build_pieces
from espnet_adaltm.merging.substitute import MergeSession, substituted
from espnet_adaltm.merging.task_vector import TaskVector
from espnet_adaltm.merging.weights import NORM_SPELLINGS, POS_WEIGHT, factored_weight


class MergedEncoder(nn.Module):
    """Base encoder and task vectors, frozen, under learned or fixed coefficients.

    Called like the encoder it is made of. Only the coefficients are parameters of this module and
    only they are in its ``state_dict`` (kilobytes): the base and the vectors follow ``.to()`` but
    are invisible to optimisers, checkpoints and data-parallel wrappers.

    Under fixed coefficients the encoder runs without gradients. Weights are merged in every call,
    which costs a few passes over them; where many short inputs are encoded with the same
    coefficients, give the result of `bake` to a plain encoder.

    Args:
        encoder: The base; taken over: its parameters stop requiring gradients, and weight-normed
            layers get their effective weight (merging its two factors is another merge). It must
            not checkpoint its layers: Hugging Face's flag is refused, other ways are not seen.
        vectors: Task to vector; at least the tasks of ``coefficients``. A tied weight may have its
            differences under each of its names; those of buffers are left out.
        coefficients: Their groups must be this encoder's (`coefficients_for` makes such).
        blocks: Tensors to merge and their place; by default those of a WavLM, HuBERT or
            wav2vec 2.0 encoder, named without the prefix of a model with a head. With a map of
            yours, names are those of ``encoder.named_parameters()``.
        encoder_dropout: Let the encoder's own dropout run in training; off by default, as the
            encoder is frozen.
        keep_merged: Keep merged weights from the forward to the backward pass: a little faster, for
            as much memory as the base takes.

    Attributes:
        unmerged: Parameters that stay the base's because they are in no block, and buffers that do
            though a vector has differences of them.

    Raises:
        UserError: A vector that is missing, of another base, not finite, or does not fit the
            encoder; an encoder with recurrent layers, whose weights cannot be exchanged.
    """

    def __init__(
        self,
        encoder: nn.Module,
        vectors: Mapping[str, TaskVector],
        coefficients: Coefficients,
        *,
        blocks: BlockMap | None = None,
        encoder_dropout: bool = False,
        keep_merged: bool = False,
    ) -> None:
        super().__init__()
        self.coefficients = coefficients
        self.encoder_dropout = encoder_dropout
        self.keep_merged = keep_merged
        _use_effective_weights(encoder)
        chosen = chosen_vectors(vectors, coefficients.tasks)
        # Past nn.Module's bookkeeping: not parameters of this module.
        object.__setattr__(self, "_encoder", encoder.requires_grad_(False))
        self._own_names = blocks is not None
        blocks = _blocks(encoder) if blocks is None else blocks
        check_groups(blocks, coefficients)
        parameters, first = self._parameters_by_name(), self._first_names()
        buffers = {self._name(path) for path, _ in encoder.named_buffers()}
        tensors = {task: untied(task, vector, first) for task, vector in chosen.items()}
        check_map(blocks, first, buffers)
        check_tensors(parameters, buffers, blocks, tensors)
        left_out = sorted(buffers & {name for found in tensors.values() for name in found})
        self.unmerged = (*(name for name in parameters if name not in blocks), *left_out)
        self._pieces = build_pieces(
            blocks,
            tensors,
            coefficients.groups,
            coefficients.granularity,
            next(iter(parameters.values())).device,
        )
        self._piece_of = {name: piece for piece in self._pieces for name in piece.names}
        check_exchangeable(encoder, {id(parameters[name]) for name in self._piece_of})
        self._memory = Buffers()
        self._parts_left = 0
        self._held_under: Tensor | None = None
        self._calling = False
        self.train(self.training)

    @property
    def encoder(self) -> nn.Module:
        """The base encoder."""
        return self._encoder

    @property
    def moved(self) -> tuple[str, ...]:
        """Parameters that a task moves; without one the coefficients change nothing."""
        return tuple(self._piece_of)

    @property
    def num_layers(self) -> int:
        """Number of transformer layers, L."""
        return self._encoder.num_layers

    @property
    def hidden_size(self) -> int:
        """Features per frame, D."""
        return self._encoder.hidden_size

    def frame_lengths(self, lengths: Tensor) -> Tensor:
        """Frames that the encoder makes of ``lengths`` samples, shape [B]."""
        return self._encoder.frame_lengths(lengths)

    def train(self, mode: bool = True) -> "MergedEncoder":
        """Switch the mode; the encoder follows only with ``encoder_dropout``."""
        super().train(mode)
        self._encoder.train(mode and self.encoder_dropout)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "MergedEncoder":
        super()._apply(fn, recurse)
        self._encoder._apply(fn, recurse)
        for piece in self._pieces:
            piece.vectors = fn(piece.vectors)
            piece.held = None if piece.held is None else fn(piece.held)
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the encoder with the merged weights; see `SpeechEncoder.forward`.

        Given stored CNN features [B, T, C], a `SpeechEncoder` does not read the CNN's weights, and
        so they are not merged.

        Raises:
            UserError: Gradient checkpointing is on inside the encoder: it would compute the
                gradient with the base's weights.
        """
        values = self.coefficients()
        if not (torch.is_grad_enabled() and self.coefficients.raw.requires_grad):
            with torch.no_grad():
                return self._call(self._session(values), args, kwargs)
        refuse_checkpointing(self._encoder)
        hold = self._parts_left > 1
        self._parts_left = max(0, self._parts_left - 1)
        self._check_held(values, hold)
        session = self._session(values if hold else Root.apply(values, self._pieces), hold)
        if self.keep_merged:
            return self._call(session, args, kwargs)
        with saved_tensors_hooks(session.pack, session.unpack):
            return self._call(session, args, kwargs)

    def _session(self, values: Tensor, hold: bool = False) -> MergeSession:
        base = self._parameters_by_name()
        return MergeSession(self._piece_of, base, values, self._memory, hold=hold)

    def _call(self, session: MergeSession, args: tuple, kwargs: dict[str, Any]) -> Any:
        names = {id(session.base[name]): name for name in self._piece_of}
        self._calling = True
        try:
            with substituted(self._encoder, names, session.tensor):
                return self._encoder(*args, **kwargs)
        finally:
            self._calling = False
            session.close()

    @contextmanager
    def accumulating(self, parts: int) -> Iterator[None]:
        """Pay the projection onto the task vectors once for several micro-batches.

            with model.accumulating(4):
                for part in batches:                      # four forward and backward passes
                    (loss(model(part)) / 4).backward()
            optimizer.step()

        Until the last of them the gradient of the weights is added up (as much memory as the
        merged weights take) and ``coefficients.raw.grad`` is zero; the last one's backward pass,
        which data-parallel training synchronises as any other, brings the sum. If fewer came, what
        is held is projected at the end; several processes drop it. After an error nothing is held.

        Args:
            parts: Forward passes with gradients per optimiser step.

        Raises:
            RuntimeError: The coefficients changed within, or contexts are nested.
        """
        if self._parts_left:
            raise RuntimeError("accumulating() is already active")
        self._parts_left = parts
        try:
            yield
            self._project_held()
        finally:
            self._parts_left = 0
            self._held_under = None
            for piece in self._pieces:
                piece.release()

    def _project_held(self) -> None:
        if not any(piece.held is not None for piece in self._pieces):
            return
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return
        with torch.enable_grad():
            values = Root.apply(self.coefficients(), self._pieces)
            values.backward(torch.zeros_like(values))

    def _check_held(self, values: Tensor, hold: bool) -> None:
        if self._held_under is not None and not torch.equal(values, self._held_under):
            raise RuntimeError(
                "coefficients changed inside accumulating(): step the optimiser after it"
            )
        if hold:
            self._held_under = values.detach().clone()

    def merge(self) -> dict[str, Tensor]:
        """Return the merged weights of the tensors that a task moves, by name.

        Ordinary tensors of their own, even under ``torch.inference_mode``.

        Raises:
            UserError: Coefficients that are not finite.
            RuntimeError: Called from within a forward pass, where the weights are merged already.
        """
        if self._calling:
            raise RuntimeError("merge() and bake() cannot be called from within a forward pass")
        if not self.coefficients().isfinite().all():
            raise UserError("the coefficients are not finite: their training has diverged")
        with torch.inference_mode(False), torch.no_grad():
            base = self._parameters_by_name()
            session = MergeSession(self._piece_of, base, self.coefficients(), Buffers())
            return {name: session.tensor(name) for name in self._piece_of}

    def bake(self, *, factored: bool = False) -> dict[str, Tensor]:
        """Return all weights after merging, for ``load_encoder_state`` or ``load_state_dict``.

        Copies, on the encoder's device, under the names that the encoder has now (Hugging Face's in
        a `SpeechEncoder`): the positional convolution is one weight.

            plain = WavLMModel(base.config)
            plain.load_state_dict(merged.bake(factored=True))
            plain.save_pretrained("merged")

        Args:
            factored: Give that weight as the two factors of its weight norm, as models of
                `transformers` hold it when they are made or read. Their product is the same, bit
                for bit.

        Raises:
            UserError: As `merge`.
        """
        state = getattr(self._encoder, "encoder_state", self._encoder.state_dict)()
        merged = self.merge()
        first = self._first_names()
        names = {name: first.get(self._name(name)) for name in state}
        baked = {name: merged.get(names[name], value).clone() for name, value in state.items()}
        return _factored(baked) if factored else baked

    def _name(self, path: str) -> str:
        return path if self._own_names else common_name(path)

    def _parameters_by_name(self) -> dict[str, nn.Parameter]:
        """The base's parameters as they are now: any of them may have been exchanged."""
        return {self._name(path): value for path, value in self._encoder.named_parameters()}

    def _first_names(self) -> dict[str, str]:
        """Every name of a parameter, to its first: tied weights have several."""
        first = {id(value): name for name, value in self._parameters_by_name().items()}
        every = self._encoder.named_parameters(remove_duplicate=False)
        return {self._name(path): first[id(value)] for path, value in every}


def coefficients_for(
    encoder: nn.Module,
    tasks: Iterable[str],
    granularity: str = "block",
    *,
    blocks: BlockMap | None = None,
    **options: Any,
) -> Coefficients:
    """Make coefficients whose groups are those of ``encoder``.

    Args:
        encoder: The base.
        tasks: Names of the task vectors.
        granularity: ``global``, ``block``, ``module`` or ``tensor``.
        blocks: As for `MergedEncoder`. Without a map, weight-normed layers of ``encoder`` get their
            effective weight, as `MergedEncoder` would give them.
        options: ``init``, ``constraint``, ``trainable`` of `Coefficients`.
    """
    if blocks is None:
        _use_effective_weights(encoder)
        blocks = _blocks(encoder)
    return Coefficients(list(tasks), map_groups(blocks, granularity), granularity, **options)


def _blocks(encoder: nn.Module) -> BlockMap:
    """The encoder's map, by names without a model's prefix."""
    found = BlockMap.of_module(encoder)
    return BlockMap({common_name(name): place for name, place in found.items()})


def _use_effective_weights(encoder: nn.Module) -> None:
    for part in list(encoder.modules()):
        make_plain(part)


def _factored(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if common_name(name) != POS_WEIGHT:
            found[name] = value
            continue
        prefix = name.removesuffix(POS_WEIGHT)
        for key, factor in zip(NORM_SPELLINGS[0], factored_weight(value.cpu())):
            found[f"{prefix}{key}"] = factor.to(value.device, copy=True)
    return found
