"""Merging by a recipe: state dictionaries in memory, or checkpoints file to file.

Both give the same bits, but for the weight-normed positional convolution in bfloat16 and float16: a
file has its two factors, which are rounded each, so that a tenth of the products are a unit in the
last place off. In memory tensors are merged one after another, which is the plain statement of what
happens. File to file nothing is held: a weighted sum goes through in pieces, the other methods
tensor by tensor, on all processors.
"""

import threading
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor

from espnet_adaltm.files import Pathlike
from espnet_adaltm.merging.differences import check_base, check_finite, is_finite
from espnet_adaltm.merging.plan import MergePlan
from espnet_adaltm.merging.recipe import Recipe
from espnet_adaltm.merging.stream import Piece, Scratch, cut, read_piece, run_threads
from espnet_adaltm.merging.task_vector import TaskVector
from espnet_adaltm.merging.tensor_file import Spec, TensorWriter
from espnet_adaltm.merging.vector_metadata import file_metadata
from espnet_adaltm.merging.weights import NORM_SPELLINGS, POS_WEIGHT, factored_weight


@torch.no_grad()
def merge_state(
    base: Mapping[str, Tensor],
    vectors: Mapping[str, TaskVector],
    recipe: Recipe,
    *,
    norm_first: bool = True,
) -> dict[str, Tensor]:
    """Merge in memory: ``W = W_base + scale * method(weights, tau_1 .. tau_K)``, tensor by tensor.

    Args:
        base: State dictionary; heads are left out, and a weight-normed positional convolution is
            merged as its effective weight (neither with the recipe's ``any_names``).
        vectors: Task to vector, one for each task of the recipe.
        recipe: Method, weights and groups.
        norm_first: True for pre-norm encoders.

    Returns:
        The base's tensors by their common names. What the recipe does not move has the base's
        values. Floats have the recipe's dtype, rounded once from the float32 result.

    Raises:
        UserError: As `MergePlan`, or values that are not finite.
    """
    with MergePlan(base, recipe, vectors=vectors, norm_first=norm_first) as plan:
        plan.prepare()
        merged = {}
        for name, tensor in plan.base.items():
            value = plan.merged(name, tensor) if name in plan.moved else tensor.detach()
            merged[name] = _rounded(plan, name, value) if value.is_floating_point() else value
    return merged


def _rounded(plan: MergePlan, name: str, merged: Tensor) -> Tensor:
    """What is made of a base's tensor, a piece of it or a factor, in the dtype of the output.

    Raises:
        UserError: It is not finite; the message says whether that comes from the base, the weights
            or the dtype.
    """
    out = merged.to(plan.dtype)
    if not is_finite(out):
        check_base(name, plan.base)
        advice = "they are too large for float32: give smaller weights"
        if is_finite(merged):
            advice = f"they are too large for {plan.recipe.dtype}: choose dtype float32"
        check_finite(name, out, "the merged model", advice)
    return out


@dataclass
class Sizes:
    """Sums of squares by tensor: of the base, and of every task's differences.

    Attributes:
        base: Name to sum.
        tasks: The same for each task, as far as its differences were read on the way.
    """

    base: dict[str, float] = field(default_factory=dict)
    tasks: dict[str, dict[str, float]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, task: str | None, name: str, flat: Tensor) -> None:
        """Add a stretch of a tensor; None stands for the base."""
        value = float(torch.dot(flat, flat))
        with self._lock:
            sums = self.base if task is None else self.tasks.setdefault(task, {})
            sums[name] = sums.get(name, 0.0) + value


@torch.no_grad()
def write_merged(
    plan: MergePlan,
    path: Pathlike,
    *,
    vectors: Mapping[str, Pathlike] | None = None,
    hashes: Mapping[str, str] | None = None,
    threads: int | None = None,
    sync: bool = False,
) -> Sizes:
    """Merge file to file.

    Memory: a few megabytes for each thread if the merge is a weighted sum; otherwise what the
    method needs for one tensor on each thread; with preprocessing the vectors, too.

    Args:
        plan: What to do.
        path: Safetensors file to write, not atomically. The positional convolution is
            weight-normed, as `transformers` stores it; one that is not moved has the base's own
            factors.
        vectors: Task to a file that takes its task vector on the way (float32), as it was before
            any preprocessing.
        hashes: `MergePlan.hashes`, for those files.
        threads: How many; all processors by default.
        sync: Wait at the end until the disk has everything.

    Returns:
        How large things are, for a report.

    Raises:
        UserError: Values that are not finite.
        OSError: Where writing fails.
    """
    plan.prepare()
    sizes = Sizes()
    with ExitStack() as stack:
        writer = stack.enter_context(
            TensorWriter(path, output_specs(plan), {"format": "pt"}, sync=sync)
        )
        keepers = {
            task: stack.enter_context(_keeper(plan, task, file, hashes or {}, sync))
            for task, file in (vectors or {}).items()
        }
        kernel = _Kernel(plan, writer, keepers, sizes)
        run_threads(kernel.pieces(), kernel, threads=threads)
    return sizes


def _keeper(
    plan: MergePlan, task: str, path: Pathlike, hashes: Mapping[str, str], sync: bool
) -> TensorWriter:
    specs = {name: Spec(torch.float32, plan.base.specs[name].shape) for name in plan.floats}
    of = {"base_sha256": hashes.get("base", ""), "expert_sha256": hashes.get(task, "")}
    described = {**of, "norm_first": plan.norm_first}
    return TensorWriter(path, specs, file_metadata(described, specs), sync=sync)


@dataclass(frozen=True)
class _Kernel:
    """What is done with one piece."""

    plan: MergePlan
    writer: TensorWriter
    keepers: Mapping[str, TensorWriter]
    sizes: Sizes

    def pieces(self) -> list[Piece]:
        """What cannot be cut comes first, the longest before the others: threads end together."""
        plan = self.plan
        whole = {name for name in plan.moved if not plan.elementwise}
        whole |= plan.base.specs.keys() - set(plan.floats)
        if not plan.recipe.any_names:
            whole |= {POS_WEIGHT} & plan.base.specs.keys()
        uncut = [Piece(name, 0, plan.base.specs[name].size) for name in sorted(whole)]
        rest = [name for name in plan.base.specs if name not in whole]
        return sorted(uncut, key=lambda piece: -piece.size) + cut(plan.base, rest)

    def __call__(self, piece: Piece, scratch: Scratch) -> None:
        name = piece.name
        if not self.plan.base.specs[name].dtype.is_floating_point:
            self.writer.write(name, self.plan.base.load(name))
            return
        before = read_piece(self.plan.base, piece, scratch, "base")
        self.sizes.add(None, name, before)
        merged = self._merge(piece, before, scratch)
        shape = self.plan.base.specs[name].shape
        if name == POS_WEIGHT and not self.plan.recipe.any_names:
            for key, tensor in zip(NORM_SPELLINGS[0], self._factors(name, merged.view(shape))):
                self.writer.write(key, _rounded(self.plan, name, tensor))
        else:
            self.writer.write(name, _rounded(self.plan, name, merged), piece.start)

    def _merge(self, piece: Piece, before: Tensor, scratch: Scratch) -> Tensor:
        plan, name = self.plan, piece.name
        moved = name in plan.moved
        in_turn = moved and plan.elementwise
        weights = plan.weights(name) if in_turn else [0.0] * len(plan.sources)
        total = None
        given = zip(plan.recipe.tasks, plan.prepared, plan.sources, weights, strict=True)
        for task, source, original, weight in given:
            if not weight and task not in self.keepers:
                continue
            delta = source.piece(piece, before, scratch, "total" if total is None else "delta")
            self.sizes.add(task, name, delta)
            if task in self.keepers:
                same = original is source
                kept = delta if same else original.piece(piece, before, scratch, "kept")
                self.keepers[task].write(name, kept, piece.start)
            if weight:
                delta.mul_(weight)
                # two roundings, as in memory: a fused multiply-add would have one
                total = delta if total is None else total.add_(delta)
        if moved and not in_turn:
            return plan.merged(name, before.view(plan.base.specs[name].shape)).reshape(-1)
        if total is None:
            return before
        if (scale := plan.scale(name)) != 1:
            total.mul_(scale)
        return total.add_(before)

    def _factors(self, name: str, merged: Tensor) -> tuple[Tensor, ...]:
        keys = self.plan.base.stored[name]
        if name in self.plan.moved or len(keys) == 1:
            return factored_weight(merged)
        return tuple(self.plan.base.load_key(key) for key in keys)


def output_specs(plan: MergePlan) -> dict[str, Spec]:
    """What the merged file holds, by the names that `transformers` reads."""
    specs = {}
    for name, spec in plan.base.specs.items():
        dtype = plan.dtype if spec.dtype.is_floating_point else spec.dtype
        if name == POS_WEIGHT and not plan.recipe.any_names:
            g, v = NORM_SPELLINGS[0]
            specs[g] = Spec(dtype, (1, 1, spec.shape[-1]))
            specs[v] = Spec(dtype, spec.shape)
        else:
            specs[name] = Spec(dtype, spec.shape)
    return specs
