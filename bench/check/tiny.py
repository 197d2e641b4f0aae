"""A grid of recipes on one image and one text task with tiny networks and few steps, and the keys of its stages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from bench.data.manifest import Manifest, SplitFacts
from bench.data.tasks import CORPORA, TASKS
from bench.errors import InputError
from bench.planning.bindings import Binding, Bindings
from bench.planning.cell import Expansion
from bench.planning.plugins import LOADED
from bench.planning.registry import SETTINGS
from bench.planning.settings import Grid
from bench.specs import Stage, walk
from bench.store.manifest import write_manifest

TASK_NAMES = ("digits", "pydocs")
STEPS = 4
BATCH_SIZE = 4
COMMON = ("finetune", "tapt")
"""Recipes whose stages are no method's own."""

Bound = Mapping[str, Any]
"""'scope/configurable.setting' -> value."""

WIDTHS = {"width": 16, "heads": 2, "mlp_width": 32}
SIZES: dict[str, dict[str, int]] = {
    "photos_mae": {**WIDTHS, "depth": 1, **{f"decoder_{size}": value for size, value in WIDTHS.items()}},
    # Padded to one length, so that shapes repeat within few steps.
    "docs_mlm": {**WIDTHS, "depth": 1, "pad_to_multiple_of": 48},
}


def short(steps: int, batch_size: int) -> dict[str, Any]:
    """Bind what makes every stage short, whoever declared its schedule, and every network tiny."""
    bound: dict[str, Any] = {"data.subset": 32}
    for name, settings in SETTINGS.items():
        if {"steps", "batch_size", "warmup_steps"} <= settings.keys():
            bound |= {f"{name}.steps": steps, f"{name}.batch_size": batch_size, f"{name}.warmup_steps": 1}
    bound |= {f"{name}/backbone.{size}": value for name, sizes in SIZES.items() for size, value in sizes.items()}
    return bound


def required(recipes: Sequence[str]) -> dict[str, Any]:
    """Bind what recipes cannot be planned without: a setting that ends in `backbone` gets the task's own."""
    return {
        f"{task}/{recipe}.{setting}": TASKS[task].backbone
        for recipe in recipes
        for setting, kind in SETTINGS[recipe].items()
        if setting.endswith("backbone") and (kind is str or str in get_args(kind))
        for task in TASK_NAMES
    }


def expansion(recipes: Sequence[str], data: Path, bound: Bound, tasks: Sequence[str] = TASK_NAMES) -> Expansion:
    """Make a grid of recipes with these bindings; what no row reads is no mistake here."""
    bindings = []
    for target, value in bound.items():
        scope, _, name = target.rpartition("/")
        configurable, _, setting = name.partition(".")
        bindings.append(Binding(scope, configurable, setting, value, f"bench.check: {target}"))
    rows = tuple(dict.fromkeys((*recipes, *COMMON)))
    return Expansion(Grid(rows=rows, tasks=tuple(tasks), seeds=(0,)), Bindings(bindings), data)


def own_stages(grid: Expansion, recipe: str, task: str) -> list[Stage]:
    """List the stages of a recipe that no recipe of COMMON has.

    A recipe of COMMON itself has all of its stages.
    """
    common = () if recipe in COMMON else [grid.stage(name, task, 0) for name in COMMON]
    others = {stage.key for stage in walk(*common)}
    return [stage for stage in walk(grid.stage(recipe, task, 0)) if stage.key not in others]


# ------------------------------------------------------------------------------------------------ keys


Keys = dict[str, dict[str, str]]
"""Recipe -> task -> key of the last stage, without the tasks that the recipe refuses."""


def keys(recipes: Sequence[str], folder: Path, bound: Bound) -> Keys:
    """Compute the keys of recipes at their defaults, on made-up data, so that they depend on no machine."""
    for name, modality in {**{task: TASKS[task].modality for task in TASK_NAMES}, **CORPORA}.items():
        classes = [f"class {number}" for number in range(10)] if name in TASK_NAMES else None
        training, test = (
            SplitFacts(examples=size, checksum=digit * 64, per_class=(size // 10,) * 10 if classes else None)
            for size, digit in ((1000, "1"), (200, "2"))
        )
        manifest = Manifest(
            name=name,
            modality=modality,
            class_names=tuple(classes) if classes else None,
            splits={"train": training, "test": test},
            tokenizer_checksum="3" * 64 if name == "docstrings" else None,
            sources={},
            vocabulary=4000 if name == "docstrings" else None,
        )
        (folder / name).mkdir(parents=True, exist_ok=True)
        write_manifest(folder / name, manifest)
    grid = expansion(recipes, folder, {**required(recipes), **bound})
    computed: Keys = {}
    for recipe in recipes:
        computed[recipe] = {}
        for task in TASK_NAMES:
            try:
                computed[recipe][task] = grid.stage(recipe, task, 0).key
            except InputError:  # that it cannot be planned is told by a demand of its own
                grid = expansion(recipes, folder, {**required(recipes), **bound})
    return computed


def keys_elsewhere(recipes: Sequence[str], folder: Path, bound: Bound) -> Keys:
    """Compute the same keys in another process, in which Python orders sets in another way."""
    plugins = [(plugin.name, plugin.module, str(plugin.path)) for plugin in LOADED.values()]
    request = json.dumps({"recipes": list(recipes), "folder": str(folder), "bound": dict(bound), "plugins": plugins})
    command = [sys.executable, "-c", "from bench.check.tiny import answer; answer()"]
    environment = {**os.environ, "PYTHONHASHSEED": "4242", "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(command, input=request, capture_output=True, text=True, check=False, env=environment)
    if result.returncode != 0:
        raise InputError(f"keys cannot be computed in another process: {result.stderr.strip()}")
    # A plugin may print while it is imported; the answer is the last line.
    computed: Keys = json.loads(result.stdout.splitlines()[-1])
    return computed


def answer() -> None:
    """Print the keys that another process asks for on standard input."""
    import baselines
    from bench.planning.plugins import Plugin, load_all

    request = json.load(sys.stdin)
    baselines.register()
    load_all(Plugin(name, module, Path(path)) for name, module, path in request["plugins"])
    print(json.dumps(keys(request["recipes"], Path(request["folder"]), request["bound"])))
