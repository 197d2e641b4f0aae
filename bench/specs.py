"""What is computed, as plain data: specs, their canonical JSON and their keys.

A `Stage` is one training job. Its key is the sha256 of its canonical JSON, in which every object carries its type and
version and every stage it depends on stands as that stage's key; equal jobs therefore have equal keys, and nothing else
implements sharing. This module imports neither torch nor gin.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from bench.errors import SpecError
from bench.interfaces.hooks import Batch, Context, Loss, ParameterGroup, State

if TYPE_CHECKING:
    import torch

    from bench.interfaces.model import Model

Json = dict[str, Any]
Need = Literal["labels", "head", "mask", "decoder", "teacher", "views"]

SPECS: dict[str, type[Spec]] = {}
ADDED = "added"


def added(default: Any) -> Any:
    """Declare a field that came later and whose default computes what was computed before it came.

    The canonical JSON leaves the field out while it has that value, so keys stay, and older JSON is still read.
    """
    return dataclasses.field(default=default, metadata={ADDED: True})


@dataclass(frozen=True)
class Spec:
    """Base of everything that is hashed: checks its field types, then `check()`; equal fields mean equal results.

    `VERSION` is bumped when the same fields begin to compute something else. `EXCLUSIVE` lists groups of fields of
    which a stronger binding replaces a weaker one (steps or epochs); `UNBOUND` the fields that no gin file may bind.
    """

    VERSION: ClassVar[int] = 1
    UNBOUND: ClassVar[tuple[str, ...]] = ()
    EXCLUSIVE: ClassVar[tuple[tuple[str, ...], ...]] = ()

    def __init_subclass__(cls) -> None:
        if cls.__name__ in SPECS:
            raise TypeError(f"two specs are named {cls.__name__}: their canonical JSON would collide")
        SPECS[cls.__name__] = cls

    def __post_init__(self) -> None:
        for name, annotation in field_types(type(self)).items():
            object.__setattr__(self, name, coerce(getattr(self, name), annotation, name))
        self.check()

    def check(self) -> None:
        """Refuse impossible values with `SpecError`."""

    @cached_property
    def _canonical(self) -> Json:
        values = {field: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields = {
            field.name: canonical(value)
            for field, value in values.items()
            if not (field.metadata.get(ADDED) and value == field.default)
        }
        return {"type": type(self).__name__, "version": self.VERSION, **fields}

    def _reference(self) -> Json:
        """Write this spec as part of another one; a stage overrides it and gives its key."""
        return self._canonical

    def _identity(self) -> Json:
        """What records show beside the fields; a stage overrides it and gives its key."""
        return {}

    def require(self, field: str, legal: bool, what: str) -> None:
        """Raise `SpecError` unless `legal`; `what` says which values are."""
        if not legal:
            raise SpecError(field, f"{type(self).__name__}.{field} = {getattr(self, field)!r}: must be {what}.")


_FIELD_TYPES: dict[type[Spec], dict[str, Any]] = {}


def field_types(cls: type[Spec]) -> dict[str, Any]:
    """The annotations of a spec's fields, resolved."""
    if cls not in _FIELD_TYPES:
        hints = typing.get_type_hints(cls, localns=dict(SPECS))  # a subclass elsewhere inherits fields that name Stage
        _FIELD_TYPES[cls] = {field.name: hints[field.name] for field in dataclasses.fields(cls)}
    return _FIELD_TYPES[cls]


def coerce(value: Any, annotation: Any, field: str) -> Any:
    """`value` as its annotation wants it (1 becomes 1.0, a list a tuple); raises `SpecError` for any other type."""
    if _matches(value, annotation):
        return _convert(value, annotation)
    shown = list(value) if isinstance(value, tuple) else value
    raise SpecError(field, f"{field} = {shown!r}: expected {_describe(annotation)}, got {type(shown).__name__}.")


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


def _matches(value: Any, annotation: Any) -> bool:
    for alternative in _alternatives(annotation):
        origin = typing.get_origin(alternative)
        if origin is Literal:
            if any(value == choice and type(value) is type(choice) for choice in typing.get_args(alternative)):
                return True
        elif origin is tuple:
            inner = typing.get_args(alternative)
            if isinstance(value, list | tuple):
                variadic = len(inner) == 2 and inner[1] is Ellipsis
                expected = [inner[0]] * len(value) if variadic else list(inner)
                if len(expected) == len(value) and all(map(_matches, value, expected)):
                    return True
        elif alternative is float:
            if isinstance(value, int | float) and not isinstance(value, bool):
                return True
        elif alternative is int:
            if isinstance(value, int) and not isinstance(value, bool):
                return True
        elif isinstance(value, alternative):
            return True
    return False


def _convert(value: Any, annotation: Any) -> Any:
    alternatives = _alternatives(annotation)
    if isinstance(value, int) and not isinstance(value, bool) and float in alternatives and int not in alternatives:
        try:
            return float(value)
        except OverflowError:
            return math.inf
    if isinstance(value, list | tuple):
        for alternative in alternatives:
            if typing.get_origin(alternative) is tuple and _matches(value, alternative):
                inner = typing.get_args(alternative)
                variadic = len(inner) == 2 and inner[1] is Ellipsis
                expected = [inner[0]] * len(value) if variadic else list(inner)
                return tuple(map(_convert, value, expected))
    return value


def _describe(annotation: Any) -> str:
    names = []
    for alternative in _alternatives(annotation):
        origin = typing.get_origin(alternative)
        if origin is Literal:
            names.append("one of " + ", ".join(repr(choice) for choice in typing.get_args(alternative)))
        elif origin is tuple:
            names.append("a list, each entry " + _describe(typing.get_args(alternative)[0]))
        elif alternative is types.NoneType:
            names.append("None")
        elif not dataclasses.is_dataclass(alternative):  # no gin file can give a spec
            names.append(
                {int: "a whole number", float: "a number", str: "a string"}.get(alternative, alternative.__name__)
            )
    return " or ".join(names)


def canonical(value: Any) -> Any:
    """`value` as JSON data; a stage stands as its key, so that the JSON of a deep plan stays small."""
    if isinstance(value, Spec):
        return value._reference()
    if isinstance(value, tuple):
        return [canonical(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    return value


def canonical_json(spec: Spec) -> str:
    """The text that is hashed: sorted keys, no spaces, shortest exact floats."""
    return json.dumps(spec._canonical, sort_keys=True, separators=(",", ":"), allow_nan=False)


def expanded(value: Any) -> Any:
    """Like `canonical`, with every stage written out in full beside its key: what records show to readers."""
    if isinstance(value, Spec):
        fields = {field.name: expanded(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"type": type(value).__name__, "version": value.VERSION, **value._identity(), **fields}
    if isinstance(value, tuple):
        return [expanded(item) for item in value]
    return canonical(value)


def from_canonical(data: Any, load_stage: Callable[[str], Spec]) -> Any:
    """The inverse of `canonical`; `load_stage` finds a stage by its key.

    Raises ValueError where the JSON was written by another version of the spec's code.
    """
    if isinstance(data, list):
        return tuple(from_canonical(item, load_stage) for item in data)
    if not isinstance(data, dict):
        return data
    if "stage" in data:
        return load_stage(data["stage"])
    if "float" in data:
        return float(data["float"])
    cls = SPECS.get(data["type"])
    if cls is None:
        raise ValueError(f"the spec type {data['type']!r} is unknown to this version")
    legal = {field.name for field in dataclasses.fields(cls)}
    required = {field.name for field in dataclasses.fields(cls) if not field.metadata.get(ADDED)}
    names = data.keys() - {"type", "version"}
    if data["version"] != cls.VERSION or not required <= names <= legal:
        raise ValueError(f"{data['type']} version {data['version']} is an older or newer spec than this code's")
    return cls(**{name: from_canonical(data[name], load_stage) for name in names})


# ------------------------------------------------------------------------------------------------ parts of a stage


@dataclass(frozen=True)
class Data(Spec):
    """Which examples of a task a stage reads.

    `checksum` is the sha256 of the split's content and `examples`, `classes` its counts; all three are None where the
    task is not prepared, and such a stage is never run or matched. `subset` keeps that many training examples, drawn
    stratified and nested from the stream of `subset_seed`. `part` divides what is left for selection and search: the
    last tenth of the same stratified order is held out, the rest is there to fit.
    """

    task: str
    split: str
    labelled: bool
    checksum: str | None
    examples: int | None
    classes: int | None
    subset: int | None = None
    subset_seed: int = 0
    part: Literal["all", "fit", "holdout"] = "all"

    def check(self) -> None:
        self.require("subset", self.subset is None or self.subset >= 1, "at least 1 example, or None for all")
        self.require("subset_seed", self.subset_seed >= 0, "0 or more")
        if self.subset is not None and self.examples is not None:
            self.require("subset", self.subset <= self.examples, f"at most the {self.examples} examples there are")
        if self.part != "all" and self.subset is not None:
            self.require("subset", self.subset >= 2, "at least 2, so that a search can hold one out")

    @property
    def size(self) -> int | None:
        """How many examples are read."""
        size = self.examples if self.subset is None else self.subset
        if size is None or self.part == "all":
            return size
        held_out = max(1, size // 10)
        return held_out if self.part == "holdout" else size - held_out


@dataclass(frozen=True)
class PublicWeights(Spec):
    """A checkpoint made elsewhere: its repository on the Hugging Face hub and revision (a commit), None for a folder.

    `checksum` is the sha256 of its weight file, None as long as the weights are not prepared; no stage that needs such
    weights is run or matched. `fresh` names the parameters that the file lacks and that start from random values.
    """

    repository: str | None
    revision: str | None = None
    checksum: str | None = None
    fresh: tuple[str, ...] = ()


@dataclass(frozen=True)
class Backbone(Spec):
    """A pre-trained encoder with its decoder; `bench.backbones` holds one subclass per modality.

    `weights` is the stage that pre-trained it, a public checkpoint, or None for an architecture that only starts from
    random weights.
    """

    MODALITY: ClassVar[Literal["image", "text"]]
    UNBOUND: ClassVar[tuple[str, ...]] = ("name", "weights")
    FIXED: ClassVar[tuple[str, ...]] = ()
    """The fields that pre-trained weights decide."""

    name: str
    weights: Stage | PublicWeights | None

    @property
    def random(self) -> Self:
        """The same architecture without its pre-trained weights; what is not prepared stays so.

        Only a prepared checkpoint tells its architecture.
        """
        unknown = isinstance(self.weights, PublicWeights) and self.weights.checksum is None
        return self if unknown else dataclasses.replace(self, weights=None)

    @property
    def has_decoder(self) -> bool:
        """Whether it can reconstruct what was masked; an encoder alone cannot be pre-trained further."""
        return True

    @property
    def unprepared(self) -> frozenset[str]:
        """What must be prepared before the backbone can be built, by name; a public backbone goes by its own."""
        missing = isinstance(self.weights, PublicWeights) and self.weights.checksum is None
        return frozenset({self.name} if missing else ())

    def decayed_roles(self, labelled: bool) -> tuple[str, ...]:
        """The parameter roles under weight decay in fine-tuning (`labelled`) or pre-training."""
        raise TypeError(f"{type(self).__name__} names no decayed roles")


@dataclass(frozen=True)
class Schedule(Spec):
    """How long and how fast a stage trains: optimiser steps or epochs, batch, learning rate, clipping, dropout.

    `lr` is the peak; it rises linearly over the warm-up (`warmup_steps`, or `warmup_fraction` of all steps), then falls
    linearly to 0 or stays. `clip_norm` is the global gradient norm, None for no clipping. `dropout` None keeps the
    backbone's own rate. `micro_batches` splits a batch for gradient accumulation: the loss is the micro-batches' mean,
    weighted by their examples (so a mean over masked tokens becomes a mean of means). `batching` 'random' draws every
    batch from all examples; 'length' makes batches of texts of similar lengths, which needs less padding.
    """

    EXCLUSIVE: ClassVar[tuple[tuple[str, ...], ...]] = (("steps", "epochs"), ("warmup_steps", "warmup_fraction"))

    steps: int | None = None
    epochs: float | None = None
    batch_size: int = 32
    lr: float = 1e-4
    warmup_steps: int | None = None
    warmup_fraction: float | None = None
    decay: Literal["linear", "constant"] = "linear"
    clip_norm: float | None = None
    dropout: float | None = None
    augmentation: Literal["none", "flip"] = "none"
    micro_batches: int = 1
    batching: Literal["random", "length"] = added("random")

    def check(self) -> None:
        given = [name for name in ("steps", "epochs") if getattr(self, name) is not None]
        if len(given) != 1:
            raise SpecError("steps", f"Schedule: give steps or epochs, exactly one of them; got {given or 'neither'}.")
        self.require("steps", self.steps is None or 1 <= self.steps <= 10**9, "at least 1, at most a billion")
        self.require("epochs", self.epochs is None or 0 < self.epochs <= 10**6, "above 0, at most a million")
        self.require("batch_size", 1 <= self.batch_size <= 10**6, "at least 1, at most a million")
        self.require("lr", math.isfinite(self.lr) and self.lr > 0, "above 0 and finite")
        if self.warmup_steps is not None and self.warmup_fraction is not None:
            raise SpecError("warmup_steps", "Schedule: give warmup_steps or warmup_fraction, not both.")
        self.require("warmup_steps", self.warmup_steps is None or self.warmup_steps >= 0, "0 or more")
        fraction = self.warmup_fraction
        self.require("warmup_fraction", fraction is None or 0 <= fraction < 1, "in [0, 1)")
        if self.steps is not None and self.warmup_steps is not None:
            self.require("warmup_steps", self.warmup_steps < self.steps, f"below the {self.steps} steps there are")
        clip = self.clip_norm
        self.require("clip_norm", clip is None or 0 < clip < math.inf, "above 0 and finite, or None for no clipping")
        self.require("dropout", self.dropout is None or 0 <= self.dropout < 1, "in [0, 1), or None")
        self.require("micro_batches", 1 <= self.micro_batches <= self.batch_size, "between 1 and batch_size")

    def total_steps(self, examples: int) -> int:
        """The number of optimiser steps on a training set of that size; the last partial batch of an epoch counts."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None  # held by check()
        return max(1, round(self.epochs * math.ceil(examples / self.batch_size)))

    def warmup(self, total_steps: int) -> int:
        """The number of warm-up steps of so many."""
        if self.warmup_fraction is not None:
            return int(self.warmup_fraction * total_steps)
        return self.warmup_steps or 0


@dataclass(frozen=True)
class Execution(Spec):
    """Numerical choices that can change the result of the same training: all of them are part of a stage's key.

    `precision` is that of the arithmetic: 'tf32' rounds the factors of matrix products (GPUs only), 'bfloat16' computes
    under autocast; weights stay in float32 under both. `compile` has torch compile the transformer blocks.
    """

    precision: Literal["float32", "tf32", "bfloat16", "float64"] = "float32"
    deterministic: bool = False
    compile: bool = added(False)


@dataclass(frozen=True)
class Objective(Spec):
    """What a stage minimises. Immutable: whatever changes during training lives in the `State` it returns.

    `needs` tells the harness what to provide: `labels`, a classifier `head` (such a stage is evaluated after training),
    a `mask` for each batch, the backbone's `decoder` (in the model and in the optimiser), a frozen `teacher`, two
    random `views` of each example instead of the schedule's augmentation.
    """

    NEEDS: ClassVar[frozenset[Need]] = frozenset()
    CAPTURABLE: ClassVar[bool] = False
    """Whether a GPU may record `loss` once and repeat it: see `bench.graphs`."""

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

    def begin(self, model: Model, teacher: Model | None, context: Context) -> State:
        """Called once before the first step, and again on resuming, before the saved state is put back."""
        return State()

    def loss(self, model: Model, batch: Batch, state: State, context: Context) -> Loss:
        """The loss of one micro-batch; never calls backward, never seeds a generator."""
        raise TypeError(f"{type(self).__name__} defines no loss")

    def __add__(self, other: Objective) -> Objective:
        return Sum(terms=(self, other))


@dataclass(frozen=True)
class Sum(Objective):
    """The sum of several objectives, written `a + b`; one backward pass of the sum."""

    terms: tuple[Objective, ...]

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset().union(*(term.needs for term in self.terms))

    @property
    def capturable(self) -> bool:
        return all(term.capturable for term in self.terms)

    def check_stage(self, stage: Stage) -> None:
        for term in self.terms:
            term.check_stage(stage)

    def begin(self, model: Model, teacher: Model | None, context: Context) -> State:
        import torch

        states = [term.begin(model, teacher, context) for term in self.terms]
        modules = {str(i): state.module for i, state in enumerate(states) if state.module is not None}
        tensors = {f"{i}.{name}": value for i, state in enumerate(states) for name, value in state.tensors.items()}
        return State(torch.nn.ModuleDict(modules) if modules else None, tensors, {"states": states})

    def loss(self, model: Model, batch: Batch, state: State, context: Context) -> Loss:
        losses = []
        for i, (term, own) in enumerate(zip(self.terms, state.constants["states"], strict=True)):
            # After resuming, the checkpointed tensors are the truth.
            own.tensors = {name: state.tensors[f"{i}.{name}"] for name in own.tensors}
            losses.append(term.loss(model, batch, own, context))
            state.tensors.update({f"{i}.{name}": value for name, value in own.tensors.items()})
        total = losses[0].total
        for loss in losses[1:]:
            total = total + loss.total
        return Loss(total, {name: part for loss in losses for name, part in loss.parts.items()})


@dataclass(frozen=True)
class Optimizer(Spec):
    """How gradients become updates. A field `weight_decay` is applied to the groups that the loop chose by role."""

    CAPTURABLE: ClassVar[bool] = False
    """Whether a GPU may record the update once and repeat it; step-dependent numbers then come from `prepare`."""
    NEEDS_REFERENCE: ClassVar[bool] = True
    """Whether `build` reads the stage's first weights; else it is handed none, and none are kept."""

    def check_stage(self, stage: Stage) -> None:
        """Refuse, with `SpecError`, what cannot work in this stage."""

    def build(
        self, groups: list[ParameterGroup], reference: Mapping[str, torch.Tensor], total_steps: int
    ) -> torch.optim.Optimizer:
        """The optimiser of these groups for so many steps; `reference` holds the stage's first weights, by name."""
        raise TypeError(f"{type(self).__name__} builds no optimiser")

    def prepare(self, optimizer: torch.optim.Optimizer, step: int, lr: float) -> None:
        """Set the numbers of the update of `step` (from 0), before each; here the learning rate of every group.

        Numbers are computed in float64 and written into tensors on the device, which a recorded update reads.
        """
        import torch

        for group in optimizer.param_groups:
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr


@dataclass(frozen=True)
class Constraint(Spec):
    """Where weights may go: applied after every optimiser step that was taken, under no_grad."""

    CAPTURABLE: ClassVar[bool] = False
    """Whether a GPU may record `apply` once and repeat it."""
    NEEDS_REFERENCE: ClassVar[bool] = True
    """Whether `apply` reads the stage's first weights; else it is handed none, and none are kept."""

    def check_stage(self, stage: Stage) -> None:
        """Refuse, with `SpecError`, what cannot work in this stage."""

    def apply(self, model: Model, reference: Mapping[str, torch.Tensor], state: State) -> None:
        """Move the weights back; `reference` holds the weights at the stage's start, by parameter name."""
        raise TypeError(f"{type(self).__name__} applies nothing")


PRETRAINED: Literal["pretrained"] = "pretrained"
RANDOM: Literal["random"] = "random"


@dataclass(frozen=True)
class Stage(Spec):
    """One training job.

    `name` is its part in the method (`finetune`, `further_pretrain`) and names its random streams, so that two methods'
    stages of one name and seed see the same batches and dropout. `init` says whose weights it starts from: the
    backbone's, random ones, or another stage's. `teacher` is frozen and handed to the objective. A stage that
    trains a classifier is evaluated once, after training, on `evaluation`.
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
        if "decoder" in self.objective.needs and not self.backbone.has_decoder:
            raise SpecError("decoder_depth", f"stage {self.name}: the backbone {self.backbone.name} has no decoder.")
        if isinstance(self.init, Stage) and "decoder" in self.objective.needs - self.init.objective.needs:
            raise SpecError("init", f"stage {self.name} needs a decoder, and stage {self.init.name} trained none.")
        if self.schedule.augmentation == "flip" and self.backbone.MODALITY != "image":
            raise SpecError("augmentation", f"stage {self.name}: only images can be flipped, {self.data.task} is text.")
        if self.schedule.batching == "length" and self.backbone.MODALITY != "text":
            raise SpecError("batching", f"stage {self.name}: only texts have lengths, {self.data.task} holds images.")
        steps, size = self.schedule.steps, self.data.size
        if steps is None and size is not None:
            steps = self.schedule.total_steps(size)
        if steps is not None and self.schedule.warmup(steps) >= steps:
            raise SpecError("warmup_steps", f"stage {self.name}: the warm-up takes all {steps} steps.")
        for part in (self.objective, self.optimizer, self.constraint):
            if part is not None:
                part.check_stage(self)

    @cached_property
    def key(self) -> str:
        """The sha256 of the canonical JSON, in hex: the identity of the result."""
        return hashlib.sha256(canonical_json(self).encode()).hexdigest()

    def _reference(self) -> Json:
        return {"stage": self.key}

    def _identity(self) -> Json:
        return {"key": self.key}

    @cached_property
    def parents(self) -> tuple[Stage, ...]:
        """The stages whose weights this one reads, each once."""
        candidates = (self.backbone.weights, self.init, self.teacher)
        return tuple({stage.key: stage for stage in candidates if isinstance(stage, Stage)}.values())

    @cached_property
    def unprepared(self) -> frozenset[str]:
        """The tasks, corpora and public backbones that this stage or one of its parents still lacks."""
        own = {data.task for data in (self.data, self.evaluation) if data is not None and data.checksum is None}
        return self.backbone.unprepared.union(own, *(parent.unprepared for parent in self.parents))

    @property
    def folder(self) -> str:
        """The name of its folder in the store: readable, short, safe on any file system."""
        return f"{self.name}-{self.data.task}-{self.key[:16]}"

    @property
    def total_steps(self) -> int:
        """Optimiser steps of a prepared stage."""
        assert self.data.size is not None, "an unprepared stage has no step count"
        return self.schedule.total_steps(self.data.size)


@dataclass(frozen=True)
class Selected(Stage):
    """A stage whose settings a search chooses: trains the one of `finals` whose candidate scored best.

    `candidates[i]` has the settings of `finals[i]` but is trained on the part of the data that is there to fit, and
    judged by `metric` on the part held out. Its own fields are those of the first final; all finals are of one network.
    """

    candidates: tuple[Stage, ...]
    finals: tuple[Stage, ...]
    metric: str

    @classmethod
    def among(cls, candidates: tuple[Stage, ...], finals: tuple[Stage, ...], metric: str) -> Selected:
        """The selection among these; refuses a search that would change the network."""
        first = finals[0]
        for final in finals[1:]:
            if (final.backbone, final.objective.needs) != (first.backbone, first.objective.needs):
                raise SpecError("candidates", f"stage {first.name}: a search cannot change the backbone or its parts.")
        fields = {field.name: getattr(first, field.name) for field in dataclasses.fields(Stage)}
        return cls(**fields, candidates=candidates, finals=finals, metric=metric)

    @cached_property
    def _canonical(self) -> Json:
        # The finals have no folder of their own that a key could lead to, so they are written out.
        return {**super()._canonical, "finals": [final._canonical for final in self.finals]}

    @cached_property
    def parents(self) -> tuple[Stage, ...]:
        needed = (*self.candidates, *(parent for final in self.finals for parent in final.parents))
        return tuple({stage.key: stage for stage in needed}.values())

    @property
    def total_steps(self) -> int:
        """The most optimiser steps that the search can choose."""
        return max(final.total_steps for final in self.finals)


def walk(*stages: Stage) -> Iterator[Stage]:
    """Every stage these depend on and they themselves, parents first, each once."""
    seen: set[str] = set()

    def visit(stage: Stage) -> Iterator[Stage]:
        if stage.key not in seen:
            seen.add(stage.key)
            for parent in stage.parents:
                yield from visit(parent)
            yield stage

    for stage in stages:
        yield from visit(stage)


def stream(seed: int, *names: str | int) -> int:
    """The seed of the random stream with this name: 63 bits of a sha256, so streams never overlap by arithmetic."""
    text = json.dumps([seed, *names], separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
