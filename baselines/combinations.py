"""Methods on top of methods: a combination is a composition of stages, with no class of its own.

| combination                                     | stages here                                              |
|-------------------------------------------------|----------------------------------------------------------|
| further pre-training, then R3F (Aghajanyan)     | `finetune(init=further_pretrain, objective=R3F)`         |
| self-distillation, then MARS (Gouk)             | `finetune(init=self_distill, constraint=MarsProjection)` |

Neither is in the papers. The radius of MARS is around the weights that fine-tuning starts from, so here around the
student's, not around θ_init.
"""

from __future__ import annotations

from baselines.finetune import finetune
from baselines.mars import MarsProjection
from baselines.r3f import R3F
from baselines.self_distillation import self_distill
from baselines.tapt import further_pretrain
from bench.methods import Cell, Stage, recipe


@recipe()
def tapt_r3f(cell: Cell) -> Stage:
    """Further pre-training, then fine-tuning with R3F."""
    return finetune(cell, init=further_pretrain(cell), objective=cell.configure(R3F()))


@recipe()
def self_distillation_mars(cell: Cell) -> Stage:
    """One round of self-distillation, then fine-tuning within the MARS ball around the student."""
    student = self_distill(cell, teacher=further_pretrain(cell))
    return finetune(cell, init=student, constraint=cell.configure(MarsProjection()))
