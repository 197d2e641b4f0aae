"""A records file as runs to compare, and what the comparison says in a table: bold, ranks, baselines, differences."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from bench.data.metrics import metric_of, without_split
from bench.tables.compare import (
    Column,
    Difference,
    OverTasks,
    Run,
    RunTable,
    majority_baseline,
)
from bench.tables.grid_facts import GridFacts
from bench.tables.quantities import Quantity, by_column
from bench.tables.records import Record, evaluation_untimed, missing_stages, stage_hours

CONDITIONAL = "°"
"""Marks a difference whose interval does not hold the luck of what several seeds share."""


def runs_of(
    facts: GridFacts,
    records: Sequence[Record],
    stages: Mapping[str, Record],
    quantities: Mapping[str, Quantity] | None = None,
) -> RunTable:
    """Make the runs of a grid: its numbers as tables show them.

    Each has the stages that are behind it. `quantities` are what the columns show; without them it
    is the metric of each. A record without a value is no run.
    """
    shown = by_column(facts) if quantities is None else quantities
    columns = tuple(Column(task, shown[task].better, shown[task].unit, shown[task].decimals) for task in facts.tasks)
    runs = tuple(
        Run(record["method"], record["task"], record["seed"], value, frozenset(_stages_behind(record, stages)))
        for record in records
        if (value := shown[record["task"]].value(record)) is not None
    )
    return RunTable(facts.rows, columns, facts.seeds, runs)


def _stages_behind(record: Record, stages: Mapping[str, Record]) -> Iterator[str]:
    """Yield the keys of the stages behind a cell, those that trained its backbone included."""
    yield from (candidate["key"] for candidate in (record.get("search") or {}).get("candidates", ()))
    own = stages.get(record["key"])
    if own is not None and "stages" in record:
        yield from (key for key in record["stages"] if key in stages)
        if missing_stages(record, stages):
            # A line that is missing may be of a stage that several seeds share, so they all get this one in common.
            yield f"unknown stages of {record['method']} on {own['task']}"
    elif "spec" in record:
        # A record of version 1 holds its whole specification, in which each stage stands with its key.
        yield from _keys(record["spec"])
    else:
        # What the seeds of this row share is not known: with this one in common, its differences are conditional.
        yield f"unknown stages of {record['method']}"


def _keys(spec: Any) -> Iterator[str]:
    if isinstance(spec, list):
        for part in spec:
            yield from _keys(part)
    elif isinstance(spec, dict):
        if spec.get("type") in ("Stage", "Selected"):
            yield str(spec.get("key"))
        for part in spec.values():
            yield from _keys(part)


def baseline_row(facts: GridFacts, metrics: Mapping[str, str]) -> list[str]:
    """Say what the most frequent class would score in each column.

    It is the answer to every example of the test set; `metrics` are those of the columns.
    """
    cells = []
    for task in facts.tasks:
        metric, test = metrics[task], facts.test.get(task)
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
    """Write `+1.20 [−0.30, 2.70]`, marked where it is conditional."""
    if difference.mean is None:
        return "–"
    mark = CONDITIONAL if difference.conditional else ""
    return f"{difference.mean:+.{decimals}f}".replace("-", "−") + _interval(difference, decimals) + mark


def _interval(compared: Difference | OverTasks, decimals: int) -> str:
    """Write ` [−0.30, 2.70]`, or nothing where there is no interval."""
    if compared.low is None:
        return ""
    return f" [{compared.low:.{decimals}f}, {compared.high:.{decimals}f}]".replace("-", "−")


def _over_text(result: OverTasks, decimals: int) -> str:
    if result.mean is None:
        return "–"
    parts = [f"{result.mean:+.{decimals}f}".replace("-", "−") + _interval(result, decimals)]
    if result.p is not None:
        parts.append(f"p = {result.p:.2g}")
    if result.better is not None:
        parts.append(f"P = {result.better:.2f} / {result.equivalent:.2f} / {result.worse:.2f}")
    return ", ".join(parts)


def comparison_notes(
    reference: str | None, differences: Sequence[Difference], over_tasks: Sequence[OverTasks], directed: bool
) -> list[str]:
    """Say what differences, p and P mean, as far as they occur.

    `directed` says whether more or less is the better one.
    """
    lines = []
    if differences:
        sign = "positive where the row is better" if directed else "positive where the row has more"
        what = f"mean over common seeds of the paired differences, {sign}"
        lines.append(f"Differences to {reference}: {what}, with its 95 % t interval.")
    if reasons := _reasons(differences):
        lines.append(f"No interval ({reasons}): there is no spread to compute one from.")
    if any(difference.conditional for difference in differences):
        why = "a stage, or the choice of a search, that only one of the two rows has is the same for several seeds"
        effect = "so its luck is in all their differences and not in the interval; such a pair decides nothing"
        lines.append(f"{CONDITIONAL} conditional: {why}, {effect}.")
    if tested := [result for result in over_tasks if result.p is not None]:
        lines.append(
            "Over tasks: mean of the tasks' differences with its 95 % t interval, which is not adjusted; p: paired t "
            f"test ({_counts(tested)}), by Holm for all rows together."
        )
    if reasons := _reasons(over_tasks):
        lines.append(f"No p over tasks ({reasons}).")
    if left_out := dict.fromkeys(task for result in over_tasks for task in result.left_out):
        lines.append(f"Over tasks, stages count once: {', '.join(left_out)} adds none where a column before has them.")
    if (ropes := {result.rope for result in over_tasks} - {None}) != set():
        rope = ", ".join(f"{rope:g}" for rope in ropes if rope is not None)
        lines.append(
            f"P: probabilities of better / within ± {rope} / worse on a new task (Bayesian signed rank); no p."
        )
    return lines


def _reasons(compared: Iterable[Difference | OverTasks]) -> str:
    return ", or ".join(dict.fromkeys(each.reason for each in compared if each.reason))


def _counts(over_tasks: Sequence[OverTasks]) -> str:
    """Say of how many tasks and seeds p values are: `3 tasks, 3 seeds; of b 3 tasks, 2 to 3 seeds`."""
    rows: dict[str, list[str]] = defaultdict(list)
    for result in over_tasks:
        assert result.seeds is not None
        low, high = result.seeds
        seeds = f"{low} to {high} seeds" if low < high else f"{low} seed{'s' if low > 1 else ''}"
        rows[f"{len(result.tasks)} tasks, {seeds}"].append(result.row)
    # Most rows have the same counts as a rule: only those that have others are named.
    usual, *others = sorted(rows, key=lambda counts: -len(rows[counts]))
    return "; ".join([usual, *(f"of {', '.join(rows[counts])} {counts}" for counts in others)])


def same_computations(facts: GridFacts, records: Sequence[Record]) -> list[str]:
    """Name the rows whose cells on a task are the same stages.

    Without that line a reader would take their equal numbers for a mistake.
    """
    keys: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)
    for record in records:
        keys[record["method"], record["task"]][record["seed"]] = record["key"]
    tasks_of: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for task in facts.tasks:
        alike: dict[frozenset[tuple[int, str]], list[str]] = defaultdict(list)
        for row in facts.rows:
            if of_seeds := keys.get((row, task)):
                alike[frozenset(of_seeds.items())].append(row)
        for rows in alike.values():
            if len(rows) > 1:
                tasks_of[tuple(rows)].append(task)
    groups = [
        f"{_listed(rows)} on {'all tasks' if len(tasks) == len(facts.tasks) else _listed(tasks)}"
        for rows, tasks in tasks_of.items()
    ]
    equal = "Rows that are the same computation, as their settings and stages are equal"
    return [f"{equal}: {'; '.join(groups)}."] if groups else []


def missing_warning(records: Sequence[Record], stages: Mapping[str, Record]) -> list[str]:
    """Warn where stages.jsonl lacks stages behind the numbers, and say what that does to a table."""
    # A record of version 1 holds its own stages.
    cells = sum(bool(missing_stages(record, stages)) and "spec" not in record for record in records)
    effect = (
        f"nobody knows what its seeds share, so that its differences count as {CONDITIONAL}, and costs are left out"
    )
    return [f"Warning: stages.jsonl lacks stages behind {cells} of {len(records)} cells: {effect}."] if cells else []


def _listed(names: Sequence[str]) -> str:
    *before, last = names
    return f"{', '.join(before)} and {last}" if before else last


def cost_line(facts: GridFacts, records: Sequence[Record], stages: Mapping[str, Record]) -> list[str]:
    """Say what the stages behind each row cost, each stage once.

    Says nothing where the stages behind a cell are not all there.
    """
    behind: dict[str, dict[str, None]] = {row: {} for row in facts.rows}
    for record in records:
        if not record.get("stages") or missing_stages(record, stages):
            return []
        behind[record["method"]] |= dict.fromkeys(key for key in record["stages"] if key in stages)
    if not records:
        return []
    rows = [f"{row} {_hours(stages[key] for key in keys)}" for row, keys in behind.items() if keys]
    everything = [stages[key] for key in dict.fromkeys(key for keys in behind.values() for key in keys)]
    untimed = evaluation_untimed(everything)
    return [
        f"Cost of the distinct stages behind each row: {'; '.join(rows)}. All rows, which share stages: "
        f"{_hours(everything)}" + (f", without the evaluation of {untimed}, which was not timed." if untimed else ".")
    ]


def _hours(stages: Iterable[Record]) -> str:
    """Add up core-hours and GPU-hours."""
    cores, gpus = 0.0, 0.0
    for stage in stages:
        if stage["provenance"].get("device_type", "cpu") == "cpu":
            cores += stage_hours(stage)
        else:
            gpus += stage_hours(stage)
    parts = [f"{hours:.2f} {unit}-hours" for hours, unit in ((cores, "core"), (gpus, "GPU")) if hours]
    return " and ".join(parts) or "0 hours"
