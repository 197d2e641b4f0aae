"""Functions of a weight that stand in for it while a network is trained, on torch's parametrisations.

The weight itself is then called `….parametrizations.weight.original`; whoever reads the module's weight, a layer's own
code or ours, gets the function's value.
"""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize

from bench.interfaces.model import Model


def adapt(model: Model, name: str, function: nn.Module) -> None:
    """Have `function` of the parameter `name` stand in for it."""
    owner, _, parameter = name.rpartition(".")
    parametrize.register_parametrization(model.get_submodule(owner), parameter, function, unsafe=True)


def remove_adapters(model: Model, merge: bool) -> None:
    """Give all weights their plain names again: with their functions' values where `merge`, else as they are."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            for parameter in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, str(parameter), leave_parametrized=merge)
