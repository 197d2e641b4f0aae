"""Tables: what a cell says, recomputed independently."""

import math

from bench.tables.statistics import cell_text


def test_mean_and_sample_standard_deviation_in_percent() -> None:
    values = [0.91, 0.93, 0.98]
    mean = sum(values) / 3
    sample = math.sqrt(sum((value - mean) ** 2 for value in values) / 2)  # ddof = 1
    assert cell_text(values, 3) == f"{100 * mean:.2f} ± {100 * sample:.2f} (3)"
    assert cell_text([0.9352, 0.9352], 2) == "93.52 ± 0.00 (2)"


def test_one_value_has_no_spread_and_an_incomplete_cell_says_so() -> None:
    assert cell_text([0.5], 1) == "50.00 (1)"
    assert cell_text([0.5], 3) == "50.00 (1/3)"
    assert cell_text([0.5, 0.7], 5) == "60.00 ± 14.14 (2/5)"
    assert cell_text([], 5) == "– (0/5)"
