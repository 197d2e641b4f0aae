"""The on-disk form: parquet splits that `datasets` reads, a tokenizer where there is one, the manifest last."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from bench.data import MANIFEST, Manifest, Modality, read_manifest
from bench.data.content import Content, Rows, facts
from bench.errors import InputError
from bench.files import sync

TOKENIZER = "tokenizer.json"
COLUMN: dict[Modality, str] = {"image": "image", "text": "text"}


def publish(name: str, content: Content, root: Path) -> Manifest:
    """Write a data set into a folder beside, then rename it into place; the first complete one wins."""
    root.mkdir(parents=True, exist_ok=True)
    temporary = root / f".{name}.{uuid.uuid4().hex}"
    temporary.mkdir()
    try:
        manifest = _write(name, content, temporary)
        return _move(name, manifest, temporary, root)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_rows(path: Path, modality: Modality) -> Rows:
    """A split as it lies on disk, unchecked; refuses a file that is missing or is no such parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, memory_map=True)
        chunks = table.column(COLUMN[modality]).chunks
        if modality == "image":
            values = [bytes(value) for chunk in chunks for value in chunk.field("bytes").to_pylist()]
        else:
            values = [value.encode() for chunk in chunks for value in chunk.to_pylist()]
        labels = [int(label) for label in table.column("label").to_pylist()] if "label" in table.column_names else None
    except (OSError, KeyError, AttributeError, TypeError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read ({error}). {again(path.parent)}") from error
    return Rows(values=values, labels=labels)


def again(folder: Path) -> str:
    """How to fix a data set that is damaged or has changed."""
    return f"Delete the folder {folder} and prepare {folder.name} again."


def _write(name: str, content: Content, folder: Path) -> Manifest:
    for split, rows in content.splits.items():
        _write_parquet(folder / f"{split}.parquet", content, rows)
    tokenizer_checksum = None
    if content.tokenizer is not None:
        (folder / TOKENIZER).write_bytes(content.tokenizer)
        tokenizer_checksum = hashlib.sha256(content.tokenizer).hexdigest()
    manifest = Manifest(
        name=name,
        modality=content.modality,
        class_names=content.class_names,
        splits={split: facts(content.class_names, rows) for split, rows in content.splits.items()},
        tokenizer_checksum=tokenizer_checksum,
        sources=content.sources,
        vocabulary=content.vocabulary,
    )
    (folder / MANIFEST).write_text(manifest.to_json())
    for path in folder.iterdir():
        sync(path)
    return manifest


def _write_parquet(path: Path, content: Content, rows: Rows) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import ClassLabel, Features, Image, Value

    column = COLUMN[content.modality]
    features: dict[str, Any] = {column: Image() if content.modality == "image" else Value("string")}
    columns: dict[str, list[Any]] = (
        {column: [value.decode() for value in rows.values]}
        if column == "text"
        else {column: [{"bytes": value, "path": None} for value in rows.values]}
    )
    if rows.labels is not None:
        features["label"] = ClassLabel(names=list(content.class_names or ()))
        columns["label"] = list(rows.labels)
    pq.write_table(pa.table(columns, schema=Features(features).arrow_schema), path)


def _move(name: str, manifest: Manifest, temporary: Path, root: Path) -> Manifest:
    folder = root / name
    try:
        os.rename(temporary, folder)
    except OSError:
        # Either another process was first, or an earlier attempt left a folder without a manifest.
        if not folder.is_dir():
            raise
        existing = read_manifest(name, root)
        if existing is not None:
            return existing
        files = sorted(temporary.iterdir(), key=lambda path: path.name == MANIFEST)
        for path in files:
            os.replace(path, folder / path.name)
    sync(root)
    return manifest
