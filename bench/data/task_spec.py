"""What a task is; `bench.data.tasks` lists those there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from bench.data.metrics import MetricName
from bench.specs import Spec

Modality = Literal["image", "text"]


@dataclass(frozen=True)
class Task(Spec):
    """A labelled classification data set with fixed splits.

    `backbone` names its default one. `metric` is what tables show and searches choose by; `positive_class` is, of two
    classes, the one that `binary_f1` is about. `training` says what final runs train on; where that takes in the
    validation split, a search still fits on the training split alone. `source` is where a user's own data come from:
    `folder:`, `parquet:`, `jsonl:` or `csv:` and a path, or `hub:OWNER/NAME@REVISION`, with `configuration` for one of
    several. It is read by its columns: the labels', and that of the images, or of the texts and, for pairs, the second
    texts.
    """

    UNBOUND: ClassVar[tuple[str, ...]] = ("name",)

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
