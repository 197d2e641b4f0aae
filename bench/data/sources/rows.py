"""The rows of a user's own data as all readers give them, the columns they are read from, and their splits."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from bench.data.tasks import Modality, Task
from bench.data.visible import visible
from bench.errors import InputError

SPLIT_NAMES = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation"} | {
    "dev": "validation",
    "test": "test",
    "training": "train",
    "testing": "test",
}
"""What folders and files may be called -> the split that they are."""


class Row(NamedTuple):
    """One example of the user's.

    It holds where the example lies in its source, its content, its second text if texts come in pairs, and its label.
    """

    where: str
    value: bytes
    pair: bytes | None
    label: Any


@dataclass
class Table:
    """The rows of one file, class folder or split on the hub.

    `names` are those of a ClassLabel, None where the source declares no classes.
    """

    origin: str
    rows: list[Row]
    names: tuple[str, ...] | None = None


Tables = dict[str, list[Table]]


def row(task: Task, where: str, record: Mapping[str, Any]) -> Row:
    """Take an example out of a record, its contents encoded.

    `where` names the record in messages. Refuses a record that is no example. With the columns premise, hypothesis and
    label of a task:

        {"idx": 7, "premise": "It rains.", "hypothesis": "It is wet.", "label": 0}
        Row("train.jsonl, line 8", b"It rains.", b"It is wet.", 0)
    """
    value, pair, label = columns_of(task)
    encode = _image if task.modality == "image" else _text
    try:
        first = encode(record[value])
        second = None if pair is None else _text(record[pair])
        return Row(where, first, second, _label(record[label]))
    except (OSError, ValueError) as error:
        raise InputError(f"{where}: {error}.") from error


def _image(value: Any) -> bytes:
    # Encoded bytes, or what `datasets` stores in their stead: {"bytes": b"…", "path": "a.png"}. Where bytes are None,
    # the path leads to them.
    content = value
    if isinstance(value, dict):
        content, path = value.get("bytes"), value.get("path")
        if content is None and path and Path(path).is_absolute():
            content = Path(path).read_bytes()
    if not isinstance(content, bytes):
        raise ValueError(f"no encoded image ({shown(value)})")
    if not content:
        raise ValueError("the image is empty (0 bytes)")
    return content


def _text(value: Any) -> bytes:
    if not isinstance(value, str):
        raise ValueError(f"no text ({shown(value)})")
    return value.encode()


def _label(value: Any) -> str | int | None:
    if isinstance(value, bool) or not (value is None or isinstance(value, str | int)):
        real = "; a regression on real numbers is not supported" if isinstance(value, float) else ""
        raise ValueError(f"the label {shown(value)} is neither a string nor a whole number; write it as a string{real}")
    if isinstance(value, str):
        value.encode()
        if not visible(value):
            raise ValueError("the label is empty")
    return value


def shown(value: Any) -> str:
    """Write a value for a message, shortened."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def columns_of(task: Task) -> tuple[str, str | None, str]:
    """Return the columns of the content, the second text of a pair, and the label."""
    value = task.image_column if task.modality == "image" else task.text_column
    return value, task.pair_column, task.label_column


def check_columns(task: Task, columns: Collection[str], where: str) -> None:
    """Refuse a source without the columns that a task is read from."""
    value, pair, label = columns_of(task)
    # A file of texts in which a task of images finds no `image` but a `text` column has another modality: that is said,
    # and not that a column is missing.
    other = task.text_column if task.modality == "image" else task.image_column
    if value not in columns and other in columns:
        raise other_modality(task, where)
    bound = {f"{task.modality}_column": value, "pair_column": pair, "label_column": label}
    missing = {name: column for name, column in bound.items() if column is not None and column not in columns}
    if missing:
        fixes = ", ".join(f"{task.name}/task.{name}" for name in missing)
        alike = [column for column in columns if visible(column) in map(visible, missing.values())]
        cause = f" {', '.join(map(ascii, alike))} differs only in white space or invisible characters." if alike else ""
        raise InputError(
            f"{where}: no column {', '.join(map(repr, missing.values()))}; "
            f"there are {', '.join(map(repr, columns)) or 'none'}.{cause} Bind {fixes} to one of them."
        )


def with_modality(task: Task, columns: Collection[str], where: str) -> Task:
    """Give a task the modality that the columns of its data tell.

    One that a gin file binds stays as it is. Refuses data with a column of images and one of texts: which is meant?
    """
    by_column: dict[str, Modality] = {task.image_column: "image", task.text_column: "text"}
    modalities = [modality for column, modality in by_column.items() if column in columns]
    if task.modality_bound or not modalities:
        return task
    if len(modalities) > 1:
        raise InputError(
            f"{where} has a column of images, {task.image_column!r}, and one of texts, {task.text_column!r}: "
            f"bind {task.name}/task.modality = 'image' or 'text'."
        )
    return replace(task, modality=modalities[0])


def other_modality(task: Task, where: str) -> InputError:
    """Make the error for data of the other modality."""
    other = "text" if task.modality == "image" else "image"
    return InputError(
        f"{where} holds {other}s, but {task.name} is declared as {task.modality}s: "
        f"bind {task.name}/task.modality = '{other}'."
    )


def by_split(task: Task, path: Path, parts: list[tuple[str, list[Path]]]) -> dict[str, list[Path]]:
    """Group folders or files by the split that their name means.

    Refuses two of one split, and a source without a training split.
    """
    grouped: dict[str, list[Path]] = {}
    for name, entries in parts:
        split = split_of(name)
        assert split is not None
        if split in grouped:
            raise InputError(f"{grouped[split][0]} and {entries[0]} are both the {split} split: keep one of them.")
        grouped[split] = entries
    if "train" not in grouped:
        raise InputError(f"{path} has no training split for {task.name}: name a part of it 'train'.")
    return grouped


def split_of(name: str) -> str | None:
    """Return the split that the name of a folder or file means."""
    return SPLIT_NAMES.get(name.lower())
