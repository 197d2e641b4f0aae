"""What self-distillation owes to each of its parts: the rows of Table 3 (Lee et al. 2023, section 5.3).

Every student starts from the pre-trained weights and trains like a round of self-distillation, under the same stage
name, so on the same batches and masks; its teacher is `further_pretrain`, the very stage that tapt fine-tunes.

| paper (Table 3)                                 | here                                                           |
|-------------------------------------------------|----------------------------------------------------------------|
| w/o L_MAE: L_Distill alone (λ = 0)              | `self_distillation_without_mae`; no decoder is built or trained |
| w/o L_Distill: L_MAE alone                      | `self_distillation_without_distill`: the stages of tapt        |
| Further Pre-train × 2                           | `tapt_x2`: twice the steps or epochs, one schedule             |
| Prediction-Matching, ViT                        | `prediction_matching`, `prediction_distance`                   |
|   L_MAE + ‖g_φ f_θ(x̂) − g_φ0 f_θ0(x̂)‖²         |                                                                |
| Prediction-Matching, RoBERTa                    | `prediction_matching`, `prediction_divergence`                 |
|   L_MAE + Σ_t KL(p_θ0,φ0 ‖ p_θ,φ)               |                                                                |
| Weight-Matching L2: L_MAE + ‖θ − θ0‖²           | `weight_matching_l2`, `squared_distance`                       |
| Weight-Matching MARS:                           | `weight_matching_mars`, `mars_penalty`                         |
|   L_MAE + Σ_layers max_j ‖W_j − U_j‖₁           |                                                                |

No code was released for these rows. Unstated and chosen here: x̂ is masked alike for teacher and student; pixels are
compared on removed patches only and averaged over their values like L_MAE; distributions are compared at selected
tokens, at temperature 1, averaged over them; the teacher keeps its decoder and runs in eval mode, while the student's
predictions come from a pass of their own, for text with dropout of its own; the L2 distance is
squared and taken over every trainable encoder tensor; the MARS distance is summed over encoder matrices, without
embeddings, as the official penalty sums over kernels; every added loss has `weight` 1; the doubled budget is
one long schedule, since the released script has one step count as its only knob.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from baselines.finetune import finetune
from baselines.mars import kernels, mars_distance
from baselines.self_distillation import require_same_architecture, self_distill
from baselines.tapt import further_pretrain, tapt
from bench.methods import Batch, Cell, Context, Loss, MaskedAutoEncoding, Objective, SpecError, Stage, State, recipe

if TYPE_CHECKING:
    from torch import Tensor

    from bench.interfaces.model import Model

Pair = tuple["Tensor", "Tensor"]


# ------------------------------------------------------------------------------------------------ distances


def prediction_distance(student: Tensor, teacher: Tensor, removed: Tensor) -> Tensor:
    """Return the mean squared distance of predicted pixels.

    Predictions are (B, K, values): the mean is taken over values, then over removed patches of the batch. `removed` (B,
    K) is 1 where a patch was removed, else 0; no gradient reaches the teacher.
    """
    from bench.models.image import reconstruction_loss

    return reconstruction_loss(student, teacher.detach(), removed)


def prediction_divergence(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Return KL(softmax teacher ‖ softmax student) of logits (n, V).

    It is summed over the vocabulary and averaged over `valid` rows. `valid` (n,) is true where a row is a selected
    token; where none is, the result is 0, with a graph. No gradient reaches the teacher.
    """
    from torch.nn.functional import kl_div, log_softmax

    divergence = kl_div(
        log_softmax(student, dim=-1), log_softmax(teacher.detach(), dim=-1), reduction="none", log_target=True
    )
    # A row that is no selected token counts 0 here and not in the divisor, which is at least 1: 0 / 0 never occurs.
    return divergence.sum(dim=-1).masked_fill(~valid, 0.0).sum() / valid.sum().clamp(min=1)


def squared_distance(pairs: Iterable[Pair]) -> Tensor:
    """Return ‖θ − θ0‖² over pairs (θ, θ0); no gradient reaches θ0."""
    import torch

    return torch.stack([(student - teacher.detach()).square().sum() for student, teacher in pairs]).sum()


def mars_penalty(pairs: Iterable[Pair]) -> Tensor:
    """Return Σ max_j Σ_i |W_ji − U_ji|, summed over pairs (W, U).

    No gradient reaches U.
    """
    import torch

    return torch.stack([mars_distance(student, teacher.detach()) for student, teacher in pairs]).sum()


# ------------------------------------------------------------------------------------------------ objectives


class Matching(Objective):
    """What the student matches of its teacher.

    Every subclass is a dataclass with a field `weight` of its own.
    """

    # No dataclass itself, so `weight` is no field here: gin files bind it under the names of the subclasses alone.
    CAPTURABLE = True

    weight: float

    def check(self) -> None:
        self.require("weight", math.isfinite(self.weight) and self.weight >= 0, "0 or more, and finite")

    def check_stage(self, stage: Stage) -> None:
        require_same_architecture(stage)


@dataclass(frozen=True)
class PredictionMatching(Matching):
    """Move the student's predictions towards the teacher's, from the same masked input."""

    NEEDS = frozenset({"mask", "decoder", "teacher"})

    weight: float = 1.0

    def check_stage(self, stage: Stage) -> None:
        super().check_stage(stage)
        if stage.teacher is not None and "decoder" not in stage.teacher.objective.needs:
            raise SpecError("teacher", f"the teacher {stage.teacher.name} has no decoder whose predictions to match.")

    def begin(self, model: Model, teacher: Model | None, context: Context) -> State:
        assert teacher is not None  # the stage's own check
        return State(constants={"teacher": teacher})

    def loss(self, model: Model, batch: Batch, state: State, context: Context) -> Loss:
        import torch

        with torch.no_grad():
            target = state.constants["teacher"].masked_predictions(batch.inputs, batch.mask)
        predictions = model.masked_predictions(batch.inputs, batch.mask)
        if model.modality == "image":
            distance = prediction_distance(predictions, target, batch.mask.removed)
        else:
            distance = prediction_divergence(predictions, target, batch.mask.valid)
        return Loss(self.weight * distance, {"predictions": distance}, batch.mask_share)


class WeightMatching(Matching):
    """Move the student's weights towards the teacher's.

    `begin` of a subclass chooses the tensors and the distance between them.
    """

    NEEDS = frozenset({"teacher"})

    def loss(self, model: Model, batch: Batch, state: State, context: Context) -> Loss:
        from bench.models.adapters import kept_weights

        students, teachers = kept_weights(model), state.constants["teachers"]
        distance = state.constants["distance"]([(students[name], teachers[name]) for name in teachers])
        return Loss(self.weight * distance, {"weights": distance})


@dataclass(frozen=True)
class WeightMatchingL2(WeightMatching):
    """Move the student's trainable encoder tensors towards the teacher's: squared L2 distance."""

    weight: float = 1.0

    def begin(self, model: Model, teacher: Model | None, context: Context) -> State:
        from bench.models.adapters import kept_weights

        weights = kept_weights(model).items()
        trained = [name for name, weight in weights if name.startswith("encoder.") and weight.requires_grad]
        return _matching(teacher, trained, squared_distance)


@dataclass(frozen=True)
class WeightMatchingMARS(WeightMatching):
    """Move the student's encoder matrices towards the teacher's.

    The distance is the largest row of absolute differences, per matrix.
    """

    weight: float = 1.0

    def begin(self, model: Model, teacher: Model | None, context: Context) -> State:
        assert teacher is not None  # the stage's own check
        # The teacher's, since the student's matrices may have adapters beside them.
        return _matching(teacher, kernels(teacher), mars_penalty)


def _matching(teacher: Model | None, names: Iterable[str], distance: Callable[[Iterable[Pair]], Tensor]) -> State:
    """Return the state that matches the weights of these names to the teacher's."""
    assert teacher is not None  # the stage's own check
    # θ0 by name: student and teacher are networks of one architecture, which the stage has checked.
    weights = dict(teacher.named_parameters())
    return State(constants={"teachers": {name: weights[name].detach() for name in names}, "distance": distance})


# ------------------------------------------------------------------------------------------------ recipes


@recipe()
def self_distillation_without_mae(cell: Cell) -> Stage:
    """Match the teacher's features and reconstruct nothing (λ = 0): the decoder is left out."""
    return finetune(cell, init=self_distill(cell, further_pretrain(cell), mae_weight=0.0))


@recipe()
def self_distillation_without_distill(cell: Cell) -> Stage:
    """Reconstruct and match nothing: that is tapt, whose stages it shares."""
    return tapt(cell)


@recipe()
def tapt_x2(cell: Cell) -> Stage:
    """Further pre-train for twice the budget, then fine-tune."""
    return finetune(cell, init=further_pretrain(cell, times=2))


@recipe()
def prediction_matching(cell: Cell) -> Stage:
    """Reconstruct and match the teacher's predictions of what is masked."""
    return _replaced(cell, cell.configure(PredictionMatching()))


@recipe()
def weight_matching_l2(cell: Cell) -> Stage:
    """Reconstruct and stay near the teacher's weights in squared L2 distance."""
    return _replaced(cell, cell.configure(WeightMatchingL2()))


@recipe()
def weight_matching_mars(cell: Cell) -> Stage:
    """Reconstruct and stay near the teacher's weights in MARS distance."""
    return _replaced(cell, cell.configure(WeightMatchingMARS()))


def _replaced(cell: Cell, matching: Objective) -> Stage:
    """Replace L_Distill in one round of self-distillation, then fine-tune.

    `matching` is the loss that takes its place.
    """
    student = self_distill(cell, further_pretrain(cell), objective=MaskedAutoEncoding() + matching)
    return finetune(cell, init=student)
