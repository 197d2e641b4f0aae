"""Label smoothing and knowledge distillation, with a teacher or without (Kobyzev et al. 2023; Yuan et al. 2020).

| paper                                           | here                                                          |
|-------------------------------------------------|---------------------------------------------------------------|
| q, p, p_τ                                       | labels, softmax(student logits), softmax(student logits / τ)  |
| LS: H((1 − ε)·q + ε·u, p), u = 1/C              | `smoothed_cross_entropy`, `label_smoothing`                   |
| KD: (1 − α)·H(q, p) + α·τ²·KL(p_τ^t ‖ p_τ)      | `distillation_loss`, `kd`                                     |
| Self-KD, Tf-KD_self: t = the fine-tuned student | the same loss, `self_kd` and `tf_kd_self`                     |
| TF-reg: H((1 − α)·q + α·p^d, p)                 | `hard_virtual_teacher_loss`, `tf_kd_reg` with `form = 'hard'` |
| Tf-KD_reg: (1 − α)·H(q, p) + α·KL(p^d_τ ‖ p)    | `virtual_teacher_loss`, `tf_kd_reg`                           |
| p^d: a on the label, (1 − a)/(C − 1) elsewhere  | `VirtualTeacher.correct_probability`, 0.99                    |

C is the number of classes. What differs between Yuan et al.'s code and the textbook, and what is taken here:

- KL: the textbook sums over classes and averages over the batch (`kl_reduction='batchmean'`, the default everywhere);
  their code also divides by C ('mean') and multiplies by a `multiplier` of 1, 50 or 100. Their α, τ and multiplier
  belong to 'mean' and do not transfer.
- `self_kd` is the textbook form without either. `tf_kd_self` is the same method and shares its stages until
  `tf_kd_self.kl_reduction = 'mean'` and `tf_kd_self.multiplier` make it the published one; `kd.kl_reduction` likewise.
- KD without τ² (`Distillation.scale_by_temperature = False`) is what the summary of Kobyzev et al. writes.
- Virtual teacher: their code softens p^d by a softmax of probabilities, softmax(p^d/τ), and compares it with the
  student at temperature 1, without τ². That is the default; `VirtualTeacher.temper_student = True` tempers the student
  too, as the paper's equation does (still without τ²).
- Label smoothing: ε/C on all classes (Kobyzev et al. and torch, the default), or ε/(C − 1) on all but the label (Yuan
  et al., `LabelSmoothing.spread = 'others'`).

A virtual teacher is label smoothing under another name. The hard form *is* label smoothing with ε = α·(1 − a)·C/(C −
1): its target has 1 − α·(1 − a) on the label and α·(1 − a)/(C − 1) elsewhere, which is ε/C. Its strength can therefore
be set as `VirtualTeacher.epsilon`. So is the softened form, up to a constant, with the a of softmax(p^d/τ) in its
place. At τ 10 to 20 that teacher is nearly uniform and its ε nearly α: with α 0.1 and a 0.99, the targets of it and of
ε = α differ by less than 0.4 % of their length (0.36 % for two classes and τ 10, less for all others; the gradients at
a uniform prediction then differ by 0.54 %). A table's legend names the ε.

Defaults: ε 0.1. KD: α 0.5, τ 2, ours, as neither is known for Kobyzev et al. Virtual teacher: α 0.1, τ 20, a 0.99,
which Yuan et al. use for ResNet-18 on 100 classes, where their multiplier 100 and their division by C cancel.

Unstated and chosen here: the teacher runs in eval mode. It answers once per training example where the stage has no
augmentation, else for each batch, which it must then be able to read. `kd` fine-tunes its teacher from pre-trained
weights like the row `finetune`, whatever the student starts from (`kd.teacher_backbone`), or learns from another row of
the grid, such as a searched one on a larger backbone (`kd.teacher_row`). A student from random weights
(`finetune.init`) that should learn from its own kind names that kind's row: `self_kd.teacher_row`.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from baselines.finetune import finetune
from bench.methods import (
    PRETRAINED,
    Batch,
    Cell,
    Context,
    Loss,
    MaskedAutoEncoder,
    Objective,
    SpecError,
    Stage,
    State,
    TeacherOutput,
    added,
    nearest,
    recipe,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from bench.interfaces.model import Model

Reduction = Literal["batchmean", "mean"]


# ------------------------------------------------------------------------------------------------ the losses


def smoothed_cross_entropy(
    logits: Tensor, labels: Tensor, epsilon: float, spread: Literal["all", "others"] = "all"
) -> Tensor:
    """Return the cross-entropy of logits (B, C) with smoothed labels.

    A label gives away `epsilon` to all classes, or to all others.
    """
    from torch.nn.functional import cross_entropy

    # For ε = 0.1 and 4 classes, 'all' makes the label 0.925 and each other class 0.025; 'others' makes them 0.9 and
    # 0.0333, which is what torch's smoothing (always of all classes) gives for ε = 0.1333.
    classes = logits.shape[1]
    # What the others get of ε/C each is (C − 1)/C of ε.
    share = epsilon if spread == "all" else epsilon * classes / (classes - 1)
    return cross_entropy(logits, labels, label_smoothing=share)


def divergence(student: Tensor, teacher: Tensor, reduction: Reduction) -> Tensor:
    """Return KL(teacher ‖ student).

    `student` are log-probabilities, `teacher` probabilities, both (B, C); 'mean' divides by C as well as by B.
    """
    from torch.nn.functional import kl_div

    # Not torch's own 'mean', which is about to change its meaning.
    per_example = kl_div(student, teacher, reduction="batchmean")
    return per_example / student.shape[1] if reduction == "mean" else per_example


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    alpha: float,
    temperature: float,
    kl_reduction: Reduction = "batchmean",
    multiplier: float = 1.0,
    scale_by_temperature: bool = True,
) -> Tensor:
    """Return the distillation loss of logits (B, C).

    It is (1 − α)·CE + α·multiplier·τ²·KL(teacher_τ ‖ student_τ), without the τ² if so asked. No gradient reaches the
    teacher.
    """
    from torch.nn.functional import cross_entropy, log_softmax, softmax

    student = log_softmax(student_logits / temperature, dim=1)
    teacher = softmax(teacher_logits.detach() / temperature, dim=1)
    scale = temperature**2 if scale_by_temperature else 1.0
    distance = scale * divergence(student, teacher, kl_reduction)
    return (1 - alpha) * cross_entropy(student_logits, labels) + alpha * multiplier * distance


def virtual_teacher(labels: Tensor, classes: int, correct_probability: float, dtype: torch.dtype) -> Tensor:
    """Return p^d (B, C), the probabilities of a made-up teacher.

    It gives `correct_probability` to the label and spreads the rest evenly over the other classes.
    """
    import torch

    # For a = 0.97 and the labels [0, 2] of 4 classes: [[0.97, 0.01, 0.01, 0.01], [0.01, 0.01, 0.97, 0.01]].
    others = (1 - correct_probability) / (classes - 1)
    probabilities = torch.full((len(labels), classes), others, dtype=dtype, device=labels.device)
    return probabilities.scatter(1, labels[:, None], correct_probability)


def virtual_teacher_loss(
    student_logits: Tensor,
    labels: Tensor,
    alpha: float,
    temperature: float,
    correct_probability: float = 0.99,
    kl_reduction: Reduction = "batchmean",
    multiplier: float = 1.0,
    temper_student: bool = False,
) -> Tensor:
    """Return the loss against a made-up teacher.

    It is (1 − α)·CE + α·multiplier·KL(softmax(p^d/τ) ‖ student) of logits (B, C).
    """
    from torch.nn.functional import cross_entropy, log_softmax, softmax

    student = log_softmax(student_logits / (temperature if temper_student else 1.0), dim=1)
    teacher = virtual_teacher(labels, student_logits.shape[1], correct_probability, student.dtype)
    distance = divergence(student, softmax(teacher / temperature, dim=1), kl_reduction)
    return (1 - alpha) * cross_entropy(student_logits, labels) + alpha * multiplier * distance


def hard_virtual_teacher_loss(logits: Tensor, labels: Tensor, alpha: float, correct_probability: float) -> Tensor:
    """Return the cross-entropy of logits (B, C) against labels mixed with a made-up teacher.

    It is H((1 − α)·q + α·p^d, p).
    """
    from torch.nn.functional import cross_entropy, log_softmax

    student = log_softmax(logits, dim=1)
    teacher = virtual_teacher(labels, logits.shape[1], correct_probability, student.dtype)
    # H is linear in its target. In two terms, it is plain cross-entropy to the bit where α is 0.
    return (1 - alpha) * cross_entropy(logits, labels) - alpha * (teacher * student).sum(dim=1).mean()


def equal_smoothing(alpha: float, correct_probability: float, classes: int) -> float:
    """Return the ε of the label smoothing that the hard form is.

    Example: of 4 classes, α 0.5 and a 0.85 leave 0.5·0.15 = 0.075 to the three others, 0.025 each; ε 0.1 gives each of
    the four 0.025.
    """
    return alpha * (1 - correct_probability) * classes / (classes - 1)


# ------------------------------------------------------------------------------------------------ the objectives


@dataclass(frozen=True)
class LabelSmoothing(Objective):
    """Cross-entropy of smoothed labels.

    A label gives away `epsilon` to all classes, or to all others.
    """

    NEEDS = frozenset({"labels", "head"})
    CAPTURABLE = True

    epsilon: float = 0.1
    spread: Literal["all", "others"] = "all"

    def check(self) -> None:
        self.require("epsilon", 0 <= self.epsilon < 1, "in [0, 1)")

    def check_stage(self, stage: Stage) -> None:
        classes = stage.data.classes
        if self.spread == "others" and classes is not None:
            limit = 1 - 1 / classes
            self.require(
                "epsilon", self.epsilon < limit, f"below {limit:.4g}, where the label is no likelier than others"
            )

    def loss(self, model: Model, batch: Batch, state: State, context: Context) -> Loss:
        assert batch.labels is not None
        total = smoothed_cross_entropy(model.logits(batch.inputs), batch.labels, self.epsilon, self.spread)
        return Loss(total, {"smoothed_cross_entropy": total})


@dataclass(frozen=True)
class Distillation(Objective):
    """Learn from the labels and from a fine-tuned teacher's softened answers.

    The fields are parameters of `distillation_loss`.
    """

    NEEDS = frozenset({"labels", "head", "teacher"})
    CAPTURABLE = True
    UNBOUND: ClassVar[tuple[str, ...]] = ("kl_reduction", "multiplier")  # the recipes' own settings

    alpha: float = 0.5
    temperature: float = 2.0
    kl_reduction: Reduction = "batchmean"
    multiplier: float = 1.0
    scale_by_temperature: bool = added(True)

    def check(self) -> None:
        self.require("alpha", 0 <= self.alpha <= 1, "in [0, 1]")
        self.require("temperature", 1e-6 <= self.temperature <= 1e6, "from a millionth to a million")
        self.require("multiplier", 1e-6 <= self.multiplier <= 1e6, "from a millionth to a million")

    def check_stage(self, stage: Stage) -> None:
        teacher, data = stage.teacher, stage.data
        assert teacher is not None  # the stage's own check
        if "head" not in teacher.objective.needs:
            raise SpecError("teacher", f"stage {stage.name}: the teacher, {teacher.name}, was trained without classes.")
        if (teacher.data.task, teacher.data.classes) != (data.task, data.classes):
            theirs, own = (f"the {each.classes or 'unknown'} classes of {each.task}" for each in (teacher.data, data))
            raise SpecError(
                "teacher",
                f"stage {stage.name}: the teacher knows {theirs}, the student learns {own}; they must have the same "
                "label set.",
            )
        if stage.schedule.augmentation != "none" and not _read_alike(stage, teacher):
            raise SpecError(
                "augmentation",
                f"stage {stage.name}: augmented images of the student ({stage.backbone.name}) cannot be shown to a "
                f"teacher that reads another size ({teacher.backbone.name}); set finetune.augmentation = 'none'.",
            )

    def begin(self, model: Model, teacher: Model | None, context: Context) -> State:
        assert teacher is not None  # the stage's own check
        logits = TeacherOutput(teacher, context, lambda model, inputs: model.logits(inputs))
        return State(constants={"teacher": logits})

    def loss(self, model: Model, batch: Batch, state: State, context: Context) -> Loss:
        assert batch.labels is not None
        student, teacher = model.logits(batch.inputs), state.constants["teacher"].of(batch)
        total = distillation_loss(student, teacher, batch.labels, **dataclasses.asdict(self))
        return Loss(total, {"distillation": total})


def _read_alike(stage: Stage, teacher: Stage) -> bool:
    own, other = stage.backbone, teacher.backbone
    if isinstance(own, MaskedAutoEncoder) and isinstance(other, MaskedAutoEncoder):
        return own.image_size == other.image_size
    return own == other


@dataclass(frozen=True)
class VirtualTeacher(Objective):
    """Learn from the labels and a made-up teacher, nearly always right.

    The fields are parameters of `virtual_teacher_loss`, or in the hard form of `hard_virtual_teacher_loss`. That has no
    temperature, and its `alpha` may be set by `epsilon`, that of the label smoothing that it is.
    """

    NEEDS = frozenset({"labels", "head"})
    CAPTURABLE = True
    EXCLUSIVE: ClassVar[tuple[tuple[str, ...], ...]] = (("alpha", "epsilon"),)
    OF_SOFTENED: ClassVar[tuple[str, ...]] = ("temperature", "kl_reduction", "multiplier", "temper_student")

    alpha: float | None = 0.1
    temperature: float = 20.0
    correct_probability: float = 0.99
    kl_reduction: Reduction = "batchmean"
    multiplier: float = 1.0
    temper_student: bool = False
    form: Literal["softened", "hard"] = added("softened")
    epsilon: float | None = added(None)

    def check(self) -> None:
        softened = self.form == "softened"
        self.require("epsilon", self.epsilon is None or not softened, "None in the softened form: set alpha")
        if (self.alpha is None) == (self.epsilon is None):
            raise SpecError("epsilon", "VirtualTeacher: give alpha or epsilon, exactly one of them.")
        self.require("alpha", self.alpha is None or 0 <= self.alpha <= 1, "in [0, 1]")
        self.require("epsilon", self.epsilon is None or 0 <= self.epsilon < 1, "in [0, 1)")
        self.require("temperature", 1e-6 <= self.temperature <= 1e6, "from a millionth to a million")
        self.require("correct_probability", 0 < self.correct_probability <= 1, "in (1/classes, 1]")
        self.require("multiplier", 1e-6 <= self.multiplier <= 1e6, "from a millionth to a million")
        for name in self.OF_SOFTENED:
            default = getattr(VirtualTeacher, name)
            self.require(name, softened or getattr(self, name) == default, "left alone: the hard form has none")

    def check_stage(self, stage: Stage) -> None:
        classes = stage.data.classes
        if classes is None:
            return
        legal = self.correct_probability > 1 / classes
        self.require("correct_probability", legal, f"in (1/{classes}, 1]: the label must be likelier than others")
        if self.epsilon is not None:
            most = equal_smoothing(1.0, self.correct_probability, classes)
            cure = f"at most {most:.4g} with {classes} classes, or bind a lower VirtualTeacher.correct_probability"
            self.require("epsilon", self.epsilon <= most, cure)

    def mixing(self, classes: int) -> float:
        """Return α, which in the hard form may be given by ε."""
        if self.epsilon is None:
            assert self.alpha is not None  # held by check()
            return self.alpha
        # ε = 0 also with a = 1, which leaves the others nothing whatever α is.
        return self.epsilon / equal_smoothing(1.0, self.correct_probability, classes) if self.epsilon > 0 else 0.0

    def loss(self, model: Model, batch: Batch, state: State, context: Context) -> Loss:
        assert batch.labels is not None
        logits = model.logits(batch.inputs)
        alpha, settings = self.mixing(logits.shape[1]), {name: getattr(self, name) for name in self.OF_SOFTENED}
        if self.form == "hard":
            total = hard_virtual_teacher_loss(logits, batch.labels, alpha, self.correct_probability)
        else:
            total = virtual_teacher_loss(
                logits, batch.labels, alpha, correct_probability=self.correct_probability, **settings
            )
        return Loss(total, {"virtual_teacher": total})

    def remark(self, stage: Stage) -> str | None:
        """Name the label smoothing that this is.

        A tempered student, or a weight other than α, makes it something else.
        """
        classes = stage.data.classes
        if self.temper_student or self.kl_reduction != "batchmean" or self.multiplier != 1.0:
            return None
        if self.epsilon is not None:
            return f"label smoothing with epsilon {self.epsilon:.4g}"
        if classes is None:
            return "label smoothing under another name"
        assert self.alpha is not None  # held by check()
        correct, other = self.correct_probability, (1 - self.correct_probability) / (classes - 1)
        if self.form == "softened":  # of softmax(p^d/τ), by how much the label's entry exceeds the others'
            correct = 1 / (1 + (classes - 1) * math.exp((other - correct) / self.temperature))
        return f"label smoothing with epsilon {equal_smoothing(self.alpha, correct, classes):.4g} on {classes} classes"


# ------------------------------------------------------------------------------------------------ the methods


@recipe()
def label_smoothing(cell: Cell) -> Stage:
    """Fine-tune on smoothed labels."""
    return finetune(cell, objective=cell.configure(LabelSmoothing()))


@recipe()
def tf_kd_reg(cell: Cell) -> Stage:
    """Fine-tune with a made-up teacher."""
    return finetune(cell, objective=cell.configure(VirtualTeacher()))


@recipe()
def kd(
    cell: Cell,
    teacher_backbone: str | None = None,
    teacher_row: str | None = None,
    kl_reduction: Reduction = "batchmean",
) -> Stage:
    """Fine-tune with another, larger backbone as teacher: fine-tuned here, or by another row of the grid."""
    if teacher_row is None:
        teacher = finetune(_on_backbone(cell, teacher_backbone), init=PRETRAINED)
    elif teacher_backbone is None:
        teacher = cell.row(teacher_row)
    else:
        raise SpecError("teacher_row", "kd has one teacher: set kd.teacher_backbone or kd.teacher_row, not both.")
    objective = cell.configure(Distillation(kl_reduction=kl_reduction))
    return finetune(cell, objective=objective, teacher=teacher)


@recipe()
def self_kd(cell: Cell, teacher_row: str = "finetune") -> Stage:
    """Fine-tune with the same backbone as teacher, fine-tuned by another row of the grid; textbook distillation."""
    return finetune(cell, objective=cell.configure(Distillation()), teacher=cell.row(teacher_row))


@recipe()
def tf_kd_self(
    cell: Cell, teacher_row: str = "finetune", kl_reduction: Reduction = "batchmean", multiplier: float = 1.0
) -> Stage:
    """Like `self_kd`, with the reduction and the multiplier of the teacher-free paper's code to choose."""
    objective = cell.configure(Distillation(kl_reduction=kl_reduction, multiplier=multiplier))
    return finetune(cell, objective=objective, teacher=cell.row(teacher_row))


def _on_backbone(cell: Cell, name: str | None) -> Cell:
    """Return the cell on a teacher's backbone.

    Refuses a name that is missing, unknown or of another modality.
    """
    if name is not None and cell.fits(name):
        return cell.with_backbone(name)
    legal = nearest(name or "", cell.backbones())
    if name is None:
        raise SpecError("teacher_backbone", f"kd needs a teacher: set kd.teacher_row or kd.teacher_backbone.{legal}")
    what = f"a backbone that reads {cell.task.modality}s"
    raise SpecError("teacher_backbone", f"kd.teacher_backbone = {name!r}: must be {what}.{legal}")
