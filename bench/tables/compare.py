"""What runs say about rows: cells, paired differences, the best of a column, ranks, one p over tasks.

Nothing here reads a store, and nothing needs torch: plain runs go in, numbers come out. docs/statistics.md explains the
choices and has the figures of the simulation behind them.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from bench.data.metrics import Direction, entry_name
from bench.errors import InputError, nearest

LEVEL = 0.95
"""The level of every interval here."""
SIGNED_RANK_TASKS = 6
"""From how many tasks on there are probabilities over tasks."""
ROPE = {"%": 0.5}
"""By unit: up to which difference two rows count as equivalent, where a grid does not say."""


@dataclass(frozen=True)
class Run:
    """One number: a row on a task with a seed.

    `value` is in the unit that tables show: a fraction such as accuracy is given in percent. `stages` are the keys of
    all stages and search choices behind it that read the task's data, so that it can be seen what two seeds share.
    """

    row: str
    task: str
    seed: int
    value: float
    stages: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Column:
    """A task with the direction and the unit of what it shows.

    `better` is None where neither direction is the better one: nothing there is best, and no row has a rank.
    """

    task: str
    better: Direction | None = "higher"
    unit: str = "%"
    decimals: int = 2

    @property
    def sign(self) -> int:
        """The factor that makes more better; a difference without a direction is the plain one."""
        return -1 if self.better == "lower" else 1


@dataclass(frozen=True)
class Summary:
    """A cell: mean and sample standard deviation (ddof = 1) over seeds.

    Only finite values count; `not_finite` keeps the others to be shown. `std` is None for one value, `mean` for none.
    """

    planned: int
    n: int
    mean: float | None
    std: float | None
    not_finite: tuple[float, ...] = ()
    decimals: int = 2

    @property
    def complete(self) -> bool:
        """Whether every planned seed has a finite value."""
        return self.n == self.planned

    def text(self) -> str:
        """Write `mean ± std (n)`. Gaps read `(3/5)`, and `(3/5; 1 × nan)` where a run gave no finite number."""
        count = str(self.planned) if self.complete else f"{self.n}/{self.planned}"
        others = "".join(f"; {times} × {value}" for value, times in Counter(map(str, self.not_finite)).items())
        mean = "–" if self.mean is None else f"{self.mean:.{self.decimals}f}"
        spread = "" if self.std is None else f" ± {self.std:.{self.decimals}f}"
        return f"{mean}{spread} ({count}{others})"


@dataclass(frozen=True)
class Difference:
    """How much better a row is than another on a task, seed by seed.

    Positive means better, also where a lower metric is better; in a column without a direction it means more. `low`
    and `high` are the t interval of the mean; where there is none, `reason` says why. A `conditional` interval is to be
    marked: it does not hold the luck of what its seeds share.
    """

    task: str
    n: int
    mean: float | None
    low: float | None
    high: float | None
    conditional: bool
    reason: str = ""

    @property
    def shows_better(self) -> bool:
        """Whether the interval excludes 0 on the better side, and holds all noise that there is."""
        return not self.conditional and self.low is not None and self.low > 0


@dataclass(frozen=True)
class OverTasks:
    """How much better a row is than the reference row, over tasks. Each task counts once, by its mean difference.

    `p` is Holm's over all rows; `low` and `high` are the row's own t interval. `better`, `equivalent` and `worse` are
    probabilities of the Bayesian signed-rank test, not p values. None is what is not defined; `reason` says why.
    """

    row: str
    reference: str
    tasks: tuple[str, ...]
    left_out: tuple[str, ...]
    """Tasks that count under another column already."""
    conditional: tuple[str, ...]
    """Tasks whose own difference is conditional."""
    seeds: tuple[int, int] | None
    """The smallest and the largest number of common seeds of a task."""
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    rope: float | None = None
    better: float | None = None
    equivalent: float | None = None
    worse: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class RunTable:
    """The runs of a grid with its rows, columns and planned seeds.

    Rows, columns and cells without a run are legal: they are what a grid looks like at its start. Refuses two runs of
    one cell and seed, and a run that is none of the table's.
    """

    rows: tuple[str, ...]
    columns: tuple[Column, ...]
    seeds: tuple[int, ...]
    runs: tuple[Run, ...]

    def __post_init__(self) -> None:
        tasks = tuple(column.task for column in self.columns)
        axes: dict[str, tuple[str | int, ...]] = {"row": self.rows, "task": tasks, "seed": self.seeds}
        legal = {axis: Counter(names) for axis, names in axes.items()}
        for axis, names in legal.items():
            for name, times in names.items():
                if times > 1:
                    raise InputError(f"The table lists the {axis} {name} {times} times. Each may occur once.")
        for run in self.runs:
            for axis, names in legal.items():
                if (value := getattr(run, axis)) not in names:
                    message = (
                        f"A run of {run.row} on {run.task} with seed {run.seed} is none of the table: {axis} {value}."
                    )
                    raise InputError(message + nearest(str(value), map(str, names)))
        for (row, task, seed), times in Counter((run.row, run.task, run.seed) for run in self.runs).items():
            if times > 1:
                raise InputError(
                    f"There are {times} runs of {row} on {task} with seed {seed}. A seed counts once: keep one of them."
                )

    @cached_property
    def _cells(self) -> dict[tuple[str, str], dict[int, Run]]:
        cells: dict[tuple[str, str], dict[int, Run]] = {}
        for run in self.runs:
            cells.setdefault((run.row, run.task), {})[run.seed] = run
        return cells

    def _finite(self, row: str, task: str) -> dict[int, Run]:
        runs = self._cells.get((row, task), {})
        return {seed: run for seed, run in runs.items() if math.isfinite(run.value)}

    def seeds_not_finite(self, row: str, task: str) -> set[int]:
        """Return the seeds whose run of a cell ended in NaN or an infinite number."""
        return self._cells.get((row, task), {}).keys() - self._finite(row, task).keys()

    def column(self, task: str) -> Column:
        """Return the column of a task."""
        return next(column for column in self.columns if column.task == task)

    def summary(self, row: str, task: str) -> Summary:
        """Summarize a cell over its seeds."""
        values = [run.value for run in self._finite(row, task).values()]
        others = [self._cells[row, task][seed].value for seed in sorted(self.seeds_not_finite(row, task))]
        mean = float(np.mean(values)) if values else None
        std = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return Summary(len(self.seeds), len(values), mean, std, tuple(others), self.column(task).decimals)

    def _pairs(self, row: str, other: str, task: str) -> list[tuple[Run, Run]]:
        """Pair the finite runs of two rows by their common seeds."""
        left, right = self._finite(row, task), self._finite(other, task)
        return [(left[seed], right[seed]) for seed in self.seeds if seed in left and seed in right]

    def difference(self, row: str, other: str, task: str) -> Difference:
        """Compare two rows on a task over the seeds that both have."""
        sign = self.column(task).sign
        pairs = self._pairs(row, other, task)
        differences = [sign * (left.value - right.value) for left, right in pairs]
        # The difference of two rows is conditional if something that only one of them has is the same for several
        # seeds: its luck is in every difference, and no spread over seeds shows it. What both have cancels out. Example
        # with seeds 0 and 1, teacher T for all, student S0 and S1, and further pre-training P for all:
        #   student – plain fine-tuning:  {T, S0}, {T, S1}        T occurs twice: conditional
        #   student – pre-training:       {T, S0, P}, {T, S1, P}  T and P occur twice: conditional
        #   student – another student of the same teacher:        {S0, R0}, {S1, R1}: T cancels out, unconditional
        uses = Counter(stage for left, right in pairs for stage in left.stages ^ right.stages)
        conditional = any(count > 1 for count in uses.values())
        if not differences:
            return Difference(task, 0, None, None, None, conditional, "no seed in common")
        magnitude = max(abs(run.value) for pair in pairs for run in pair)
        test, reason = t_test(differences, magnitude, "seed")
        low, high, _ = test or (None, None, None)
        return Difference(task, len(pairs), float(np.mean(differences)), low, high, conditional, reason)

    def best(self, task: str) -> str | None:
        """Return the row to print in bold, or None.

        It is better than every other row of the column beyond seed noise: it has all planned seeds and the best mean,
        and its difference to every other row that has a value is unconditional, with an interval that excludes 0.
        """
        if self.column(task).better is None:
            return None
        sign = self.column(task).sign
        summaries = {row: self.summary(row, task) for row in self.rows}
        means = {row: sign * cell.mean for row, cell in summaries.items() if cell.mean is not None}
        if len(means) < 2:
            return None
        top = max(means, key=lambda row: means[row])
        others = [row for row in means if row != top]
        # The next best alone would not do. Where a third row is noisy, its mean may fall below the second's by luck,
        # and the first would pass for the best although the third is as good (docs/statistics.md has how often).
        exceeds = all(means[top] > means[row] and self.difference(top, row, task).shows_better for row in others)
        return top if exceeds and summaries[top].complete else None

    def average_ranks(self) -> dict[str, float]:
        """Average the ranks of rows over tasks, 1 for the best.

        Only rows that are complete on every task are ranked, among each other. Rows with equal means share their ranks:
        means of 90, 80, 80 and 70 have ranks 1, 2.5, 2.5 and 4.
        """
        summaries = {row: [self.summary(row, column.task) for column in self.columns] for row in self.rows}
        rows = [
            row for row, cells in summaries.items() if all(cell.complete and cell.mean is not None for cell in cells)
        ]
        if not rows or not self.columns or any(column.better is None for column in self.columns):
            return {}
        signs = np.array([-column.sign for column in self.columns])
        # Rounded, so that means that only rounding tells apart are ties.
        values = signs * np.round([[cell.mean for cell in summaries[row]] for row in rows], 9)
        # The numbers of scipy.stats.rankdata, whose module takes a second to import.
        better = (values < values[:, None]).sum(axis=1)
        equal = (values == values[:, None]).sum(axis=1)
        ranks = (better + (equal + 1) / 2).mean(axis=1)
        return dict(zip(rows, map(float, ranks), strict=True))

    def over_tasks(self, reference: str, rope: float | None = None, draws: int = 50_000) -> list[OverTasks]:
        """Compare every other row with the reference row over tasks.

        `rope` is in the tasks' unit; without one, ROPE says it. `draws` are those of the signed-rank test.
        """
        if reference not in self.rows:
            raise InputError(f"The reference row {reference} is none of the table.{nearest(reference, self.rows)}")
        if rope is not None and not (math.isfinite(rope) and rope >= 0):
            raise InputError(f"The ROPE is {rope}. It is a difference from 0 on, such as 0.5 (points).")
        compared = [self._over_tasks(row, reference, rope, draws) for row in self.rows if row != reference]
        adjusted = iter(holm([result.p for result in compared if result.p is not None]))
        return [result if result.p is None else replace(result, p=next(adjusted)) for result in compared]

    def _over_tasks(self, row: str, reference: str, rope: float | None, draws: int) -> OverTasks:
        """Compare two rows over tasks; p is not adjusted yet."""
        # Tasks are independent only if no stage that one row has and the other has not stands behind two of them.
        # Example: of the columns mnli and mnli_mismatched, which test the same stages on two splits, the first counts.
        counted: list[Difference] = []
        left_out: list[str] = []
        behind: set[str] = set()
        magnitude = 0.0
        for column in self.columns:
            pairs = self._pairs(row, reference, column.task)
            differing = {stage for left, right in pairs for stage in left.stages ^ right.stages}
            if differing & behind:
                left_out.append(column.task)
            elif pairs:
                counted.append(self.difference(row, reference, column.task))
                behind |= differing
                magnitude = max(magnitude, *(abs(run.value) for pair in pairs for run in pair))
        result = OverTasks(
            row,
            reference,
            tasks=tuple(difference.task for difference in counted),
            left_out=tuple(left_out),
            conditional=tuple(difference.task for difference in counted if difference.conditional),
            seeds=(min(d.n for d in counted), max(d.n for d in counted)) if counted else None,
        )
        means = [difference.mean for difference in counted if difference.mean is not None]
        if not means:
            return replace(result, reason="no task in common")
        unit, *other_units = dict.fromkeys(self.column(task).unit for task in result.tasks)
        if other_units:
            return replace(result, reason="tasks in different units")
        test, reason = t_test(means, magnitude, "task")
        low, high, p = test or (None, None, None)
        result = replace(result, mean=float(np.mean(means)), low=low, high=high, p=p, reason=reason)
        rope = ROPE.get(unit) if rope is None else rope
        directions = {self.column(task).better for task in result.tasks}
        if len(means) < SIGNED_RANK_TASKS or rope is None or None in directions:
            return result
        worse, equivalent, better = _signed_rank(means, rope, draws)
        return replace(result, rope=rope, better=better, equivalent=equivalent, worse=worse)


def t_test(differences: Sequence[float], magnitude: float, of: str) -> tuple[tuple[float, float, float] | None, str]:
    """Return the mean difference's interval and its p, or None and the reason.

    `magnitude` is that of the values that were subtracted, `of` says what each difference belongs to.
    """
    if len(differences) < 2:
        return None, f"one {of}"
    # Equal differences, up to rounding, have no spread to judge them by. It happens by chance where a test set is
    # small: on 100 examples every difference is a whole number of points, and two seeds often have the same.
    if np.ptp(differences) <= 1e-12 * magnitude:
        return None, f"the same difference for every {of}"
    # The numbers of scipy.stats.ttest_1samp, whose module takes a second to import.
    from scipy.special import stdtr, stdtrit

    freedom = len(differences) - 1
    mean, error = np.mean(differences), np.sqrt(np.var(differences, ddof=1) / len(differences))
    half = stdtrit(freedom, (1 + LEVEL) / 2) * error
    return (float(mean - half), float(mean + half), float(2 * stdtr(freedom, -abs(mean / error)))), ""


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p values so that one false positive among all is controlled (Holm 1979).

    The smallest of m is multiplied by m, the next by m − 1 and so on; none becomes smaller than the one before it or
    larger than 1. Example: 0.01, 0.04, 0.03 become 0.03, 0.06, 0.06.
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(np.argsort(p_values)):
        largest = min(1.0, max(largest, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _signed_rank(means: Sequence[float], rope: float, draws: int) -> tuple[float, float, float]:
    """Return the probabilities that a row is worse, equivalent and better on a new task."""
    from baycomp import SignedRankTest

    # The draws begin at a state made from the data: the same differences, in any order and on any machine, have the
    # same probabilities. Rounded first, as the last bits of a mean depend on the machine; `+ 0.0` makes −0 a 0.
    data = np.sort(np.round(means, 9)) + 0.0
    state = int.from_bytes(hashlib.sha256(data.astype("<f8").tobytes()).digest()[:4], "little")
    posterior = SignedRankTest(np.zeros_like(data), data, rope, nsamples=draws, random_state=state)
    worse, equivalent, better = map(float, posterior.probs())
    return worse, equivalent, better


def majority_baseline(counts: Mapping[str, int]) -> dict[str, float]:
    """Measure the classifier that always says a test set's most frequent class.

    `counts` are the examples of each class. Metrics have their names in records; of two equally frequent classes the
    first is said. Cross-entropy is left out, and AUROC where only one class occurs: they are not defined.
    """
    if any(count < 0 for count in counts.values()) or not any(counts.values()):
        raise InputError(f"The test set's class counts are {dict(counts)}. They are numbers from 0 on, not all 0.")
    majority = max(counts, key=lambda name: counts[name])
    accuracy = counts[majority] / sum(counts.values())
    occurring = sum(count > 0 for count in counts.values())
    # Of the majority class, recall is 1 and precision is the accuracy; every other class has an F1 of 0.
    f1 = 2 * accuracy / (1 + accuracy)
    values = {
        "accuracy": accuracy,
        "balanced_accuracy": 1 / occurring,
        "macro_f1": f1 / occurring,
        "micro_f1": accuracy,
        "mcc": 0.0,
    }
    if len(counts) == 2:
        values |= {entry_name("binary_f1", name): f1 if name == majority else 0.0 for name in counts}
    if occurring > 1:
        values["auroc"] = 0.5
    return values
