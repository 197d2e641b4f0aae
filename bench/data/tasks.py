"""Tasks and corpora: which there are, what is on disk, how to prepare and open them.

Planning imports this module, so nothing here imports an array or tensor library before data are built or opened.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

from bench.specs import Spec

Modality = Literal["image", "text"]
Training = Literal["train", "train+validation"]


@dataclass(frozen=True)
class Task(Spec):
    """A labelled classification data set with fixed splits; `backbone` names its default one.

    `training` says what final runs train on; where that takes in the validation split, a search still fits on the
    training split alone. `source` is where a user's own data come from: `folder:`, `parquet:`, `jsonl:` or `csv:` and a
    path, or `hub:OWNER/NAME@REVISION`, with `configuration` for one of several. It is read by its columns: the labels',
    and that of the images, or of the texts and, for pairs, the second texts.
    """

    UNBOUND: ClassVar[tuple[str, ...]] = ("name",)

    name: str
    modality: Literal["image", "text"]
    backbone: str
    metric: Literal["accuracy", "macro_f1", "micro_f1"]
    training: Literal["train", "train+validation"] = "train"
    source: str | None = None
    configuration: str | None = None
    image_column: str = "image"
    text_column: str = "text"
    pair_column: str | None = None
    label_column: str = "label"


def _images(name: str, backbone: str = "vit_mae_base", training: Training = "train") -> Task:
    return Task(name=name, modality="image", backbone=backbone, metric="accuracy", training=training)


def _texts(
    name: str, metric: Literal["accuracy", "macro_f1", "micro_f1"] = "accuracy", backbone: str = "roberta_base"
) -> Task:
    return Task(name=name, modality="text", backbone=backbone, metric=metric)


def _glue(name: str, text: str, pair: str | None = None) -> Task:
    """A classification task of GLUE; its labelled validation set is the test split (see sources/own.py)."""
    return dataclasses.replace(_texts(name), source=GLUE, configuration=name, text_column=text, pair_column=pair)


GLUE = "hub:nyu-mll/glue@bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _images("digits", "photos_mae"),
        _texts("pydocs", backbone="docs_mlm"),
        # Lee et al. 2023: Table 1 and Figure 3, then Table 2 with its metrics. Their Table 7 counts training examples:
        # where a validation split is official, they train on both.
        *map(_images, ("cub", "chest_xray", "dtd_75_25", "dogs", "cifar100")),
        *(_images(name, training="train+validation") for name in ("aircraft", "dtd", "flower")),
        *(_texts(name, "macro_f1") for name in ("scierc", "acl_arc", "twitter_emotion")),
        _texts("chemprot", "micro_f1"),
        # GLUE. Usual for cola is Matthews' correlation, for mrpc and qqp also F1; here all are judged by accuracy.
        _glue("cola", "sentence"),
        _glue("sst2", "sentence"),
        _glue("mrpc", "sentence1", "sentence2"),
        _glue("qqp", "question1", "question2"),
        _glue("mnli", "premise", "hypothesis"),
        _glue("qnli", "question", "sentence"),
        _glue("rte", "sentence1", "sentence2"),
        _glue("wnli", "sentence1", "sentence2"),
    )
}

CORPORA: dict[str, Modality] = {"photographs": "image", "docstrings": "text"}
"""Unlabelled data on which the suite pre-trains its own small backbones."""

EMBEDDED = ("digits", "pydocs", *CORPORA)
"""What can be built from the packages at hand, without a download."""
