"""The labels of a user's own data: which classes there are, and labels that look alike or mean that there is none."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterable
from decimal import Decimal
from typing import Any

from bench.data.sources.account import Account
from bench.data.sources.rows import Row, Tables, shown
from bench.data.tasks import Task
from bench.data.visible import visible
from bench.errors import InputError

NO_LABEL = frozenset({"nan", "na", "n/a", "#n/a", "none", "null", "nil", "<na>", "?", "-"})
"""What programs write where a value is missing, in lower case."""


def class_names(task: Task, splits: Tables, account: Account) -> tuple[str, ...]:
    """Return the class names over all splits.

    Refuses labels that are missing, mixed, negative or unknown in training.
    """
    tables = [table for split in splits.values() for table in split]
    declared = {table.names: table.origin for table in tables}
    if len(declared) > 1:
        first, second = list(declared.values())[:2]
        raise InputError(f"{first} and {second} declare different classes: write both with the same class names.")
    # In this order: the classes that the source declares, then names of the training split, then whole numbers there.
    # ["cat", "dog", "cat"] gives cat, dog; [0, 2, 2] gives "0", "1", "2", of which 1 has no example.
    rows = [row for table in tables for row in table.rows]
    strings = isinstance(rows[0].label, str)
    for row in rows:
        if row.label is None or isinstance(row.label, str) != strings:
            expected = "strings" if strings else "whole numbers"
            problem = "there is no label" if row.label is None else f"the label is {shown(row.label)}"
            raise InputError(f"{row.where}: {problem}, where other labels of {task.name} are {expected}.")
    names = tables[0].names
    if names is not None:
        _refuse_lookalikes(task, ((name, tables[0].origin) for name in names))
        _refuse_labels(rows, range(len(names)), f"of 0 to {len(names) - 1}")
        return names
    if strings:
        _refuse_lookalikes(task, ((row.label, row.where) for row in rows))
        _note_missing(rows, account)
    labels = [row.label for table in splits["train"] for row in table.rows]
    trained = set(labels)
    if not strings:
        # With more numbers than examples some class has none; this also stops a column that holds no classes.
        _refuse_labels(rows, range(len(labels)), "from 0 to below the number of training examples")
    if not strings and 0 not in trained:
        raise InputError(
            f"{task.name} ({task.source}): the labels are whole numbers from {min(trained)}, but classes count from 0: "
            "write them so, or as names."
        )
    _refuse_labels(rows, trained, "that occur in the training split")
    return tuple(sorted(trained)) if strings else tuple(map(str, range(max(trained) + 1)))


def _refuse_labels(rows: Iterable[Row], legal: Container[Any], which: str) -> None:
    for row in rows:
        if row.label not in legal:
            raise InputError(f"{row.where}: the label {shown(row.label)} is unknown. Legal are labels {which}.")


def _refuse_lookalikes(task: Task, labels: Iterable[tuple[str, str]]) -> None:
    r"""Refuse labels that differ only in what nobody sees, or in how a number is written.

    `labels` come with where they stand. Case is a difference, so pos and Pos are two classes. These are refused:

        "neg" and "neg "; "neg" and "neg\u200b"; "caf\xe9" and "cafe\u0301"; "0" and "0.0"; "7" and "007"
    """
    first: dict[str, str] = {}  # label -> where it first stands
    for label, where in labels:
        first.setdefault(label, where)
    alike: dict[str | Decimal, list[str]] = {}
    for label in first:
        seen = visible(label)
        alike.setdefault(Decimal(seen) if re.fullmatch(r"[+-]?\d+(\.\d*)?", seen) else seen, []).append(label)
    groups = [members for members in alike.values() if len(members) > 1]
    if groups:
        listed = "; ".join(", ".join(f"{label!a} ({first[label]})" for label in members) for members in groups[:5])
        raise InputError(f"{task.name}: labels look alike: {listed}. Write each class in one way everywhere.")


def _note_missing(rows: list[Row], account: Account) -> None:
    for label, count in Counter(row.label for row in rows).items():
        if visible(label).lower() in NO_LABEL:
            account.notes.append(f"the class {label!r} ({count} examples) may stand for a missing label")
