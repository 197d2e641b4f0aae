"""The one training loop. Methods plug in at four points: begin, loss, the optimiser, the constraint."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.batches import Batches
from bench.checkpoint import Checkpoints
from bench.data.examples import Examples
from bench.hooks import Context, ParameterGroup, State
from bench.models import Model
from bench.specs import Schedule, Stage, stream


class Interrupted(Exception):
    """Training stopped at a step boundary because it was asked to; the checkpoint of that step is written."""

    def __init__(self, step: int) -> None:
        super().__init__(f"after step {step}, its checkpoint is written")
        self.step = step


class Diverged(Exception):
    """The loss is no longer a number."""


@dataclass(frozen=True)
class Supervision:
    """What the loop reports to and obeys: when to stop, where checkpoints go, who hears about progress.

    `progress` is told the steps done and the losses of the last micro-batch: the total and its named parts.
    """

    stop: Callable[[], bool]
    checkpoints: Checkpoints
    checkpoint_steps: int
    started: Callable[[int], None]
    progress: Callable[[int, Mapping[str, Tensor]], None]


def learning_rate(schedule: Schedule, step: int, total_steps: int) -> float:
    """The rate in force during update `step` (from 0): linear warm-up to the peak, then linear to 0 or constant."""
    warmup = schedule.warmup(total_steps)
    if schedule.decay == "constant" and step >= warmup:
        return schedule.lr
    return linear_rate(schedule.lr, step, warmup, total_steps)


def linear_rate(peak: float, step: int, warmup_steps: int, total_steps: int) -> float:
    """The linear schedule: up to `peak` over the warm-up, then down to 0 at `total_steps`, and 0 after it."""
    if step < warmup_steps:
        return peak * step / max(1, warmup_steps)
    return peak * max(0, total_steps - step) / max(1, total_steps - warmup_steps)


def parameter_groups(model: Model, stage: Stage, state: State) -> list[ParameterGroup]:
    """Trainable parameters in up to four groups: body and head, each with and without weight decay, by role."""
    decayed = stage.backbone.decayed_roles("labels" in stage.objective.needs)
    decay = float(getattr(stage.optimizer, "weight_decay", 0.0))
    groups: dict[tuple[bool, bool], ParameterGroup] = {}

    def add(name: str, parameter: torch.nn.Parameter, head: bool, decays: bool) -> None:
        empty: ParameterGroup = {"params": [], "names": [], "weight_decay": decay if decays else 0.0, "head": head}
        group = groups.setdefault((head, decays), empty)
        group["params"].append(parameter)
        group["names"].append(name)

    roles = model.roles()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            add(name, parameter, name.startswith("head."), roles[name] in decayed)
    if state.module is not None:
        for name, parameter in state.module.named_parameters():
            add(f"state.{name}", parameter, True, parameter.ndim > 1)
    return list(groups.values())


def train(
    stage: Stage,
    model: Model,
    teacher: Model | None,
    batches: Batches,
    supervision: Supervision,
    teacher_set: Examples | None = None,
) -> float:
    """Train `model` in place; returns the seconds it took, asking a teacher and time before interruptions included.

    Raises `Interrupted` after saving a checkpoint when asked to stop, `Diverged` when the loss is not finite.
    """
    schedule, device, total_steps = stage.schedule, batches.device, stage.total_steps

    def context(step: int) -> Context:
        return Context(step, total_steps, schedule.augmentation != "none", device, batches.examples, teacher_set)

    # ---- the objective's state, then the optimiser over model and state ------------------------------------------
    began = time.perf_counter()
    reference = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    torch.manual_seed(stream(stage.seed, stage.name, "begin"))
    model.eval()
    with autocast(stage, device):
        state = stage.objective.begin(model, teacher, context(0))
    if state.module is not None:
        state.module.to(device=device, dtype=next(model.parameters()).dtype)
    model.train()
    optimizer = stage.optimizer.build(parameter_groups(model, stage, state), reference, total_steps)
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    # ---- resume: weights, optimiser, state and step; random streams and data order follow from the step -----------
    start, earlier_seconds = 0, 0.0
    saved = supervision.checkpoints.load(device)
    if saved is not None:
        start, content = saved
        _restore(content, model, optimizer, state)
        earlier_seconds = content["seconds"]
    supervision.started(start)

    # ---- steps -----------------------------------------------------------------------------------------------------
    for step in range(start, total_steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(schedule, step, total_steps)
        optimizer.zero_grad(set_to_none=True)
        micro_batches = batches.at(step)
        examples = sum(len(batch.index) for batch in micro_batches)
        step_loss = 0.0
        for number, batch in enumerate(micro_batches):
            # One stream per micro-batch: dropout is the same whatever else a method computes, and after a restart.
            torch.manual_seed(stream(stage.seed, stage.name, "step", step, number))
            with autocast(stage, device):
                loss = stage.objective.loss(model, batch, state, context(step))
            scaled = loss.total * (len(batch.index) / examples) if len(micro_batches) > 1 else loss.total
            scaled.backward()  # type: ignore[no-untyped-call]
            step_loss += float(scaled.detach())
        if not math.isfinite(step_loss):
            raise Diverged(
                f"the loss is {step_loss} at step {step} of {total_steps} "
                f"(learning rate {optimizer.param_groups[0]['lr']:.3g}); lower the learning rate or clip gradients"
            )
        if schedule.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(trained, schedule.clip_norm)
        optimizer.step()
        if stage.constraint is not None:
            with torch.no_grad():
                stage.constraint.apply(model, reference, state)
        done = step + 1
        supervision.progress(
            done, {"loss": loss.total.detach(), **{name: part.detach() for name, part in loss.parts.items()}}
        )
        stopping = supervision.stop() and done < total_steps
        if stopping or (done % supervision.checkpoint_steps == 0 and done < total_steps):
            seconds = earlier_seconds + time.perf_counter() - began
            supervision.checkpoints.save(done, {"seconds": seconds, **_snapshot(model, optimizer, state)})
        if stopping:
            raise Interrupted(done)
    if not all(bool(parameter.isfinite().all()) for parameter in trained):
        raise Diverged("weights are no longer finite after the last step; lower the learning rate or clip gradients")
    return round(earlier_seconds + time.perf_counter() - began, 3)


def autocast(stage: Stage, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Mixed precision where the stage asks for it; weights stay in float32."""
    if stage.execution.precision == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def _snapshot(model: Model, optimizer: torch.optim.Optimizer, state: State) -> dict[str, Any]:
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "state_module": state.module.state_dict() if state.module is not None else {},
        "state_tensors": state.tensors,
    }


def _restore(content: Mapping[str, Any], model: Model, optimizer: torch.optim.Optimizer, state: State) -> None:
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    if state.module is not None:
        state.module.load_state_dict(content["state_module"])
    state.tensors = dict(content["state_tensors"])
