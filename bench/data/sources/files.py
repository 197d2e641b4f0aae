"""Files of rows: parquet, JSON lines and CSV, read without guessing, and what a file is that is none of them."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bench.data.sources.account import Account
from bench.data.sources.folders import entries, skip_all
from bench.data.sources.rows import (
    SPLIT_NAMES,
    Row,
    Table,
    Tables,
    by_split,
    check_columns,
    columns_of,
    row,
    shown,
    split_of,
)
from bench.data.tasks import Task
from bench.errors import InputError
from bench.store.files import sha256
from bench.store.filetypes import recognised_file

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
"""What the fields of CSV files may be separated by."""

SUFFIXES = {"parquet": (".parquet",), "jsonl": (".jsonl",), "csv": (".csv", ".tsv")}
"""What the files in a folder of splits may be called."""


def read_files(task: Task, kind: str, path: Path, account: Account) -> tuple[Tables, dict[str, str]]:
    """Read one file, or a folder of splits; return the rows and each file's sha256."""
    readers = {"parquet": _read_parquet, "jsonl": _read_jsonl, "csv": _read_csv}
    files_of = {"train": [path]} if path.is_file() else _shards(task, kind, path, account)
    splits: Tables = {}
    sources = {}
    for split, files in files_of.items():
        for file in files:
            if file.stat().st_size == 0:
                raise InputError(f"{file} is empty (0 bytes): copy it again.")
            try:
                sources[file.name] = sha256(file)
                splits.setdefault(split, []).append(readers[kind](task, file, account))
            except OSError as error:
                raise InputError(f"{file} cannot be read ({error}): copy it again.") from error
            except InputError as error:
                # The first symptom, such as a missing column, is not the cause where the file is another thing.
                if (what := recognised_file(file)) is None or (kind == "parquet" and "parquet" in what):
                    raise
                raise InputError(f"{file} is {what}.") from error
    if kind == "csv":
        _as_numbers([table for tables in splits.values() for table in tables])
    return splits, sources


def _shards(task: Task, kind: str, path: Path, account: Account) -> dict[str, list[Path]]:
    """Group the files of a folder by their split.

    A split is one file, or shards as `datasets` numbers them: `train.csv`, or `train-00000-of-00002.csv` and
    `train-00001-of-00002.csv`. Refuses incomplete shards.
    """
    folders, files = entries(path, account, lambda file: file.suffix.lower() in SUFFIXES[kind])
    for folder in folders:
        skip_all(folder, account, "files in folders below")
    if not files:
        raise InputError(f"{path} holds no .{kind} file: {task.name} needs train.{kind} in it.")
    by_stem: dict[tuple[str, str, str], list[Path]] = {}
    for file in files:
        # A shard goes under its name, the number of shards and its type: test-00000-of-00002.csv under
        # ("test", "00002", ".csv").
        match = re.fullmatch(r"(.+)-\d{5}-of-(\d{5})", file.stem)
        stem, count = match.groups() if match else (file.stem, "")
        if split_of(stem) is None:
            raise InputError(
                f"{file} is no split: move it away, or name it one of {', '.join(SPLIT_NAMES)} (as in train.{kind})."
            )
        by_stem.setdefault((stem, count, file.suffix), []).append(file)
    for (stem, count, suffix), shards in by_stem.items():
        expected = [f"{stem}-{i:05}-of-{count}" for i in range(int(count or 0))]
        if missing := sorted(set(expected) - {shard.stem for shard in shards}):
            raise InputError(f"{path} lacks {missing[0]}{suffix} and so {len(missing)} of its shards: copy them again.")
    return by_split(task, path, [(stem, shards) for (stem, _, _), shards in by_stem.items()])


# ---------------------------------------------------------------------------------------------------------- parquet


def _read_parquet(task: Task, file: Path, account: Account) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as parquet:
            check_columns(task, parquet.schema_arrow.names, str(file))
            columns = [column for column in columns_of(task) if column is not None]
            names = _names_in(parquet.schema_arrow.metadata or {}, task.label_column)
            # In small batches, because one array of encoded images above 2 GB overflows.
            return read_batches(task, str(file), parquet.iter_batches(batch_size=100, columns=columns), names)
    except pa.ArrowException as error:
        raise InputError(f"{file} cannot be read as parquet ({error}): write or copy it again.") from error


def parquet_columns(path: Path) -> list[str]:
    """Return the columns of a parquet file, or of the first in a folder.

    There are none where it cannot be read: that is told when its rows are.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = path if path.is_file() else min(path.glob("*.parquet"), default=None)
    try:
        return [] if file is None else list(pq.read_schema(file).names)
    except (pa.ArrowException, OSError):
        return []


def _names_in(metadata: dict[bytes, bytes], column: str) -> tuple[str, ...] | None:
    """Return the class names that `datasets` wrote beside the columns.

    They are None where the label column is no ClassLabel.
    """
    try:
        feature = json.loads(metadata[b"huggingface"])["info"]["features"][column]
        return tuple(map(str, feature["names"])) if feature["_type"] == "ClassLabel" else None
    except (ValueError, KeyError, TypeError):
        return None


def read_batches(task: Task, where: str, batches: Iterable[Any], names: tuple[str, ...] | None) -> Table:
    """Read the rows of pyarrow's tables or batches."""
    records = (record for batch in batches for record in batch.to_pylist())
    return Table(where, [row(task, f"{where}, row {i}", record) for i, record in enumerate(records)], names)


# ------------------------------------------------------------------------------------------------------- JSON lines


def _read_jsonl(task: Task, file: Path, account: Account) -> Table:
    # Line by line: a reader of whole tables would make texts of numbers, and could not say in which line a fault is.
    def rows() -> Iterator[Row]:
        with file.open(encoding="utf-8-sig", newline="\n") as opened:
            for number, line in enumerate(opened, 1):
                where = f"{file}, line {number}"
                if not line.strip():
                    account.skip("blank lines", f"{file.name}, line {number}")
                    continue
                try:
                    record = json.loads(line, object_pairs_hook=_object)
                except (ValueError, RecursionError) as error:
                    array = " It begins like a JSON array: write one object per line." if line[:1] == "[" else ""
                    raise InputError(f"{where}: no JSON ({error}).{array}") from error
                if not isinstance(record, dict):
                    raise InputError(f"{where}: no JSON object ({shown(record)}). Write one object per line.")
                check_columns(task, record, where)
                yield row(task, where, record)

    return _read_lines(file, rows())


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make the object of its names and values; refuse a name that occurs twice."""
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return record


# -------------------------------------------------------------------------------------------------------------- CSV


def _read_csv(task: Task, file: Path, account: Account) -> Table:
    several: dict[int, list[str]] = {}  # first line of a record -> its lines, where it spans more than one

    delimiter = _delimiter(task, file)
    if delimiter != ",":
        account.notes.append(f"the fields of {file.name} are separated by {DELIMITERS[delimiter]}")

    def rows() -> Iterator[Row]:
        records = _records(file, delimiter)
        _, _, header = next(records, (1, [""], []))
        if len(set(header)) < len(header):
            raise InputError(f"{file}: two columns have the same name in its first line, {header}: rename one.")
        check_columns(task, header, str(file))
        for number, lines, fields in records:
            where = f"{file}, line {number + len(lines) - 1}"
            if len(lines) > 1:
                several[number] = lines
            if not fields:
                account.skip("blank lines", f"{file.name}, line {number}")
                continue
            if len(fields) != len(header):
                raise InputError(
                    f"{where}: its number of fields is {len(fields)}, but the header names {len(header)}, separated by "
                    f"{DELIMITERS[delimiter]}. A field with one of these, a quote or a line break in it needs double "
                    "quotes around it."
                )
            record: dict[str, str | None] = dict(zip(header, fields, strict=True))
            yield row(task, where, record | {task.label_column: record[task.label_column] or None})

    limit = csv.field_size_limit(sys.maxsize)  # the default refuses long documents
    try:
        table = _read_lines(file, rows())
        if several:
            _refuse_swallowed(task, table, delimiter, next(_records(file, delimiter))[2], several)
            number, lines = next(iter(several.items()))
            texts = f"{len(several)} text{'s' if len(several) > 1 else ''} of {file.name}"
            account.notes.append(f"{texts} on more than one line, the first on {len(lines)} lines from line {number}")
        return table
    finally:
        csv.field_size_limit(limit)


def _records(file: Path, delimiter: str) -> Iterator[tuple[int, list[str], list[str]]]:
    """Yield each record: its first line's number, its lines, its fields."""
    lines: list[str] = []

    def recorded(opened: Iterable[str]) -> Iterator[str]:
        for line in opened:
            lines.append(line)
            yield line

    with file.open(encoding="utf-8-sig", newline="") as opened:
        reader = csv.reader(recorded(opened), delimiter=delimiter, strict=True)
        try:
            for fields in reader:
                yield reader.line_num - len(lines) + 1, list(lines), fields
                lines.clear()
        except csv.Error as error:
            # The parser notices only at the end of the file that a quote is not closed; a user needs its beginning.
            opening = reader.line_num - len(lines) + 1
            raise csv.Error(f"{error}; the record begins in line {opening}: is a quote there not closed?") from error


def _delimiter(task: Task, file: Path) -> str:
    r"""Find the separator of a file's fields in its first line.

    It is the one that splits the line into names that include the task's columns. With the columns text and label:

        text,label               commas
        id;text;label            semicolons
        text;label;x,text,label  refused: both commas and semicolons give the columns
        sentence;stars           no separator gives them: the one with the most names, for a message that lists these
    """
    with file.open(encoding="utf-8-sig", errors="replace", newline="") as opened:
        line = opened.readline().strip("\r\n")
    wanted = {column for column in columns_of(task) if column is not None}
    columns = {delimiter: next(csv.reader([line], delimiter=delimiter), []) for delimiter in (*DELIMITERS, "|")}
    fitting = [delimiter for delimiter, header in columns.items() if wanted <= set(header)]
    if re.fullmatch(r"sep=.", line.strip(), re.IGNORECASE):
        raise InputError(f"{file}: its first line {line.strip()!r} is meant for a spreadsheet. Remove it.")
    several = [delimiter for delimiter in fitting or columns if len(columns[delimiter]) > 1]
    if fitting and len(several) > 1:
        names = " and by ".join(DELIMITERS.get(delimiter, "bars") for delimiter in several)
        raise InputError(
            f"{file}: its first line may be separated by {names}. Rename the columns, so that one is left."
        )
    delimiter = max(several, key=lambda each: len(columns[each]), default=",")
    if delimiter not in DELIMITERS:
        raise InputError(f"{file}: its fields are separated by bars. Save it with commas between them.")
    return delimiter


def _refuse_swallowed(
    task: Task, table: Table, delimiter: str, header: list[str], several: dict[int, list[str]]
) -> None:
    """Refuse a record that swallowed others.

    A stray quote joins all lines up to the next quote. With the classes pos and neg:

        7   "birds sing in the morning,neg      a quote opens and is not closed
        8   we cook rice and beans,pos          a line that ends like a row
        9   the train was late",neg             here the text ends: two more rows are in it

    A record is refused if at least half of its lines, without the last one, end like rows.
    """
    labels = {row.label for row in table.rows}
    column = header.index(task.label_column)
    for number, lines in several.items():
        # Without its first quote, the line in which the stray one stands reads like a row, too.
        unquoted = [line.strip().removeprefix('"') for line in lines[:-1]]
        ends = [next(csv.reader([line], delimiter=delimiter), []) for line in unquoted]
        swallowed = [
            number + i for i, fields in enumerate(ends) if len(fields) == len(header) and fields[column] in labels
        ]
        if 2 * len(swallowed) >= len(lines) - 1:
            raise InputError(
                f"{table.origin}: 1 text spans {len(lines)} lines, from line {number}, and {len(swallowed)} of them "
                f"end like rows, first line {swallowed[0]}. Remove or double the stray quote in line {number}."
            )


def _read_lines(file: Path, rows: Iterable[Row]) -> Table:
    """Collect the rows of a text file.

    Where it ends in a fault, the message says after which line.
    """
    table = Table(str(file), [])
    try:
        for example in rows:
            table.rows.append(example)
    except (UnicodeDecodeError, csv.Error) as error:
        after = table.rows[-1].where.removeprefix(f"{file}, ") if table.rows else "the first line"
        if isinstance(error, csv.Error):
            raise InputError(f"{file}, after {after}: no CSV ({error}).") from error
        raise InputError(f"{file}: no utf-8 after {after} ({error.reason}): save it as utf-8.") from error
    return table


def _as_numbers(tables: list[Table]) -> None:
    """Make the labels of CSV files whole numbers, if all are.

    CSV knows only texts: '0', '1', '2' become 0, 1, 2, while '0', '1', 'x' remain the names that they are.
    """
    # No leading zeros: 007 is a name. At most 18 digits, as integers of 64 bits have.
    labels = {row.label for table in tables for row in table.rows} - {None}
    if all(re.fullmatch(r"0|-?[1-9][0-9]{0,17}", label) for label in labels):
        number = {None: None} | {label: int(label) for label in labels}
        for table in tables:
            table.rows = [row._replace(label=number[row.label]) for row in table.rows]
