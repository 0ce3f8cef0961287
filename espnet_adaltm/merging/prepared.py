"""From the experts' task vectors to those that coefficients are learned for.

Training and decoding both come through here: a merge's folder holds coefficients and options, never
vectors, so that what was merged has to be made again from the experts' vectors.
"""

import math
from collections.abc import Mapping, Sequence

import torch

from espnet_adaltm.errors import UserError
from espnet_adaltm.merging.arithmetic import merge_vectors
from espnet_adaltm.merging.config import MERGED, SEPARATE, MergeConfig
from espnet_adaltm.merging.preprocess import prepare
from espnet_adaltm.merging.task_vector import TaskVector

# Singular value decompositions differ in the last bits from machine to machine.
_TOLERANCE = 1e-3


def prepared(config: MergeConfig, vectors: Mapping[str, TaskVector]) -> dict[str, TaskVector]:
    """Preprocess the vectors of a merge and, under a ``method``, make one of them.

    Args:
        config: The merge; its random methods must have a seed (`MergeConfig.with_seed`).
        vectors: Task to vector, at least ``config.tasks``; left as they are.

    Returns:
        ``config.vector_names`` to vector.
    """
    chosen = {task: vectors[task] for task in config.tasks}
    if not chosen:
        return {}
    options = dict(config.preprocess)
    kind = options.pop("method")
    if kind != "none":
        chosen = prepare(chosen, kind, **options)
    if config.method == SEPARATE:
        return chosen
    options = dict(config.method_conf)
    weights = options.pop("weights", 1.0)
    return {MERGED: merge_vectors(config.method, chosen, weights, **options)}


def checksum(vector: TaskVector) -> list[float]:
    """Norm, and inner product with fixed waves: equal up to rounding for the same vector only.

    Returns:
        `|| tau ||` and `sum_i tau_i cos(0.7 i)`, i counted within each tensor; float64.
    """
    square = wave = 0.0
    for name in sorted(vector.tensors):
        flat = vector.tensors[name].detach().flatten().double()
        square += float(flat.dot(flat))
        wave += float(flat.dot(torch.arange(len(flat), dtype=torch.float64).mul_(0.7).cos_()))
    return [math.sqrt(square), wave]


def check_rebuilt(
    vectors: Mapping[str, TaskVector], sums: Mapping[str, Sequence[float]], where: str
) -> None:
    """Refuse vectors that are not those of the training.

    Args:
        vectors: Just made.
        sums: Name to `checksum` at training time.
        where: The merge's folder, for the error.

    Raises:
        UserError: One differs by more than rounding.
    """
    for name, expected in sums.items():
        found = checksum(vectors[name])
        scale = max(expected[0], torch.finfo(torch.float32).tiny)
        if any(abs(one - other) > _TOLERANCE * scale for one, other in zip(found, expected)):
            raise UserError(
                f"{where}: the vector {name!r} made again from the experts' is not the one of the "
                "training (another release of PyTorch draws other random numbers): train the "
                "merge again"
            )
