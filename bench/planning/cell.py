"""A cell of the grid (row x task x seed) and how it finds its settings.

Recipes see a grid only through their cell: it resolves settings layer by layer, remembers which binding supplied which
value, and makes stages.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from bench.data.manifest import Manifest, read_manifest
from bench.data.metrics import METRICS, NEED_TWO_CLASSES, entry_name
from bench.data.prepare import check_unchanged
from bench.data.tasks import FURTHER_EVALUATIONS, Task, trained_task
from bench.errors import InputError, SpecError, nearest
from bench.planning.bindings import Binding, Bindings, checked
from bench.planning.catalogue import OF_CHECKPOINTS, Catalogue
from bench.planning.registry import RECIPES, backbone_builder
from bench.planning.settings import DataSettings, Grid, Row, SearchSettings
from bench.pretrained.checkpoints import Prepared
from bench.pretrained.checkpoints import read as read_checkpoint
from bench.specs import (
    PRETRAINED,
    RANDOM,
    Backbone,
    Constraint,
    Data,
    Execution,
    Objective,
    Optimizer,
    Schedule,
    Selected,
    Spec,
    Stage,
    part_json,
    walk,
)

S = TypeVar("S", bound=Spec)
T = TypeVar("T")

EXECUTION, SEARCH = Execution(), SearchSettings()

ANY_SEED = 2**256
"""Stands for the seed in stages that are built once for all seeds; nobody's seed."""


class _SeedIsRead(BaseException):
    """A recipe reads the seed, so its stages are built for each; no Exception, which a recipe could catch."""


@dataclass
class Expansion:
    """The grid while its cells are built.

    It holds the bindings, the prepared data, and every stage that a cell has made.
    """

    grid: Grid
    bindings: Bindings
    data_root: Path
    part: Literal["all", "fit"] = "all"
    """'fit' in a search, whose candidates are judged on examples held out from training; else 'all'."""
    check_sources: bool = True
    """Whether what is prepared is held against its source, which may have changed since."""
    of_others: Expansion | None = None
    """In a candidate's grid: the one without its bindings, for every row but the one that is searched."""
    rows: dict[str, Row] = field(init=False)
    catalogue: Catalogue = field(init=False)
    """The tasks and backbones there are, the user's own included."""
    stages: dict[str, tuple[Stage, tuple[Binding, ...]]] = field(default_factory=dict)
    """Stage key -> the stage, and the bindings that supplied its values."""
    _manifests: dict[str, Manifest | None] = field(default_factory=dict)
    _built: dict[tuple[str, str, int], Stage | None] = field(default_factory=dict)
    _shared: dict[tuple[Any, ...], Any] = field(default_factory=dict)
    _each_seed: set[tuple[str, str]] = field(default_factory=set)
    """The rows and tasks whose stages are built for each seed."""
    _seeded: dict[int, dict[str, Stage]] = field(default_factory=dict)
    """Seed -> key of a stage of any seed -> the stage of this one."""

    def __post_init__(self) -> None:
        self.rows = self.grid.named_rows
        self.catalogue = Catalogue(self.bindings.all, self.data_root)

    def manifest(self, task: str) -> Manifest | None:
        """Return what is prepared of a task, read once; None if nothing.

        Refuses a copy of a user's data that have changed since.
        """
        if task not in self._manifests:
            manifest = read_manifest(task, self.data_root)
            if manifest is not None and task in self.catalogue.own and self.check_sources:
                check_unchanged(self.catalogue.tasks[task], manifest)
            self._manifests[task] = manifest
        return self._manifests[task]

    @property
    def tasks(self) -> list[str]:
        """The tasks that the grid's columns are trained on, each once."""
        return [*dict.fromkeys(map(trained_task, self.grid.tasks))]

    def shared(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """Return a value that many cells have in common, made once.

        An example is a backbone with its pre-training stage.
        """
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    def cell(self, row: str, task: str, seed: int) -> Cell:
        """Return the cell with these coordinates."""
        return Cell(self, self.rows[row], task, seed)

    def stage(self, row: str, task: str, seed: int) -> Stage:
        """Return the last stage of a cell, built once.

        Refuses rows that wait for each other.
        """
        # The stages of several seeds differ in that number alone. So a recipe is called once, with ANY_SEED, and each
        # seed is put into the stages that it made. It is called for every seed where it reads the seed, and where it is
        # refused, as the message must be about the seed that was asked for. In a grid of one seed, and for the
        # candidates of a search, there is nothing to save.
        several = seed != ANY_SEED and self.part == "all" and len(self.grid.seeds) > 1
        if several and (row, task) not in self._each_seed:
            try:
                return self._with_seed(self.stage(row, task, ANY_SEED), seed)
            except (_SeedIsRead, InputError):
                self._each_seed.add((row, task))
        coordinates = (row, task, seed)
        if coordinates in self._built:
            stage = self._built[coordinates]
            if stage is None:
                raise InputError(
                    f"row '{row}' depends on itself: it learns from a row that learns from it. Name another row."
                )
            return stage
        self._built[coordinates] = None  # being built: who asks for it meanwhile waits for itself
        cell = self.cell(row, task, seed)
        try:
            search = cell.configure(SEARCH, "search")
            recipe = RECIPES[cell.own_row.recipe]
            stage = self._search(cell, search.candidates) if search.candidates else recipe(cell)
        except SpecError as error:
            raise cell.blame(error.field, str(error)) from error
        finally:
            del self._built[coordinates]
        self._built[coordinates] = stage
        return stage

    def _with_seed(self, pattern: Stage, seed: int) -> Stage:
        """Return a stage of any seed, and those behind it, with a seed in its place."""
        stages = self._seeded.setdefault(seed, {})
        if pattern.key not in stages:
            changes: dict[str, Any] = {"seed": seed} if pattern.seed == ANY_SEED else {}
            for name, value in pattern.stages.items():
                if isinstance(value, tuple):
                    changes[name] = tuple(self._with_seed(each, seed) for each in value)
                else:
                    changes[name] = self._with_seed(value, seed)
            stage = pattern.copy(changes)
            if pattern.key in self.stages:
                stage, _ = self.stages.setdefault(stage.key, (stage, self.stages[pattern.key][1]))
            stages[pattern.key] = stage
        return stages[pattern.key]

    def _but(self, **changes: Any) -> Expansion:
        """Return the same grid with some fields changed, and no stage made yet."""
        return dataclasses.replace(self, **changes, stages={}, _built={}, _shared={}, _each_seed=set(), _seeded={})

    def _search(self, cell: Cell, candidates: tuple[str, ...]) -> Stage:
        """Build the stage whose settings a row's search chooses.

        Candidates are trained with the base seed (or with the cell's, as `grid.search_seeds` says) on the part there to
        fit, finals with the cell's seed on all data. With two lines and seed 3 of a grid whose base seed is 0:

            finetune.lr = 1e-3      candidate: seed 0 on nine tenths        final: seed 3 on everything
            finetune.lr = 1e-4      candidate: seed 0 on nine tenths        final: seed 3 on everything

        The candidate that scores best on the held-out tenth says which of the two finals is trained. Refuses a line
        that changes nothing for this task.
        """
        row, task = cell.own_row.name, cell.task.name
        seed = self.grid.base_seed if self.grid.search_seeds == "shared" else cell.any_seed
        fitted = [self._candidate(row, task, text, "fit") for text in candidates]
        finals = [self._candidate(row, task, text, self.part) for text in candidates]
        for expansion, text in zip(fitted, candidates, strict=True):
            expansion.stage(row, task, seed)
            location = self.bindings.candidates[text][0].location
            lines = [b for b in expansion.bindings.all if (b.location, b.scope) == (location, row)]
            if not expansion.bindings.used.issuperset(lines):
                raise SpecError(
                    "candidates", f"the candidate '{text}' of row '{row}' changes nothing for task '{task}'."
                )
        return Selected.among(
            candidates=tuple(expansion.stage(row, task, seed) for expansion in fitted),
            finals=tuple(expansion.stage(row, task, cell.any_seed) for expansion in finals),
            metric=cell.metric,
        )

    def _candidate(self, row: str, task: str, text: str, part: Literal["all", "fit"]) -> Expansion:
        """Return the grid with one candidate's bindings for one row.

        Other rows, its teachers among them, are searched as they always are: by the grid without these bindings, once
        for all candidates.
        """

        def make() -> Expansion:
            lines = [dataclasses.replace(binding, scope=row) for binding in self.bindings.candidates[text]]
            # The candidate's grid searches nothing itself for this row and task, or it would never end.
            no_search = Binding(f"{task}/{row}", "search", "candidates", (), text, override=True)
            bindings = Bindings([*self.bindings.all, *lines, no_search], self.bindings.candidates)
            bindings.used = self.bindings.used  # what only a candidate reads is read
            return of_others._but(bindings=bindings, of_others=of_others)

        of_others = self if part == self.part else self.shared(("part", part), lambda: self._but(part=part))
        candidate: Expansion = self.shared(("candidate", row, task, text, part), make)
        return candidate


class Cell:
    """One row, task and seed of a grid, handed to its recipe."""

    def __init__(self, expansion: Expansion, row: Row, task: str, seed: int, backbone: str | None = None) -> None:
        self._expansion = expansion
        self._used: list[Binding] = []
        self._other_backbone = backbone
        self.own_row = row
        self.any_seed = seed
        """The seed, or ANY_SEED."""
        self._task_name = task

    # ---------------------------------------------------------------------------------------- coordinates

    @property
    def seed(self) -> int:
        """The seed of labelled stages."""
        if self.any_seed == ANY_SEED:
            raise _SeedIsRead
        return self.any_seed

    @cached_property
    def task(self) -> Task:
        """The task with this cell's settings (backbone, metric)."""
        scopes = self._scopes_on()
        task = self._shared(
            ("task", scopes), lambda: self._overlay(self._expansion.catalogue.tasks[self._task_name], ("task",), scopes)
        )
        if self._other_backbone is not None:
            task = dataclasses.replace(task, backbone=self._other_backbone)
        if task.backbone not in self._expansion.catalogue.backbones:
            legal = nearest(task.backbone, self._expansion.catalogue.backbones)
            raise self.blame("backbone", f"task {task.name}: there is no backbone '{task.backbone}'.{legal}")
        return task

    @property
    def metric(self) -> str:
        """The entry of a record that is this cell's number.

        Refuses, as far as the task is prepared, a positive class that it lacks, and one of more than two classes.
        """
        task, manifest = self.task, self._expansion.manifest(self._task_name)
        needed, positive_class = METRICS[task.metric].needs_positive_class, task.positive_class
        classes = None if manifest is None else manifest.class_names
        if classes is not None and len(classes) != 2 and (needed or positive_class is not None):
            setting = "metric" if needed else "positive_class"
            wrong = f"task.{setting} = {getattr(task, setting)!r}: {task.name} has {len(classes)} classes"
            reason = "only one of two can be the positive one. Remove the line; macro_f1 is for any number"
            raise self.blame(setting, f"{wrong}, and {reason}.")
        if classes is not None and positive_class is not None and positive_class not in classes:
            wrong = f"task.positive_class = {positive_class!r}: {task.name} has no such class."
            raise self.blame("positive_class", f"{wrong}{nearest(positive_class, classes)}")
        if not needed:
            return task.metric
        if positive_class is None:
            legal = " or ".join(map(repr, classes or ("the name of a class",)))
            cure = f"Bind {task.name}/task.positive_class = {legal}."
            raise self.blame("metric", f"task.metric = {task.metric!r}: which class counts? {cure}")
        return entry_name(task.metric, positive_class)

    @property
    def name(self) -> str:
        """`row/task/backbone/seed`."""
        return f"{self.own_row.name}/{self.task.name}/{self.task.backbone}/{self.seed}"

    @cached_property
    def backbone(self) -> Backbone:
        """The task's backbone with its pre-training stage."""
        backbone = self._built_backbone()
        if self.task.modality != backbone.MODALITY:
            wrong = f"{backbone.name} reads {backbone.MODALITY}s, {self.task.name} holds {self.task.modality}s"
            cure = "choose a backbone of the task's modality"
            if not self.task.modality_bound and self._expansion.manifest(self._task_name) is None:
                prepare = self._expansion.catalogue.command([self.task.name], self._expansion.data_root)
                cure = f"it counts as {self.task.modality} until it is prepared: {prepare}"
            raise self.blame("backbone", f"{wrong}: {cure}.")
        return backbone

    def _built_backbone(self) -> Backbone:
        def build() -> Backbone:
            backbone = backbone_builder(self.task.backbone)(self)
            # The cells of all seeds share it, so its pre-training has one seed.
            if isinstance(backbone.weights, Stage) and any(each.seed == ANY_SEED for each in walk(backbone.weights)):
                raise _SeedIsRead
            return backbone

        return self._shared(("backbone", self._scopes), build)

    def with_backbone(self, name: str) -> Cell:
        """Return the same cell on another backbone, such as a larger teacher.

        Its settings see that backbone's scope.
        """
        return Cell(self._expansion, self.own_row, self._task_name, self.any_seed, name)

    def backbones(self) -> list[str]:
        """List the backbones of the modality of this cell's task.

        The user's own are among them.
        """
        return [name for name in sorted(self._expansion.catalogue.backbones) if self.fits(name)]

    def fits(self, name: str) -> bool:
        """Tell whether a backbone of this name reads this task's modality."""
        exists = name in self._expansion.catalogue.backbones
        return exists and self.task.modality == self.with_backbone(name)._built_backbone().MODALITY

    def row(self, name: str) -> Stage:
        """Return the last stage of another row, same task and seed.

        Refuses a row that the grid lacks.
        """
        rows = self._expansion.rows
        if name not in rows:
            # The line that named it: what it binds is called differently by every recipe.
            named = next((f"{line.location}: " for line in reversed(self._used) if line.value == name), "")
            raise InputError(
                f"{named}row '{self.own_row.label}' needs a row '{name}': add it to grid.rows, which has "
                f"{', '.join(rows)}."
            )
        expansion = self._expansion.of_others if name != self.own_row.name else None
        return (expansion or self._expansion).stage(name, self._task_name, self.any_seed)

    # ---------------------------------------------------------------------------------------- settings

    @cached_property
    def _scopes(self) -> tuple[str, ...]:
        return self._scopes_on(self.task.backbone)

    def _scopes_on(self, *backbone: str) -> tuple[str, ...]:
        task, row = self._task_name, self.own_row.name
        # From weak to strong: for everything, the backbone, the task, the row, and the row on this task.
        return ("", *backbone, task, row, f"{task}/{row}")

    def _shared(self, key: tuple[Any, ...], make: Callable[[], T]) -> T:
        """Return a value made once for all cells with this key.

        A cell that takes it counts as a user of the bindings that went into it, whichever cell made it.
        """

        def record() -> tuple[T, list[Binding]]:
            start = len(self._used)
            return make(), self._used[start:]

        shared: tuple[T, list[Binding]] = self._expansion.shared(key, record)
        value, used = shared
        self._used.extend(used)
        return value

    def _use(self, binding: Binding) -> Any:
        self._expansion.bindings.used.add(binding)
        self._used.append(binding)
        return checked(binding)

    def setting(self, configurable: str, setting: str, default: Any) -> Any:
        """Return one scalar setting, or its default.

        Refuses a value of the wrong type, naming the line.
        """
        layers = self._expansion.bindings.layers(self._scopes)
        if (configurable, setting) not in layers:
            return default
        _, binding = layers[configurable, setting]
        return self._use(binding)

    def configure(self, default: S, *names: str, **fixed: Any) -> S:
        """Put the settings bound under `names` into a spec.

        `names` go from strong to weak; without any it is the spec's own name. `fixed` are fields that the recipe itself
        decides: no line binds them, so one that tries for this row alone is refused as one that changes nothing.
        """
        default = dataclasses.replace(default, **fixed) if fixed else default
        names, scopes = names or (type(default).__name__,), self._scopes
        # The seed has no scope, so the cells of a row and task take one spec. Defaults are told apart by their text:
        # 0.0 and -0.0 are equal, but make two keys.
        key = ("configure", names, scopes, tuple(fixed), part_json(default))
        return self._shared(key, lambda: self._overlay(default, names, scopes, tuple(fixed)))

    def _overlay(self, default: S, names: tuple[str, ...], scopes: tuple[str, ...], fixed: tuple[str, ...] = ()) -> S:
        """Put the bound settings into a spec.

        `names` are the configurables that bind it, strongest first. A stronger name wins over a stronger scope. Asked
        for `self_distill`, then `further_pretrain`:

            self_distill.lr = 1e-3              strength (1, 0): it is taken
            task/further_pretrain.lr = 1e-4     strength (0, 2)

        Of an exclusive group (a schedule has steps or epochs) only the strongest stays, and the default's go:

            further_pretrain.steps = 100, task/further_pretrain.epochs = 3      gives epochs = 3, steps = None
        """
        layers = self._expansion.bindings.layers(scopes)
        strongest: dict[str, tuple[tuple[int, int], Binding]] = {}
        for preference, name in enumerate(reversed(names)):  # a later, stronger name replaces an earlier one
            for spec_field in dataclasses.fields(default):
                if (name, spec_field.name) in layers and spec_field.name not in (*default.UNBOUND, *fixed):
                    rank, binding = layers[name, spec_field.name]
                    strongest[spec_field.name] = ((preference, rank), binding)
        values: dict[str, Any] = {}
        # `bound` holds what is bound of a group: with the second example above, steps at (0, 0) and epochs at (0, 2).
        # The lines weaker than the strongest are dropped, and the default's own values of the group are cleared.
        for group in default.EXCLUSIVE:
            bound = {name: strongest[name] for name in group if name in strongest}
            if not bound:
                continue
            top, winner = max(bound.values(), key=lambda candidate: candidate[0])
            for name, (strength, loser) in bound.items():
                if strength < top:  # of equal strength both stay, and the spec itself refuses them
                    del strongest[name]
                    self._expansion.bindings.note_override(winner, loser)
            values.update(dict.fromkeys(group, None))
        values |= {name: self._use(binding) for name, (_, binding) in strongest.items()}
        if not values:
            return default
        try:
            return dataclasses.replace(default, **values)
        except SpecError as error:
            if error.field in values:
                raise self.blame(error.field, str(error)) from error
            # A default that does not fit what was bound: those lines are the cause.
            lines = ", ".join(sorted({binding.location for _, binding in strongest.values()}))
            raise InputError(f"{lines}: {' or '.join(names)}: {error}") from error

    def blame(self, setting: str, message: str) -> InputError:
        """Return the error about a setting, with the responsible line in front.

        Where no line bound it, the row and the task stand there.
        """
        lines = [binding.location for binding in reversed(self._used) if binding.setting == setting]
        where = lines[0] if lines else f"row '{self.own_row.label}', task '{self._task_name}'"
        return InputError(f"{where}: {message}")

    # ---------------------------------------------------------------------------------------- stages

    def data(self, labelled: bool) -> Data:
        """Return the training data of this cell.

        These are all of `data.subset`, or in a search only the part there to fit.
        """
        return self._shared(("data", self._scopes, labelled), lambda: self._data("train", labelled))

    def evaluation_data(self) -> Data:
        """Return the data that this cell's number comes from.

        These are the test split, or in a search the validation split or the held-out part.
        """

        def judging() -> Data:
            data = self._data("test", True)
            self.refuse_one_class(data)
            return data

        return self._shared(("evaluation", self._scopes), judging)

    def refuse_one_class(self, data: Data) -> None:
        """Refuse prepared data on which this task's metric says nothing, as only one class occurs there."""
        metric, manifest = self.task.metric, self._expansion.manifest(self._task_name)
        if metric not in NEED_TWO_CLASSES or manifest is None or manifest.class_names is None:
            return
        of_splits = [manifest.splits[split].per_class or () for split in data.split.split("+")]
        from bench.data.subset import class_counts  # needs numpy, which other plans do without

        counts = class_counts(data, tuple(map(sum, zip(*of_splits, strict=True))))
        largest = max(counts, default=0)
        if largest < sum(counts) or not counts:
            return
        only = manifest.class_names[counts.index(largest)]
        if METRICS[metric].needs_positive_class and only == self.task.positive_class:
            return  # of the class that is there, F1 tells predictions apart
        part = "the split" if data.part == "all" else "what a search holds out of the split"
        larger = "" if data.subset is None else ", raise data.subset so that more is held out"
        raise self.blame(
            "metric",
            f"task.metric = {metric!r}: {part} '{data.split}' of {data.task} has {largest} examples of the class "
            f"{only!r} and none of any other; {METRICS[metric].title} needs two classes. Bind "
            f"another metric, as in {data.task}/task.metric = 'accuracy'{larger}, or prepare both classes there.",
        )

    def further_evaluations(self) -> tuple[Data, ...]:
        """Return the further splits that this cell's stages are measured on.

        There are none in a search, and none that the prepared data lack: those of mnli may be from before it had two.
        """
        if self._expansion.part == "fit":
            return ()
        manifest = self._expansion.manifest(self._task_name)
        splits = [split for task, split in FURTHER_EVALUATIONS.values() if task == self._task_name]
        there = [split for split in splits if manifest is None or split in manifest.splits]
        return tuple(data_of(manifest, self._task_name, split, True) for split in there)

    def _data(self, split: Literal["train", "test"], labelled: bool) -> Data:
        """Choose a cell's data for training ('train') or evaluation ('test').

        | grid, or its search where the task has…  | trains on                      | is judged on          |
        |------------------------------------------|--------------------------------|-----------------------|
        | the grid                                 | train, or train+validation     | test                  |
        | a search, a validation split             | train                          | validation            |
        | a search, no validation split            | nine tenths of train           | the other tenth of it |
        | a search, a subset of train+validation   | nine tenths of that subset     | the other tenth of it |

        'train+validation' is `task.training`. `data.subset` and its seed apply to all but test and validation.
        """
        manifest = self._expansion.manifest(self._task_name)
        searching = self._expansion.part == "fit"
        if split == "test" and not searching:
            return data_of(manifest, self._task_name, "test", True)
        settings = self.configure(DataSettings(), "data")
        with_validation = self.task.training == "train+validation"
        has_validation = manifest is not None and "validation" in manifest.splits
        if with_validation and manifest is not None and not has_validation:
            raise self.blame("training", f"{self._task_name} has no validation split: training must be 'train'.")
        # A subset of both splits may hold validation examples: they cannot judge it.
        on_validation = searching and has_validation and not (with_validation and settings.subset is not None)
        if on_validation and split == "test":
            return data_of(manifest, self._task_name, "validation", True)
        trained = "train+validation" if with_validation and not on_validation else "train"
        data = data_of(manifest, self._task_name, trained, labelled)
        if settings.subset != data.examples:  # all of them is no subset: the same stage, the same key
            data = dataclasses.replace(data, subset=settings.subset)
        if searching and not on_validation:
            data = dataclasses.replace(data, part="holdout" if split == "test" else "fit")
        drawn = data.subset is not None or data.part != "all"
        return dataclasses.replace(data, subset_seed=settings.subset_seed) if drawn else data

    def checkpoint(self) -> Prepared | None:
        """Return what is prepared of this cell's backbone, whose weights were made elsewhere.

        Returns None if nothing is. Marks the bindings of its source as used, and refuses what was prepared from another
        source.
        """
        name = self.task.backbone
        source = self._expansion.catalogue.checkpoints[name]
        for setting in OF_CHECKPOINTS:
            self.setting("backbone", setting, None)
        prepared: Prepared | None = self._expansion.shared(
            ("checkpoint", name), lambda: read_checkpoint(name, self._expansion.data_root)
        )
        if prepared is None or not self._expansion.check_sources:
            return prepared
        if problem := self._expansion.shared(("differs", name), lambda: source.differs(prepared)):
            again = self._expansion.catalogue.command([name], self._expansion.data_root)
            raise self.blame("weights", f"{name} {problem}. Prepare it again: {again} --again")
        return prepared

    def is_official_checkpoint(self) -> bool:
        """Tell whether the backbone has the weights that the suite names."""
        return self.task.backbone not in self._expansion.catalogue.own

    def corpus(self, name: str) -> Manifest | None:
        """Return what is prepared of an embedded corpus, None if nothing."""
        return self._expansion.manifest(name)

    def corpus_data(self, name: str) -> Data:
        """Return the training split of an embedded corpus."""
        return data_of(self.corpus(name), name, "train", False)

    def stage(
        self,
        name: str,
        *,
        objective: Objective,
        schedule: Schedule,
        optimizer: Optimizer,
        constraint: Constraint | None = None,
        init: Stage | Literal["pretrained", "random"] | None = None,
        teacher: Stage | None = None,
        backbone: Backbone | None = None,
        data: Data | None = None,
        seed: int | None = None,
        head: Literal["carried", "fresh"] | None = None,
    ) -> Stage:
        """Build a stage on this cell's task and backbone.

        Data, backbone and seed may be given in their stead. Labelled stages take the cell's seed, unlabelled ones the
        pre-training seed. Without an `init` a stage starts where `pretraining.init` says: from the pre-trained weights
        by default.
        """
        if init is None:
            init = self.setting("pretraining", "init", PRETRAINED)
        labelled = "labels" in objective.needs
        backbone = backbone or self.backbone
        if "decoder" in objective.needs:
            backbone = backbone.with_decoder
        if seed is None:
            grid = self._expansion.grid
            shared = not labelled and grid.pretraining_seeds == "shared"
            seed = grid.base_seed if shared else self.any_seed
        execution = self.configure(EXECUTION, "execution")
        try:
            stage = Stage(
                name=name,
                objective=objective,
                data=data or self.data(labelled),
                evaluation=self.evaluation_data() if "head" in objective.needs else None,
                backbone=backbone.random if init == RANDOM else backbone,
                schedule=schedule,
                optimizer=optimizer,
                constraint=constraint,
                init=init,
                teacher=teacher,
                execution=execution,
                seed=seed,
                head=head,
                further_evaluations=self.further_evaluations() if "head" in objective.needs else (),
            )
        except SpecError as error:
            raise self.blame(error.field, str(error)) from error
        # Cells that need the same stage get the same object: one of an earlier seed, row or round.
        stage, _ = self._expansion.stages.setdefault(stage.key, (stage, tuple(self._used)))
        return stage


def data_of(manifest: Manifest | None, task: str, split: str, labelled: bool) -> Data:
    """Describe a whole split, or two joined by '+', as a spec.

    Where the task is not prepared (no manifest), checksum and counts are None.
    """
    if manifest is None:
        return Data(task=task, split=split, labelled=labelled, checksum=None, examples=None, classes=None)
    return Data(
        task=task,
        split=split,
        labelled=labelled,
        checksum=manifest.checksum(split),
        examples=sum(manifest.splits[part].examples for part in split.split("+")),
        classes=len(manifest.class_names) if manifest.class_names and labelled else None,
    )
