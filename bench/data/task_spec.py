"""What a task is; `bench.data.tasks` lists those there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from bench.data.metrics import MetricName
from bench.specs import Spec, added

Modality = Literal["image", "text"]

MOST_MEGAPIXELS = 89.5
"""The largest image that is read unasked, as Pillow has it: a small file may unpack to more than the memory holds."""


@dataclass(frozen=True)
class Task(Spec):
    """A labelled classification data set with fixed splits.

    `backbone` names the default one. `metric` is what tables show and searches choose by; `positive_class` is the one
    of two classes that `binary_f1` is about. `training` says what final runs train on; where that includes the
    validation split, a search still fits on the training split alone. `source` is where a user's own data come from:
    `folder:`, `parquet:`, `jsonl:` or `csv:` and a path, or `hub:OWNER/NAME@REVISION`; `configuration` chooses one of
    several that a data set of the hub has. `label_column` is read with `image_column`, or with `text_column` and, for
    pairs, `pair_column`. `modality_bound` is False where the columns of the data decide the modality. Images of more
    than `most_megapixels` are refused.
    """

    UNBOUND: ClassVar[tuple[str, ...]] = ("name", "modality_bound")

    name: str
    modality: Literal["image", "text"]
    backbone: str
    metric: MetricName
    training: Literal["train", "train+validation"] = "train"
    source: str | None = None
    configuration: str | None = None
    image_column: str = "image"
    text_column: str = "text"
    pair_column: str | None = None
    label_column: str = "label"
    positive_class: str | None = None
    most_megapixels: float = added(MOST_MEGAPIXELS)
    modality_bound: bool = added(True)
