"""Cells -> distinct stages in dependency order: what is done, what is to run, what it would cost."""

from __future__ import annotations

import fnmatch
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.catalogue import Catalogue
from bench.cell import Expansion
from bench.config import find_gin, load_cluster, load_grid, refuse_unused
from bench.errors import InputError, nearest
from bench.planning.bindings import Bindings
from bench.planning.settings import Grid
from bench.specs import Selected, Stage, walk
from bench.specs.cluster import Cluster
from bench.store.store import Store


@dataclass(frozen=True)
class PlannedCell:
    """A cell and the stage whose record is its number."""

    name: str
    row: str
    method: str
    task: str
    metric: str
    backbone: str
    seed: int
    stage: Stage


@dataclass
class Plan:
    """A validated grid: its cells, the distinct stages behind them (parents first) and the state of each."""

    grid: Grid
    origin: str
    """Which gin files it came from, and what the command line changed; not what only a cluster is asked for."""
    cells: list[PlannedCell]
    selected: list[PlannedCell]
    stages: list[Stage]
    known: Catalogue
    data_root: Path
    splits: list[str]
    """Lines about bindings that split a stage which two rows would have shared."""
    done: dict[str, float] = field(default_factory=dict)
    """Key of a finished stage -> the seconds it took."""
    failed: dict[str, str] = field(default_factory=dict)
    """Key of a stage whose last attempt failed -> why."""
    cluster: Cluster = field(default_factory=Cluster)
    source: str = ""
    """Its origin with the files' paths: which grid a job belongs to."""

    @property
    def unprepared(self) -> set[str]:
        """The tasks, corpora and public backbones that the selected cells still lack."""
        return set().union(*(stage.unprepared for stage in self.stages))

    def to_run(self, retry: bool) -> list[Stage]:
        """The stages to run now, parents first; failed ones only with `retry`.

        What only finished stages needed is not run again: intermediate stages may be deleted to free space.
        """
        needed: set[str] = set()
        last = self._last
        for stage in reversed(self.stages):  # children before parents
            if stage.key not in self.done and (stage.key in last or stage.key in needed):
                needed |= {stage.key, *(parent.key for parent in stage.parents)}
        needed -= self.done.keys()
        return [
            stage
            for stage in self.stages
            if stage.key in needed and not stage.unprepared and (retry or stage.key not in self.failed)
        ]

    @property
    def _last(self) -> set[str]:
        return {cell.stage.key for cell in self.selected}


def make_plan(
    files: Sequence[str], overrides: Sequence[str], only: Sequence[str], data_root: Path, store: Store
) -> Plan:
    """Read and check a grid, build its stages and look up which of them the store holds.

    Raises InputError for anything wrong in the gin files, for a glob of `only` that matches no cell, and for a damaged
    record.
    """
    grid, bindings = load_grid(files, overrides)
    cluster = load_cluster(bindings)
    expansion = Expansion(grid, bindings, data_root)
    cells = [_cell(expansion, row, task, seed) for row in expansion.rows for task in grid.tasks for seed in grid.seeds]
    refuse_unused(expansion)
    _refuse_unequal_search(cells)
    selected = _select(cells, only)
    plan = Plan(
        grid,
        _origin(files, overrides, bindings),
        cells,
        selected,
        list(walk(*(cell.stage for cell in selected))),
        expansion.known,
        data_root,
        list(_splits(expansion)),
        cluster=cluster,
        source=source(files, overrides, bindings),
    )
    look_up(plan, store)
    return plan


def _origin(files: Sequence[str], overrides: Sequence[str], bindings: Bindings) -> str:
    named, changed = _computing(files, overrides, bindings)
    return ", ".join(Path(name).name for name in named) + "".join(f", --set {_told(text)!r}" for text in changed)


def source(files: Sequence[str], overrides: Sequence[str], bindings: Bindings) -> str:
    """Which grid the gin files and `--set` lines mean, wherever they are named from: others make another one."""
    named, changed = _computing(files, overrides, bindings)
    paths = [str(find_gin(name).resolve()) for name in named]
    return shlex.join(["--gin", *paths, *(["--set", *changed] if changed else [])])


def _computing(files: Sequence[str], overrides: Sequence[str], bindings: Bindings) -> tuple[list[str], list[str]]:
    """The files and `--set` lines that say what is computed, without those that only ask something of a cluster."""
    of_file: dict[str, set[str]] = defaultdict(set)
    for binding in bindings.all:
        of_file[Path(binding.location.rpartition(":")[0]).name].add(binding.configurable)
    named = [name for name in files if of_file.get(find_gin(name).name) != {"slurm"}]
    return named, [text for text in overrides if not text.lstrip().startswith("slurm.")]


def _told(override: str) -> str:
    """A --set line without the paths that declarations hold: tables are published."""
    target, _, _ = override.partition("=")
    return f"{target.rstrip()} = …" if target.rstrip().endswith((".source", ".weights")) else override


def _cell(expansion: Expansion, row: str, task: str, seed: int) -> PlannedCell:
    stage = expansion.stage(row, task, seed)
    cell = expansion.cell(row, task, seed)
    return PlannedCell(
        name=cell.name,
        row=row,
        method=cell.row_name.label,
        task=task,
        metric=cell.task.metric,
        backbone=cell.task.backbone,
        seed=seed,
        stage=stage,
    )


def searched(cell: PlannedCell) -> int:
    """How many configurations the search of a cell's row tries; 0 without one."""
    return len(cell.stage.candidates) if isinstance(cell.stage, Selected) else 0


def _refuse_unequal_search(cells: list[PlannedCell]) -> None:
    counts = {f"{cell.method} on {cell.task}": searched(cell) for cell in cells}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{method}: {count}" for method, count in counts.items())
        raise InputError(
            f"search.candidates: every row must try equally many configurations on every task, or none; here {told}."
        )


def _select(cells: list[PlannedCell], only: Sequence[str]) -> list[PlannedCell]:
    names = [cell.name for cell in cells]
    for glob in only:
        if not fnmatch.filter(names, glob):
            raise InputError(
                f"--only '{glob}' matches no cell; a cell is row/task/backbone/seed.{nearest(glob, names[:20])}"
            )
    if not only:
        return cells
    return [cell for cell in cells if any(fnmatch.fnmatchcase(cell.name, glob) for glob in only)]


def look_up(plan: Plan, store: Store) -> None:
    """Note which stages of a plan the store holds finished or failed by now."""
    plan.done.clear()
    plan.failed.clear()
    for stage in plan.stages:
        if stage.unprepared or not store.folder(stage).is_dir():
            continue
        record = store.record(stage)
        if record is not None:
            plan.done[stage.key] = float(record["seconds"])
            continue
        failure = store.failure(stage)
        if failure is not None:
            plan.failed[stage.key] = failure


# --------------------------------------------------------------------------------------------- what is split


def _splits(expansion: Expansion) -> Iterable[str]:
    """For each row, task: the stages that it would share with another row were it not for the row's own bindings.

    Last stages are left out: rows exist so that those differ. So do rows of one recipe, in any stage; and a stage that
    the row shares with another one under the same bindings belongs to a series (of budgets, of subsets). Searches are
    left out, too: the stages compared are those at the grid's own settings.
    """
    grid, seed, root = expansion.grid, expansion.grid.seeds[0], expansion.data_root
    bindings = Bindings(binding for binding in expansion.bindings.all if binding.configurable != "search")
    unsearched = Expansion(grid, bindings, root)
    of_row = {(row, task): _stages(unsearched, row, task, seed) for row in expansion.rows for task in grid.tasks}
    told: set[str] = set()
    for row, its in expansion.rows.items():
        others = [name for name, other in expansion.rows.items() if other.recipe != its.recipe]
        scopes = {row, *(f"{task}/{row}" for task in grid.tasks)}
        if not any(binding.scope in scopes for binding in bindings.all):
            continue
        plain = Expansion(grid, bindings.without_scopes(scopes), root)
        for task in grid.tasks:
            own, unbound = of_row[row, task], _stages(plain, row, task, seed)
            for stage in list(unbound.values())[:-1]:
                sharing = [other for other in others if stage.key in of_row[other, task]]
                if not sharing or stage.key in own:
                    continue
                # Its counterpart: of the same part in the method and on the same backbone (kd has two `finetune`).
                place = (stage.name, stage.backbone.name)
                counterparts = (s for s in own.values() if (s.name, s.backbone.name) == place and s.key not in unbound)
                split = next(counterparts, None)
                if split is None or any(split.key in of_row[other, task] for other in others):
                    continue
                blamed = {str(binding) for binding in unsearched.sources[split.key] if binding.scope in scopes}
                lines = {
                    f"{one}: splits {stage.name}, which {row} would share with {', '.join(sharing)}" for one in blamed
                }
                yield from sorted(lines - told)
                told |= lines


def _stages(expansion: Expansion, row: str, task: str, seed: int) -> dict[str, Stage]:
    """The stages behind a cell, parents first; none where the row makes no sense under these bindings."""
    try:
        return {stage.key: stage for stage in walk(expansion.stage(row, task, seed))}
    except InputError:
        return {}


# --------------------------------------------------------------------------------------------- what is shown


STATES = ("done", "to run", "failed", "not prepared", "no longer needed")


def describe(plan: Plan) -> str:
    """The plan in words: cells, stages and sharing, done and to do, cost."""
    to_run = {stage.key for stage in plan.to_run(retry=True)}
    grid, states = plan.grid, Counter(_state(plan, stage, to_run) for stage in plan.stages)
    size = f"{len(grid.rows)} rows x {len(grid.tasks)} tasks x {len(grid.seeds)} seeds = {len(plan.cells)} cells"
    selected = f", {len(plan.selected)} selected" if len(plan.selected) < len(plan.cells) else ""
    lines = [
        f"grid {grid.name}: {size}{selected}",
        f"pre-training seeds: {grid.pretraining_seeds}",
        "",
        *_sharing(plan),
        "",
        "stages: " + ", ".join(f"{states[state]} {state}" for state in STATES if states[state] or state in STATES[:2]),
    ]
    lines += [f"  {line}" for line in _not_prepared(plan)]
    for stage in plan.stages:
        if stage.key in plan.failed:
            lines.append(f"  failed: {stage.folder}: {plan.failed[stage.key]} (run again with --retry)")
    lines += [f"  {line}" for line in plan.splits]
    lines.append(_cost(plan))
    return "\n".join(lines)


def _not_prepared(plan: Plan) -> Iterable[str]:
    for name in sorted(plan.unprepared):
        how = "the first run builds it" if plan.known.local(name) else plan.known.command([name], plan.data_root)
        yield f"{name}: not prepared ({how})"


def _state(plan: Plan, stage: Stage, to_run: set[str]) -> str:
    if stage.unprepared:
        return "not prepared"
    if stage.key in plan.done:
        return "done"
    if stage.key in plan.failed:
        return "failed"
    return "to run" if stage.key in to_run else "no longer needed"


def _sharing(plan: Plan) -> Iterable[str]:
    from tabulate import tabulate

    alone: dict[str, set[str]] = defaultdict(set)
    names: dict[str, Counter[str]] = defaultdict(Counter)
    for cell in plan.selected:
        for stage in walk(cell.stage):
            if stage.key not in alone[cell.method]:
                alone[cell.method].add(stage.key)
                names[cell.method][stage.name] += 1
    users = Counter(key for keys in alone.values() for key in keys)
    rows = [
        (
            method,
            len(keys),
            sum(users[key] > 1 for key in keys),
            ", ".join(f"{n} {name}" for name, n in names[method].items()),
        )
        for method, keys in alone.items()
    ]
    yield tabulate(rows, headers=("row", "stages alone", "of them shared", "which"), tablefmt="simple")
    yield f"{sum(map(len, alone.values()))} stages if every row ran alone, {len(plan.stages)} distinct"


def _cost(plan: Plan) -> str:
    """Seconds of the stages to run, where the store holds finished stages of the same kind."""
    known: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for stage in plan.stages:
        if stage.key in plan.done:
            known[_kind(stage)].append(plan.done[stage.key] / stage.total_steps)
    to_run = plan.to_run(retry=True)
    estimated = [stage for stage in to_run if _kind(stage) in known]
    seconds = sum(sum(known[_kind(s)]) / len(known[_kind(s)]) * s.total_steps for s in estimated)
    if plan.unprepared:
        return "cost: unknown until the data are prepared"
    if not to_run:
        return "cost: nothing to run"
    if not estimated:
        return f"cost: unknown, the store holds no finished stage like the {len(to_run)} to run"
    rest = len(to_run) - len(estimated)
    unknown = f"; unknown for {rest} more" if rest else ""
    return f"cost: about {seconds / 60:.1f} minutes of one worker for {len(estimated)} stages{unknown}"


def _kind(stage: Stage) -> tuple[str, str, str]:
    return stage.name, stage.data.task, stage.backbone.name
