"""Simulate grids whose truth is known: `python tests/simulate_tables.py [--grids 400]`.

Printed is the Markdown that docs/statistics.md holds: how often what a table says is wrong, how often intervals hold
the truth, and how often a real point is noticed. It takes some minutes.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import repeat

import numpy as np
from tabulate import tabulate

from bench.tables.compare import Column, Run, RunTable, Summary
from bench.tables.published import PublishedCell, compare_with_published

REFERENCE = "finetune"
DRAWS = 500
"""Of the signed-rank test: enough for a probability that is compared with 0.95 many times."""


@dataclass(frozen=True)
class Truth:
    """How the values of a grid come about; everything is in points.

    A value is the task's level + the row's effect + noise of the seed, which all rows share, + noise of the row's
    pre-training + noise of the run. `effects` and `noise` have a number for each row; the first row is the reference,
    and it has no pre-training, nor has the second.
    """

    name: str
    effects: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    noise: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    pretraining: str = "per_seed"
    pretraining_noise: float = 1.0
    tasks: int = 6
    seeds: int = 5
    test_examples: int | None = None
    """The size of the test set that values are rounded to; None: they are not."""
    heavy_tails: bool = False

    @property
    def rows(self) -> tuple[str, ...]:
        return (REFERENCE, *(f"row{number}" for number in range(1, len(self.effects))))


def draw(truth: Truth, random: np.random.Generator) -> RunTable:
    """One grid."""
    runs = []
    tasks = [f"task{number}" for number in range(truth.tasks)]
    for task in tasks:
        level, of_seed = random.uniform(50, 90), random.normal(0, 0.5, truth.seeds)
        for number, row in enumerate(truth.rows):
            of_run = (
                random.standard_t(3, truth.seeds) / math.sqrt(3)
                if truth.heavy_tails
                else random.normal(size=truth.seeds)
            )
            values = level + truth.effects[number] + of_seed + truth.noise[number] * of_run
            shared = truth.pretraining == "shared"
            if number > 1:
                values = values + random.normal(0, truth.pretraining_noise, 1 if shared else truth.seeds)
            if truth.test_examples is not None:
                values = np.round(values / 100 * truth.test_examples) / truth.test_examples * 100
            for seed, value in enumerate(values):
                stages = {f"{row}/{task}/{seed}"}
                if number > 1:
                    stages.add(f"{row}/{task}/pretraining" + ("" if shared else str(seed)))
                runs.append(Run(row, task, seed, float(value), frozenset(stages)))
    return RunTable(truth.rows, tuple(map(Column, tasks)), tuple(range(truth.seeds)), tuple(runs))


Rates = dict[str, float]

WRONG_BOLD, NEXT_BEST = "wrong bold", "wrong, next best only"
RIGHT_BOLD, NEXT_BEST_RIGHT = "right bold", "right, next best only"
COVERAGE, CONDITIONAL_COVERAGE = "coverage", "coverage if conditional"
COVERAGE_OVER_TASKS = "coverage over tasks"
FALSE_P, ANY_FALSE_P, POWER = "false p", "any false p in a grid", "p at +1"
FALSELY_SURE, SURE = "false P > 0.95", "P > 0.95 at +1"
NAMES = (
    WRONG_BOLD,
    NEXT_BEST,
    COVERAGE,
    CONDITIONAL_COVERAGE,
    COVERAGE_OVER_TASKS,
    FALSE_P,
    ANY_FALSE_P,
    FALSELY_SURE,
    RIGHT_BOLD,
    NEXT_BEST_RIGHT,
    POWER,
    SURE,
)


def measure(truth: Truth, grids: int, draws: int = DRAWS, seed: int = 0) -> Rates:
    """How often each kind of statement is made, and holds, in percent."""
    random = np.random.default_rng(seed)
    events: dict[str, list[bool]] = defaultdict(list)
    for _ in range(grids):
        for name, happened in statements(draw(truth, random), truth, draws):
            events[name].append(happened)
    return {name: 100 * float(np.mean(happened)) for name, happened in events.items()}


def statements(table: RunTable, truth: Truth, draws: int) -> Iterator[tuple[str, bool]]:
    """What a table says, as pairs of a name and whether it happened."""
    effects = dict(zip(truth.rows, truth.effects, strict=True))
    best_rows = [row for row, effect in effects.items() if effect == max(effects.values())]
    for column in table.columns:
        bold, by_next = table.best(column.task), next_best_bold(table, column.task)
        # Where several rows are best, each bold is wrong: it says that one is better than all others.
        if len(best_rows) == 1:
            yield RIGHT_BOLD, bold == best_rows[0]
            yield NEXT_BEST_RIGHT, by_next == best_rows[0]
        yield WRONG_BOLD, bold is not None and [bold] != best_rows
        yield NEXT_BEST, by_next is not None and [by_next] != best_rows
        for row in truth.rows[1:]:
            difference = table.difference(row, REFERENCE, column.task)
            if difference.low is not None and difference.high is not None:
                covered = difference.low <= effects[row] - effects[REFERENCE] <= difference.high
                yield CONDITIONAL_COVERAGE if difference.conditional else COVERAGE, covered
    false_positives = []
    for result in table.over_tasks(REFERENCE, draws=draws):
        effect = effects[result.row] - effects[REFERENCE]
        if result.p is not None and result.low is not None and result.high is not None:
            yield COVERAGE_OVER_TASKS, result.low <= effect <= result.high
            yield POWER if effect else FALSE_P, result.p <= 0.05
            false_positives.append(effect == 0 and result.p <= 0.05)
        if result.better is not None and result.worse is not None:
            sure = result.better > 0.95 if effect else max(result.better, result.worse) > 0.95
            yield SURE if effect else FALSELY_SURE, sure
    yield ANY_FALSE_P, any(false_positives)


def next_best_bold(table: RunTable, task: str) -> str | None:
    """The simpler rule for bold, for comparison: the interval against the next best row alone excludes 0."""
    means = {row: mean for row in table.rows if (mean := table.summary(row, task).mean) is not None}
    first, second, *_ = sorted(means, key=lambda row: -means[row])
    return first if table.difference(first, second, task).shows_better else None


def verdicts(difference: float, shared_noise: float, seeds: int, draws: int, seed: int = 0) -> Rates:
    """How often each verdict is given where ours − published is this in truth."""
    random = np.random.default_rng(seed)
    counts: dict[str, int] = defaultdict(int)
    for _ in range(draws):
        ours = difference + random.normal(0, 1, seeds) + random.normal(0, shared_noise)
        theirs = random.normal(0, 1, 5) + random.normal(0, shared_noise)
        mean, std = float(theirs.mean()), float(theirs.std(ddof=1))
        published = PublishedCell("table", "row", "task", mean, std, 5, 2.0, {}, "none", ())
        summary = Summary(seeds, seeds, float(ours.mean()), float(ours.std(ddof=1)))
        counts[compare_with_published(summary, published, {}, "none").kind] += 1
    return {kind: 100 * count / draws for kind, count in counts.items()}


NULL = Truth("no effect")
SHARED = replace(NULL, name="no effect, shared", pretraining="shared")
UNEQUAL = replace(NULL, name="two best, one of them noisy", effects=(-1.0, 0.0, -1.0, 0.0), noise=(0.3, 0.3, 0.3, 5.0))
PLUS_ONE = replace(NULL, name="+1 without pre-training", effects=(0.0, 1.0, 0.0, 0.0))
PLUS_ONE_PRETRAINED = replace(NULL, name="+1 with pre-training", effects=(0.0, 0.0, 0.0, 1.0))
TRUTHS = (
    NULL,
    SHARED,
    replace(NULL, name="no effect, 2 seeds", seeds=2),
    replace(NULL, name="no effect, 3 seeds", seeds=3),
    replace(NULL, name="no effect, 2 seeds, 100 test examples", seeds=2, test_examples=100),
    replace(NULL, name="no effect, 3 seeds, 100 test examples", seeds=3, test_examples=100),
    replace(NULL, name="no effect, heavy tails", heavy_tails=True),
    replace(NULL, name="no effect, unequal noise", noise=(0.3, 0.3, 1.0, 5.0)),
    UNEQUAL,
    replace(SHARED, name="no effect, shared, 3 tasks", tasks=3),
    replace(SHARED, name="no effect, shared, 10 tasks", tasks=10),
    PLUS_ONE,
    replace(PLUS_ONE, name="+1 without pre-training, 3 seeds", seeds=3),
    PLUS_ONE_PRETRAINED,
    replace(PLUS_ONE_PRETRAINED, name="+1 with pre-training, shared", pretraining="shared"),
    replace(PLUS_ONE_PRETRAINED, name="+1 with pre-training, shared, 10 tasks", pretraining="shared", tasks=10),
)


def markdown(names: Sequence[str], rows: Sequence[tuple[str, Rates]]) -> str:
    """A table of rates in percent."""
    cells = [[name, *(f"{rates[key]:.1f}" if key in rates else "–" for key in names)] for name, rates in rows]
    return tabulate(cells, headers=["truth", *names], tablefmt="github", disable_numparse=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grids", type=int, default=400)
    grids = parser.parse_args(arguments).grids
    with ProcessPoolExecutor() as pool:
        rates = pool.map(measure, TRUTHS, repeat(grids), repeat(DRAWS), range(len(TRUTHS)))
        print(markdown(NAMES, list(zip((truth.name for truth in TRUTHS), rates, strict=True))))
    print()
    cases = [
        (
            f"{'shared, ' if noise else ''}{seeds} seeds, {difference:g} points apart",
            verdicts(difference, noise, seeds, 5 * grids),
        )
        for noise in (0.0, 1.0)
        for seeds in (2, 3, 5)
        for difference in (0.0, 1.0, 2.0, 4.0)
    ]
    print(markdown(["reproduced", "undecided", "different"], cases))


if __name__ == "__main__":
    main()
