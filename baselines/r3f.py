"""R3F: fine-tuning whose predictions must not change under noise on the embeddings (Aghajanyan et al. 2021).

| paper                                           | here                                                       |
|-------------------------------------------------|------------------------------------------------------------|
| x, the embeddings of an input                   | `Model.embed`: words or patches, before positions, no CLS  |
| z ~ N(0, σ²) or U(−σ, σ)                        | `draw_noise`; `R3F.noise`, `R3F.eps`                       |
| g∘f(x), g∘f(x + z)                              | clean and noised logits: two passes in train mode          |
| KL_S(p ‖ q) = KL(p ‖ q) + KL(q ‖ p)             | `symmetric_kl`: added, not halved                          |
| L(θ) + λ KL_S                                   | `R3F.loss`, λ = `R3F.strength`                             |

KL sums over classes and averages over the batch, in float32 or better. No label is used in the noised pass. Its
embeddings are detached, so the embedding table learns from the clean pass alone, while gradients flow through both
logits. Each pass draws its own dropout; without dropout, and at the default noise, KL_S is about 1e-11.

Defaults: λ = 1 and eps = 1e-5 are the released code's (its grid: λ in {0.1, 0.5, 1, 5}); noise is normal as in Lee et
al. (2023), who give no λ, no eps and no place for a ViT. Chosen here: patch embeddings, as words are for text. The
released RoBERTa model drops the noised embeddings on their way, so what it computes is two ordinary passes that differ
in dropout alone; `noise = 'none'` reproduces that (and is plain fine-tuning where there is no dropout).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from baselines.finetune import finetune
from bench.methods import NEGLIGIBLE, Activity, Batch, Cell, Context, Loss, Objective, Stage, State, recipe

if TYPE_CHECKING:
    from torch import Tensor

    from bench.interfaces.model import Model


def symmetric_kl(clean_logits: Tensor, noised_logits: Tensor) -> Tensor:
    """Return the symmetric KL divergence of logits (B, C).

    It is (1/B) Σ_b [KL(p_b ‖ q_b) + KL(q_b ‖ p_b)] of their softmax; gradients reach both.
    """
    import torch

    dtype = torch.promote_types(torch.promote_types(clean_logits.dtype, noised_logits.dtype), torch.float32)
    log_p, log_q = (logits.to(dtype).log_softmax(dim=-1) for logits in (clean_logits, noised_logits))
    # Σ p log(p/q) + Σ q log(q/p) = Σ (p − q)(log p − log q).
    # Both directions in one product, whose terms are never negative: nothing cancels where p and q nearly agree.
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(dim=-1).mean()


def draw_noise(embeddings: Tensor, kind: Literal["normal", "uniform"], eps: float) -> Tensor:
    """Draw noise: N(0, eps²) or uniform in [−eps, eps], float32 or better."""
    import torch

    # Half precision would round noise of 1e-5 away.
    dtype = torch.promote_types(embeddings.dtype, torch.float32)
    if kind == "normal":
        return eps * torch.randn_like(embeddings, dtype=dtype)
    return eps * (2 * torch.rand_like(embeddings, dtype=dtype) - 1)


@dataclass(frozen=True)
class R3F(Objective):
    """Cross-entropy, plus a penalty on predictions that noise changes.

    The penalty is `strength` times the symmetric KL divergence between a clean pass and a noised one. `eps` is the
    standard deviation or half the width of the noise; `noise` 'none' compares two passes that differ in dropout alone.
    """

    NEEDS = frozenset({"labels", "head"})
    CAPTURABLE = True

    strength: float = 1.0
    eps: float = 1e-5
    noise: Literal["normal", "uniform", "none"] = "normal"

    def check(self) -> None:
        self.require("strength", math.isfinite(self.strength) and self.strength >= 0, "0 or more, and finite")
        self.require("eps", 0 <= self.eps <= 1e6, "0 or more, at most a million")

    @property
    def whole_batch(self) -> bool:
        return self.noise != "none"  # noise is drawn for the batch

    def loss(self, model: Model, batch: Batch, state: State, context: Context) -> Loss:
        from torch.nn.functional import cross_entropy

        assert batch.labels is not None
        clean_logits = model.logits(batch.inputs)
        supervised = cross_entropy(clean_logits, batch.labels)
        # Only now may random numbers be drawn: the clean pass has the dropout of plain fine-tuning.
        divergence = symmetric_kl(clean_logits, self._noised_logits(model, batch))
        parts = {"cross_entropy": supervised, "symmetric_kl": divergence}
        return Loss(supervised + self.strength * divergence, parts)

    def _noised_logits(self, model: Model, batch: Batch) -> Tensor:
        if self.noise == "none":
            return model.logits(batch.inputs)
        embeddings = model.embed(batch.inputs).detach()
        return model.logits(batch.inputs, embeddings + draw_noise(embeddings, self.noise, self.eps))

    def activity(self, model: Model, batch: Batch, state: State, context: Context) -> dict[str, Activity]:
        """Measure what the noise does by itself, in eval mode, where no dropout hides it."""
        from torch.nn.functional import cross_entropy

        assert batch.labels is not None
        if self.noise == "none":
            model.train()  # two passes differ in dropout alone
        logits = model.logits(batch.inputs)
        supervised = float(cross_entropy(logits.double(), batch.labels))
        divergence = self.strength * float(symmetric_kl(logits, self._noised_logits(model, batch)))
        model.eval()
        share = divergence / max(supervised, NEGLIGIBLE)
        source = "the noise alone" if self.noise != "none" else "dropout"
        meaning = f"symmetric KL of {source}, relative to the cross-entropy"
        return {"R3F": Activity(share, meaning, share < NEGLIGIBLE)}


@recipe()
def r3f(cell: Cell) -> Stage:
    """Fine-tune from the pre-trained weights, smoothly around every training example."""
    return finetune(cell, objective=cell.configure(R3F()))
