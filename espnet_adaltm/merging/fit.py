"""Whether encoder, task vectors, coefficients and block map belong together (`merging.merged`)."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from espnet_adaltm.backbone.blocks import BlockMap
from espnet_adaltm.errors import UserError
from espnet_adaltm.merging.coefficients import Coefficients
from espnet_adaltm.merging.groups import map_groups
from espnet_adaltm.merging.task_vector import (
    LazyTensors,
    TaskVector,
    check_compatible,
    specs_of,
)


def chosen_vectors(
    vectors: Mapping[str, TaskVector], tasks: Iterable[str]
) -> dict[str, TaskVector]:
    """Pick the vectors of some tasks.

    Raises:
        UserError: One is missing, or two are of different bases.
    """
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


def check_groups(blocks: BlockMap, coefficients: Coefficients) -> None:
    """Refuse coefficients whose groups are not those of an encoder's map.

    Raises:
        UserError: The message has both numbers of groups.
    """
    groups = map_groups(blocks, coefficients.granularity)
    if list(coefficients.groups) != groups:
        raise UserError(
            f"the coefficients have {len(coefficients.groups)} groups, this encoder has "
            f"{len(groups)} at granularity {coefficients.granularity}: they are of another encoder"
        )


def untied(task: str, vector: TaskVector, first: Mapping[str, str]) -> Mapping[str, Tensor]:
    """Return the differences, those of tied weights under the first of their names.

    Args:
        task: For messages.
        vector: May have a tied weight under each of its names.
        first: Every name of the encoder's parameters, to the first name of the same one.

    Raises:
        UserError: One tied weight moves differently under two names.
    """
    tensors, stored = vector.tensors, {}
    for name in tensors:
        other = stored.setdefault(first.get(name, name), name)
        if other != name and not torch.equal(tensors[other], tensors[name]):
            raise UserError(
                f"task vector {task}: {other!r} and {name!r} are one tied weight of the encoder, "
                "but move differently: tie them in the expert, too, or untie them in the base"
            )
    if all(name == own for name, own in stored.items()):
        return tensors
    specs = specs_of(vector)
    specs = {name: specs[own] for name, own in stored.items()}
    return LazyTensors(specs, lambda name: tensors[stored[name]])


def check_map(blocks: BlockMap, first: Mapping[str, str], buffers: set[str]) -> None:
    """Refuse a map that names something else than parameters, or one under a second name.

    Args:
        blocks: The map.
        first: As for `untied`.
        buffers: Names of the encoder's buffers.

    Raises:
        UserError: The message names the entry.
    """
    for name in blocks:
        if name in buffers:
            raise UserError(
                f"block map: {name!r} is a buffer, which stays the base's: leave it out (map the "
                "names of named_parameters())"
            )
        if name not in first:
            raise UserError(f"block map: {name!r} is no parameter of this encoder")
        if first[name] != name:
            raise UserError(
                f"block map: {name!r} is another name of the tied weight {first[name]!r}: map that "
                "one only (as named_parameters() does)"
            )


def check_tensors(
    parameters: Mapping[str, Tensor],
    buffers: set[str],
    blocks: BlockMap,
    vectors: Mapping[str, Mapping[str, Tensor]],
) -> None:
    """Refuse vectors that have other tensors, or of other shapes, than the encoder.

    Args:
        parameters: The encoder's, by name.
        buffers: Names of its buffers, whose differences are left out.
        blocks: What is merged.
        vectors: Task to differences by name.

    Raises:
        UserError: The message names task and tensor.
    """
    for task, tensors in vectors.items():
        different = (blocks.keys() - tensors.keys()) | (
            tensors.keys() - parameters.keys() - buffers
        )
        if different:
            raise UserError(
                f"task vector {task}: tensor {min(different)!r} is in only one of vector and "
                "encoder: the vector belongs to another encoder"
            )
        for name in blocks:
            shapes = tuple(tensors[name].shape), tuple(parameters[name].shape)
            if shapes[0] != shapes[1]:
                raise UserError(
                    f"task vector {task}: tensor {name!r} has shape {shapes[0]}, "
                    f"the encoder's has {shapes[1]}"
                )


def check_exchangeable(encoder: nn.Module, merged: set[int]) -> None:
    """Refuse to merge weights of recurrent layers, which cannot be exchanged.

    Args:
        encoder: The base.
        merged: `id` of the parameters that are merged.

    Raises:
        UserError: The message names the layer.
    """
    for path, part in encoder.named_modules():
        if isinstance(part, nn.RNNBase) and any(id(p) in merged for p in part.parameters()):
            raise UserError(
                f"{path} is a recurrent layer, which keeps its weights to itself: leave it out of "
                "the block map (it stays the base's)"
            )


def refuse_checkpointing(encoder: nn.Module) -> None:
    """Refuse layers of `transformers` that would be run again with the base's weights.

    Raises:
        UserError: One is on and in training.
    """
    for part in encoder.modules():
        if part.training and getattr(part, "gradient_checkpointing", False):
            raise UserError(
                "gradient checkpointing inside a merged encoder is not supported: call "
                "gradient_checkpointing_disable() (merged weights are not kept anyway)"
            )
