"""What each kind of figure shows: its points, as they also stand in a CSV file, and the words around them.

A kind is a function from a `Source` to a `Chart`. It raises `NothingToShow` where the data have no such figure.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from bench.data.metrics import metric_of
from bench.errors import InputError
from bench.tables.compare import LEVEL, RunTable
from bench.tables.comparison import runs_of
from bench.tables.grid_facts import GridFacts
from bench.tables.layout import AXES, Axis, behind, positions_with_numbers, spots
from bench.tables.quantities import QUANTITIES, NothingToShow, by_column
from bench.tables.records import Record, RecordsFile, evaluation_untimed, stage_hours
from bench.training.curve import read_curve

Point = dict[str, Any]
Form = Literal["dots", "lines", "pareto", "curves"]


@dataclass(frozen=True)
class Chart:
    """A figure still to be drawn.

    `labels` name the values of each panel, with their unit; `panel` is the column of the points that says which panel
    they are in. In the form `dots` each row of the grid has a line of its own, in the others a series has a colour.
    """

    title: str
    form: Form
    points: list[Point]
    labels: dict[str, str]
    caption: str
    x_label: str = ""
    panel: str = "task"


@dataclass(frozen=True)
class Source:
    """The records that figures are made of, and a store where learning curves are wanted."""

    content: RecordsFile
    store: Path | None = None

    @property
    def grid(self) -> GridFacts:
        assert self.content.grid is not None  # files without one are refused when they are read
        return self.content.grid

    @cached_property
    def runs(self) -> RunTable:
        """The same numbers as runs to compare."""
        return runs_of(
            self.grid, [record for of_seed in self.cells.values() for record in of_seed.values()], self.content.stages
        )

    @cached_property
    def cells(self) -> dict[tuple[str, str], dict[int, Record]]:
        """The records of each row and task, by seed."""
        cells: dict[tuple[str, str], dict[int, Record]] = {(r, t): {} for t in self.grid.tasks for r in self.grid.rows}
        for record in self.content.cells.values():
            cells[record["method"], record["task"]][record["seed"]] = record
        return cells

    def behind(self, record: Record) -> list[Record]:
        """Return the stages behind a cell, its own last; refuses figures for which one is missing."""
        return behind(record, self.content.stages)


# ------------------------------------------------------------------------------------------------ values over seeds


def summary(values: Sequence[float], planned: int) -> Point:
    """Summarise a cell's values over seeds: mean, sample standard deviation, what is missing.

    Only finite values count. Example: 90, 92 and NaN of 4 planned seeds have n 2, not_finite 1, mean 91, std 1.41.
    """
    finite = [value for value in values if math.isfinite(value)]
    mean = statistics.fmean(finite) if finite else None
    std = statistics.stdev(finite) if len(finite) > 1 else None
    bounds = (None, None) if mean is None or std is None else (mean - std, mean + std)
    return {
        "n": len(finite),
        "planned": planned,
        "not_finite": len(values) - len(finite),
        "mean": mean,
        "std": std,
        "low": bounds[0],
        "high": bounds[1],
    }


def _title(quantity: str | None) -> str:
    title = QUANTITIES[quantity].title if quantity else "test metric"
    return f"{title[0].upper()}{title[1:]}"


def _labels(source: Source, quantity: str | None = None) -> dict[str, str]:
    """Name the values of each task, with their unit."""
    return {task: shown.label for task, shown in by_column(source.grid, quantity).items()}


def _summaries(source: Source, quantity: str | None = None) -> list[tuple[Point, list[Record]]]:
    """Return the point of every row and task, with its records; refuses what no cell has."""
    planned, shown = len(source.grid.seeds), by_column(source.grid, quantity)
    pairs = []
    for (row, task), of_seed in source.cells.items():
        records = list(of_seed.values())
        values = [value for record in records if (value := shown[task].value(record)) is not None]
        pairs.append(({"task": task, "row": row, **summary(values, planned)}, records))
    if not any(point["n"] or point["not_finite"] for point, _ in pairs):
        raise NothingToShow(f"no record has the {QUANTITIES[quantity].title}" if quantity else "no cell has a number")
    return pairs


BARS = "Points are means over n seeds; bars are ± one sample standard deviation, and one seed has none."


def _caption(points: Sequence[Point], *sentences: str) -> str:
    """Write the text under a figure: what is shown, how many seeds, and which points lack some."""
    counts = sorted({point["n"] for point in points if point["n"]})
    seeds = f"n={counts[0]}" if len(counts) == 1 else f"n={counts[0]} to {counts[-1]}" if counts else "no seed yet"
    lacking = [
        f"{point['row']} on {point['task']} {point['n']}/{point['planned']}"
        + (f" ({point['not_finite']} not finite)" if point["not_finite"] else "")
        for point in points
        if point["n"] < point["planned"]
    ]
    # A grid that has only begun lacks nearly everything: the CSV file has the whole list.
    more = f" and {len(lacking) - 8} more" if len(lacking) > 8 else ""
    gaps = (
        f"Seeds are missing (hollow; × or nothing where there is no number): {'; '.join(lacking[:8])}{more}."
        if lacking
        else ""
    )
    return " ".join(filter(None, (*sentences, f"{seeds}.", gaps)))


# ------------------------------------------------------------------------------------------------ rows side by side


def rows_of(quantity: str, source: Source) -> Chart:
    """Show a quantity of every row, task by task (Figures 5a and 5b)."""
    points = [point for point, _ in _summaries(source, quantity)]
    caption = _caption(points, BARS, QUANTITIES[quantity].explanation)
    return Chart(_title(quantity), "dots", points, _labels(source, quantity), caption)


def forest(source: Source) -> Chart:
    """Show the paired differences of every row to the reference row, task by task."""
    reference = source.grid.reference
    others = [row for row in source.grid.rows if row != reference]
    points = [
        {"task": task, "row": row, "reference": reference, **paired_difference(source, row, reference, task)}
        for task in source.grid.tasks
        for row in others
    ]
    if not any(point["n"] for point in points):
        raise NothingToShow(f"no row has a seed in common with the reference row {reference}")
    units = {task: metric_of(metric).unit for task, metric in source.grid.metrics.items()}
    labels = {task: f"better by ({'points' if unit else 'nats'})" for task, unit in units.items()}
    squares = sum(point["conditional"] for point in points)
    warning = (
        f"{squares} of {len(points)} are squares: conditional intervals, without the luck of a stage or of a search's "
        "choice that seeds of one of the two rows share (or stages.jsonl does not say whether they do)."
        if squares
        else ""
    )
    bars = (
        f"Points are mean differences to {reference}, seed by seed, positive where the row is better; bars are "
        f"{100 * LEVEL:g} % t intervals over n seeds, and one seed has none."
    )
    return Chart(f"Differences to {reference}", "dots", points, labels, _caption(points, bars, warning))


def paired_difference(source: Source, row: str, reference: str, task: str) -> Point:
    """Compare two rows on a task as tables do (`bench.tables.compare`); positive means better."""
    difference = source.runs.difference(row, reference, task)
    not_finite = source.runs.seeds_not_finite(row, task) | source.runs.seeds_not_finite(reference, task)
    counts = {"n": difference.n, "planned": len(source.grid.seeds), "not_finite": len(not_finite)}
    point = counts | {"mean": difference.mean, "std": None}
    return point | {"low": difference.low, "high": difference.high, "conditional": difference.conditional}


# ------------------------------------------------------------------------------------------------ over an axis


def over(axis: Axis, source: Source, quantity: str | None = None) -> Chart:
    """Show a quantity over an axis, one series for each method (Figures 1, 3, 4 and 5c)."""
    summaries = _summaries(source, quantity)
    spot_of = spots(axis, {cell: of_seed.values() for cell, of_seed in source.cells.items()}, source.content.stages)
    points, elsewhere, with_numbers = [], [], []
    for point, _ in summaries:
        cell = (point["row"], point["task"])
        if cell not in spot_of:
            elsewhere.append(f"{point['row']} on {point['task']}")
            continue
        # The position of a row without any record is not known; the caption names the row.
        points.append({**point, "series": spot_of[cell].series, "x": spot_of[cell].position})
        if point["mean"] is not None:
            with_numbers.append(cell)
    positions_of = positions_with_numbers(axis, spot_of, with_numbers)
    single = any(len(positions) == 1 for positions in positions_of.values())
    sentences = [
        BARS,
        QUANTITIES[quantity].explanation if quantity else "",
        "Series stand a little apart where they share a position.",
        "A dotted line goes on from a method with one point only." if single else "",
        f"Without a place on this axis: {', '.join(elsewhere)}." if elsewhere else "",
    ]
    title = f"{_title(quantity)} over {axis.title}"
    return Chart(title, "lines", points, _labels(source, quantity), _caption(points, *sentences), axis.label)


# ------------------------------------------------------------------------------------------------ cost


def cost(source: Source) -> Chart:
    """Show the test metric over what a row cost, and the rows that no other beats in both."""
    devices = {
        stage.get("provenance", {}).get("device_type", "cpu")
        for of_seed in source.cells.values()
        for record in of_seed.values()
        for stage in source.behind(record)
    }
    if len(devices) > 1:
        raise NothingToShow(f"its stages ran on {' and '.join(sorted(devices))}, whose hours cannot be added")
    points: list[Point] = []
    everything: dict[str, Record] = {}
    for point, records in _summaries(source):
        # Cells share stages: each counts once. Example: three seeds fine-tuned for 10 s each from one pre-training of
        # 60 s cost 90 s.
        stages = {stage["key"]: stage for record in records for stage in source.behind(record)}
        hours = sum(map(stage_hours, stages.values())) if stages else None
        everything |= stages
        points.append({**point, "series": point["row"], "x": hours})
    for task, metric in source.grid.metrics.items():
        _mark_front([point for point in points if point["task"] == task], metric)
    unit = "core-hours" if devices == {"cpu"} else "GPU-hours"
    untimed = evaluation_untimed(everything.values())
    costs = (
        f"Cost is the {unit} of all distinct stages behind a row, over its seeds, with those that it shares with other "
        "rows. Grey steps join the rows with all seeds than which none is both cheaper and better."
        + (f" The evaluation of {untimed} stages was not timed, and is left out." if untimed else "")
    )
    caption = _caption(points, BARS, costs)
    return Chart(f"{_title(None)} and cost", "pareto", points, _labels(source), caption, f"cost ({unit})")


def _mark_front(points: Sequence[Point], metric: str) -> None:
    """Mark the points that no other dominates: none is as cheap, as good, and in one better.

    Example: of (1 h, 90 %), (2 h, 92 %), (3 h, 91 %) the last costs more than the second and is worse, so the front is
    the first two. Rows that lack seeds cost less for that reason alone, and do not count.
    """
    merit = metric_of(metric).merit
    for point in points:
        point["front"] = False
    complete = [point for point in points if point["n"] == point["planned"]]
    costs_and_losses = [(point["x"], -merit(point["mean"])) for point in complete]
    for point, (cost, loss) in zip(complete, costs_and_losses, strict=True):
        point["front"] = not any(
            other != (cost, loss) and other[0] <= cost and other[1] <= loss for other in costs_and_losses
        )


# ------------------------------------------------------------------------------------------------ learning curves


def curves(source: Source) -> Chart:
    """Show the training loss over the steps of every stage on a task's data, as the store has it."""
    if source.store is None:
        raise NothingToShow("learning curves are in the store: name it with --store")
    if not source.store.is_dir():
        raise InputError(f"--store {source.store}: no such folder. Name the store that the grid was run in.")
    folders = {folder.name[-16:]: folder for folder in source.store.iterdir()}  # they end in a part of the key
    rows_of_stage: dict[str, dict[str, None]] = defaultdict(dict)
    for (row, _), of_seed in source.cells.items():
        for record in of_seed.values():
            # In the order in which they were trained: the figure's panels follow it.
            *earlier, own = source.behind(record)
            for stage in (*earlier, own):
                if stage["task"] == own["task"]:
                    rows_of_stage[stage["key"]][row] = None
    points = []
    for key, rows in rows_of_stage.items():
        stage = source.content.stages[key]
        panel, folder = f"{stage['name']} on {stage['task']}", folders.get(key[:16])
        head = {"panel": panel, "series": ", ".join(rows), "key": key, "seed": stage.get("seed")}
        for step in read_curve(folder) if folder is not None else []:
            points.append({**head, "x": step["step"], "loss": step.get("loss"), "lr": step.get("lr")})
    if not points:
        raise NothingToShow(f"the store {source.store} has no learning curve of these stages")
    panels = dict.fromkeys(point["panel"] for point in points)
    lines = len({point["key"] for point in points})
    caption = (
        f"{lines} of {len(rows_of_stage)} stages have a curve, one line each; rows that share a stage share its line. "
        "The loss, in nats or what else its objective defines, is that of the last step before each point, and a line "
        "has a gap where it was not finite."
    )
    labels = dict.fromkeys(panels, "training loss")
    return Chart("Learning curves", "curves", points, labels, caption, "steps", panel="panel")


KINDS: dict[str, Callable[[Source], Chart]] = {
    "forest": forest,
    **{name: functools.partial(over, axis) for name, axis in AXES.items()},
    "gap": functools.partial(rows_of, "generalisation_gap"),
    "distance": functools.partial(rows_of, "encoder_distance"),
    "gap_rounds": functools.partial(over, AXES["rounds"], quantity="generalisation_gap"),
    "distance_rounds": functools.partial(over, AXES["rounds"], quantity="encoder_distance"),
    "cost": cost,
    "curves": curves,
}
"""Every kind of figure by the name that --kind takes."""
