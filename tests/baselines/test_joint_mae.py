"""Joint fine-tuning and reconstruction: the gradient is the sum of both, and the limit is fine-tuning."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench.device import seed
from bench.errors import InputError
from bench.interfaces.hooks import Clock, Context
from bench.interfaces.model import Model
from bench.specs import Objective, Schedule
from bench.specs.objectives import AdamW, CrossEntropy, MaskedAutoEncoding
from bench.training.batches import Batches
from tests import tiny_grid
from tests.training.test_loop import CPU, FINETUNE, Pictures, run, start_of

JOINT = dataclasses.replace(FINETUNE, objective=CrossEntropy() + MaskedAutoEncoding(weight=0.3))
CONTEXT = Context(Clock(), 10, False, CPU, training_set=None)  # type: ignore[arg-type]


def gradient(model: Model, objective: Objective) -> tuple[float, dict[str, Tensor]]:
    """An objective's loss on the joint stage's first batch, without dropout, and its gradient."""
    examples = Pictures()
    examples.dtype = torch.float64
    (batch,) = Batches(JOINT, examples, model, CPU).at(0)
    model.eval().zero_grad()
    seed(0, CPU)
    loss = objective.loss(model, batch, objective.begin(model, None, CONTEXT), CONTEXT).total
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_its_gradient_is_the_sum_of_both() -> None:
    model = start_of(JOINT, torch.float64)
    loss, joint = gradient(model, JOINT.objective)
    supervised, of_labels = gradient(model, CrossEntropy())
    masked, of_masks = gradient(model, MaskedAutoEncoding())
    assert loss == pytest.approx(supervised + 0.3 * masked, rel=1e-12)
    assert joint.keys() == of_labels.keys() | of_masks.keys() > of_labels.keys()
    for name, whole in joint.items():
        zero = torch.zeros_like(whole)
        expected = of_labels.get(name, zero) + 0.3 * of_masks.get(name, zero)
        torch.testing.assert_close(whole, expected, rtol=1e-10, atol=1e-14)


def test_it_becomes_fine_tuning_as_the_weight_goes_to_0(tmp_path: Path) -> None:
    """Where nothing is drawn in a step but for the mask; the decoder is one more part that is trained."""
    schedule = Schedule(steps=5, batch_size=8, lr=1e-2, clip_norm=None, dropout=0.0)
    optimizer = AdamW(eps=1e-3)  # what is 0 but for rounding stays small
    plain = dataclasses.replace(FINETUNE, schedule=schedule, optimizer=optimizer)
    alone = run(plain, tmp_path / "plain", dtype=torch.float64)
    ways = []
    for weight in (1.0, 1e-10):
        joint = dataclasses.replace(plain, objective=CrossEntropy() + MaskedAutoEncoding(weight=weight))
        weights = run(joint, tmp_path / str(weight), dtype=torch.float64)
        assert alone.keys() < weights.keys()
        ways.append(max(float((weights[name] - alone[name]).abs().max()) for name in alone))
    assert ways[0] > 1e-3
    assert ways[1] < 1e-8


def test_the_recipe_weighs_the_reconstruction(prepared: Path, tmp_path: Path) -> None:
    plan = tiny_grid.plan(tmp_path, prepared, ["joint_mae"], "joint_mae.mae_weight = 0.5")
    assert {cell.stage.objective for cell in plan.cells} == {CrossEntropy() + MaskedAutoEncoding(weight=0.5)}
    for weight in ("0.0", "-1", "1e999"):
        with pytest.raises(InputError, match=r"tiny\.gin:11: joint_mae.mae_weight = .*: must be above 0"):
            tiny_grid.plan(tmp_path, prepared, ["joint_mae"], f"joint_mae.mae_weight = {weight}")
