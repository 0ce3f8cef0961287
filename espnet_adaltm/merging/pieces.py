"""Stretches of weights that are merged and projected in one go, each with its own autograd node.

A piece is one large tensor, or all small ones of a block. Merging is one matrix-vector product per
piece, `W = W_base + tau^T lambda`, and so is the gradient of its coefficients,
`dL/dlambda[k] = <dL/dW, tau[k]>`: what automatic differentiation gives for the merge, exactly.
Nothing of a merged piece is kept for the backward pass: it is merged again when its turn comes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from espnet_adaltm.backbone.blocks import BlockMap
from espnet_adaltm.errors import UserError
from espnet_adaltm.merging.buffers import Buffers
from espnet_adaltm.merging.groups import map_group

# From here on a tensor is its own piece: joining gradients of larger ones costs more than a launch.
LARGE = 2**18
# The convolutional front end is not run where its output was stored: keep it out of other pieces.
_CNN = "cnn"


@dataclass
class Segment:
    """A stretch of a piece that shares one coefficient per task: ``column`` of [K, G]."""

    column: int
    start: int
    stop: int


@dataclass(eq=False)
class Piece:
    """Some tensors of one block, flattened one after another to n values.

    Attributes:
        names: Of the tensors, in order.
        segments: Cover the n values.
        vectors: Task vectors, shape [K, n].
        held: Gradient of the weights kept for a later projection, shape [n].
    """

    names: list[str]
    segments: list[Segment]
    vectors: Tensor
    held: Tensor | None = None

    def merge(self, values: Tensor, base: Sequence[Tensor], buffers: Buffers) -> Tensor:
        """Merged weights, flat [n], in the base's dtype; the products are at least float32.

        Args:
            values: Coefficients of all groups, shape [K, G].
            base: Tensors of ``names``.
            buffers: Where the result may lie.
        """
        flat = base[0].reshape(-1) if len(base) == 1 else torch.cat([t.reshape(-1) for t in base])
        dtype = torch.promote_types(flat.dtype, torch.float32)
        merged = buffers.take(flat.numel(), dtype, flat.device)
        for segment in self.segments:
            span = slice(segment.start, segment.stop)
            torch.addmv(
                flat[span].to(dtype),
                self.vectors[:, span].to(dtype).T,
                values[:, segment.column].to(dtype),
                out=merged[span],
            )
        return merged.to(flat.dtype)

    def project(self, gradient: Tensor) -> Tensor:
        """Inner products of a flat gradient [n] with every task's vector: [K, segments]."""
        dtype = torch.promote_types(gradient.dtype, torch.float32)
        columns = []
        for segment in self.segments:
            span = slice(segment.start, segment.stop)
            columns.append(torch.mv(self.vectors[:, span].to(dtype), gradient[span].to(dtype)))
        return torch.stack(columns, 1)

    def hold(self, gradient: Tensor) -> None:
        """Add a flat gradient [n] to what is held."""
        if self.held is None:
            self.held = gradient.clone()
        else:
            self.held += gradient

    def release(self) -> Tensor | None:
        """Hand out what is held, and hold nothing."""
        held, self.held = self.held, None
        return held

    def scatter(self, projected: Tensor, like: Tensor) -> Tensor:
        """Put [K, segments] into the columns of zeros shaped as ``like``, [K, G]."""
        total = torch.zeros_like(like)
        for place, segment in enumerate(self.segments):
            total[:, segment.column] += projected[:, place].to(like.dtype)
        return total


@dataclass(eq=False)
class Merge:
    """One merge of one piece, remembered for its backward pass.

    Attributes:
        piece: What is merged.
        values: Coefficients [K, G] at that time, detached.
        base: The base's tensors.
        hold: Keep the gradient of the weights instead of projecting it.
        buffers: Where merged weights may lie.
    """

    piece: Piece
    values: Tensor
    base: list[Tensor]
    hold: bool
    buffers: Buffers
    again: Tensor | None = None

    def __post_init__(self) -> None:
        self.dtype = torch.float32
        self.state = self._base_state()

    def _base_state(self) -> list[tuple[int, int]]:
        return [(tensor.data_ptr(), tensor._version) for tensor in self.base]

    def flat(self) -> Tensor:
        """Merged weights [n], always in full precision: autocast would lose a step of lambda."""
        with torch.no_grad(), torch.autocast(self.values.device.type, enabled=False):
            flat = self.piece.merge(self.values, self.base, self.buffers)
        self.dtype = flat.dtype
        return flat

    def repeat(self) -> Tensor:
        """The same weights once more, for the backward pass.

        Raises:
            RuntimeError: The base has changed since.
        """
        if self.again is None:
            if self.state != self._base_state():
                raise RuntimeError(
                    "the base encoder was modified between the forward and the backward pass of a "
                    f"merge ({self.piece.names[0]}): run the forward pass again"
                )
            self.again = self.flat()
        return self.again

    def views(self, flat: Tensor) -> tuple[Tensor, ...]:
        """Cut flat weights into tensors of the base's shapes and dtypes."""
        parts = flat.split([tensor.numel() for tensor in self.base])
        return tuple(
            part.view(t.shape).to(t.dtype) for part, t in zip(parts, self.base, strict=True)
        )


class MergePiece(torch.autograd.Function):
    """Coefficients [K, G] to the merged tensors of one piece."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, merge: Merge) -> tuple[Tensor, ...]:
        ctx.merge = merge
        return merge.views(merge.flat())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None]:
        merge: Merge = ctx.merge
        merge.again = None  # the last use of the merged weights is over
        piece = merge.piece
        with torch.autocast(grads[0].device.type, enabled=False):
            parts = [grad.reshape(-1) for grad in grads]
            gradient = parts[0] if len(parts) == 1 else torch.cat(parts)
            if merge.hold:
                piece.hold(gradient)
                return torch.zeros_like(merge.values), None
            held = piece.release()
            if held is not None:
                gradient = held.add_(gradient)
            return piece.scatter(piece.project(gradient), merge.values), None


class Root(torch.autograd.Function):
    """Pass the coefficients on; its backward pass, the last, adds what is still held."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, pieces: list[Piece]) -> Tensor:
        ctx.pieces = pieces
        return values.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        with torch.autocast(grad.device.type, enabled=False):
            for piece in ctx.pieces:
                if (held := piece.release()) is not None:
                    grad = grad + piece.scatter(piece.project(held), grad)
        return grad, None


def build_pieces(
    blocks: BlockMap,
    vectors: Mapping[str, Mapping[str, Tensor]],
    groups: Sequence[str],
    granularity: str,
    device: torch.device,
) -> list[Piece]:
    """Cut the tensors that at least one task moves into pieces; copies the vectors.

    Args:
        blocks: Tensors to merge.
        vectors: Task to its differences by name, all with the names of ``blocks``.
        groups: Columns of the coefficients.
        granularity: What they stand for.
        device: Where the copies go.

    Raises:
        UserError: NaN or infinite values.
    """
    column = {group: place for place, group in enumerate(groups)}
    small: dict[tuple[int, bool], list[str]] = {}
    together: list[list[str]] = []
    for name, (block, module) in blocks.items():
        # What no expert moved (a frozen CNN) needs neither merging nor a gradient.
        if not any(bool(tensors[name].any()) for tensors in vectors.values()):
            continue
        size = next(iter(vectors.values()))[name].numel()
        if size >= LARGE:
            together.append([name])
        else:
            small.setdefault((block, module == _CNN), []).append(name)
    pieces = []
    for names in [*together, *small.values()]:
        columns = {name: column[map_group(blocks, name, granularity)] for name in names}
        pieces.append(_piece(sorted(names, key=columns.__getitem__), columns, vectors, device))
    return pieces


def _piece(
    names: list[str],
    columns: Mapping[str, int],
    vectors: Mapping[str, Mapping[str, Tensor]],
    device: torch.device,
) -> Piece:
    segments: list[Segment] = []
    stop = 0
    for name in names:
        start, stop = stop, stop + next(iter(vectors.values()))[name].numel()
        if segments and segments[-1].column == columns[name]:
            segments[-1].stop = stop
        else:
            segments.append(Segment(columns[name], start, stop))
    for task, tensors in vectors.items():
        for name in names:
            if not bool(tensors[name].isfinite().all()):
                raise UserError(
                    f"task vector {task}: tensor {name!r} has NaN or infinite values: make the "
                    "vector again from an expert whose training did not diverge"
                )
    return Piece(
        names,
        segments,
        torch.stack([_row(tensors, names) for tensors in vectors.values()]).to(device),
    )


def _row(tensors: Mapping[str, Tensor], names: Iterable[str]) -> Tensor:
    return torch.cat([tensors[name].flatten() for name in names])
