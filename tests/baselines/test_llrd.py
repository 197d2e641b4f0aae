"""Layer-wise rates: every layer's rate against a table, with the schedule, and the inert limit."""

import dataclasses
from pathlib import Path

import pytest
import torch

from baselines.llrd import LayerwiseAdamW
from baselines.recadam import RecAdam
from bench.errors import SpecError
from bench.interfaces.hooks import State
from bench.interfaces.model import Model
from bench.models.build import build
from bench.specs import Optimizer, Schedule, Stage
from bench.training.loop import learning_rate, parameter_groups
from tests import tiny_grid
from tests.examples import finetuning, tiny_backbone
from tests.training.test_batches import WORDS
from tests.training.test_loop import FINETUNE, equal, fitted, run, weights_of

# Two blocks: what is halved how often, by the beginning of a name.
IMAGE_TABLE = {
    "encoder.cls_token": 3,
    "encoder.pos_embed": 3,
    "encoder.patch_embed.": 3,
    "encoder.blocks.0.": 2,
    "encoder.blocks.1.": 1,
    "encoder.norm.": 0,
    "head.": 0,
}
TEXT_TABLE = {"encoder.embeddings.": 3, "encoder.encoder.layer.0.": 2, "encoder.encoder.layer.1.": 1, "head.": 0}
BACKBONES = {
    "image": (tiny_backbone(depth=2), IMAGE_TABLE),
    "text": (dataclasses.replace(WORDS, depth=2), TEXT_TABLE),
}


def halvings(name: str, table: dict[str, int]) -> int:
    (count,) = (count for beginning, count in table.items() if name.startswith(beginning))
    return count


def optimizer_of(stage: Stage, model: Model) -> torch.optim.Optimizer:
    return stage.optimizer.build(parameter_groups(model, stage, State()), dict(model.named_parameters()), 10)


@pytest.mark.parametrize("kind", BACKBONES)
def test_every_layer_has_its_rate_at_every_step_of_the_schedule(kind: str) -> None:
    backbone, table = BACKBONES[kind]
    schedule = Schedule(steps=10, lr=0.8, warmup_steps=2)
    stage = finetuning(
        backbone=backbone, init="random", schedule=schedule, optimizer=LayerwiseAdamW(layer_decay=0.5, weight_decay=0.1)
    )
    model = build(backbone, classes=3)
    optimizer = optimizer_of(stage, model)
    names = [name for group in optimizer.param_groups for name in group["names"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    peaks = [0.0, 0.4, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    for step, peak in enumerate(peaks):
        stage.optimizer.prepare(optimizer, step, learning_rate(schedule, step, 10))
        for group in optimizer.param_groups:
            for name in group["names"]:
                assert float(group["lr"]) == pytest.approx(peak / 2 ** halvings(name, table)), name


def test_a_step_moves_each_layer_by_its_rate() -> None:
    """Adam's first step is the rate times the gradient's sign, so the table shows in the weights."""
    backbone, table = BACKBONES["image"]
    optimizer_spec = LayerwiseAdamW(layer_decay=0.5, weight_decay=0.0)
    stage = finetuning(backbone=backbone, init="random", optimizer=optimizer_spec)
    model = build(backbone, classes=3).double()
    start = weights_of(model)
    optimizer = optimizer_of(stage, model)
    stage.optimizer.prepare(optimizer, 0, 0.8)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, weight in weights_of(model).items():
        moved = torch.full_like(weight, 0.8 / 2 ** halvings(name, table))
        torch.testing.assert_close(start[name] - weight, moved, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("w", [1.0, 0.0])
def test_recadam_scales_its_step_its_pull_and_its_decay(w: float) -> None:
    """A group at half the scale moves as one at the full scale and half the rate."""
    spec = RecAdam(anneal="linear", t0=9, gamma=2.0, w=w, weight_decay=0.5)

    def moved(scale: float, lr: float) -> torch.Tensor:
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 5, dtype=torch.float64))
        group = {"params": [weight], "names": ["a"], "weight_decay": 0.5, "head": False, "rate_scale": scale}
        anchor = {"a": torch.zeros(5, dtype=torch.float64)}
        optimizer = spec.build([group], anchor, 10)  # type: ignore[list-item]
        for step in range(3):
            spec.prepare(optimizer, step, lr)
            weight.grad = weight.detach() ** 2 + 1
            optimizer.step()
        return weight.detach()

    torch.testing.assert_close(moved(0.5, 0.02), moved(1.0, 0.01), rtol=1e-14, atol=0)
    assert not torch.equal(moved(0.5, 0.02), moved(1.0, 0.02))


def test_without_decay_it_is_fine_tuning_bit_for_bit(tmp_path: Path) -> None:
    plain = run(FINETUNE, tmp_path / "plain")
    for layer_decay in (1.0, 0.5):
        optimizer: Optimizer = LayerwiseAdamW(layer_decay=layer_decay)
        model, trained = fitted(dataclasses.replace(FINETUNE, optimizer=optimizer), tmp_path / str(layer_decay))
        assert equal(weights_of(model), plain) == trained.activity["LayerwiseAdamW"].nil == (layer_decay == 1)


def test_the_recipes_decay_follows_the_modality_and_the_rest_fine_tuning(prepared: Path, tmp_path: Path) -> None:
    plan = tiny_grid.plan(tmp_path, prepared, ["llrd"], "finetune.weight_decay = 0.2")
    optimizers = {cell.task: cell.stage.optimizer for cell in plan.cells}
    assert optimizers == {
        "digits": LayerwiseAdamW(weight_decay=0.2, layer_decay=0.75),
        "pydocs": LayerwiseAdamW(weight_decay=0.2, layer_decay=0.95),
    }


@pytest.mark.parametrize("layer_decay", [0.0, 1.1, float("nan")])
def test_impossible_decays_are_refused(layer_decay: float) -> None:
    with pytest.raises(SpecError) as refused:
        LayerwiseAdamW(layer_decay=layer_decay)
    assert refused.value.field == "layer_decay"
