"""The adapter of LoRA as a torch module; the formula and its source stand in `baselines/lora.py`."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


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
        return weight + self.change().to(weight.dtype)
