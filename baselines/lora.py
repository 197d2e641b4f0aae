"""LoRA: the weights stay, and a product of two thin matrices is added to each of a few (Hu et al. 2022).

| paper (Eq. 3)                                   | here                                                      |
|-------------------------------------------------|-----------------------------------------------------------|
| W_0 + ΔW = W_0 + (α / r) B A                    | `LowRank.forward`                                         |
| A normal, B = 0 at first                        | `LowRank.__init__`; A as torch initialises a linear layer  |
| r, α                                            | `LoRA.rank`, 8; `LoRA.alpha`, 16                          |
| W_q and W_v are adapted (section 7.1)           | `LoRA.targets`; the family's table `Model.ATTENTION`      |

Everything else of the encoder is frozen, embeddings, norms and biases too; the head is trained. The paper's dropout on
the adapter's input is left out, so that the sum can be one matrix in every pass; the released code's default for r = 8
is α = 16 in its language-understanding runs. Adapters are merged at the end: the weights that are kept have plain
names. With α = 0 the classifier is trained on frozen features (with dropout).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from baselines.finetune import finetune
from bench.methods import Activity, Cell, Constraint, Context, SpecError, Stage, State, recipe

if TYPE_CHECKING:
    from torch import Tensor

    from bench.interfaces.model import Model


@dataclass(frozen=True)
class LoRA(Constraint):
    """Freeze the encoder and train products of two thin matrices beside its attention matrices."""

    CAPTURABLE: ClassVar[bool] = True
    NEEDS_REFERENCE: ClassVar[bool] = False

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[Literal["query", "key", "value"], ...] = ("query", "value")

    def check(self) -> None:
        self.require("rank", 1 <= self.rank <= 10**6, "at least 1, at most a million")
        self.require("alpha", math.isfinite(self.alpha), "finite")
        self.require("targets", len(set(self.targets)) == len(self.targets) > 0, "one or more, each once")

    def check_stage(self, stage: Stage) -> None:
        if not stage.backbone.NAMES_ATTENTION:
            raise SpecError(
                "constraint",
                f"stage {stage.name}: LoRA adapts attention's matrices, and {type(stage.backbone).__name__}, the "
                f"backbone {stage.backbone.name}, does not say which they are: declare them in its network "
                "(Model.ATTENTION) and set NAMES_ATTENTION, or choose another backbone.",
            )

    def inject(self, model: Model) -> None:
        from bench.models.adapters import LowRank, adapt

        model.encoder.requires_grad_(False)
        weights = dict(model.named_parameters())
        attention = model.attention()
        if not attention:
            raise TypeError(f"NAMES_ATTENTION, but {type(model).__name__} has none of the matrices of Model.ATTENTION")
        for name, projections in attention.items():
            adapted = [projection in self.targets for projection in projections]
            if any(adapted):
                adapt(model, name, LowRank(weights[name], self.rank, self.alpha, adapted))

    def finish(self, model: Model, reference: Mapping[str, Tensor], state: State, context: Context) -> None:
        from bench.models.adapters import remove_adapters

        remove_adapters(model, merge=True)
        model.encoder.requires_grad_(True)

    def activity(
        self, model: Model, reference: Mapping[str, Tensor], state: State, context: Context
    ) -> dict[str, Activity]:
        from bench.models.adapters import LowRank

        changes = [module.change() for module in model.modules() if isinstance(module, LowRank)]
        moved = sum(float(change.square().sum()) for change in changes) ** 0.5
        return {"LoRA": Activity(moved, "‖ΔW‖ over all adapted matrices", moved == 0)}


@recipe()
def lora(cell: Cell) -> Stage:
    """Fine-tune thin matrices beside the frozen ones of attention."""
    return finetune(cell, constraint=cell.configure(LoRA()))
