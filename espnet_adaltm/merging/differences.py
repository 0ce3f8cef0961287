"""What is subtracted from what, and which of the two is to blame where that is impossible."""

import itertools
import logging
import math
import re
from collections.abc import Iterable

import torch
from torch import Tensor

from espnet_adaltm.errors import UserError
from espnet_adaltm.merging.weights import Weights

_LAYER = re.compile(r"^encoder\.layers\.(\d+)\.")
# Some checkpoints lack it; it takes part only where an input is masked.
_OPTIONAL = "masked_spec_embed"
_STORABLE = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_pair(old: Weights, new: Weights) -> list[str]:
    """Refuse a base and an expert that cannot be subtracted; reads nothing but constants.

    Returns:
        Names of the base's float tensors. `masked_spec_embed` may be missing on either side.

    Raises:
        UserError: A tensor is missing, extra, of another shape or dtype, or an integer tensor that
            differs. The message names it.
    """
    _same_names(old, new)
    for name, spec in old.specs.items():
        other = new.specs.get(name, spec)
        for what in ("shape", "dtype"):
            mine, theirs = getattr(spec, what), getattr(other, what)
            if mine != theirs:
                raise UserError(
                    f"tensor {name!r}: {what} {mine} in {old.source}, {theirs} in {new.source}: "
                    "base and expert must agree (save both in float32)"
                )
    constants = [name for name, spec in old.specs.items() if not spec.dtype.is_floating_point]
    for name in constants:  # trap T5
        if name in new.specs and not torch.equal(old.load(name), new.load(name)):
            raise UserError(
                f"tensor {name!r} is a constant ({old.specs[name].dtype}) but differs between "
                f"{old.source} and {new.source}: it cannot be merged"
            )
    return [name for name in old.names if name not in constants]


def difference(name: str, old: Weights, new: Weights) -> Tensor:
    """Expert minus base in one tensor, in float32.

    Raises:
        UserError: It is not finite.
    """
    before = old.load(name)
    after = new.load(name) if name in new.specs else before
    delta = after.float() - before.float()
    check_difference(name, delta, old, new)
    return delta


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite."""
    # A sum is several times faster than a look at every element; one that overflows says nothing.
    return math.isfinite(tensor.sum(dtype=torch.float32)) or bool(torch.isfinite(tensor).all())


def check_finite(
    name: str,
    tensor: Tensor,
    where: str,
    advice: str = "make it again from checkpoints without such values",
) -> None:
    """Refuse NaN and infinite values.

    Raises:
        UserError: The message names tensor and place, and says what to do.
    """
    if not is_finite(tensor):
        raise UserError(f"tensor {name!r} has NaN or infinite values in {where}: {advice}")


def check_base(name: str, base: Weights) -> None:
    """Refuse NaN and infinite values in a base.

    Raises:
        UserError: The message names it.
    """
    check_finite(name, base.load(name), f"the base {base.source}", "give an intact one")


def check_difference(name: str, delta: Tensor, old: Weights, new: Weights) -> None:
    """Refuse a difference, or a piece of it, that is not finite.

    Raises:
        UserError: The message names what has such values: base, expert, or only the difference.
    """
    if is_finite(delta):
        return
    check_base(name, old)
    diverged = "its training diverged; train again with a lower learning rate"
    check_finite(name, new.load(name), f"the expert {new.source}", diverged)
    raise UserError(
        f"tensor {name!r}: base {old.source} and expert {new.source} are finite, but too far apart "
        "for float32: is this the base that the expert was fine-tuned from?"
    )


def check_storable(dtype: torch.dtype) -> None:
    """Refuse a dtype that cannot hold differences.

    Raises:
        UserError: The message shows it.
    """
    if dtype not in _STORABLE:
        raise UserError(
            f"dtype {dtype}: differences are small fractions; store torch.float32 or torch.bfloat16"
        )


def as_stored(name: str, delta: Tensor, dtype: torch.dtype) -> Tensor:
    """Round differences to the dtype in which they are stored.

    Raises:
        UserError: They are too large for it.
    """
    stored = delta.to(dtype)
    if stored.dtype != delta.dtype and not is_finite(stored) and is_finite(delta):
        raise UserError(f"tensor {name!r}: differences are too large for {dtype}: store float32")
    return stored


def _same_names(old: Weights, new: Weights) -> None:
    missing = set(old.names) - set(new.names) - {_OPTIONAL}
    extra = set(new.names) - set(old.names) - {_OPTIONAL}
    if missing or extra:
        name = min(itertools.chain(missing, extra))
        holder, other = (old, new) if name in missing else (new, old)
        depths = [depth(weights.names) for weights in (holder, other)]
        layers = "" if depths[0] == depths[1] else f" ({depths[0]} and {depths[1]} layers)"
        raise UserError(
            f"tensor {name!r} is in {holder.source} but not in {other.source}{layers}: "
            "base and expert must be the same kind of encoder"
        )
    if (_OPTIONAL in old.names) != (_OPTIONAL in new.names):
        logging.info("%s is in only one of base and expert: taken as unchanged", _OPTIONAL)


def depth(names: Iterable[str]) -> int:
    """Number of transformer layers that the names of an encoder's tensors tell of."""
    return 1 + max((int(m[1]) for name in names if (m := _LAYER.match(name))), default=-1)
