"""What `grid.…`, `data.…` and `search.…` of a gin file set."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from bench.errors import SpecError, nearest
from bench.planning.registry import RECIPES, SETTINGS
from bench.specs import Spec, field_types


@dataclass(frozen=True)
class Row:
    """A recipe under a name with its own bindings.

    `label` is how the gin file wrote it.
    """

    label: str
    name: str
    recipe: str

    @classmethod
    def parse(cls, label: str) -> Row:
        """Read `recipe` or `name/recipe`.

        Refuses unknown recipes and names that cannot be gin scopes.
        """
        name, slash, recipe = label.rpartition("/")
        name = name if slash else recipe
        if recipe not in RECIPES:
            raise SpecError("rows", f"grid.rows: there is no method '{recipe}'.{nearest(recipe, RECIPES)}")
        if not name.isidentifier():
            raise SpecError("rows", f"grid.rows: '{name}' in '{label}' must be a letter, then letters, digits or _.")
        return cls(label, name, recipe)


@dataclass(frozen=True)
class Grid(Spec):
    """What `grid.…` sets: the axes of the product, and execution.

    A row is `recipe` or `name/recipe`. `pretraining_seeds` 'shared' gives every unlabelled stage `base_seed`, so it
    runs once per task (the papers' protocol); 'per_seed' gives it the cell's seed. `search_seeds` 'shared' trains the
    candidates of a search with `base_seed`, so one choice is made for all seeds; 'per_seed' makes one with each.
    `threads` is fixed per worker, as on a CPU it decides the bits; `checkpoint_steps` bounds what an interruption can
    cost. `cuda_graphs` lets a GPU record steps and repeat them as a whole, which is faster and changes no bit.
    `publish_predictions` puts each cell's test logits beside the records, in that precision, with the predicted classes
    and losses as they were before rounding. `plugins` are modules and files outside the suite that rows, lines and
    stages need (`bench.planning.plugins`).
    """

    plugins: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    name: str | None = None
    pretraining_seeds: Literal["shared", "per_seed"] = "shared"
    search_seeds: Literal["shared", "per_seed"] = "shared"
    base_seed: int = 0
    threads: int = 1
    checkpoint_steps: int = 500
    cuda_graphs: bool = True
    publish_predictions: Literal["float32", "float16"] | None = None

    @property
    def named_rows(self) -> dict[str, Row]:
        """The rows by their names."""
        return {row.name: row for row in map(Row.parse, self.rows)}

    def check(self) -> None:
        for axis in ("rows", "tasks", "seeds"):
            values = getattr(self, axis)
            self.require(axis, len(values) > 0, "a list with at least one entry: the grid is empty")
            twice = sorted(str(value) for value, count in Counter(values).items() if count > 1)
            self.require(axis, not twice, f"free of duplicates; named twice: {', '.join(twice)}")
        self._check_rows()
        self.require("seeds", all(seed >= 0 for seed in self.seeds), "a list of whole numbers from 0 up")
        self.require("base_seed", self.base_seed >= 0, "0 or more")
        self.require("threads", 1 <= self.threads <= 1024, "at least 1, at most 1024")
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
    """What `data.…` sets: how many training examples a cell uses.

    `subset` None stands for all; they are drawn stratified and nested.
    """

    subset: int | None = None
    subset_seed: int = 0

    def check(self) -> None:
        self.require("subset", self.subset is None or self.subset >= 1, "at least 1 example, or None for all")
        self.require("subset_seed", self.subset_seed >= 0, "0 or more")


@dataclass(frozen=True)
class SearchSettings(Spec):
    """What `search.…` sets: the candidate settings of every row.

    Each is a line of bindings with ';' between them, such as 'RecAdam.k = 0.2'.

    Each is trained with the seed that `grid.search_seeds` says, on the part of the training set that is there to fit,
    and judged on the held-out tenth; the best is trained on all of it. Every row of a grid gets equally many.
    """

    candidates: tuple[str, ...] = ()

    def check(self) -> None:
        self.require("candidates", len(self.candidates) != 1, "two or more lines, or none")
        self.require("candidates", len(set(self.candidates)) == len(self.candidates), "free of duplicates")


SETTINGS["grid"] = field_types(Grid)
SETTINGS["data"] = field_types(DataSettings)
SETTINGS["search"] = field_types(SearchSettings)
