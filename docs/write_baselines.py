"""Write docs/baselines/: a page for each file of methods, from its docstring, its settings and the committed results.

python docs/write_baselines.py
"""

from __future__ import annotations

import csv
import dataclasses
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import baselines
from bench.planning.registry import RECIPES, settings_of
from bench.specs import SPECS, Constraint, Objective, Optimizer, Spec
from bench.tables.published import read_published
from bench.tables.table import in_markdown

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "baselines"
OWN_GRID = "methods"
"""The committed grid in which every method has a row."""
Table = list[list[str]]


def modules() -> list[ModuleType]:
    """Return the files that register methods, by name."""
    baselines.register()
    names = {inspect.unwrap(recipe).__module__ for recipe in RECIPES.values()}
    return [sys.modules[name] for name in sorted(names)]


def recipes_of(module: ModuleType) -> dict[str, str]:
    """Return the names of a file's recipes, with the first sentence of what each does."""
    own = {name: inspect.unwrap(each) for name, each in RECIPES.items()}
    return {name: _first(each) for name, each in own.items() if each.__module__ == module.__name__}


def page(module: ModuleType) -> str:
    """Write the page of a file of methods."""
    title, _, rest = inspect.cleandoc(module.__doc__ or "").partition("\n\n")
    name, recipes = module.__name__.partition(".")[2], recipes_of(module)
    parts = [
        f"# {name}",
        " ".join(title.split()),
        in_markdown([["row", "what it does"], *([f"`{recipe}`", text] for recipe, text in recipes.items())]),
        rest,
        "## Settings",
        _settings(module, recipes),
        "## Numbers",
        _numbers(recipes),
        f"The code: [baselines/{name}.py](../../baselines/{name}.py).",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def index() -> str:
    """Write the page that leads to the others."""
    lines = [["row", "what it does", "page"]]
    for module in modules():
        name = module.__name__.partition(".")[2]
        lines += [[f"`{recipe}`", text, f"[{name}]({name}.md)"] for recipe, text in recipes_of(module).items()]
    return f"""# The methods

Every name in the first column can stand in `grid.rows`. A page says where a method comes from, which equation is
computed where, what its sources contradict each other in and which side is taken, its settings with their defaults, and
the numbers to expect. `python docs/write_baselines.py` writes these pages from the code and the committed results.

{in_markdown(lines)}
"""


def _settings(module: ModuleType, recipes: dict[str, str]) -> str:
    """List what gin files may bind: of the recipes, and of the parts that the file defines."""
    lines: Table = []
    for recipe in recipes:
        parameters = inspect.signature(inspect.unwrap(RECIPES[recipe])).parameters
        bindable = settings_of(recipe) or {}
        lines += [
            [f"`{recipe}.{name}`", f"`{parameter.default!r}`"]
            for name, parameter in parameters.items()
            if name in bindable
        ]
    for part in SPECS.values():
        if part.__module__ == module.__name__ and issubclass(part, Objective | Optimizer | Constraint):
            lines += [[f"`{part.__name__}.{name}`", f"`{default!r}`"] for name, default in _defaults(part)]
    budget = "Budgets (`steps`, `epochs`, `lr`, …) are those of its stages: `finetune.lr`, `further_pretrain.steps`."
    if not lines:
        return f"None of its own. {budget}"
    return f"{in_markdown([['setting', 'default'], *lines])}\n\n{budget}"


def _defaults(part: type[Spec]) -> Iterator[tuple[str, Any]]:
    """Return the fields of a part that gin files may bind, with their defaults."""
    bindable = settings_of(part.__name__) or {}
    for field in dataclasses.fields(part):
        if field.name in bindable:
            yield field.name, field.default


def _numbers(recipes: dict[str, str]) -> str:
    """Show the committed results of these rows, and what the paper printed for them."""
    with (ROOT / "results" / f"{OWN_GRID}.csv").open(encoding="utf-8", newline="") as file:
        head, *lines = list(csv.reader(file))
    own = [line for line in lines if line[0] in recipes]
    text = (
        f"Committed with the suite ([{OWN_GRID}](../../results/{OWN_GRID}.md): tiny backbones, short budgets, nothing "
        "tuned; they show that the method works here, not how good it is):\n\n" + in_markdown([head, *own])
    )
    published = [each for each in read_published().values() if each.row in recipes]
    if published:
        printed = [
            [each.table, each.row, each.task, f"{each.mean:.2f} ± {each.std:.2f} ({each.n})"] for each in published
        ]
        text += f"\n\nPrinted in {published[0].source}:\n\n" + in_markdown(
            [["table", "row", "task", "printed"], *printed]
        )
    return text


def _first(function: Any) -> str:
    return " ".join((inspect.getdoc(function) or "").partition("\n\n")[0].split())


def pages() -> dict[Path, str]:
    """Return the text of every page by its path."""
    named = {PAGES / f"{module.__name__.partition('.')[2]}.md": page(module) for module in modules()}
    return {PAGES / "README.md": index(), **named}


if __name__ == "__main__":
    PAGES.mkdir(exist_ok=True)
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
