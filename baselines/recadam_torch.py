"""The update rule of RecAdam as a torch optimiser; the formulas and their source stand in `baselines/recadam.py`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from bench.hooks import ParameterGroup


class AnchoredAdam(torch.optim.Optimizer):
    """Adam that pulls every tensor outside the head to its value in `reference`.

    `task_weight` is λ(t) of the t-th update of a tensor, from 1. The learning rate and the decay are the groups' own.
    The anchors are no part of the optimiser's state: `reference` holds the stage's first weights after a restart too.
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

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every tensor that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group["lr"], group["weight_decay"])
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, lr: float, weight_decay: float) -> None:
        state: dict[str, Any] = self.state[parameter]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        step, mean, square = state["step"], state["exp_avg"], state["exp_avg_sq"]
        (beta1, beta2), rate = self.betas, lr
        mean.mul_(beta1).add_(gradient, alpha=1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        if self.correct_bias:
            rate *= math.sqrt(1 - beta2**step) / (1 - beta1**step)
        # Unlike torch's Adam, eps joins the square root before its bias is corrected.
        denominator = square.sqrt().add_(self.eps)

        anchor = self.anchors.get(parameter)
        task = 1.0 if anchor is None else self.task_weight(step)
        parameter.addcdiv_(mean, denominator, value=-rate * task)
        if anchor is not None:
            parameter.sub_(parameter - anchor, alpha=lr * (self.w - task) * self.gamma)
        if weight_decay:
            parameter.mul_(1 - lr * weight_decay)
