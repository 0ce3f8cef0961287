"""Parametrized layers, such as weight-normed ones, made plain."""

from torch import nn
from torch.nn.utils import parametrize


def make_plain(part: nn.Module) -> None:
    """Give a module's parametrized tensors as parameters, with the values that they have now.

    PyTorch keeps such a tensor as a property of a class that deep copies of the module share, and
    takes it off that class: a copy would have no weight any more. So the module gets a class of its
    own before.

    Args:
        part: Changed in place; one without parametrizations stays as it is. Not its children.
    """
    if not parametrize.is_parametrized(part):
        return
    shared = type(part)
    part.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
    for name in list(part.parametrizations):
        parametrize.remove_parametrizations(part, name)
