"""The on-disk form: parquet splits that `datasets` reads, a tokenizer where there is one, the manifest last."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.data.content import Content, Rows, facts
from bench.data.manifest import Manifest, read_manifest
from bench.data.problems import duplicates
from bench.data.task_spec import Modality
from bench.errors import InputError
from bench.store.files import building
from bench.store.manifest import prepare_again, write_manifest

TOKENIZER = "tokenizer.json"
COLUMN: dict[Modality, str] = {"image": "image", "text": "text"}
PAIR = "text_pair"

BATCH_ROWS = 1000
BATCH_BYTES = 2**28
"""What is written at once, one row group each: a parquet reader's arrays of bytes overflow at 2 GB."""


def publish(name: str, content: Content, root: Path, again: bool = False) -> Manifest:
    """Write a data set into its folder, all at once.

    It is written into a folder beside, which is then renamed; the first complete one wins, unless `again`.
    """
    with building(root / name, replace=again) as temporary:
        _write(name, content, temporary)
    # Read back, not made from `content`: where another process was faster, what lies there is that one's.
    manifest = read_manifest(name, root)
    assert manifest is not None  # just written, by this process or a faster one
    return manifest


def read_rows(path: Path, modality: Modality) -> Rows:
    """Read a split as it lies on disk, unchecked. Refuses a file that is missing or is no such parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    values: list[bytes] = []
    labels: list[int] = []
    pairs: list[bytes] = []
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            names = file.schema_arrow.names
            # Row groups are small where they have to be: one array of encoded images above 2 GB would overflow.
            for group in range(file.num_row_groups):
                table = file.read_row_group(group)
                if modality == "image":
                    # `datasets` stores an image as a pair of bytes and path, of which the path is None here.
                    chunks = table.column(COLUMN[modality]).chunks
                    values += [bytes(value) for chunk in chunks for value in chunk.field("bytes").to_pylist()]
                else:
                    values += [value.encode() for value in table.column(COLUMN[modality]).to_pylist()]
                if "label" in names:
                    labels += [int(label) for label in table.column("label").to_pylist()]
                if PAIR in names:
                    pairs += [value.encode() for value in table.column(PAIR).to_pylist()]
        if COLUMN[modality] not in names:
            raise KeyError(f"no column {COLUMN[modality]!r}")
    except (OSError, KeyError, AttributeError, TypeError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read ({error}). {prepare_again(path.parent)}") from error
    return Rows(values=values, labels=labels if "label" in names else None, pairs=pairs if PAIR in names else None)


def read(manifest: Manifest, root: Path) -> Content:
    """Read a prepared data set as it lies on disk, unchecked."""
    folder = root / manifest.name
    return Content(
        modality=manifest.modality,
        class_names=manifest.class_names,
        splits={split: read_rows(folder / f"{split}.parquet", manifest.modality) for split in manifest.splits},
        sources=manifest.sources,
    )


def _write(name: str, content: Content, folder: Path) -> None:
    for split, rows in content.splits.items():
        _write_parquet(folder / f"{split}.parquet", content, rows)
    tokenizer_checksum = None
    if content.tokenizer is not None:
        (folder / TOKENIZER).write_bytes(content.tokenizer)
        tokenizer_checksum = hashlib.sha256(content.tokenizer).hexdigest()
    # Written last: a folder without a manifest is not prepared, whatever else it holds.
    manifest = Manifest(
        name=name,
        modality=content.modality,
        class_names=content.class_names,
        splits={split: facts(content.class_names, rows) for split, rows in content.splits.items()},
        tokenizer_checksum=tokenizer_checksum,
        sources=content.sources,
        vocabulary=content.vocabulary,
        notes=content.notes,
        overlap={f"{second} in {first}": count for (first, second), count in duplicates(content).items()},
    )
    write_manifest(folder, manifest)


def _write_parquet(path: Path, content: Content, rows: Rows) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import ClassLabel, Features, Image, Value

    column = COLUMN[content.modality]
    features: dict[str, Any] = {column: Image() if content.modality == "image" else Value("string")}
    if rows.pairs is not None:
        features[PAIR] = Value("string")
    if rows.labels is not None:
        features["label"] = ClassLabel(names=list(content.class_names or ()))
    # By way of `datasets`, which notes its features in the schema: so it reads the files as images and class labels.
    schema = Features(features).arrow_schema
    with pq.ParquetWriter(path, schema) as writer:
        for start, stop in _batches(rows):
            values = rows.values[start:stop]
            columns: dict[str, list[Any]] = {
                column: [value.decode() for value in values]
                if column == "text"
                else [{"bytes": value, "path": None} for value in values]
            }
            if rows.pairs is not None:
                columns[PAIR] = [value.decode() for value in rows.pairs[start:stop]]
            if rows.labels is not None:
                columns["label"] = rows.labels[start:stop]
            writer.write_table(pa.table(columns, schema=schema))


def _batches(rows: Rows) -> Iterator[tuple[int, int]]:
    """Cut a split into ranges of rows to write at once.

    None is above `BATCH_ROWS` or, unless it has one row, `BATCH_BYTES`.
    """
    # A row is counted before it is added, so that a group ends in time. Example: with at most 1000 rows, 2500 short
    # texts are cut into (0, 1000), (1000, 2000) and (2000, 2500). One image above BATCH_BYTES is a group of its own.
    start = size = 0
    for i, value in enumerate(rows.values):
        length = len(value) + (0 if rows.pairs is None else len(rows.pairs[i]))
        if i - start == BATCH_ROWS or (i > start and size + length > BATCH_BYTES):
            yield start, i
            start, size = i, 0
        size += length
    if start < len(rows.values):
        yield start, len(rows.values)
