"""Fine-tuning whose result is an average of its weights over the steps (Tarvainen & Valpola 2017).

| source                                          | here                                                      |
|-------------------------------------------------|-----------------------------------------------------------|
| θ'_t = d θ'_{t−1} + (1 − d) θ_t                 | `WeightAverage.apply`, after every step                   |
| d, the decay                                    | `WeightAverage.decay`, 0.99                               |

The average starts at 0 and is divided by 1 − d^T at the end (as Adam corrects its moments), so that the start has no
weight of its own: with T steps, step t counts (1 − d) d^(T−t) / (1 − d^T). With d = 0 the result is the last step's.
Tarvainen & Valpola use 0.99 and 0.999; the smaller one fits budgets of a few hundred steps. Training itself does not
see the average; what is evaluated, saved, and taught from is the average.
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
class WeightAverage(Constraint):
    """Keep the exponential moving average of all trained weights."""

    CAPTURABLE: ClassVar[bool] = True
    NEEDS_REFERENCE: ClassVar[bool] = False

    decay: float = 0.99

    def check(self) -> None:
        self.require("decay", 0 <= self.decay < 1, "in [0, 1)")

    def begin(self, model: Model, reference: Mapping[str, Tensor], context: Context) -> State:
        import torch

        trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        return State(tensors={name: torch.zeros_like(weight) for name, weight in trained.items()})

    def apply(self, model: Model, reference: Mapping[str, Tensor], state: State, context: Context) -> None:
        import torch

        weights = dict(model.named_parameters())
        averages = list(state.tensors.values())
        torch._foreach_lerp_(averages, [weights[name] for name in state.tensors], 1 - self.decay)

    def finish(self, model: Model, reference: Mapping[str, Tensor], state: State, context: Context) -> None:
        for name, weight in model.named_parameters():
            if name in state.tensors:
                weight.copy_(state.tensors[name] / (1 - self.decay**context.total_steps))

    def activity(
        self, model: Model, reference: Mapping[str, Tensor], state: State, context: Context
    ) -> dict[str, Activity]:
        weights, scale = dict(model.named_parameters()), 1 - self.decay**context.total_steps
        moved = sum(float((weights[name] - mean / scale).square().sum()) for name, mean in state.tensors.items()) ** 0.5
        return {"WeightAverage": Activity(moved, "distance of the average from the last step's weights", moved == 0)}


@recipe()
def ema(cell: Cell) -> Stage:
    """Fine-tune, and keep the average of the weights over the steps."""
    return finetune(cell, constraint=cell.configure(WeightAverage()))
