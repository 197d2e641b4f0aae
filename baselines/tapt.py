"""Further pre-training on the task's unlabelled training set, then fine-tuning (TAPT, Gururangan et al. 2020).

| paper (Lee et al. 2023, Algorithm 2)            | here                                         |
|-------------------------------------------------|----------------------------------------------|
| (θ_init, φ_init)                                | `init=PRETRAINED`: encoder and decoder       |
| L_MAE(θ, φ)                                     | `MaskedAutoEncoding()`                       |
| (θ_0, φ_0), the result                          | the stage `further_pretrain`                 |
| 20,000 steps, batch 64, lr 1.5e-4               | `SCHEDULES["image"]`                         |
| 100 epochs, batch 128, lr 1e-4 (text)           | `SCHEDULES["text"]`                          |

From the released image code: no warm-up, no clipping, no augmentation, Adam betas (0.9, 0.95). Unstated for text and
chosen here: no warm-up, no clipping, Adam betas (0.9, 0.98).
"""

from __future__ import annotations

import dataclasses

from baselines.finetune import finetune
from bench.methods import AdamW, Cell, MaskedAutoEncoding, Schedule, Stage, declare, recipe

SCHEDULES = {
    "image": Schedule(steps=20_000, batch_size=64, lr=1.5e-4, dropout=0.0),
    "text": Schedule(epochs=100, batch_size=128, lr=1e-4),
}
OPTIMIZERS = {"image": AdamW(betas=(0.9, 0.95)), "text": AdamW(betas=(0.9, 0.98))}

declare("further_pretrain", Schedule, AdamW)


def further_pretrain(cell: Cell, times: int = 1) -> Stage:
    """Continue masked auto-encoding on the unlabelled training set (Algorithm 2).

    `times` multiplies the budget of steps or epochs.
    """
    modality = cell.task.modality
    schedule = cell.configure(SCHEDULES[modality], "further_pretrain")
    # A schedule has steps or epochs, and the other one is None.
    budget = {name: times * value for name in ("steps", "epochs") if (value := getattr(schedule, name)) is not None}
    return cell.stage(
        "further_pretrain",
        objective=MaskedAutoEncoding(),
        schedule=schedule if times == 1 else dataclasses.replace(schedule, **budget),
        optimizer=cell.configure(OPTIMIZERS[modality], "further_pretrain"),
    )


@recipe()
def tapt(cell: Cell) -> Stage:
    """Fine-tune from the further pre-trained encoder."""
    return finetune(cell, init=further_pretrain(cell))
