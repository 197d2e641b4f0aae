"""WiSE-FT: halfway between the weights before and after fine-tuning (Wortsman et al. 2022).

| paper (section 3)                               | here                                                      |
|-------------------------------------------------|-----------------------------------------------------------|
| θ_0, θ_1: zero-shot and fine-tuned weights      | the weights at the stage's start and after its last step  |
| (1 − α) θ_0 + α θ_1                             | `WeightInterpolation.finish`                              |
| α                                               | `WeightInterpolation.alpha`, 0.5, the paper's advice      |

The paper starts from a zero-shot classifier. Here the head is random at first, so only the encoder is interpolated and
the head stays as it was trained, unless the stage goes on with a classifier that was trained before. With α = 1 it is
fine-tuning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from baselines.finetune import finetune
from bench.methods import Activity, Cell, Constraint, Context, Stage, State, recipe

if TYPE_CHECKING:
    from torch import Tensor

    from bench.interfaces.model import Model


@dataclass(frozen=True)
class WeightInterpolation(Constraint):
    """Move the weights back towards their start, once, after the last step."""

    CAPTURABLE: ClassVar[bool] = True

    alpha: float = 0.5

    def check(self) -> None:
        self.require("alpha", 0 <= self.alpha <= 1, "in [0, 1]")

    def finish(self, model: Model, reference: Mapping[str, Tensor], state: State, context: Context) -> None:
        import torch

        interpolated = ("encoder.", "head.") if context.head_carried else ("encoder.",)
        for name, weight in model.named_parameters():
            if name.startswith(interpolated):
                weight.copy_(torch.lerp(reference[name], weight, self.alpha))

    def activity(
        self, model: Model, reference: Mapping[str, Tensor], state: State, context: Context
    ) -> dict[str, Activity]:
        way = 1 - self.alpha
        return {"WeightInterpolation": Activity(way, "share of the way that is taken back at the end", way == 0)}


@recipe()
def wise_ft(cell: Cell) -> Stage:
    """Fine-tune, then go part of the way back."""
    return finetune(cell, constraint=cell.configure(WeightInterpolation()))
