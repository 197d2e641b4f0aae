"""How the rows of a grid differ from its reference row."""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass

from bench.data.metrics import metric_of
from bench.tables.records import RecordsFile


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences between a row and the reference row on a task.

    `pairs` counts the seeds that both have; without any `mean` is None. `mean` is in the units of the table, and
    `merit` the same number with the sign that makes more better.
    """

    row: str
    task: str
    pairs: int
    mean: float | None
    merit: float | None


def differences(content: RecordsFile) -> list[Difference]:
    """Compare every row with the reference row, task by task.

    Example: accuracies of .90 and .92 with seeds 0 and 1, where the reference has .91, .90 and .95 with seeds 0, 1 and
    2, differ by -1 and +2 points: two pairs with the mean +0.5. Seed 2 has no partner and counts for neither.
    """
    grid = content.grid
    assert grid is not None
    values: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    for record in content.cells.values():
        values[record["method"], record["task"]].setdefault(record["seed"], record["value"])
    result = []
    for row in grid.rows:
        for task in grid.tasks if row != grid.reference else ():
            own, reference, metric = values[row, task], values[grid.reference, task], metric_of(grid.metrics[task])
            pairs = [metric.scale * (own[seed] - reference[seed]) for seed in own if seed in reference]
            mean = statistics.fmean(pairs) if pairs else None
            result.append(Difference(row, task, len(pairs), mean, None if mean is None else metric.merit(mean)))
    return result
