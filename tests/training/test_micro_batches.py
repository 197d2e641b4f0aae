"""Micro-batches change rounding alone: weights and logged losses, for every objective that is a mean."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from baselines.ablations import PredictionMatching, WeightMatchingL2, WeightMatchingMARS
from baselines.freelb import FreeLB
from baselines.l2_sp import L2SP
from baselines.label_regularization import Distillation, LabelSmoothing, VirtualTeacher
from baselines.r3f import R3F
from baselines.self_distillation import FeatureMatching
from baselines.supcon import Probe, SupervisedContrastive
from bench.data.examples import TextExamples
from bench.errors import SpecError
from bench.interfaces.examples import Examples
from bench.models.build import build
from bench.specs import Objective, Schedule, Stage
from bench.specs.objectives import AdamW, CrossEntropy, MaskedAutoEncoding
from tests.examples import finetuning, pretraining, tiny_backbone
from tests.training.test_batches import WORDS, batches_of, texts
from tests.training.test_loop import Pictures, fitted, weights_of

# 22 examples in batches of 8: the last batch of an epoch has 6, which four micro-batches share unevenly, as 2, 2, 1, 1.
COUNT = 22
SCHEDULE = Schedule(steps=5, batch_size=8, lr=1e-2, clip_norm=1.0, dropout=0.0)
# A gradient that is 0 but for rounding, as that of a key's bias, would be scaled up by Adam without a large eps.
OPTIMIZER = AdamW(eps=1e-3, weight_decay=0.1)
# A micro-batch has the masked tokens of two long texts, another one those of two short ones.
LENGTHS = [58, 3, 40, 4] * 5 + [5, 50]

LABELLED: list[Objective] = [
    CrossEntropy(),
    LabelSmoothing(epsilon=0.2),
    VirtualTeacher(),
    Distillation(alpha=0.7),
    Distillation(alpha=0.7, kl_reduction="mean"),
    CrossEntropy() + L2SP(alpha=0.5, beta=0.2),
    L2SP(alpha=0.5) + CrossEntropy(),
    Probe(),
    R3F(noise="none"),
    CrossEntropy() + MaskedAutoEncoding(weight=0.3),
]
UNLABELLED: list[Objective] = [
    MaskedAutoEncoding(weight=0.7),
    FeatureMatching(),
    MaskedAutoEncoding() + FeatureMatching(),
    PredictionMatching(weight=2.0),
    MaskedAutoEncoding() + PredictionMatching(),
    MaskedAutoEncoding() + WeightMatchingL2(weight=0.1),
    MaskedAutoEncoding() + WeightMatchingMARS(weight=0.1),
]


def stage_with(objective: Objective, modality: str, **schedule: Any) -> Stage:
    labelled = "labels" in objective.needs
    backbone = tiny_backbone(weights=pretraining()) if modality == "image" else WORDS
    make = finetuning if labelled else pretraining
    changes: dict[str, Any] = {"backbone": backbone, "init": "random", "objective": objective, "optimizer": OPTIMIZER}
    if "teacher" in objective.needs:
        changes["teacher"] = make(backbone=backbone, init="random", seed=4)
    return make(schedule=dataclasses.replace(SCHEDULE, **schedule), **changes)


def examples_of(modality: str) -> Examples:
    return Pictures(COUNT) if modality == "image" else texts(LENGTHS)


def trained(stage: Stage, modality: str, folder: Path) -> tuple[dict[str, Tensor], list[Mapping[str, float]]]:
    """The weights at the end and the losses of every step, in float64."""
    teacher = None
    if stage.teacher is not None:
        needs = stage.teacher.objective.needs
        torch.manual_seed(9)
        teacher = build(
            stage.teacher.backbone, classes=10 if "head" in needs else None, decoder="decoder" in needs, dropout=0.0
        )
        teacher = teacher.double().requires_grad_(False).eval()
    logged: list[Mapping[str, float]] = []
    model, _ = fitted(
        stage,
        folder,
        progress=lambda step, losses: logged.append(losses),
        dtype=torch.float64,
        examples=examples_of(modality),
        teacher=teacher,
    )
    return weights_of(model), logged


@pytest.mark.parametrize("modality", ["image", "text"])
@pytest.mark.parametrize("objective", [*LABELLED, *UNLABELLED], ids=str)
def test_one_and_four_micro_batches_agree(objective: Objective, modality: str, tmp_path: Path) -> None:
    whole, losses = trained(stage_with(objective, modality), modality, tmp_path / "whole")
    parts, split = trained(stage_with(objective, modality, micro_batches=4), modality, tmp_path / "parts")
    assert whole.keys() == parts.keys()
    for name, weight in whole.items():
        torch.testing.assert_close(parts[name], weight, rtol=1e-12, atol=1e-12)
    assert len(losses) == len(split) == 5
    for step, (once, added) in enumerate(zip(losses, split, strict=True)):
        assert once.keys() == added.keys()
        assert all(added[name] == pytest.approx(once[name], rel=1e-12, abs=1e-14) for name in once), step


def test_micro_batches_of_text_do_differ_in_what_is_masked() -> None:
    """Else a mean of means would have passed above."""
    stage = stage_with(MaskedAutoEncoding(), "text", micro_batches=4)
    examples = examples_of("text")
    assert isinstance(examples, TextExamples)
    counts = [[int(batch.mask.targets) for batch in batches_of(stage, examples).at(step)] for step in range(3)]
    assert all(max(step) > 2 * max(1, min(step)) for step in counts)


@pytest.mark.parametrize("modality", ["image", "text"])
@pytest.mark.parametrize("micro_batches", [2, 4, 8])
def test_the_shares_of_a_step_add_up_to_1(micro_batches: int, modality: str) -> None:
    objective = CrossEntropy() + MaskedAutoEncoding()
    batches = batches_of(stage_with(objective, modality, micro_batches=micro_batches), examples_of(modality))
    for step in range(3):
        parts = batches.at(step)
        hidden = [int(part.mask.targets) for part in parts]
        examples = [len(part.index) for part in parts]
        assert sum(examples) == (6 if step == 2 else 8)
        for part, count, targets in zip(parts, examples, hidden, strict=True):
            assert float(part.share) == pytest.approx(count / sum(examples))
            assert float(part.mask_share) == pytest.approx(targets / sum(hidden))


def test_a_batch_that_is_not_split_has_the_whole_step() -> None:
    (batch,) = batches_of(stage_with(MaskedAutoEncoding(), "image"), examples_of("image")).at(2)
    assert (batch.share, batch.mask_share) == (1.0, 1.0)


@pytest.mark.parametrize(
    "objective",
    [FreeLB(), R3F(), CrossEntropy() + FreeLB(), SupervisedContrastive(), SupervisedContrastive() + Probe()],
    ids=str,
)
def test_what_needs_the_whole_batch_refuses_to_be_split(objective: Objective) -> None:
    headless: dict[str, Any] = {} if "head" in objective.needs else {"evaluation": None}
    finetuning(objective=objective, schedule=SCHEDULE, **headless)
    with pytest.raises(SpecError) as refused:
        finetuning(objective=objective, schedule=dataclasses.replace(SCHEDULE, micro_batches=2), **headless)
    assert refused.value.field == "micro_batches"


def test_without_a_masked_token_in_a_whole_step_the_loss_is_0_and_no_nan(tmp_path: Path) -> None:
    backbone = dataclasses.replace(WORDS, mask_ratio=1e-9)
    stage = dataclasses.replace(stage_with(MaskedAutoEncoding(), "text", micro_batches=4), backbone=backbone)
    _, losses = trained(stage, "text", tmp_path)
    assert [step["loss"] for step in losses] == [0.0] * 5
