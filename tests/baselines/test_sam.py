"""SAM: against two explicit passes, its inert limit, micro-batches, restarts, and what is refused."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from baselines.sam import SharpnessAware
from bench.device import seed
from bench.errors import SpecError
from bench.interfaces.hooks import State
from bench.specs import Execution, Schedule, Stage, stream
from bench.specs.objectives import AdamW
from bench.training.batches import Batches
from bench.training.loop import Interrupted, parameter_groups
from tests import tiny_grid
from tests.training.test_loop import CPU, FINETUNE, Distance, Pictures, equal, fitted, run, start_of, weights_of

# A large eps: gradients that are 0 but for rounding (of the keys' biases) are not scaled up by Adam.
SHARP = SharpnessAware(rho=0.3, weight_decay=0.1, eps=1e-3)
# Clipping at 0.2 changes every gradient here, so which of the two is clipped shows.
SCHEDULE = Schedule(steps=5, batch_size=8, lr=1e-2, warmup_steps=2, clip_norm=0.2, dropout=0.2, augmentation="flip")
RATES = [0.0, 0.5e-2, 1e-2, 2 / 3 * 1e-2, 1 / 3 * 1e-2]


def two_passes(stage: Stage, rho: float) -> dict[str, Tensor]:
    """SAM written out: the gradient, the step uphill, the gradient there, its clipping, AdamW at the old weights."""
    model = start_of(stage, torch.float64)
    examples = Pictures()
    examples.dtype = torch.float64
    batches = Batches(stage, examples, model, CPU)
    groups = [
        {"params": group["params"], "weight_decay": group["weight_decay"]}
        for group in parameter_groups(model, stage, State())
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-3)
    weights = list(model.parameters())
    decayed = {id(parameter) for group in groups for parameter in group["params"]}
    assert decayed == {id(parameter) for parameter in weights}

    def gradient(step: int) -> float:
        """Put the gradient of a step into the parameters; return its norm."""
        optimizer.zero_grad()
        parts = batches.at(step)
        count = sum(len(part.index) for part in parts)
        for number, part in enumerate(parts):
            assert part.labels is not None
            seed(stream(stage.seed, stage.name, "step", step, number), CPU)
            loss = cross_entropy(model.logits(part.inputs), part.labels, reduction="sum") / count
            loss.backward()  # type: ignore[no-untyped-call]
        return math.sqrt(sum(float(weight.grad.square().sum()) for weight in weights if weight.grad is not None))

    for step in range(5):
        norm = gradient(step)
        before = [weight.detach().clone() for weight in weights]
        with torch.no_grad():
            for weight in weights:
                assert weight.grad is not None
                weight += rho * weight.grad / norm
        clip = stage.schedule.clip_norm
        norm = gradient(step)
        with torch.no_grad():
            for weight, old in zip(weights, before, strict=True):
                weight.copy_(old)
                if clip is not None and norm > clip:
                    assert weight.grad is not None
                    weight.grad *= clip / (norm + 1e-6)
        for group in optimizer.param_groups:
            group["lr"] = RATES[step]
        optimizer.step()
    return weights_of(model)


@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("clip_norm", [None, 0.2])
def test_it_is_two_explicit_passes_with_one_dropout(
    clip_norm: float | None, micro_batches: int, tmp_path: Path
) -> None:
    schedule = dataclasses.replace(SCHEDULE, clip_norm=clip_norm, micro_batches=micro_batches)
    stage = dataclasses.replace(FINETUNE, optimizer=SHARP, schedule=schedule)
    expected, ours = two_passes(stage, 0.3), run(stage, tmp_path, dtype=torch.float64)
    assert ours.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-10, atol=1e-12)


def test_without_dropout_micro_batches_change_rounding_alone(tmp_path: Path) -> None:
    results = []
    for micro_batches in (1, 3):
        schedule = dataclasses.replace(SCHEDULE, dropout=0.0, micro_batches=micro_batches)
        stage = dataclasses.replace(FINETUNE, optimizer=SHARP, schedule=schedule)
        results.append(run(stage, tmp_path / str(micro_batches), dtype=torch.float64))
    for name, weight in results[0].items():
        torch.testing.assert_close(results[1][name], weight, rtol=1e-10, atol=1e-12)


def test_with_rho_0_it_is_fine_tuning_bit_for_bit(tmp_path: Path) -> None:
    plain = run(dataclasses.replace(FINETUNE, schedule=SCHEDULE, optimizer=AdamW()), tmp_path / "plain")
    for rho in (0.0, 0.05):
        stage = dataclasses.replace(FINETUNE, schedule=SCHEDULE, optimizer=SharpnessAware(rho=rho))
        model, trained = fitted(stage, tmp_path / str(rho))
        assert equal(weights_of(model), plain) == trained.activity["SharpnessAware"].nil == (rho == 0)


def test_what_an_objective_keeps_moves_once_in_a_step(tmp_path: Path) -> None:
    stage = dataclasses.replace(FINETUNE, objective=Distance(), schedule=SCHEDULE)
    sharp = dataclasses.replace(stage, optimizer=SharpnessAware(rho=0.0))
    assert equal(run(stage, tmp_path / "plain"), run(sharp, tmp_path / "sharp"))


def test_the_perturbation_has_length_rho_and_is_taken_back_bit_for_bit() -> None:
    model = start_of(FINETUNE)
    spec = SharpnessAware(rho=0.7)
    optimizer = spec.build(parameter_groups(model, FINETUNE, State()), {}, 10)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    untouched = next(iter(model.parameters()))
    untouched.grad = None
    before = weights_of(model)
    gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    with torch.no_grad():
        spec.perturb(optimizer)
        moved = torch.cat([(p - before[name]).flatten() for name, p in model.named_parameters() if p.grad is not None])
        spec.restore(optimizer)
    assert float(moved.norm()) == pytest.approx(0.7, rel=1e-5)
    along = torch.dot(moved, torch.cat(gradients)) / (moved.norm() * torch.cat(gradients).norm())
    assert float(along) == pytest.approx(1, rel=1e-5)  # uphill
    assert equal(weights_of(model), before)
    assert "before" not in optimizer.param_groups[0]


def test_a_gradient_of_0_moves_nothing() -> None:
    model = start_of(FINETUNE)
    spec = SharpnessAware()
    optimizer = spec.build(parameter_groups(model, FINETUNE, State()), {}, 10)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = weights_of(model)
    with torch.no_grad():
        spec.perturb(optimizer)
    assert equal(weights_of(model), before)


def test_a_stop_after_any_step_changes_no_bit(tmp_path: Path) -> None:
    stage = dataclasses.replace(FINETUNE, schedule=SCHEDULE, optimizer=SHARP)
    whole = run(stage, tmp_path / "whole")
    for step in range(1, 5):
        with pytest.raises(Interrupted):
            run(stage, tmp_path / "parts", stop_at=step)
    assert equal(run(stage, tmp_path / "parts"), whole)


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_low_precision_is_refused(precision: Any) -> None:
    with pytest.raises(SpecError) as refused:
        dataclasses.replace(FINETUNE, optimizer=SharpnessAware(), execution=Execution(precision=precision))
    assert refused.value.field == "precision"
    dataclasses.replace(FINETUNE, optimizer=SharpnessAware(), execution=Execution(precision="float64"))


def test_the_recipes_optimizer_is_fine_tunings_with_rho(prepared: Path, tmp_path: Path) -> None:
    plan = tiny_grid.plan(tmp_path, prepared, ["sam"], "finetune.weight_decay = 0.2", "SharpnessAware.rho = 0.1")
    assert {cell.stage.optimizer for cell in plan.cells} == {SharpnessAware(weight_decay=0.2, rho=0.1)}


@pytest.mark.parametrize("rho", [-0.1, math.inf, math.nan])
def test_impossible_radii_are_refused(rho: float) -> None:
    with pytest.raises(SpecError) as refused:
        SharpnessAware(rho=rho)
    assert refused.value.field == "rho"
