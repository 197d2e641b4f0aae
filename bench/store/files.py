"""Writing files so that no reader ever sees half of one: temp file in the same folder, fsync, rename."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from bench.errors import DamagedStore, InputError, SpecError
from bench.store.shape import shaped

T = TypeVar("T")
R = TypeVar("R")
THREADS = 8
"""How many files are read at a time."""
PROBED, PATIENCE_SECONDS = 8, 0.0005
"""How many files tell whether the disk is slow, and how long each may be waited for."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` and rename it over `path`.

    The rename is durable and happens when the block ends well; else the temporary file is removed.
    """
    # A reader sees the old file or the new one: a rename is atomic. The first sync puts the content on disk before the
    # name points to it, the second the name itself; without them a power cut can leave an empty file.
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


MANIFEST = "manifest.json"
"""The file that makes a prepared folder complete."""

PREPARED = frozenset({MANIFEST, "arrays", "tokenizer.json", "weights.safetensors"})
LEFTOVER_SECONDS = 24 * 3600.0


@contextlib.contextmanager
def building(folder: Path, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `folder` and rename it to `folder`.

    The rename, whole and durable, happens when the block ends well; else the temporary folder is removed.

    Of several processes the first complete one wins, unless `replace`: then the old folder goes once the new one is
    complete. Refuses a folder that holds anything but what was prepared there.
    """
    # What is not the suite's is never removed: a mistyped data root could otherwise cost somebody's files.
    foreign = [entry for entry in folder.iterdir() if not _is_prepared(entry)] if folder.is_dir() else []
    if foreign or folder.is_file():
        raise InputError(
            f"{folder} holds {foreign[0].name if foreign else 'no folder'}, which was not prepared there. Name another "
            "data root, or move it away."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    for leftover in folder.parent.glob(f".{folder.name}.*"):  # of processes that were killed
        if time.time() - leftover.stat().st_mtime > LEFTOVER_SECONDS:
            shutil.rmtree(leftover, ignore_errors=True)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    temporary.mkdir()
    try:
        yield temporary
        for path in temporary.iterdir():
            sync(path)
        _rename_folder(temporary, folder, replace)
        sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_prepared(entry: Path) -> bool:
    return entry.name in PREPARED or entry.suffix == ".parquet"


def _rename_folder(temporary: Path, folder: Path, replace: bool) -> None:
    # A folder cannot be renamed over one that has entries: what is there moves aside first. Between the two renames
    # there is none, which readers take for "not prepared"; another process may put its own there, and that one stays.
    if (folder / MANIFEST).is_file() and not replace:
        return
    old = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    with contextlib.suppress(FileNotFoundError):
        os.rename(folder, old)
    try:
        os.rename(temporary, folder)
    except OSError:
        if not (folder / MANIFEST).is_file():  # else another process was faster
            raise
    shutil.rmtree(old, ignore_errors=True)


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(data, indent=1, sort_keys=True, allow_nan=False) + "\n")


def create_json(path: Path, data: Any) -> bool:
    """Write a JSON file unless there is one; tell whether it wrote.

    Of several processes that try at once exactly one gets True.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")
    try:
        temporary.write_text(json.dumps(data, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")
        sync(temporary)
        os.link(temporary, path)  # unlike O_EXCL, also atomic in content, and on NFS
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)
    return True


def read_json(path: Path, fix: str, shape: Any = dict[str, Any]) -> dict[str, Any]:
    """Read the object in a JSON file, and check its shape.

    Raises DamagedStore, naming the file and `fix`, where it holds none or one of another shape (`bench.store.shape`).
    """
    try:
        data: dict[str, Any] = parse_json(path.read_bytes())
        shaped(data, shape)
    except (OSError, ValueError, RecursionError, SpecError) as error:
        raise DamagedStore(f"{path}: damaged or unreadable ({error}). {fix}") from error
    return data


def parse_json(text: bytes) -> Any:
    r"""Parse JSON. Refuses texts with half a character, such as "\ud800", which no file or terminal could hold."""
    data = json.loads(text.decode())
    if rb"\u" in text:
        json.dumps(data, ensure_ascii=False).encode()
    return data


def in_threads(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Apply a function that waits for the disk to many items, several at a time.

    Results, and the first error, are those of a loop. Where the first items did not wait, a loop it is: threads that
    only compute hinder each other.
    """
    # A network file system answers late, but several at once; a local one has most files in memory. Each thread gets a
    # run of neighbours, as handing over items costs time, too: with 8 threads 20 items are 6 runs of 3 and one of 2.
    first, rest = items[:PROBED], items[PROBED:]
    began, computed = time.perf_counter(), time.thread_time()
    results = [function(item) for item in first]
    waited = (time.perf_counter() - began) - (time.thread_time() - computed)
    if waited < PATIENCE_SECONDS * len(first):
        return results + [function(item) for item in rest]
    size = math.ceil(len(rest) / THREADS) or 1
    runs = [rest[start : start + size] for start in range(0, len(rest), size)]
    with ThreadPoolExecutor(THREADS) as pool:
        of_runs = pool.map(lambda run: [function(item) for item in run], runs)
        return results + list(itertools.chain.from_iterable(of_runs))


def sha256(path: Path) -> str:
    """Compute the sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(data: Any) -> str:
    """Compute the sha256 of JSON data in canonical form, in hex."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
