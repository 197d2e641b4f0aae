"""A user's own data: class folders, parquet, JSON lines, CSV, or a data set on the Hugging Face hub.

Planning imports this module, so nothing here imports an array library before data are read.
"""

from __future__ import annotations

import csv
import json
import re
import sys
import tempfile
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bench.data.content import Content, Rows, by_content
from bench.data.manifest import SPLITS
from bench.data.tasks import EMBEDDED, Modality, Task
from bench.errors import InputError
from bench.store.files import digest, sha256

KINDS = {
    "folder": "folder:PATH",
    "parquet": "parquet:PATH",
    "jsonl": "jsonl:PATH",
    "csv": "csv:PATH",
    "hub": "hub:OWNER/NAME@REVISION",
}
"""The kinds of sources and how they are written."""

SPLIT_NAMES = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation"} | {
    "dev": "validation",
    "test": "test",
    "training": "train",
    "testing": "test",
}
"""What folders and files may be called -> the split that they are."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")

PUBLIC_VALIDATION = "test is the public validation set; "
HIDDEN = "the hidden test set has no labels"
DRAWN = "test was drawn: of each class's different contents the fifth (at least 1) with the smallest sha256"


class _Row(NamedTuple):
    """One example of the user's.

    It holds where the example lies in its source, its content, its second text if texts come in pairs, and its label.
    """

    where: str
    value: bytes
    pair: bytes | None
    label: Any


@dataclass
class _Table:
    """The rows of one file, class folder or split on the hub.

    `names` are those of a ClassLabel, None where the source declares no classes.
    """

    origin: str
    rows: list[_Row]
    names: tuple[str, ...] | None = None


_Tables = dict[str, list[_Table]]


def local(source: str) -> bool:
    """Tell whether reading this source needs no network."""
    return _kind(source)[0] != "hub"


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
    files = [path] if path.is_file() else sorted(_walk(path))
    listing = []
    for file in files:
        stat = file.stat()
        listing.append([str(file.relative_to(path)), stat.st_size, stat.st_mtime_ns])
    return digest([kind, listing])


def read(task: Task, local_copy: Path | None = None) -> Content:
    """Read the content of `task.source`.

    A `local_copy` of a repository on the hub is read in its stead. Class names are those of a ClassLabel in its
    order, sorted strings, or "0" to the largest whole number. Where a test split exists without labels (as GLUE's), or
    a hub data set has none, the validation split becomes the test split; where neither exists, a fifth of each class is
    drawn by a fixed rule. `sources` says so, and holds the sha256 of single files. Refuses, by file and row, what is
    missing, empty, unreadable, of the other modality, or a label that training lacks.
    """
    kind, location = _kind(_source(task))
    _check_modality(task, kind)
    if kind == "hub":
        splits, sources = _read_hub(task, location, local_copy)
    elif local_copy is not None:
        raise InputError(
            f"--from {local_copy}: {task.name} is read from {task.source}; only hub: sources take a copy. "
            f"To read other files, bind {task.name}/task.source to them."
        )
    else:
        path = _existing(task, location)
        splits, sources = _read_folder(task, path) if kind == "folder" else _read_files(task, kind, path)
    for split, tables in splits.items():
        if not any(table.rows for table in tables):
            raise InputError(f"{', '.join(table.origin for table in tables)}: the {split} split holds no examples.")
    splits, note = _settle(task, kind, splits)
    names = _class_names(task, splits)
    rows = {split: _numbered(splits[split], names) for split in SPLITS if split in splits}
    if "test" not in rows:
        rows = _draw(task, rows["train"], names)
    return Content(
        modality=task.modality,
        class_names=names,
        splits={split: _content(task, examples) for split, examples in rows.items()},
        sources={"source": kind, **sources} | ({"splits": note} if note else {}),
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
        raise _other_modality(task, str(task.source))
    if task.modality == "image" and task.pair_column is not None:
        raise InputError(f"{task.name}/task.pair_column = {task.pair_column!r}: only texts come in pairs; remove it.")


def _other_modality(task: Task, where: str) -> InputError:
    other = "text" if task.modality == "image" else "image"
    return InputError(
        f"{where} holds {other}s, but {task.name} is declared as {task.modality}s: "
        f"bind {task.name}/task.modality = '{other}'."
    )


# ------------------------------------------------------------------------------------------------------------- rows


def _row(task: Task, where: str, record: Mapping[str, Any]) -> _Row:
    """Take an example out of a record, its contents encoded.

    Refuses, by `where` it stands, what is no example. With the columns premise, hypothesis and label of a task:

        {"idx": 7, "premise": "It rains.", "hypothesis": "It is wet.", "label": 0}
        _Row("train.jsonl, line 8", b"It rains.", b"It is wet.", 0)
    """
    value, pair, label = _columns(task)
    encode = _image if task.modality == "image" else _text
    try:
        first = encode(record[value])
        second = None if pair is None else _text(record[pair])
        return _Row(where, first, second, _label(record[label]))
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
        raise ValueError(f"no encoded image ({_shown(value)})")
    if not content:
        raise ValueError("the image is empty (0 bytes)")
    return content


def _text(value: Any) -> bytes:
    if not isinstance(value, str):
        raise ValueError(f"no text ({_shown(value)})")
    return value.encode()


def _label(value: Any) -> str | int | None:
    if isinstance(value, bool) or not (value is None or isinstance(value, str | int)):
        raise ValueError(f"the label {_shown(value)} is neither a string nor a whole number; write it as a string")
    if isinstance(value, str):
        value.encode()
        if not value.strip():
            raise ValueError("the label is empty")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def _columns(task: Task) -> tuple[str, str | None, str]:
    # Of the content (an image or a text), of the second text of a pair, and of the label.
    value = task.image_column if task.modality == "image" else task.text_column
    return value, task.pair_column, task.label_column


def _check_columns(task: Task, columns: Collection[str], where: str) -> None:
    value, pair, label = _columns(task)
    # A file of texts in which a task of images finds no `image` but a `text` column has another modality: that is said,
    # and not that a column is missing.
    other = task.text_column if task.modality == "image" else task.image_column
    if value not in columns and other in columns:
        raise _other_modality(task, where)
    bound = {f"{task.modality}_column": value, "pair_column": pair, "label_column": label}
    missing = {name: column for name, column in bound.items() if column is not None and column not in columns}
    if missing:
        fixes = ", ".join(f"{task.name}/task.{name}" for name in missing)
        raise InputError(
            f"{where}: no column {', '.join(map(repr, missing.values()))}; "
            f"there are {', '.join(map(repr, columns)) or 'none'}. Bind {fixes} to one of them."
        )


# ---------------------------------------------------------------------------------------------------- class folders


def _read_folder(task: Task, path: Path) -> tuple[_Tables, dict[str, str]]:
    if not path.is_dir():
        raise InputError(f"{path} is a file: 'folder:' takes a folder with one folder per class.")
    folders = _folders(path)
    split_folders = [folder for folder in folders if _split_of(folder.name) is not None]
    # A class may be called "train" or "test"; a split holds folders, a class holds images.
    if any(_folders(folder) for folder in split_folders):
        if others := [folder.name for folder in folders if folder not in split_folders]:
            raise InputError(
                f"{path} holds {', '.join(map(repr, others))} beside the splits: move them away, or name them one of "
                f"{', '.join(SPLIT_NAMES)}."
            )
        by_split = _by_split(task, path, [(folder.name, [folder]) for folder in split_folders])
    else:
        by_split = {"train": [path]}
    return {split: _classes(task, folder) for split, (folder,) in by_split.items()}, {}


def _by_split(task: Task, path: Path, parts: list[tuple[str, list[Path]]]) -> dict[str, list[Path]]:
    """Group folders or files by the split that their name means.

    Refuses two of one split, and a source without a training split.
    """
    by_split: dict[str, list[Path]] = {}
    for name, entries in parts:
        split = _split_of(name)
        assert split is not None
        if split in by_split:
            raise InputError(f"{by_split[split][0]} and {entries[0]} are both the {split} split: keep one of them.")
        by_split[split] = entries
    if "train" not in by_split:
        raise InputError(f"{path} has no training split for {task.name}: name a part of it 'train'.")
    return by_split


def _classes(task: Task, folder: Path) -> list[_Table]:
    if loose := [file for file in _walk(folder, deep=False) if _is_image(file)]:
        raise InputError(
            f"{loose[0]} lies outside the class folders of {folder}: move it into the folder of its class."
        )
    classes = _folders(folder)
    if not classes:
        raise InputError(f"{folder} holds no class folders: it must hold one folder of images per class.")
    tables = []
    for entry in classes:
        files = sorted((file for file in _walk(entry) if _is_image(file)), key=lambda file: file.as_posix())
        if not files:
            raise InputError(f"{entry} holds no image. Legal types: {', '.join(IMAGE_SUFFIXES)}.")
        records = ((file, {task.image_column: _bytes(file), task.label_column: entry.name}) for file in files)
        tables.append(_Table(str(entry), [_row(task, str(file), record) for file, record in records]))
    return tables


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}): correct it, or move it away.") from error


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in IMAGE_SUFFIXES


def _folders(path: Path) -> list[Path]:
    entries = (entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    return sorted(entries, key=lambda entry: entry.name)


def _walk(folder: Path, deep: bool = True) -> Iterator[Path]:
    """Yield the files of a folder and, if `deep`, below it.

    Hidden ones are left out, links are followed once.
    """
    waiting, seen = [folder], set()  # a folder that two links lead to is read once
    while waiting:
        current = waiting.pop()
        if (real := current.resolve()) in seen:
            continue
        seen.add(real)
        for entry in sorted(current.iterdir()):
            if entry.name.startswith("."):
                continue
            if entry.is_file():
                yield entry
            elif entry.is_dir():
                if entry.resolve() in folder.resolve().parents:
                    raise InputError(f"{entry} links to a folder around it: remove the link.")
                if deep:
                    waiting.append(entry)
            elif _is_image(entry):
                raise InputError(f"{entry} is no file that can be read: is it a broken link? Correct or remove it.")


def _split_of(name: str) -> str | None:
    return SPLIT_NAMES.get(name.lower())


# ------------------------------------------------------------------------------------------------------------ files


def _read_files(task: Task, kind: str, path: Path) -> tuple[_Tables, dict[str, str]]:
    readers = {"parquet": _read_parquet, "jsonl": _read_jsonl, "csv": _read_csv}
    by_split = {"train": [path]} if path.is_file() else _shards(task, kind, path)
    splits: _Tables = {}
    sources = {}
    for split, files in by_split.items():
        for file in files:
            if file.stat().st_size == 0:
                raise InputError(f"{file} is empty (0 bytes): copy it again.")
            try:
                sources[file.name] = sha256(file)
                splits.setdefault(split, []).append(readers[kind](task, file))
            except OSError as error:
                raise InputError(f"{file} cannot be read ({error}): copy it again.") from error
    if kind == "csv":
        _as_numbers([table for tables in splits.values() for table in tables])
    return splits, sources


def _shards(task: Task, kind: str, path: Path) -> dict[str, list[Path]]:
    """Group the files of a folder by their split.

    A split is one file, or shards as `datasets` numbers them: `train.csv`, or `train-00000-of-00002.csv` and
    `train-00001-of-00002.csv`. Refuses incomplete shards.
    """
    files = [file for file in _walk(path, deep=False) if file.suffix.lower() == f".{kind}"]
    if not files:
        raise InputError(f"{path} holds no .{kind} file: {task.name} needs train.{kind} in it.")
    by_stem: dict[tuple[str, str], list[Path]] = {}
    for file in files:
        # A shard goes under its name and the number of shards: test-00000-of-00002 under ("test", "00002").
        match = re.fullmatch(r"(.+)-\d{5}-of-(\d{5})", file.stem)
        stem, count = match.groups() if match else (file.stem, "")
        if _split_of(stem) is None:
            raise InputError(
                f"{file} is no split: move it away, or name it one of {', '.join(SPLIT_NAMES)} (as in train.{kind})."
            )
        by_stem.setdefault((stem, count), []).append(file)
    for (stem, count), shards in by_stem.items():
        expected = [f"{stem}-{i:05}-of-{count}" for i in range(int(count or 0))]
        if missing := sorted(set(expected) - {shard.stem for shard in shards}):
            raise InputError(f"{path} lacks {missing[0]}.{kind} and so {len(missing)} of its shards: copy them again.")
    return _by_split(task, path, [(stem, shards) for (stem, _), shards in by_stem.items()])


def _read_parquet(task: Task, file: Path) -> _Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as parquet:
            _check_columns(task, parquet.schema_arrow.names, str(file))
            columns = [column for column in _columns(task) if column is not None]
            names = _names_in(parquet.schema_arrow.metadata or {}, task.label_column)
            # In small batches, because one array of encoded images above 2 GB overflows.
            return _read_batches(task, str(file), parquet.iter_batches(batch_size=100, columns=columns), names)
    except pa.ArrowException as error:
        raise InputError(f"{file} cannot be read as parquet ({error}): write or copy it again.") from error


def _names_in(metadata: dict[bytes, bytes], column: str) -> tuple[str, ...] | None:
    """Return the class names that `datasets` wrote beside the columns.

    They are None where the label column is no ClassLabel.
    """
    try:
        feature = json.loads(metadata[b"huggingface"])["info"]["features"][column]
        return tuple(map(str, feature["names"])) if feature["_type"] == "ClassLabel" else None
    except (ValueError, KeyError, TypeError):
        return None


def _read_batches(task: Task, where: str, batches: Iterable[Any], names: tuple[str, ...] | None) -> _Table:
    """Read the rows of pyarrow's tables or batches."""
    records = (record for batch in batches for record in batch.to_pylist())
    return _Table(where, [_row(task, f"{where}, row {i}", record) for i, record in enumerate(records)], names)


def _read_jsonl(task: Task, file: Path) -> _Table:
    # Line by line: a reader of whole tables would make texts of numbers, and could not say in which line a fault is.
    def rows() -> Iterator[_Row]:
        with file.open(encoding="utf-8-sig", newline="\n") as opened:
            for number, line in enumerate(opened, 1):
                if not line.strip():
                    continue
                where = f"{file}, line {number}"
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise InputError(f"{where}: no JSON ({error}).") from error
                if not isinstance(record, dict):
                    raise InputError(f"{where}: no JSON object ({_shown(record)}).")
                _check_columns(task, record, where)
                yield _row(task, where, record)

    return _read_lines(file, rows())


def _read_csv(task: Task, file: Path) -> _Table:
    def rows() -> Iterator[_Row]:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.reader(opened, strict=True)
            header = next(reader, [])
            if len(set(header)) < len(header):
                raise InputError(f"{file}: two columns have the same name in its first line, {header}: rename one.")
            _check_columns(task, header, str(file))
            for fields in filter(None, reader):
                where = f"{file}, line {reader.line_num}"
                if len(fields) != len(header):
                    raise InputError(
                        f"{where}: {len(fields)} fields, but the header names {len(header)}. "
                        "A field with a comma, a quote or a line break in it needs double quotes around it."
                    )
                record: dict[str, str | None] = dict(zip(header, fields, strict=True))
                yield _row(task, where, record | {task.label_column: record[task.label_column] or None})

    limit = csv.field_size_limit(sys.maxsize)  # the default refuses long documents
    try:
        return _read_lines(file, rows())
    finally:
        csv.field_size_limit(limit)


def _read_lines(file: Path, rows: Iterable[_Row]) -> _Table:
    """Collect the rows of a text file.

    Where it ends in a fault, the message says after which line.
    """
    table = _Table(str(file), [])
    try:
        for row in rows:
            table.rows.append(row)
    except (UnicodeDecodeError, csv.Error) as error:
        after = table.rows[-1].where.removeprefix(f"{file}, ") if table.rows else "the first line"
        if isinstance(error, csv.Error):
            raise InputError(f"{file}, after {after}: no CSV ({error}).") from error
        raise InputError(f"{file}: no utf-8 after {after} ({error.reason}): save it as utf-8.") from error
    return table


def _as_numbers(tables: list[_Table]) -> None:
    """Make the labels of CSV files whole numbers, if all are.

    CSV knows only texts: '0', '1', '2' become 0, 1, 2, while '0', '1', 'x' remain the names that they are.
    """
    # No leading zeros: 007 is a name. At most 18 digits, as integers of 64 bits have.
    labels = {row.label for table in tables for row in table.rows} - {None}
    if all(re.fullmatch(r"0|-?[1-9][0-9]{0,17}", label) for label in labels):
        number = {None: None} | {label: int(label) for label in labels}
        for table in tables:
            table.rows = [row._replace(label=number[row.label]) for row in table.rows]


# -------------------------------------------------------------------------------------------------------------- hub


def _read_hub(task: Task, location: str, local_copy: Path | None) -> tuple[_Tables, dict[str, str]]:
    repository, _, revision = location.partition("@")
    if not revision:
        raise InputError(
            f"{task.name}/task.source = {task.source!r} may change: pin it: hub:{repository}@REVISION "
            "(the commit hash on the data set's page, under 'Files and versions')."
        )
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repository):
        raise InputError(f"{task.name}/task.source = {task.source!r}: must be written as {KINDS['hub']}.")
    if local_copy is not None and not local_copy.is_dir():
        raise InputError(
            f"--from {local_copy.absolute()} is no folder: give a local copy of the repository {repository}."
        )
    sources = {"repository": location} | ({"configuration": task.configuration} if task.configuration else {})
    # A cache of our own: the common one offers other revisions without a network, and old content for a changed folder.
    with tempfile.TemporaryDirectory(prefix="bench-hub-", ignore_cleanup_errors=True) as cache:
        loaded = _load(task, repository, revision, local_copy, cache)
        # Of mnli, the one task with two validation and two test splits, the matched ones are used.
        renamed = {"validation_matched": "validation", "test_matched": "test"} if task.configuration == "mnli" else {}
        splits: _Tables = {}
        for split in sorted(loaded):
            name = renamed.get(split, split)
            if name in SPLITS:
                splits[name] = [_read_loaded(task, f"{repository}, {split}", loaded[split])]
        if "train" not in splits:
            raise InputError(f"{location} has no split named train (there are {', '.join(sorted(loaded))}).")
        return splits, sources | ({"copy": "local"} if local_copy is not None else {})


def _load(task: Task, repository: str, revision: str, local_copy: Path | None, cache: str) -> Any:
    import datasets

    if local_copy is None and Path(repository).exists():
        raise InputError(
            f"{Path(repository).absolute()} would be read in place of {task.source}: work in another directory, or "
            "give that folder with --from."
        )
    try:
        if local_copy is not None:
            return datasets.load_dataset(str(local_copy.absolute()), task.configuration, cache_dir=cache)
        return datasets.load_dataset(repository, task.configuration, revision=revision, cache_dir=cache)
    except Exception as error:  # of the network, the hub, the files or their format: each library has its own
        reason = f"{error}; {error.__cause__}" if error.__cause__ is not None else f"{error}"
        check = f"Check {task.name}/task.source and {task.name}/task.configuration = {task.configuration!r}."
        if local_copy is not None:
            raise InputError(
                f"{task.name}: {local_copy.absolute()} cannot be read as a copy of {repository} ({reason}). {check}"
            ) from error
        raise InputError(
            f"{task.name}: {repository}@{revision} cannot be fetched ({reason}). {check} Without a network: "
            f"where there is one, run `hf download {repository} --repo-type dataset --revision {revision} --local-dir "
            "FOLDER`, bring the folder here and give it with --from FOLDER."
        ) from error


def _read_loaded(task: Task, where: str, split: Any) -> _Table:
    from datasets import ClassLabel

    _check_columns(task, split.column_names, where)
    columns = [column for column in _columns(task) if column is not None]
    label = split.features[task.label_column]
    names = tuple(label.names) if isinstance(label, ClassLabel) else None
    # As arrow tables, in which images are what was stored and not decoded.
    batches = split.select_columns(columns).with_format("arrow").iter(batch_size=100)
    return _read_batches(task, where, batches, names)


# ------------------------------------------------------------------------------------------------ splits and labels


def _settle(task: Task, kind: str, splits: _Tables) -> tuple[_Tables, str]:
    """Choose the splits that are used, and their names.

    Returns them with a note on what was done about the test split, which is empty where nothing was. A test split is
    hidden if none of its examples has a label (GLUE writes -1):

    | the source has                         | train     | test                        |
    |----------------------------------------|-----------|-----------------------------|
    | train, test                            | train     | test                        |
    | train, validation, test                | train     | test (validation: as it is) |
    | train, validation, no or a hidden test | train     | validation                  |
    | train, no or a hidden test             | drawn later from train by `_draw`       |

    Files of the user's with a validation split and without any test split are refused: which is meant?
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
    return train | {"test": splits["validation"]}, f"{PUBLIC_VALIDATION}{reason}"


def _class_names(task: Task, splits: _Tables) -> tuple[str, ...]:
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
            problem = "there is no label" if row.label is None else f"the label is {_shown(row.label)}"
            raise InputError(f"{row.where}: {problem}, where other labels of {task.name} are {expected}.")
    names = tables[0].names
    if names is not None:
        _refuse_labels(rows, range(len(names)), f"of 0 to {len(names) - 1}")
        return names
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


def _refuse_labels(rows: Iterable[_Row], legal: Container[Any], which: str) -> None:
    for row in rows:
        if row.label not in legal:
            raise InputError(f"{row.where}: the label {_shown(row.label)} is unknown. Legal are labels {which}.")


def _numbered(tables: list[_Table], names: tuple[str, ...]) -> list[_Row]:
    """Join the rows of a split, each label a number.

    Labels that are names become their position in `names`.
    """
    number = {name: i for i, name in enumerate(names)}
    return [row._replace(label=number.get(row.label, row.label)) for table in tables for row in table.rows]


def _content(task: Task, rows: list[_Row]) -> Rows:
    return Rows(
        values=[row.value for row in rows],
        labels=[row.label for row in rows],
        pairs=None if task.pair_column is None else [row.pair or b"" for row in rows],
        places=[row.where for row in rows],
    )


def _draw(task: Task, rows: list[_Row], names: tuple[str, ...]) -> dict[str, list[_Row]]:
    """Draw train and test from one split by the rule in `DRAWN`.

    Both stand in the order of the source. Example: a class has 7 rows with the contents a, b, a, c, d, e, f. Of its 6
    different contents the fifth, 1, goes to the test split; if a has the smallest sha256, both rows with it do, and the
    other 5 stay for training.
    """
    content = [row.value if row.pair is None else row.value + b"\0" + row.pair for row in rows]
    by_class: dict[int, dict[bytes, None]] = {}  # contents, each once: equal examples stay on one side
    for i in by_content(content):
        by_class.setdefault(rows[i].label, {})[content[i]] = None
    if single := [names[label] for label, members in sorted(by_class.items()) if len(members) < 2]:
        raise InputError(
            f"{task.name} ({task.source}) has no test split, and none can be drawn: of the classes "
            f"{', '.join(single[:10])}{' …' * (len(single) > 10)} there is one example only (copies do not count). "
            "Add some, or a test split."
        )
    # Members of a class stand in the order of their sha256, so its first fifth has the smallest.
    drawn = {label: set(list(members)[: max(1, len(members) // 5)]) for label, members in by_class.items()}
    split_of = ["test" if content[i] in drawn[row.label] else "train" for i, row in enumerate(rows)]
    return {
        part: [row for row, split in zip(rows, split_of, strict=True) if split == part] for part in ("train", "test")
    }


def own_task(name: str, source: str) -> Task:
    """Build a user's own task as it is by default.

    The other settings of the gin file come on top; the modality is that of such sources.
    """
    modality = default_modality(source)
    backbone = "vit_mae_base" if modality == "image" else "roberta_base"
    return Task(name=name, modality=modality, backbone=backbone, metric="accuracy", source=source)


def is_local(name: str, task: Task | None) -> bool:
    """Tell whether a task or corpus can be built without a download.

    What lies on this computer a grid may build unasked.
    """
    return name in EMBEDDED or (task is not None and task.source is not None and local(task.source))


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
    columns = (task.modality, task.configuration, task.image_column, task.text_column)
    return digest([task.source, listing, *columns, task.pair_column, task.label_column])
