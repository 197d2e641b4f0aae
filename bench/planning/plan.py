"""Cells -> distinct stages in dependency order: what is done, what is to run, what it would cost."""

from __future__ import annotations

import fnmatch
import re
import shlex
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.data.metrics import in_split
from bench.data.tasks import FURTHER_EVALUATIONS
from bench.errors import InputError, nearest
from bench.planning.bindings import Bindings
from bench.planning.catalogue import Catalogue
from bench.planning.cell import Expansion
from bench.planning.gin_files import find_gin
from bench.planning.left_out import describe_left_out
from bench.planning.load import load_cluster, load_clusters, load_grid, refuse_unused
from bench.planning.settings import Grid
from bench.planning.sharing import describe_splits
from bench.specs import Selected, Stage, source_file, spec_class, spec_plugin, walk
from bench.specs.cluster import Cluster, stage_kind
from bench.store.code import other_code, outdated
from bench.store.files import digest
from bench.store.store import Store, whole_seconds


@dataclass(frozen=True)
class PlannedCell:
    """A cell and the stage whose record is its number."""

    name: str
    row: str
    method: str
    task: str
    metric: str
    """The entry of the record that is shown."""
    backbone: str
    seed: int
    stage: Stage


@dataclass
class Plan:
    """A validated grid with the distinct stages behind its cells.

    Stages stand with parents first; of each the plan knows its state.
    """

    grid: Grid
    origin: str
    """Which gin files it came from, and what the command line changed; not what only a cluster is asked for."""
    cells: list[PlannedCell]
    selected: list[PlannedCell]
    stages: list[Stage]
    catalogue: Catalogue
    data_root: Path
    splits: list[str]
    """Lines about bindings that split a stage which two rows would have shared."""
    notes: list[str] = field(default_factory=list)
    """What else a person should look at: lines that are not for this grid, settings that keep a method from doing
    much."""
    done: dict[str, float | None] = field(default_factory=dict)
    """Key of a finished stage -> the seconds it took, None where its evaluation was not timed."""
    failed: dict[str, str] = field(default_factory=dict)
    """Key of a stage whose last attempt failed -> why."""
    again: list[Stage] = field(default_factory=list)
    """The stages to run again, whatever the store holds of them."""
    outdated: dict[str, str] = field(default_factory=dict)
    """Key of a finished stage -> why it would not come out the same today: other code, other weights of a parent."""
    records: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)
    """Key of a finished stage -> its record, as it was looked up; cleared before stages are run."""
    cluster: Cluster = field(default_factory=Cluster)
    clusters: dict[str, Cluster] = field(default_factory=dict)
    """Kind of a stage -> what its jobs ask of a cluster."""
    source: str = ""
    """Its origin with the files' paths: which grid a job belongs to."""
    suffix: str = ""
    """What tells its tables from those of the files alone: '+' and a digest, where `--set` computes something else."""

    @property
    def table_name(self) -> str:
        """The name of its tables: that of the grid, with the suffix."""
        return f"{self.grid.name or 'grid'}{self.suffix}"

    @property
    def unprepared(self) -> set[str]:
        """The tasks, corpora and public backbones that the selected cells still lack."""
        return set().union(*(stage.unprepared for stage in self.stages))

    def to_run(self, retry: bool) -> list[Stage]:
        """List the stages to run now, parents first.

        Failed ones are among them only with `retry`. What only finished stages needed is not run again: intermediate
        stages may be deleted to free space.
        """
        # Example: further_pretrain -> finetune, of which finetune is done. Going from children to parents, finetune is
        # left out and so asks for no parent: further_pretrain is not run, even if its folder was deleted.
        needed: set[str] = set()
        last = {cell.stage.key for cell in self.selected}
        for stage in reversed(self.stages):  # children before parents
            if stage.key not in self.done and (stage.key in last or stage.key in needed):
                needed |= {stage.key, *(parent.key for parent in stage.parents)}
        needed -= self.done.keys()
        return [
            stage
            for stage in self.stages
            if stage.key in needed and not stage.unprepared and (retry or stage.key not in self.failed)
        ]

    def stages_by_row(self) -> dict[str, list[Stage]]:
        """List, by row, the distinct stages that its selected cells need, parents first."""
        last: dict[str, list[Stage]] = defaultdict(list)
        for cell in self.selected:
            last[cell.row].append(cell.stage)
        return {row: list(walk(*stages)) for row, stages in last.items()}

    def first_cells(self) -> dict[str, str]:
        """Name the first selected cell that needs each stage, by the stage's key: what a person knows it by."""
        cells: dict[str, str] = {}
        for cell in self.selected:
            for stage in walk(cell.stage):
                cells.setdefault(stage.key, cell.name)
        return cells


def make_plan(
    files: Sequence[str],
    overrides: Sequence[str],
    only: Sequence[str],
    data_root: Path,
    store: Store | None,
    again: Sequence[str] = (),
    check_sources: bool = True,
) -> Plan:
    """Read a grid, build its stages and look them up.

    Every name, type and binding is checked; looked up is which of the stages the store holds, unless it is None. `only`
    are globs of the cells to run, `again` of those to run whatever the store holds. Without `check_sources` a source
    that changed after it was prepared is no matter, as for numbers that there are already.

    Raises InputError for anything wrong in the gin files, for a glob that matches no cell, and for a damaged record.
    """
    grid, bindings = load_grid(files, overrides)
    cluster = load_cluster(bindings)
    expansion = Expansion(grid, bindings, data_root, check_sources=check_sources)
    cells = [_cell(expansion, row, task, seed) for row in expansion.rows for task in grid.tasks for seed in grid.seeds]
    clusters, of_other_grids = load_clusters(bindings, walk(*(cell.stage for cell in cells)))
    not_here = refuse_unused(expansion)
    _refuse_unequal_search(cells)
    _refuse_search_seeds(grid, bindings, cells)
    selected = select(cells, only, "--only") if only else cells
    plan = Plan(
        grid,
        _origin(files, overrides, bindings),
        cells,
        selected,
        list(walk(*(cell.stage for cell in selected))),
        expansion.catalogue,
        data_root,
        list(describe_splits(expansion)),
        [*describe_left_out(not_here), *of_other_grids, *_warnings(cells)],
        cluster=cluster,
        clusters=clusters,
        source=source(files, overrides, bindings),
        suffix=_suffix(bindings),
    )
    if store is not None:
        look_up(plan, store)
    plan.again = _stages_again(plan, select(cells, again, "--again"))
    for stage in plan.again:
        for state in (plan.done, plan.failed, plan.outdated, plan.records):
            state.pop(stage.key, None)
    return plan


def _stages_again(plan: Plan, cells: list[PlannedCell]) -> list[Stage]:
    """List the stages to run for cells to be computed anew, parents first.

    They are the cells' own, the outdated ones behind them, and all of the plan that start from one of these.
    """
    # Example: further_pretrain -> finetune, and further_pretrain -> self_distill -> finetune of another row. For the
    # first finetune alone, that is run again; is further_pretrain outdated, all four are.
    again = {cell.stage.key for cell in cells}
    again |= plan.outdated.keys() & {stage.key for stage in walk(*(cell.stage for cell in cells))}
    for stage in plan.stages:
        if any(parent.key in again for parent in stage.parents):
            again.add(stage.key)
    return [stage for stage in plan.stages if stage.key in again]


def refuse_edited_plugins(plan: Plan) -> None:
    """Refuse a plan whose finished stages rest on other code of a plugin than today's.

    Stages that are to run again do not count. Other code of the suite itself is no reason to refuse, as the commit in
    each record says which code it was; of a plugin's code a record holds nothing but the digest.
    """
    edited: dict[str, list[str]] = {}
    for stage in plan.stages:
        code = plan.records.get(stage.key, {}).get("code", {})
        if names := [name for name in other_code(code) if spec_plugin(name)]:
            edited[stage.folder] = names
    if not edited:
        return
    classes = {name: spec_class(name) for names in edited.values() for name in names}
    files = sorted({source_file(cls.__module__) for cls in classes.values() if cls is not None})
    rows = [row for row, stages in plan.stages_by_row().items() if any(stage.folder in edited for stage in stages)]
    globs = " ".join(shlex.quote(f"{row}/*") for row in rows)
    raise InputError(
        f"{len(edited)} finished stages, such as {next(iter(edited))}, were computed by other code of "
        f"{', '.join(sorted(classes))} than {' and '.join(files)}, with what it imports, holds now. Compute them anew "
        f"with --again {globs}, or put the files back as they were."
    )


def _origin(files: Sequence[str], overrides: Sequence[str], bindings: Bindings) -> str:
    named, changed = _computing(files, overrides, bindings)
    names = ", ".join(Path(name).name for name in named)
    # A name that is no text, as Unix allows, could be neither printed nor written.
    return names.encode(errors="backslashreplace").decode() + "".join(
        f", --set {code_span(_published(text))}" for text in changed
    )


def code_span(text: str) -> str:
    """Write any text as code in Markdown, on one line, so that nothing in it is taken for markup."""
    # A span ends at as many backticks as it began with, so there are more of them than stand anywhere in the text.
    line = " ".join(text.split())
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    return f"{fence} {line} {fence}" if "`" in line else f"{fence}{line}{fence}"


def source(files: Sequence[str], overrides: Sequence[str], bindings: Bindings) -> str:
    """Name the grid that gin files and `--set` lines mean.

    It is the same wherever the files are named from; other files or lines make another one.
    """
    named, changed = _computing(files, overrides, bindings)
    paths = [str(find_gin(name).resolve()) for name in named]
    return shlex.join(["--gin", *paths, *(["--set", *changed] if changed else [])])


NO_OTHER_NUMBERS = frozenset(("threads", "checkpoint_steps", "cuda_graphs", "publish_predictions", "plugins"))
"""Settings of the grid that change neither its cells nor a key."""


def _suffix(bindings: Bindings) -> str:
    """Return the suffix of the tables: a digest of the `--set` lines that compute something else.

    Empty where there are none, or where one of them names the grid.
    """
    changing = [
        binding
        for binding in bindings.all
        if binding.override
        and binding.configurable != "slurm"
        and not (binding.configurable == "grid" and binding.setting in NO_OTHER_NUMBERS)
    ]
    if not changing or any((binding.configurable, binding.setting) == ("grid", "name") for binding in changing):
        return ""
    return f"+{digest(sorted(f'{binding.target} = {binding.value!r}' for binding in changing))[:8]}"


def _computing(files: Sequence[str], overrides: Sequence[str], bindings: Bindings) -> tuple[list[str], list[str]]:
    """Return the files and `--set` lines that say what is computed.

    Left out are those that only ask something of a cluster.
    """
    of_file: dict[str, set[str]] = defaultdict(set)
    for binding in bindings.all:
        of_file[Path(binding.file).name].add(binding.configurable)
    named = [name for name in files if of_file.get(find_gin(name).name) != {"slurm"}]
    # Of a cluster are 'slurm.mem_gb = 4.0' and, for one kind of stages, 'further_pretrain/slurm.mem_gb = 16.0'. Where
    # the plugins lie computes nothing, either: jobs are told to take their copies.
    return named, [text for text in overrides if re.match(r"\s*(([\w/.-]+/)?slurm\.|grid\.plugins\b)", text) is None]


def _published(override: str) -> str:
    """Return a --set line without the paths that declarations hold.

    Tables are published, paths are private.
    """
    target, _, _ = override.partition("=")
    return f"{target.rstrip()} = …" if target.rstrip().endswith((".source", ".weights")) else override


def _cell(expansion: Expansion, row: str, column: str, seed: int) -> PlannedCell:
    # A column is a task, or its stages on a further split. Example: mnli and mnli_mismatched are two cells of one
    # stage, whose numbers are the entries "accuracy" and "mismatched/accuracy" of its record.
    task, split = FURTHER_EVALUATIONS.get(column, (column, None))
    stage = expansion.stage(row, task, seed)
    cell = expansion.cell(row, task, seed)
    if (stage.seed, stage.data.task) != (seed, task):
        raise InputError(
            f"{row} on {task} with seed {seed}: the last stage of its recipe has the seed {stage.seed} and the task "
            f"{stage.data.task}, so that its number would be another cell's. Leave both to cell.stage there."
        )
    if split not in (None, *(data.split for data in stage.further_evaluations)):
        again = expansion.catalogue.command([task], expansion.data_root)
        raise InputError(
            f"{column}: what is prepared of {task} has no split '{split}'. Prepare it anew: {again} --again"
        )
    for data in stage.further_evaluations:
        if data.split == split:
            cell.refuse_one_class(data)
    return PlannedCell(
        name=f"{row}/{column}/{cell.task.backbone}/{seed}",
        row=row,
        method=cell.own_row.label,
        task=column,
        metric=in_split(cell.metric, split),
        backbone=cell.task.backbone,
        seed=seed,
        stage=stage,
    )


def searched(cell: PlannedCell) -> int:
    """Count the configurations that a cell's search tries.

    It is 0 for a row without a search.
    """
    return len(cell.stage.candidates) if isinstance(cell.stage, Selected) else 0


def _refuse_unequal_search(cells: list[PlannedCell]) -> None:
    counts = {f"{cell.method} on {cell.task}": searched(cell) for cell in cells}
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{method}: {count}" for method, count in counts.items())
        raise InputError(
            f"search.candidates: every row must try equally many configurations on every task, or none; here {shown}."
        )


def _refuse_search_seeds(grid: Grid, bindings: Bindings, cells: list[PlannedCell]) -> None:
    if grid.search_seeds == "shared" or any(map(searched, cells)):
        return
    for binding in bindings.all:
        if (binding.configurable, binding.setting) == ("grid", "search_seeds") and binding not in bindings.overridden:
            raise binding.blame(
                f"{binding.target} changes nothing: no row is searched. Remove it, or set it to 'shared'."
            )


def _warnings(cells: list[PlannedCell]) -> list[str]:
    """Collect what the parts of stages have to say against their settings, each sentence once."""
    lines: dict[str, list[str]] = defaultdict(list)
    for cell in cells:
        if cell.seed == cells[0].seed:  # no seed changes what they say
            for stage in walk(cell.stage):
                for warning in (warning for part in stage.method_parts for warning in part.warnings(stage)):
                    lines[warning].append(cell.row)
    return [f"warning: {', '.join(dict.fromkeys(rows))}: {warning}" for warning, rows in lines.items()]


def select(cells: list[PlannedCell], globs: Sequence[str], option: str) -> list[PlannedCell]:
    """Return the cells that any glob matches. `option` gave the globs."""
    chosen = [_matching(cells, glob) for glob in globs]
    for glob, matching in zip(globs, chosen, strict=True):
        if not matching:
            legal = [name for cell in cells for name in (cell.row, cell.method, cell.task, cell.backbone)]
            names = [cell.name for cell in cells][:20] if "/" in glob else legal
            raise InputError(
                f"{option} '{glob}' matches no cell; a cell is row/task/backbone/seed, and the name of a row, task, "
                f"backbone or kind of stage means all of its cells.{nearest(glob, names)}"
            )
    return [cell for cell in cells if any(cell.name in names for names in chosen)]


def _matching(cells: list[PlannedCell], glob: str) -> set[str]:
    """Name the cells that a glob means.

    It means the cell of exactly this name, else those whose whole names it matches, where a row may stand as in
    grid.rows ('slow/tapt/digits/*'), else those with a part that it matches. Parts are tried in turn: 'finetune' is the
    row of that name, in a grid without one all rows of that method, and without these every row with a stage of that
    kind.
    """
    names = {cell.name: (cell.name, cell.method + cell.name.removeprefix(cell.row)) for cell in cells}
    if glob in names:
        return {glob}
    if whole := {name for name, each in names.items() if any(fnmatch.fnmatchcase(form, glob) for form in each)}:
        return whole
    parts: tuple[Callable[[PlannedCell], Iterable[str]], ...] = (
        lambda cell: (cell.row, cell.method),
        lambda cell: (cell.method.rpartition("/")[2],),
        lambda cell: (cell.task, cell.backbone),
        lambda cell: {stage_kind(stage.name) for stage in walk(cell.stage)},
    )
    for part in parts:
        if matching := {cell.name for cell in cells if any(fnmatch.fnmatchcase(each, glob) for each in part(cell))}:
            return matching
    return set()


def look_up(plan: Plan, store: Store) -> None:
    """Note which stages the store holds finished or failed by now, and which of them are outdated."""
    plan.failed = {}

    def read(stage: Stage) -> dict[str, Any] | None:
        record = store.record(stage)
        if record is None and (failure := store.failure(stage)) is not None:
            plan.failed[stage.key] = failure
        return record

    there = store.each(read, (stage for stage in plan.stages if not stage.unprepared))
    records = plan.records = {key: record for key, record in there.items() if record is not None}
    plan.done = {key: whole_seconds(record) for key, record in records.items()}
    plan.outdated = outdated(plan.stages, records)
