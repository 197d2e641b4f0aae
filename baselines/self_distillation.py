"""Self-distillation for further pre-training (Lee et al. 2023, Algorithm 1, Eq. 3).

| paper                                           | here                                                    |
|-------------------------------------------------|---------------------------------------------------------|
| f_θ(x)                                          | `Model.features`: CLS after the final norm, x unmasked   |
| f_θ0(x), stop-gradient                          | teacher features, cached once per training example       |
| L_Distill(θ) = E ‖f_θ(x) − f_θ0(x)‖²₂           | `feature_distance`: sum over features, mean over batch   |
| L_MAE(θ, φ) + L_Distill(θ)                      | `MaskedAutoEncoding() + FeatureMatching()`               |
| T' rounds                                       | `self_distillation.rounds`                               |
| λ (Table 6), 0 for "w/o L_MAE" (Table 3)        | `self_distillation.mae_weight`; 0 leaves the decoder out |
| θ_init, φ_init at the start of every round      | `init=PRETRAINED` (the default of a stage)               |

Unstated and chosen here: for text the matched vector is the last hidden state of the first token; the teacher runs in
eval mode while the student keeps its dropout. A round trains like further pre-training unless `self_distill.…` says
otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from baselines.finetune import finetune
from baselines.tapt import OPTIMIZERS, SCHEDULES, further_pretrain
from bench.methods import (
    AdamW,
    Batch,
    Cell,
    Context,
    Loss,
    MaskedAutoEncoding,
    Objective,
    Schedule,
    SpecError,
    Stage,
    State,
    TeacherOutput,
    declare,
    recipe,
)

if TYPE_CHECKING:
    from torch import Tensor

    from bench.interfaces.model import Model


def feature_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return (1/B) Σ_b ‖student_b − teacher_b‖²₂ of features (B, D).

    It is L_Distill of Eq. 3; no gradient reaches the teacher.
    """
    return (student - teacher.detach()).square().sum(dim=-1).mean()


def require_same_architecture(stage: Stage) -> None:
    """Refuse a teacher that is built otherwise than the student.

    Its features, predictions or weights would have another shape.
    """
    if stage.teacher is not None and stage.teacher.backbone.random != stage.backbone.random:
        student, teacher = stage.backbone.name, stage.teacher.backbone.name
        raise SpecError("teacher", f"stage {stage.name}: the teacher ({teacher}) must be built like {student}.")


@dataclass(frozen=True)
class FeatureMatching(Objective):
    """Move the student's features of the unmasked input towards the teacher's (L_Distill)."""

    NEEDS = frozenset({"teacher"})
    CAPTURABLE = True

    def check_stage(self, stage: Stage) -> None:
        require_same_architecture(stage)

    def begin(self, model: Model, teacher: Model | None, context: Context) -> State:
        assert teacher is not None  # the stage's own check
        features = TeacherOutput(teacher, context, lambda model, inputs: model.features(inputs))
        return State(constants={"teacher": features})

    def loss(self, model: Model, batch: Batch, state: State, context: Context) -> Loss:
        distance = feature_distance(model.features(batch.inputs), state.constants["teacher"].of(batch))
        return Loss(distance, {"distill": distance})


declare("self_distill", Schedule, AdamW)


def self_distill(
    cell: Cell, teacher: Stage, round: int = 1, mae_weight: float = 1.0, objective: Objective | None = None
) -> Stage:
    """Build one round of self-distillation.

    A new student from (θ_init, φ_init) learns to reconstruct and to match the teacher's features. With `mae_weight` 0
    it only matches them, and has no decoder. `objective` takes the place of both losses.
    """
    if objective is None:
        matching = FeatureMatching()
        objective = MaskedAutoEncoding(weight=mae_weight) + matching if mae_weight else matching
    modality = cell.task.modality
    return cell.stage(
        f"self_distill_{round}",
        objective=objective,
        schedule=cell.configure(SCHEDULES[modality], "self_distill", "further_pretrain"),
        optimizer=cell.configure(OPTIMIZERS[modality], "self_distill", "further_pretrain"),
        teacher=teacher,
    )


@recipe()
def self_distillation(cell: Cell, rounds: int = 1, mae_weight: float = 1.0) -> Stage:
    """Algorithm 1: further pre-train a teacher, distil it `rounds` times into fresh students, fine-tune the last one.

    `mae_weight` is the λ of Table 6 and applies to the students only, so every λ shares one teacher.
    """
    if not 1 <= rounds <= 100:
        raise SpecError("rounds", f"self_distillation.rounds = {rounds}: must be at least 1 (0 is tapt), at most 100.")
    if not (math.isfinite(mae_weight) and mae_weight >= 0):
        raise SpecError(
            "mae_weight", f"self_distillation.mae_weight = {mae_weight}: must be above 0, or 0 for no L_MAE."
        )
    # Two rounds: further_pretrain teaches self_distill_1, which teaches self_distill_2, which is fine-tuned. Only the
    # teacher moves on; every student starts from the pre-trained weights.
    teacher = further_pretrain(cell)
    for round in range(1, rounds + 1):
        teacher = self_distill(cell, teacher, round, mae_weight)
    return finetune(cell, init=teacher)
