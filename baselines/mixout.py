"""Mixout: dropout that replaces weights by their start instead of by 0 (Lee, Cho & Kang 2020).

| paper (Eq. 5)                                   | here                                                      |
|-------------------------------------------------|-----------------------------------------------------------|
| w; u, the pre-trained weights                   | a matrix of the encoder, now and at the stage's start     |
| M, a mask of independent Bernoulli(p)           | drawn at every pass in training mode, for every weight    |
| (M u + (1 − M) w − p u) / (1 − p)               | `Mixed.forward` (`adapters`); its mean over M is w        |
| p                                               | `Mixout.rate`, 0.7                                        |

The paper tries p = 0.7, 0.8 and 0.9 with the pre-trained weights as u. The matrices of the encoder are mixed,
embeddings, biases and norms are not, and the head, which has no pre-trained weights, keeps its dropout. With p = 0 it
is fine-tuning. Each micro-batch draws its own mask, as it draws its own dropout. The released example turns the
encoder's dropout off; here it stays fine-tuning's own, and `mixout/finetune.dropout = 0` turns it off, the head's too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from baselines.finetune import finetune
from baselines.mars import kernels
from bench.methods import Activity, Cell, Constraint, Context, Stage, State, recipe

if TYPE_CHECKING:
    from torch import Tensor

    from bench.interfaces.model import Model


@dataclass(frozen=True)
class Mixout(Constraint):
    """Mix the encoder's matrices with their start at random in every training pass."""

    CAPTURABLE: ClassVar[bool] = True
    NEEDS_REFERENCE: ClassVar[bool] = False

    rate: float = 0.7

    def check(self) -> None:
        self.require("rate", 0 <= self.rate < 1, "in [0, 1)")

    def inject(self, model: Model) -> None:
        from bench.models.adapters import Mixed, adapt

        for name, weight in kernels(model).items():
            adapt(model, name, Mixed(weight.detach().clone(), self.rate))

    def finish(self, model: Model, reference: Mapping[str, Tensor], state: State, context: Context) -> None:
        from bench.models.adapters import remove_adapters

        remove_adapters(model, merge=False)

    def activity(
        self, model: Model, reference: Mapping[str, Tensor], state: State, context: Context
    ) -> dict[str, Activity]:
        return {"Mixout": Activity(self.rate, "share of weights that a pass replaces", self.rate == 0)}


@recipe()
def mixout(cell: Cell) -> Stage:
    """Fine-tune with weights that fall back to their start at random."""
    return finetune(cell, constraint=cell.configure(Mixout()))
