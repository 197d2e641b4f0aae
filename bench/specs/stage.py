"""A stage and what it consists of: backbone, objective, optimiser, constraint, and other stages."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from bench.errors import SpecError
from bench.interfaces.hooks import Activity, Batch, Context, Loss, ParameterGroup, State
from bench.specs.parts import MOST_STEPS, Data, Execution, PublicWeights, Schedule
from bench.specs.spec import Json, Spec, added, canonical_json, field_types

if TYPE_CHECKING:
    import torch

    from bench.interfaces.model import Model

Need = Literal["labels", "head", "mask", "decoder", "teacher", "views"]


@dataclass(frozen=True)
class Backbone(Spec):
    """A pre-trained encoder with its decoder.

    `bench.specs.architectures` holds one subclass per modality. `weights` is the stage that pre-trained it, a public
    checkpoint, or None for an architecture that only starts from random weights.
    """

    MODALITY: ClassVar[Literal["image", "text"]]
    UNBOUND: ClassVar[tuple[str, ...]] = ("name", "weights")
    FIXED: ClassVar[tuple[str, ...]] = ()
    """The fields that pre-trained weights decide."""
    CAPTURABLE: ClassVar[bool] = True
    """Whether a GPU may record steps of its network once and repeat them: see `bench.training.graphs`."""
    NAMES_ATTENTION: ClassVar[bool] = False
    """Whether its network names the matrices of attention (`Model.ATTENTION`), which adapters need."""

    name: str
    weights: Stage | PublicWeights | None

    @cached_property
    def random(self) -> Self:
        """The same architecture without its pre-trained weights.

        What is not prepared stays as it is. Only a prepared checkpoint tells its architecture.
        """
        unknown = isinstance(self.weights, PublicWeights) and self.weights.checksum is None
        return self if unknown else dataclasses.replace(self, weights=None)

    def build_model(self, **parts: Any) -> Any:
        """Build this type's own network.

        None stands for the suite's network of the type that it derives from. `parts` are the keyword arguments of
        `bench.models.build.build`; returned is the `Model` that it promises.
        """
        return None

    @property
    def has_decoder(self) -> bool:
        """Whether it can reconstruct what was masked.

        An encoder alone cannot be pre-trained further.
        """
        return True

    @property
    def with_decoder(self) -> Self:
        """The same backbone with a decoder.

        Where its weights bring none, the decoder starts from random values.
        """
        return self

    @property
    def unprepared(self) -> frozenset[str]:
        """The names of what must be prepared before it can be built.

        A public backbone goes by its own name.
        """
        missing = isinstance(self.weights, PublicWeights) and self.weights.checksum is None
        return frozenset({self.name} if missing else ())

    @property
    def least_parameters(self) -> int:
        """How many parameters its encoder has at least, as far as that is cheap to tell."""
        return 0

    @property
    def least_decoder_parameters(self) -> int:
        """How many parameters its decoder has at least, beside the encoder's."""
        return 0

    def decayed_roles(self, labelled: bool) -> tuple[str, ...]:
        """Return the parameter roles under weight decay.

        They may differ between fine-tuning (`labelled`) and pre-training.
        """
        raise TypeError(f"{type(self).__name__} names no decayed roles")


@dataclass(frozen=True)
class Objective(Spec):
    """What a stage minimises.

    Immutable: whatever changes during training lives in the `State` it returns. `needs` tells the harness what to
    provide: `labels`, a classifier `head` (such a stage is evaluated after training), a `mask` for each batch, the
    backbone's `decoder` (in the model and in the optimiser), a frozen `teacher`, two random `views` of each example
    instead of the schedule's augmentation.
    """

    NEEDS: ClassVar[frozenset[Need]] = frozenset()
    CAPTURABLE: ClassVar[bool] = False
    """Whether a GPU may record `loss` once and repeat it: see `bench.training.graphs`."""
    WHOLE_BATCH: ClassVar[bool] = False
    """Whether examples of a batch depend on each other, or on numbers that `loss` draws: it cannot then be split."""

    @property
    def whole_batch(self) -> bool:
        """Whether the loss of a batch is no mean of the losses of its micro-batches."""
        return self.WHOLE_BATCH

    @property
    def needs(self) -> frozenset[Need]:
        """What the harness must provide."""
        return self.NEEDS

    @property
    def capturable(self) -> bool:
        """Whether a GPU may record `loss` once and repeat it."""
        return self.CAPTURABLE

    def check_stage(self, stage: Stage) -> None:
        """Refuse, with `SpecError`, what cannot work in this stage."""

    def warnings(self, stage: Stage) -> list[str]:
        """Say what can work in this stage but hardly does what it is there for; the plan shows it."""
        return []

    def begin(self, model: Model, teacher: Model | None, context: Context) -> State:
        """Return the state that training starts with.

        Called once before the first step, and again on resuming, before the saved state is put back.
        """
        return State()

    def loss(self, model: Model, batch: Batch, state: State, context: Context) -> Loss:
        """Return the loss of one micro-batch, the mean over its examples.

        A mean over something else says so (`Loss.share`). Never calls backward, never seeds a generator.
        """
        raise TypeError(f"{type(self).__name__} defines no loss")

    def activity(self, model: Model, batch: Batch, state: State, context: Context) -> dict[str, Activity]:
        """Measure what the objective does beside its primary loss.

        Called once after the last step with a batch of that step: in eval mode, in full precision, without gradients.
        """
        return {}

    def remark(self, stage: Stage) -> str | None:
        """Return what a reader of a table must know of this stage, such as that it is another method under a name.

        It completes the sentence "The row NAME is …".
        """
        return None

    def __add__(self, other: Objective) -> Objective:
        return Sum(terms=(self, other))


@dataclass(frozen=True)
class Sum(Objective):
    """The sum of several objectives, written `a + b`.

    There is one backward pass, of the sum.
    """

    terms: tuple[Objective, ...]

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset().union(*(term.needs for term in self.terms))

    @property
    def capturable(self) -> bool:
        return all(term.capturable for term in self.terms)

    @property
    def whole_batch(self) -> bool:
        return any(term.whole_batch for term in self.terms)

    def check_stage(self, stage: Stage) -> None:
        for term in self.terms:
            term.check_stage(stage)

    def warnings(self, stage: Stage) -> list[str]:
        return [warning for term in self.terms for warning in term.warnings(stage)]

    def begin(self, model: Model, teacher: Model | None, context: Context) -> State:
        import torch

        states = [term.begin(model, teacher, context) for term in self.terms]
        modules = {str(i): state.module for i, state in enumerate(states) if state.module is not None}
        tensors = {f"{i}.{name}": value for i, state in enumerate(states) for name, value in state.tensors.items()}
        return State(torch.nn.ModuleDict(modules) if modules else None, tensors, {"states": states})

    def loss(self, model: Model, batch: Batch, state: State, context: Context) -> Loss:
        """Add up the terms' losses.

        Each term is handed the part of the state that is its own. Entry `1.average` of the sum's tensors is entry
        `average` of the second term's. The sum's are the truth: after resuming, they are those of the checkpoint. Both
        name the same tensor, so a term that changes it in place leaves every entry the object it was, as a recorded
        step needs (`bench.training.graphs`); a term that puts another tensor there has it show in the sum's.
        """
        losses = []
        for i, (term, own) in enumerate(zip(self.terms, state.constants["states"], strict=True)):
            own.tensors = {name: state.tensors[f"{i}.{name}"] for name in own.tensors}
            losses.append(term.loss(model, batch, own, context).of_step(batch))
            state.tensors.update({f"{i}.{name}": value for name, value in own.tensors.items()})
        total = losses[0].total
        for loss in losses[1:]:
            total = total + loss.total
        return Loss(total, {name: part for loss in losses for name, part in loss.parts.items()}, 1.0)

    def activity(self, model: Model, batch: Batch, state: State, context: Context) -> dict[str, Activity]:
        """Ask each term; one that measures nothing of itself is measured by its loss, against the primary one."""
        activities: dict[str, Activity] = {}
        primary = 0.0
        for number, (term, own) in enumerate(zip(self.terms, state.constants["states"], strict=True)):
            name = type(term).__name__
            measured = term.activity(model, batch, own, context)
            loss = abs(float(term.loss(model, batch, own, context).total))
            primary = loss if number == 0 else primary
            if number > 0 and not measured:
                share = loss / max(primary, NEGLIGIBLE)
                meaning = f"its loss, relative to {type(self.terms[0]).__name__}"
                measured = {name: Activity(share, meaning, share < NEGLIGIBLE)}
            # Of two terms of one class the later one is told apart by its number.
            activities |= {f"{key} {number + 1}" if key in activities else key: each for key, each in measured.items()}
        return activities


NEGLIGIBLE = 1e-6
"""What a part of a loss must reach, relative to the primary loss, to count as active."""


@dataclass(frozen=True)
class Optimizer(Spec):
    """How gradients become updates.

    A field `weight_decay` is applied to the groups that the loop chose by role.
    """

    CAPTURABLE: ClassVar[bool] = False
    """Whether a GPU may record the update once and repeat it; step-dependent numbers then come from `prepare`."""
    NEEDS_REFERENCE: ClassVar[bool] = True
    """Whether `build` reads the stage's first weights; else it is handed none, and none are kept."""
    SECOND_PASS: ClassVar[bool] = False
    """Whether a step computes its gradient a second time, between `perturb` and `restore`."""

    def check_stage(self, stage: Stage) -> None:
        """Refuse, with `SpecError`, what cannot work in this stage."""

    def warnings(self, stage: Stage) -> list[str]:
        """Say what can work in this stage but hardly does what it is there for; the plan shows it."""
        return []

    def build(
        self, groups: list[ParameterGroup], reference: Mapping[str, torch.Tensor], total_steps: int
    ) -> torch.optim.Optimizer:
        """Build the optimiser of these groups for so many steps.

        `reference` holds the stage's first weights, by name.
        """
        raise TypeError(f"{type(self).__name__} builds no optimiser")

    def prepare(self, optimizer: torch.optim.Optimizer, step: int, lr: float) -> None:
        """Set the numbers of the update of `step` (from 0).

        Called before each update; here it sets the learning rate of every group, which is `lr` times the group's
        `rate_scale`. Numbers are computed in float64 and written into tensors on the device, which a recorded update
        reads.
        """
        import torch

        for group in optimizer.param_groups:
            rate = lr * group.get("rate_scale", 1.0)
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def rate_scales(self, model: Model) -> Mapping[str, float]:
        """Return factors of the schedule's rate by parameter name.

        Names that are left out have the factor 1.
        """
        return {}

    def perturb(self, optimizer: torch.optim.Optimizer) -> None:
        """Move the weights to where the second gradient of a step is computed.

        The parameters hold the first one, of the whole step. Called under no_grad, as `restore` is.
        """

    def restore(self, optimizer: torch.optim.Optimizer) -> None:
        """Move the weights back, bit for bit, to where they were before `perturb`."""

    def activity(self, schedule: Schedule, total_steps: int) -> dict[str, Activity]:
        """Say what the optimiser did beside following the gradient."""
        return {}


@dataclass(frozen=True)
class Constraint(Spec):
    """What is done to the weights beside the optimiser's steps.

    The weights are kept in a region, averaged, interpolated, or adapted through few others. It works with every
    objective. The hooks are called in this order; all but `inject` under no_grad.

        inject      before anything else: adds adapters, or noise on weights
        begin       at the first step, and again on resuming, before the saved state is put back
        apply       after every optimiser step
        finish      once, after the last step; weights have their plain names again after it

    Nothing is checkpointed after `finish`: what it leaves is what is measured, evaluated, saved, and taught from.
    `reference` holds the weights after `inject`, by parameter name; `state` is the constraint's own.
    """

    CAPTURABLE: ClassVar[bool] = False
    """Whether a GPU may record a step with what `inject` added and `apply` once and repeat it."""
    NEEDS_REFERENCE: ClassVar[bool] = True
    """Whether the stage's first weights are read; else `reference` is empty, and none are kept."""

    def check_stage(self, stage: Stage) -> None:
        """Refuse, with `SpecError`, what cannot work in this stage."""

    def warnings(self, stage: Stage) -> list[str]:
        """Say what can work in this stage but hardly does what it is there for; the plan shows it."""
        return []

    def inject(self, model: Model) -> None:
        """Change the network before it is trained."""

    def begin(self, model: Model, reference: Mapping[str, torch.Tensor], context: Context) -> State:
        """Return the state that training starts with. Its `module` is not trained."""
        return State()

    def apply(self, model: Model, reference: Mapping[str, torch.Tensor], state: State, context: Context) -> None:
        """Change the weights after an optimiser step."""

    def finish(self, model: Model, reference: Mapping[str, torch.Tensor], state: State, context: Context) -> None:
        """Leave the network as it is to be kept."""

    def activity(
        self, model: Model, reference: Mapping[str, torch.Tensor], state: State, context: Context
    ) -> dict[str, Activity]:
        """Measure what was done. Called after the last step, before `finish`."""
        return {}


PRETRAINED: Literal["pretrained"] = "pretrained"
RANDOM: Literal["random"] = "random"


@dataclass(frozen=True, kw_only=True)
class Stage(Spec):
    """One training job.

    `name` is its part in the method (`finetune`, `further_pretrain`) and names its random streams, so that two methods'
    stages of one name and seed see the same batches and dropout. `init` says whose weights it starts from: the
    backbone's, random ones, or another stage's. `teacher` is frozen and handed to the objective. A stage that
    trains a classifier is evaluated once, after training, on `evaluation`, and on each of `further_evaluations`. Where
    both it and the stage that it starts from train a classifier, `head` says whether that one is carried on or a fresh
    one is made.
    """

    name: str
    objective: Objective
    data: Data
    evaluation: Data | None
    backbone: Backbone
    schedule: Schedule
    optimizer: Optimizer
    constraint: Constraint | None
    init: Stage | Literal["pretrained", "random"]
    teacher: Stage | None
    execution: Execution
    seed: int
    head: Literal["carried", "fresh"] | None = added(None)
    further_evaluations: tuple[Data, ...] = added(())

    def check(self) -> None:
        self.require("seed", self.seed >= 0, "0 or more")
        if self.init == PRETRAINED and self.backbone.weights is None:
            raise SpecError("init", f"the backbone {self.backbone.name} has no pre-trained weights to start from.")
        if ("teacher" in self.objective.needs) != (self.teacher is not None):
            need = "needs a teacher" if self.teacher is None else "takes no teacher"
            raise SpecError("teacher", f"the objective of stage {self.name} {need}.")
        if ("labels" in self.objective.needs) != self.data.labelled:
            raise SpecError("data", f"stage {self.name}: objective and data disagree on whether labels are used.")
        if ("head" in self.objective.needs) != (self.evaluation is not None):
            raise SpecError("evaluation", f"stage {self.name}: a classifier, and nothing else, is evaluated.")
        splits = {data.split for data in self.evaluations}
        if self.further_evaluations and (self.evaluation is None or len(splits) < len(self.evaluations)):
            wrong = f"stage {self.name}: each of its splits is evaluated once, and none without a classifier."
            raise SpecError("further_evaluations", wrong)
        if "decoder" in self.objective.needs and not self.backbone.has_decoder:
            raise SpecError("decoder_depth", f"stage {self.name}: the backbone {self.backbone.name} has no decoder.")
        if isinstance(self.init, Stage) and "decoder" in self.objective.needs - self.init.objective.needs:
            raise SpecError("init", f"stage {self.name} needs a decoder, and stage {self.init.name} trained none.")
        self._check_head()
        if self.schedule.micro_batches > 1 and self.objective.whole_batch:
            raise SpecError(
                "micro_batches",
                f"stage {self.name}: its objective needs the batch as a whole, so micro-batches would change the loss; "
                "leave micro_batches at 1.",
            )
        if self.schedule.augmentation == "flip" and self.backbone.MODALITY != "image":
            raise SpecError("augmentation", f"stage {self.name}: only images can be flipped, {self.data.task} is text.")
        if self.schedule.batching == "length" and self.backbone.MODALITY != "text":
            raise SpecError("batching", f"stage {self.name}: only texts have lengths, {self.data.task} holds images.")
        # How many steps some epochs have is known only where the number of examples is: where data are prepared.
        steps, size = self.schedule.steps, self.data.size
        if steps is None and size is not None:
            steps = self.schedule.total_steps(size)
        if steps is not None and steps > MOST_STEPS:
            raise SpecError(
                "epochs", f"stage {self.name}: these epochs are {steps} steps, at most {MOST_STEPS} may be."
            )
        if steps is not None and self.schedule.warmup(steps) >= steps:
            raise SpecError("warmup_steps", f"stage {self.name}: the warm-up takes all {steps} steps.")
        for part in self.method_parts:
            part.check_stage(self)

    def _check_head(self) -> None:
        """Refuse a start whose classifier would be dropped, or carried where it does not fit, without a word."""
        start = self.init if isinstance(self.init, Stage) and "head" in self.init.objective.needs else None
        if start is None or "head" not in self.objective.needs:
            self.require("head", self.head is None, "None: no classifier is there to be carried, or none is trained")
            return
        if self.head is None:
            raise SpecError(
                "head",
                f"stage {self.name} starts from stage {start.name}, which trained a classifier, and trains one, too: "
                "say head = 'carried' to go on with that one, or 'fresh' for a new one.",
            )
        theirs, own = (start.data.task, start.data.classes), (self.data.task, self.data.classes)
        if self.head == "carried" and theirs != own:
            raise SpecError("head", f"stage {self.name}: the classifier of {start.data.task} cannot be carried here.")

    @property
    def method_parts(self) -> list[Objective | Optimizer | Constraint]:
        """The objective, the optimiser and, if there is one, the constraint."""
        return [self.objective, self.optimizer, *([] if self.constraint is None else [self.constraint])]

    @property
    def stages(self) -> dict[str, Stage | tuple[Stage, ...]]:
        """The fields that hold other stages, with these."""
        return {name: stage for name in ("init", "teacher") if isinstance(stage := getattr(self, name), Stage)}

    def copy(self, changes: Json) -> Self:
        """Return the stage with some fields changed.

        They must be of the fields' types: those alone are not checked again.
        """
        if all(changes[name] is getattr(self, name) for name in changes):
            return self
        copy = object.__new__(type(self))
        vars(copy).update({name: getattr(self, name) for name in field_types(type(self))} | changes)
        copy.check()
        return copy

    @cached_property
    def key(self) -> str:
        """The identity of the result.

        It is the sha256 of the canonical JSON, in hex.
        """
        return hashlib.sha256(canonical_json(self).encode()).hexdigest()

    @property
    def _reference(self) -> str:  # not kept, as the text of a part is: a grid has many stages
        return f'{{"stage":"{self.key}"}}'

    def _identity(self) -> Json:
        return {"key": self.key}

    @property
    def evaluations(self) -> tuple[Data, ...]:
        """The splits that it is measured on, the one for its own number first."""
        return (*(() if self.evaluation is None else (self.evaluation,)), *self.further_evaluations)

    @cached_property
    def parents(self) -> tuple[Stage, ...]:
        """The stages whose weights this one reads, each once."""
        candidates = (self.backbone.weights, self.init, self.teacher)
        return tuple({stage.key: stage for stage in candidates if isinstance(stage, Stage)}.values())

    @cached_property
    def unprepared(self) -> frozenset[str]:
        """What this stage or one of its parents still lacks.

        It names tasks, corpora and public backbones.
        """
        own = {data.task for data in (self.data, *self.evaluations) if data.checksum is None}
        return self.backbone.unprepared.union(own, *(parent.unprepared for parent in self.parents))

    @property
    def folder(self) -> str:
        """The name of its folder in the store.

        It is readable, short, and safe on any file system.
        """
        return f"{self.name}-{self.data.task}-{self.key[:16]}"

    @property
    def title(self) -> str:
        """What it is called where a person reads. Candidates of a search share it."""
        return f"{self.name} {self.data.task} seed {self.seed}"

    @property
    def total_steps(self) -> int:
        """Optimiser steps of a prepared stage."""
        assert self.data.size is not None, "an unprepared stage has no step count"
        return self.schedule.total_steps(self.data.size)


@dataclass(frozen=True, kw_only=True)
class Selected(Stage):
    """A stage whose settings a search chooses.

    It trains the one of `finals` whose candidate scored best. `candidates[i]` has the settings of `finals[i]` but is
    trained on the part of the data that is there to fit, and judged by `metric` on the part held out. Its own fields
    are those of the first final; all finals are of one network.
    """

    candidates: tuple[Stage, ...]
    finals: tuple[Stage, ...]
    metric: str

    @classmethod
    def among(cls, candidates: tuple[Stage, ...], finals: tuple[Stage, ...], metric: str) -> Selected:
        """Build the selection among these.

        Refuses a search that would change the network.
        """
        first = finals[0]
        for final in finals[1:]:
            if (final.backbone, final.objective.needs) != (first.backbone, first.objective.needs):
                raise SpecError("candidates", f"stage {first.name}: a search cannot change the backbone or its parts.")
        fields = {field.name: getattr(first, field.name) for field in dataclasses.fields(Stage)}
        return cls(**fields, candidates=candidates, finals=finals, metric=metric)

    @property
    def stages(self) -> dict[str, Stage | tuple[Stage, ...]]:
        return {**super().stages, "candidates": self.candidates, "finals": self.finals}

    def _canonical(self) -> dict[str, str]:
        # The finals have no folder of their own that a key could lead to, so they are written out.
        return {**super()._canonical(), "finals": f"[{','.join(map(canonical_json, self.finals))}]"}

    @cached_property
    def parents(self) -> tuple[Stage, ...]:
        # To choose, all candidates must have run; to train any of the finals, the stages that it starts from.
        needed = (*self.candidates, *(parent for final in self.finals for parent in final.parents))
        return tuple({stage.key: stage for stage in needed}.values())

    @property
    def total_steps(self) -> int:
        """The most optimiser steps that the search can choose."""
        return max(final.total_steps for final in self.finals)


def walk(*stages: Stage) -> Iterator[Stage]:
    """Yield the given stages and all they depend on.

    Parents come first, and each stage comes once. Example: for a `finetune` that starts from a `self_distill_1`, whose
    teacher is a `further_pretrain`, it yields further_pretrain, self_distill_1, finetune.
    """
    seen: set[str] = set()

    def visit(stage: Stage) -> Iterator[Stage]:
        if stage.key not in seen:
            seen.add(stage.key)
            for parent in stage.parents:
                yield from visit(parent)
            yield stage

    for stage in stages:
        yield from visit(stage)
