"""The update rule of RecAdam as a torch optimiser; the formulas and their source stand in `baselines/recadam.py`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from bench.methods import ParameterGroup

NUMBERS = ("step_size", "pull", "kept")
"""Of one update: the rate of Adam's step, the strength of the pull, and the share that weight decay leaves."""


class AnchoredAdam(torch.optim.Optimizer):
    """Adam that pulls every tensor outside the head to `reference`.

    Each is pulled to its own value there. `task_weight` is λ(t) of the t-th update, from 1. The decay is the groups'
    own. The anchors are no part of the optimiser's state: `reference` holds the stage's first weights after a restart
    too.
    """

    def __init__(
        self,
        groups: list[ParameterGroup],
        reference: Mapping[str, Tensor],
        *,
        task_weight: Callable[[int], float],
        w: float,
        gamma: float,
        betas: tuple[float, float],
        eps: float,
        correct_bias: bool,
    ) -> None:
        super().__init__([dict(group) for group in groups], {"lr": 0.0, "weight_decay": 0.0})
        self.task_weight, self.w, self.gamma = task_weight, w, gamma
        self.betas, self.eps, self.correct_bias = betas, eps, correct_bias
        self.anchors: dict[Tensor, Tensor] = {
            parameter: reference[name]
            for group in groups
            if not group["head"]
            for name, parameter in zip(group["names"], group["params"], strict=True)
        }
        for group in self.param_groups:
            like = group["params"][0]
            # The step-dependent numbers of an update, on the device: what is recorded there reads them anew each time.
            group.update({name: torch.zeros((), dtype=like.dtype, device=like.device) for name in NUMBERS})

    def prepare(self, step: int, lr: float) -> None:
        """Set the numbers of the update of `step` (from 0).

        `lr` is its learning rate; they are computed in float64.
        """
        update = step + 1
        (beta1, beta2), rate = self.betas, lr
        if self.correct_bias:
            rate *= math.sqrt(1 - beta2**update) / (1 - beta1**update)
        for group in self.param_groups:
            task = 1.0 if group["head"] or self.w <= 0 else self.task_weight(update)
            scale = group.get("rate_scale", 1.0)
            group["step_size"].fill_(scale * rate * task)
            group["pull"].fill_(scale * lr * (self.w - task) * self.gamma)
            group["kept"].fill_(1 - scale * lr * group["weight_decay"])

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every tensor that has a gradient.

        The numbers are those that `prepare` set.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._update(group, parameters)
        return loss

    def _update(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        """Update the tensors of a group once.

        Each foreach operation is applied to the whole list at once.
        """
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
        means = [self.state[parameter]["exp_avg"] for parameter in parameters]
        squares = [self.state[parameter]["exp_avg_sq"] for parameter in parameters]
        beta1, beta2 = self.betas
        torch._foreach_mul_(means, beta1)
        torch._foreach_add_(means, gradients, alpha=1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - beta2)

        # Step 1: `changes` is λ u, as `step_size` holds the learning rate, its bias correction and λ.
        # Unlike torch's Adam, eps joins the square root before its bias is corrected.
        denominators = torch._foreach_sqrt(squares)
        torch._foreach_add_(denominators, self.eps)
        changes = torch._foreach_div(means, denominators)
        torch._foreach_mul_(changes, group["step_size"])
        torch._foreach_sub_(parameters, changes)
        if not group["head"]:
            ways = torch._foreach_sub(parameters, [self.anchors[parameter] for parameter in parameters])
            torch._foreach_mul_(ways, group["pull"])
            torch._foreach_sub_(parameters, ways)
        # Step 3, with 1 − lr wd in `kept`; step 2 above has lr (w − λ) γ in `pull`.
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, group["kept"])
