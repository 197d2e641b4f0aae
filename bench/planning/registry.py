"""What a grid can name: recipes, backbones and the settings that gin files may bind.

A method is a function from a cell to its last stage, marked `@recipe`. Its scalar parameters, and the fields of the
specs it declares, are settings: `self_distillation.rounds`, `finetune.lr`. gin itself is met only in
`bench.planning.gin_files`.
"""

from __future__ import annotations

import functools
import inspect
import traceback
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, Protocol

from bench.data.tasks import Task
from bench.errors import InputError
from bench.pretrained.origin import Checkpoint
from bench.specs import (
    SPECS,
    Backbone,
    Constraint,
    Execution,
    Objective,
    Optimizer,
    Spec,
    Stage,
    field_types,
    source_file,
)
from bench.specs.architectures import ARCHITECTURES
from bench.specs.cluster import Cluster


class HasSettings(Protocol):
    """A cell of the grid, as a recipe's scalar parameters see it."""

    def setting(self, configurable: str, setting: str, default: Any) -> Any:
        """Return the bound value of a setting, or the default."""


Recipe = Callable[..., Stage]
BackboneBuilder = Callable[[Any], Backbone]
"""A function of a cell."""

RECIPES: dict[str, Recipe] = {}
BACKBONES: dict[str, BackboneBuilder] = {}
CHECKPOINTS: dict[str, Checkpoint] = {}
"""Where the weights of those among them come from that were made elsewhere."""
OWN_BACKBONES: list[BackboneBuilder] = []
"""The one builder of all backbones that only a gin file declares."""
SETTINGS: dict[str, dict[str, Any]] = {}
"""Configurable name -> setting name -> type annotation."""


SETTINGS["slurm"] = field_types(Cluster)
SETTINGS["task"] = {name: kind for name, kind in field_types(Task).items() if name not in Task.UNBOUND}
SETTINGS["execution"] = field_types(Execution)
# Where a backbone's weights come from, if they were made elsewhere; see bench.planning.catalogue.
SETTINGS["backbone"] = {"weights": str, "weights_checksum": str | None}
# Where the stages before fine-tuning start, of rows that train from scratch; fine-tuning has a setting of its own.
SETTINGS["pretraining"] = {"init": Literal["pretrained", "random"]}


def _bindable(annotation: Any) -> bool:
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    alternatives = typing.get_args(annotation) if is_union else (annotation,)
    return any(kind in (int, float, str, bool) or typing.get_origin(kind) in (Literal, tuple) for kind in alternatives)


def declare(name: str, *specs: type[Spec]) -> None:
    """Let gin files bind the scalar fields of specs under `name`.

    Refuses a field that two of the specs have.
    """
    settings = SETTINGS.setdefault(name, {})
    for spec in specs:
        for field, annotation in field_types(spec).items():
            if field in spec.UNBOUND or not _bindable(annotation):
                continue
            if field in settings:
                raise TypeError(f"{name}.{field} would mean two things: a field of {spec.__name__} and of another spec")
            settings[field] = annotation


def settings_of(name: str) -> dict[str, Any] | None:
    """Return the settings of a configurable, or None if it is unknown."""
    spec = SPECS.get(name)
    if name not in SETTINGS and spec is not None and issubclass(spec, Objective | Optimizer | Constraint):
        declare(name, spec)
    return SETTINGS.get(name)


def configurable_names() -> set[str]:
    """Return every name that a gin file can bind settings of."""
    return {name for name in (*SETTINGS, *SPECS) if settings_of(name)}


def recipe(*specs: type[Spec]) -> Callable[[Recipe], Recipe]:
    """Register a method under its function's name.

    Its scalar parameters and the fields of `specs` become settings. A parameter that a caller passes explicitly is
    never looked up, so no binding can change what a recipe fixed.
    """

    def register(function: Recipe) -> Recipe:
        name = function.__name__
        if name in RECIPES:
            files = [inspect.getsourcefile(each) for each in (inspect.unwrap(RECIPES[name]), function)]
            raise InputError(f"two recipes are named {name}, in {files[0]} and in {files[1]}. Rename one of them.")
        _check_signature(function)
        # All but the cell: of `def kd(cell, teacher_backbone: str | None = None)`, gin files may bind
        # kd.teacher_backbone.
        parameters = list(inspect.signature(function).parameters.values())[1:]
        hints = _hints(function)
        scalars = [parameter for parameter in parameters if _bindable(hints[parameter.name])]

        @functools.wraps(function)
        def build(cell: HasSettings, **explicit: Any) -> Stage:
            by_recipe = bool(explicit)
            for parameter in scalars:
                if parameter.name not in explicit:
                    explicit[parameter.name] = cell.setting(name, parameter.name, parameter.default)
            try:
                stage = function(cell, **explicit)
            except InputError:
                raise
            except Exception as error:
                trace = error.__traceback__
                if by_recipe and trace is not None and trace.tb_next is None:  # wrongly called: the caller's mistake
                    raise
                raise InputError(f"{_where(function, error)} raised {type(error).__name__}: {error}.{LEGAL}") from error
            if not isinstance(stage, Stage):
                raise InputError(f"{_where(function)} returned {type(stage).__name__}, no stage.{LEGAL}")
            return stage

        SETTINGS.setdefault(name, {}).update({parameter.name: hints[parameter.name] for parameter in scalars})
        declare(name, *specs)
        RECIPES[name] = build
        return build

    return register


LEGAL = (
    " A recipe is a function of a cell and of settings with types and defaults, and returns its method's last stage, "
    "as `return finetune(cell)` does."
)


def finetune(cell: HasSettings, **parts: Any) -> Stage:
    """Fine-tune a cell with parts of a method's own: the recipe `finetune`, for files that are no part of the suite.

    `parts` are `objective`, `optimizer`, `constraint`, `teacher` and `init`, the stage that it starts from, with `head`
    where that one trained a classifier; what is left out is fine-tuning's own.
    """
    return RECIPES["finetune"](cell, **parts)


def _check_signature(function: Recipe) -> None:
    """Refuse a function that no cell could be handed to, or whose settings have no type or default."""
    cell, *settings = inspect.signature(function).parameters.values() or (None,)
    if cell is None or cell.kind not in (cell.POSITIONAL_ONLY, cell.POSITIONAL_OR_KEYWORD):
        raise InputError(f"{_where(function)} takes no cell.{LEGAL}")
    hints = _hints(function)
    for setting in settings:
        if setting.kind in (setting.VAR_POSITIONAL, setting.VAR_KEYWORD) or setting.name not in hints:
            raise InputError(f"{_where(function)}: its parameter '{setting.name}' has no type.{LEGAL}")
        if setting.default is setting.empty and _bindable(hints[setting.name]):
            raise InputError(f"{_where(function)}: its setting '{setting.name}' has no default.{LEGAL}")


def _where(function: Recipe, error: Exception | None = None) -> str:
    """Name a recipe with its file and line, or with the line in that file where an error came from."""
    file, line = inspect.getsourcefile(function), function.__code__.co_firstlineno
    for frame in traceback.extract_tb(error.__traceback__) if error else ():
        if frame.filename == file:
            line = frame.lineno or line
    return f"{file}:{line}: the recipe '{function.__name__}'"


@functools.cache
def _hints(function: Recipe) -> dict[str, Any]:
    return typing.get_type_hints(function, localns={**SPECS, "Cell": object})  # a cell itself is no setting


def register_backbone(architecture: type[Backbone]) -> Callable[[BackboneBuilder], BackboneBuilder]:
    """Register a backbone under its function's name.

    `NAME/backbone.field` binds a field of its architecture.
    """

    def register(function: BackboneBuilder) -> BackboneBuilder:
        add_backbone(function.__name__, architecture, function)
        return function

    return register


def add_backbone(name: str, architecture: type[Backbone], builder: BackboneBuilder) -> None:
    """Register a backbone under a name.

    The fields of its architecture become settings. Refuses a name that is taken, and a type that derives from none of
    the suite's.
    """
    if name in BACKBONES:
        files = [source_file(builder_module(each)) for each in (BACKBONES[name], builder)]
        raise InputError(f"two backbones are named {name}, in {files[0]} and in {files[1]}. Rename one of them.")
    if not issubclass(architecture, ARCHITECTURES):
        *names, last = (known.__name__ for known in ARCHITECTURES)
        raise InputError(
            f"{source_file(builder_module(builder))}: the backbone {name} is of the type {architecture.__name__}, "
            f"which data and loop do not know. Derive it from {', '.join(names)} or {last}, and override build_model() "
            "for a network of its own."
        )
    BACKBONES[name] = builder
    for field, annotation in field_types(architecture).items():
        if field not in architecture.UNBOUND:
            SETTINGS["backbone"][field] = annotation


def builder_module(builder: BackboneBuilder) -> str:
    """Return the module that defines a builder; some of the suite's are partial functions."""
    return str(getattr(builder, "func", builder).__module__)


def register_own_backbones(function: BackboneBuilder) -> BackboneBuilder:
    """Register the builder of every backbone that only a gin file declares."""
    OWN_BACKBONES[:] = [function]
    return function


def backbone_builder(name: str) -> BackboneBuilder:
    """Look up the function that makes a backbone from a cell."""
    return BACKBONES.get(name) or OWN_BACKBONES[0]
