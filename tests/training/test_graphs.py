"""Recorded steps: the same bits as steps that are computed as written, or a reason why they are not recorded."""

import dataclasses
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from baselines.mars import MarsProjection
from baselines.r3f import R3F
from baselines.recadam import RecAdam
from bench.check.host_graph import HostGraph
from bench.device import CPU
from bench.interfaces.hooks import Batch, Context, Loss, State
from bench.interfaces.model import Model
from bench.specs import Constraint, Schedule, Stage
from bench.specs.architectures import TransformersEncoder
from bench.specs.objectives import AdamW, CrossEntropy
from bench.training import graphs, loop
from bench.training.loop import Interrupted
from tests.training.test_loop import FINETUNE, STAGES, equal, run


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> type[HostGraph]:
    """Has the CPU record steps as a GPU does."""
    monkeypatch.setattr(loop, "has_graphs", lambda device: True)
    monkeypatch.setattr(graphs, "graph_pool", lambda device: None)
    monkeypatch.setattr(graphs, "Graph", HostGraph)
    monkeypatch.setattr(HostGraph, "count", 0)
    return HostGraph


def plain(stage: Stage, folder: Path) -> dict[str, Tensor]:
    """The weights of a stage whose steps are computed as written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "has_graphs", lambda device: False)
        return run(stage, folder)


def longer(stage: Stage, **changes: object) -> Stage:
    """More steps, so that the shapes of whole and of smaller batches (8, 8, 6 of 22) both come up often."""
    return dataclasses.replace(stage, schedule=dataclasses.replace(stage.schedule, steps=14, **changes))


RECORDED = {
    "finetune": longer(FINETUNE),
    "masked": longer(STAGES["masked"]),
    "recadam": longer(dataclasses.replace(FINETUNE, optimizer=RecAdam(gamma=90.0, t0=3, k=1.0))),
    "mars": longer(dataclasses.replace(FINETUNE, constraint=MarsProjection(radius=0.05, head_radius=0.5))),
    "r3f": longer(dataclasses.replace(FINETUNE, objective=R3F(eps=0.1))),
    "micro_batches": longer(FINETUNE, micro_batches=3),
}


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_steps_give_the_same_bits(name: str, recording: type[HostGraph], tmp_path: Path) -> None:
    stage = RECORDED[name]
    whole = plain(stage, tmp_path / "plain")
    assert recording.count == 0
    assert equal(run(stage, tmp_path / "recorded"), whole)
    # Whole and smaller batches; with three micro-batches parts of 3 and 2 (of 8 and 6 alike) and the update.
    assert recording.count == (3 if name == "micro_batches" else 2)


@pytest.mark.parametrize("name", ["finetune", "recadam", "micro_batches"])
def test_stopping_at_any_step_and_recording_anew_gives_the_same_bits(
    name: str, recording: type[HostGraph], tmp_path: Path
) -> None:
    stage = RECORDED[name]
    whole = plain(stage, tmp_path / "plain")
    for step in range(1, 14):
        with pytest.raises(Interrupted):
            run(stage, tmp_path / str(step), stop_at=step)
        assert equal(run(stage, tmp_path / str(step)), whole), f"interrupted after step {step}"
    assert recording.count > 0


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_losses_are_those_of_their_own_step(micro_batches: int, recording: type[HostGraph], tmp_path: Path) -> None:
    """A graph leaves every step's losses in the same tensors, and those of every micro-batch of a step."""
    seen: dict[str, list[float]] = {"plain": [], "recorded": []}
    stage = RECORDED["finetune"]
    stage = dataclasses.replace(stage, schedule=dataclasses.replace(stage.schedule, micro_batches=micro_batches))
    for kind, losses in seen.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "has_graphs", lambda device, kind=kind: kind == "recorded")
            patch.setattr(loop, "late_steps", lambda device: 5)
            run(stage, tmp_path / kind, progress=lambda step, parts, losses=losses: losses.append(float(parts["loss"])))
    assert seen["plain"] == seen["recorded"]
    assert len(set(seen["plain"])) == 14


def test_graphs_can_be_switched_off(recording: type[HostGraph], tmp_path: Path) -> None:
    run(RECORDED["finetune"], tmp_path, graphs=False)
    assert recording.count == 0


def test_few_recordings_are_kept(recording: type[HostGraph], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(graphs, "MOST_RECORDINGS", 1)
    stage = RECORDED["finetune"]
    whole = plain(stage, tmp_path / "plain")
    assert equal(run(stage, tmp_path / "recorded"), whole)
    assert recording.count == 1


# ------------------------------------------------------------------------------------------------ what breaks it


@dataclass(frozen=True)
class Undeclared(CrossEntropy):
    """Says nothing of recording, as a method of somebody who has not thought of it."""

    CAPTURABLE = False


@dataclass(frozen=True)
class ReadsStep(CrossEntropy):
    """Weights its loss by the step, which a recording freezes."""

    def loss(self, model: Model, batch: Batch, state: State, context: Context) -> Loss:
        loss = super().loss(model, batch, state, context)
        return Loss(loss.total * (1 + context.step), loss.parts)


@dataclass(frozen=True)
class ReplacesState(CrossEntropy):
    """Puts a new tensor into its state at every step; a recording reads the old one for ever."""

    def begin(self, model: Model, teacher: Model | None, context: Context) -> State:
        return State(tensors={"average": torch.zeros(())})

    def loss(self, model: Model, batch: Batch, state: State, context: Context) -> Loss:
        loss = super().loss(model, batch, state, context)
        state.tensors["average"] = 0.9 * state.tensors["average"] + 0.1 * loss.total.detach()
        return Loss(loss.total * (1 + state.tensors["average"]))


@dataclass(frozen=True)
class ChangesState(ReplacesState):
    """The same average, kept in one tensor: as it should be done."""

    def loss(self, model: Model, batch: Batch, state: State, context: Context) -> Loss:
        loss = CrossEntropy.loss(self, model, batch, state, context)
        state.tensors["average"].mul_(0.9).add_(0.1 * loss.total.detach())
        return Loss(loss.total * (1 + state.tensors["average"]))


@dataclass(frozen=True)
class DrawsOnTheHost(CrossEntropy):
    """Weights its loss by Python's and NumPy's random numbers, which a recording freezes."""

    kind: str = "random"

    def loss(self, model: Model, batch: Batch, state: State, context: Context) -> Loss:
        drawn = random.random() if self.kind == "random" else np.random.rand()  # noqa: NPY002
        loss = super().loss(model, batch, state, context)
        return Loss(loss.total * (0.5 + drawn))


@dataclass(frozen=True)
class MakesOnTheHost(CrossEntropy):
    """Weights examples by numbers that torch draws on the host, as no device is given."""

    def loss(self, model: Model, batch: Batch, state: State, context: Context) -> Loss:
        weights = torch.rand(len(batch.index)).to(batch.index.device)
        return Loss(super().loss(model, batch, state, context).total * weights.mean())


@dataclass(frozen=True)
class DrawsOnTheDevice(CrossEntropy):
    """Does the same where the batch lies: as it should be done."""

    def loss(self, model: Model, batch: Batch, state: State, context: Context) -> Loss:
        weights = torch.rand(len(batch.index), device=batch.index.device)
        return Loss(super().loss(model, batch, state, context).total * weights.mean() * torch.tensor(0.5))


@dataclass(frozen=True)
class AsksTheDevice(CrossEntropy):
    """Decides by a number that is on the device, which cannot be known while a step is recorded."""

    def loss(self, model: Model, batch: Batch, state: State, context: Context) -> Loss:
        loss = super().loss(model, batch, state, context)
        return Loss(loss.total * 2 if float(loss.total.detach()) > 1 else loss.total)


@dataclass(frozen=True)
class UndeclaredShrink(Constraint):
    """A constraint that says nothing of recording."""

    def apply(self, model: Model, reference: Mapping[str, Tensor], state: State, context: Context) -> None:
        for name, parameter in model.named_parameters():
            parameter.copy_((parameter + reference[name]) / 2)


def test_steps_of_networks_that_transformers_computes_are_not_recorded(
    recording: type[HostGraph], capsys: pytest.CaptureFixture[str]
) -> None:
    stage = dataclasses.replace(RECORDED["finetune"], schedule=Schedule(steps=4))
    assert loop._recordable(stage, CPU)
    encoder = TransformersEncoder("tiny", stage.backbone.weights, None, None)
    assert not loop._recordable(dataclasses.replace(stage, backbone=encoder), CPU)
    assert "TransformersEncoder is not declared CAPTURABLE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "recorded", "reason"),
    [
        ({"objective": Undeclared()}, False, "Undeclared is not declared CAPTURABLE"),
        ({"constraint": UndeclaredShrink()}, False, "UndeclaredShrink is not declared CAPTURABLE"),
        ({"objective": CrossEntropy() + Undeclared()}, False, "Sum is not declared CAPTURABLE"),
        ({"objective": ReadsStep()}, True, "reads context.step"),
        ({"objective": ReplacesState()}, True, "other tensors are put into the state (average)"),
        ({"objective": CrossEntropy() + ReplacesState()}, True, "other tensors are put into the state (1.average)"),
        ({"objective": DrawsOnTheHost()}, True, "random numbers on the host"),
        ({"objective": DrawsOnTheHost(kind="numpy")}, True, "random numbers on the host"),
        ({"objective": MakesOnTheHost()}, True, "torch.rand without device= makes a tensor on the host"),
        ({"objective": AsksTheDevice()}, True, "asks the device for a value"),
        ({"optimizer": AdamW(fused=False)}, True, "asks the device for a value"),  # torch's, on a CPU
    ],
)
def test_what_cannot_be_recorded_is_computed_as_written(
    change: dict[str, object],
    recorded: bool,
    reason: str,
    recording: type[HostGraph],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stage = dataclasses.replace(RECORDED["finetune"], **change)  # type: ignore[arg-type]

    def seeded(folder: Path, with_graphs: bool) -> dict[str, Tensor]:
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        return run(stage, folder, graphs=with_graphs)

    whole = seeded(tmp_path / "plain", with_graphs=False)
    assert "not recorded" not in capsys.readouterr().out
    assert equal(seeded(tmp_path / "recorded", with_graphs=True), whole)
    assert recording.count == int(recorded)  # one try, then no more
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("steps are not recorded: ")]
    assert len(lines) == 1 and reason in lines[0]


@pytest.mark.parametrize("objective", [ChangesState(), CrossEntropy() + ChangesState(), DrawsOnTheDevice()])
def test_what_keeps_to_the_rules_is_recorded(
    objective: CrossEntropy, recording: type[HostGraph], tmp_path: Path
) -> None:
    stage = dataclasses.replace(RECORDED["finetune"], objective=objective)
    whole = plain(stage, tmp_path / "plain")
    assert equal(run(stage, tmp_path / "recorded"), whole)
    assert recording.count == 2


def test_an_error_of_the_step_itself_is_raised(recording: type[HostGraph], tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Breaks(CrossEntropy):
        """Breaks at its fifth step."""

        def loss(self, model: Model, batch: Batch, state: State, context: Context) -> Loss:
            if context.clock.step >= 4:
                raise ZeroDivisionError("at the fifth step")
            return super().loss(model, batch, state, context)

    with pytest.raises(ZeroDivisionError, match="fifth step"):
        run(dataclasses.replace(RECORDED["finetune"], objective=Breaks()), tmp_path)


def test_the_schedule_reaches_recorded_steps(recording: type[HostGraph], tmp_path: Path) -> None:
    """With a frozen rate the two would agree."""
    constant = dataclasses.replace(FINETUNE, schedule=Schedule(steps=14, batch_size=8, lr=1e-2, decay="constant"))
    linear = dataclasses.replace(FINETUNE, schedule=Schedule(steps=14, batch_size=8, lr=1e-2))
    weights = [run(stage, tmp_path / stage.schedule.decay) for stage in (constant, linear)]
    assert not equal(*weights)
