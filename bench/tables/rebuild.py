"""Records files brought together without a store: several parts of a grid, or the same grid run elsewhere."""

from __future__ import annotations

import dataclasses
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.errors import InputError
from bench.planning.describe import first_of
from bench.planning.plan import code_span
from bench.store.files import digest
from bench.tables.grid_facts import GridFacts
from bench.tables.records import Earlier, LeftOut, Record, RecordsFile, alike, check_stage, disagree, read_file, same


def refuse_missing(files: Iterable[Path]) -> None:
    """Refuse records files that are not there."""
    for path in files:
        if not path.is_file():
            raise InputError(f"{path}: there is no such file. The records of a grid are RESULTS/NAME/records.jsonl.")


def joined_files(files: Sequence[Path], left_out: list[LeftOut] | None = None) -> RecordsFile:
    """Join records files. Of a cell's different numbers the first is shown, and its record keeps the others.

    A line that is no record is left out; if it is the first one of a records file, so is the whole file. Such lines are
    added to `left_out`, and warnings on standard error and of the grid name them. Refuses files of an older version,
    which say nothing of their grid, those of grids with other columns, a cell with two keys, and numbers that disagree
    though device, versions, threads and code agree: one of them is wrong.
    """
    grid: GridFacts | None = None
    cells: Earlier = {}
    stages: dict[str, Record] = {}
    keys: dict[tuple[str, str, int], tuple[str, Path]] = {}
    left_out = [] if left_out is None else left_out
    for path in files:
        content = _content(path, left_out)
        if content is None:
            continue
        assert content.grid is not None
        grid = content.grid if grid is None else _joined(grid, content.grid, path)
        for identity, record in content.cells.items():
            key, cell = identity
            entry = (record["method"], record["task"], record["seed"])  # backbones may differ, too
            first_key, first_path = keys.setdefault(entry, (key, path))
            if key != first_key:
                raise InputError(
                    f"{path}: {cell} has the key {key[:16]}, and in {first_path} the key {first_key[:16]}: they were "
                    "computed with different settings, and a table shows one number of each. Leave one file out, or "
                    "take one of the lines out of a copy."
                )
            cells[identity] = _with_others(cells[identity], record, path) if identity in cells else record
        stages = content.stages | stages
    if grid is None:
        raise InputError(f"{'; '.join(map(str, left_out))}. No other file is named: name one that can be read.")
    for record in cells.values():
        try:
            check_stage(record, stages.get(record["key"]))
        except ValueError as error:  # a record and a line of two files
            raise InputError(f"{record['cell']}: {error}: one of the files is damaged. Leave one out.") from error
    if mixed := _of_different_settings(cells.values(), stages):
        warning = f"Warning: the seeds of {first_of(mixed, NAMED)} were computed with different settings."
        print(warning, file=sys.stderr)
        grid = dataclasses.replace(grid, warnings=(*grid.warnings, warning))
    if left_out:
        grid = dataclasses.replace(grid, warnings=(*grid.warnings, _warning(left_out)))
    return RecordsFile(grid, cells, stages)


def _with_others(kept: Record, record: Record, path: Path) -> Record:
    """Add the numbers of another record of the same key, where they differ."""
    # Example: files of three computers, which say 80, 79 and 80. The first record is kept, with the second in its
    # "also"; joined with the second computer's file once more it stays as it is.
    others = list(kept.get("also", []))
    for other in ({name: part for name, part in record.items() if name != "also"}, *record.get("also", [])):
        for there in (kept, *others):
            if disagree(there["metrics"], other["metrics"]) and alike(there) == alike(other):
                raise InputError(
                    f"{path}: {other['cell']} is {other['value']}, in a file named before {there['value']}, with "
                    "the same key, device, versions and code: one of the files is damaged. Leave one out."
                )
        if all(disagree(there["metrics"], other["metrics"]) for there in (kept, *others)):
            others.append(other)
    return {**kept, "also": others} if others else kept


def _of_different_settings(records: Iterable[Record], stages: Mapping[str, Record]) -> list[str]:
    """Name the entries of a table, by row and task, whose seeds differ in more than the seed."""
    # Keys hold the seed, so what is compared is a stage's spec without it, with the digest of the same of each parent
    # in its place. Example: seeds 0 and 1 of finetune have one digest, unless one file has another finetune.lr.
    digests: dict[str, str | None] = {}

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            if value.keys() == {"stage"}:
                return settings_of(value["stage"])
            of_stage = "objective" in value
            return {name: plain(part) for name, part in value.items() if not (of_stage and name == "seed")}
        return [plain(part) for part in value] if isinstance(value, list) else value

    def settings_of(key: str) -> str | None:
        if key not in digests:
            digests[key] = digest(plain(stages[key]["spec"])) if key in stages else None
        return digests[key]

    by_entry: dict[str, set[str | None]] = defaultdict(set)
    for record in records:
        by_entry[f"{code_span(record['method'])} on {code_span(record['task'])}"].add(settings_of(record["key"]))
    return [entry for entry, settings in by_entry.items() if len(settings - {None}) > 1]


def _content(path: Path, left_out: list[LeftOut]) -> RecordsFile | None:
    """Read a file; warn of lines that are no record and leave them out.

    Returns None where nothing of the file can be used.
    """
    lines: list[LeftOut] = []
    content = read_file(path, left_out=lines)
    if content.grid is None and not content.cells and not lines:
        lines.append(LeftOut(path, 1, "the file is empty", whole_file=True))
    for line in lines:
        print(f"warning: {line}; left out: {_extent(line)}", file=sys.stderr)
    left_out += lines
    if any(line.whole_file for line in lines):
        return None
    if content.grid is None:
        raise InputError(
            f"{path} does not say what grid it is of: it was written by an older version. python -m bench.collate "
            "--gin FILE, with its results folder, writes it anew."
        )
    return content


NAMED = 10
"""How many lines a table's warning names; standard error has them all."""


def _extent(line: LeftOut) -> str:
    return "the whole file" if line.whole_file else "this line"


def _warning(left_out: Sequence[LeftOut]) -> str:
    """Write the warning of a table. Of paths it holds the end alone, as tables are published."""
    ends = [(f"{Path(*line.path.parts[-2:])}:{line.number}", _extent(line)) for line in left_out]
    # A path that is no text, as Unix allows, could be neither printed nor written.
    names = [f"{code_span(end.encode(errors='backslashreplace').decode())} ({extent})" for end, extent in ends]
    return f"Warning: left out, as they could not be read: {first_of(names, NAMED)}."


def changed_cells(before: RecordsFile, after: RecordsFile) -> Iterator[str]:
    """Say which cells differ between two files: in number, in key, or by being there at all."""
    old, new = ({record["cell"]: record for record in content.cells.values()} for content in (before, after))
    for cell in sorted(old.keys() | new.keys()):
        if cell not in new or cell not in old:
            yield f"{cell}: only in the {'first' if cell in new else 'other'} file"
            continue
        was, now = old[cell], new[cell]
        settings = "" if was["key"] == now["key"] else " (its settings changed, too: another key)"
        if was["metric"] != now["metric"]:
            yield f"{cell}: {was['metric']} became {now['metric']}{settings}"
        elif not same(was["value"], now["value"]) or settings:
            yield f"{cell}: {was['value']} became {now['value']}{settings}"


def _joined(first: GridFacts, second: GridFacts, path: Path) -> GridFacts:
    """Join the rows and seeds of two grids of the same columns."""
    if (first.tasks, first.metrics) != (second.tasks, second.metrics):
        raise InputError(f"{path}: its columns are {', '.join(second.tasks)}; those before, {', '.join(first.tasks)}.")
    if first == second:
        return first
    union: dict[str, Any] = {
        name: tuple(dict.fromkeys((*getattr(first, name), *getattr(second, name))))
        for name in ("rows", "seeds", "legend", "warnings")
    }
    return dataclasses.replace(first, **union)
