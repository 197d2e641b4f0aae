"""Fine-tuning: cross-entropy on the labelled training set, every parameter trained.

| paper (Lee et al. 2023, section 5, Table 9)     | here                                         |
|-------------------------------------------------|----------------------------------------------|
| f_θ, linear head                                | `Model.encoder`, `Model.head`                |
| 10,000 steps, batch 32, lr 1e-4, decay 0.01     | `SCHEDULES["image"]`, `AdamW` defaults       |
| 10 epochs, batch 16, lr 2e-5 (text)             | `SCHEDULES["text"]`                          |

From the released image code, not in the paper: 500 warm-up steps, clipping at global norm 1.0, dropout 0.1, horizontal
flips, last step kept. Unstated for text and chosen here: 6 % warm-up, clipping at 1.0 (Gururangan et al. 2020), the
checkpoint's dropout, and batches of texts of similar lengths (as AllenNLP's bucket sampler makes them, which Gururangan
et al. used; every other stage draws its batches at random). Table 9's batch of 16 is taken over section 5's 32.
"""

from __future__ import annotations

from typing import Literal

from bench.methods import (
    PRETRAINED,
    AdamW,
    Cell,
    Constraint,
    CrossEntropy,
    Objective,
    Optimizer,
    Schedule,
    Stage,
    recipe,
)

SCHEDULES = {
    "image": Schedule(
        steps=10_000, batch_size=32, lr=1e-4, warmup_steps=500, clip_norm=1.0, dropout=0.1, augmentation="flip"
    ),
    "text": Schedule(epochs=10, batch_size=16, lr=2e-5, warmup_fraction=0.06, clip_norm=1.0, batching="length"),
}
OPTIMIZER, OBJECTIVE = AdamW(), CrossEntropy()


@recipe(Schedule, AdamW)
def finetune(
    cell: Cell,
    *,
    init: Stage | Literal["pretrained", "random"] = PRETRAINED,
    objective: Objective | None = None,
    optimizer: Optimizer | None = None,
    constraint: Constraint | None = None,
    teacher: Stage | None = None,
    head: Literal["carried", "fresh"] | None = None,
) -> Stage:
    """Fine-tune on the cell's labelled data; methods pass an objective, optimiser or constraint of their own.

    Where the stage `init` trained a classifier, `head` says whether it goes on with that one.
    """
    return cell.stage(
        "finetune",
        objective=objective or OBJECTIVE,
        schedule=cell.configure(SCHEDULES[cell.task.modality], "finetune"),
        optimizer=optimizer or cell.configure(OPTIMIZER, "finetune"),
        constraint=constraint,
        init=init,
        teacher=teacher,
        head=head,
    )
