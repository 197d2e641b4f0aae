"""How the rows of a grid differ from its reference row."""

from __future__ import annotations

from dataclasses import dataclass

from bench.data.metrics import metric_of
from bench.tables.comparison import runs_of
from bench.tables.records import RecordsFile


@dataclass(frozen=True)
class ShownDifference:
    """The difference of a row to the reference row on a task, as the page shows it.

    `pairs` counts the seeds that both have. `mean` is the mean of their differences, None without any; it and its t
    interval from `low` to `high` (None where there is none) are in the units of the table. `merit` is the mean with the
    sign that makes positive better. If it is `conditional`, the interval lacks the luck of what seeds share
    (`bench.tables.compare`).
    """

    row: str
    task: str
    pairs: int
    mean: float | None
    merit: float | None
    low: float | None = None
    high: float | None = None
    conditional: bool = False

    @property
    def beyond_noise(self) -> bool:
        """Whether the interval excludes 0 and is not conditional."""
        return self.low is not None and self.high is not None and not self.conditional and self.low * self.high > 0


def differences(content: RecordsFile) -> list[ShownDifference]:
    """Compare every row with the reference row, task by task.

    Example: accuracies of .90 and .92 with seeds 0 and 1, where the reference has .91, .90 and .95 with seeds 0, 1 and
    2, differ by -1 and +2 points: two pairs with the mean +0.5. Seed 2 has no partner and counts for neither.
    """
    grid = content.grid
    assert grid is not None
    runs = runs_of(grid, list(content.cells.values()), content.stages)
    result = []
    for row in grid.rows:
        for task in grid.tasks if row != grid.reference else ():
            compared, metric = runs.difference(row, grid.reference, task), metric_of(grid.metrics[task])
            # `compared` is positive where the row is better; `merit` turns a metric of which less is better back to its
            # own sign.
            mean, *ends = (None if x is None else metric.merit(x) for x in (compared.mean, compared.low, compared.high))
            low, high = sorted(end for end in ends if end is not None) or (None, None)
            result.append(ShownDifference(row, task, compared.n, mean, compared.mean, low, high, compared.conditional))
    return result
