"""Merging whole task vectors by a method's name, and the methods themselves.

The methods are functions of tensors (`merging.formulas`), which can be used from here as well. By
name they are checked before anything is read, and run over whole vectors (`merge_vectors`) or over
one tensor after another (`tensor_merge`).
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from espnet_adaltm.config import check_keys, nearest
from espnet_adaltm.errors import UserError
from espnet_adaltm.merging import sparsify
from espnet_adaltm.merging.formulas import (
    agreement,
    breadcrumbs,
    dare,
    dare_ties,
    della,
    magnitude_prune,
    model_stock,
    slerp,
    task_arithmetic,
    ties,
)
from espnet_adaltm.merging.task_vector import TaskVector, check_compatible
from espnet_adaltm.merging.vector_metadata import without_expert

__all__ = [
    "METHODS",
    "agreement",
    "breadcrumbs",
    "check_method",
    "dare",
    "dare_ties",
    "della",
    "magnitude_prune",
    "merge_vectors",
    "model_stock",
    "slerp",
    "task_arithmetic",
    "tensor_merge",
    "ties",
]
TensorMerge = Callable[[str, Sequence[Tensor]], Tensor]
Weights = float | Sequence[float] | Mapping[str, float]
# What a caller of a named method does not give: the merge fills it in.
_FILLED_IN = ("generator", "thresholds")
_SEEDS = range(-(2**63), 2**64)  # what `torch.Generator.manual_seed` takes


@dataclass(frozen=True)
class Method:
    """A function of `merging.formulas` under its name in recipes.

    Attributes:
        merge: ``(deltas, weights, **options)`` of one tensor to its merged difference.
        source: Publication or tool.
    """

    merge: Callable[..., Tensor]
    source: str

    @property
    def options(self) -> dict[str, Any]:
        """What a recipe may give, with defaults (`inspect.Parameter.empty`: required)."""
        return {k: v for k, v in self._parameters().items() if k not in _FILLED_IN}

    @property
    def random(self) -> bool:
        """Whether it draws random numbers."""
        return "generator" in self._parameters()

    def _parameters(self) -> dict[str, Any]:
        parameters = list(inspect.signature(self.merge).parameters.values())[2:]
        return {parameter.name: parameter.default for parameter in parameters}


def _slerp(deltas: Sequence[Tensor], weights: Sequence[float], t: float = 0.5) -> Tensor:
    if len(deltas) != 2:
        raise UserError(f"slerp goes between two task vectors, found {len(deltas)}")
    return slerp(deltas[0] * weights[0], deltas[1] * weights[1], t)


def _model_stock(deltas: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    if any(weight != 1 for weight in weights):
        raise UserError(f"model_stock finds its own weights: leave them 1, found {list(weights)}")
    return model_stock(deltas)


METHODS = {
    "task_arithmetic": Method(task_arithmetic, "arXiv 2212.04089"),
    "magnitude_prune": Method(magnitude_prune, "peft"),
    "ties": Method(ties, "arXiv 2306.01708"),
    "dare": Method(dare, "arXiv 2311.03099"),
    "dare_ties": Method(dare_ties, "arXiv 2311.03099"),
    "della": Method(della, "arXiv 2406.11617"),
    "breadcrumbs": Method(breadcrumbs, "arXiv 2312.06795"),
    "slerp": Method(_slerp, "spherical interpolation of two"),
    "model_stock": Method(_model_stock, "arXiv 2403.19522"),
}


def check_method(method: str, options: Mapping[str, Any], where: str = "merge") -> None:
    """Refuse an unknown method, an unknown option or a missing one.

    Raises:
        UserError: The message names the nearest known one.
    """
    if method not in [*METHODS]:  # it may be a list
        raise UserError(
            f"{where}: method {method!r} is unknown{nearest(method, METHODS)}; "
            f"known: {', '.join(METHODS)}"
        )
    known = METHODS[method].options
    check_options(options, known, f"{where}: method {method}")
    for name, default in known.items():
        if default is inspect.Parameter.empty and name not in options:
            raise UserError(f"{where}: method {method} needs the option {name}")


def check_options(options: Mapping[str, Any], known: Mapping[str, Any], where: str) -> None:
    """Refuse unknown options, and values that are of another kind than their defaults.

    The functions themselves take a density above 1 as peft's do, and keep everything; where it is
    given by name, a percentage is meant.

    Args:
        options: Name to value.
        known: Name to default.
        where: What to call their place in errors.

    Raises:
        UserError: The message names the option.
    """
    check_keys(options, known, where)
    for name, value in options.items():
        kind = type(known[name])
        if kind in (bool, int) and type(value) is not kind:
            raise UserError(
                f"{where} cannot use the options {dict(options)}: {name} {value!r} is "
                f"{'no whole number' if kind is int else 'neither true nor false'}"
            )
        if name in ("density", "outliers"):
            sparsify.check_density(value, name, most=1)


def weight_list(tasks: Sequence[str], weights: Weights) -> list[float]:
    """Spread one number, a list, or a number per task over the tasks.

    Raises:
        UserError: Tasks without a weight or weights without a task, or no numbers at all.
    """
    if not isinstance(weights, int | float | Sequence | Mapping):
        raise UserError(f"weights {weights!r}: give one number, a list, or one for each task")
    if isinstance(weights, Mapping):
        if set(weights) != set(tasks):
            raise UserError(
                f"weights are given for {sorted(map(str, weights))}, the tasks are "
                f"{sorted(tasks)}: give one number for each"
            )
        return [weights[task] for task in tasks]
    return [weights] * len(tasks) if isinstance(weights, int | float) else list(weights)


def check_seed(seed: Any) -> None:
    """Refuse what is no whole number, or none that PyTorch's generators take.

    Raises:
        UserError: The message shows it, or what may be given.
    """
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise UserError(f"seed {seed!r}: give a whole number")
    if seed not in _SEEDS:  # not shown: Python refuses to write numbers of 5,000 digits
        raise UserError(
            f"seed is out of range: give a whole number from {_SEEDS[0]} to {_SEEDS[-1]}"
        )


def tensor_generator(seed: int, task: str, name: str) -> Generator:
    """Random numbers that belong to one tensor of one task.

    The same in whatever order tensors are merged, and whichever others there are.

    Raises:
        UserError: As `check_seed`.
    """
    check_seed(seed)
    digest = hashlib.sha256(f"{seed} {task} {name}".encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def tensor_merge(
    method: str,
    tasks: Sequence[str],
    weights: Weights = 1.0,
    *,
    seed: int = 0,
    thresholds: Mapping[str, float] | None = None,
    **options: Any,
) -> TensorMerge:
    """Bind a method to its tasks, weights and options; for streaming over files.

    Options, weights and counts are tried on one element first, so that mistakes show before any
    tensor is read.

    Args:
        method: A key of `METHODS`.
        tasks: K names, in the order in which deltas will come.
        weights: Lambda: one number, K numbers, or one per task.
        seed: For methods that draw: every tensor of every task has its own numbers.
        thresholds: For ``ties`` with ``scope="model"``: task to its `sparsify.trim_threshold`.
        options: The method's own, see `merging.formulas`.

    Returns:
        ``(name of the tensor, K deltas) -> merged difference``, float32.

    Raises:
        UserError: Unknown or unfit options; when called, a difference that is not finite.
    """
    check_method(method, options)
    chosen = METHODS[method]
    factors = weight_list(tasks, weights)
    if options.get("scope") == "model" and thresholds is None:
        raise UserError(f"method {method} with scope model needs the threshold of every task")
    if options.get("scope") == "model":
        options["thresholds"] = [thresholds[task] for task in tasks]

    def merge(name: str, deltas: Sequence[Tensor]) -> Tensor:
        for task, delta in zip(tasks, deltas, strict=True):
            check_finite(delta, name, task)
        if chosen.random:
            source = [tensor_generator(seed, task, name) for task in tasks]
            return chosen.merge(deltas, factors, **options, generator=source)
        return chosen.merge(deltas, factors, **options)

    try:
        merge("trial", [torch.ones(1)] * len(tasks))
    except TypeError as error:
        raise UserError(f"method {method} cannot use the options {options}: {error}") from error
    return merge


def model_thresholds(
    method: str, vectors: Mapping[str, TaskVector], options: Mapping[str, Any]
) -> dict[str, float] | None:
    """Find every vector's threshold where the options ask for a trim of the whole model."""
    check_method(method, options)
    if options.get("scope") != "model":
        return None
    return {
        task: sparsify.trim_threshold(vector.tensors.values(), options["density"])
        for task, vector in vectors.items()
    }


def merge_vectors(
    method: str,
    vectors: Mapping[str, TaskVector],
    weights: Weights = 1.0,
    *,
    seed: int = 0,
    **options: Any,
) -> TaskVector:
    """Merge whole task vectors into one, tensor by tensor; ``base + result`` is the merged model.

    Args:
        method: A key of `METHODS`.
        vectors: Task to vector, of one base, at least one.
        weights: Lambda: one number, one per task in their order, or by task.
        seed: For methods that draw.
        options: The method's own.

    Raises:
        UserError: Unknown or unfit options, vectors of two bases, values that are not finite.
    """
    first = check_vectors(vectors)
    tasks = list(vectors)
    # first with any thresholds: finding the right ones reads everything
    tensor_merge(method, tasks, weights, thresholds=dict.fromkeys(tasks, 0.0), **options)
    thresholds = model_thresholds(method, vectors, options)
    merge = tensor_merge(method, tasks, weights, seed=seed, thresholds=thresholds, **options)
    tensors = {
        name: merge(name, [vector.tensors[name] for vector in vectors.values()])
        for name in first.tensors
    }
    recipe = {"method": method, "tasks": tasks, "weights": weight_list(tasks, weights), **options}
    if METHODS[method].random:
        recipe["seed"] = seed
    metadata = without_expert(*(vector.metadata for vector in vectors.values()))
    return TaskVector(tensors, {**metadata, "recipe": json.dumps(recipe, sort_keys=True)})


def check_vectors(vectors: Mapping[str, TaskVector]) -> TaskVector:
    """Refuse an empty set or vectors that do not belong together; return the first.

    Raises:
        UserError: The message names the tensor or the hashes.
    """
    if not vectors:
        raise UserError("there is nothing to merge: give at least one task vector")
    first = next(iter(vectors.values()))
    for vector in vectors.values():
        check_compatible(first, vector)
    return first


def check_finite(delta: Tensor, name: str, task: str) -> None:
    """Refuse NaN and infinite values.

    Raises:
        UserError: The message names tensor and task.
    """
    if not torch.isfinite(delta).all():
        raise UserError(
            f"task vector {task}: tensor {name!r} has NaN or infinite values: extract it again "
            "from an expert whose training did not diverge"
        )
