"""The one training loop. Methods plug in through the hooks of their objective, optimiser and constraint."""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from bench.device import Arriving, full_precision, has_graphs, receive, seed, side_stream
from bench.interfaces.examples import Examples
from bench.interfaces.hooks import Activity, Batch, Clock, Context, Loss, ParameterGroup, State
from bench.interfaces.model import Model
from bench.specs import Constraint, Objective, Optimizer, Schedule, Stage, stream
from bench.training.batches import Batches
from bench.training.checkpoint import Checkpoints
from bench.training.graphs import Losses, Recorder

LATE_STEPS = 16
"""How many steps a GPU may be behind the host before the host waits for it."""
MOST_COMPILED = 64
"""How many shapes of a network are compiled before a stage fails rather than go on uncompiled."""

FROM_THE_START = "no update was made yet: look at the loss of the method and at the weights that the stage begins with"


class Interrupted(Exception):
    """Training stopped at a step boundary because it was asked to. The checkpoint of that step is written."""

    def __init__(self, step: int) -> None:
        super().__init__(f"after step {step}, its checkpoint is written")
        self.step = step


class Diverged(Exception):
    """The loss is no longer a number."""


@dataclass(frozen=True)
class Trained:
    """What training took, in seconds, and what each part of the method did in it."""

    seconds: float
    activity: dict[str, Activity]


@dataclass(frozen=True)
class Supervision:
    """What the loop obeys and reports to.

    It says when to stop, where checkpoints go and who hears about progress. `started` is called with the step that
    training goes on from, `progress` with the steps done and the losses of the last of them: the total, "loss", and its
    named parts.
    """

    stop: Callable[[], bool]
    checkpoints: Checkpoints
    checkpoint_steps: int
    started: Callable[[int], None]
    progress: Callable[[int, Mapping[str, float]], None]


def learning_rate(schedule: Schedule, step: int, total_steps: int) -> float:
    """Return the learning rate of update `step` (from 0).

    It rises linearly to the peak, then falls linearly to 0 or stays constant.
    """
    warmup = schedule.warmup(total_steps)
    if schedule.decay == "constant" and step >= warmup:
        return schedule.lr
    return linear_rate(schedule.lr, step, warmup, total_steps)


def linear_rate(peak: float, step: int, warmup_steps: int, total_steps: int) -> float:
    """Return the rate of the linear schedule.

    It rises to `peak` over the warm-up, then falls to 0 at `total_steps`, and is 0 after it.
    """
    # Example: peak 1, 10 steps of warm-up, 110 in all: the rate is 0 at step 0, 0.5 at 5, 1 at 10, 0.5 at 60.
    if step < warmup_steps:
        return peak * step / max(1, warmup_steps)
    return peak * max(0, total_steps - step) / max(1, total_steps - warmup_steps)


def parameter_groups(model: Model, stage: Stage, state: State) -> list[ParameterGroup]:
    """Sort the trainable parameters into groups: up to four for each rate.

    There are body and head, each with and without weight decay, which a parameter's role decides; the optimiser may
    scale the rate of each parameter. Parameters of the objective's own module count as head, and decay where they have
    two dimensions or more.
    """
    decayed = stage.backbone.decayed_roles("labels" in stage.objective.needs)
    decay = float(getattr(stage.optimizer, "weight_decay", 0.0))
    # Example: fine-tuning a RoBERTa gives body and head, each with decay (matrices, embeddings) and without (biases,
    # norms): four groups. A group is made when its first parameter comes, so their order follows from the network.
    groups: dict[tuple[bool, bool, float], ParameterGroup] = {}
    scales = stage.optimizer.rate_scales(model)

    def add(name: str, parameter: torch.nn.Parameter, head: bool, decays: bool) -> None:
        scale = scales.get(name, 1.0)
        group = groups.setdefault(
            (head, decays, scale),
            {
                "params": [],
                "names": [],
                "weight_decay": decay if decays else 0.0,
                "head": head,
                "rate_scale": scale,
            },
        )
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
    graphs: bool = True,
) -> Trained:
    """Train `model` in place and return what it took and did.

    The seconds include asking a teacher and the time before interruptions. `graphs` allows a GPU to record steps and
    repeat them, which changes no bit (see `bench.training.graphs`). Raises `Interrupted` after saving a checkpoint when
    asked to stop, `Diverged` when the loss is not finite.
    """
    with side_stream(batches.device), compiled(stage, model):
        return _train(stage, model, teacher, batches, supervision, teacher_set, graphs)


def _train(
    stage: Stage,
    model: Model,
    teacher: Model | None,
    batches: Batches,
    supervision: Supervision,
    teacher_set: Examples | None,
    graphs: bool,
) -> Trained:
    schedule, device, total_steps = stage.schedule, batches.device, stage.total_steps
    # The order is fixed by what needs what: adapters come first, as they add parameters; `begin` sees the network at
    # the stage's start and in eval mode, so that cached teacher outputs are free of dropout; the optimiser needs the
    # state's parameters; and the weights of a checkpoint, which are those of a later step, must come after all.
    clock = Clock()
    augmented, carried = schedule.augmentation != "none", stage.head == "carried"
    context = Context(clock, total_steps, augmented, device, batches.examples, teacher_set, carried)

    # ---- the objective's state, then the optimiser over model and state ------------------------------------------
    began = time.perf_counter()
    constraint = Constraint() if stage.constraint is None else stage.constraint
    seed(stream(stage.seed, stage.name, "inject"), device)
    constraint.inject(model)
    reference: dict[str, Tensor] = {}
    if stage.optimizer.NEEDS_REFERENCE or (stage.constraint is not None and constraint.NEEDS_REFERENCE):
        reference = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    state = _begin(stage, model, teacher, context)
    with torch.no_grad():
        kept = constraint.begin(model, reference, context)
    optimizer = _built(stage.optimizer, parameter_groups(model, stage, state), reference, total_steps)

    # ---- resume: weights, optimiser, state and step; random streams and data order follow from the step -----------
    states = {"state": state, "constraint": kept}
    start, earlier_seconds = _resume(supervision.checkpoints, device, model, optimizer, states)
    supervision.started(start)

    # ---- steps -----------------------------------------------------------------------------------------------------
    def checkpoint(done: int) -> None:
        # First every loss up to this step: no checkpoint may hold a state that already diverged.
        watch.settle()
        _refuse_diverged(model, optimizer)
        seconds = earlier_seconds + time.perf_counter() - began
        supervision.checkpoints.save(done, {"seconds": seconds, **_snapshot(model, optimizer, states)})

    watch = LossWatch(supervision.progress, total_steps, late_steps(device))
    work = StepWork(stage, model, optimizer, reference, states, context, graphs)
    try:
        for step in range(start, total_steps):
            # Before the step: its number and rate. The step itself. Then what can end it: a loss that is not finite, a
            # request to stop. A stop in the last step is ignored, as the stage is done by then.
            clock.step = step
            rate = learning_rate(schedule, step, total_steps)
            seed(stream(stage.seed, stage.name, "prepare", step), device)
            stage.optimizer.prepare(optimizer, step, rate)
            losses = work.take(step, batches.at(step))
            done = step + 1
            watch.add(done, rate, losses)
            stopping = supervision.stop() and done < total_steps
            if stopping or (done % supervision.checkpoint_steps == 0 and done < total_steps):
                checkpoint(done)
            if stopping:
                raise Interrupted(done)
        watch.settle()
    finally:
        work.close()

    # ---- the end: what each part did, then the weights that are kept -------------------------------------------------
    activity = _activity(stage, model, reference, states, context, batches.at(total_steps - 1)[0])
    with torch.no_grad():
        constraint.finish(model, reference, kept, context)
    _refuse_diverged(model, optimizer)
    return Trained(round(earlier_seconds + time.perf_counter() - began, 3), activity)


def _refuse_diverged(model: Model, optimizer: torch.optim.Optimizer) -> None:
    """Raise `Diverged` where weights, or what the optimiser remembers of them, are not finite.

    The second does not show in the loss. Example: the square of a gradient of 1e20 is infinite in float32, so that Adam
    divides every update by infinity, and weights stand still from then on.
    """
    remembered = (value for of_weight in optimizer.state.values() for value in of_weight.values())
    parameters: list[Tensor] = list(model.parameters())
    states = [each for each in remembered if isinstance(each, Tensor)]
    for what, tensors in (("weights are", parameters), ("the optimiser's state is", states)):
        finite = [tensor.isfinite().all().to(parameters[0].device) for tensor in tensors]
        if finite and not bool(torch.stack(finite).all()):
            raise Diverged(f"{what} no longer finite; lower the learning rate or a loss's weight, or clip gradients")


def _activity(
    stage: Stage,
    model: Model,
    reference: Mapping[str, Tensor],
    states: Mapping[str, State],
    context: Context,
    batch: Batch,
) -> dict[str, Activity]:
    """Measure what every part of the method did, by its name.

    That is in full precision: in a lower one rounding is larger than what a small noise or penalty does.
    """
    seed(stream(stage.seed, stage.name, "activity"), context.device)
    model.eval()
    with torch.no_grad(), full_precision(context.device):
        activity = stage.objective.activity(model, batch, states["state"], context)
        if stage.constraint is not None:
            activity |= stage.constraint.activity(model, reference, states["constraint"], context)
    activity |= stage.optimizer.activity(stage.schedule, context.total_steps)
    for name, part in activity.items():
        print(f"activity of {name}: {part.value:.3g}, {part.meaning}{' (it did nothing)' if part.nil else ''}")
    return activity


def _begin(stage: Stage, model: Model, teacher: Model | None, context: Context) -> State:
    """Have the objective make its state, from the network in eval mode."""
    seed(stream(stage.seed, stage.name, "begin"), context.device)
    model.eval()
    with autocast(stage, context.device):
        state = stage.objective.begin(model, teacher, context)
    if state.module is not None:
        state.module.to(device=context.device, dtype=next(model.parameters()).dtype)
    model.train()
    return state


def _built(
    spec: Optimizer, groups: list[ParameterGroup], reference: Mapping[str, Tensor], total_steps: int
) -> torch.optim.Optimizer:
    """Build an optimiser. Refuses, with TypeError, one that is none, or that leaves weights out."""
    expected = {id(parameter) for group in groups for parameter in group["params"]}
    optimizer = spec.build(groups, reference, total_steps)
    name = f"{type(spec).__name__}.build"
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"{name} returned {type(optimizer).__name__}; it must return an optimiser of torch")
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if trained != expected:
        raise TypeError(
            f"{name} leaves out {len(expected - trained)} of the {len(expected)} tensors it was handed and adds "
            f"{len(trained - expected)}; keep all groups. To freeze weights, have a constraint's `inject` call "
            "requires_grad_(False)"
        )
    return optimizer


def _check_loss(objective: Objective, loss: Loss) -> None:
    """Refuse, with TypeError, what an objective returned and no step can follow from."""
    name = f"{type(objective).__name__}.loss"
    if not isinstance(loss, Loss):
        raise TypeError(f"{name} returned {type(loss).__name__}; it must return Loss(total, parts)")
    if loss.total.dim() > 0:
        raise TypeError(
            f"{name} returned a total of shape {tuple(loss.total.shape)}; it must be one number, as of .mean()"
        )
    if not loss.total.requires_grad:
        raise TypeError(f"{name} returned a total without gradient; it must depend on the model's weights")


class StepWork:
    """The work of a step: gradients of each micro-batch, then the update.

    It is recorded where a GPU can repeat it. One micro-batch is one piece of work with its update. Several are a piece
    each, whose gradients add up, and the update is one more; recorded, they must add to the same gradient tensors every
    time.
    """

    def __init__(
        self,
        stage: Stage,
        model: Model,
        optimizer: torch.optim.Optimizer,
        reference: Mapping[str, Tensor],
        states: Mapping[str, State],
        context: Context,
        graphs: bool,
    ) -> None:
        self._stage, self._model, self._optimizer, self._reference = stage, model, optimizer, reference
        self._states, self._context = states, context
        self._trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        device = context.device
        recordable = graphs and _recordable(stage, device)
        self._recorder = Recorder(device, context.clock, list(states.values()), print) if recordable else None

    def take(self, step: int, micro_batches: list[Batch]) -> Losses:
        """Take step `step` (from 0) and return its losses.

        The optimiser must have been prepared for it; the losses lie on the device.
        """
        optimizer = self._stage.optimizer
        if self._stage.schedule.micro_batches == 1 and not optimizer.SECOND_PASS:
            self._seed(step, 0)
            return self._run(self._whole_step, micro_batches[0], "step")
        if not optimizer.SECOND_PASS:
            losses = self._add_up(step, micro_batches)
        else:
            before = self._kept_by_objective()
            losses = self._add_up(step, micro_batches)
            after = self._kept_by_objective()
            # What the objective keeps is as before the first pass, so that both are of one function. Then it is what
            # the first pass made of it, at the weights that the step began with.
            self._give_objective(before)
            # The same micro-batches under the same seeds, so the same dropout, at other weights. Each micro-batch has
            # an autocast context of its own: none sees a weight as it was rounded before.
            with torch.no_grad():
                optimizer.perturb(self._optimizer)
            self._add_up(step, micro_batches)
            with torch.no_grad():
                optimizer.restore(self._optimizer)
            self._give_objective(after)
        self._run(self._update, None, "update")
        return losses

    def _add_up(self, step: int, micro_batches: list[Batch]) -> Losses:
        """Compute the gradient of a step, micro-batch by micro-batch. Returns the losses, added up likewise."""
        # A recording adds to the gradient tensors that it was made with: they are set to zero, not dropped.
        self._optimizer.zero_grad(set_to_none=self._recorder is None)
        losses: Losses = {}
        for number, batch in enumerate(micro_batches):
            self._seed(step, number)
            parts = self._run(self._gradients, batch, "gradients")
            losses = {name: losses[name] + part if name in losses else part for name, part in parts.items()}
        return losses

    def _kept_by_objective(self) -> dict[str, Tensor]:
        """Copy the tensors that the objective keeps between steps."""
        return {name: tensor.detach().clone() for name, tensor in self._states["state"].tensors.items()}

    def _give_objective(self, values: Mapping[str, Tensor]) -> None:
        """Set the tensors that the objective keeps between steps."""
        tensors = self._states["state"].tensors
        if self._recorder is None:
            tensors.clear()
            tensors |= values
        else:  # a recording reads the tensors that it was made with
            for name, tensor in tensors.items():
                tensor.copy_(values[name])

    def _seed(self, step: int, number: int) -> None:
        # One stream per micro-batch: dropout is the same whatever else a method computes, and after a restart.
        seed(stream(self._stage.seed, self._stage.name, "step", step, number), self._context.device)

    def close(self) -> None:
        """Free gradients and recordings."""
        if self._recorder is not None:
            self._recorder.drop()
        self._optimizer.zero_grad(set_to_none=True)

    def _run(self, work: Callable[[Any], Losses], inputs: Any, name: str) -> Losses:
        return work(inputs) if self._recorder is None else self._recorder.run(work, inputs, name)

    def _whole_step(self, batch: Batch) -> Losses:
        self._optimizer.zero_grad(set_to_none=True)
        losses = self._gradients(batch)
        self._update(None)
        self._optimizer.zero_grad(set_to_none=True)  # other recordings may use their memory
        return losses

    def _gradients(self, batch: Batch) -> Losses:
        before = self._versions(batch)
        with autocast(self._stage, self._context.device):
            loss = self._stage.objective.loss(self._model, batch, self._states["state"], self._context)
        _check_loss(self._stage.objective, loss)
        if self._versions(batch) != before:
            raise TypeError(
                f"{type(self._stage.objective).__name__}.loss changed in place a tensor of its batch, or the labels of "
                "the training set, which are read again; change a copy, as of .clone()"
            )
        loss = loss.of_step(batch)
        loss.total.backward()  # type: ignore[no-untyped-call]
        parts = {name: part.detach() for name, part in loss.parts.items()}
        return {**parts, "loss": loss.total.detach()}  # last: a method may give one of its parts that name

    def _versions(self, batch: Batch) -> list[int]:
        """Count the changes made so far to what an objective is handed to read."""
        shared = (batch, self._context.training_set.labels)
        return [leaf._version for leaf in pytree.tree_leaves(shared) if isinstance(leaf, Tensor)]

    def _update(self, _: object) -> Losses:
        stage = self._stage
        if stage.schedule.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._trained, stage.schedule.clip_norm, foreach=True)
        self._optimizer.step()
        if stage.constraint is not None:
            with torch.no_grad():
                stage.constraint.apply(self._model, self._reference, self._states["constraint"], self._context)
        return {}


def _recordable(stage: Stage, device: torch.device) -> bool:
    """Tell whether steps may be recorded and repeated. The log says which part of a method stands in the way."""
    if not has_graphs(device):
        return False
    parts = {
        type(stage.backbone).__name__: stage.backbone.CAPTURABLE,
        type(stage.objective).__name__: stage.objective.capturable,
        type(stage.optimizer).__name__: stage.optimizer.CAPTURABLE,
        type(stage.constraint).__name__: stage.constraint is None or stage.constraint.CAPTURABLE,
    }
    undeclared = [name for name, capturable in parts.items() if not capturable]
    if undeclared:
        print(f"steps are not recorded: {', '.join(undeclared)} is not declared CAPTURABLE")
    return not undeclared


def late_steps(device: torch.device) -> int:
    """Return how many steps late the losses are read. A GPU is not waited for, a CPU has them at once."""
    return LATE_STEPS if device.type == "cuda" else 0


class LossWatch:
    """The losses of steps, read when there: no step waits for one.

    `report` is called with each step's losses, in order. A loss that is not finite is noticed at most `late` steps
    later; training is then refused to go on.
    """

    def __init__(self, report: Callable[[int, Mapping[str, float]], None], total_steps: int, late: int) -> None:
        self._report, self._total_steps, self._late = report, total_steps, late
        self._pending: deque[tuple[int, float, tuple[str, ...], Arriving]] = deque()

    def add(self, done: int, rate: float, losses: Losses) -> None:
        """Take the losses of the `done`-th step, made at learning rate `rate`."""
        # One vector for all losses of the step, so that a GPU makes one copy and not one for each.
        kind = losses["loss"].dtype
        arriving = receive(torch.stack([loss.to(kind) for loss in losses.values()]))
        self._pending.append((done, rate, tuple(losses), arriving))
        self.settle(self._late)

    def settle(self, pending: int = 0) -> None:
        """Read and report losses until only `pending` steps are left.

        Raises `Diverged` at the first loss that is not finite.
        """
        while len(self._pending) > pending:
            done, rate, names, arriving = self._pending.popleft()
            losses = dict(zip(names, arriving.wait(), strict=True))
            if not math.isfinite(losses["loss"]):
                # Of step 0 no rate is to blame: its loss is computed before the first update.
                advice = "lower the learning rate or clip gradients" if done > 1 else FROM_THE_START
                raise Diverged(
                    f"the loss is {losses['loss']} at step {done - 1} of {self._total_steps} "
                    f"(learning rate {rate:.3g}); {advice}"
                )
            self._report(done, losses)


@contextlib.contextmanager
def compiled(stage: Stage, model: Model) -> Iterator[None]:
    """Compile the network's blocks meanwhile, where the stage asks for it.

    Each shape is compiled by itself: a kernel for all shapes would depend on which came first, and a stage that was
    interrupted would end with other bits.
    """
    if not stage.execution.compile:
        yield
        return
    import torch._dynamo

    limits: dict[str, Any] = {
        "recompile_limit": MOST_COMPILED,
        "accumulated_recompile_limit": 8 * MOST_COMPILED,
        "fail_on_recompile_limit_hit": True,
    }
    with torch._dynamo.config.patch(limits):
        model.compile_blocks()
        try:
            yield
        finally:
            torch.compiler.reset()  # what was compiled holds on to the network


def autocast(stage: Stage, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Return the context of mixed precision, where the stage asks for it. Weights stay in float32."""
    if stage.execution.precision == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def _snapshot(model: Model, optimizer: torch.optim.Optimizer, states: Mapping[str, State]) -> dict[str, Any]:
    content = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict()["state"],  # moments and counts; rates and switches follow from the stage
    }
    for name, state in states.items():
        content[f"{name}_module"] = state.module.state_dict() if state.module is not None else {}
        content[f"{name}_tensors"] = state.tensors
    return content


def _resume(
    checkpoints: Checkpoints,
    device: torch.device,
    model: Model,
    optimizer: torch.optim.Optimizer,
    states: Mapping[str, State],
) -> tuple[int, float]:
    """Restore the newest checkpoint, if any; return its step and seconds."""
    saved = checkpoints.load(device)
    if saved is None:
        return 0, 0.0
    start, content = saved
    model.load_state_dict(content["model"])
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": content["optimizer"], "param_groups": groups})
    for name, state in states.items():
        if state.module is not None:
            state.module.load_state_dict(content[f"{name}_module"])
        # A checkpoint of an earlier version holds nothing of a constraint.
        state.tensors = {**state.tensors, **content.get(f"{name}_tensors", {})}
    return start, content["seconds"]
