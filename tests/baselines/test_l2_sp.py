"""L2-SP: the penalty and its gradient by hand, its start after a restart, and its inert limit."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines.l2_sp import L2SP
from bench.errors import InputError, SpecError
from bench.interfaces.hooks import Batch, Clock, Context
from bench.models.build import build
from bench.specs.objectives import AdamW, CrossEntropy
from bench.training.loop import Interrupted
from tests import tiny_grid
from tests.examples import tiny_backbone
from tests.training.test_loop import FINETUNE, equal, fitted, run

NO_DECAY = AdamW(weight_decay=0.0)


def test_value_and_gradient_are_the_papers() -> None:
    """Ω = α/2 ‖w_S − w⁰‖² + β/2 ‖w_S̄‖², so its gradient is α (w_S − w⁰) on the encoder and β w_S̄ on the head."""
    torch.manual_seed(1)
    model = build(tiny_backbone(), classes=3).double()
    context = Context(Clock(), 10, False, torch.device("cpu"), training_set=None)  # type: ignore[arg-type]
    penalty = L2SP(alpha=0.3, beta=0.07)
    state = penalty.begin(model, None, context)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter)
    batch = Batch(torch.randn(2, 3, 8, 8).double(), torch.arange(2), torch.tensor([0, 1]))
    loss = penalty.loss(model, batch, state, context).total
    loss.backward()  # type: ignore[no-untyped-call]
    expected = 0.0
    for name, parameter in model.named_parameters():
        values = parameter.detach()
        if name.startswith("head."):
            expected += 0.035 * values.square().sum().item()
            by_hand = 0.07 * values
        else:
            expected += 0.15 * (values - start[name]).square().sum().item()
            by_hand = 0.3 * (values - start[name])
        torch.testing.assert_close(parameter.grad, by_hand, rtol=1e-12, atol=1e-14)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_without_strength_it_is_fine_tuning_without_decay(tmp_path: Path) -> None:
    plain = run(dataclasses.replace(FINETUNE, optimizer=NO_DECAY), tmp_path / "plain")
    sum_of = {alpha: CrossEntropy() + L2SP(alpha=alpha, beta=alpha) for alpha in (0.0, 0.5)}
    inert, active = (dataclasses.replace(FINETUNE, optimizer=NO_DECAY, objective=sum_of[alpha]) for alpha in sum_of)
    weights, trained = fitted(inert, tmp_path / "inert")
    assert equal(dict(weights.named_parameters()), plain)
    assert trained.activity["L2SP"].nil
    weights, trained = fitted(active, tmp_path / "active")
    assert not equal(dict(weights.named_parameters()), plain)
    assert not trained.activity["L2SP"].nil


def test_the_pull_is_to_the_stages_start_after_a_restart_too(tmp_path: Path) -> None:
    stage = dataclasses.replace(FINETUNE, optimizer=NO_DECAY, objective=CrossEntropy() + L2SP(alpha=5.0))
    whole = run(stage, tmp_path / "whole")
    for step in (1, 6):
        with pytest.raises(Interrupted):
            run(stage, tmp_path / str(step), stop_at=step)
        assert equal(run(stage, tmp_path / str(step)), whole)


def test_the_recipe_leaves_out_the_decay_towards_the_origin(prepared: Path, tmp_path: Path) -> None:
    plan = tiny_grid.plan(tmp_path, prepared, ["finetune", "l2_sp"], "finetune.weight_decay = 0.2", "L2SP.alpha = 2.0")
    for cell in plan.cells:
        if cell.row == "l2_sp":
            assert cell.stage.optimizer == AdamW(weight_decay=0.0)
            assert cell.stage.objective == CrossEntropy() + L2SP(alpha=2.0)


@pytest.mark.parametrize(("field", "value"), [("alpha", -1.0), ("alpha", math.inf), ("beta", math.nan)])
def test_impossible_values_are_refused(field: str, value: Any) -> None:
    with pytest.raises(SpecError) as refused:
        L2SP(**{field: value})
    assert refused.value.field == field


def test_a_decay_bound_for_this_row_alone_is_refused(prepared: Path, tmp_path: Path) -> None:
    """The penalty stands in for it: else two candidates of a search that differ in it would be the same stage."""
    shared = tiny_grid.plan(tmp_path, prepared, ["finetune", "l2_sp"], "finetune.weight_decay = 0.3")
    decays = {cell.row: cell.stage.optimizer.weight_decay for cell in shared.cells}
    assert decays == {"finetune": 0.3, "l2_sp": 0.0}
    with pytest.raises(InputError, match=r"tiny\.gin:11: l2_sp/finetune\.weight_decay changes nothing"):
        tiny_grid.plan(tmp_path, prepared, ["finetune", "l2_sp"], "l2_sp/finetune.weight_decay = 0.3")
