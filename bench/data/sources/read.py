"""Where the content of a task or corpus comes from, and whether it is all there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from bench.data.content import Content
from bench.data.problems import refuse
from bench.data.public import official
from bench.data.sources import embedded_images, embedded_texts, own
from bench.data.sources.own import fingerprint_of
from bench.data.tasks import Task
from bench.errors import InputError

EMBEDDED: dict[str, Callable[[], Content]] = {
    "digits": embedded_images.digits,
    "photographs": embedded_images.photographs,
    "pydocs": embedded_texts.pydocs,
    "docstrings": embedded_texts.docstrings,
}

DOWNLOADS = "downloads"
"""The folder of the data root that keeps official archives."""


def read(name: str, task: Task | None, root: Path, given: Path | None) -> Content:
    """The content of a task or corpus, checked; see `bench.data.prepare`."""
    if name in EMBEDDED:
        if given is not None:
            raise InputError(f"--from {given}: {name} is built from installed packages and takes no files.")
        return EMBEDDED[name]()
    assert task is not None
    if task.source is not None:
        content = own.read(task, given)
    elif given is not None and (ready := ready_splits(given)) is not None:
        content = own.read(dataclasses.replace(task, source=f"{ready}:{given}"))
    else:
        content = official.build(name, root / DOWNLOADS, given)
    refuse(name, content, official.empty_classes(name, content))
    official.refuse_differences(name, content)
    found = fingerprint_of(task)
    return dataclasses.replace(content, sources=content.sources | ({} if found is None else {"fingerprint": found}))


def ready_splits(given: Path) -> str | None:
    """The kind of source that a folder with a data set's splits is (one file each), None for anything else."""
    if not given.is_dir():
        return None
    return next((kind for kind in ("parquet", "jsonl", "csv") if any(given.glob(f"train*.{kind}"))), None)
