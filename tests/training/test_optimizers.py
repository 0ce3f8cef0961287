"""Learning rates and weight decay reach the right parameters."""

import argparse

import pytest
import torch
from torch import nn

from espnet_adaltm.errors import UserError
from espnet_adaltm.training.optimizers import build_optimizer, parameter_groups


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.layer = nn.Linear(2, 2)
        self.encoder.coefficients = nn.Module()
        self.encoder.coefficients.raw = nn.Parameter(torch.ones(2, 3))
        self.head = nn.Linear(2, 1)


def table(optimizer, model):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def options(**values):
    defaults = {"encoder_lr": None, "head_lr": None, "coef_lr": None, "optim_conf": {"lr": 0.5}}
    return argparse.Namespace(**{**defaults, **values})


def test_every_parameter_has_its_rate_and_decay():
    model = Toy()
    args = options(
        encoder_lr=0.1, head_lr=0.2, coef_lr=0.3, optim_conf={"weight_decay": 0.05, "eps": 1e-7}
    )
    optimizer = build_optimizer(args, model, torch.optim.AdamW)
    assert table(optimizer, model) == {
        "encoder.layer.weight": (0.1, 0.05),
        "encoder.layer.bias": (0.1, 0.0),
        "encoder.coefficients.raw": (0.3, 0.0),
        "head.weight": (0.2, 0.05),
        "head.bias": (0.2, 0.0),
    }
    assert {group["eps"] for group in optimizer.param_groups} == {1e-7}


def test_coefficients_follow_the_head_by_default():
    model = Toy()
    rates = table(build_optimizer(options(head_lr=0.2), model, torch.optim.AdamW), model)
    assert rates["encoder.coefficients.raw"][0] == rates["head.bias"][0] == 0.2
    assert rates["encoder.layer.bias"][0] == 0.5


def test_yaml_numbers_without_a_point_are_understood():
    model = Toy()
    args = options(encoder_lr="1e-4", optim_conf={"lr": "1e-3"})
    rates = table(build_optimizer(args, model, torch.optim.AdamW), model)
    assert rates["encoder.layer.bias"][0] == 1e-4
    assert rates["head.bias"][0] == 1e-3
    with pytest.raises(UserError, match="--optim_conf.lr is 'fast'"):
        build_optimizer(options(optim_conf={"lr": "fast"}), model, torch.optim.AdamW)


def test_frozen_parameters_are_left_out_and_nothing_to_train_is_an_error():
    model = Toy()
    model.encoder.requires_grad_(False)
    groups = parameter_groups(model, {"encoder": 1, "head": 1, "coef": 1}, 0.0)
    assert sum(len(group["params"]) for group in groups) == 2
    model.requires_grad_(False)
    with pytest.raises(UserError, match="every one of them is frozen"):
        parameter_groups(model, {"encoder": 1, "head": 1, "coef": 1}, 0.0)
