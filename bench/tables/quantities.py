"""What tables and figures show of a cell: its task's metric, or another number that its record holds.

Each quantity is declared here once: what it is called, its unit, which direction is better, how it is printed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from bench.data.metrics import METRICS, Direction, describe, in_split, metric_of, split_of
from bench.errors import InputError
from bench.tables.grid_facts import GridFacts
from bench.tables.records import Record

Reader = Callable[[Record, str | None], Any]
"""Reads a number of a record, as it is there; the second argument is the further split that its column shows."""


class NothingToShow(InputError):
    """The data have no such table or figure; the message says why."""


@dataclass(frozen=True)
class Quantity:
    """A number of each cell.

    `better` is None where neither direction is the better one: such a table has no bold, no ranks and no verdicts of
    better or worse. What records hold is multiplied by `scale`; tables print `decimals` of it.
    """

    title: str
    read: Reader
    unit: str
    better: Direction | None = None
    decimals: int = 2
    scale: float = 1
    explanation: str = ""
    split: str | None = None
    """The further split that its column shows; None for the one that a stage's own number comes from."""

    @property
    def label(self) -> str:
        """Name the values, with their unit."""
        return f"{self.title} ({self.unit}{', lower is better' if self.better == 'lower' else ''})"

    def value(self, record: Record) -> float | None:
        """Return a cell's value as it is shown, or None."""
        number = self.read(record, self.split)
        return self.scale * number if _is_number(number) else None


# ------------------------------------------------------------------------------------------------ readers


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _metric(name: str) -> Reader:
    return lambda record, split: record["metrics"].get(in_split(name, split))


def _measured(name: str) -> Reader:
    return lambda record, split: record.get("measured", {}).get(name)


def _log_train_loss(record: Record, split: str | None) -> float | None:
    """Read the logarithm of the train cross-entropy: -inf for 0, NaN for what has none."""
    loss = _measured("train_loss")(record, split)
    if not _is_number(loss):
        return None
    if loss > 0:
        return math.log(loss)
    return -math.inf if loss == 0 else math.nan


def _generalisation_gap(record: Record, split: str | None) -> Any:
    """Read the gap on the split that a column shows.

    Records hold the one on a stage's own test split; that on a further one is computed from its cross-entropy.
    """
    if split is None:
        return _measured("generalisation_gap")(record, split)
    test_loss, train_loss = _metric("loss")(record, split), _measured("train_loss")(record, split)
    return test_loss - train_loss if _is_number(test_loss) and _is_number(train_loss) else None


# ------------------------------------------------------------------------------------------------ quantities


def _of_metric(entry: str, read: Reader) -> Quantity:
    metric = metric_of(entry)
    return Quantity(describe(entry), read, metric.unit or "nats", metric.better, scale=metric.scale)


QUANTITIES: dict[str, Quantity] = {
    "train_loss": Quantity(
        "train cross-entropy",
        _measured("train_loss"),
        "nats",
        decimals=4,
        explanation="It is measured on the training examples after training ended, without dropout.",
    ),
    "log_train_loss": Quantity(
        "log of the train cross-entropy",
        _log_train_loss,
        "log nats",
        explanation="The logarithm is the natural one, of each seed's cross-entropy (Table 4 of Lee et al. 2023).",
    ),
    # Neither a small gap nor a small distance is good as such: a network that learns nothing has both.
    "generalisation_gap": Quantity(
        "generalisation gap",
        _generalisation_gap,
        "nats",
        decimals=3,
        explanation="The gap is the cross-entropy on test less that on training data.",
    ),
    "encoder_distance": Quantity(
        "encoder distance",
        _measured("encoder_distance"),
        "no unit",
        explanation="The distance is ‖θ − θ_init‖₂ over all encoder parameters.",
    ),
    "encoder_distance_without_positions": Quantity(
        "encoder distance without position embeddings",
        _measured("encoder_distance_without_positions"),
        "no unit",
        explanation="The distance is ‖θ − θ_init‖₂ over all encoder parameters but position embeddings.",
    ),
    "seconds": Quantity(
        "time of the cell's own stage",
        lambda record, split: record.get("seconds"),
        "seconds",
        "lower",
        explanation="Time is that of training and evaluation on the machine named below; of training alone in records "
        "without `evaluation_seconds`, which are older.",
    ),
    "seconds_with_parents": Quantity(
        "time of all stages behind a cell",
        lambda record, split: record.get("seconds_with_parents"),
        "seconds",
        "lower",
        explanation="Stages that cells share count in each of them.",
    ),
    "examples_per_second": Quantity(
        "training examples per second", _measured("examples_per_second"), "1/s", "higher", decimals=1
    ),
    "peak_memory_bytes": Quantity("peak memory", _measured("peak_memory_bytes"), "MB", "lower", decimals=1, scale=1e-6),
    # F1 of one class needs that class; TASK/task.metric asks for it.
    **{name: _of_metric(name, _metric(name)) for name, metric in METRICS.items() if not metric.needs_positive_class},
}
"""What --measure shows, by the name that it takes."""


def task_metric(entry: str) -> Quantity:
    """Return the metric that a column is judged by."""
    return _of_metric(entry, lambda record, split: record["value"])


def by_column(facts: GridFacts, name: str | None = None) -> dict[str, Quantity]:
    """Return what each column shows.

    It is the quantity of this name; without a name, the column's own metric.
    """
    return {
        task: replace(QUANTITIES[name], split=split_of(metric)) if name else task_metric(metric)
        for task, metric in facts.metrics.items()
    }
