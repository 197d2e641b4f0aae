"""RecAdam: Adam on the task whose weights are pulled to their start, the task fading in (Chen et al. 2020).

| paper                                           | here                                                       |
|-------------------------------------------------|------------------------------------------------------------|
| θ*, the pre-trained weights                     | `reference`: the weights at the stage's start              |
| λ(t) = w / (1 + exp(−k (t − t0)))               | `annealing`; t counts a tensor's updates from 1            |
| k, t0                                           | `RecAdam.k`, `RecAdam.t0` (`midpoint` where it is None)    |
| γ, the pull to θ*                               | `RecAdam.gamma`                                            |
| w, "anneal_w" of the released code              | `RecAdam.w`                                                |
| the update (Algorithm 1)                        | `baselines/recadam_torch.py`                               |

With u the Adam update of the task's gradient (eps is added to the uncorrected √v), every backbone tensor goes through

    1. θ ← θ − λ(t) u            2. θ ← θ − lr (w − λ(t)) γ (θ − θ*)            3. θ ← θ − lr wd θ

in this order, each seeing what the one before left. λ scales the update, so Adam cannot cancel it; the pull bypasses
the moments and clipping. The head takes θ ← θ − u, then its decay; so does everything where w <= 0, which the released
code takes for plain Adam. Without the bias correction of the moments
(`correct_bias`, an option of the released code) u is lr m / (√v + eps).

Step 2 shrinks θ − θ* by the factor 1 − lr γ (w − λ): it diverges from lr γ w = 2 on, which the plan refuses. The anneal
'linear' is λ = w min(1, t / t0), 'constant' is λ = w, which leaves no pull at all.

Released defaults: γ 5000, w 1, k 0.5, t0 250, eps 1e-8; searched: k in {0.05, 0.1, 0.2, 0.5, 1}, t0 in {100, 250, 500}
on small tasks. The backbone is all but frozen until about t0, so t0 must fit the step budget. Lee et al. (2023) state
none of these. Chosen here: sigmoid, k 0.1, t0 = min(250, a quarter of all steps); betas, eps, decay and the tensors
that decay are fine-tuning's own (`RecAdam.…` wins over `finetune.…`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from baselines.finetune import finetune
from bench.methods import Activity, Cell, Optimizer, ParameterGroup, Schedule, SpecError, Stage, recipe

if TYPE_CHECKING:
    import torch


Anneal = Literal["sigmoid", "linear", "constant"]


def annealing(anneal: Anneal, step: int, *, k: float, t0: int, w: float) -> float:
    """Return λ(t), the weight of the task.

    `step` is the t of a tensor's update, counted from 1; λ rises from about 0 to `w`. For k = 0.1, t0 = 250 and w = 1,
    λ is about 0 at step 1, 0.5 at step 250 and 0.99 at step 300.
    """
    if anneal == "constant":
        return w
    if anneal == "linear":
        return w * min(1.0, step / t0)
    # A sigmoid around t0: half of w there, and nearly all of it 5 / k updates later.
    x = k * (step - t0)
    # The exponent is never positive, so nothing overflows however long the schedule.
    return w / (1 + math.exp(-x)) if x >= 0 else w * math.exp(x) / (1 + math.exp(x))


def midpoint(total_steps: int) -> int:
    """Return the default t0: 250, at most a quarter of the steps."""
    return max(1, min(250, total_steps // 4))


@dataclass(frozen=True)
class RecAdam(Optimizer):
    """Adam with recall: the backbone is pulled to its start.

    `gamma` is the strength of the pull, which fades as `anneal` lets the task in. `t0` None is a quarter of the stage's
    steps, at most 250. `w` of 0 or less is plain Adam without a pull.
    """

    VERSION: ClassVar[int] = 2
    CAPTURABLE: ClassVar[bool] = True

    anneal: Anneal = "sigmoid"
    k: float = 0.1
    t0: int | None = None
    gamma: float = 5000.0
    w: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    correct_bias: bool = True

    def check(self) -> None:
        self.require("k", math.isfinite(self.k) and self.k >= 0, "0 or more, and finite")
        first = 1 if self.anneal == "linear" else 0
        self.require("t0", self.t0 is None or self.t0 >= first, f"at least {first}, or None for a share of the steps")
        self.require("gamma", math.isfinite(self.gamma) and self.gamma >= 0, "0 or more, and finite")
        self.require("w", math.isfinite(self.w), "finite")
        self.require("betas", all(0 <= beta < 1 for beta in self.betas), "two numbers in [0, 1)")
        self.require("eps", 1e-20 <= self.eps < 1, "in [1e-20, 1)")
        legal = math.isfinite(self.weight_decay) and self.weight_decay >= 0
        self.require("weight_decay", legal, "0 or more, and finite")

    def check_stage(self, stage: Stage) -> None:
        if not self._pulls:  # nothing that could diverge, and no t0
            return
        lr = stage.schedule.lr
        product = lr * self.gamma * self.w
        if product >= 2:
            # The setting to blame is the one that was set; the learning rate if all of ours are the defaults.
            chosen = [name for name in ("gamma", "w") if getattr(self, name) != getattr(RecAdam, name)]
            raise SpecError(
                (chosen or ["lr"])[0],
                f"stage {stage.name}: RecAdam diverges, lr * gamma * w = {lr:g} * {self.gamma:g} * {self.w:g} = "
                f"{product:g} must be below 2 (from 1 on it overshoots). Lower one of them.",
            )
        steps = stage.schedule.steps
        if stage.data.size is not None:
            steps = stage.total_steps
        if self.t0 is not None and steps is not None:
            self.require("t0", self.t0 <= steps, f"at most the {steps} steps of stage {stage.name}")

    def warnings(self, stage: Stage) -> list[str]:
        steps = stage.schedule.steps if stage.data.size is None else stage.total_steps
        if steps is None or not self._pulls:
            return []
        t0, warmup = midpoint(steps) if self.t0 is None else self.t0, stage.schedule.warmup(steps)
        if t0 > warmup:
            return []
        return [f"RecAdam.t0 = {t0} lies within the {warmup} steps of warm-up: the pull fades while the rate is low"]

    @property
    def _pulls(self) -> bool:
        return self.anneal != "constant" and self.w > 0

    def activity(self, schedule: Schedule, total_steps: int) -> dict[str, Activity]:
        if not self._pulls:
            return {"RecAdam": Activity(0.0, "no pull: w <= 0, or the annealing is constant", nil=True)}
        t0 = midpoint(total_steps) if self.t0 is None else self.t0
        first, last = (annealing(self.anneal, t, k=self.k, t0=t0, w=self.w) for t in (1, total_steps))
        # The strongest pull of all steps: how much of the way to θ* an update takes back at the peak rate.
        pull = schedule.lr * (self.w - first) * self.gamma
        meaning = f"share of θ − θ* that an update takes back at first; λ goes from {first:.3g} to {last:.3g}"
        return {"RecAdam": Activity(pull, meaning, pull < 1e-6)}

    def build(
        self, groups: list[ParameterGroup], reference: Mapping[str, torch.Tensor], total_steps: int
    ) -> torch.optim.Optimizer:
        from baselines.recadam_torch import AnchoredAdam

        t0 = midpoint(total_steps) if self.t0 is None else self.t0
        return AnchoredAdam(
            groups,
            reference,
            task_weight=lambda step: annealing(self.anneal, step, k=self.k, t0=t0, w=self.w),
            w=self.w,
            gamma=self.gamma if self._pulls else 0.0,
            betas=self.betas,
            eps=self.eps,
            correct_bias=self.correct_bias,
        )

    def prepare(self, optimizer: torch.optim.Optimizer, step: int, lr: float) -> None:
        from baselines.recadam_torch import AnchoredAdam

        assert isinstance(optimizer, AnchoredAdam)  # what `build` made
        optimizer.prepare(step, lr)


@recipe()
def recadam(cell: Cell) -> Stage:
    """Fine-tune from the pre-trained weights, and recall them."""
    return finetune(cell, optimizer=cell.configure(RecAdam(), "RecAdam", "finetune"))
