"""The hooks of a constraint: their order, what they are handed, restarts, and that nothing is saved after the end."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from baselines.freelb import FreeLB
from baselines.mars import MarsProjection
from baselines.r3f import R3F
from baselines.recadam import RecAdam
from bench.interfaces.hooks import Activity, Context, State
from bench.interfaces.model import Model
from bench.models.adapters import adapt, remove_adapters
from bench.specs import Constraint, Execution, Objective, Optimizer, Schedule
from bench.specs.objectives import AdamW, CrossEntropy
from bench.training.checkpoint import Checkpoints
from bench.training.loop import Diverged, Interrupted
from tests.training.test_loop import CPU, FINETUNE, equal, fitted, run, start_of, weights_of

STEPS = 7
HEARD: list[str] = []


class Scale(torch.nn.Module):
    """A weight times a number that is trained, and drawn at first."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(1 + torch.rand(()))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.factor


@dataclass(frozen=True)
class Everything(Constraint):
    """Uses all that a constraint may: an adapter, a module, tensors that change, and an end of its own."""

    def inject(self, model: Model) -> None:
        HEARD.append("inject")
        adapt(model, "head.weight", Scale().to(next(model.parameters()).dtype))

    def begin(self, model: Model, reference: Mapping[str, Tensor], context: Context) -> State:
        HEARD.append("begin")
        assert reference.keys() == dict(model.named_parameters()).keys()
        assert "head.parametrizations.weight.0.factor" in reference  # it is taken after `inject`
        assert all(torch.equal(reference[name], weight) for name, weight in model.named_parameters())
        assert not torch.is_grad_enabled()
        return State(torch.nn.Linear(1, 2), {"steps": torch.zeros(()), "last": torch.full((), -1.0)})

    def apply(self, model: Model, reference: Mapping[str, Tensor], state: State, context: Context) -> None:
        HEARD.append("apply")
        assert not torch.is_grad_enabled() and state.module is not None
        assert context.step == int(state.tensors["last"]) + 1
        state.tensors["last"] = torch.tensor(float(context.step))
        state.tensors["steps"] += float(model.encoder.norm.weight.sum())  # type: ignore[union-attr, operator, arg-type]
        state.module.weight.add_(0.1 * state.tensors["steps"])  # type: ignore[union-attr, operator]

    def activity(
        self, model: Model, reference: Mapping[str, Tensor], state: State, context: Context
    ) -> dict[str, Activity]:
        HEARD.append("activity")
        assert not model.training and "head.weight" not in dict(model.named_parameters())
        return {"Everything": Activity(float(state.tensors["steps"]), "a sum of weights")}

    def finish(self, model: Model, reference: Mapping[str, Tensor], state: State, context: Context) -> None:
        HEARD.append("finish")
        assert state.module is not None and not torch.is_grad_enabled()
        assert int(state.tensors["last"]) == context.total_steps - 1 == context.step
        remove_adapters(model, merge=True)
        # Not a function of the weights alone, so that a second call, or a lost state, would show.
        model.head.bias.add_(state.tensors["steps"] + state.module.weight.sum())  # type: ignore[union-attr, operator]


STAGE = dataclasses.replace(FINETUNE, constraint=Everything())


def test_the_hooks_come_in_their_order_and_the_end_comes_once(tmp_path: Path) -> None:
    HEARD.clear()
    weights = run(STAGE, tmp_path)
    assert ["inject", "begin", *["apply"] * STEPS, "activity", "finish"] == HEARD
    assert weights.keys() == weights_of(start_of(STAGE)).keys()  # plain names again


def test_all_that_a_constraint_keeps_survives_a_stop_after_any_step(tmp_path: Path) -> None:
    whole = run(STAGE, tmp_path / "whole")
    HEARD.clear()
    for step in range(1, STEPS):
        with pytest.raises(Interrupted):
            run(STAGE, tmp_path / "parts", stop_at=step)
        assert "finish" not in HEARD
    assert equal(run(STAGE, tmp_path / "parts", stop_at=STEPS), whole)  # a stop in the last step comes too late
    assert HEARD.count("finish") == 1 and HEARD.count("apply") == STEPS


@pytest.mark.parametrize("every", [1, 2, 3, 7])
def test_who_is_killed_at_the_end_enters_again_before_it(
    every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is saved of the last step or of the end, so the end is never applied to what it made."""
    whole = run(STAGE, tmp_path / "whole")
    with monkeypatch.context() as patch:
        finish = Everything.finish

        def killed(self: Everything, *arguments: object) -> None:
            finish(self, *arguments)  # type: ignore[arg-type]
            raise KeyboardInterrupt

        patch.setattr(Everything, "finish", killed)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                run(STAGE, tmp_path / "parts", every=every)
    saved = Checkpoints(tmp_path / "parts").load(CPU)
    assert (0 if saved is None else saved[0]) == (STEPS - 1) // every * every
    if saved is not None:
        assert saved[1]["constraint_tensors"].keys() == {"steps", "last"}
        assert "head.parametrizations.weight.original" in saved[1]["model"]
    assert equal(run(STAGE, tmp_path / "parts", every=every), whole)


def test_what_the_end_spoils_is_never_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(self: Everything, model: Model, *rest: object) -> None:
        remove_adapters(model, merge=True)
        model.encoder.norm.bias[0] = float("nan")  # type: ignore[union-attr, operator, index]

    monkeypatch.setattr(Everything, "finish", spoil)
    with pytest.raises(Diverged, match="weights"):
        run(STAGE, tmp_path)


def test_what_the_end_repairs_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights that are kept are looked at, not those of the last step."""

    def spoil(self: Everything, model: Model, reference: object, state: State, context: Context) -> None:
        if context.step == STEPS - 1:
            model.encoder.norm.bias[0] = float("inf")  # type: ignore[union-attr, operator, index]

    def repair(self: Everything, model: Model, *rest: object) -> None:
        remove_adapters(model, merge=True)
        model.encoder.norm.bias[0] = 0.0  # type: ignore[union-attr, operator, index]

    monkeypatch.setattr(Everything, "apply", spoil)
    monkeypatch.setattr(Everything, "finish", repair)
    assert run(STAGE, tmp_path)["encoder.norm.bias"].isfinite().all()


def test_adapters_are_drawn_from_a_stream_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what was drawn before nor another seed's stage matters; dropout is the same with or without them."""
    factors: list[float] = []
    begin = Everything.begin

    def noted(self: Everything, model: Model, reference: Mapping[str, Tensor], context: Context) -> State:
        factors.append(float(reference["head.parametrizations.weight.0.factor"]))
        return begin(self, model, reference, context)

    monkeypatch.setattr(Everything, "begin", noted)
    for seed in (3, 3, 4):
        run(dataclasses.replace(STAGE, seed=seed), tmp_path / str(len(factors)))
        torch.rand(5)
    assert factors[0] == factors[1] != factors[2]


# ------------------------------------------------------------------------------------------------ activity


def activity(tmp_path: Path, name: str, **parts: Any) -> Activity:
    """What the part of this name did in fine-tuning with these parts."""
    return fitted(dataclasses.replace(FINETUNE, **parts), tmp_path)[1].activity[name]


def test_plain_fine_tuning_has_nothing_to_say(tmp_path: Path) -> None:
    assert fitted(FINETUNE, tmp_path)[1].activity == {}


def test_mars_counts_the_rows_that_it_projected(tmp_path: Path) -> None:
    huge = activity(tmp_path, "MarsProjection", constraint=MarsProjection(radius=1e6))
    small = activity(tmp_path, "MarsProjection", constraint=MarsProjection(radius=1e-6))
    assert huge.nil and huge.value == 0
    # At rate 0 nothing has moved after the first of 7 steps; after each other one every row has: 16 of the patches'
    # convolution, 48 + 16 of attention, 32 + 16 of the MLP.
    assert not small.nil and small.value == 6 * (16 + 48 + 16 + 32 + 16)


@pytest.mark.parametrize(
    ("optimizer", "nil"),
    [
        (RecAdam(anneal="constant"), True),
        (RecAdam(w=0.0), True),
        (RecAdam(w=-1.0), True),
        (RecAdam(gamma=0.0), True),
        (RecAdam(gamma=90.0, t0=3), False),
    ],
)
def test_recadam_without_a_pull_is_nil(optimizer: RecAdam, nil: bool, tmp_path: Path) -> None:
    assert activity(tmp_path, "RecAdam", optimizer=optimizer).nil == nil


@pytest.mark.parametrize("w", [0.0, -1.0])
def test_recadam_with_a_task_weight_of_0_or_less_is_plain_adam(w: float, tmp_path: Path) -> None:
    """Its eps joins the uncorrected root, so torch's Adam agrees where eps is negligible."""
    ours = RecAdam(w=w, eps=1e-20, weight_decay=0.0)
    plain = AdamW(eps=1e-20, weight_decay=0.0)
    schedule = Schedule(steps=3, batch_size=22, lr=1e-4)
    weights = [
        run(
            dataclasses.replace(FINETUNE, optimizer=optimizer, schedule=schedule),
            tmp_path / type(optimizer).__name__,
            dtype=torch.float64,
        )
        for optimizer in (ours, plain)
    ]
    for name, weight in weights[1].items():
        if not name.endswith("qkv.bias"):  # a key's bias has the gradient 0, whose rounding Adam scales up
            torch.testing.assert_close(weights[0][name], weight, rtol=1e-8, atol=1e-10)


def test_r3fs_noise_is_nil_where_it_drowns_and_not_where_it_shows(tmp_path: Path) -> None:
    assert activity(tmp_path, "R3F", objective=R3F(eps=1e-5)).nil
    loud = activity(tmp_path, "R3F", objective=R3F(eps=0.5))
    assert not loud.nil and loud.value > 1e-6
    assert activity(tmp_path, "R3F", objective=R3F(eps=0.5, strength=0.0)).nil
    # Two passes that differ in dropout alone.
    assert not activity(tmp_path, "R3F", objective=R3F(noise="none")).nil


@pytest.mark.parametrize(
    ("objective", "limit"),
    [(R3F(eps=1e-5), 1e-10), (FreeLB(ascents=1, start=1e-3), 1e-2), (CrossEntropy() + R3F(eps=1e-5), 1e-10)],
)
def test_rounding_of_a_low_precision_is_not_what_a_part_does(
    objective: Objective, limit: float, tmp_path: Path
) -> None:
    """In bfloat16 the least noise has values rounded otherwise, which moves the predictions far more than it does."""
    # The weights stay where they are: what else the two precisions change would be told apart otherwise.
    schedule = dataclasses.replace(FINETUNE.schedule, lr=1e-30)
    precisions: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    exact, low = (
        activity(
            tmp_path / precision,
            "FreeLB" if isinstance(objective, FreeLB) else "R3F",
            objective=objective,
            schedule=schedule,
            execution=Execution(precision=precision),
        )
        for precision in precisions
    )
    assert 0 < exact.value == low.value < limit


def test_measuring_activity_changes_no_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, objective in enumerate((R3F(eps=0.5), R3F(noise="none"), CrossEntropy() + R3F(eps=0.5))):
        stage = dataclasses.replace(FINETUNE, objective=objective)
        measured = run(stage, tmp_path / f"{number} measured")
        with monkeypatch.context() as patch:
            patch.setattr(Objective, "activity", lambda *arguments: {})
            patch.setattr(type(objective), "activity", lambda *arguments: {})
            assert equal(run(stage, tmp_path / f"{number} plain"), measured)


def test_names_of_parts_do_not_collide(tmp_path: Path) -> None:
    """Objective, constraint and optimiser each say what they did."""
    optimizer: Optimizer = RecAdam(gamma=90.0, t0=3)
    stage = dataclasses.replace(
        FINETUNE, objective=R3F(eps=0.5), constraint=MarsProjection(radius=0.1), optimizer=optimizer
    )
    assert fitted(stage, tmp_path)[1].activity.keys() == {"R3F", "MarsProjection", "RecAdam"}


def test_terms_of_a_sum_speak_for_themselves(tmp_path: Path) -> None:
    quiet, loud = R3F(eps=1e-5), R3F(eps=0.5)
    stage = dataclasses.replace(FINETUNE, objective=CrossEntropy() + quiet)
    assert fitted(stage, tmp_path / "one")[1].activity["R3F"].nil  # its loss alone, a cross-entropy too, would not be
    both = fitted(dataclasses.replace(FINETUNE, objective=quiet + loud), tmp_path / "two")[1].activity
    assert {name: part.nil for name, part in both.items()} == {"R3F": True, "R3F 2": False}
