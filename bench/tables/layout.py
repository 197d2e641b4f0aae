"""Rows of one method that differ in one count, such as steps of further pre-training, side by side.

Tables have a column for each count (`arranged`), figures an axis.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.tables.compare import Run, RunTable
from bench.tables.quantities import NothingToShow
from bench.tables.records import Record


@dataclass(frozen=True)
class Axis:
    """What rows of one method differ in.

    `position` reads it from the stages behind a cell, the cell's own last; None where a cell has no place on it.
    """

    title: str
    label: str
    position: Callable[[Sequence[Record]], int | None]


def pretraining_steps(stages: Sequence[Record]) -> int | None:
    """Return the steps of further pre-training behind a cell; 0 is plain fine-tuning."""
    counts = {
        stage["spec"].get("schedule", {}).get("steps") or stage.get("steps")  # the latter where epochs are bound
        for stage in stages
        if stage["name"] == "further_pretrain"
    }
    return counts.pop() if len(counts) == 1 else None if counts else 0


def training_examples(stages: Sequence[Record]) -> int | None:
    """Return how many examples a cell was fine-tuned on."""
    data: dict[str, int | None] = stages[-1]["spec"].get("data", {})
    return data.get("subset") or data.get("examples")


def rounds(stages: Sequence[Record]) -> int | None:
    """Return the rounds of self-distillation behind a cell; 0 is further pre-training."""
    names = {stage["name"] for stage in stages}
    if "further_pretrain" not in names:
        return None
    return max((int(match[1]) for name in names if (match := re.fullmatch(r"self_distill_(\d+)", name))), default=0)


AXES = {
    "steps": Axis("pre-training steps", "steps of further pre-training", pretraining_steps),
    "size": Axis("training-set size", "training examples", training_examples),
    "rounds": Axis("rounds", "rounds of self-distillation", rounds),
}
"""Every axis by the name that --layout takes."""


def behind(record: Record, stages: Mapping[str, Record]) -> list[Record]:
    """Return the stages behind a cell, its own last.

    Refuses a cell of which one is missing.
    """
    there = [stages.get(key) for key in record.get("stages", ())]
    complete = [stage for stage in there if stage is not None]
    if not complete or len(complete) < len(there):
        raise NothingToShow(f"stages.jsonl beside the records lacks stages behind {record['cell']}")
    return complete


def lineage(record: Record, stages: Mapping[str, Record]) -> list[Record]:
    """Return the stages that a cell was trained from, parents first and its own last.

    What a search tried and did not choose is not among them, and the `spec` of a searched stage is that of the settings
    it chose. Refuses a cell of which a stage is missing. Example: for tapt, searched among two rates, they are the
    further_pretrain and the fine-tuning with the chosen rate.
    """
    there = {stage["key"]: stage for stage in behind(record, stages)}
    if not any(stage.get("search") is not None for stage in there.values()):
        return list(there.values())
    ordered: dict[str, Record] = {}

    def visit(key: str) -> None:
        stage = there[key]
        spec = stage["spec"]["finals"][stage["search"]["chosen"]] if stage.get("search") is not None else stage["spec"]
        for parent in _parents(spec):
            visit(parent)
        ordered[key] = {**stage, "spec": spec}

    visit(record["key"])
    return list(ordered.values())


def _parents(spec: Any) -> Iterator[str]:
    """Yield the keys of the stages that a spec names: each is written as {"stage": key}."""
    if isinstance(spec, dict) and spec.keys() == {"stage"}:
        yield spec["stage"]
    elif isinstance(spec, dict | list):
        for part in spec.values() if isinstance(spec, dict) else spec:
            yield from _parents(part)


@dataclass(frozen=True)
class Spot:
    """Where the cells of a row on a task stand: in which series, and at which count (None where nobody knows yet)."""

    series: str
    position: int | None


def spots(
    axis: Axis, cells: Mapping[tuple[str, str], Iterable[Record]], stages: Mapping[str, Record]
) -> dict[tuple[str, str], Spot]:
    """Place rows on an axis, by row and task.

    `cells` are their records. What has no place on the axis, or another one for each seed, is left out; a row without
    any record has a spot without a position.
    """
    # Example: the rows a/tapt and b/tapt, with 10 and 20 steps, stand at 10 and 20 in the series tapt. A third row
    # c/tapt, with 20 steps and another learning rate, shares a position with b/tapt: then each is a series of its own.
    placed = {}
    for (row, task), records in cells.items():
        positions = {axis.position(lineage(record, stages)) for record in records}
        if len(positions) <= 1 and None not in positions:
            placed[row, task] = Spot(row.rpartition("/")[2], positions.pop() if positions else None)
    rows_at = Counter((task, spot.series, spot.position) for (_, task), spot in placed.items())
    ambiguous = {series for (_, series, position), count in rows_at.items() if count > 1 and position is not None}
    return {
        (row, task): replace(spot, series=row) if spot.series in ambiguous else spot
        for (row, task), spot in placed.items()
    }


def positions_with_numbers(
    axis: Axis, spot_of: Mapping[tuple[str, str], Spot], numbers: Iterable[tuple[str, str]]
) -> dict[tuple[str, str], set[int]]:
    """Return at which positions each task and series has numbers.

    `spot_of` is where rows stand, `numbers` are the rows and tasks that have one. Refuses an axis on which no series
    has two.
    """
    positions: dict[tuple[str, str], set[int]] = defaultdict(set)
    for row, task in numbers:
        spot = spot_of.get((row, task))
        if spot is not None and spot.position is not None:
            positions[task, spot.series].add(spot.position)
    if max(map(len, positions.values()), default=0) < 2:
        raise NothingToShow(f"no method has numbers at two different counts of {axis.label}")
    return positions


# ------------------------------------------------------------------------------------------------ tables


@dataclass(frozen=True)
class Arranged:
    """The runs of a grid with a row for each series, and a column for each task and position.

    Example: the rows a/tapt and b/tapt on cub, with 10 and 20 steps, have as `columns` {(cub, 10): "cub at 10", (cub,
    20): "cub at 20"}, as `series` {a/tapt: tapt, b/tapt: tapt} and as `spots` (tapt, "cub at 10") and (tapt, "cub at
    20"), the entries of the table. `unplaced` names rows that have no spot, and says why.
    """

    runs: RunTable
    columns: Mapping[tuple[str, int], str]
    series: Mapping[str, str]
    spots: Collection[tuple[str, str]]
    unplaced: tuple[str, ...]

    @property
    def positions(self) -> list[int]:
        """All positions of any task, in their order."""
        return sorted({position for _, position in self.columns})


def arranged(
    axis: Axis, runs: RunTable, cells: Mapping[tuple[str, str], Sequence[Record]], stages: Mapping[str, Record]
) -> Arranged:
    """Arrange the runs of a grid on an axis.

    Refuses an axis on which no method stands at two positions.
    """
    # The new columns are compared as tasks are: a column has one best row, and rows are paired seed by seed. `Arranged`
    # has an example.
    spot_of = spots(axis, cells, stages)
    positions_with_numbers(axis, spot_of, {(run.row, run.task) for run in runs.runs})
    position_of = {cell: spot.position for cell, spot in spot_of.items() if spot.position is not None}
    columns = {
        (task.task, position): f"{task.task} at {position}"
        for task in runs.columns
        for position in sorted({position for (_, name), position in position_of.items() if name == task.task})
    }
    moved: list[Run] = [
        replace(run, row=spot_of[cell].series, task=columns[run.task, position_of[cell]])
        for run in runs.runs
        if (cell := (run.row, run.task)) in position_of
    ]
    unplaced = []
    for row, task in cells:
        if (row, task) not in spot_of:
            unplaced.append(f"{row} on {task}, which has no one count of {axis.label}")
        elif (row, task) not in position_of:
            unplaced.append(f"{row} on {task}, of which no cell has finished")
    table = RunTable(
        rows=tuple(dict.fromkeys(spot_of[cell].series for cell in position_of)),
        columns=tuple(replace(runs.column(task), task=name) for (task, _), name in columns.items()),
        seeds=runs.seeds,
        runs=tuple(moved),
    )
    return Arranged(
        table,
        columns,
        series={row: spot_of[row, task].series for row, task in position_of},
        spots=dict.fromkeys(
            (spot_of[row, task].series, columns[task, position]) for (row, task), position in position_of.items()
        ),
        unplaced=tuple(unplaced),
    )
