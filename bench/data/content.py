"""A data set in memory, between its source and its on-disk form."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from bench.data.manifest import SplitFacts
from bench.data.task_spec import Modality


@dataclass(frozen=True)
class Rows:
    """The examples of one split, in a fixed order.

    They are encoded image bytes or utf-8 text, with labels where there are any. `pairs` holds the second text of each
    example where the task is about pairs of sentences. `locations` says where each lies in its source, for
    messages only.
    """

    values: list[bytes]
    labels: list[int] | None
    pairs: list[bytes] | None = None
    locations: list[str] | None = field(default=None, compare=False)


def joined(parts: Sequence[Rows]) -> Rows:
    """Join the rows of several splits of one data set. They follow one after the other."""
    if len(parts) == 1:
        return parts[0]
    labels = [part.labels for part in parts if part.labels is not None]
    pairs = [part.pairs for part in parts if part.pairs is not None]
    return Rows(
        values=list(chain.from_iterable(part.values for part in parts)),
        labels=list(chain.from_iterable(labels)) if labels else None,
        pairs=list(chain.from_iterable(pairs)) if pairs else None,
    )


@dataclass(frozen=True)
class Content:
    """A whole data set.

    `tokenizer` holds the bytes of a tokenizer.json that travels with it, `vocabulary` its size. `notes` say what of its
    source was not read, and what a person should know of the rest.
    """

    modality: Modality
    class_names: tuple[str, ...] | None
    splits: dict[str, Rows]
    sources: dict[str, str]
    tokenizer: bytes | None = None
    vocabulary: int | None = None
    notes: tuple[str, ...] = ()


def checksum(class_names: Sequence[str] | None, rows: Rows) -> str:
    """Compute the sha256 of class names and rows, in hex.

    They are read in order; every part is preceded by its length (8 bytes). It covers content only, so it does not
    change with the parquet writer.
    """
    # Without the lengths different contents could read alike: the names ["ab", "c"] and ["a", "bc"] are both "abc".
    digest = hashlib.sha256()

    def add(part: bytes) -> None:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)

    names = class_names or ()
    digest.update(len(names).to_bytes(8, "big"))
    for name in names:
        add(name.encode())
    digest.update(len(rows.values).to_bytes(8, "big"))
    for value in rows.values:
        add(value)
    for label in rows.labels or ():
        digest.update(label.to_bytes(8, "big", signed=True))
    for value in rows.pairs or ():
        add(value)
    return digest.hexdigest()


def facts(class_names: Sequence[str] | None, rows: Rows) -> SplitFacts:
    """Count and checksum a split."""
    return SplitFacts(len(rows.values), checksum(class_names, rows), count_classes(class_names, rows))


def count_classes(class_names: Sequence[str] | None, rows: Rows) -> tuple[int, ...] | None:
    """Count the examples of each class; None without labels."""
    if class_names is None or rows.labels is None:
        return None
    counts = Counter(rows.labels)
    return tuple(counts[label] for label in range(len(class_names)))


def by_content(values: Iterable[bytes]) -> list[bytes]:
    """Sort values by their sha256: a fixed shuffle that no library's generator can change."""
    return sorted(values, key=lambda value: hashlib.sha256(value).digest())


def split_by_content(label_of: Mapping[bytes, int], in_test: Mapping[int, int]) -> dict[str, Rows]:
    """Split labelled values, each once, into train and test.

    Both stand in the order of the values' sha256. Of each class, the first `in_test[label]` go to the test split.
    Example: {x: 0, y: 1, z: 0}, of which the sha256 have the order x, z, y, with {0: 1, 1: 0} in the test split, have x
    there and z, y in the training split.
    """
    ordered = by_content(label_of)
    tested: set[bytes] = set()
    for label, count in in_test.items():
        tested.update([value for value in ordered if label_of[value] == label][:count])
    values = {
        "train": [value for value in ordered if value not in tested],
        "test": [value for value in ordered if value in tested],
    }
    return {split: Rows(of_split, [label_of[value] for value in of_split]) for split, of_split in values.items()}
