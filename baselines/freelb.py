"""FreeLB: fine-tuning on inputs that are moved to where the loss is greater (Zhu et al. 2020, Algorithm 1).

| paper                                           | here                                                      |
|-------------------------------------------------|-----------------------------------------------------------|
| X, the word embeddings; δ_0 uniform in a box    | `Model.embed`; `FreeLB.start`: its length, per example    |
| K ascent steps; the mean of their K gradients   | `FreeLB.ascents`, 3; the mean of their K losses           |
| δ_t = Π(δ_{t−1} + α g / ‖g‖_F), g = ∇_δ L        | `FreeLB.rate` α, 0.1; `FreeLB.radius`, None for no bound   |

Norms are those of one example's whole perturbation; padding is not perturbed, as in the released code. Defaults lie in
its ranges (α 0.03 to 0.1, K 2 to 3, no bound). The paper keeps one dropout mask for the K passes of a batch; here each
pass draws its own. For images δ is added to the patch embeddings, before positions. With K = 1 and no start it is
fine-tuning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from baselines.finetune import finetune
from bench.methods import NEGLIGIBLE, Activity, Batch, Cell, Context, Loss, Objective, Stage, State, recipe

if TYPE_CHECKING:
    from torch import Tensor

    from bench.interfaces.model import Inputs, Model


@dataclass(frozen=True)
class FreeLB(Objective):
    """The mean cross-entropy along an ascent over perturbed embeddings."""

    NEEDS = frozenset({"labels", "head"})
    CAPTURABLE = True
    WHOLE_BATCH = True  # δ_0 is drawn for the batch

    ascents: int = 3
    rate: float = 0.1
    start: float = 0.1
    radius: float | None = None

    def check(self) -> None:
        self.require("ascents", 1 <= self.ascents <= 1000, "at least 1, at most 1000")
        for name in ("rate", "start"):
            self.require(name, 0 <= getattr(self, name) <= 1e6, "0 or more, at most a million")
        legal = self.radius is None or 1e-6 <= self.radius <= 1e6
        self.require("radius", legal, "from a millionth to a million, or None")

    def loss(self, model: Model, batch: Batch, state: State, context: Context) -> Loss:
        import torch

        losses = torch.stack(self._ascent(model, batch))
        return Loss(losses.mean(), {"cross_entropy": losses[0], "after_ascent": losses[-1]})

    def _ascent(self, model: Model, batch: Batch) -> list[Tensor]:
        """Return the losses at δ_0, …, δ_{K−1}."""
        import torch
        from torch.nn.functional import cross_entropy

        assert batch.labels is not None
        losses: list[Tensor] = []
        with torch.enable_grad():  # an ascent follows gradients also where the activity of a sum is measured
            embeddings = model.embed(batch.inputs)
            delta = self._first(embeddings, batch.inputs)
            for number in range(self.ascents):
                delta = delta.detach().requires_grad_()
                losses.append(cross_entropy(model.logits(batch.inputs, embeddings + delta), batch.labels))
                if number < self.ascents - 1:
                    delta = self._moved(delta, torch.autograd.grad(losses[-1], delta, retain_graph=True)[0])
        return losses

    def _first(self, embeddings: Tensor, inputs: Inputs) -> Tensor:
        """Draw δ_0, of about the length `start` for each example."""
        import torch

        if not self.start:
            return torch.zeros_like(embeddings)
        # Padding is not perturbed: else a short text's own tokens would be moved less beside a long one than alone.
        present = torch.ones_like(embeddings)
        present = present * inputs["attention_mask"][..., None] if isinstance(inputs, dict) else present
        # A vector of n numbers uniform in [−1, 1] is about √(n / 3) long.
        box = self.start * (3 / present.sum(dim=(1, 2), keepdim=True)).sqrt()
        return box * present * (2 * torch.rand_like(embeddings) - 1)

    def _moved(self, delta: Tensor, gradient: Tensor) -> Tensor:
        delta = delta.detach() + self.rate * gradient / _lengths(gradient).clamp(min=1e-12)
        return delta if self.radius is None else delta * (self.radius / _lengths(delta)).clamp(max=1)

    def activity(self, model: Model, batch: Batch, state: State, context: Context) -> dict[str, Activity]:
        """Measure how far the last perturbation, that of the whole ascent, moves the loss of the clean inputs."""
        from torch.nn.functional import cross_entropy

        assert batch.labels is not None
        clean = cross_entropy(model.logits(batch.inputs), batch.labels).item()
        share = abs(self._ascent(model, batch)[-1].item() - clean) / max(clean, NEGLIGIBLE)
        meaning = "what the perturbation changes of the cross-entropy, relative to it"
        return {"FreeLB": Activity(share, meaning, share < NEGLIGIBLE)}


def _lengths(values: Tensor) -> Tensor:
    """Return the length of each example's perturbation (B, 1, 1)."""
    return values.square().sum(dim=(1, 2), keepdim=True).sqrt()


@recipe()
def freelb(cell: Cell) -> Stage:
    """Fine-tune on inputs that are moved against the loss."""
    return finetune(cell, objective=cell.configure(FreeLB()))
