"""The table of metrics: every legal name is in it, and entries of records are read back."""

from typing import get_args

import pytest

from bench.data.metrics import METRICS, MetricName, describe, entry_name, in_split, metric_of


def test_every_legal_name_is_declared() -> None:
    assert set(get_args(MetricName)) == METRICS.keys()
    assert {name for name, metric in METRICS.items() if metric.better == "lower"} == {"loss"}


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("positive_class", [None, "yes", "a/b", "x]", "[", "two\nlines"])
@pytest.mark.parametrize("split", [None, "mismatched"])
def test_an_entry_is_read_back(name: MetricName, positive_class: str | None, split: str | None) -> None:
    entry = in_split(entry_name(name, positive_class), split)
    assert metric_of(entry) is METRICS[name]
    assert describe(entry).startswith(METRICS[name].title)
    assert positive_class is None or describe(entry).endswith(positive_class)


def test_the_direction_decides_what_is_better() -> None:
    assert METRICS["accuracy"].merit(0.9) > METRICS["accuracy"].merit(0.8)
    assert METRICS["loss"].merit(0.8) > METRICS["loss"].merit(0.9)
