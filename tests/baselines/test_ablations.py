"""Table 3: which stages its rows share, what their losses are, and where they end in plain further pre-training."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from baselines.ablations import (
    PredictionMatching,
    WeightMatchingL2,
    WeightMatchingMARS,
    mars_penalty,
    prediction_distance,
    prediction_divergence,
    squared_distance,
)
from baselines.self_distillation import FeatureMatching
from bench import grid
from bench.errors import InputError, SpecError
from bench.interfaces.examples import Examples
from bench.interfaces.hooks import Clock, Context
from bench.interfaces.model import Model
from bench.models.build import build
from bench.planning.plan import Plan, make_plan
from bench.specs import Objective, Schedule, Stage, walk
from bench.specs.objectives import MaskedAutoEncoding
from bench.store.store import Store
from bench.training.batches import Batches
from bench.training.checkpoint import Checkpoints
from bench.training.loop import Supervision, train
from bench.training.networks import parts
from tests import tiny_grid
from tests.examples import finetuning, pretraining, tiny_backbone, tiny_text_backbone

CPU = torch.device("cpu")
ROWS = [
    "self_distillation_without_mae",
    "self_distillation_without_distill",
    "tapt_x2",
    "prediction_matching",
    "weight_matching_l2",
    "weight_matching_mars",
]
GRID = f"""grid.rows = {["tapt", "self_distillation", *ROWS]}
grid.tasks = ['digits', 'pydocs']
grid.seeds = [0]
"""
STUDENTS = ["self_distillation_without_mae", "prediction_matching", "weight_matching_l2", "weight_matching_mars"]


# ------------------------------------------------------------------------------------------------ recipes


def plan_of(folder: Path, text: str) -> Plan:
    (folder / "g.gin").write_text(text)
    return make_plan([str(folder / "g.gin")], (), (), folder / "data", Store(folder / "runs"))


def stages_of(plan: Plan) -> dict[tuple[str, str], Stage]:
    """The last stage of every row and task."""
    return {tuple(planned.name.split("/")[:2]): planned.stage for planned in plan.cells}


@pytest.mark.parametrize("task", ["digits", "pydocs"])
def test_rows_share_teacher_and_start(tmp_path: Path, task: str) -> None:
    last = stages_of(plan_of(tmp_path, GRID))
    tapt, distilled = last["tapt", task], last["self_distillation", task].init
    assert isinstance(tapt.init, Stage) and isinstance(distilled, Stage)
    assert last["self_distillation_without_distill", task].key == tapt.key
    for row in STUDENTS:
        student = last[row, task].init
        assert isinstance(student, Stage) and student.teacher is not None
        assert student.teacher.key == tapt.init.key
        # All but the loss is that of self-distillation, the random streams (by name and seed) included.
        assert dataclasses.replace(student, objective=distilled.objective).key == distilled.key
        assert student.init == "pretrained"
        needs_decoder = row != "self_distillation_without_mae"
        assert parts(student.objective) == (["encoder", "decoder"] if needs_decoder else ["encoder"])
        assert dataclasses.replace(last[row, task], init=tapt.init).key == tapt.key


def test_lambda_zero_is_the_row_without_mae(tmp_path: Path) -> None:
    rows = "grid.rows = ['self_distillation_without_mae', 'zero/self_distillation', 'half/self_distillation']\n"
    text = rows + "\n".join(GRID.splitlines()[1:]) + "\nzero/self_distillation.mae_weight = 0"
    last = stages_of(plan_of(tmp_path, text + "\nhalf/self_distillation.mae_weight = 0.5"))
    for task in ("digits", "pydocs"):
        keys = [last[row, task].key for row in ("self_distillation_without_mae", "zero", "half")]
        assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(
    ("line", "task", "before", "after"),
    [
        ("", "digits", (20_000, None), (40_000, None)),
        ("", "pydocs", (None, 100.0), (None, 200.0)),
        ("digits/further_pretrain.epochs = 1.5", "digits", (None, 1.5), (None, 3.0)),
        ("further_pretrain.steps = 7", "pydocs", (7, None), (14, None)),
    ],
)
def test_twice_the_budget_is_one_longer_schedule(
    tmp_path: Path, line: str, task: str, before: tuple[Any, Any], after: tuple[Any, Any]
) -> None:
    warmup = "\nfurther_pretrain.warmup_fraction = 0.25"
    last = stages_of(plan_of(tmp_path, GRID + line + warmup))
    once, twice = last["tapt", task].init, last["tapt_x2", task].init
    assert isinstance(once, Stage) and isinstance(twice, Stage)
    assert (once.schedule.steps, once.schedule.epochs) == before
    assert (twice.schedule.steps, twice.schedule.epochs) == after
    assert twice.name == "further_pretrain"
    assert dataclasses.replace(twice, schedule=once.schedule).key == once.key
    assert twice.schedule.warmup_fraction == 0.25


def test_strengths_can_be_bound_and_only_where_they_are_read(tmp_path: Path) -> None:
    lines = "PredictionMatching.weight = 2\nweight_matching_mars/WeightMatchingMARS.weight = 0.5"
    last = stages_of(plan_of(tmp_path, GRID + lines))
    text = {row: str(last[row, "digits"].init) for row in STUDENTS}
    assert "PredictionMatching(weight=2.0)" in text["prediction_matching"]
    assert "WeightMatchingMARS(weight=0.5)" in text["weight_matching_mars"]
    assert "WeightMatchingL2(weight=1.0)" in text["weight_matching_l2"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("PredictionMatching.weight = -1", "0 or more"),
        ("WeightMatchingL2.weight = 1e999", "finite"),
        ("WeightMatchingMARS.weight = 'much'", "weight"),
        ("self_distillation.mae_weight = -0.5", "above 0"),
        ("tapt/WeightMatchingL2.weight = 1", "changes nothing"),
        ("further_pretrain.steps = 0", "at least 1"),
    ],
)
def test_refusals_name_the_line(tmp_path: Path, line: str, says: str) -> None:
    with pytest.raises(InputError) as refusal:
        plan_of(tmp_path, GRID + line)
    assert "g.gin:4" in str(refusal.value)
    assert says in str(refusal.value)


@pytest.mark.parametrize("matching", [FeatureMatching, PredictionMatching, WeightMatchingL2, WeightMatchingMARS])
def test_a_teacher_of_another_size_is_refused(matching: type[Objective]) -> None:
    wide = pretraining(backbone=tiny_backbone(width=32))
    with pytest.raises(SpecError, match="must be built like"):
        pretraining(objective=MaskedAutoEncoding() + matching(), teacher=wide)
    assert pretraining(objective=MaskedAutoEncoding() + matching(), teacher=pretraining()).teacher is not None


def test_a_teacher_without_a_decoder_predicts_nothing() -> None:
    with pytest.raises(SpecError, match="no decoder"):
        pretraining(objective=PredictionMatching(), teacher=finetuning())


# ------------------------------------------------------------------------------------------------ formulas


def leaf(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def only_the_student_learns(loss: Tensor, student: Tensor, teacher: Tensor) -> None:
    gradients = torch.autograd.grad(loss, (student, teacher), allow_unused=True)
    assert gradients[0] is not None and gradients[0].abs().sum() > 0
    assert gradients[1] is None


def test_predicted_pixels_are_compared_on_removed_patches() -> None:
    student, teacher = leaf([[1.0, 2.0], [3.0, 3.0], [9.0, 9.0]]), leaf([[0.0, 0.0], [3.0, 1.0], [0.0, 0.0]])
    loss = prediction_distance(student, teacher, torch.tensor([[1.0, 1.0, 0.0]]))
    assert loss.item() == pytest.approx(((1 + 4) / 2 + (0 + 4) / 2) / 2)
    only_the_student_learns(loss, student, teacher)


def test_predicted_words_are_compared_from_the_teachers_side() -> None:
    # The teacher's distribution is (1/2, 1/2), the student's (1/4, 3/4).
    student, teacher = leaf([0.0, np.log(3.0)], [5.0, 5.0]), leaf([2.0, 2.0], [1.0, 1.0])
    expected = 0.5 * np.log(2) + 0.5 * np.log(2 / 3)
    for valid, average in (([True, True], expected / 2), ([True, False], expected), ([False, True], 0.0)):
        loss = prediction_divergence(student, teacher, torch.tensor(valid))
        assert loss.item() == pytest.approx(average)
        if average:
            only_the_student_learns(loss, student, teacher)


def test_rows_that_are_no_selected_token_count_for_nothing() -> None:
    student, teacher = leaf([0.0, np.log(3.0)], [5.0, 50.0]), leaf([2.0, 2.0], [1.0, 1.0])
    loss = prediction_divergence(student, teacher, torch.tensor([True, False]))
    (gradient,) = torch.autograd.grad(loss, student)
    assert torch.equal(gradient[1], torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(gradient[0], torch.tensor([-0.25, 0.25], dtype=torch.float64))


@pytest.mark.parametrize("rows", [0, 8])
def test_no_selected_token_gives_zero_with_a_graph(rows: int) -> None:
    student = torch.randn(rows, 7, requires_grad=True)
    loss = prediction_divergence(student, torch.randn(rows, 7), torch.zeros(rows, dtype=torch.bool))
    assert loss.item() == 0
    loss.backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None and not student.grad.any()


def test_weights_are_compared_over_all_pairs() -> None:
    student, teacher = leaf([1.0, -2.0], [0.0, 5.0]), leaf([0.0, 0.0], [0.0, 1.0])
    bias = leaf(3.0), leaf(1.0)
    assert squared_distance([(student, teacher), bias]).item() == 1 + 4 + 16 + 4
    only_the_student_learns(squared_distance([(student, teacher), bias]), student, teacher)
    other = leaf([1.0], [0.0]), leaf([-1.0], [1.0])
    assert mars_penalty([(student, teacher), other]).item() == 4 + 2
    only_the_student_learns(mars_penalty([(student, teacher), other]), student, teacher)


# ------------------------------------------------------------------------------------------------ training


class Pictures(Examples):
    def __init__(self) -> None:
        super().__init__(np.arange(12), None, None)
        self._images = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def inputs(self, index: Tensor, device: torch.device, flip: Tensor | None = None) -> Tensor:
        return self._images[index]


class Sentences(Examples):
    def __init__(self) -> None:
        super().__init__(np.arange(12), None, np.full(12, 9))
        self._tokens = torch.randint(5, 30, (12, 9), generator=torch.Generator().manual_seed(0))

    def inputs(self, index: Tensor, device: torch.device, flip: Tensor | None = None) -> dict[str, Tensor]:
        tokens = self._tokens[index]
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


WORDS = tiny_text_backbone(vocabulary=30, max_length=9, mask_ratio=0.4)
MODALITIES = {"image": (tiny_backbone(), Pictures), "text": (WORDS, Sentences)}
MATCHINGS = [PredictionMatching, WeightMatchingL2, WeightMatchingMARS]


def stage_with(modality: str, objective: Objective, **changes: Any) -> Stage:
    backbone = MODALITIES[modality][0]
    schedule = Schedule(steps=4, batch_size=6, lr=3e-3)
    teacher = pretraining(backbone=backbone) if "teacher" in objective.needs else None
    return pretraining(
        **{"backbone": backbone, "schedule": schedule, "objective": objective, "teacher": teacher} | changes
    )


def model_of(stage: Stage, seed: int) -> Model:
    torch.manual_seed(seed)
    return build(stage.backbone, decoder="decoder" in stage.objective.needs, dropout=stage.schedule.dropout)


def trained(stage: Stage, modality: str, folder: Path) -> dict[str, Tensor]:
    """The weights after training, with a teacher of other random weights."""
    examples = MODALITIES[modality][1]()
    model, teacher = model_of(stage, 1), None
    if stage.teacher is not None:
        teacher = model_of(stage.teacher, 2).requires_grad_(False).eval()
        before = {name: parameter.clone() for name, parameter in teacher.named_parameters()}
    supervision = Supervision(lambda: False, Checkpoints(folder), 1000, lambda step: None, lambda step, loss: None)
    train(stage, model, teacher, Batches(stage, examples, model, CPU), supervision, examples)
    if teacher is not None:
        assert not teacher.training
        assert all(torch.equal(before[name], parameter) for name, parameter in teacher.named_parameters())
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("matching", MATCHINGS)
def test_strength_zero_is_further_pretraining_bit_for_bit(matching: Any, modality: str, tmp_path: Path) -> None:
    plain = trained(stage_with(modality, MaskedAutoEncoding()), modality, tmp_path / "plain")
    off = stage_with(modality, MaskedAutoEncoding() + matching(weight=0.0))
    assert equal(plain, trained(off, modality, tmp_path / "off"))
    on = stage_with(modality, MaskedAutoEncoding() + matching())
    assert not equal(plain, trained(on, modality, tmp_path / "on"))


@pytest.mark.parametrize("modality", MODALITIES)
def test_without_mae_neither_a_decoder_nor_a_mask_is_there(modality: str, tmp_path: Path) -> None:
    stage = stage_with(modality, FeatureMatching())
    weights = trained(stage, modality, tmp_path)
    assert not any(name.startswith("decoder.") for name in weights)
    assert Batches(stage, MODALITIES[modality][1](), model_of(stage, 1), CPU).at(0)[0].mask is None


def losses(objective: Objective, modality: str, students: Model, teacher: Model) -> float:
    stage = stage_with(modality, objective, schedule=Schedule(steps=4, batch_size=6, dropout=0.0))
    examples = MODALITIES[modality][1]()
    context = Context(Clock(), 4, False, CPU, examples, examples)
    batch = Batches(stage, examples, students, CPU).at(0)[0]
    return objective.loss(students, batch, objective.begin(students, teacher, context), context).total.item()


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("matching", MATCHINGS)
def test_a_student_equal_to_its_teacher_has_nothing_to_match(matching: Any, modality: str) -> None:
    """For predictions this needs the same mask on both sides."""
    stage = stage_with(modality, MaskedAutoEncoding(), schedule=Schedule(steps=4, dropout=0.0))
    same = [model_of(stage, 1), model_of(stage, 1).eval()]
    assert losses(matching(), modality, *same) == pytest.approx(0.0, abs=1e-10)
    weighted_losses = [
        losses(matching(weight=weight), modality, same[0], model_of(stage, 2).eval()) for weight in (1.0, 3.0)
    ]
    assert weighted_losses[0] > 0
    assert weighted_losses[1] == pytest.approx(3 * weighted_losses[0])


@pytest.mark.parametrize("modality", MODALITIES)
def test_which_weights_are_matched(modality: str) -> None:
    stage = stage_with(modality, MaskedAutoEncoding())
    student, teacher = model_of(stage, 1), model_of(stage, 2)
    examples = MODALITIES[modality][1]()
    context = Context(Clock(), 4, False, CPU, examples, examples)
    weights = dict(teacher.named_parameters())

    def matched(objective: Objective) -> set[str]:
        teachers = objective.begin(student, teacher, context).constants["teachers"]
        assert all(torch.equal(weight, weights[name]) and not weight.requires_grad for name, weight in teachers.items())
        return set(teachers)

    encoder = {name for name, p in student.named_parameters() if name.startswith("encoder.") and p.requires_grad}
    assert matched(WeightMatchingL2()) == encoder
    matrices = matched(WeightMatchingMARS())
    assert matrices < encoder
    assert not any("embeddings" in name or "norm" in name.lower() or "bias" in name for name in matrices)
    some = {"image": "encoder.patch_embed.proj.weight", "text": "encoder.encoder.layer.0.output.dense.weight"}
    assert some[modality] in matrices


def test_every_row_runs_on_images_and_texts(prepared: Path, tmp_path: Path) -> None:
    text = (
        GRID
        + "grid.name = 'g'\n"
        + "\n".join(
            f"{stage}.{setting}"
            for stage in ("finetune", "further_pretrain", "source_pretrain")
            for setting in ("steps = 3", "batch_size = 8", "warmup_steps = 1")
        )
        + "\n"
        + tiny_grid.networks("photos_mae", "docs_mlm")
    )
    (tmp_path / "g.gin").write_text(text)
    arguments = ["--gin", str(tmp_path / "g.gin"), "--data", str(prepared), "--store", str(tmp_path / "runs")]
    arguments += ["--results", str(tmp_path / "results"), "--launcher", "inline"]
    assert grid.main(arguments) == 0
    folders = [folder.name for folder in (tmp_path / "runs").iterdir() if (folder / "record.json").is_file()]
    distinct = stages_of(plan_of(tmp_path, text))
    assert len({stage.key for last in distinct.values() for stage in walk(last)}) > 20
    # One further pre-training and one of twice its length per task; five kinds of students.
    assert sum(name.startswith("further_pretrain-") for name in folders) == 4
    assert sum(name.startswith("self_distill_1-") for name in folders) == 10
