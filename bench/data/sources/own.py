"""A user's own data: class folders, parquet, JSON lines, CSV, or a data set on the Hugging Face hub.

Planning imports this module, so nothing here imports an array library before data are read.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from bench.data.content import Content, Rows, by_content
from bench.data.manifest import SPLITS, read_manifest
from bench.data.sources.account import Account
from bench.data.sources.files import parquet_columns, read_files
from bench.data.sources.folders import read_folder, walk
from bench.data.sources.hub import read_hub
from bench.data.sources.labels import class_names
from bench.data.sources.rows import Row, Table, Tables, other_modality, with_modality
from bench.data.tasks import EMBEDDED, Modality, Task
from bench.errors import InputError
from bench.store.files import digest

KINDS = {
    "folder": "folder:PATH",
    "parquet": "parquet:PATH",
    "jsonl": "jsonl:PATH",
    "csv": "csv:PATH",
    "hub": "hub:OWNER/NAME@REVISION",
}
"""The kinds of sources and how they are written."""

DEFAULT_BACKBONES = {"image": "vit_mae_base", "text": "roberta_base"}

# Parts of the note on where the test split comes from, which a manifest keeps.
PUBLIC_VALIDATION = "test is the public validation set; "
HIDDEN = "the hidden test set has no labels"
DRAWN = "test was drawn: of each class's different contents the fifth (at least 1) with the smallest sha256"


def default_modality(source: str) -> Literal["image", "text"]:
    """Return the modality of data whose source alone is declared.

    Folders hold images, everything else texts.
    """
    return "image" if _kind(source)[0] == "folder" else "text"


def fingerprint(task: Task) -> str:
    """Hash a source so that a change of it is noticed.

    Hashed are names, sizes and times of change; no file is read. For a data set on the hub it is the source itself.
    Refuses a path that is missing.
    """
    kind, location = _kind(_source(task))
    if kind == "hub":
        return _source(task)
    path = _existing(task, location)
    files = [path] if path.is_file() else sorted(walk(path, Account()))
    states = [(str(file.relative_to(path)), file.stat()) for file in files]
    return digest([kind, [[name, stat.st_size, stat.st_mtime_ns] for name, stat in states]])


def read(task: Task, local_copy: Path | None = None) -> Content:
    """Read the content of `task.source`.

    A `local_copy` of a repository on the hub is read in its stead. Class names are those of a ClassLabel in its
    order, sorted strings, or "0" to the largest whole number. Where a test split exists without labels (as GLUE's), or
    a hub data set has none, the validation split becomes the test split; where neither exists, a fifth of each class is
    drawn by a fixed rule. `sources` says so, and holds the sha256 of single files; `notes` list what was not read.
    Refuses, by file and row, what is missing, empty, unreadable, of the other modality, or a label that training lacks.
    """
    kind, location = _kind(_source(task))
    account = Account()
    _check_modality(task, kind)
    if kind == "hub":
        task, splits, sources = read_hub(task, location, local_copy, account)
    elif local_copy is not None:
        raise InputError(
            f"--from {local_copy}: {task.name} is read from {task.source}; only hub: sources take a copy. "
            f"To read other files, bind {task.name}/task.source to them."
        )
    else:
        path = _existing(task, location)
        account = Account(path)
        task = _as_in_columns(task, kind, path)
        splits, sources = (
            read_folder(task, path, account) if kind == "folder" else read_files(task, kind, path, account)
        )
    for split, tables in splits.items():
        if not any(table.rows for table in tables):
            raise InputError(f"{', '.join(table.origin for table in tables)}: the {split} split holds no examples.")
    hidden = splits.get("test", [])
    splits, note = _settle(task, kind, splits)
    if HIDDEN in note:
        account.skip("examples without a label", "the hidden test split", sum(len(table.rows) for table in hidden))
    names = class_names(task, splits, account)
    rows = {split: _numbered(splits[split], names) for split in SPLITS if split in splits}
    if "test" not in rows:
        rows = _draw(task, rows["train"], names)
    return Content(
        modality=task.modality,
        class_names=names,
        splits={split: _content(task, examples) for split, examples in rows.items()},
        sources={"source": kind, **sources} | ({"splits": note} if note else {}),
        notes=account.lines(),
    )


# ------------------------------------------------------------------------------------------------------- the source


def _source(task: Task) -> str:
    if task.source is None:
        raise InputError(f"{task.name} has no source: bind {task.name}/task.source to {_legal()}.")
    return task.source


def _legal() -> str:
    return "one of " + ", ".join(repr(form) for form in KINDS.values())


def _kind(source: str) -> tuple[str, str]:
    kind, _, location = source.partition(":")
    if kind not in KINDS or not location:
        raise InputError(f"the source {source!r} cannot be read. Legal: {_legal()}.")
    return kind, location


def _existing(task: Task, location: str) -> Path:
    path = Path(location).expanduser().absolute()
    if not path.exists():
        raise InputError(
            f"{task.name}: there is no {path}. Correct {task.name}/task.source = {task.source!r} "
            "(a relative path counts from the working directory)."
        )
    return path


def _check_modality(task: Task, kind: str) -> None:
    fixed: dict[str, Modality] = {"folder": "image", "jsonl": "text", "csv": "text"}
    if fixed.get(kind, task.modality) != task.modality:
        raise other_modality(task, str(task.source))
    if task.modality == "image" and task.pair_column is not None:
        raise InputError(f"{task.name}/task.pair_column = {task.pair_column!r}: only texts come in pairs; remove it.")


def _as_in_columns(task: Task, kind: str, path: Path) -> Task:
    return with_modality(task, parquet_columns(path), str(path)) if kind == "parquet" else task


# ------------------------------------------------------------------------------------------------ splits and labels


def _settle(task: Task, kind: str, splits: Tables) -> tuple[Tables, str]:
    """Choose the splits that are used, and their names.

    Returns them with a note on what was done about the test split, which is empty where nothing was. A test split is
    hidden if none of its examples has a label (GLUE writes -1):

    | the source has                         | train     | test                        |
    |----------------------------------------|-----------|-----------------------------|
    | train, test                            | train     | test                        |
    | train, validation, test                | train     | test (validation: as it is) |
    | train, validation, no or a hidden test | train     | validation                  |
    | train, no or a hidden test             | drawn later from train by `_draw`       |

    The further test split of mnli stays beside these. Files of the user's with a validation split and without any test
    split are refused: which is meant?
    """
    labels = [row.label for table in splits.get("test", ()) for row in table.rows]
    hidden = "test" in splits and all(label is None or label == -1 for label in labels)
    if "test" in splits and not hidden:
        return splits, ""
    train = {"train": splits["train"]}
    if "validation" not in splits:
        return train, f"{DRAWN}; {HIDDEN}" if hidden else DRAWN
    if not hidden and kind != "hub":
        raise InputError(
            f"{task.name} ({task.source}) has a validation but no test split: name one of them test (a validation "
            "split is not needed: a search holds out a part of the training split)."
        )
    reason = HIDDEN if hidden else "there is no test split"
    further = {split: tables for split, tables in splits.items() if split not in ("train", "validation", "test")}
    return train | {"test": splits["validation"]} | further, f"{PUBLIC_VALIDATION}{reason}"


def _numbered(tables: list[Table], names: tuple[str, ...]) -> list[Row]:
    """Join the rows of a split, each label a number.

    Labels that are names become their position in `names`.
    """
    number = {name: i for i, name in enumerate(names)}
    return [row._replace(label=number.get(row.label, row.label)) for table in tables for row in table.rows]


def _content(task: Task, rows: list[Row]) -> Rows:
    return Rows(
        values=[row.value for row in rows],
        labels=[row.label for row in rows],
        pairs=None if task.pair_column is None else [row.pair or b"" for row in rows],
        locations=[row.where for row in rows],
    )


def _draw(task: Task, rows: list[Row], names: tuple[str, ...]) -> dict[str, list[Row]]:
    """Draw train and test from one split by the rule in `DRAWN`.

    Both stand in the order of the source. Example: a class has 7 rows with the contents a, b, a, c, d, e, f. Of its 6
    different contents the fifth, 1, goes to the test split; if a has the smallest sha256, both rows with it do, and the
    other 5 stay for training.
    """
    content = [row.value if row.pair is None else row.value + b"\0" + row.pair for row in rows]
    by_class: dict[int, set[bytes]] = {}  # contents, each once: equal examples stay on one side
    for example, row in zip(content, rows, strict=True):
        by_class.setdefault(row.label, set()).add(example)
    if single := [names[label] for label, members in sorted(by_class.items()) if len(members) < 2]:
        raise InputError(
            f"{task.name} ({task.source}) has no test split, and none can be drawn: of the classes "
            f"{', '.join(single[:10])}{' …' * (len(single) > 10)} there is one example only (copies do not count). "
            "Add some, or a test split."
        )
    drawn = {label: by_content(members)[: max(1, len(members) // 5)] for label, members in by_class.items()}
    split_of = ["test" if content[i] in drawn[row.label] else "train" for i, row in enumerate(rows)]
    return {
        part: [row for row, split in zip(rows, split_of, strict=True) if split == part] for part in ("train", "test")
    }


def own_task(name: str, source: str) -> Task:
    """Build a user's own task as it is by default.

    Its other settings come from the gin file. Folders hold images, CSV and JSON lines texts; parquet files and data
    sets of the hub may hold either, so their columns decide later.
    """
    modality = default_modality(source)
    holds_either = _kind(source)[0] in ("parquet", "hub")
    return Task(name, modality, DEFAULT_BACKBONES[modality], "accuracy", source=source, modality_bound=not holds_either)


def as_in_data(task: Task, root: Path) -> Task:
    """Give an own task the modality of its data, and the backbone for it.

    A modality that a gin file binds stays. Otherwise it is that of the prepared copy, or else what the columns of
    parquet files tell. Data that cannot be looked at count as texts until they are prepared.
    """
    if not task.modality_bound:
        kind, location = _kind(_source(task))
        try:
            if (manifest := read_manifest(task.name, root)) is not None:
                task = replace(task, modality=manifest.modality)
            else:
                task = _as_in_columns(task, kind, Path(location).expanduser())
        except InputError:
            pass  # a damaged manifest, columns of both modalities: who prepares the task is told
    return replace(task, backbone=DEFAULT_BACKBONES[task.modality])


def is_local(name: str, task: Task | None) -> bool:
    """Tell whether a task or corpus can be built without a download.

    What lies on this computer a grid may build unasked.
    """
    return name in EMBEDDED or (task is not None and task.source is not None and _kind(task.source)[0] != "hub")


def fingerprint_of(task: Task) -> str | None:
    """Hash what a prepared copy of a user's own data depends on.

    It covers the source, its modality and configuration, and the columns read; None where the source cannot be looked
    at now.
    """
    if task.source is None:
        return None
    try:
        listing = fingerprint(task)
    except InputError:
        return None  # a prepared copy outlives its source
    modality = task.modality if task.modality_bound else default_modality(task.source)
    columns = (modality, task.configuration, task.image_column, task.text_column)
    return digest([task.source, listing, *columns, task.pair_column, task.label_column])
