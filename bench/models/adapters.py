"""Functions of a weight that stand in for it while a network is trained, on torch's parametrisations.

The weight itself is then called `….parametrizations.weight.original`; whoever reads the module's weight, a layer's own
code or ours, gets the function's value.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
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


def kept_weights(model: Model) -> dict[str, Tensor]:
    """Return all weights by their plain names, as `remove_adapters` would leave them now.

    An objective that compares weights reads these: with a graph to what is trained of them, and without the noise of a
    pass.
    """
    # Example: of `fc.parametrizations.weight.original` with a LowRank, whose own A and B have no plain name, there is
    # `fc.weight`, the sum W + ΔW; with a Mixed it is W itself.
    weights: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        owner, adapted, rest = name.partition(".parametrizations.")
        if not adapted:
            weights[name] = parameter
        elif rest.endswith(".original"):
            leaf, value = rest.removesuffix(".original"), cast("Tensor", parameter)
            for function in model.get_submodule(f"{owner}.parametrizations.{leaf}").children():
                value = value if isinstance(function, Mixed) else function(value)
            weights[f"{owner}.{leaf}"] = value
    return weights


class Mixed(nn.Module):
    """Mix a weight with `start`, element by element, at `rate`.

    In eval mode, and at rate 0, the weight is as it is and nothing is drawn.
    """

    start: Tensor

    def __init__(self, start: Tensor, rate: float) -> None:
        super().__init__()
        # Not part of checkpoints: the stage's first weights are there again when it is resumed.
        self.register_buffer("start", start, persistent=False)
        self.rate = rate

    def forward(self, weight: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return weight
        kept = (torch.rand_like(weight) >= self.rate).to(weight.dtype)
        # Where a weight is kept it becomes (w − p u) / (1 − p), elsewhere (u − p u) / (1 − p) = u.
        return self.start + kept * (weight - self.start) / (1 - self.rate)


class LowRank(nn.Module):
    """Add (α / r) B A to a weight, part by part.

    The rows of the weight are as many projections as `adapted` has entries, one under the other; each one that is
    adapted has an A (r, in) and a B (rows, r) of its own.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float, adapted: list[bool]) -> None:
        super().__init__()
        self.scale, self.rows = alpha / rank, len(weight) // len(adapted)
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        for i in [i for i, is_adapted in enumerate(adapted) if is_adapted]:
            # nn.Linear's own: uniform with the variance of a normal one of 1 / (3 in).
            down = nn.init.kaiming_uniform_(weight.new_empty(rank, weight.shape[1]), a=math.sqrt(5))
            self.down[str(i)] = nn.Parameter(down)
            self.up[str(i)] = nn.Parameter(weight.new_zeros(self.rows, rank))
        self.parts = len(adapted)

    def change(self) -> Tensor:
        """Return ΔW (out, in)."""
        # A fused matrix of query, key and value of which query and value are adapted: [B_0 A_0; 0; B_2 A_2].
        width = next(iter(self.down.values())).shape[1]
        empty = next(iter(self.up.values())).new_zeros(self.rows, width)
        keys = map(str, range(self.parts))
        return self.scale * torch.cat([self.up[key] @ self.down[key] if key in self.up else empty for key in keys])

    def forward(self, weight: Tensor) -> Tensor:
        # In the precision of the weight, in which the sum is merged at the end.
        with torch.autocast(weight.device.type, enabled=False):
            return weight + self.change()
