"""Tasks and corpora: which there are, and which of them come with the installed packages.

Planning imports this module, so nothing here imports an array or tensor library before data are built or opened.
"""

from __future__ import annotations

from bench.data.public import SOURCES
from bench.data.task_spec import Modality, Task

__all__ = ["CORPORA", "EMBEDDED", "FURTHER_EVALUATIONS", "REFUSED", "TASKS", "Modality", "Task", "trained_task"]

DIGITS = Task(name="digits", modality="image", backbone="photos_mae", metric="accuracy")
PYDOCS = Task(name="pydocs", modality="text", backbone="docs_mlm", metric="accuracy")

TASKS = {task.name: task for task in (DIGITS, PYDOCS, *(source.task for source in SOURCES.values()))}

CORPORA: dict[str, Modality] = {"photographs": "image", "docstrings": "text"}
"""Unlabelled data on which the suite pre-trains its own small backbones."""

EMBEDDED = ("digits", "pydocs", *CORPORA)
"""What can be built from the packages at hand, without a download."""

FURTHER_EVALUATIONS = {"mnli_mismatched": ("mnli", "mismatched")}
"""Columns that show a task's stages on another split than `test`: the task they are trained on, and that split."""

_REGRESSION = "its labels are real numbers (regression), and every task here is a classification"
REFUSED = {"stsb": _REGRESSION, "sts_b": _REGRESSION}
"""Names that somebody may look for, and why there is no such task."""


def trained_task(column: str) -> str:
    """Return the task on which the stages of a table's column are trained."""
    task, _ = FURTHER_EVALUATIONS.get(column, (column, None))
    return task
