"""WiSE-FT: the interpolation by hand, which parts it touches, and its inert limits."""

import dataclasses
from pathlib import Path

import pytest
import torch

from baselines.supcon import Probe
from baselines.wise_ft import WeightInterpolation
from bench.errors import SpecError
from bench.interfaces.hooks import Clock, Context, State
from bench.models.build import build
from bench.training.loop import Interrupted
from tests.examples import tiny_backbone
from tests.training.test_loop import FINETUNE, equal, fitted, run, start_of, weights_of


def test_the_encoder_goes_part_of_the_way_back_and_the_head_none(tmp_path: Path) -> None:
    trained, start = run(FINETUNE, tmp_path / "plain"), weights_of(start_of(FINETUNE))
    for alpha in (0.0, 0.3, 1.0):
        stage = dataclasses.replace(FINETUNE, constraint=WeightInterpolation(alpha=alpha))
        kept, result = fitted(stage, tmp_path / str(alpha))
        assert result.activity["WeightInterpolation"].nil == (alpha == 1)
        for name, weight in weights_of(kept).items():
            if name.startswith("head.") or alpha == 1:
                assert torch.equal(weight, trained[name])
            elif alpha == 0:
                assert torch.equal(weight, start[name])
            else:
                torch.testing.assert_close(weight, 0.7 * start[name] + 0.3 * trained[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("carried", [False, True])
def test_a_head_that_was_trained_before_is_interpolated_and_a_decoder_never(carried: bool) -> None:
    torch.manual_seed(1)
    model = build(tiny_backbone(), classes=3, decoder=True)
    reference = weights_of(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 2.0
    context = Context(Clock(9), 10, False, torch.device("cpu"), None, head_carried=carried)  # type: ignore[arg-type]
    with torch.no_grad():
        WeightInterpolation(alpha=0.25).finish(model, reference, State(), context)
    for name, weight in model.named_parameters():
        back = name.startswith("encoder.") or (carried and name.startswith("head."))
        torch.testing.assert_close(weight.detach(), reference[name] + (0.5 if back else 2.0))


def test_the_loop_says_whether_the_head_was_carried(tmp_path: Path) -> None:
    """All the way back, a carried head is its start, and a fresh one stays what it was trained to be."""
    probe = dataclasses.replace(FINETUNE, name="linear_probe", objective=Probe())
    constraint = WeightInterpolation(alpha=0.0)
    for head in ("carried", "fresh"):
        stage = dataclasses.replace(FINETUNE, init=probe, head=head, constraint=constraint)
        start, kept = weights_of(start_of(stage)), run(stage, tmp_path / head)
        assert torch.equal(kept["head.weight"], start["head.weight"]) == (head == "carried")


def test_it_goes_back_to_the_stages_start_after_a_restart_too(tmp_path: Path) -> None:
    stage = dataclasses.replace(FINETUNE, constraint=WeightInterpolation())
    whole = run(stage, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(stage, tmp_path / "parts", stop_at=4)
    assert equal(run(stage, tmp_path / "parts"), whole)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_impossible_shares_are_refused(alpha: float) -> None:
    with pytest.raises(SpecError) as refused:
        WeightInterpolation(alpha=alpha)
    assert refused.value.field == "alpha"
