"""A records file as runs to compare, and what the comparison says in a table: bold, ranks, baselines, differences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.data.metrics import metric_of, without_split
from bench.tables.compare import Column, Difference, OverTasks, Run, RunTable, majority_baseline
from bench.tables.grid_facts import GridFacts
from bench.tables.quantities import Quantity, by_column
from bench.tables.records import Record

CONDITIONAL = "°"
"""Marks a difference whose interval holds fine-tuning noise only."""


def runs_of(
    facts: GridFacts,
    records: Sequence[Record],
    stages: Mapping[str, Record],
    quantities: Mapping[str, Quantity] | None = None,
) -> RunTable:
    """Make the runs of a grid: its numbers as tables show them.

    Each has the stages on its task's data that are behind it. `quantities` are what the columns show; without them it
    is the metric of each. A record without a value is no run.
    """
    shown = by_column(facts) if quantities is None else quantities
    columns = tuple(Column(task, shown[task].better, shown[task].unit, shown[task].decimals) for task in facts.tasks)
    runs = tuple(
        Run(record["method"], record["task"], record["seed"], value, frozenset(_stages_on_task(record, stages)))
        for record in records
        if (value := shown[record["task"]].value(record)) is not None
    )
    return RunTable(facts.rows, columns, facts.seeds, runs)


def _stages_on_task(record: Record, stages: Mapping[str, Record]) -> Iterator[str]:
    """Yield the keys of the stages behind a cell that read its task's data."""
    yield from (candidate["key"] for candidate in (record.get("search") or {}).get("candidates", ()))
    own = stages.get(record["key"])
    if own is not None and "stages" in record:
        yield from (key for key in record["stages"] if key in stages and stages[key]["task"] == own["task"])
        if any(key not in stages for key in record["stages"]):
            # A line that was damaged or removed may be of a stage that several seeds share.
            yield f"unknown stages of {record['method']} on {own['task']}"
    elif "spec" in record:
        # A record of version 1 holds its whole specification, in which each stage stands with its key.
        yield from _keys(record["spec"], record["spec"].get("data", {}).get("task"))
    else:
        # Nobody knows what its seeds share: as if something of its own were the same for all of them.
        yield f"unknown stages of {record['method']}"


def _keys(spec: Any, task: str | None) -> Iterator[str]:
    if isinstance(spec, list):
        for part in spec:
            yield from _keys(part, task)
    elif isinstance(spec, dict):
        if spec.get("type") in ("Stage", "Selected") and spec.get("data", {}).get("task") == task:
            yield str(spec.get("key"))
        for part in spec.values():
            yield from _keys(part, task)


def baseline_row(facts: GridFacts, metrics: Mapping[str, str]) -> list[str]:
    """Say what the most frequent class would score in each column.

    It is the answer to every example of the test set; `metrics` are those of the columns.
    """
    cells = []
    for task, metric in metrics.items():
        test = facts.test.get(task)
        counts = () if test is None or test.per_class is None else test.per_class
        # Classes without a name go by their numbers: only the F1 of one class asks for it by name.
        names = test.class_names if test is not None and test.class_names else map(str, range(len(counts)))
        named = dict(zip(names, counts, strict=True))
        value = majority_baseline(named).get(without_split(metric)) if any(named.values()) else None
        cells.append("–" if value is None else f"{metric_of(metric).scale * value:.2f}")
    return cells


def differences_to(table: RunTable, reference: str) -> dict[str, list[Difference]]:
    """Compare every other row with the reference, task by task."""
    others = (row for row in table.rows if row != reference)
    return {row: [table.difference(row, reference, column.task) for column in table.columns] for row in others}


def difference_rows(
    differences: Mapping[str, Sequence[Difference]],
    reference: str,
    over_tasks: Sequence[OverTasks] = (),
    decimals: int = 2,
) -> list[list[str]]:
    """Write the differences: a line of heads, then one for each row; nothing where there is no other row.

    `over_tasks` has the comparison over tasks of each of them, or of none.
    """
    over = {result.row: [_over_text(result, decimals)] for result in over_tasks}
    body = [
        [row, *(difference_text(each, decimals) for each in of_tasks), *over.get(row, [])]
        for row, of_tasks in differences.items()
    ]
    tasks = [difference.task for difference in next(iter(differences.values()), ())]
    return [[f"minus {reference}", *tasks, *(["over tasks"] if over else [])], *body] if body else []


def difference_text(difference: Difference, decimals: int = 2) -> str:
    """Write `+1.20 [−0.30, 2.70]`, marked where the interval holds fine-tuning noise only."""
    if difference.mean is None:
        return "–"
    mark = CONDITIONAL if difference.conditional else ""
    interval = "" if difference.low is None else f" [{difference.low:.{decimals}f}, {difference.high:.{decimals}f}]"
    return f"{difference.mean:+.{decimals}f}{interval}{mark}".replace("-", "−")


def _over_text(result: OverTasks, decimals: int) -> str:
    if result.mean is None:
        return "–"
    parts = [f"{result.mean:+.{decimals}f}".replace("-", "−")]
    if result.p is not None:
        parts.append(f"p = {result.p:.2g}")
    if result.better is not None:
        parts.append(f"P = {result.better:.2f} / {result.equivalent:.2f} / {result.worse:.2f}")
    return ", ".join(parts)


def cost_line(facts: GridFacts, records: Sequence[Record], stages: Mapping[str, Record]) -> list[str]:
    """Say what the stages behind each row took, each stage once; nothing where not all of them are there."""
    behind: dict[str, dict[str, None]] = {row: {} for row in facts.rows}
    for record in records:
        if not record.get("stages") or any(key not in stages for key in record["stages"]):
            return []
        behind[record["method"]] |= dict.fromkeys(record["stages"])
    if not records:
        return []
    rows = [f"{row} {_hours(stages[key] for key in keys)}" for row, keys in behind.items() if keys]
    together = _hours(stages[key] for key in dict.fromkeys(key for keys in behind.values() for key in keys))
    return [
        f"Cost of the distinct stages behind each row: {'; '.join(rows)}. All rows, which share stages: {together}."
    ]


def _hours(stages: Iterator[Record]) -> str:
    """Add up core-hours and GPU-hours."""
    cores, gpus = 0.0, 0.0
    for stage in stages:
        provenance = stage["provenance"]
        if provenance.get("device_type", "cpu") == "cpu":
            cores += stage["seconds"] * provenance.get("threads", 1) / 3600
        else:
            gpus += stage["seconds"] / 3600
    parts = [f"{hours:.2f} {unit}-hours" for hours, unit in ((cores, "core"), (gpus, "GPU")) if hours]
    return " and ".join(parts) or "0 hours"
