"""GLUE (Wang et al. 2019): eight classification tasks on English sentences and pairs of them.

The labels of GLUE's test sets are hidden: the public validation set is the test split (mnli: the matched one). The data
are read from the Hugging Face hub as a user's own data are (bench/data/sources/own.py), so there are no files here.
Usual for cola is Matthews' correlation, for mrpc and qqp also F1; here all are judged by accuracy.
"""

from __future__ import annotations

from bench.data.public.declare import Counts, Source, Task

HUB = "hub:nyu-mll/glue@bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"


def _source(name: str, train: int, test: int, text: str, pair: str | None = None, classes: int = 2) -> Source:
    """Declare one task of GLUE.

    `train` and `test` are its numbers of training and validation examples, `text` and `pair` the columns of its
    sentences.
    """
    return Source(
        task=Task(
            name=name,
            modality="text",
            backbone="roberta_base",
            metric="accuracy",
            source=HUB,
            configuration=name,
            text_column=text,
            pair_column=pair,
        ),
        counts=(Counts({"train": train, "test": test}, classes),),
        licence="each task's own; see GLUE",
    )


GLUE = (
    _source("cola", 8_551, 1_043, "sentence"),
    _source("sst2", 67_349, 872, "sentence"),
    _source("mrpc", 3_668, 408, "sentence1", "sentence2"),
    _source("qqp", 363_846, 40_430, "question1", "question2"),
    _source("mnli", 392_702, 9_815, "premise", "hypothesis", classes=3),
    _source("qnli", 104_743, 5_463, "question", "sentence"),
    _source("rte", 2_490, 277, "sentence1", "sentence2"),
    _source("wnli", 635, 71, "sentence1", "sentence2"),
)
