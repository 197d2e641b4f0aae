"""What a grid can name: recipes, backbones and the settings that gin files may bind.

A method is a function from a cell to its last stage, marked `@recipe`. Its scalar parameters, and the fields of the
specs it declares, are settings: `self_distillation.rounds`, `finetune.lr`. gin itself is met only in `bench.config`.
"""

from __future__ import annotations

import functools
import inspect
import re
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from bench.data import Task
from bench.errors import SpecError, nearest
from bench.launch.cluster import Cluster
from bench.specs import SPECS, Backbone, Constraint, Execution, Objective, Optimizer, Spec, Stage, field_types

if TYPE_CHECKING:
    from bench.cell import Cell

Recipe = Callable[..., Stage]
BackboneBuilder = Callable[["Cell"], Backbone]

RECIPES: dict[str, Recipe] = {}
BACKBONES: dict[str, BackboneBuilder] = {}
SETTINGS: dict[str, dict[str, Any]] = {}
"""Configurable name -> setting name -> type annotation."""


@dataclass(frozen=True)
class Row:
    """A recipe under a name with its own bindings; `label` is how the gin file wrote it."""

    label: str
    name: str
    recipe: str

    @classmethod
    def parse(cls, label: str) -> Row:
        """`recipe` or `name/recipe`; refuses unknown recipes and names that cannot be gin scopes."""
        name, slash, recipe = label.rpartition("/")
        name = name if slash else recipe
        if recipe not in RECIPES:
            raise SpecError("rows", f"grid.rows: there is no method '{recipe}'.{nearest(recipe, RECIPES)}")
        if not name.isidentifier():
            raise SpecError("rows", f"grid.rows: '{name}' in '{label}' must be a letter, then letters, digits or _.")
        return cls(label, name, recipe)


@dataclass(frozen=True)
class Grid(Spec):
    """What `grid.…` sets: the axes of the product and how it is run.

    A row is `recipe` or `name/recipe`. `pretraining_seeds` 'shared' gives every unlabelled stage `base_seed`, so it
    runs once per task (the papers' protocol); 'per_seed' gives it the cell's seed. `threads` is fixed per worker, as on
    a CPU it decides the bits; `checkpoint_steps` bounds what an interruption can cost. `cuda_graphs` lets a GPU record
    steps and repeat them as a whole, which is faster and changes no bit.
    """

    rows: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    name: str | None = None
    pretraining_seeds: Literal["shared", "per_seed"] = "shared"
    base_seed: int = 0
    threads: int = 1
    checkpoint_steps: int = 500
    cuda_graphs: bool = True

    def check(self) -> None:
        for axis in ("rows", "tasks", "seeds"):
            values = getattr(self, axis)
            self.require(axis, len(values) > 0, "a list with at least one entry: the grid is empty")
            twice = sorted({str(value) for value in values if values.count(value) > 1})
            self.require(axis, not twice, f"free of duplicates; named twice: {', '.join(twice)}")
        self._check_rows()
        self.require("seeds", all(seed >= 0 for seed in self.seeds), "a list of whole numbers from 0 up")
        self.require("base_seed", self.base_seed >= 0, "0 or more")
        self.require("threads", self.threads >= 1, "at least 1")
        self.require("checkpoint_steps", self.checkpoint_steps >= 1, "at least 1")
        named = self.name is None or re.fullmatch(r"[\w-][\w.-]*", self.name) is not None
        self.require("name", named, "letters, digits, '_', '-' and '.': it names files")

    def _check_rows(self) -> None:
        names = set()
        for row in map(Row.parse, self.rows):
            if row.name in names:
                raise SpecError("rows", f"grid.rows: two rows are named '{row.name}'; write NAME/{row.recipe} for one.")
            names.add(row.name)


@dataclass(frozen=True)
class DataSettings(Spec):
    """What `data.…` sets: how many training examples a cell uses (None for all), drawn stratified and nested."""

    subset: int | None = None
    subset_seed: int = 0

    def check(self) -> None:
        self.require("subset", self.subset is None or self.subset >= 1, "at least 1 example, or None for all")
        self.require("subset_seed", self.subset_seed >= 0, "0 or more")


@dataclass(frozen=True)
class SearchSettings(Spec):
    """What `search.…` sets: candidate settings, each a line of bindings with ';' between them, e.g. 'RecAdam.k = 0.2'.

    Each is trained with the base seed on the part of the training set that is there to fit and judged on the held-out
    tenth; the best is trained on all of it, with every seed. Every row of a grid gets equally many.
    """

    candidates: tuple[str, ...] = ()

    def check(self) -> None:
        self.require("candidates", len(self.candidates) != 1, "two or more lines, or none")
        self.require("candidates", len(set(self.candidates)) == len(self.candidates), "free of duplicates")


SETTINGS["grid"] = field_types(Grid)
SETTINGS["slurm"] = field_types(Cluster)
SETTINGS["search"] = field_types(SearchSettings)
SETTINGS["task"] = {name: kind for name, kind in field_types(Task).items() if name not in Task.UNBOUND}
SETTINGS["data"] = field_types(DataSettings)
SETTINGS["execution"] = field_types(Execution)
# Where a backbone's weights come from, if they were made elsewhere; see bench.catalogue.
SETTINGS["backbone"] = {"weights": str, "weights_checksum": str | None}
# Where the stages before fine-tuning start, of rows that train from scratch; fine-tuning has a setting of its own.
SETTINGS["pretraining"] = {"init": Literal["pretrained", "random"]}


def _bindable(annotation: Any) -> bool:
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    alternatives = typing.get_args(annotation) if is_union else (annotation,)
    return any(kind in (int, float, str, bool) or typing.get_origin(kind) in (Literal, tuple) for kind in alternatives)


def declare(name: str, *specs: type[Spec]) -> None:
    """Let gin files bind the scalar fields of these specs under `name`; refuses a field that two of them have."""
    settings = SETTINGS.setdefault(name, {})
    for spec in specs:
        for field, annotation in field_types(spec).items():
            if field in spec.UNBOUND or not _bindable(annotation):
                continue
            if field in settings:
                raise TypeError(f"{name}.{field} would mean two things: a field of {spec.__name__} and of another spec")
            settings[field] = annotation


def settings_of(name: str) -> dict[str, Any] | None:
    """The settings of a configurable, or None if there is no such name."""
    spec = SPECS.get(name)
    if name not in SETTINGS and spec is not None and issubclass(spec, Objective | Optimizer | Constraint):
        declare(name, spec)
    return SETTINGS.get(name)


def configurable_names() -> set[str]:
    """Every name that a gin file can bind settings of."""
    return {name for name in (*SETTINGS, *SPECS) if settings_of(name)}


def recipe(*specs: type[Spec]) -> Callable[[Recipe], Recipe]:
    """Register a method under its function's name; its scalar parameters and the fields of `specs` become settings.

    A parameter that a caller passes explicitly is never looked up, so no binding can change what a recipe fixed.
    """

    def register(function: Recipe) -> Recipe:
        name = function.__name__
        if name in RECIPES:
            raise TypeError(f"two recipes are named {name}")
        parameters = list(inspect.signature(function).parameters.values())[1:]

        @functools.wraps(function)
        def build(cell: Cell, **explicit: Any) -> Stage:
            hints = _hints(function)
            for parameter in parameters:
                if parameter.name not in explicit and _bindable(hints[parameter.name]):
                    explicit[parameter.name] = cell.setting(name, parameter.name, parameter.default)
            return function(cell, **explicit)

        hints = _hints(function)
        scalars = {
            parameter.name: hints[parameter.name] for parameter in parameters if _bindable(hints[parameter.name])
        }
        SETTINGS.setdefault(name, {}).update(scalars)
        declare(name, *specs)
        RECIPES[name] = build
        return build

    return register


@functools.cache
def _hints(function: Recipe) -> dict[str, Any]:
    from bench.cell import Cell

    return typing.get_type_hints(function, localns={**SPECS, "Cell": Cell})


def register_backbone(architecture: type[Backbone]) -> Callable[[BackboneBuilder], BackboneBuilder]:
    """Register a backbone under its function's name; `NAME/backbone.field` binds a field of its architecture."""

    def register(function: BackboneBuilder) -> BackboneBuilder:
        BACKBONES[function.__name__] = function
        declared = {
            field: kind for field, kind in field_types(architecture).items() if field not in architecture.UNBOUND
        }
        SETTINGS.setdefault("backbone", {}).update(declared)
        return function

    return register
