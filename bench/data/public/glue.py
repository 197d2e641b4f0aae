"""GLUE (Wang et al. 2019): eight classification tasks on English sentences and pairs of them.

The labels of GLUE's test sets are hidden: the public validation set is the test split. That of mnli is the matched
one; the mismatched one is a split of its own, on which the same stages are measured, too (the column
`mnli_mismatched`). The data are read from the Hugging Face hub as a user's own data are
(bench/data/sources/own.py), so there are no files here. As in GLUE, cola is judged by Matthews' correlation, mrpc and
qqp by F1 of their positive class (their accuracy is in every record, too), all others by accuracy. stsb, a regression,
is left out.
"""

from __future__ import annotations

from bench.data.metrics import MetricName
from bench.data.public.declare import Counts, Source, Task

HUB = "hub:nyu-mll/glue@bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"


def _source(
    name: str,
    splits: dict[str, int],
    text: str,
    pair: str | None = None,
    classes: int = 2,
    metric: MetricName = "accuracy",
    positive_class: str | None = None,
) -> Source:
    """Declare one task of GLUE.

    `splits` are its numbers of examples, `text` and `pair` the columns of its sentences. F1 judges a task with a
    positive class.
    """
    return Source(
        task=Task(
            name=name,
            modality="text",
            backbone="roberta_base",
            metric=metric if positive_class is None else "binary_f1",
            positive_class=positive_class,
            source=HUB,
            configuration=name,
            text_column=text,
            pair_column=pair,
        ),
        counts=(Counts(splits, classes),),
        licence="each task's own; see GLUE",
    )


GLUE = (
    _source("cola", {"train": 8_551, "test": 1_043}, "sentence", metric="mcc"),
    _source("sst2", {"train": 67_349, "test": 872}, "sentence"),
    _source("mrpc", {"train": 3_668, "test": 408}, "sentence1", "sentence2", positive_class="equivalent"),
    _source("qqp", {"train": 363_846, "test": 40_430}, "question1", "question2", positive_class="duplicate"),
    _source("mnli", {"train": 392_702, "test": 9_815, "mismatched": 9_832}, "premise", "hypothesis", classes=3),
    _source("qnli", {"train": 104_743, "test": 5_463}, "question", "sentence"),
    _source("rte", {"train": 2_490, "test": 277}, "sentence1", "sentence2"),
    _source("wnli", {"train": 635, "test": 71}, "sentence1", "sentence2"),
)
