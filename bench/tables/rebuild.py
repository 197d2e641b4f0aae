"""Records files brought together without a store: several parts of a grid, or the same grid run elsewhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.errors import InputError
from bench.tables.grid_facts import GridFacts
from bench.tables.records import Earlier, Record, RecordsFile, disagree, read_file, same

SAME_BITS = ("device", "instruction_set", "threads", "versions")
"""The parts of provenance under which equal keys have equal numbers."""


def refuse_missing(files: Iterable[Path]) -> None:
    """Refuse records files that are not there."""
    for path in files:
        if not path.is_file():
            raise InputError(f"--records {path}: there is no such file. A grid's is RESULTS/NAME/records.jsonl.")


def joined_files(files: Sequence[Path]) -> tuple[RecordsFile, int]:
    """Join records files, the first named winning; count the cells of which a later one has another number.

    Refuses files without a grid, those of grids with other columns, and numbers that disagree though device, versions,
    threads and code agree: one of them is wrong.
    """
    grid: GridFacts | None = None
    cells: Earlier = {}
    stages: dict[str, Record] = {}
    others = 0
    for path in files:
        content = read_file(path)
        if content.grid is None:
            raise InputError(
                f"{path} does not say what grid it is of: it was written by an older version. python -m bench.collate "
                "--gin FILE, with its results folder, writes it anew."
            )
        grid = content.grid if grid is None else _joined(grid, content.grid, path)
        for identity, record in content.cells.items():
            kept = cells.setdefault(identity, record)
            if disagree(kept["metrics"], record["metrics"]):
                if _alike(kept) == _alike(record):
                    raise InputError(
                        f"{path}: {record['cell']} is {record['value']}, in a file named before {kept['value']}, with "
                        "the same key, device, versions and code: one of the files is damaged. Leave one out."
                    )
                others += 1
        stages = content.stages | stages
    return RecordsFile(grid, cells, stages), others


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


def _alike(record: Record) -> Any:
    return [record["provenance"].get(name) for name in SAME_BITS], record.get("code")
