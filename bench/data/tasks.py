"""Tasks and corpora: which there are, and which of them come with the installed packages.

Planning imports this module, so nothing here imports an array or tensor library before data are built or opened.
"""

from __future__ import annotations

from bench.data.public import SOURCES
from bench.data.task_spec import Modality, Task

__all__ = ["CORPORA", "EMBEDDED", "TASKS", "Modality", "Task"]

DIGITS = Task(name="digits", modality="image", backbone="photos_mae", metric="accuracy")
PYDOCS = Task(name="pydocs", modality="text", backbone="docs_mlm", metric="accuracy")

TASKS = {task.name: task for task in (DIGITS, PYDOCS, *(source.task for source in SOURCES.values()))}

CORPORA: dict[str, Modality] = {"photographs": "image", "docstrings": "text"}
"""Unlabelled data on which the suite pre-trains its own small backbones."""

EMBEDDED = ("digits", "pydocs", *CORPORA)
"""What can be built from the packages at hand, without a download."""
