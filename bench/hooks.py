"""What the training loop hands to objectives, optimisers and constraints, and what they hand back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

Inputs = Any
"""Model inputs: a float tensor (B, 3, H, W) for images, a dict of (B, T) tensors for text."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch on the training device.

    `index` (B,) are positions in the training set; `labels` (B,) or None; `mask` is what the model's `draw_mask`
    returned, or None where the objective needs none.
    """

    inputs: Inputs
    index: Tensor
    labels: Tensor | None = None
    mask: Any = None


@dataclass(frozen=True)
class Loss:
    """The scalar to minimise and its named parts for the log."""

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class State:
    """Everything an objective keeps between steps.

    `module` is trained along with the model (a projection head); `tensors` change during training. Both are part of
    every checkpoint. `constants` never change and are rebuilt by `begin` on resuming (cached teacher features).
    """

    module: nn.Module | None = None
    tensors: dict[str, Tensor] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """What an objective may know besides model and batch: the step, the step count and the training examples.

    `examples(batch_size)` iterates the whole training set without augmentation as (index, inputs), in order.
    `augmented` says whether the loop changes the inputs at each step (then nothing may be cached per example).
    """

    step: int
    total_steps: int
    augmented: bool
    device: torch.device
    training_set: Any

    def examples(self, batch_size: int = 256) -> Iterator[tuple[Tensor, Inputs]]:
        """The whole training set in order, unaugmented, batch by batch."""
        for start in range(0, len(self.training_set), batch_size):
            index = torch.arange(start, min(start + batch_size, len(self.training_set)))
            yield index, self.training_set.inputs(index, self.device)


class ParameterGroup(TypedDict):
    """A torch parameter group with what methods need to know: parameter names, and whether it belongs to the head."""

    params: list[nn.Parameter]
    names: list[str]
    weight_decay: float
    head: bool
