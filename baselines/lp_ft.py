"""LP-FT: train the classifier alone first, then everything from there (Kumar et al. 2022).

| paper (section 3.4)                             | here                                                      |
|-------------------------------------------------|-----------------------------------------------------------|
| linear probing: v_lp, with the features frozen  | the stage `linear_probe`, `Probe`                         |
| fine-tuning from (v_lp, B_0)                    | `finetune` with `head='carried'`                          |

Linear probing trains like fine-tuning unless `linear_probe.…` says otherwise; its features are read without dropout and
its classifier is the backbone's own, which for text has a hidden layer. With one step of probing it is fine-tuning from
a head that took one step.
"""

from __future__ import annotations

from baselines.finetune import OPTIMIZER, SCHEDULES, finetune
from baselines.supcon import Probe
from bench.methods import AdamW, Cell, Schedule, Stage, declare, recipe

declare("linear_probe", Schedule, AdamW)


def linear_probe(cell: Cell) -> Stage:
    """Train the classifier on features that stay what they are."""
    return cell.stage(
        "linear_probe",
        objective=Probe(),
        schedule=cell.configure(SCHEDULES[cell.task.modality], "linear_probe", "finetune"),
        optimizer=cell.configure(OPTIMIZER, "linear_probe", "finetune"),
    )


@recipe()
def lp_ft(cell: Cell) -> Stage:
    """Linear probing, then fine-tuning from its classifier."""
    return finetune(cell, init=linear_probe(cell), head="carried")
