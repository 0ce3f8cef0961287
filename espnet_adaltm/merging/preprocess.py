"""Task vectors made ready for learning their coefficients: one vector per task in, one out.

What a static method does before it adds the tasks up, without adding them: afterwards the learned
lambdas weigh what is left. Two controls (``random``, ``shuffled_blocks``) keep the size of the
vectors and destroy what they say: a gain that survives them does not come from the experts.
"""

import inspect
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from espnet_adaltm.config import nearest
from espnet_adaltm.errors import UserError
from espnet_adaltm.merging import formulas, sparsify
from espnet_adaltm.merging.arithmetic import (
    check_finite,
    check_options,
    check_seed,
    check_vectors,
    tensor_generator,
)
from espnet_adaltm.merging.task_vector import TaskVector

_LAYER = re.compile(r"^(encoder\.layers\.)(\d+)(\..+)$")
Vectors = Mapping[str, TaskVector]
Prepared = dict[str, dict[str, Tensor]]


def prepare(vectors: Vectors, method: str = "none", **options: Any) -> dict[str, TaskVector]:
    """Preprocess task vectors, keeping one per task.

    Args:
        vectors: Task to vector, of one base, at least one.
        method: A key of `METHODS`:

            - ``none``: as they are
            - ``magnitude``: trimmed (`sparsify.trim`): ``density``, ``scope``, ``minimum``
            - ``ties``: trimmed, and zero where a task lost the election of the sign:
              ``density``, ``elect``, ``scope``, ``minimum``, ``normalize``
            - ``dare``: dropped at random and rescaled: ``density``, ``rescale``, ``seed``
            - ``della``: the same by magnitude: ``density``, ``epsilon``, ``rescale``, ``seed``
            - ``breadcrumbs``: without the largest and smallest: ``density``, ``outliers``
            - ``low_rank``: leading singular directions of every matrix: ``rank`` or ``energy``
            - ``random``: Gaussian noise with every tensor's norm: ``seed``
            - ``shuffled_blocks``: every layer gets another layer's differences: ``seed``
        options: The method's own, see the functions here.

    Returns:
        Task to vector, float32; ``preprocess`` in the metadata tells method and options.

    Raises:
        UserError: Unknown or unfit options, vectors of two bases, values that are not finite.
    """
    check_preprocess(method, options)
    check_vectors(vectors)
    for task, vector in vectors.items():
        for name, tensor in vector.tensors.items():
            check_finite(tensor, name, task)
    with torch.no_grad():
        prepared = METHODS[method](vectors, **options)
    recipe = json.dumps({"method": method, **options}, sort_keys=True)
    return {
        task: replace(
            vectors[task],
            tensors=tensors,
            metadata={**vectors[task].metadata, "preprocess": recipe},
        )
        for task, tensors in prepared.items()
    }


def check_preprocess(method: str, options: Mapping[str, Any], where: str = "preprocess") -> None:
    """Refuse an unknown method, unknown options and values that the method would refuse.

    Raises:
        UserError: The message names the nearest known one.
    """
    if method not in [*METHODS]:  # it may be a list
        raise UserError(
            f"{where}: method {method!r} is unknown{nearest(method, METHODS)}; "
            f"known: {', '.join(METHODS)}"
        )
    check_options(options, _options(method), f"{where}: method {method}")
    names = [f"encoder.layers.{layer}.trial" for layer in range(2)]
    trial = TaskVector({name: torch.ones(1, 1) for name in names})
    try:
        METHODS[method]({"trial": trial}, **options)
    except TypeError as error:
        raise UserError(f"{where}: {method} cannot use the options {options}: {error}") from error


def draws(method: str) -> bool:
    """Whether a method draws random numbers, and takes a ``seed``."""
    return "seed" in _options(method)


def _options(method: str) -> dict[str, Any]:
    """A method's options and their defaults."""
    parameters = list(inspect.signature(METHODS[method]).parameters.values())[1:]
    return {parameter.name: parameter.default for parameter in parameters}


def _none(vectors: Vectors) -> Prepared:
    return {task: dict(vector.tensors) for task, vector in vectors.items()}


def _magnitude(
    vectors: Vectors, density: float = 0.2, scope: str = "tensor", minimum: int = 0
) -> Prepared:
    """Keep the largest elements, of each tensor or of the whole vector."""
    return {task: _trimmed(vector, density, scope, minimum) for task, vector in vectors.items()}


def _trimmed(vector: TaskVector, density: float, scope: str, minimum: int) -> dict[str, Tensor]:
    formulas.check_scope(scope)
    sparsify.check_density(density)
    if scope == "tensor":
        return {
            name: sparsify.trim(tensor, density, minimum=minimum, edge="first")
            for name, tensor in vector.tensors.items()
        }
    threshold = sparsify.trim_threshold(vector.tensors.values(), density)
    return {n: sparsify.trim_below(tensor, threshold) for n, tensor in vector.tensors.items()}


def _ties(
    vectors: Vectors,
    density: float = 0.2,
    elect: str = "total",
    scope: str = "tensor",
    minimum: int = 0,
    normalize: str = "none",
) -> Prepared:
    """Zero what TIES would leave out: small elements, and those against the elected sign.

    Among equal magnitudes at the edge of a trim the first ones stay (`sparsify.trim`). With
    ``normalize="count"`` every element is divided by the number of tasks that keep it, and the
    plain sum of the vectors is the TIES merge; with ``none`` that division is left to the lambdas.
    """
    if normalize not in ("none", "count"):
        raise UserError(f"normalize {normalize!r} is unknown: choose one of none, count")
    trimmed = _magnitude(vectors, density, scope, minimum)
    tasks = list(trimmed)
    for name in trimmed[tasks[0]]:
        rows = [trimmed[task][name] for task in tasks]
        agrees = formulas.agreement(rows, elect)
        count = torch.stack(agrees).sum(0).clamp_min(1) if normalize == "count" else 1
        for task, row, agree in zip(tasks, rows, agrees):
            trimmed[task][name] = row * agree / count
    return trimmed


def _random_masks(
    vectors: Vectors, seed: int, prune: Callable[..., Tensor], **options: Any
) -> Prepared:
    return {
        task: {
            name: prune(tensor, generator=tensor_generator(seed, task, name), **options)
            for name, tensor in vector.tensors.items()
        }
        for task, vector in vectors.items()
    }


def _dare(vectors: Vectors, density: float = 0.2, rescale: bool = True, seed: int = 0) -> Prepared:
    """Drop elements at random and scale the others up (`sparsify.drop`)."""
    return _random_masks(vectors, seed, sparsify.drop, density=density, rescale=rescale)


def _della(
    vectors: Vectors,
    density: float = 0.2,
    epsilon: float = 0.15,
    rescale: bool = True,
    seed: int = 0,
) -> Prepared:
    """Drop elements at random by magnitude (`sparsify.magprune`)."""
    options = {"density": density, "epsilon": epsilon, "rescale": rescale}
    return _random_masks(vectors, seed, sparsify.magprune, **options)


def _each_tensor(vectors: Vectors, change: Callable[..., Tensor], **options: Any) -> Prepared:
    return {
        task: {name: change(tensor, **options) for name, tensor in vector.tensors.items()}
        for task, vector in vectors.items()
    }


def _breadcrumbs(vectors: Vectors, density: float = 0.2, outliers: float = 0.01) -> Prepared:
    """Leave out the largest and the smallest (`sparsify.without_outliers`)."""
    return _each_tensor(vectors, sparsify.without_outliers, density=density, outliers=outliers)


def _low_rank(vectors: Vectors, rank: int | None = None, energy: float | None = None) -> Prepared:
    """Keep the leading directions of every matrix (`sparsify.low_rank`)."""
    return _each_tensor(vectors, sparsify.low_rank, rank=rank, energy=energy)


def _random(vectors: Vectors, seed: int = 0) -> Prepared:
    """Control: Gaussian noise that has the norm of each tensor it replaces; zeros stay zeros."""
    prepared: Prepared = {}
    for task, vector in vectors.items():
        prepared[task] = {}
        for name, tensor in vector.tensors.items():
            generator = tensor_generator(seed, task, name)
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            scale = tensor.double().norm() / noise.norm().clamp_min(1e-30)
            prepared[task][name] = (noise * scale).to(sparsify.as_float(tensor).dtype)
    return prepared


def _shuffled_blocks(vectors: Vectors, seed: int = 0) -> Prepared:
    """Control: each transformer layer gets another layer's differences, in all tasks the same.

    No layer keeps its own. What lies outside of the layers, or is not in every layer with one
    shape (WavLM's ``rel_attn_embed``), stays.
    """
    return {task: _with_layers_moved(vector, seed) for task, vector in vectors.items()}


def _with_layers_moved(vector: TaskVector, seed: int) -> dict[str, Tensor]:
    layers = vector.num_layers
    if layers < 2:
        raise UserError(f"shuffled_blocks needs two layers or more, the vectors have {layers}")
    source = derangement(layers, seed)
    moved = dict(vector.tensors)
    for name in vector.tensors:
        match = _LAYER.match(name)
        if match is None:
            continue
        prefix, layer, suffix = match.groups()
        family = [vector.tensors.get(f"{prefix}{place}{suffix}") for place in range(layers)]
        if all(member is not None and member.shape == family[0].shape for member in family):
            moved[name] = family[source[int(layer)]]
    return moved


def derangement(size: int, seed: int) -> list[int]:
    """Return a permutation without fixed points, uniform among them.

    Args:
        size: 2 or more.
        seed: The same seed gives the same one.
    """
    check_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    while True:  # more than a third of all permutations are such
        order = torch.randperm(size, generator=generator).tolist()
        if all(place != value for place, value in enumerate(order)):
            return order


METHODS: dict[str, Callable[..., Prepared]] = {
    "none": _none,
    "magnitude": _magnitude,
    "ties": _ties,
    "dare": _dare,
    "della": _della,
    "breadcrumbs": _breadcrumbs,
    "low_rank": _low_rank,
    "random": _random,
    "shuffled_blocks": _shuffled_blocks,
}
