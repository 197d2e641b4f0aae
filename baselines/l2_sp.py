"""L2-SP: fine-tuning with weight decay towards the start instead of the origin (Li et al. 2018).

| paper (section 3, "L2-SP")                      | here                                                      |
|-------------------------------------------------|-----------------------------------------------------------|
| w⁰, the pre-trained weights; w_S, those shared  | the encoder, at the stage's start and now                 |
| w_S̄, the weights of the new task alone          | the head                                                  |
| Ω(w) = α/2 ‖w_S − w⁰‖² + β/2 ‖w_S̄‖²             | `L2SP.loss`, added to the cross-entropy                   |
| α, β                                            | `L2SP.alpha`, `L2SP.beta`                                 |

The paper selects α on held-out data and fixes β = 0.01, which is the default here; α = 0.1, of its range, is ours. The
penalty takes the place of the optimiser's own decay towards 0, which this row leaves out; with α = β = 0 it is
fine-tuning without decay. Unlike decoupled decay the penalty is a loss: Adam scales its gradient with that of the task.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from baselines.finetune import OPTIMIZER, finetune
from bench.methods import Batch, Cell, Context, CrossEntropy, Loss, Objective, Stage, State, recipe

if TYPE_CHECKING:
    from bench.interfaces.model import Model


@dataclass(frozen=True)
class L2SP(Objective):
    """The squared distance of the encoder from its start, and the squared norm of the head."""

    NEEDS = frozenset({"labels", "head"})
    CAPTURABLE = True

    alpha: float = 0.1
    beta: float = 0.01

    def check(self) -> None:
        for name in ("alpha", "beta"):
            self.require(name, math.isfinite(getattr(self, name)) and getattr(self, name) >= 0, "0 or more, and finite")

    def begin(self, model: Model, teacher: Model | None, context: Context) -> State:
        from bench.models.adapters import kept_weights

        weights = kept_weights(model).items()
        shared = {name: weight for name, weight in weights if name.startswith("encoder.") and weight.requires_grad}
        return State(constants={"start": {name: weight.detach().clone() for name, weight in shared.items()}})

    def loss(self, model: Model, batch: Batch, state: State, context: Context) -> Loss:
        import torch

        from bench.models.adapters import kept_weights

        assert model.head is not None
        # With adapters, w_S is the weight with what they add to it.
        now, start = kept_weights(model), state.constants["start"]
        distance = torch.stack([(now[name] - start[name]).square().sum() for name in start]).sum()
        norm = torch.stack([parameter.square().sum() for parameter in model.head.parameters()]).sum()
        total = self.alpha / 2 * distance + self.beta / 2 * norm
        return Loss(total, {"l2_sp": total})


@recipe()
def l2_sp(cell: Cell) -> Stage:
    """Fine-tune with decay towards the pre-trained weights."""
    optimizer = cell.configure(OPTIMIZER, "finetune", weight_decay=0.0)
    return finetune(cell, objective=CrossEntropy() + cell.configure(L2SP()), optimizer=optimizer)
