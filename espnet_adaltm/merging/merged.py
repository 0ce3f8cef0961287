"""An encoder whose weights are `W_base + sum_k lambda_k tau_k`, exact in the forward and backward.

Merging and projecting run once per block on flat buffers: one matrix-vector product makes the
block's update from its coefficients, one turns the gradient of its weights into
`dL/dlambda[k] = <dL/dW, tau[k]>`. No graph is kept over the weights, and the gradient of a block's
weights is freed as soon as it is projected.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from espnet_adaltm.backbone.blocks import block_of
from espnet_adaltm.errors import UserError
from espnet_adaltm.merging.coefficients import Coefficients
from espnet_adaltm.merging.groups import group_names, group_of
from espnet_adaltm.merging.task_vector import TaskVector, check_compatible

if TYPE_CHECKING:
    from espnet_adaltm.backbone.encoder import EncoderOutput, SpeechEncoder

_CNN = "feature_extractor."


@dataclass
class _Segment:
    """A stretch of a chunk's flat buffer that shares one coefficient per task."""

    column: int
    names: list[str]
    start: int
    stop: int


@dataclass
class _Chunk:
    """Tensors that are merged together: one block, its CNN apart."""

    segments: list[_Segment]
    vectors: Tensor  # [K, n], rows are the tasks' flattened differences

    @property
    def names(self) -> list[str]:
        return [name for segment in self.segments for name in segment.names]

    @property
    def columns(self) -> list[int]:
        return [segment.column for segment in self.segments]


class _MergeChunk(torch.autograd.Function):
    """Coefficients [K, S] of a chunk's S segments to its merged tensors."""

    @staticmethod
    def forward(
        ctx: Any, coefficients: Tensor, chunk: _Chunk, base: list[Tensor]
    ) -> tuple[Tensor, ...]:
        ctx.chunk = chunk
        ctx.dtype = coefficients.dtype
        return tuple(_merge(coefficients, chunk, base))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        with torch.autocast(grads[0].device.type, enabled=False):
            return _project(ctx.chunk, grads).to(ctx.dtype), None, None


def _merge(coefficients: Tensor, chunk: _Chunk, base: list[Tensor]) -> list[Tensor]:
    dtype = base[0].dtype
    # Autocast would run these products in half precision, where a step of lambda is lost.
    with torch.autocast(coefficients.device.type, enabled=False):
        update = torch.empty(chunk.vectors.shape[1], dtype=dtype, device=base[0].device)
        for place, segment in enumerate(chunk.segments):
            span = slice(segment.start, segment.stop)
            torch.mv(
                chunk.vectors[:, span].to(dtype).T,
                coefficients[:, place].to(dtype),
                out=update[span],
            )
        parts = update.split([tensor.numel() for tensor in base])
        merged = [part.view(tensor.shape) for part, tensor in zip(parts, base, strict=True)]
        torch._foreach_add_(merged, base)
    return merged


def _project(chunk: _Chunk, grads: Iterable[Tensor]) -> Tensor:
    """Inner products of the gradients with every task's differences: [K, S]."""
    rest = iter(grads)
    columns = []
    for segment in chunk.segments:
        flat = torch.cat([next(rest).reshape(-1) for _ in segment.names])
        span = slice(segment.start, segment.stop)
        columns.append(torch.mv(chunk.vectors[:, span].to(flat.dtype), flat))
    return torch.stack(columns, 1)


class MergedEncoder(nn.Module):
    """Base encoder and task vectors, frozen, under learned or fixed coefficients.

    Called like the encoder it is made of. Only the coefficients are parameters of this module and
    only they are in its ``state_dict`` (kilobytes): the base and the vectors follow ``.to()`` but
    are invisible to optimisers, checkpoints and data-parallel wrappers.

    Fixed coefficients, or evaluation without gradients: the merged weights are made once and kept
    for as long as coefficients, base and device are the same, which is compared on every call.
    Under fixed coefficients the encoder runs without gradients.

    Gradient checkpointing inside the encoder is not supported: it would recompute with the base's
    weights.

    Args:
        encoder: The base; taken over: its parameters stop requiring gradients.
        vectors: Task to vector; at least the tasks of ``coefficients``.
        coefficients: Their groups must be this encoder's (`coefficients_for` makes such).
        encoder_dropout: Let the encoder's own dropout run in training; off by default, as the
            encoder is frozen.

    Raises:
        UserError: A vector that is missing, of another base, or does not fit the encoder.
    """

    def __init__(
        self,
        encoder: "SpeechEncoder",
        vectors: Mapping[str, TaskVector],
        coefficients: Coefficients,
        *,
        encoder_dropout: bool = False,
    ) -> None:
        super().__init__()
        self.coefficients = coefficients
        self.encoder_dropout = encoder_dropout
        chosen = _choose(vectors, coefficients.tasks)
        _check_fit(encoder, chosen)
        # Past nn.Module's bookkeeping: not parameters of this module.
        object.__setattr__(self, "_encoder", encoder.requires_grad_(False))
        self._paths = _module_paths(encoder)
        self._chunks = _build_chunks(encoder, list(chosen.values()), coefficients)
        self._cache: tuple[Any, dict[str, Tensor]] | None = None
        self.train(self.training)

    @property
    def encoder(self) -> "SpeechEncoder":
        """The base encoder."""
        return self._encoder

    @property
    def num_layers(self) -> int:
        """Number of transformer layers, L."""
        return self._encoder.num_layers

    @property
    def hidden_size(self) -> int:
        """Features per frame, D."""
        return self._encoder.hidden_size

    @property
    def num_base_parameters(self) -> int:
        """Scalars of the frozen base, for reports of the trainable share."""
        return sum(parameter.numel() for parameter in self._encoder.parameters())

    def frame_lengths(self, lengths: Tensor) -> Tensor:
        """Frames that the encoder makes of ``lengths`` samples, shape [B]."""
        return self._encoder.frame_lengths(lengths)

    def ddp_ignored_names(self) -> list[str]:
        """Names that a data-parallel wrapper must not synchronise: none, nothing large is seen."""
        return []

    def train(self, mode: bool = True) -> "MergedEncoder":
        """Switch the mode; the encoder follows only with ``encoder_dropout``."""
        super().train(mode)
        self._encoder.train(mode and self.encoder_dropout)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "MergedEncoder":
        super()._apply(fn, recurse)
        self._encoder._apply(fn, recurse)
        for chunk in self._chunks:
            chunk.vectors = fn(chunk.vectors)
        self._cache = None
        return self

    def forward(
        self, speech: Tensor, lengths: Tensor, *, mask_time: Tensor | None = None
    ) -> "EncoderOutput":
        """Encode with the merged weights; see `SpeechEncoder.forward`.

        Args:
            speech: Waveforms [B, N], or CNN features [B, T, C], for which the CNN is not merged.
            lengths: Valid samples or frames, shape [B].
            mask_time: Frames to mask, boolean [B, T].
        """
        learning = torch.is_grad_enabled() and self.coefficients.raw.requires_grad
        options = {} if mask_time is None else {"mask_time": mask_time}
        if learning:
            self._cache = None
            state = self._merged(self.coefficients(), with_cnn=speech.ndim == 2)
            return functional_call(self._encoder, self._paths_of(state), (speech, lengths), options)
        with torch.no_grad():
            state = self._cached_state()
            if not state:
                return self._encoder(speech, lengths, **options)
            return functional_call(self._encoder, state, (speech, lengths), options)

    @torch.no_grad()
    def bake(self) -> dict[str, Tensor]:
        """Return the merged weights, by Hugging Face name, for ``load_encoder_state``.

        Copies, on the encoder's device.
        """
        state = {name: tensor.clone() for name, tensor in self._encoder.encoder_state().items()}
        return state | self._fixed_state()

    def _paths_of(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {self._paths[name]: tensor for name, tensor in state.items()}

    def _base(self, chunk: _Chunk) -> list[Tensor]:
        return [self._encoder.get_parameter(self._paths[name]) for name in chunk.names]

    def _merged(self, coefficients: Tensor, *, with_cnn: bool) -> dict[str, Tensor]:
        state: dict[str, Tensor] = {}
        for chunk in self._chunks:
            if not with_cnn and chunk.names[0].startswith(_CNN):
                continue
            chosen = coefficients[:, chunk.columns]
            state.update(
                zip(chunk.names, _MergeChunk.apply(chosen, chunk, self._base(chunk)), strict=True)
            )
        return state

    def _fixed_state(self) -> dict[str, Tensor]:
        """Merge outside autograd; tensors under zero coefficients are left out, so stay the base's.

        Fresh tensors, never inference tensors: they may outlive ``torch.inference_mode``.
        """
        with torch.inference_mode(False), torch.no_grad():
            coefficients = self.coefficients()
            state = self._merged(coefficients, with_cnn=True)
            used = coefficients.ne(0).any(0).tolist()
            kept = {
                name
                for chunk in self._chunks
                for segment in chunk.segments
                if used[segment.column]
                for name in segment.names
            }
            return {name: tensor for name, tensor in state.items() if name in kept}

    def _cached_state(self) -> dict[str, Tensor]:
        # Values, not only version counters: writing through `.data` does not raise a counter.
        key = tuple((p.data_ptr(), p._version) for p in self._encoder.parameters())
        values = self.coefficients().detach()
        if self._cache is not None:
            (old_key, old_values), state = self._cache
            if old_key == key and torch.equal(old_values, values):
                return state
        self._cache = None
        state = self._paths_of(self._fixed_state())
        self._cache = ((key, values.clone()), state)
        return state


def coefficients_for(
    encoder: "SpeechEncoder", tasks: Iterable[str], granularity: str = "block", **options: Any
) -> Coefficients:
    """Make coefficients whose groups are those of ``encoder``.

    Args:
        encoder: The base.
        tasks: Names of the task vectors.
        granularity: ``global``, ``block``, ``module`` or ``tensor``.
        options: ``init``, ``constraint``, ``trainable`` of `Coefficients`.
    """
    groups = _encoder_groups(encoder, granularity)
    return Coefficients(list(tasks), groups, granularity, **options)


def _encoder_groups(encoder: "SpeechEncoder", granularity: str) -> list[str]:
    names = [name for name, _ in encoder.named_encoder_parameters()]
    return group_names(names, encoder.num_layers, granularity, norm_first=encoder.norm_first)


def _choose(vectors: Mapping[str, TaskVector], tasks: Iterable[str]) -> dict[str, TaskVector]:
    missing = [task for task in tasks if task not in vectors]
    if missing:
        raise UserError(
            f"no task vector for {', '.join(missing)}: found {', '.join(vectors) or 'none'}; "
            "run stage task_vectors"
        )
    chosen = {task: vectors[task] for task in tasks}
    for vector in chosen.values():
        check_compatible(next(iter(chosen.values())), vector)
    return chosen


def _check_fit(encoder: "SpeechEncoder", vectors: Mapping[str, TaskVector]) -> None:
    shapes = {name: p.shape for name, p in encoder.named_encoder_parameters()}
    for task, vector in vectors.items():
        different = sorted(shapes.keys() ^ vector.tensors.keys())
        if different:
            raise UserError(
                f"task vector {task}: tensor {different[0]!r} is in only one of vector and "
                "encoder: the vector belongs to another encoder"
            )
        for name, tensor in vector.tensors.items():
            if tensor.shape != shapes[name]:
                raise UserError(
                    f"task vector {task}: tensor {name!r} has shape {tuple(tensor.shape)}, "
                    f"the encoder's has {tuple(shapes[name])}"
                )


def _module_paths(encoder: "SpeechEncoder") -> dict[str, str]:
    """Map Hugging Face names to the names under the encoder module."""
    inside = {id(parameter): path for path, parameter in encoder.named_parameters()}
    return {name: inside[id(p)] for name, p in encoder.named_encoder_parameters()}


def _build_chunks(
    encoder: "SpeechEncoder", vectors: list[TaskVector], coefficients: Coefficients
) -> list[_Chunk]:
    groups = _encoder_groups(encoder, coefficients.granularity)
    if list(coefficients.groups) != groups:
        raise UserError(
            f"the coefficients have {len(coefficients.groups)} groups, this encoder has "
            f"{len(groups)} at granularity {coefficients.granularity}: they are of another encoder"
        )
    column = {group: place for place, group in enumerate(groups)}
    layers, norm_first = encoder.num_layers, encoder.norm_first
    members: dict[tuple[int, bool], dict[int, list[str]]] = {}
    for name, _ in encoder.named_encoder_parameters():
        # What no expert moved (a frozen CNN) needs neither merging nor a gradient.
        if not any(bool(vector.tensors[name].any()) for vector in vectors):
            continue
        key = (block_of(name, layers, norm_first=norm_first), not name.startswith(_CNN))
        group = group_of(name, layers, coefficients.granularity, norm_first=norm_first)
        members.setdefault(key, {}).setdefault(column[group], []).append(name)
    return [_chunk(members[key], vectors) for key in sorted(members)]


def _chunk(members: Mapping[int, list[str]], vectors: list[TaskVector]) -> _Chunk:
    segments, start = [], 0
    for column, names in sorted(members.items()):
        stop = start + sum(vectors[0].tensors[name].numel() for name in names)
        segments.append(_Segment(column, names, start, stop))
        start = stop
    ordered = [name for segment in segments for name in segment.names]
    rows = [torch.cat([vector.tensors[name].flatten() for name in ordered]) for vector in vectors]
    return _Chunk(segments, torch.stack(rows))
