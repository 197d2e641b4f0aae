"""The metrics that a task can be judged by: what each is called, which direction is better, what it needs.

`bench.training.evaluate` computes them. A record has every metric that is defined on its split, so which one a table
shows can be chosen later.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Direction = Literal["higher", "lower"]
"""Which numbers are the better ones."""
MetricName = Literal[
    "accuracy", "balanced_accuracy", "macro_f1", "micro_f1", "binary_f1", "mcc", "auroc", "loss"
]  # those of METRICS


@dataclass(frozen=True)
class Metric:
    """What tables and searches know of a metric.

    `unit` is '%' where values are fractions, and '' where they are shown as they are.
    """

    title: str
    better: Direction = "higher"
    unit: Literal["%", ""] = "%"
    needs_positive_class: bool = False

    @property
    def scale(self) -> int:
        """The factor between a record's value and a table's."""
        return 100 if self.unit == "%" else 1

    def merit(self, value: float) -> float:
        """Return the value with the sign that makes higher better."""
        return value if self.better == "higher" else -value


METRICS: dict[MetricName, Metric] = {
    "accuracy": Metric("accuracy"),
    "balanced_accuracy": Metric("balanced accuracy"),
    "macro_f1": Metric("macro F1"),
    "micro_f1": Metric("micro F1"),
    "binary_f1": Metric("F1", needs_positive_class=True),
    "mcc": Metric("Matthews correlation"),
    "auroc": Metric("AUROC"),
    "loss": Metric("cross-entropy", better="lower", unit=""),
}


NEED_TWO_CLASSES: frozenset[MetricName] = frozenset({"auroc", "mcc", "binary_f1"})
"""The metrics that say nothing on a split of one class alone.

AUROC is not defined there, Matthews' correlation is 0 whatever is predicted, and so is the F1 of the other class.
"""

NO_ENTRY = (
    "older versions did not measure it, and --again computes the record anew; or it is not defined there, as AUROC "
    "where only one class occurs, and TASK/task.metric takes another"
)
"""Why a record may lack a metric, and what to do."""


def entry_name(metric: str, positive_class: str | None = None) -> str:
    """Return the name under which a record holds a metric.

    F1 of one class is held once for each of the two: `binary_f1[equivalent]`.
    """
    return metric if positive_class is None else f"{metric}[{positive_class}]"


def in_split(entry: str, further_split: str | None) -> str:
    """Return the name of an entry for a further split, such as `mismatched/accuracy`.

    For the split that a stage's own number comes from (None) it has no prefix.
    """
    return entry if further_split is None else f"{further_split}/{entry}"


def metric_of(entry: str) -> Metric:
    """Return the metric that an entry of a record is about."""
    return METRICS[_parts(entry)[0]]


def describe(entry: str) -> str:
    """Put the name of a record's entry into words, such as `F1 of the class equivalent`."""
    name, positive_class, _ = _parts(entry)
    return METRICS[name].title + ("" if positive_class is None else f" of the class {positive_class}")


def split_of(entry: str) -> str | None:
    """Return the further split that an entry is about.

    It is None for the split that a stage's own number comes from.
    """
    return _parts(entry)[2]


def without_split(entry: str) -> str:
    """Return the entry of the same metric without its further split."""
    name, positive_class, _ = _parts(entry)
    return entry_name(name, positive_class)


def _parts(entry: str) -> tuple[MetricName, str | None, str | None]:
    """Split the name of a record's entry into its metric, its class and its further split."""
    # A class may have any name: of "mismatched/binary_f1[a/b]", the first slash ends the split and the first bracket
    # the metric.
    match = re.fullmatch(r"(?:(\w+)/)?(\w+)(?:\[(.*)\])?", entry, re.DOTALL)
    if match is None or match[2] not in METRICS:
        raise KeyError(entry)
    return match[2], match[3], match[1]
