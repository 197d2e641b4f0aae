"""Records -> tables: `results/NAME.md`, `.csv` and `.tex` beside `results/NAME/records.jsonl` and `stages.jsonl`."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from bench.data.metrics import metric_of
from bench.errors import InputError
from bench.planning.plan import Plan
from bench.store.activity import describe_inactive, inactive
from bench.store.code import other_code
from bench.store.files import write_text
from bench.store.store import Store
from bench.tables.grid_facts import GridFacts, facts_of
from bench.tables.records import (
    Record,
    RecordsFile,
    computed_records,
    lines_of,
    merged_records,
    records_path,
    stages_path,
    write_aside,
)
from bench.tables.statistics import cell_text


@dataclass(frozen=True)
class Results:
    """The tables of a grid and the records behind them, still to be written."""

    content: RecordsFile
    folder: Path
    """Where the tables go."""
    others: RecordsFile
    """What the records file has of other plans."""
    selected_done: bool = True
    """Whether the store has the number of every selected cell."""

    @property
    def records(self) -> list[Record]:
        """One for each cell that has a number."""
        return list(self.content.cells.values())

    @property
    def name(self) -> str:
        assert self.content.grid is not None
        return self.content.grid.name

    @property
    def table(self) -> Path:
        return self.folder / f"{self.name}.md"

    @property
    def records_file(self) -> Path:
        return records_path(self.folder, self.name)

    @property
    def markdown(self) -> str:
        assert self.content.grid is not None
        return markdown(self.content.grid, self.records)

    def write(self) -> Path | None:
        """Write all files, and the others into one of their own, whose path is returned."""
        # The records are written before the tables: whoever reads a table has the numbers behind it.
        assert self.content.grid is not None
        set_aside = write_aside(self.others, self.folder, self.name)
        write_text(stages_path(self.records_file), lines_of(self.content.stages.values()))
        write_text(self.records_file, lines_of([self.content.grid.as_line(), *self.records]))
        for ending, text in tables(self.content.grid, self.records).items():
            write_text(self.table.with_name(f"{self.name}.{ending}"), text)
        return set_aside


def collate(plan: Plan, store: Store, results: Path) -> Results:
    """Make the tables and the records of a grid. They hold every finished cell, selected or not.

    A number that the records file has already is kept, whatever the store holds. Refuses a file that disagrees with the
    store, and one that cannot be read.
    """
    computed = computed_records(plan, store)
    content, others = merged_records(plan, store, computed, results)
    records = list(content.cells.values())
    # A number that --again set aside stays in the table until there is a new one: nothing is lost, but it is told.
    stages, in_store = {cell.name: cell.stage for cell in plan.cells}, {name for _, name in computed.cells}
    only_in_file = [record for record in records if record["cell"] not in in_store]
    awaited = sum(record["metrics"] in store.replaced(stages[record["cell"]]) for record in only_in_file)
    unfinished = [f"Warning: {awaited} cells show numbers that --again set aside; no new ones are there yet."]
    warnings = (*_outdated(records), *(unfinished if awaited else []))
    facts = dataclasses.replace(facts_of(plan), warnings=warnings)
    selected_done = all(cell.name in in_store for cell in plan.selected)
    return Results(content._replace(grid=facts), results, others, selected_done)


def rebuilt(content: RecordsFile, disagreements: int, results: Path) -> Results:
    """Make the tables of records files, without plan or store.

    `disagreements` counts cells of which another file has another number, computed on another kind of machine.
    """
    assert content.grid is not None
    told = (
        f"Warning: of {disagreements} cells another file has another number; those of the file named first are shown."
    )
    grid = dataclasses.replace(content.grid, warnings=(*content.grid.warnings, *([told] if disagreements else [])))
    order = {name: number for axis in (grid.rows, grid.tasks, grid.seeds) for number, name in enumerate(axis)}

    def position(record: Record) -> list[int]:
        try:
            return [order[record[axis]] for axis in ("method", "task", "seed")]
        except KeyError as error:
            raise InputError(f"{record['cell']} is no cell of the grid {grid.name}, which has no {error}.") from error

    cells = dict(sorted(content.cells.items(), key=lambda item: position(item[1])))
    return Results(RecordsFile(grid, cells, content.stages), results, RecordsFile(None, {}, {}))


# ------------------------------------------------------------------------------------------------ tables


def tables(facts: GridFacts, records: Sequence[Record]) -> dict[str, str]:
    """Write the table in every format, by the ending of its file."""
    head, *body = array(facts, records)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *body])
    latex = tabulate(body, headers=head, tablefmt="latex_booktabs", disable_numparse=True)
    return {"md": markdown(facts, records), "csv": text.getvalue(), "tex": f"{latex}\n"}


def markdown(facts: GridFacts, records: Sequence[Record]) -> str:
    """Write the table in Markdown, with its legend."""
    head, *body = array(facts, records)
    shown = tabulate(body, headers=head, tablefmt="github", disable_numparse=True)
    return f"# {facts.name}\n\n{shown}\n\n{_legend(facts, records)}"


def array(facts: GridFacts, records: Sequence[Record]) -> list[list[str]]:
    """Fill the table: a line of heads, then one for each row of the grid."""
    # A cell of the table is a method on a task; its values are one for each seed that has finished. Example: accuracies
    # .90 and .92 of three planned seeds read "91.00 ± 1.41 (2/3)".
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    for record in records:
        values[record["method"], record["task"]].append(record["value"])
    scales = {task: metric_of(metric).scale for task, metric in facts.metrics.items()}
    body = [
        [row, *(cell_text(values[row, task], len(facts.seeds), scales[task]) for task in facts.tasks)]
        for row in facts.rows
    ]
    return [["method", *facts.tasks], *body]


def _legend(facts: GridFacts, records: Sequence[Record]) -> str:
    files = f"{facts.name}/records.jsonl (the grid, then a JSON object per finished cell) and stages.jsonl beside it"
    lines = [
        *facts.legend,
        *_lost_candidates(records),
        f"Code: {_distinct(records, 'commit') or 'no finished cell'}.",
        f"Machine: {_distinct(records, 'device', 'instruction_set', 'threads') or 'no finished cell'}.",
        *_mixed_devices(records),
        *(f"Warning: {line}." for line in _inactive(records)),
        *facts.warnings,
        f"Records: {files}; python -m bench.collate --records rebuilds this table from them.",
    ]
    return "".join(f"- {line}\n" for line in lines)


def _lost_candidates(records: Sequence[Record]) -> list[str]:
    """Say how many candidates of searches behind the numbers diverged."""
    # Cells of several seeds share their candidates, so each is counted once, by its key.
    tried = [candidate for record in records if record.get("search") for candidate in record["search"]["candidates"]]
    lost = len({candidate["key"] for candidate in tried if "diverged" in candidate})
    count = len({candidate["key"] for candidate in tried})
    return [f"Search: {lost} of {count} candidates diverged and counted as the worst."] if lost else []


def _distinct(records: Sequence[Record], *names: str) -> str:
    """List what the records say of their origin, each value once.

    Numbers of different origins may not be comparable.
    """

    def named(provenance: dict[str, Any], name: str) -> str:
        # Two values need more than their text: threads a unit, and code without a commit the version installed.
        if name == "threads":
            return f"{provenance[name]} thread{'s' if provenance[name] > 1 else ''}"
        if name == "commit" and provenance[name] is None:
            return f"version {provenance['versions']['adaptation-bench']}, installed"
        return str(provenance[name])

    return "; ".join(sorted({", ".join(named(r["provenance"], name) for name in names) for r in records}))


def _mixed_devices(records: Sequence[Record]) -> list[str]:
    """Warn where stages behind the table ran on different devices. Only different kinds of device count."""
    kinds = sorted({kind for record in records for kind in record["devices"]})
    if len(kinds) < 2:
        return []
    warning = f"Warning: stages behind these numbers ran on different kinds of device ({'; '.join(kinds)}), which round"
    return [f"{warning} differently: `devices` in the records says which. Compare rows only where they agree."]


def _inactive(records: Sequence[Record]) -> Iterator[str]:
    """Say which parts of methods did nothing, and in which rows and on which tasks."""
    return describe_inactive(
        (name, meaning, f"{record['method']} on {record['task']}")
        for record in records
        for name, meaning in inactive(record.get("activity", {})).items()
    )


def _outdated(records: Sequence[Record]) -> list[str]:
    """Warn where other code than today's led to a number, or weights that were replaced since."""
    names = [name for record in records for name in other_code(record.get("code", {}))]
    cells = sum(bool(other_code(record.get("code", {}))) for record in records)
    of = ", ".join(f"{name} ({count})" for name, count in sorted(Counter(names).items()))
    code = [f"Warning: {cells} cells were computed by other code than the one that wrote this table, of {of}."]
    swapped = sum(bool(record.get("other_weights")) for record in records)
    weights = [f"Warning: {swapped} cells began with weights that were computed anew since, to other values."]
    return (code if cells else []) + (weights if swapped else [])
