"""Paired differences to the reference row."""

import pytest

from bench.report.differences import ShownDifference, differences
from bench.tables.records import RecordsFile
from tests.report.sample import grid_facts, records_of


def content(values: dict[tuple[str, int], float], metric: str = "accuracy") -> RecordsFile:
    """A grid of one task, from the value of each row and seed."""
    rows = list(dict.fromkeys(row for row, _ in values))
    cells = [records_of(row, "task", seed, value, metric)[0] for (row, seed), value in values.items()]
    grid = grid_facts(rows, ["task"], sorted({seed for _, seed in values}), metrics={"task": metric})
    return RecordsFile(grid, {(cell["key"], cell["cell"]): cell for cell in cells}, {})


def test_only_seeds_that_both_rows_have_count() -> None:
    values = {("a", 0): 0.91, ("a", 1): 0.90, ("a", 2): 0.95, ("b", 0): 0.90, ("b", 1): 0.92, ("b", 3): 0.1}
    (difference,) = differences(content(values))
    assert (difference.row, difference.task, difference.pairs) == ("b", "task", 2)
    assert difference.mean == pytest.approx(0.5)
    assert difference.merit == pytest.approx(0.5)


def test_without_a_common_seed_there_is_no_difference() -> None:
    assert differences(content({("a", 0): 0.9, ("b", 1): 0.8})) == [ShownDifference("b", "task", 0, None, None)]


def test_where_less_is_better_a_lower_value_has_merit() -> None:
    (difference,) = differences(content({("a", 0): 0.9, ("b", 0): 0.5}, "loss"))
    assert difference.mean == pytest.approx(-0.4)  # not in percent
    assert difference.merit == pytest.approx(0.4)
