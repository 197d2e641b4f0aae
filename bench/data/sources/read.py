"""Where the content of a task or corpus comes from, and whether it is all there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from bench.data.content import Content
from bench.data.image_notes import image_notes
from bench.data.problems import empty_notes, refuse
from bench.data.public import SOURCES, official
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


def read(name: str, task: Task | None, root: Path, local_copy: Path | None) -> Content:
    """Return the content of a task or corpus, checked.

    See `bench.data.prepare`.
    """
    if name in EMBEDDED:
        if local_copy is not None:
            raise InputError(f"--from {local_copy}: {name} is built from installed packages and takes no files.")
        return EMBEDDED[name]()
    assert task is not None
    before = fingerprint_of(task)
    # In turn: a user's own data (and GLUE), splits of a public task that somebody made files of, its official files.
    if task.source is not None:
        content = own.read(task, local_copy)
    elif local_copy is not None and (ready := ready_splits(local_copy)) is not None:
        content = own.read(dataclasses.replace(task, source=f"{ready}:{local_copy}"))
    else:
        content = official.build(name, root / DOWNLOADS, local_copy)
    refuse(name, content, official.empty_classes(name, content), task.most_megapixels)
    official.refuse_differences(name, content)
    if fingerprint_of(task) != before:
        raise InputError(f"{task.source} changed while it was read: prepare {name} again when nobody writes there.")
    sources = content.sources | ({} if before is None else {"fingerprint": before})
    empty = () if name in SOURCES else empty_notes(content)
    notes = (*content.notes, *empty, *(image_notes(content) if content.modality == "image" else ()))
    return dataclasses.replace(content, sources=sources, notes=notes)


def ready_splits(folder: Path) -> str | None:
    """Return the kind of files that a folder of splits holds.

    There is one file for each split, or shards; None for anything else.
    """
    if not folder.is_dir():
        return None
    return next((kind for kind in ("parquet", "jsonl", "csv") if any(folder.glob(f"train*.{kind}"))), None)
