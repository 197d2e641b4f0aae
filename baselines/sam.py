"""SAM: follow the gradient at the worst nearby weights (Foret et al. 2021, Algorithm 1).

| paper                                           | here                                                      |
|-------------------------------------------------|-----------------------------------------------------------|
| ε̂(w) = ρ ∇L(w) / ‖∇L(w)‖₂                       | `SharpnessAware.perturb`                                  |
| g = ∇L(w + ε̂), the gradient that is followed     | the second pass of the loop, over the same micro-batches  |
| w ← w − η g                                     | AdamW's update, after `SharpnessAware.restore`            |
| ρ                                               | `SharpnessAware.rho`, 0.05                                |

ε̂ is that of the whole step's gradient over all trained weights, before clipping; only the second gradient is clipped.
Both passes draw the same dropout. ρ = 0.05 is the paper's default; its base optimiser is SGD, here it is fine-tuning's
AdamW. With ρ = 0 it is fine-tuning, at twice the cost. Refused outside float32 and float64: rounding would drown ε̂.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from baselines.finetune import finetune
from bench.methods import Activity, AdamW, Cell, Schedule, SpecError, Stage, recipe

if TYPE_CHECKING:
    import torch

BEFORE = "before"  # in a parameter group: its weights as they were before they were perturbed


@dataclass(frozen=True)
class SharpnessAware(AdamW):
    """AdamW that follows the gradient at the worst weights within `rho`."""

    SECOND_PASS: ClassVar[bool] = True

    rho: float = 0.05

    def check(self) -> None:
        super().check()
        self.require("rho", 0 <= self.rho <= 1e6, "0 or more, at most a million")

    def check_stage(self, stage: Stage) -> None:
        if stage.execution.precision not in ("float32", "float64"):
            raise SpecError(
                "precision",
                f"stage {stage.name}: {stage.execution.precision} rounds SAM's perturbation away; "
                "set precision to 'float32' or 'float64'.",
            )

    def perturb(self, optimizer: torch.optim.Optimizer) -> None:
        import torch

        gradients = [w.grad for group in optimizer.param_groups for w in group["params"] if w.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        scale = self.rho / norm.clamp(min=1e-12)
        for group in optimizer.param_groups:
            group[BEFORE] = [weight.clone() for weight in group["params"]]
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.add_(weight.grad * scale)

    def restore(self, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            for weight, before in zip(group["params"], group.pop(BEFORE), strict=True):
                weight.copy_(before)

    def activity(self, schedule: Schedule, total_steps: int) -> dict[str, Activity]:
        return {"SharpnessAware": Activity(self.rho, "length of the perturbation", self.rho == 0)}


@recipe()
def sam(cell: Cell) -> Stage:
    """Fine-tune towards weights whose neighbourhood is good, too."""
    return finetune(cell, optimizer=cell.configure(SharpnessAware(), "SharpnessAware", "finetune"))
