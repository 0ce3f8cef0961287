"""How much of each task vector is added at each depth: the lambdas."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from espnet_adaltm.config import check_choice
from espnet_adaltm.errors import UserError
from espnet_adaltm.merging.groups import GRANULARITIES

CONSTRAINTS = ("none", "clamp", "sigmoid", "tanh", "softmax")
# Ends of open ranges, which lambda reaches by rounding, and what is inside of them in float32.
_INSIDE = {
    "sigmoid": {0.0: 2.0**-126, 1.0: 1 - 2.0**-24},
    "tanh": {-1.0: 2.0**-24 - 1, 1.0: 1 - 2.0**-24},
    "softmax": {0.0: 2.0**-126},
}
Init = float | Mapping[str, float]


class Coefficients(nn.Module):
    """One scalar per task and group; AdaLTM's are block-wise, unconstrained and start at 0.5.

    With r the stored values, lambda is

    - ``none``: r
    - ``clamp``: min(max(r, 0), 1); the gradient is exactly zero outside [0, 1] (trap T7)
    - ``sigmoid``: 1 / (1 + exp(-r))
    - ``tanh``: tanh(r) (SuperMerge's)
    - ``softmax``: softmax of r over the tasks, so that they sum to one in every group

    Args:
        tasks: Names of the task vectors, length K; none for the base alone.
        groups: Names of the groups, length G (`merging.groups.group_names`).
        granularity: What ``groups`` stand for: ``global``, ``block``, ``module`` or ``tensor``.
        init: First value of lambda, one number or one per task.
        constraint: One of `CONSTRAINTS`.
        trainable: False keeps lambda where it is.

    Attributes:
        raw: The stored values r, parameter of shape [K, G]; float32, or float64 after `double`.
            It stays so in a model of lower precision, where the paper's steps of 1e-4 would be
            rounded away.

    Raises:
        UserError: Unknown option, or a first value that the constraint cannot take.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        groups: Sequence[str],
        granularity: str = "block",
        init: Init = 0.5,
        constraint: str = "none",
        trainable: bool = True,
    ) -> None:
        super().__init__()
        check_choice("granularity", granularity, GRANULARITIES)
        check_choice("constraint", constraint, CONSTRAINTS)
        if len(set(tasks)) != len(tasks):
            raise UserError(f"tasks {list(tasks)}: each may be named once")
        self.tasks = tuple(tasks)
        self.groups = tuple(groups)
        self.granularity = granularity
        self.constraint = constraint
        start = _inverse(constraint, self.tasks, initial_values(self.tasks, init))
        values = torch.tensor(start, dtype=torch.float32).reshape(len(self.tasks), 1)
        self.raw = nn.Parameter(
            values.repeat(1, len(self.groups)), requires_grad=trainable and len(self.tasks) > 0
        )

    def forward(self) -> Tensor:
        """Return lambda, shape [K, G]."""
        if self.constraint == "clamp":
            return self.raw.clamp(0.0, 1.0)
        if self.constraint == "sigmoid":
            return self.raw.sigmoid()
        if self.constraint == "tanh":
            return self.raw.tanh()
        if self.constraint == "softmax":
            return self.raw.softmax(0)
        return self.raw

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Coefficients":
        before, gradient = self.raw.data, self.raw.grad
        super()._apply(fn, recurse)
        if self.raw.dtype.itemsize < torch.float32.itemsize:
            self.raw.grad = None
            self.raw.data = before.to(self.raw.device, torch.float32)
            if gradient is not None:
                self.raw.grad = gradient.to(self.raw.device, torch.float32)
        return self

    def table(self) -> list[list[float]]:
        """Return lambda as plain numbers, [K][G], for ``coefficients.json``."""
        return self().detach().cpu().tolist()

    @torch.no_grad()
    def fill(self, table: Sequence[Sequence[float]]) -> None:
        """Set lambda to given numbers, as `table` returns them.

        Where ``sigmoid``, ``tanh`` or ``softmax`` saturated, `table` has the end of their open
        range. The nearest number inside is taken for it: 1.2e-38 (2^-126) for 0, and what is 6e-8
        (2^-24) off for 1 and -1.

        Args:
            table: [K][G], tasks and groups in the order of this object's.

        Raises:
            UserError: Another shape, not finite, or numbers that the constraint cannot take.
        """
        widths = {len(row) for row in table}
        if len(table) != len(self.tasks) or widths - {len(self.groups)}:
            raise UserError(
                f"coefficients of {len(table)} tasks and {sorted(widths)} groups: expected "
                f"{len(self.tasks)} ({', '.join(self.tasks)}) and {len(self.groups)}"
            )
        inside = _INSIDE.get(self.constraint, {})
        columns = []
        for column, group in enumerate(self.groups):
            given = {task: row[column] for task, row in zip(self.tasks, table)}
            try:
                values = [inside.get(v, v) for v in initial_values(self.tasks, given)]
                columns.append(_inverse(self.constraint, self.tasks, values))
            except UserError as error:
                raise UserError(f"group {group}: {error}") from error
        self.raw.copy_(self.raw.new_tensor(columns).T)

    def parameter_group(self, learning_rate: float) -> dict[str, Any]:
        """Options for an optimiser: a rate of their own, and no pull towards the base.

        The paper's rate is 1e-4, with which Adam moves a coefficient by at most 1e-4 a step.
        """
        return {"params": [self.raw], "lr": learning_rate, "weight_decay": 0.0}

    def extra_repr(self) -> str:
        """Describe the module in a model summary."""
        return (
            f"tasks={list(self.tasks)}, groups={len(self.groups)}, "
            f"granularity={self.granularity}, constraint={self.constraint}"
        )


def initial_values(tasks: Sequence[str], init: Init) -> list[float]:
    """Spread ``init``, a number or one number per task, over the tasks.

    Raises:
        UserError: A task without a value, a value without a task, or not a finite number.
    """
    if isinstance(init, Mapping):
        if set(init) != set(tasks):
            raise UserError(
                f"init names the tasks {sorted(init)}, the merge has {sorted(tasks)}: "
                "give one number for each"
            )
        values = [init[task] for task in tasks]
    else:
        values = [init] * len(tasks)
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"init {value!r} is not a number")
        if not math.isfinite(value):
            raise UserError(f"init {value!r} is not finite")
    return [float(value) for value in values]


def _inverse(constraint: str, tasks: Sequence[str], values: list[float]) -> list[float]:
    """Return the stored values that the constraint maps to ``values``."""
    if constraint == "none" or not values:
        return values
    if constraint == "softmax":
        if min(values) <= 0 or abs(sum(values) - 1) > 1e-6:
            raise UserError(
                f"init {dict(zip(tasks, values))} cannot be reached with constraint softmax: "
                "give every task a positive share; they must sum to 1"
            )
        return [math.log(value) for value in values]
    low, closed = (-1.0 if constraint == "tanh" else 0.0), constraint == "clamp"
    for task, value in zip(tasks, values):
        if not (low <= value <= 1 if closed else low < value < 1):
            brackets = "[]" if closed else "()"
            raise UserError(
                f"init {value} of {task} cannot be reached with constraint {constraint}: "
                f"choose it in {brackets[0]}{low:g}, 1{brackets[1]}"
            )
    if constraint == "sigmoid":
        return [math.log(value / (1 - value)) for value in values]
    return [math.atanh(value) for value in values] if constraint == "tanh" else values
