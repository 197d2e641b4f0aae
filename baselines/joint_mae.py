"""Fine-tuning that goes on reconstructing: cross-entropy and L_MAE in one loss (Lee et al. 2023, Eq. 2, used jointly).

| symbol                                          | here                                                      |
|-------------------------------------------------|-----------------------------------------------------------|
| CE(θ) + λ L_MAE(θ, φ)                           | `CrossEntropy() + MaskedAutoEncoding(weight=λ)`           |
| λ                                               | `joint_mae.mae_weight`, 1                                 |

The further pre-training of Algorithm 2, but at the same time as fine-tuning and on its batches: the same inputs are
seen whole for the labels and masked for the reconstruction, so with their flips and dropout. Ours; the paper has no
such row. As λ goes to 0 it becomes fine-tuning.
"""

from __future__ import annotations

import math

from baselines.finetune import finetune
from bench.methods import Cell, CrossEntropy, MaskedAutoEncoding, SpecError, Stage, recipe


@recipe()
def joint_mae(cell: Cell, mae_weight: float = 1.0) -> Stage:
    """Fine-tune and reconstruct at once."""
    if not (math.isfinite(mae_weight) and mae_weight > 0):
        raise SpecError(
            "mae_weight", f"joint_mae.mae_weight = {mae_weight}: must be above 0 (0 is finetune) and finite."
        )
    return finetune(cell, objective=CrossEntropy() + MaskedAutoEncoding(weight=mae_weight))
