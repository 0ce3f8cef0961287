"""Parameter groups: encoder, heads and merging coefficients learn at their own rates."""

import argparse
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from espnet_adaltm.config import as_numbers
from espnet_adaltm.errors import UserError

ENCODER, HEAD, COEFFICIENTS = "encoder", "head", "coef"


def group_of(name: str) -> str:
    """The kind of a parameter, by its name in the model."""
    if "coefficients" in name.split("."):
        return COEFFICIENTS
    return ENCODER if name.startswith("encoder.") else HEAD


def _decays(name: str, parameter: nn.Parameter) -> bool:
    # Norms and biases are vectors; coefficients are pulled towards zero by decay, that is towards
    # the base encoder, which nobody asked for.
    return parameter.ndim > 1 and group_of(name) != COEFFICIENTS


def parameter_groups(
    model: nn.Module, rates: Mapping[str, float], weight_decay: float
) -> list[dict[str, Any]]:
    """Split the trainable parameters by learning rate and weight decay.

    Args:
        model: Parameters of the encoder are under ``encoder.``, coefficients under a module named
            ``coefficients``, everything else is a head.
        rates: Learning rate of each kind (``encoder``, ``head``, ``coef``).
        weight_decay: For matrices and convolutions outside the coefficients.

    Returns:
        PyTorch's parameter groups, in a fixed order, without empty ones.

    Raises:
        UserError: Nothing is trainable.
    """
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    for kind in (ENCODER, HEAD, COEFFICIENTS):
        for decays in (True, False):
            groups[kind, decays] = {
                "params": [],
                "lr": rates[kind],
                "weight_decay": weight_decay if decays else 0.0,
            }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[group_of(name), _decays(name, parameter)]["params"].append(parameter)
    filled = [group for group in groups.values() if group["params"]]
    if not filled:
        raise UserError("no parameter is trainable: every one of them is frozen by the options")
    return filled


def build_optimizer(
    args: argparse.Namespace, model: nn.Module, optimizer_class: type[torch.optim.Optimizer]
) -> torch.optim.Optimizer:
    """Make the optimiser of ``--optim``, ``--optim_conf`` and the three learning rates.

    Encoder and head default to ``optim_conf``'s ``lr``, the coefficients to the head's rate.
    """
    conf = {
        name: _number(f"optim_conf.{name}", value) if isinstance(value, str) else value
        for name, value in args.optim_conf.items()
    }
    default = conf.pop("lr", 1e-3)
    given = {
        kind: None if value is None else _number(f"{kind}_lr", value)
        for kind in (ENCODER, HEAD, COEFFICIENTS)
        for value in [getattr(args, f"{kind}_lr")]
    }
    head = default if given[HEAD] is None else given[HEAD]
    rates = {
        ENCODER: default if given[ENCODER] is None else given[ENCODER],
        HEAD: head,
        COEFFICIENTS: head if given[COEFFICIENTS] is None else given[COEFFICIENTS],
    }
    groups = parameter_groups(model, rates, conf.pop("weight_decay", 0.0))
    return optimizer_class(groups, lr=default, **conf)


def _number(name: str, value: Any) -> float:
    number = as_numbers(value)
    if not isinstance(number, int | float):
        raise UserError(f"--{name} is {value!r}, expected a number such as 1.0e-4")
    return float(number)
