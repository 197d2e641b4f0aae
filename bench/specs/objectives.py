"""The objectives and the optimiser that every method builds on; a method's own live in its file under baselines/."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from bench.errors import InputError
from bench.interfaces.hooks import Batch, Context, Loss, ParameterGroup, State
from bench.specs import Objective, Optimizer

if TYPE_CHECKING:
    import torch

    from bench.interfaces.model import Model


@dataclass(frozen=True)
class CrossEntropy(Objective):
    """The mean cross-entropy of the labels."""

    NEEDS = frozenset({"labels", "head"})
    CAPTURABLE = True

    def loss(self, model: Model, batch: Batch, state: State, context: Context) -> Loss:
        from torch.nn.functional import cross_entropy

        assert batch.labels is not None
        total = cross_entropy(model.logits(batch.inputs), batch.labels)
        return Loss(total, {"cross_entropy": total})


@dataclass(frozen=True)
class MaskedAutoEncoding(Objective):
    """L_MAE: reconstruct what was masked (Lee et al. 2023, Eq. 2).

    The normalisation is that of the released code. Images: mean squared error over the pixels of removed patches. Text:
    cross-entropy averaged over all selected tokens of the batch. `weight` is the λ of Table 6.
    """

    NEEDS = frozenset({"mask", "decoder"})
    CAPTURABLE = True

    weight: float = 1.0

    def check(self) -> None:
        legal = 0 < self.weight < float("inf")
        self.require("weight", legal, "above 0 and finite; to train without this loss, leave it out")

    def loss(self, model: Model, batch: Batch, state: State, context: Context) -> Loss:
        masked = model.masked_loss(batch.inputs, batch.mask)
        return Loss(self.weight * masked, {"masked": masked}, batch.mask_share)


@dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay (torch.optim.AdamW).

    Which roles decay is the backbone's to say. `fused` updates each tensor in one pass over its memory.
    """

    CAPTURABLE: ClassVar[bool] = True
    NEEDS_REFERENCE: ClassVar[bool] = False

    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    fused: bool = True

    def check(self) -> None:
        self.require("weight_decay", 0 <= self.weight_decay < math.inf, "0 or more, and finite")
        self.require("betas", all(0 <= beta < 1 for beta in self.betas), "two numbers in [0, 1)")
        # Averages of squares below 1e-45 are 0 in float32: with a smaller eps, Adam would divide by nothing.
        self.require("eps", 1e-20 <= self.eps < 1, "in [1e-20, 1)")

    def build(
        self, groups: list[ParameterGroup], reference: Mapping[str, torch.Tensor], total_steps: int
    ) -> torch.optim.Optimizer:
        import torch

        device = groups[0]["params"][0].device
        on_gpu = device.type == "cuda"
        # `prepare` sets the rate of every step. A GPU's fused kernel reads it in float32, a CPU rounds nothing away.
        rate = torch.zeros((), dtype=torch.float32 if on_gpu else torch.float64, device=device)
        try:
            return torch.optim.AdamW(
                [{**group, "lr": rate.clone()} for group in groups],  # decay per group was decided by parameter role
                betas=self.betas,
                eps=self.eps,
                weight_decay=self.weight_decay,
                fused=self.fused,
                capturable=on_gpu,
            )
        except RuntimeError as error:
            if not self.fused:
                raise
            raise InputError(
                f"AdamW.fused = True: torch {torch.__version__} has no fused AdamW for {device} ({error}). "
                "Set fused = False for these stages, as in finetune.fused = False."
            ) from error
