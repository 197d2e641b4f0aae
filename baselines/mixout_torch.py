"""The mixing of Mixout as a torch module; the formula and its source stand in `baselines/mixout.py`."""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
