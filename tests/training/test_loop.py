"""The training loop: schedules, streams, accumulation, exact resume, refusal to go on with a broken loss."""

import dataclasses
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import bench.training.loop
from bench.interfaces.examples import Examples
from bench.interfaces.hooks import Batch, Context, Loss, ParameterGroup, State
from bench.interfaces.model import Model
from bench.models.build import build
from bench.specs import Constraint, Objective, Optimizer, Schedule, Stage
from bench.specs.objectives import AdamW, CrossEntropy, MaskedAutoEncoding
from bench.training.batches import Batches
from bench.training.checkpoint import Checkpoints
from bench.training.evaluate import encoder_distance
from bench.training.loop import (
    Diverged,
    Interrupted,
    LossWatch,
    Supervision,
    Trained,
    learning_rate,
    parameter_groups,
    train,
)
from tests.examples import finetuning, pretraining

CPU = torch.device("cpu")


class Pictures(Examples):
    """Random 8 px images with labels."""

    def __init__(self, count: int = 22) -> None:
        generator = torch.Generator().manual_seed(0)
        super().__init__(np.arange(count), torch.arange(count) % 10, None)
        self._images = torch.randn(count, 3, 8, 8, generator=generator)

    def inputs(self, index: Tensor, device: torch.device, flip: Tensor | None = None) -> Tensor:
        images = self._images[index].to(self.dtype)
        return images if flip is None else torch.where(flip[:, None, None, None], images.flip(3), images)


@dataclass(frozen=True)
class Distance(Objective):
    """Uses everything an objective may keep: a trained module, tensors that change, and random numbers."""

    NEEDS = frozenset({"labels", "head"})

    def begin(self, model: Model, teacher: Model | None, context: Context) -> State:
        module = torch.nn.Linear(model.width, 2)
        count = sum(len(index) for index, _ in context.examples(batch_size=5))
        return State(module, {"average": torch.rand(2)}, {"count": count})

    def loss(self, model: Model, batch: Batch, state: State, context: Context) -> Loss:
        assert state.module is not None
        assert state.constants["count"] == 22
        projected = state.module(model.features(batch.inputs) + 0.1 * torch.rand(()))
        state.tensors["average"] = 0.9 * state.tensors["average"] + 0.1 * projected.detach().mean(0)
        return Loss((projected - state.tensors["average"]).square().mean() + model.logits(batch.inputs).square().mean())


@dataclass(frozen=True)
class Dice(CrossEntropy):
    """Cross-entropy times numbers of Python's and NumPy's own generators, at the start and at every step."""

    def begin(self, model: Model, teacher: Model | None, context: Context) -> State:
        return State(constants={"first": random.random() + np.random.rand()})  # noqa: NPY002

    def loss(self, model: Model, batch: Batch, state: State, context: Context) -> Loss:
        loss = super().loss(model, batch, state, context)
        return Loss(loss.total * (state.constants["first"] + random.random() + np.random.rand()))  # noqa: NPY002


@dataclass(frozen=True)
class Shrink(Constraint):
    """Halves the way that every weight has gone."""

    def apply(self, model: Model, reference: Mapping[str, Tensor], state: State, context: Context) -> None:
        for name, parameter in model.named_parameters():
            parameter.copy_((parameter + reference[name]) / 2)


def start_of(stage: Stage, dtype: torch.dtype = torch.float32) -> Model:
    """The network that `fitted` and `run` train, at its start."""
    torch.manual_seed(1)
    needs = stage.objective.needs
    return build(
        stage.backbone,
        classes=10 if "head" in needs else None,
        decoder="decoder" in needs,
        dropout=stage.schedule.dropout,
        labelled="labels" in needs,
    ).to(dtype)


def fitted(
    stage: Stage,
    folder: Path,
    stop_at: int | None = None,
    every: int = 1000,
    progress: Callable[[int, Mapping[str, float]], None] = lambda step, losses: None,
    dtype: torch.dtype = torch.float32,
    graphs: bool = True,
    examples: Examples | None = None,
    teacher: Model | None = None,
) -> tuple[Model, Trained]:
    """Train from the folder's last checkpoint, on random pictures unless `examples` are given."""
    model = start_of(stage, dtype)
    examples = examples or Pictures()
    examples.dtype = dtype
    seen: list[int] = []

    def on_progress(step: int, losses: Mapping[str, float]) -> None:
        seen.append(step)
        progress(step, losses)

    supervision = Supervision(
        stop=lambda: stop_at is not None and seen[-1:] == [stop_at],
        checkpoints=Checkpoints(folder),
        checkpoint_steps=every,
        started=lambda step: None,
        progress=on_progress,
    )
    batches = Batches(stage, examples, model, CPU)
    trained = train(stage, model, teacher, batches, supervision, examples if teacher else None, graphs=graphs)
    return model, trained


def run(stage: Stage, folder: Path, **settings: Any) -> dict[str, Tensor]:
    """The weights that `fitted` leaves."""
    return weights_of(fitted(stage, folder, **settings)[0])


def weights_of(model: Model) -> dict[str, Tensor]:
    """A copy of all weights by name."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


FINETUNE = finetuning(
    schedule=Schedule(steps=7, batch_size=8, lr=1e-2, warmup_steps=2, clip_norm=1.0, dropout=0.2, augmentation="flip")
)
STAGES = {
    "finetune": FINETUNE,
    "masked": pretraining(schedule=Schedule(steps=7, batch_size=8, lr=1e-2)),
    "state": dataclasses.replace(FINETUNE, objective=Distance(), constraint=Shrink()),
    "sum": dataclasses.replace(FINETUNE, objective=CrossEntropy() + Distance()),
    "dice": dataclasses.replace(FINETUNE, objective=Dice()),
}


@pytest.mark.parametrize("name", STAGES)
def test_stopping_at_any_step_and_resuming_gives_the_same_bits(name: str, tmp_path: Path) -> None:
    stage = STAGES[name]
    whole = run(stage, tmp_path / "whole")
    assert not equal(whole, run(dataclasses.replace(stage, seed=8), tmp_path / "other"))
    for step in range(1, 7):
        folder = tmp_path / str(step)
        with pytest.raises(Interrupted):
            run(stage, folder, stop_at=step)
        assert equal(run(stage, folder), whole), f"interrupted after step {step}"


def test_resuming_several_times_and_from_periodic_checkpoints(tmp_path: Path) -> None:
    stage = STAGES["state"]
    whole = run(stage, tmp_path / "whole")
    for stop in (2, 3, 6):
        with pytest.raises(Interrupted):
            run(stage, tmp_path / "parts", stop_at=stop, every=2)
    assert equal(run(stage, tmp_path / "parts"), whole)


@pytest.mark.parametrize("damage", ["truncated", "changed", "marker", "all"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(damage: str, tmp_path: Path) -> None:
    stage = STAGES["finetune"]
    whole = run(stage, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(stage, tmp_path / "parts", stop_at=6, every=2)
    markers = sorted((tmp_path / "parts").glob("*.json"))
    assert [json.loads(marker.read_text())["step"] for marker in markers] == [4, 6]
    for marker in markers if damage == "all" else markers[-1:]:
        file = marker if damage == "marker" else marker.with_suffix(".pt")
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content if damage == "changed" else content[: len(content) // 2])
    checkpoints = Checkpoints(tmp_path / "parts")
    loaded = checkpoints.load(CPU)
    assert (loaded[0] if loaded else None) == (None if damage == "all" else 4)
    assert len(checkpoints.warnings) == (2 if damage == "all" else 1)
    assert equal(run(stage, tmp_path / "parts"), whole)


def test_dropout_is_the_same_whatever_else_a_method_computes(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Busy(CrossEntropy):
        """Cross-entropy that wastes random numbers after its forward pass."""

        def loss(self, model: Model, batch: Batch, state: State, context: Context) -> Loss:
            loss = super().loss(model, batch, state, context)
            torch.rand(context.step + 3)
            return loss

    plain = run(FINETUNE, tmp_path / "a")
    busy = run(dataclasses.replace(FINETUNE, objective=Busy()), tmp_path / "b")
    assert equal(plain, busy)


def test_dropout_is_drawn_anew_at_every_step(tmp_path: Path) -> None:
    drawn: list[float] = []

    @dataclass(frozen=True)
    class Listening(CrossEntropy):
        """Cross-entropy that notes the first random number of every forward pass."""

        def loss(self, model: Model, batch: Batch, state: State, context: Context) -> Loss:
            drawn.append(float(torch.rand(())))
            return super().loss(model, batch, state, context)

    stage = dataclasses.replace(FINETUNE, objective=Listening())
    run(stage, tmp_path / "a")
    run(dataclasses.replace(stage, schedule=dataclasses.replace(stage.schedule, micro_batches=2)), tmp_path / "b")
    assert len(set(drawn)) == 14  # the first of two micro-batches draws what the whole batch would
    assert len(drawn) == 21


def test_accumulation_changes_nothing_but_rounding(tmp_path: Path) -> None:
    schedule = dataclasses.replace(FINETUNE.schedule, dropout=0.0, augmentation="none")
    whole = run(dataclasses.replace(FINETUNE, schedule=schedule), tmp_path / "a", dtype=torch.float64)
    # Batches of 8, 8 and 6: the last one of an epoch splits unevenly.
    split = dataclasses.replace(FINETUNE, schedule=dataclasses.replace(schedule, micro_batches=4))
    parts = run(split, tmp_path / "b", dtype=torch.float64)
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-7, atol=1e-9)
    assert not equal(whole, parts)


def test_gradients_are_clipped_by_their_global_norm(tmp_path: Path) -> None:
    """Adam's first step does not see the scale, but a mixture of steps does."""
    schedules = [Schedule(steps=3, batch_size=8, lr=1e-2, clip_norm=clip) for clip in (1e6, 1e-3, None)]
    loose, tight, none = (
        run(dataclasses.replace(FINETUNE, schedule=schedule), tmp_path / str(i)) for i, schedule in enumerate(schedules)
    )
    assert equal(loose, none)
    assert not equal(tight, none)


@dataclass(frozen=True)
class Partial(Optimizer):
    """Builds an optimiser of the classifier alone, or none."""

    builds: bool = True

    def build(
        self, groups: list[ParameterGroup], reference: Mapping[str, Tensor], total_steps: int
    ) -> torch.optim.Optimizer:
        if not self.builds:
            return None  # type: ignore[return-value]
        return torch.optim.SGD([group for group in groups if group["head"]], lr=0.0)  # type: ignore[misc]


@pytest.mark.parametrize(("builds", "words"), [(True, "leaves out"), (False, "returned NoneType")])
def test_an_optimiser_that_would_leave_weights_as_they_are_is_refused(builds: bool, words: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=rf"Partial\.build {words}"):
        run(dataclasses.replace(FINETUNE, optimizer=Partial(builds)), tmp_path)


def test_weights_that_are_no_numbers_are_never_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(self: Shrink, model: Model, *rest: object) -> None:
        next(iter(model.parameters())).data[...] = float("nan")

    monkeypatch.setattr(Shrink, "apply", spoil)
    stage = dataclasses.replace(FINETUNE, constraint=Shrink(), schedule=Schedule(steps=1, batch_size=8))
    with pytest.raises(Diverged, match="weights"):
        run(stage, tmp_path)


def test_weights_that_stand_still_are_never_published(tmp_path: Path) -> None:
    """The square of a gradient of 1e20 is infinite in float32, and Adam divides by it: loss and weights stay finite."""

    def scaled(self: CrossEntropy, *arguments: Any) -> Loss:
        loss = plain(self, *arguments)
        return Loss(loss.total * 1e25, loss.parts)

    plain = CrossEntropy.loss
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CrossEntropy, "loss", scaled)
        schedule = dataclasses.replace(FINETUNE.schedule, clip_norm=None)
        with pytest.raises(Diverged, match="optimiser"):
            run(dataclasses.replace(FINETUNE, schedule=schedule), tmp_path)


def test_what_an_optimiser_draws_before_a_step_does_not_depend_on_where_a_run_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[int, float] = {}

    def prepare(self: AdamW, optimizer: torch.optim.Optimizer, step: int, rate: float) -> None:
        drawn[step] = float(torch.rand(()))
        plain(self, optimizer, step, rate)

    plain = AdamW.prepare
    monkeypatch.setattr(AdamW, "prepare", prepare)
    run(FINETUNE, tmp_path / "whole")
    whole = dict(drawn)
    with pytest.raises(Interrupted):
        run(FINETUNE, tmp_path / "parts", stop_at=3)
    torch.manual_seed(99)
    run(FINETUNE, tmp_path / "parts")
    assert drawn == whole and len({*whole.values()}) == len(whole)


def test_a_loss_that_is_no_number_stops_the_stage_with_step_and_rate(tmp_path: Path) -> None:
    stage = dataclasses.replace(FINETUNE, schedule=Schedule(steps=7, batch_size=8, lr=1e30))
    with pytest.raises(Diverged, match=r"step [1-6] of 7"):
        run(stage, tmp_path)


def test_the_learning_rate_rises_then_falls_to_zero() -> None:
    schedule = Schedule(steps=10, lr=2.0, warmup_steps=4)
    rates = [learning_rate(schedule, step, 10) for step in range(10)]
    assert rates == pytest.approx([0, 0.5, 1.0, 1.5, 2.0, 10 / 6, 8 / 6, 1.0, 4 / 6, 2 / 6])
    constant = Schedule(steps=10, lr=2.0, decay="constant")
    assert {learning_rate(constant, step, 10) for step in range(10)} == {2.0}


def groups_of(stage: Stage) -> dict[str, tuple[bool, float]]:
    needs = stage.objective.needs
    model = build(stage.backbone, classes=10 if "head" in needs else None, decoder="decoder" in needs)
    groups = parameter_groups(model, stage, State())
    return {name: (group["head"], group["weight_decay"]) for group in groups for name in group["names"]}


def test_weight_decay_goes_by_role_and_differs_between_the_stages() -> None:
    """The groups of the released image code (timm's rule in pre-training, names in fine-tuning)."""
    fine = groups_of(finetuning(optimizer=AdamW(weight_decay=0.1)))
    assert fine["encoder.blocks.0.attn.qkv.weight"] == (False, 0.1)
    assert fine["encoder.norm.weight"] == (False, 0.1)
    assert fine["encoder.norm.bias"] == (False, 0.0)
    assert fine["encoder.cls_token"] == (False, 0.0)
    assert fine["encoder.pos_embed"] == (False, 0.0)
    assert fine["head.weight"] == (True, 0.1)
    assert fine["head.bias"] == (True, 0.0)
    pre = groups_of(pretraining(optimizer=AdamW(weight_decay=0.1)))
    assert pre["encoder.norm.weight"] == (False, 0.0)
    assert pre["encoder.cls_token"] == pre["decoder.mask_token"] == (False, 0.1)
    assert "encoder.pos_embed" not in pre


def test_constraints_apply_after_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = run(FINETUNE, tmp_path / "a")
    held = run(dataclasses.replace(FINETUNE, constraint=Shrink()), tmp_path / "b")
    torch.manual_seed(1)
    start = dict(build(FINETUNE.backbone, classes=10).named_parameters())
    far, near = ((weights["head.weight"] - start["head.weight"]).norm() for weights in (free, held))
    assert 0 < near < 0.7 * far
    applied: list[Model] = []
    monkeypatch.setattr(Shrink, "apply", lambda self, model, *rest: applied.append(model))
    run(dataclasses.replace(FINETUNE, constraint=Shrink()), tmp_path / "c")
    assert len(applied) == 7


def test_the_encoders_way_is_its_euclidean_distance(tmp_path: Path) -> None:
    models = [build(FINETUNE.backbone, classes=10) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    with torch.no_grad():
        models[1].encoder.norm.weight[0] += 3.0
        models[1].encoder.pos_embed[0, 0, 0] += 4.0
        models[1].head.weight += 1.0
    assert encoder_distance(models[1], models[0]) == pytest.approx(
        {"encoder_distance": 5.0, "encoder_distance_without_positions": 3.0}, rel=1e-6
    )


def test_masked_objective_trains_the_decoder_and_reports_its_part(tmp_path: Path) -> None:
    losses: list[float] = []
    stage = pretraining(schedule=Schedule(steps=60, batch_size=22, lr=1e-2))
    run(stage, tmp_path, progress=lambda step, parts: losses.append(float(parts["masked"])))
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])
    assert MaskedAutoEncoding().needs == {"mask", "decoder"}


def test_the_masked_loss_is_weighted(tmp_path: Path) -> None:
    seen: list[tuple[float, float]] = []

    def progress(step: int, losses: Mapping[str, Tensor]) -> None:
        seen.append((float(losses["loss"]), float(losses["masked"])))

    run(dataclasses.replace(STAGES["masked"], objective=MaskedAutoEncoding(weight=0.25)), tmp_path, progress=progress)
    assert len(seen) == 7
    assert all(total == 0.25 * masked > 0 for total, masked in seen)


# ------------------------------------------------------------------------------------------------ the same bits


@pytest.mark.parametrize("fused", [True, False])
def test_a_rate_in_a_tensor_updates_as_a_number_does(fused: bool) -> None:
    """What a GPU needs for recorded steps changes no bit on a CPU."""
    start = [torch.randn(5, 3), torch.randn(4)]
    ours, theirs = ([torch.nn.Parameter(values.clone()) for values in start] for _ in range(2))
    spec = AdamW(weight_decay=0.1, fused=fused)
    optimizer = spec.build([{"params": ours, "names": ["a", "b"], "weight_decay": 0.1, "head": False}], {}, 20)
    plain = torch.optim.AdamW(theirs, weight_decay=0.1, fused=fused)
    for step in range(20):
        rate = 1e-2 / (step + 3)
        spec.prepare(optimizer, step, rate)
        plain.param_groups[0]["lr"] = rate
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        optimizer.step()
        plain.step()
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    assert not torch.equal(ours[0], start[0])


def test_gradients_clipped_all_at_once_are_those_clipped_one_by_one() -> None:
    gradients = [torch.randn(7, 5), torch.randn(3), torch.randn(2, 2, 2)]
    clipped = []
    for foreach in (True, False):
        parameters = [torch.nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        torch.nn.utils.clip_grad_norm_(parameters, 0.3, foreach=foreach)
        clipped.append([parameter.grad for parameter in parameters])
    assert all(torch.equal(one, other) for one, other in zip(*clipped, strict=True))


def test_only_who_reads_the_first_weights_is_handed_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handed: list[int] = []
    build_optimizer = AdamW.build

    def build(self: AdamW, groups: Any, reference: Mapping[str, Tensor], total_steps: int) -> torch.optim.Optimizer:
        handed.append(len(reference))
        return build_optimizer(self, groups, reference, total_steps)

    monkeypatch.setattr(AdamW, "build", build)
    run(FINETUNE, tmp_path / "a")
    run(dataclasses.replace(FINETUNE, constraint=Shrink()), tmp_path / "b")
    assert handed[0] == 0 < handed[1]


def test_a_checkpoint_holds_moments_but_neither_rates_nor_switches(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run(FINETUNE, tmp_path, stop_at=3)
    saved = Checkpoints(tmp_path).load(CPU)
    assert saved is not None
    moments = saved[1]["optimizer"]
    assert all(state.keys() == {"step", "exp_avg", "exp_avg_sq"} for state in moments.values())
    assert {float(state["step"]) for state in moments.values()} == {3.0}


def test_late_losses_name_the_first_bad_step_and_come_in_order() -> None:
    seen: list[tuple[int, float]] = []
    watch = LossWatch(lambda step, losses: seen.append((step, losses["loss"])), total_steps=9, late=3)
    for step in range(1, 4):
        watch.add(step, 0.1, {"part": torch.tensor(1.0), "loss": torch.tensor(float(step))})
    assert seen == []
    watch.add(4, 0.1, {"loss": torch.tensor(float("inf"))})
    watch.add(5, 0.1, {"loss": torch.tensor(float("nan"))})
    assert seen == [(1, 1.0), (2, 2.0)]
    with pytest.raises(Diverged, match="inf at step 3 of 9"):
        watch.settle()
    assert seen[-1] == (3, 3.0)


@pytest.mark.parametrize("step", [0, 1])
def test_no_learning_rate_is_blamed_before_the_first_update(step: int) -> None:
    watch = LossWatch(lambda step, losses: None, total_steps=9, late=0)
    with pytest.raises(Diverged) as caught:
        watch.add(step + 1, 0.0, {"loss": torch.tensor(float("nan"))})
    assert ("lower the learning rate" in str(caught.value)) == (step > 0)


@pytest.mark.parametrize("every", [3, 1000])
def test_nothing_is_saved_or_finished_with_a_loss_that_is_no_number(
    every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However late losses are read: before a checkpoint, and before the end."""
    monkeypatch.setattr(bench.training.loop, "late_steps", lambda device: 100)
    stage = dataclasses.replace(FINETUNE, schedule=Schedule(steps=7, batch_size=8, lr=1e30))
    with pytest.raises(Diverged, match=r"the loss is .* at step [1-6] of 7"):
        run(stage, tmp_path, every=every)
    assert Checkpoints(tmp_path).load(CPU) is None or every == 1000
