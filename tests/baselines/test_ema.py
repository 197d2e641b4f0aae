"""Averages over steps: the explicit weighted sum, restarts, its inert limit, and what is kept."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from baselines.ema import WeightAverage
from bench.errors import SpecError
from bench.interfaces.hooks import Context, State
from bench.interfaces.model import Model
from bench.specs import Constraint
from bench.training.loop import Interrupted
from tests.training.test_loop import FINETUNE, equal, fitted, run, weights_of

PASSED: list[dict[str, Tensor]] = []


@dataclass(frozen=True)
class NotingSteps(Constraint):
    """Changes nothing; notes the weights after every step."""

    def apply(self, model: Model, reference: Mapping[str, Tensor], state: State, context: Context) -> None:
        PASSED.append(weights_of(model))


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """The weights of plain fine-tuning after each of its 7 steps."""
    PASSED.clear()
    run(dataclasses.replace(FINETUNE, constraint=NotingSteps()), tmp_path_factory.mktemp("plain"), dtype=torch.float64)
    return list(PASSED)


@pytest.mark.parametrize("decay", [0.3, 0.9, 0.999])
def test_what_is_kept_is_the_weighted_mean_of_all_steps(
    decay: float, steps: list[dict[str, Tensor]], tmp_path: Path
) -> None:
    """Step t of T counts (1 − d) d^(T−t) / (1 − d^T), which add up to 1; the start counts nothing."""
    stage = dataclasses.replace(FINETUNE, constraint=WeightAverage(decay=decay))
    kept, trained = fitted(stage, tmp_path, dtype=torch.float64)
    shares = [(1 - decay) * decay ** (7 - t) / (1 - decay**7) for t in range(1, 8)]
    assert sum(shares) == pytest.approx(1)
    way = 0.0
    for name, weight in weights_of(kept).items():
        expected = sum(share * passed[name] for share, passed in zip(shares, steps, strict=True))
        torch.testing.assert_close(weight, expected, rtol=1e-11, atol=1e-13)
        way += float((steps[-1][name] - expected).square().sum())
    activity = trained.activity["WeightAverage"]  # measured before the average replaces the last step's weights
    assert activity.value == pytest.approx(way**0.5, rel=1e-9)
    assert not activity.nil


def test_without_decay_it_is_fine_tuning_bit_for_bit(tmp_path: Path) -> None:
    plain = run(FINETUNE, tmp_path / "plain")
    kept, trained = fitted(dataclasses.replace(FINETUNE, constraint=WeightAverage(decay=0.0)), tmp_path / "inert")
    assert equal(weights_of(kept), plain)
    assert trained.activity["WeightAverage"].nil


def test_the_average_survives_a_stop_after_any_step(tmp_path: Path) -> None:
    stage = dataclasses.replace(FINETUNE, constraint=WeightAverage(decay=0.8))
    whole = run(stage, tmp_path / "whole")
    for step in range(1, 7):
        with pytest.raises(Interrupted):
            run(stage, tmp_path / "parts", stop_at=step)
    assert equal(run(stage, tmp_path / "parts"), whole)


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_impossible_decays_are_refused(decay: float) -> None:
    with pytest.raises(SpecError) as refused:
        WeightAverage(decay=decay)
    assert refused.value.field == "decay"
