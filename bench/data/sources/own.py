"""A user's own data: class folders, parquet, JSON lines, CSV, or a data set on the Hugging Face hub.

Planning imports this module, so nothing here imports an array library before data are read.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bench.data.content import Content, Rows
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


@dataclass
class _Table:
    """What one file or class folder holds; `place` says where row i lies, `names` are those of a ClassLabel."""

    origin: str
    place: Callable[[int], str]
    names: tuple[str, ...] | None = None
    values: list[bytes] = field(default_factory=list)
    pairs: list[bytes] = field(default_factory=list)
    labels: list[Any] = field(default_factory=list)


_Tables = dict[str, list[_Table]]
_Row = tuple[Any, Any, Any]  # value, pair and label, as the source has them


def local(source: str) -> bool:
    """Whether reading this source needs no network."""
    return _kind(source)[0] != "hub"


def default_modality(source: str) -> Literal["image", "text"]:
    """The modality of data of which only the source is declared: folders hold images, everything else texts."""
    return "image" if _kind(source)[0] == "folder" else "text"


def fingerprint(task: Task) -> str:
    """A cheap hash by which a changed source is noticed: of names, sizes and times of change, without reading files.

    For a data set on the hub it is the source itself. Refuses a path that is missing.
    """
    kind, place = _kind(_source(task))
    if kind == "hub":
        return _source(task)
    path = _existing(task, place)
    files = [path] if path.is_file() else sorted(_walk(path))
    listing = []
    for file in files:
        stat = file.stat()
        listing.append([str(file.relative_to(path)), stat.st_size, stat.st_mtime_ns])
    return digest([kind, listing])


def read(task: Task, given: Path | None = None) -> Content:
    """The content of `task.source`; `given` is a local copy of a repository on the hub, read in its stead.

    Class names are those of a ClassLabel in its order, sorted strings, or "0" to the largest whole number. Where a test
    split exists without labels (as GLUE's), or a hub data set has none, the validation split becomes the test split;
    where neither exists, a fifth of each class is drawn by a fixed rule. `sources` says so, and holds the sha256 of
    single files. Refuses, by file and row, what is missing, empty, unreadable, of the other modality, or a label that
    training lacks.
    """
    kind, place = _kind(_source(task))
    _check_modality(task, kind)
    if kind == "hub":
        splits, sources = _read_hub(task, place, given)
    elif given is not None:
        raise InputError(
            f"--from {given}: {task.name} is read from {task.source}; only hub: sources take a copy. "
            f"To read other files, bind {task.name}/task.source to them."
        )
    else:
        path = _existing(task, place)
        splits, sources = _read_folder(task, path) if kind == "folder" else _read_files(task, kind, path)
    for split, tables in splits.items():
        if not any(table.values for table in tables):
            raise InputError(f"{', '.join(table.origin for table in tables)}: the {split} split holds no examples.")
    splits, note = _settle(task, kind, splits)
    names = _class_names(task, splits)
    rows = {split: _rows(task, splits[split], names) for split in SPLITS if split in splits}
    if "test" not in rows:
        rows = _draw(task, rows["train"], names)
    return Content(
        modality=task.modality,
        class_names=names,
        splits=rows,
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
    kind, _, place = source.partition(":")
    if kind not in KINDS or not place:
        raise InputError(f"the source {source!r} cannot be read. Legal: {_legal()}.")
    return kind, place


def _existing(task: Task, place: str) -> Path:
    path = Path(place).expanduser().absolute()
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


def _fill(task: Task, table: _Table, rows: Iterable[_Row]) -> _Table:
    encode = _image if task.modality == "image" else _text
    for i, (value, pair, label) in enumerate(rows):
        try:
            table.values.append(encode(value))
            if task.pair_column is not None:
                table.pairs.append(_text(pair))
            table.labels.append(_label(label))
        except (OSError, ValueError) as error:
            raise InputError(f"{table.place(i)}: {error}.") from error
    return table


def _image(value: Any) -> bytes:
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
    value = task.image_column if task.modality == "image" else task.text_column
    return value, task.pair_column, task.label_column


def _check_columns(task: Task, found: Iterable[str], where: str) -> None:
    columns = list(found)
    value, pair, label = _columns(task)
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


def _picked(task: Task, batch: dict[str, list[Any]]) -> Iterator[_Row]:
    """The rows of a batch of columns."""
    value, pair, label = _columns(task)
    pairs = batch[pair] if pair is not None else [None] * len(batch[value])
    return zip(batch[value], pairs, batch[label], strict=True)


# ---------------------------------------------------------------------------------------------------- class folders


def _read_folder(task: Task, path: Path) -> tuple[_Tables, dict[str, str]]:
    if not path.is_dir():
        raise InputError(f"{path} is a file: 'folder:' takes a folder with one folder per class.")
    folders = _folders(path)
    named = [folder for folder in folders if _split_of(folder.name) is not None]
    # A class may be called "train" or "test"; a split holds folders, a class holds images.
    if any(_folders(folder) for folder in named):
        if others := [folder.name for folder in folders if folder not in named]:
            raise InputError(
                f"{path} holds {', '.join(map(repr, others))} beside the splits: move them away, or name them one of "
                f"{', '.join(SPLIT_NAMES)}."
            )
        by_split = _by_split(task, path, [(folder.name, [folder]) for folder in named])
    else:
        by_split = {"train": [path]}
    return {split: _classes(task, folder) for split, (folder,) in by_split.items()}, {}


def _by_split(task: Task, path: Path, found: list[tuple[str, list[Path]]]) -> dict[str, list[Path]]:
    """The folder, or files, of each split from what they are called."""
    by_split: dict[str, list[Path]] = {}
    for name, entries in found:
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
        table = _Table(str(entry), lambda i, files=files: str(files[i]))  # type: ignore[misc]
        tables.append(_fill(task, table, ((_bytes(file), None, entry.name) for file in files)))
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
    """The files of a folder and, if `deep`, of those below; hidden ones left out, links followed once."""
    waiting, seen = [folder], set()
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
    """The files of each split: one, or shards as `datasets` numbers them; refuses incomplete shards."""
    files = [file for file in _walk(path, deep=False) if file.suffix.lower() == f".{kind}"]
    if not files:
        raise InputError(f"{path} holds no .{kind} file: {task.name} needs train.{kind} in it.")
    by_stem: dict[tuple[str, str], list[Path]] = {}
    for file in files:
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
            batches = parquet.iter_batches(batch_size=100, columns=columns)
            rows = (row for batch in batches for row in _picked(task, batch.to_pydict()))
            return _fill(task, _Table(str(file), lambda i: f"{file}, row {i}", names), rows)
    except pa.ArrowException as error:
        raise InputError(f"{file} cannot be read as parquet ({error}): write or copy it again.") from error


def _names_in(metadata: dict[bytes, bytes], column: str) -> tuple[str, ...] | None:
    """The class names that `datasets` wrote beside the columns."""
    try:
        feature = json.loads(metadata[b"huggingface"])["info"]["features"][column]
        return tuple(map(str, feature["names"])) if feature["_type"] == "ClassLabel" else None
    except (ValueError, KeyError, TypeError):
        return None


def _read_jsonl(task: Task, file: Path) -> _Table:
    lines: list[int] = []
    value, pair, label = _columns(task)

    def rows() -> Iterator[_Row]:
        with file.open(encoding="utf-8-sig", newline="\n") as opened:
            for number, line in enumerate(opened, 1):
                if not line.strip():
                    continue
                lines.append(number)
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise InputError(f"{file}, line {number}: no JSON ({error}).") from error
                if not isinstance(record, dict):
                    raise InputError(f"{file}, line {number}: no JSON object ({_shown(record)}).")
                _check_columns(task, record, f"{file}, line {number}")
                yield record[value], None if pair is None else record[pair], record[label]

    return _read_lines(task, file, lines, rows())


def _read_csv(task: Task, file: Path) -> _Table:
    lines: list[int] = []
    value, pair, label = _columns(task)

    def rows() -> Iterator[_Row]:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.reader(opened, strict=True)
            header = next(reader, [])
            if len(set(header)) < len(header):
                raise InputError(f"{file}: two columns have the same name in its first line, {header}: rename one.")
            _check_columns(task, header, str(file))
            for record in reader:
                if not record:
                    continue
                lines.append(reader.line_num)
                if len(record) != len(header):
                    raise InputError(
                        f"{file}, line {reader.line_num}: {len(record)} fields, but the header names {len(header)}. "
                        "A field with a comma, a quote or a line break in it needs double quotes around it."
                    )
                row = dict(zip(header, record, strict=True))
                yield row[value], None if pair is None else row[pair], row[label] or None

    limit = csv.field_size_limit(sys.maxsize)  # the default refuses long documents
    try:
        return _read_lines(task, file, lines, rows())
    except csv.Error as error:
        raise InputError(f"{file}, after line {lines[-1] if lines else 1}: no CSV ({error}).") from error
    finally:
        csv.field_size_limit(limit)


def _read_lines(task: Task, file: Path, lines: list[int], rows: Iterable[_Row]) -> _Table:
    try:
        return _fill(task, _Table(str(file), lambda i: f"{file}, line {lines[i]}"), rows)
    except UnicodeDecodeError as error:
        after = f"after line {lines[-1]}" if lines else "in its first lines"
        raise InputError(f"{file}: no utf-8 {after} ({error.reason}): save it as utf-8.") from error


def _as_numbers(tables: list[_Table]) -> None:
    """Make the labels of CSV files whole numbers where all of them are."""
    labels = [label for table in tables for label in table.labels if label is not None]
    if all(re.fullmatch(r"0|-?[1-9][0-9]{0,17}", label) for label in labels):
        for table in tables:
            table.labels = [None if label is None else int(label) for label in table.labels]


# -------------------------------------------------------------------------------------------------------------- hub


def _read_hub(task: Task, place: str, given: Path | None) -> tuple[_Tables, dict[str, str]]:
    repository, _, revision = place.partition("@")
    if not revision:
        raise InputError(
            f"{task.name}/task.source = {task.source!r} may change: pin it: hub:{repository}@REVISION "
            "(the commit hash on the data set's page, under 'Files and versions')."
        )
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repository):
        raise InputError(f"{task.name}/task.source = {task.source!r}: must be written as {KINDS['hub']}.")
    if given is not None and not given.is_dir():
        raise InputError(f"--from {given.absolute()} is no folder: give a local copy of the repository {repository}.")
    sources = {"repository": place} | ({"configuration": task.configuration} if task.configuration else {})
    # A cache of our own: the common one offers other revisions without a network, and old content for a changed folder.
    with tempfile.TemporaryDirectory(prefix="bench-hub-", ignore_cleanup_errors=True) as cache:
        found = _load(task, repository, revision, given, cache)
        renamed = {"validation_matched": "validation", "test_matched": "test"} if task.configuration == "mnli" else {}
        splits: _Tables = {}
        for split in sorted(found):
            name = renamed.get(split, split)
            if name in SPLITS:
                splits[name] = [_read_loaded(task, f"{repository}, {split}", found[split])]
        if "train" not in splits:
            raise InputError(f"{place} has no split named train (there are {', '.join(sorted(found))}).")
        return splits, sources | ({"copy": "local"} if given is not None else {})


def _load(task: Task, repository: str, revision: str, given: Path | None, cache: str) -> Any:
    import datasets

    if given is None and Path(repository).exists():
        raise InputError(
            f"{Path(repository).absolute()} would be read in place of {task.source}: work in another directory, or "
            "give that folder with --from."
        )
    try:
        if given is not None:
            return datasets.load_dataset(str(given.absolute()), task.configuration, cache_dir=cache)
        return datasets.load_dataset(repository, task.configuration, revision=revision, cache_dir=cache)
    except Exception as error:  # of the network, the hub, the files or their format: each library has its own
        reason = f"{error}; {error.__cause__}" if error.__cause__ is not None else f"{error}"
        check = f"Check {task.name}/task.source and {task.name}/task.configuration = {task.configuration!r}."
        if given is not None:
            raise InputError(
                f"{task.name}: {given.absolute()} cannot be read as a copy of {repository} ({reason}). {check}"
            ) from error
        raise InputError(
            f"{task.name}: {repository}@{revision} cannot be fetched ({reason}). {check} Without a network: "
            f"where there is one, run `hf download {repository} --repo-type dataset --revision {revision} --local-dir "
            "FOLDER`, bring the folder here and give it with --from FOLDER."
        ) from error


def _read_loaded(task: Task, where: str, rows: Any) -> _Table:
    from datasets import ClassLabel, Image

    _check_columns(task, rows.column_names, where)
    rows = rows.select_columns([column for column in _columns(task) if column is not None])
    if isinstance(rows.features[task.image_column] if task.modality == "image" else None, Image):
        rows = rows.cast_column(task.image_column, Image(decode=False))
    label = rows.features[task.label_column]
    names = tuple(label.names) if isinstance(label, ClassLabel) else None
    batches = rows.iter(batch_size=100)
    return _fill(
        task,
        _Table(where, lambda i: f"{where}, row {i}", names),
        (row for batch in batches for row in _picked(task, batch)),
    )


# ------------------------------------------------------------------------------------------------ splits and labels


def _settle(task: Task, kind: str, splits: _Tables) -> tuple[_Tables, str]:
    """The splits with labels under the names they are used by, and what was done about the test split."""
    labels = [label for table in splits.get("test", ()) for label in table.labels]
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
    """The class names over all splits; refuses labels that are missing, mixed, negative or unknown in training."""
    tables = [table for split in splits.values() for table in split]
    declared = {table.names: table.origin for table in tables}
    if len(declared) > 1:
        first, second = list(declared.values())[:2]
        raise InputError(f"{first} and {second} declare different classes: write both with the same class names.")
    strings = isinstance(next((label for table in tables for label in table.labels), None), str)
    for table in tables:
        for i, label in enumerate(table.labels):
            if label is None or isinstance(label, str) != strings:
                expected = "strings" if strings else "whole numbers"
                problem = "there is no label" if label is None else f"the label is {_shown(label)}"
                raise InputError(f"{table.place(i)}: {problem}, where other labels of {task.name} are {expected}.")
    names = tables[0].names
    if names is not None:
        _refuse_labels(tables, lambda label: label in range(len(names)), f"of 0 to {len(names) - 1}")
        return names
    trained = {label for table in splits["train"] for label in table.labels}
    if not strings:
        # With more numbers than examples some class has none; this also stops a column that holds no classes.
        examples = sum(len(table.labels) for table in splits["train"])
        _refuse_labels(tables, range(examples).__contains__, "from 0 to below the number of training examples")
    if not strings and 0 not in trained:
        raise InputError(
            f"{task.name} ({task.source}): the labels are whole numbers from {min(trained)}, but classes count from 0: "
            "write them so, or as names."
        )
    _refuse_labels(tables, trained.__contains__, "that occur in the training split")
    return tuple(sorted(trained)) if strings else tuple(map(str, range(max(trained) + 1)))


def _refuse_labels(tables: list[_Table], legal: Callable[[Any], bool], which: str) -> None:
    for table in tables:
        for i, label in enumerate(table.labels):
            if not legal(label):
                raise InputError(f"{table.place(i)}: the label {_shown(label)} is unknown. Legal are labels {which}.")


def _rows(task: Task, tables: list[_Table], names: tuple[str, ...]) -> Rows:
    number = {name: i for i, name in enumerate(names)}
    labels = [number[label] if isinstance(label, str) else label for table in tables for label in table.labels]
    return Rows(
        values=[value for table in tables for value in table.values],
        labels=labels,
        pairs=None if task.pair_column is None else [pair for table in tables for pair in table.pairs],
        places=[table.place(i) for table in tables for i in range(len(table.values))],
    )


def _draw(task: Task, rows: Rows, names: tuple[str, ...]) -> dict[str, Rows]:
    """Train and test from one split by the rule in `DRAWN`, each in the order of the source."""
    assert rows.labels is not None
    content = rows.values if rows.pairs is None else list(map(b"\0".join, zip(rows.values, rows.pairs, strict=True)))
    by_class: dict[int, dict[bytes, None]] = {}  # contents, each once: equal examples stay on one side
    for i in sorted(range(len(content)), key=lambda i: hashlib.sha256(content[i]).digest()):
        by_class.setdefault(rows.labels[i], {})[content[i]] = None
    if single := [names[label] for label, members in sorted(by_class.items()) if len(members) < 2]:
        raise InputError(
            f"{task.name} ({task.source}) has no test split, and none can be drawn: of the classes "
            f"{', '.join(single[:10])}{' …' * (len(single) > 10)} there is one example only (copies do not count). "
            "Add some, or a test split."
        )
    drawn = {label: set(list(members)[: max(1, len(members) // 5)]) for label, members in by_class.items()}
    test = {i for i, label in enumerate(rows.labels) if content[i] in drawn[label]}
    kept = range(len(content))
    return {
        "train": _take(rows, [i for i in kept if i not in test]),
        "test": _take(rows, [i for i in kept if i in test]),
    }


def _take(rows: Rows, index: list[int]) -> Rows:
    assert rows.labels is not None
    return Rows(
        values=[rows.values[i] for i in index],
        labels=[rows.labels[i] for i in index],
        pairs=None if rows.pairs is None else [rows.pairs[i] for i in index],
        places=None if rows.places is None else [rows.places[i] for i in index],
    )


def own_task(name: str, source: str) -> Task:
    """A user's own task as it is before the gin file's other settings: the modality is that of such sources."""
    modality = default_modality(source)
    backbone = "vit_mae_base" if modality == "image" else "roberta_base"
    return Task(name=name, modality=modality, backbone=backbone, metric="accuracy", source=source)


def is_local(name: str, task: Task | None) -> bool:
    """Whether a task or corpus can be built from what is on this computer, so that a grid may do so unasked."""
    return name in EMBEDDED or (task is not None and task.source is not None and local(task.source))


def fingerprint_of(task: Task) -> str | None:
    """What a prepared copy of a user's own data was made from; None where the source cannot be looked at now."""
    if task.source is None:
        return None
    try:
        listing = fingerprint(task)
    except InputError:
        return None  # a prepared copy outlives its source
    columns = (task.modality, task.configuration, task.image_column, task.text_column)
    return digest([task.source, listing, *columns, task.pair_column, task.label_column])
