"""A data set in memory, between its source and its on-disk form."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from bench.data import Modality, SplitFacts


@dataclass(frozen=True)
class Rows:
    """One split: encoded image bytes or utf-8 text, in a fixed order, and labels where there are any."""

    values: list[bytes]
    labels: list[int] | None


@dataclass(frozen=True)
class Content:
    """A whole data set; `tokenizer` holds the bytes of a tokenizer.json that travels with it, `vocabulary` its size."""

    modality: Modality
    class_names: tuple[str, ...] | None
    splits: dict[str, Rows]
    sources: dict[str, str]
    tokenizer: bytes | None = None
    vocabulary: int | None = None


def checksum(class_names: Sequence[str] | None, rows: Rows) -> str:
    """The sha256, in hex, of class names and rows in order; every part is preceded by its length (8 bytes).

    It covers content only, so it does not change with the parquet writer.
    """
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
    return digest.hexdigest()


def facts(class_names: Sequence[str] | None, rows: Rows) -> SplitFacts:
    """Count and checksum a split."""
    per_class = None
    if class_names is not None and rows.labels is not None:
        counts = Counter(rows.labels)
        per_class = tuple(counts[label] for label in range(len(class_names)))
    return SplitFacts(examples=len(rows.values), checksum=checksum(class_names, rows), per_class=per_class)


def by_content(values: Sequence[bytes]) -> list[int]:
    """Positions in the order of the values' sha256: a fixed shuffle that no library's generator can change."""
    return sorted(range(len(values)), key=lambda i: hashlib.sha256(values[i]).digest())
