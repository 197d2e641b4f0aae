"""A plan and its store -> `results/NAME.md` and `results/NAME/records.jsonl`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from bench.data.manifest import describe_overlap, read_manifest
from bench.data.metrics import describe, metric_of
from bench.data.tasks import FURTHER_EVALUATIONS
from bench.planning.describe import fresh_decoders
from bench.planning.plan import Plan, searched
from bench.specs import PublicWeights, Selected
from bench.store.activity import describe_inactive, inactive
from bench.store.code import other_code
from bench.store.files import write_text
from bench.store.store import Store
from bench.tables.records import computed_records, lines_of, merged_records, records_path, write_aside
from bench.tables.statistics import cell_text


@dataclass(frozen=True)
class Results:
    """The table of a grid and the records behind it, still to be written."""

    markdown: str
    table: Path
    records_file: Path
    records: list[dict[str, Any]]
    """One for each cell that has a number."""
    others: list[dict[str, Any]]
    """The file's records that are none of this plan's."""
    selected_done: bool
    """Whether the store has the number of every selected cell."""

    def write(self) -> Path | None:
        """Write both, and the others into a file of their own, whose path is returned."""
        # The records are written before the table: whoever reads a table has the numbers behind it.
        set_aside = write_aside(self.others, self.table.parent, self.table.stem)
        write_text(self.records_file, lines_of(self.records))
        write_text(self.table, self.markdown)
        return set_aside


def collate(plan: Plan, store: Store, results: Path) -> Results:
    """Make the table and the records of a grid. They hold every finished cell, selected or not.

    A number that the records file has already is kept, whatever the store holds. Refuses a file that disagrees with the
    store, and one that cannot be read.
    """
    computed = computed_records(plan, store)
    records, others = merged_records(plan, store, computed, results)
    location, selected_done = results / f"{plan.table_name}.md", all(cell.name in computed for cell in plan.selected)
    # A number that --again set aside stays in the table until there is a new one: nothing is lost, but it is told.
    stages = {cell.name: cell.stage for cell in plan.cells}
    only_in_file = [record for record in records if record["cell"] not in computed]
    awaited = sum(record["metrics"] in store.replaced(stages[record["cell"]]) for record in only_in_file)
    return Results(table(plan, records, awaited), location, records_path(plan, results), records, others, selected_done)


def table(plan: Plan, records: list[dict[str, Any]], awaited: int = 0) -> str:
    """Write the Markdown table with its legend. `awaited` numbers were set aside and have no successor yet."""
    grid = plan.grid
    # A cell of the table is a method on a task; its values are one for each seed that has finished. Example: accuracies
    # .90 and .92 of three planned seeds read "91.00 ± 1.41 (2/3)".
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    for record in records:
        values[record["method"], record["task"]].append(record["value"])
    scales = {cell.task: metric_of(cell.metric).scale for cell in plan.cells}
    rows = [
        [row, *(cell_text(values[row, task], len(grid.seeds), scales[task]) for task in grid.tasks)]
        for row in grid.rows
    ]
    body = tabulate(rows, headers=["method", *grid.tasks], tablefmt="github", disable_numparse=True)
    return f"# {plan.table_name}\n\n{body}\n\n{_legend(plan, records, awaited)}"


def _legend(plan: Plan, records: list[dict[str, Any]], awaited: int) -> str:
    grid = plan.grid
    n = len(grid.seeds)
    # Everything a reader needs to judge the numbers without the code: what was measured, on what, how often, by which
    # code.
    backbones: dict[str, set[str]] = defaultdict(set)
    for cell in plan.cells:
        backbones[cell.task].add(cell.backbone)
    seeds = f"seeds {', '.join(map(str, grid.seeds))}; (k/{n}) means only k of {n} have finished; one seed has no ±"
    unfinished = [f"Warning: {awaited} cells show numbers that --again set aside; no new ones are there yet."]
    lines = [
        *_metrics(plan),
        "Split: one evaluation on the test split after training ended; nothing was selected on it.",
        *_further_splits(plan),
        f"A cell reads mean ± sample standard deviation (ddof = 1) over seeds, then (n); {seeds}.",
        "The seed varies head initialisation, data order, dropout and augmentation of labelled stages.",
        *_unlabelled(plan),
        *_search(plan, records),
        *_remarks(plan),
        f"Backbones: {'; '.join(f'{task}: {chr(44).join(sorted(names))}' for task, names in backbones.items())}.",
        *_weights(plan),
        *(f"Fresh decoder: {line}." for line in fresh_decoders(plan.stages)),
        *_overlap(plan),
        f"Grid: {plan.origin}.",
        f"Code: {_distinct(records, 'commit') or 'no finished cell'}.",
        f"Machine: {_distinct(records, 'device', 'instruction_set', 'threads') or 'no finished cell'}.",
        *_mixed_devices(records),
        *(f"Warning: {line}." for line in _inactive(records)),
        *_outdated(records),
        *(unfinished if awaited else []),
        f"Records: {plan.table_name}/records.jsonl, a JSON object per finished cell with metrics, cost and whole spec.",
    ]
    return "".join(f"- {line}\n" for line in lines)


def _metrics(plan: Plan) -> list[str]:
    """Name the metric of each column, those in percent first, and say where less is better."""
    titles: dict[str, dict[str, str]] = {"%": {}, "": {}}
    for cell in plan.cells:
        metric = metric_of(cell.metric)
        lower = " (lower is better)" if metric.better == "lower" else ""
        titles[metric.unit][cell.task] = f"{cell.task}: {describe(cell.metric)}{lower}"
    headings = {"%": "Metric, in percent", "": "Metric, not in percent"}
    return [f"{headings[unit]}: {'; '.join(columns.values())}." for unit, columns in titles.items() if columns]


def _further_splits(plan: Plan) -> list[str]:
    """Say which columns show stages of another column, or of a task, on a further split."""
    splits = {column: FURTHER_EVALUATIONS[column] for column in plan.grid.tasks if column in FURTHER_EVALUATIONS}
    return [
        f"Column {column}: the stages trained on {task}, on its split {split}."
        for column, (task, split) in splits.items()
    ]


def _remarks(plan: Plan) -> list[str]:
    """Pass on what the objectives of a row say of themselves, each remark once."""
    # The row's own stages only, not those behind them; of a search each that can be chosen.
    remarks: dict[str, dict[str, None]] = defaultdict(dict)
    for cell in plan.cells:
        for stage in cell.stage.finals if isinstance(cell.stage, Selected) else (cell.stage,):
            if (remark := stage.objective.remark(stage)) is not None:
                remarks[cell.row][remark] = None
    return [f"The row {row} is {', or '.join(sorted(texts))}." for row, texts in remarks.items()]


def _distinct(records: list[dict[str, Any]], *names: str) -> str:
    """List what the records say of their origin, each value once.

    Numbers of different origins may not be comparable.
    """

    def named(provenance: dict[str, Any], name: str) -> str:
        # Two values need more than their text: threads a unit, and code without a commit the version installed.
        if name == "threads":
            return f"{provenance[name]} thread{'s' if provenance[name] > 1 else ''}"
        if name == "commit" and provenance[name] is None:
            return f"version {provenance['versions']['adaptation-bench']}, installed"
        return str(provenance[name])

    return "; ".join(sorted({", ".join(named(r["provenance"], name) for name in names) for r in records}))


def _mixed_devices(records: list[dict[str, Any]]) -> list[str]:
    """Warn where stages behind the table ran on different devices. Only different kinds of device count."""
    kinds = sorted({kind for record in records for kind in record["devices"]})
    if len(kinds) < 2:
        return []
    warning = f"Warning: stages behind these numbers ran on different kinds of device ({'; '.join(kinds)}), which round"
    return [f"{warning} differently: `devices` in the records says which. Compare rows only where they agree."]


def _inactive(records: list[dict[str, Any]]) -> Iterator[str]:
    """Say which parts of methods did nothing, and in which rows and on which tasks."""
    return describe_inactive(
        (name, meaning, f"{record['method']} on {record['task']}")
        for record in records
        for name, meaning in inactive(record.get("activity", {})).items()
    )


def _outdated(records: list[dict[str, Any]]) -> list[str]:
    """Warn where other code than today's led to a number, or weights that were replaced since."""
    names = [name for record in records for name in other_code(record.get("code", {}))]
    cells = sum(bool(other_code(record.get("code", {}))) for record in records)
    of = ", ".join(f"{name} ({count})" for name, count in sorted(Counter(names).items()))
    code = [f"Warning: {cells} cells were computed by other code than the one that wrote this table, of {of}."]
    swapped = sum(bool(record.get("other_weights")) for record in records)
    weights = [f"Warning: {swapped} cells began with weights that were computed anew since, to other values."]
    return (code if cells else []) + (weights if swapped else [])


def _weights(plan: Plan) -> list[str]:
    """Name the checkpoints made elsewhere that the grid began with."""
    # Only prepared ones: until then nobody knows the checksum that says which weights they are.
    backbones = {stage.backbone.name: stage.backbone.weights for stage in plan.stages}
    descriptions = [
        f"{name}: {weights.repository or 'a local folder'}, weight file sha256 {str(weights.checksum)[:16]}"
        for name, weights in sorted(backbones.items())
        if isinstance(weights, PublicWeights) and weights.checksum is not None
    ]
    return [f"Checkpoints: {'; '.join(descriptions)}."] if descriptions else []


def _overlap(plan: Plan) -> list[str]:
    """Say of which tasks test examples also occur in another split. The count is the manifest's."""
    columns = {column: FURTHER_EVALUATIONS.get(column, (column, "test")) for column in plan.grid.tasks}
    manifests = {column: read_manifest(task, plan.data_root) for column, (task, _) in columns.items()}
    shared = [
        f"{column}: {line}"
        for column, manifest in manifests.items()
        for line in (describe_overlap(manifest) if manifest is not None else [])
        if f"of {columns[column][1]} " in line
    ]
    compared = "texts compared without case and white space, images byte for byte"
    return [f"Overlap: {'; '.join(shared)} ({compared})."] if shared else []


def _unlabelled(plan: Plan) -> list[str]:
    """Say how unlabelled stages relate to seeds. Returns nothing where the grid has none but the backbones' own."""
    grid = plan.grid
    tasks = {cell.stage.data.task for cell in plan.cells}
    if not any(not stage.data.labelled and stage.data.task in tasks for stage in plan.stages):
        return []
    if grid.pretraining_seeds == "per_seed":
        return ["Unlabelled stages on the task's data were repeated with every seed, so ± holds their variance."]
    seed = f"once for all seeds, with seed {grid.base_seed} (the papers' protocol)"
    return [f"Unlabelled stages on the task's data ran {seed}: ± holds no pre-training variance."]


def _search(plan: Plan, records: list[dict[str, Any]]) -> list[str]:
    """Say how settings were searched, and how many candidates behind the numbers diverged."""
    count = max(map(searched, plan.cells))
    if not count:
        return []
    seed = plan.grid.base_seed
    how = f"each trained once with seed {seed} and judged on held-out or validation data"
    then = "the best was trained on all training data with every seed and tested once"
    # Cells of several seeds share their candidates, so each is counted once, by its key.
    tried = [candidate for record in records if record.get("search") for candidate in record["search"]["candidates"]]
    lost = len({candidate["key"] for candidate in tried if "diverged" in candidate})
    of_all = f"{lost} of {len({candidate['key'] for candidate in tried})} candidates diverged and counted as the worst"
    return [f"Search: {count} configurations for every row and task, {how}; {then}{f'; {of_all}' if lost else ''}."]
