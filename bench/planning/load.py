"""From gin files to a grid whose every name, type and binding is checked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.data.tasks import CORPORA, FURTHER_EVALUATIONS, REFUSED, TASKS, trained_task
from bench.errors import InputError, SpecError, nearest
from bench.planning.bindings import LEGAL_NAME, Binding, Bindings, checked
from bench.planning.catalogue import OF_CHECKPOINTS, OF_OWN_TASKS, Catalogue
from bench.planning.cell import Expansion
from bench.planning.gin_files import read_bindings
from bench.planning.left_out import left_out, wider_grid
from bench.planning.plugins import load_named
from bench.planning.registry import BACKBONES, SETTINGS, configurable_names, settings_of
from bench.planning.settings import Grid
from bench.specs import Stage
from bench.specs.cluster import Cluster, stage_kind


def load_grid(files: Sequence[str], overrides: Sequence[str]) -> tuple[Grid, Bindings]:
    """Read the grid that gin files describe, and its bindings.

    Raises InputError listing every binding of an unknown name, setting or scope, or of a wrong type.
    """
    bindings = load_bindings(files, overrides)
    values, lines = _settings("grid", bindings)
    try:
        grid = Grid(**{"name": Path(files[0]).stem if files else None, **values})
        catalogue = Catalogue(bindings.all)
        _check_names(grid, catalogue)
        _check_scopes(bindings, grid, catalogue)
    except SpecError as error:
        raise InputError(f"{lines.get(error.field, ', '.join(files))}: {error}") from error
    return grid, bindings


def load_bindings(files: Sequence[str], overrides: Sequence[str]) -> Bindings:
    """Read the bindings of gin files, every name and type checked.

    They need not describe a grid.
    """
    bindings = read_bindings(files, overrides)
    load_named(bindings)  # first, as the other lines may be for what they register
    of_candidates = [binding for candidate in bindings.candidates.values() for binding in candidate]
    problems = [problem for binding in (*bindings.all, *of_candidates) for problem in _unknown_names(binding)]
    if problems:
        # A list of legal names may be for many lines: it stands once, behind the first of them.
        hints = [hint for _, hint in problems]
        lines = [text + hint * (hints.index(hint) == number) for number, (text, hint) in enumerate(problems)]
        raise InputError("\n".join(lines))
    return bindings


def load_cluster(bindings: Bindings) -> Cluster:
    """Read what the bindings ask of a cluster for every stage.

    Raises InputError for impossible values.
    """
    return _cluster(*_settings("slurm", bindings))


def load_clusters(bindings: Bindings, stages: Iterable[Stage]) -> tuple[dict[str, Cluster], list[str]]:
    """Read what each kind of stage asks of a cluster, by kind.

    Example: with `slurm.mem_gb = 4.0` and `further_pretrain/slurm.mem_gb = 16.0`, a job of a further pre-training has
    16 GB for each of its stages, a job of any other kind 4. A kind that no stage of the grid has is refused, but in the
    profile of a cluster, a file that sets nothing else and serves many grids: there it is noted in the second result.
    """
    kinds = sorted({stage_kind(stage.name) for stage in stages})
    set_in: dict[str, set[str]] = defaultdict(set)
    for binding in bindings.all:
        set_in[binding.file].add(binding.configurable)
    notes = []
    for binding in bindings.all:
        if binding.configurable == "slurm" and binding.scope not in ("", *kinds):
            if not binding.override and set_in[binding.file] == {"slurm"}:
                bindings.used.add(binding)
                notes.append(f"not for this grid: {binding.location}: {binding.target}: it has no stage of that kind")
                continue
            unknown = f"{binding.target}: no stage of this grid is of the kind '{binding.scope}'."
            raise binding.blame(f"{unknown}{nearest(binding.scope, kinds)}")
    return {kind: _cluster(*_settings("slurm", bindings, kind)) for kind in kinds}, notes


def _cluster(values: Mapping[str, Any], lines: Mapping[str, str]) -> Cluster:
    """Make the cluster of these settings; an error names the line that bound the wrong one."""
    try:
        return Cluster(**values)
    except SpecError as error:
        location = f"{lines[error.field]}: " if error.field in lines else ""
        raise InputError(f"{location}{error}") from error


def _settings(configurable: str, bindings: Bindings, *scopes: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the bound settings of 'grid' or 'slurm', and where each is bound.

    Both are by the setting's name. Lines without a scope count and, stronger, those with one of `scopes`.
    """
    values, lines = {}, {}
    for (name, setting), (_, binding) in bindings.layers(("", *scopes)).items():
        if name == configurable:
            values[setting] = checked(binding)
            lines[setting] = binding.location
            bindings.used.add(binding)
    return values, lines


def _unknown_names(binding: Binding) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with a binding's names or value.

    What would be legal comes apart from it, so that equal lists of names are told once.
    """
    name, setting = binding.configurable, binding.setting
    settings = settings_of(name)
    if settings is None:
        hint = _scope_hint(binding) or nearest(name, configurable_names())
        yield f"{binding.location}: there is no '{name}' to bind.", hint
    elif setting not in settings:
        yield f"{binding.location}: {name} has no setting '{setting}'.", nearest(setting, settings)
    else:
        try:
            checked(binding)
        except InputError as error:
            yield str(error), ""


def _scope_hint(binding: Binding) -> str:
    """Say how to write a line that binds settings of a task or backbone.

    Returns '' for other lines. Example: for `digits.lr = 1e-3` it is digits/finetune.lr.
    """
    name = binding.configurable
    for kind, names in (("backbone", BACKBONES), ("task", TASKS)):
        if name in names:
            bound = kind if binding.setting in SETTINGS[kind] else "finetune"
            return f" It is a {kind}, which limits what a line is for: write {name}/{bound}.{binding.setting}."
    return ""


def _check_names(grid: Grid, catalogue: Catalogue) -> None:
    for task in grid.tasks:
        if trained_task(task) in catalogue.tasks:
            continue
        if task in REFUSED:
            raise SpecError("tasks", f"grid.tasks: there is no task '{task}': {REFUSED[task]}. Take it out.")
        if not task.isidentifier():
            raise SpecError("tasks", f"grid.tasks: '{task}' is no name of a task: {LEGAL_NAME}.")
        legal = nearest(task, [*catalogue.tasks, *FURTHER_EVALUATIONS])
        raise SpecError("tasks", f"grid.tasks: there is no task '{task}', nor is {task}/task.source bound.{legal}")
    for row in grid.named_rows:
        if row in {*catalogue.tasks, *FURTHER_EVALUATIONS, *CORPORA, *catalogue.backbones}:
            raise SpecError("rows", f"grid.rows: '{row}' is also a task or backbone; its scope would be ambiguous.")


def _scopes(grid: Grid) -> set[str]:
    """Name the scopes of a grid's rows, and of its rows on its tasks."""
    rows = grid.named_rows
    return {*rows, *(f"{trained_task(task)}/{row}" for task in grid.tasks for row in rows)}


def _check_scopes(bindings: Bindings, grid: Grid, catalogue: Catalogue) -> None:
    # Legal are, with the rows tapt and big/finetune and the task digits: nothing, tapt, big, every task and backbone,
    # digits/tapt and digits/big.
    rows = grid.named_rows
    columns = {*catalogue.tasks, *catalogue.backbones}
    legal = {"", *columns, *_scopes(grid)}
    files = {binding.file for binding in bindings.all}
    tolerated = {file: _scopes(wider_grid(grid, bindings, file)) for file in files}
    for binding in bindings.all:
        if binding.scope not in legal and binding.scope in tolerated[binding.file]:
            continue
        if binding.configurable == "slurm":  # its scopes are kinds of stages: see load_clusters
            continue
        if binding.configurable == "grid" and binding.scope:
            raise binding.blame(f"{binding.target} takes no scope: it describes the whole grid.")
        of_task = binding.configurable == "task" and binding.setting != "backbone"
        if of_task and binding.scope.split("/")[-1] in rows:
            raise binding.blame(f"task.{binding.setting} takes no row: all rows of a column share its task.")
        if (column := binding.scope.split("/")[0]) in FURTHER_EVALUATIONS:
            task = trained_task(column)
            shown = f"{column} shows the stages of {task} on another split and has no settings of its own"
            raise binding.blame(f"{shown}: write {task}/… instead.")
        if binding.scope not in legal:
            names = legal - {""} if "/" in binding.scope else {*rows, *columns}
            # tapt/digits may be meant as digits/tapt: the task comes first.
            swapped = "/".join(reversed(binding.scope.split("/")))
            hint = f" Did you mean '{swapped}'?" if swapped in legal else nearest(binding.scope, names)
            unknown = f"the scope '{binding.scope}' is no row, task or backbone of this grid, nor task/row."
            raise binding.blame(f"{unknown}{hint}")


def refuse_unused(expansion: Expansion) -> set[Binding]:
    """Refuse every binding that supplied no value to any cell.

    The message says what hides each of them. Returns the unused lines of included files that would be read by rows or
    tasks which this grid leaves out.
    """
    effective = expansion.bindings.used | expansion.bindings.overridden
    unused = [binding for binding in expansion.bindings.all if binding not in effective and not _declares(binding)]
    not_here = left_out(expansion, unused)
    unused = [binding for binding in unused if binding not in not_here]
    if unused:
        raise InputError("\n".join(_why_unused(binding, expansion) for binding in unused))
    return not_here


def _declares(binding: Binding) -> bool:
    """Tell whether a line declares a task or checkpoint.

    One that does may remain unused: one file of declarations may serve many grids.
    """
    return (binding.configurable == "task" and binding.setting in OF_OWN_TASKS) or (
        binding.configurable == "backbone" and binding.setting in OF_CHECKPOINTS
    )


def _why_unused(binding: Binding, expansion: Expansion) -> str:
    unused, task = f"{binding.location}: {binding.target} changes nothing:", binding.scope.split("/")[0]
    if task in expansion.catalogue.tasks and task not in expansion.tasks:
        return f"{unused} this grid does not run the task {task}. Remove it."
    cells = (expansion.cell(row, task, expansion.grid.base_seed) for row in expansion.rows for task in expansion.tasks)
    backbones = {cell.task.backbone for cell in cells}
    if binding.scope in expansion.catalogue.backbones - backbones:
        return (
            f"{unused} no task uses the backbone {binding.scope}, but {', '.join(sorted(backbones))}. Remove it, or "
            f"bind TASK/task.backbone = '{binding.scope}'."
        )
    # Bindings of the same setting that were used: whatever their scopes, they are what cells took in its stead.
    setting = (binding.configurable, binding.setting)
    stronger = {other.location for other in expansion.bindings.used if (other.configurable, other.setting) == setting}
    reason = "no cell reads it, or the recipe passes its own value"
    if stronger:
        reason = f"it is overridden everywhere ({', '.join(sorted(stronger))})"
    return f"{unused} {reason}. Remove it or correct its scope or name."
