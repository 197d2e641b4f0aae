"""What the report shows of records, as plain data for its script."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.data.metrics import describe, metric_of
from bench.figures.charts import KINDS, Source
from bench.monitor.states import tail
from bench.report.differences import ShownDifference, differences
from bench.tables.compare import Summary
from bench.tables.comparison import missing_warning, runs_of, same_computations
from bench.tables.grid_facts import GridFacts
from bench.tables.quantities import NothingToShow
from bench.tables.records import Record, RecordsFile
from bench.tables.table import inactive_parts, lost_candidates, several_numbers
from bench.tables.verdicts import Judged, judged
from bench.training.curve import read_curve

CELL_FIELDS = (
    *("key", "cell", "backbone", "metric", "seconds_with_parents", "stages", "other_weights", "devices"),
    "spec",  # in records of older versions, which have no stages
)
SHARED_FIELDS = ("metrics", "measured", "activity", "seconds", "search", "code", "provenance")
"""What a cell has in common with its own stage, as a rule: it stands there once."""
MEASUREMENTS = ("metrics", "measured")
DIGITS = 6
"""How many digits of measurements are kept: 10,000 cells of a dozen numbers each are to stay a small file."""
CURVE_POINTS = LOG_CHARACTERS = 250_000
"""How many there may be in a whole report; each stage gets its share."""


def report(content: RecordsFile, folders: Mapping[str, Path] | None) -> dict[str, Any]:
    """Collect what the report shows.

    `folders` are those of the stages in the store, by key, for curves and logs; None without a store.
    """
    grid = content.grid
    assert grid is not None
    records = list(content.cells.values())
    compared, runs = differences(content), runs_of(grid, records, content.stages)
    keys = dict.fromkeys(key for record in records for key in record.get("stages", ()))
    return {
        "name": grid.name,
        "reference": grid.reference,
        "rows": grid.rows,
        "tasks": [_task(grid, task) for task in grid.tasks],
        "seeds": grid.seeds,
        "verdicts": list(_verdicts(grid, compared)),
        "differences": [dataclasses.asdict(difference) for difference in compared],
        "warnings": list(_warnings(content)),
        "legend": [*grid.legend, *lost_candidates(records), *same_computations(grid, records)],
        "published": [_published(cell) for cell in judged(grid, records, content.stages, runs)],
        "figures": list(_figures(content)),
        "table": [[row, *(runs.summary(row, task).text() for task in grid.tasks)] for row in grid.rows],
        "shared": SHARED_FIELDS,
        "cells": [_cell(record, content) for record in records],
        "stages": {key: _rounded(stage) for key, stage in content.stages.items()},
        "store": None if folders is None else _from_store({key: folders[key] for key in keys if key in folders}),
        "provenance": [[what, values.most_common()] for what, values in _origins(content).items()],
    }


def _figures(content: RecordsFile) -> Iterator[dict[str, str]]:
    """Draw every figure that the records have; learning curves stand with their stages."""
    from bench.figures.draw import as_svg  # imports matplotlib, which takes a second

    source = Source(content)
    for make_chart in KINDS.values():
        with contextlib.suppress(NothingToShow):
            chart = make_chart(source)
            yield {"text": f"{chart.title}. {chart.caption}", "svg": as_svg(chart)}


def _published(cell: Judged) -> dict[str, Any]:
    """Return a cell with its published counterpart and the verdict."""
    published, verdict = cell.published, cell.verdict
    return {
        "row": cell.row,
        "task": cell.task,
        "ours": cell.ours.text(),
        "published": Summary(published.n, published.n, published.mean, published.std).text(),
        "source": cell.table,
        **{name: getattr(verdict, name) for name in ("kind", "mean", "low", "high", "reason", "caveat")},
        "notes": (f"{cell.table} of {published.source}", *published.notes),
    }


def _task(grid: GridFacts, task: str) -> dict[str, Any]:
    metric = metric_of(grid.metrics[task])
    return {"name": task, "metric": describe(grid.metrics[task]), "unit": metric.unit, "better": metric.better}


def _cell(record: Record, content: RecordsFile) -> dict[str, Any]:
    assert content.grid is not None
    # Files that were joined may hold another number for a stage than its line says: what differs is kept in the cell.
    stage = content.stages.get(record["key"], {})
    own = [name for name in SHARED_FIELDS if name in record and record[name] != stage.get(name)]
    scale = metric_of(content.grid.metrics[record["task"]]).scale
    named = {"row": record["method"], "task": record["task"], "seed": record["seed"]}
    named["value"] = _round(scale * record["value"])
    if others := record.get("also"):
        named["also"] = [{"value": _round(scale * other["value"]), **other["provenance"]} for other in others]
    return _rounded({**named, **{name: record[name] for name in (*CELL_FIELDS, *own) if name in record}})


def _rounded(record: Record) -> Record:
    """Return a record with its measurements rounded; specifications stay exact."""
    measurements = {
        name: {entry: _round(number) for entry, number in record[name].items()}
        for name in MEASUREMENTS
        if name in record
    }
    return record | measurements


def _round(number: Any) -> Any:
    return float(f"{number:.{DIGITS}g}") if isinstance(number, float) else number


def _from_store(folders: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """Read learning curves and the ends of logs.

    All stages share `CURVE_POINTS` and `LOG_CHARACTERS` equally, each with 10 to 200 points and 100 to 2,000
    characters.
    """
    points, characters = (total // max(1, len(folders)) for total in (CURVE_POINTS, LOG_CHARACTERS))
    stages: dict[str, dict[str, Any]] = {}
    for key, folder in folders.items():
        curve = read_curve(folder)
        # Every so many-th point, from the end: the last one says how training ended.
        thinned = curve[:: -max(1, math.ceil(len(curve) / min(200, max(10, points))))][::-1]
        log = tail(folder / "log.txt")[-min(2000, max(100, characters)) :]
        stages[key] = {"curve": [[point["step"], _round(point.get("loss"))] for point in thinned], "log": log}
    return stages


# ------------------------------------------------------------------------------------------- the answer, and warnings


VERDICTS = (
    "better on every compared task, beyond the noise of the seeds",
    "better on some tasks, undecided on the others",
    "better on some tasks, worse on others",
    "undecided on every compared task",
    "worse on some tasks, undecided on the others",
    "worse on every compared task, beyond the noise of the seeds",
    "equal",
    "not compared",
)


def _verdicts(grid: GridFacts, compared: list[ShownDifference]) -> Iterator[tuple[str, list[str]]]:
    """Sort the rows by their verdict against the reference row.

    On a task a row is better or worse where the interval of its difference holds all noise of the seeds and excludes
    zero, else undecided. A task on which the row or the reference has no number, or none that is finite, does not
    count. Example: +1.2 [0.4, 2.0] and +0.3 [−0.2, 0.8] points are better on some tasks, undecided on the others.
    """
    rows: dict[str, list[ShownDifference]] = {row: [] for row in grid.rows if row != grid.reference}
    for difference in compared:
        if difference.merit is not None and math.isfinite(difference.merit):
            rows[difference.row].append(difference)
    groups: dict[str, list[str]] = defaultdict(list)
    for row, of_row in rows.items():
        groups[_verdict(of_row)].append(row)
    yield from ((verdict, groups[verdict]) for verdict in VERDICTS if verdict in groups)


def _verdict(of_row: list[ShownDifference]) -> str:
    all_better, some_better, mixed, undecided, some_worse, all_worse, equal, not_compared = VERDICTS
    merits = [difference.merit or 0.0 if difference.beyond_noise else 0.0 for difference in of_row]
    better, worse = any(merit > 0 for merit in merits), any(merit < 0 for merit in merits)
    if not of_row:
        return not_compared
    if not any(difference.merit or difference.low is not None for difference in of_row):  # and no spread
        return equal
    if better and worse:
        return mixed
    if better:
        return all_better if all(merits) else some_better
    if worse:
        return all_worse if all(merits) else some_worse
    return undecided


def _warnings(content: RecordsFile) -> Iterator[tuple[str, list[str]]]:
    """Say what stands in the way of comparing these numbers.

    Each warning comes with a list of where, which is empty where the warning says it itself.
    """
    grid, records = content.grid, list(content.cells.values())
    assert grid is not None
    # The order is that of urgency: what was known when the table was written, numbers that are missing or doubtful,
    # what makes good numbers hard to compare, and at last what the report itself cannot show.
    yield from ((line.removeprefix("Warning: "), []) for line in grid.warnings)
    yield from ((line.removeprefix("Warning: "), []) for line in several_numbers(records))
    seeds = {(record["method"], record["task"], record["seed"]) for record in records}
    missing = {
        f"{row} on {task}: {', '.join(map(str, absent))}": len(absent)
        for row in grid.rows
        for task in grid.tasks
        if (absent := [seed for seed in grid.seeds if (row, task, seed) not in seeds])
    }
    if missing:
        planned = len(grid.rows) * len(grid.tasks) * len(grid.seeds)
        yield f"Missing seeds: {sum(missing.values())} of {planned} planned numbers are not there.", list(missing)
    if infinite := [str(record["cell"]) for record in records if not math.isfinite(record["value"])]:
        yield "Some values are not finite.", infinite
    for what, values in _origins(content).items():
        if len(values) > 1 and what not in UNMIXED:
            lines = [f"{value} ({count})" for value, count in values.most_common()]
            yield f"Mixed {what}: the numbers may not be comparable.", lines
    if idle := list(inactive_parts(records)):
        yield "Some parts of methods did nothing.", idle
    if content.stages:
        yield from ((line.removeprefix("Warning: "), []) for line in missing_warning(records, content.stages))
    if records and not content.stages:
        yield "There is no stages.jsonl beside the records: specifications of the stages are not shown.", []


ORIGINS = {
    "commits": "commit",
    "devices": "device",
    "instruction sets": "instruction_set",
    "numbers of threads": "threads",
}
UNMIXED = frozenset(("dates",))
"""What may well differ within a grid."""


def _origins(content: RecordsFile) -> dict[str, Counter[str]]:
    """Count all stages, those behind cells too, by where they were computed."""
    # Each stage is counted once, though many cells may rest on it. A cell without a line in stages.jsonl still has its
    # own provenance, but no date.
    sources = {key: (stage.get("provenance", {}), stage.get("date")) for key, stage in content.stages.items()}
    for record in content.cells.values():
        sources.setdefault(record["key"], (record["provenance"], None))
    origins: dict[str, Counter[str]] = {what: Counter() for what in ORIGINS}
    for provenance, date in sources.values():
        for what, name in ORIGINS.items():
            if name in provenance:
                origins[what][str(provenance[name] or "none, installed")] += 1
        for package, version in provenance.get("versions", {}).items():
            origins.setdefault(f"versions of {package}", Counter())[str(version)] += 1
        if date is not None:
            origins.setdefault("dates", Counter())[str(date)[:10]] += 1
    if not content.stages:  # then only the cells say what the stages behind them ran on
        origins["kinds of device"] = Counter(kind for r in content.cells.values() for kind in r.get("devices", ()))
    return {what: counts for what, counts in origins.items() if counts}
