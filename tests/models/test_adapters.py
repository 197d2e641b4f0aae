"""Adapters: the weights that objectives compare are those that would be kept, and every objective works with them."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from baselines.ablations import WeightMatchingL2, WeightMatchingMARS
from baselines.ema import WeightAverage
from baselines.freelb import FreeLB
from baselines.l2_sp import L2SP
from baselines.lora import LoRA
from baselines.mixout import Mixout
from baselines.r3f import R3F
from baselines.wise_ft import WeightInterpolation
from bench.interfaces.hooks import Batch, Clock, Context, State
from bench.interfaces.model import Model
from bench.models.adapters import kept_weights
from bench.models.build import build
from bench.specs import Constraint, Objective
from tests.examples import tiny_backbone
from tests.training.test_loop import weights_of
from tests.training.test_micro_batches import LABELLED, UNLABELLED, stage_with, trained

CONTEXT = Context(Clock(), 10, False, torch.device("cpu"), training_set=None)  # type: ignore[arg-type]
BATCH = Batch(torch.zeros(2, 3, 8, 8).double(), torch.arange(2), torch.tensor([0, 1]))


def adapted(constraint: Constraint) -> tuple[Model, dict[str, Tensor]]:
    """A network with adapters whose every number then moved, and its weights before."""
    torch.manual_seed(1)
    model = build(tiny_backbone(), classes=3).double()
    start = weights_of(model)
    constraint.inject(model)
    return model, start


def move(model: Model) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)


@pytest.mark.parametrize("constraint", [LoRA(rank=2, targets=("query", "value")), Mixout(rate=0.5)], ids=str)
def test_kept_weights_are_those_that_the_end_leaves(constraint: Constraint) -> None:
    model, start = adapted(constraint)
    move(model)
    kept = kept_weights(model.train())  # in training mode a pass mixes weights
    trained_ones = {name for name, weight in kept.items() if weight.requires_grad}
    with torch.no_grad():
        constraint.finish(model, {}, State(), CONTEXT)
    left = weights_of(model)
    assert kept.keys() == left.keys() == start.keys()
    assert all(torch.equal(kept[name], left[name]) for name in left)
    assert trained_ones == {name for name in left if not torch.equal(left[name], start[name])}


@pytest.mark.parametrize("constraint", [LoRA(rank=2), Mixout(rate=0.5)], ids=str)
def test_penalties_are_of_the_weights_and_not_of_the_adapters(constraint: Constraint) -> None:
    """Beside LoRA the distance from the start is that of W + BA, not of A and B from theirs."""
    model, start = adapted(constraint)
    torch.manual_seed(2)
    teacher = build(tiny_backbone(), classes=3).double().requires_grad_(False).eval()
    theirs = dict(teacher.named_parameters())
    penalty, near, bounded = L2SP(alpha=1.0, beta=0.0), WeightMatchingL2(), WeightMatchingMARS()
    states = [objective.begin(model, teacher, CONTEXT) for objective in (penalty, near, bounded)]
    move(model)
    losses = [
        objective.loss(model, BATCH, state, CONTEXT).total
        for objective, state in zip((penalty, near, bounded), states, strict=True)
    ]
    losses[0].backward()  # type: ignore[no-untyped-call]
    if isinstance(constraint, LoRA):
        ups = [parameter for name, parameter in model.named_parameters() if ".up." in name]
        assert ups and all(parameter.grad is not None and parameter.grad.any() for parameter in ups)
    with torch.no_grad():
        constraint.finish(model, {}, State(), CONTEXT)
    left = {name: weight for name, weight in weights_of(model).items() if name.startswith("encoder.")}
    moved = [name for name in left if not torch.equal(left[name], start[name])]
    distance = sum(float((left[name] - start[name]).square().sum()) for name in moved)
    assert losses[0].item() == pytest.approx(distance / 2, rel=1e-12)
    distance = sum(float((left[name] - theirs[name]).square().sum()) for name in moved)
    assert losses[1].item() == pytest.approx(distance, rel=1e-12)
    matrices = [name for name in left if left[name].ndim > 1 and not name.endswith(("token", "pos_embed"))]
    rows = [(left[name] - theirs[name]).abs().flatten(1).sum(1).max() for name in matrices]
    assert losses[2].item() == pytest.approx(float(sum(rows)), rel=1e-12)


@pytest.mark.parametrize(
    "constraint", [LoRA(rank=2), Mixout(rate=0.3), WeightAverage(), WeightInterpolation()], ids=str
)
@pytest.mark.parametrize("objective", [*LABELLED, *UNLABELLED, FreeLB(), R3F()], ids=str)
def test_every_objective_works_with_them(objective: Objective, constraint: Constraint, tmp_path: Path) -> None:
    stage = dataclasses.replace(stage_with(objective, "image", steps=2), constraint=constraint)
    weights, losses = trained(stage, "image", tmp_path)
    assert not any("parametrizations" in name for name in weights)
    assert all(weight.isfinite().all() for weight in weights.values())
    assert len(losses) == 2
