"""Label smoothing and distillation: the losses against released code, what the teacher is, and what is refused."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from baselines.label_regularization import (
    Distillation,
    LabelSmoothing,
    VirtualTeacher,
    distillation_loss,
    equal_smoothing,
    hard_virtual_teacher_loss,
    smoothed_cross_entropy,
    virtual_teacher,
    virtual_teacher_loss,
)
from bench import grid
from bench.errors import InputError, SpecError
from bench.interfaces.examples import Examples
from bench.models.build import build
from bench.planning.plan import Plan, make_plan
from bench.planning.registry import BACKBONES
from bench.specs import Data, Objective, Schedule, Selected, Stage
from bench.specs.objectives import CrossEntropy
from bench.store.store import Store
from bench.training.batches import Batches
from bench.training.checkpoint import Checkpoints
from bench.training.loop import Supervision, train
from tests.examples import finetuning, tiny_backbone
from tests.golden_files import cases, compare, tensor

GOLDEN = "kd_label_regularization"
CPU = torch.device("cpu")


# ------------------------------------------------------------------------------------------------ golden numbers


def golden_loss(case: dict[str, Any], logits: Tensor, **changes: Any) -> Tensor:
    """The project's loss with the case's settings, as the released code has it unless changed."""
    hyper, labels = case["hyper"], torch.tensor(case["inputs"]["labels"])
    if hyper["loss"] == "label_smoothing":
        return smoothed_cross_entropy(logits, labels, hyper["alpha"], **{"spread": "others", **changes})
    multiplier = 1.0 if hyper["multiplier"] is None else hyper["multiplier"]
    settings = {"kl_reduction": "mean", "multiplier": multiplier, **changes}
    if hyper["loss"] == "tfkd_reg":
        constants = hyper["alpha"], hyper["temperature"], hyper["correct_prob"]
        return virtual_teacher_loss(logits, labels, *constants, **settings)
    assert hyper["loss"] in ("kd", "tfkd_self")
    teacher = tensor(case["inputs"]["teacher_logits"])
    return distillation_loss(logits, teacher, labels, hyper["alpha"], hyper["temperature"], **settings)


# Output of the generator -> the project's settings that give it instead of the released code's.
VARIANTS: dict[str, dict[str, Any]] = {
    "textbook_loss_batchmean": {"kl_reduction": "batchmean"},
    "variant_batchmean_untempered_student": {"kl_reduction": "batchmean"},
    "variant_batchmean_tempered_student": {"kl_reduction": "batchmean", "temper_student": True},
    "torch_style_label_smoothing_0.1": {"spread": "all"},
}


@pytest.mark.golden
def test_losses_and_gradients_are_the_released_codes_and_their_options_the_alternatives() -> None:
    for case in cases(GOLDEN):
        logits, outputs = tensor(case["inputs"]["student_logits"]).requires_grad_(), case["outputs"]
        loss = golden_loss(case, logits)
        compare(GOLDEN, case, "loss", loss, outputs["loss"])
        (gradient,) = torch.autograd.grad(loss, logits)
        compare(GOLDEN, case, "grad_student_logits", gradient, outputs["grad_student_logits"])
        for output, changes in VARIANTS.items():
            if output in outputs:
                compare(GOLDEN, case, output, golden_loss(case, logits, **changes), outputs[output])
        if "virtual_teacher" in outputs:
            labels, classes = torch.tensor(case["inputs"]["labels"]), logits.shape[1]
            made = virtual_teacher(labels, classes, case["hyper"]["correct_prob"], torch.float64)
            compare(GOLDEN, case, "virtual_teacher", made, outputs["virtual_teacher"])


@pytest.mark.golden
def test_the_defaults_are_the_textbooks() -> None:
    for case in cases(GOLDEN):
        logits, labels = tensor(case["inputs"]["student_logits"]), torch.tensor(case["inputs"]["labels"])
        hyper, outputs = case["hyper"], case["outputs"]
        if hyper["loss"] == "kd":
            teacher = tensor(case["inputs"]["teacher_logits"])
            loss = distillation_loss(logits, teacher, labels, hyper["alpha"], hyper["temperature"])
            compare(GOLDEN, case, "default", loss, outputs["textbook_loss_batchmean"])
    assert (Distillation().kl_reduction, Distillation().multiplier) == ("batchmean", 1.0)
    assert (VirtualTeacher().kl_reduction, VirtualTeacher().temper_student) == ("batchmean", False)
    assert LabelSmoothing().spread == "all"


# ------------------------------------------------------------------------------------------------ one method, two names

CLASSES = [2, 3, 5, 13, 100]


def with_gradient(loss: Callable[[Tensor], Tensor], logits: Tensor) -> tuple[Tensor, Tensor]:
    leaf = logits.clone().requires_grad_()
    value = loss(leaf)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


def random_logits(classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(classes)
    logits = 3 * torch.randn(16, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (16,), generator=generator)


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize(("alpha", "correct"), [(0.1, 0.99), (0.5, 0.9), (1.0, 0.9), (0.0, 0.95)])
def test_the_hard_virtual_teacher_is_label_smoothing(classes: int, alpha: float, correct: float) -> None:
    logits, labels = random_logits(classes)
    epsilon = alpha * (1 - correct) * classes / (classes - 1)
    assert equal_smoothing(alpha, correct, classes) == pytest.approx(epsilon, rel=1e-15)
    hard = with_gradient(lambda x: hard_virtual_teacher_loss(x, labels, alpha, correct), logits)
    # The published target, written out, and torch's label smoothing.
    q = torch.nn.functional.one_hot(labels, classes).double()
    target = (1 - alpha) * q + alpha * virtual_teacher(labels, classes, correct, torch.float64)
    for other in (
        with_gradient(lambda x: torch.nn.functional.cross_entropy(x, target), logits),
        with_gradient(lambda x: smoothed_cross_entropy(x, labels, epsilon), logits),
    ):
        torch.testing.assert_close(hard, other, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("classes", CLASSES)
def test_the_strength_of_the_hard_form_can_be_set_as_epsilon(classes: int) -> None:
    by_epsilon = VirtualTeacher(alpha=None, epsilon=0.1, correct_probability=0.9, form="hard")
    alpha = by_epsilon.mixing(classes)
    assert equal_smoothing(alpha, 0.9, classes) == pytest.approx(0.1, rel=1e-14)
    assert 0 < alpha <= 1
    assert VirtualTeacher(alpha=None, epsilon=0.0, correct_probability=1.0, form="hard").mixing(classes) == 0.0


def test_the_softened_virtual_teacher_is_nearly_the_uniform_one() -> None:
    """The target at the default α and a differs by less than 0.4 % of its length from that of ε = α."""
    furthest = {}
    for classes in range(2, 201):
        for temperature in (10.0, 15.0, 20.0):
            teacher = torch.softmax(virtual_teacher(torch.tensor([0]), classes, 0.99, torch.float64) / temperature, 1)
            q = torch.nn.functional.one_hot(torch.tensor([0]), classes).double()
            target, smoothed = 0.9 * q + 0.1 * teacher, 0.9 * q + 0.1 / classes
            furthest[classes, temperature] = float((target - smoothed).norm() / smoothed.norm())
    assert max(furthest, key=lambda key: furthest[key]) == (2, 10.0)
    assert 0.0035 < furthest[2, 10.0] < 0.004


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("temperature", [1.0, 10.0, 20.0])
def test_the_softened_one_is_label_smoothing_too_at_the_epsilon_that_legends_name(
    classes: int, temperature: float
) -> None:
    logits, labels = random_logits(classes)
    stage = stage_of(CrossEntropy(), data=dataclasses.replace(TEACHER.data, classes=classes))
    remark = VirtualTeacher(alpha=0.3, temperature=temperature).remark(stage)
    assert remark is not None
    epsilon = float(remark.split()[-4])
    softened = with_gradient(lambda x: virtual_teacher_loss(x, labels, 0.3, temperature), logits)
    smoothed = with_gradient(lambda x: smoothed_cross_entropy(x, labels, epsilon), logits)
    # The values differ by the teacher's entropy. A legend names four digits of ε.
    torch.testing.assert_close(softened[1], smoothed[1], rtol=0, atol=1e-5)


def test_what_is_no_label_smoothing_says_nothing() -> None:
    stage = stage_of(CrossEntropy())
    hard = VirtualTeacher(alpha=None, epsilon=0.05, correct_probability=0.9, form="hard")
    assert hard.remark(stage) == "label smoothing with epsilon 0.05"
    tempered, weighted = VirtualTeacher(temper_student=True), VirtualTeacher(multiplier=2.0)
    for other in (tempered, weighted, Distillation(), CrossEntropy(), CrossEntropy() + hard):
        assert other.remark(stage) is None
    unprepared = stage_of(CrossEntropy(), data=dataclasses.replace(TEACHER.data, classes=None))
    assert VirtualTeacher().remark(unprepared) == "label smoothing under another name"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"epsilon": 0.1}, "epsilon"),
        ({"epsilon": 0.1, "form": "hard"}, "epsilon"),
        ({"alpha": None}, "epsilon"),
        ({"alpha": None, "epsilon": 1.0, "form": "hard"}, "epsilon"),
        ({"form": "hard", "temperature": 2.0}, "temperature"),
        ({"form": "hard", "temper_student": True}, "temper_student"),
        ({"form": "hard", "multiplier": 2.0}, "multiplier"),
        ({"form": "hard", "kl_reduction": "mean"}, "kl_reduction"),
    ],
)
def test_settings_of_the_other_form_are_refused(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError) as caught:
        VirtualTeacher(**fields)
    assert caught.value.field == field


def test_distillation_without_the_square_of_the_temperature() -> None:
    logits, labels = random_logits(5)
    teacher = logits.flip(0)
    plain, scaled, unscaled = (
        distillation_loss(logits, teacher, labels, alpha, 4.0, scale_by_temperature=scale)
        for alpha, scale in ((0.0, True), (1.0, True), (1.0, False))
    )
    student, target = torch.log_softmax(logits / 4, 1), torch.softmax(teacher / 4, 1)
    torch.testing.assert_close(unscaled, (target * (target.log() - student)).sum(1).mean())
    torch.testing.assert_close(scaled, 16 * unscaled)
    assert distillation_loss(logits, teacher, labels, 0.0, 4.0, scale_by_temperature=False) == plain


def test_no_gradient_reaches_the_teacher() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(4, 3, generator=generator, requires_grad=True) for _ in range(2))
    distillation_loss(student, teacher, torch.tensor([0, 1, 2, 0]), 0.5, 2.0).backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert teacher.grad is None


# ------------------------------------------------------------------------------------------------ in the loop


class Pictures(Examples):
    """Random images with labels that counts how often it is read."""

    def __init__(self, size: int = 8) -> None:
        super().__init__(np.arange(22), torch.arange(22) % 10, None)
        self._images = torch.randn(22, 3, size, size, generator=torch.Generator().manual_seed(0))

    def inputs(self, index: Tensor, device: torch.device, flip: Tensor | None = None) -> Tensor:
        images = self._images[index]
        return images if flip is None else torch.where(flip[:, None, None, None], images.flip(3), images)


TEACHER = finetuning(seed=4)


def stage_of(objective: Objective, augmentation: str = "none", **changes: Any) -> Stage:
    schedule = Schedule(steps=7, batch_size=8, lr=1e-2, clip_norm=1.0, dropout=0.2, augmentation=augmentation)  # type: ignore[arg-type]
    teacher = TEACHER if "teacher" in objective.needs else None
    return finetuning(**{"objective": objective, "schedule": schedule, "teacher": teacher, **changes})


def trained(stage: Stage, folder: Path, asked: Callable[[int], None] = lambda count: None) -> dict[str, Tensor]:
    """The weights after the stage; `asked` hears how many examples the teacher was shown at each of its answers."""
    teacher = None
    if stage.teacher is not None:
        torch.manual_seed(5)
        teacher = build(stage.teacher.backbone, classes=10, dropout=0.5).requires_grad_(False).eval()
        answer = teacher.logits
        teacher.logits = lambda inputs: (asked(len(inputs)), answer(inputs))[1]  # type: ignore[method-assign]
    torch.manual_seed(1)
    model = build(stage.backbone, classes=10, dropout=stage.schedule.dropout)
    supervision = Supervision(lambda: False, Checkpoints(folder), 1000, lambda step: None, lambda step, loss: None)
    examples = Pictures()
    size = stage.teacher.backbone.image_size if stage.teacher is not None else 8  # type: ignore[attr-defined]
    train(stage, model, teacher, Batches(stage, examples, model, CPU), supervision, Pictures(size))
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


INERT = {
    "smoothing": (LabelSmoothing(epsilon=0.0), LabelSmoothing()),
    "smoothing others": (LabelSmoothing(epsilon=0.0, spread="others"), LabelSmoothing(spread="others")),
    "distillation": (Distillation(alpha=0.0), Distillation()),
    "virtual": (VirtualTeacher(alpha=0.0), VirtualTeacher()),
    "virtual, hard": (VirtualTeacher(alpha=0.0, form="hard"), VirtualTeacher(form="hard")),
}


@pytest.mark.parametrize("augmentation", ["none", "flip"])
@pytest.mark.parametrize("name", INERT)
def test_at_strength_zero_it_is_plain_fine_tuning_bit_for_bit(name: str, augmentation: str, tmp_path: Path) -> None:
    off, on = INERT[name]
    plain = trained(stage_of(CrossEntropy(), augmentation), tmp_path / "plain")
    assert equal(plain, trained(stage_of(off, augmentation), tmp_path / "off"))
    assert not equal(plain, trained(stage_of(on, augmentation), tmp_path / "on"))


OPTIONS = [
    LabelSmoothing(),
    LabelSmoothing(epsilon=0.2),
    LabelSmoothing(spread="others"),
    Distillation(),
    Distillation(alpha=0.6),
    Distillation(temperature=4.0),
    Distillation(kl_reduction="mean"),
    Distillation(multiplier=2.0),
    Distillation(scale_by_temperature=False),
    VirtualTeacher(),
    VirtualTeacher(alpha=0.2),
    VirtualTeacher(temperature=1.0),
    VirtualTeacher(correct_probability=0.9),
    VirtualTeacher(kl_reduction="mean"),
    VirtualTeacher(multiplier=2.0),
    VirtualTeacher(temper_student=True),
    VirtualTeacher(form="hard"),
    VirtualTeacher(form="hard", alpha=0.2),
    VirtualTeacher(form="hard", alpha=None, epsilon=0.05, correct_probability=0.9),
]


def test_every_setting_changes_what_is_learned(tmp_path: Path) -> None:
    heads = [trained(stage_of(option), tmp_path / str(i))["head.weight"] for i, option in enumerate(OPTIONS)]
    for i, head in enumerate(heads):
        assert not any(torch.equal(head, other) for other in heads[:i]), OPTIONS[i]


def test_the_teacher_is_asked_once_without_augmentation_and_for_every_batch_with_it(tmp_path: Path) -> None:
    shown: list[int] = []
    cached = trained(stage_of(Distillation()), tmp_path / "a", shown.append)
    assert shown == [22]
    shown.clear()
    flipped = trained(stage_of(Distillation(), "flip"), tmp_path / "b", shown.append)
    assert shown == [8, 8, 6, 8, 8, 6, 8]
    assert not equal(cached, flipped)


def test_a_teacher_that_reads_other_inputs_teaches_only_without_augmentation(tmp_path: Path) -> None:
    large = tiny_backbone(name="large", image_size=16, weights=TEACHER.backbone.weights)
    teacher = dataclasses.replace(TEACHER, backbone=large)
    shown: list[int] = []
    trained(stage_of(Distillation(), teacher=teacher), tmp_path, shown.append)
    assert shown == [22]
    with pytest.raises(SpecError, match="another size") as caught:
        stage_of(Distillation(), "flip", teacher=teacher)
    assert caught.value.field == "augmentation"
    wide = dataclasses.replace(TEACHER, backbone=dataclasses.replace(TEACHER.backbone, width=32))  # type: ignore[call-arg]
    assert stage_of(Distillation(), "flip", teacher=wide).teacher == wide


def test_teacher_and_student_must_have_one_label_set() -> None:
    other = Data("letters", "train", True, "3" * 64, 50, 10)
    fewer = Data("digits", "train", True, "3" * 64, 50, 9)
    for data in (other, fewer):
        with pytest.raises(SpecError, match="the same label set") as caught:
            stage_of(Distillation(), teacher=dataclasses.replace(TEACHER, data=data))
        assert caught.value.field == "teacher"
    unlabelled = TEACHER.backbone.weights
    with pytest.raises(SpecError, match="without classes"):
        stage_of(Distillation(), teacher=unlabelled)


# ------------------------------------------------------------------------------------------------ in a grid


@pytest.fixture
def wide_backbones(monkeypatch: pytest.MonkeyPatch) -> None:
    """A larger backbone for each modality; the image one reads larger images."""

    def larger(builder: Callable[..., Any], name: str, **sizes: int) -> Callable[[Any], Any]:
        def build_larger(cell: Any) -> Any:
            small = builder(cell)
            architecture = dataclasses.replace(small, name=name, weights=None, **sizes)
            weights = cell.stage(
                "source_pretrain",
                objective=small.weights.objective,
                schedule=small.weights.schedule,
                optimizer=small.weights.optimizer,
                init="random",
                backbone=architecture,
                data=small.weights.data,
                seed=0,
            )
            return dataclasses.replace(architecture, weights=weights)

        return build_larger

    monkeypatch.setitem(BACKBONES, "wide_mae", larger(BACKBONES["photos_mae"], "wide_mae", width=64, image_size=16))
    monkeypatch.setitem(BACKBONES, "wide_mlm", larger(BACKBONES["docs_mlm"], "wide_mlm", width=256, max_length=64))


TASKS = {"digits": ("photos_mae", "wide_mae"), "pydocs": ("docs_mlm", "wide_mlm")}

GRID = """grid.rows = ['finetune', 'scratch/finetune', 'label_smoothing', 'tf_kd_reg', 'kd', 'self_kd', 'tf_kd_self']
grid.tasks = ['digits', 'pydocs']
grid.seeds = [0]
digits/kd.teacher_backbone = 'wide_mae'
pydocs/kd.teacher_backbone = 'wide_mlm'
scratch/finetune.init = 'random'
digits/finetune.augmentation = 'none'
"""

SMALL = """finetune.steps = 3
finetune.batch_size = 8
finetune.warmup_steps = 0
data.subset = 60
source_pretrain.steps = 3
source_pretrain.batch_size = 8
"""


def plan_of(folder: Path, text: str, data: Path | None = None) -> Plan:
    (folder / "g.gin").write_text(text)
    return make_plan([str(folder / "g.gin")], (), (), data or folder / "data", Store(folder / "runs"))


def final(plan: Plan, row: str, task: str) -> Stage:
    return next(planned.stage for planned in plan.cells if planned.name == f"{row}/{task}/{TASKS[task][0]}/0")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.usefixtures("wide_backbones")
def test_the_teachers_are_who_they_should_be(task: str, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, GRID)
    plain = final(plan, "finetune", task)
    kd = final(plan, "kd", task)
    assert kd.teacher is not None
    assert (kd.backbone.name, kd.teacher.backbone.name) == TASKS[task]
    assert (kd.teacher.name, kd.teacher.init, kd.teacher.objective) == ("finetune", "pretrained", CrossEntropy())
    assert (kd.teacher.schedule, kd.teacher.seed) == (kd.schedule, kd.seed) == (plain.schedule, plain.seed)
    for row in ("self_kd", "tf_kd_self"):
        assert final(plan, row, task).teacher == plain
    # The published form of self-distillation is an option; without it both rows are one stage.
    assert final(plan, "self_kd", task) == final(plan, "tf_kd_self", task)
    published = "tf_kd_self.kl_reduction = 'mean'\ntf_kd_self.multiplier = 50\nkd.kl_reduction = 'mean'\n"
    plan = plan_of(tmp_path, GRID + published)
    assert final(plan, "tf_kd_self", task).objective == Distillation(kl_reduction="mean", multiplier=50.0)
    assert final(plan, "self_kd", task).objective == Distillation()
    assert final(plan, "kd", task).objective == Distillation(kl_reduction="mean")


@pytest.mark.usefixtures("wide_backbones")
def test_a_searched_row_on_another_backbone_teaches(tmp_path: Path) -> None:
    text = """grid.rows = ['finetune', 'big_finetune/finetune', 'kd', 'scratch_kd/kd']
grid.tasks = ['digits', 'pydocs']
grid.seeds = [0, 1]
kd.teacher_row = 'big_finetune'
digits/big_finetune/task.backbone = 'wide_mae'
pydocs/big_finetune/task.backbone = 'wide_mlm'
scratch_kd/finetune.init = 'random'
digits/finetune.augmentation = 'none'
search.candidates = ['finetune.lr = 1e-4', 'finetune.lr = 1e-3']
"""
    plan = plan_of(tmp_path, text)
    for task, (small, wide) in TASKS.items():
        cells = {(c.row, c.seed): c for c in plan.cells if c.task == task}
        for seed in (0, 1):
            teacher = cells["big_finetune", seed].stage
            assert (teacher.backbone.name, cells["big_finetune", seed].backbone) == (wide, wide)
            for row in ("kd", "scratch_kd"):
                student = cells[row, seed].stage
                assert isinstance(student, Selected)
                # What teaches the finals is the searched row itself, whatever the candidate's own settings are.
                assert {final.teacher for final in student.finals} == {teacher}
                assert {final.backbone.name for final in student.finals} == {small}
                assert {final.init for final in student.finals} == {"random" if row == "scratch_kd" else "pretrained"}
                for candidate in student.candidates:
                    assert isinstance(candidate.teacher, Selected)
                    assert candidate.teacher.backbone.name == wide
                    assert candidate.teacher.candidates == teacher.candidates  # type: ignore[attr-defined]
        assert cells["kd", 0].backbone == small


@pytest.mark.usefixtures("wide_backbones")
def test_students_from_random_weights(tmp_path: Path) -> None:
    """The teacher of `kd` stays pre-trained; a self-taught student can learn from its own kind."""
    rows = "'s1/kd', 's2/label_smoothing', 's3/tf_kd_reg', 's4/self_kd', 's5/tf_kd_self'"
    init = "".join(f"s{i}/finetune.init = 'random'\n" for i in range(1, 6))
    text = GRID.replace("'tf_kd_self']", f"'tf_kd_self', {rows}]") + init + "s4/self_kd.teacher_row = 'scratch'\n"
    plan = plan_of(tmp_path, text)
    for task in TASKS:
        students = [final(plan, f"s{i}", task) for i in range(1, 6)]
        assert {student.init for student in students} == {"random"}
        assert {student.backbone.weights for student in students} == {None}
        # The scope of a row reaches its teacher's fine-tuning too, but not where that starts from.
        assert students[0].teacher == final(plan, "kd", task).teacher
        assert students[0].teacher is not None
        assert students[0].teacher.init == "pretrained"
        assert students[3].teacher == final(plan, "scratch", task)
        assert students[4].teacher == final(plan, "finetune", task)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (
            "digits/kd.teacher_backbone = 'wide_mea'",
            "Did you mean 'wide_mae'? Legal: deit_small, ",
        ),
        ("digits/kd.teacher_backbone = 'wide_mlm'", "a backbone that reads images"),
        ("digits/kd.teacher_backbone = 'wide_mlm'", "vit_mae_tiny64, wide_mae."),
        ("Distillation.temperature = 0", "from a millionth"),
        ("Distillation.temperature = -2.0", "from a millionth"),
        ("Distillation.alpha = 1.5", "in [0, 1]"),
        ("Distillation.alpha = -0.1", "in [0, 1]"),
        ("tf_kd_self.multiplier = 0", "from a millionth"),
        ("tf_kd_self.kl_reduction = 'sum'", "'batchmean', 'mean'"),
        ("VirtualTeacher.temperature = 0.0", "from a millionth"),
        ("VirtualTeacher.alpha = 2", "in [0, 1]"),
        ("VirtualTeacher.multiplier = -1", "from a millionth"),
        ("VirtualTeacher.correct_probability = 1.01", "1]"),
        ("VirtualTeacher.correct_probability = 0", "1]"),
        ("digits/VirtualTeacher.correct_probability = 0.1", "(1/10, 1]"),
        ("VirtualTeacher.epsilon = 0.1", "in the softened form"),
        ("VirtualTeacher.form = 'soft'", "'softened', 'hard'"),
        ("digits/kd.teacher_row = 'scratch'", "not both"),
        ("LabelSmoothing.epsilon = 1", "in [0, 1)"),
        ("LabelSmoothing.epsilon = -0.1", "in [0, 1)"),
        ("digits/finetune.augmentation = 'flip'", "another size"),
    ],
)
@pytest.mark.usefixtures("wide_backbones")
def test_impossible_settings_are_refused_with_their_line(
    line: str, reason: str, prepared: Path, tmp_path: Path
) -> None:
    name = line.partition(" ")[0]
    kept = "".join(f"{other}\n" for other in GRID.splitlines() if not other.startswith(f"{name} "))
    number = kept.count("\n") + 1
    with pytest.raises(InputError) as caught:
        plan_of(tmp_path, kept + line, prepared)
    assert f"g.gin:{number}" in str(caught.value)
    assert reason in str(caught.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            GRID.replace("pydocs/kd.teacher_backbone = 'wide_mlm'", ""),
            "or kd.teacher_backbone. Legal: bert_base, ",
        ),
        (GRID.replace("'finetune', 'scratch", "'scratch"), "needs a row 'finetune': add it to grid.rows"),
        (
            GRID + "self_kd.teacher_row = 'nobody'",
            f"g.gin:{GRID.count(chr(10)) + 1}: row 'self_kd' needs a row 'nobody'",
        ),
        (GRID + "self_kd.teacher_row = 'self_kd'", "depends on itself"),
        (GRID + "VirtualTeacher.form = 'hard'\nVirtualTeacher.epsilon = 0.5", "epsilon = 0.5: must be at most 0.01111"),
        (GRID + "VirtualTeacher.form = 'hard'\nVirtualTeacher.temperature = 5.0", "left alone"),
        (GRID + "Distillation.multiplier = 2", "multiplier"),
        (GRID + "LabelSmoothing.spread = 'others'\nLabelSmoothing.epsilon = 0.95", "epsilon = 0.95"),
    ],
)
@pytest.mark.usefixtures("wide_backbones")
def test_what_a_grid_lacks_is_named(text: str, reason: str, prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        plan_of(tmp_path, text, prepared)
    assert reason in str(caught.value)


@pytest.mark.usefixtures("wide_backbones")
def test_all_methods_train_on_images_and_text(prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "g.gin").write_text(GRID + SMALL)
    folders = ["--store", str(tmp_path / "runs"), "--results", str(tmp_path / "results"), "--data", str(prepared)]
    assert grid.main(["--gin", str(tmp_path / "g.gin"), "--launcher", "inline", *folders]) == 0
    legend = (tmp_path / "results" / "g.md").read_text()
    assert "- The row tf_kd_reg is label smoothing with epsilon 0.0" in legend
    lines = (tmp_path / "results" / "g" / "records.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines[1:]]
    assert len({record["cell"] for record in records}) == 14
    for task in TASKS:
        loss = {
            record["cell"].split("/")[0]: record["metrics"]["loss"]
            for record in records
            if f"/{task}/" in record["cell"]
        }
        assert loss["self_kd"] == loss["tf_kd_self"]
        assert len(set(loss.values())) == 6
