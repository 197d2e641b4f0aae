"""Records -> tables: `results/NAME.md`, `.csv` and `.tex` beside `results/NAME/records.jsonl` and `stages.jsonl`."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tabulate import tabulate

from bench.errors import InputError
from bench.planning.plan import Plan
from bench.store.activity import describe_inactive, inactive
from bench.store.code import other_code
from bench.store.files import write_text
from bench.store.store import Store
from bench.tables.compare import FINE_TUNING_ONLY, Difference, OverTasks, RunTable
from bench.tables.comparison import CONDITIONAL, baseline_row, cost_line, difference_rows, differences_to, runs_of
from bench.tables.grid_facts import GridFacts, facts_of
from bench.tables.records import (
    NONE_READ,
    Record,
    RecordsFile,
    computed_records,
    lines_of,
    merged_records,
    records_path,
    stages_path,
    write_aside,
)


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

    @cached_property
    def tables(self) -> dict[str, str]:
        """The table in every format, by the ending of its file."""
        assert self.content.grid is not None
        return tables(self.content.grid, self.records, self.content.stages)

    @property
    def markdown(self) -> str:
        return self.tables["md"]

    def write(self) -> Path | None:
        """Write all files, and the others into one of their own, whose path is returned."""
        # The records are written before the tables: whoever reads a table has the numbers behind it.
        assert self.content.grid is not None
        set_aside = write_aside(self.others, self.folder, self.name)
        write_text(stages_path(self.records_file), lines_of(self.content.stages.values()))
        write_text(self.records_file, lines_of([self.content.grid.as_line(), *self.records]))
        for ending, text in self.tables.items():
            write_text(self.table.with_name(f"{self.name}.{ending}"), text)
        return set_aside


def collate(plan: Plan, store: Store, results: Path, read_before: Mapping[str, Record] = NONE_READ) -> Results:
    """Make the tables and the records of a grid. They hold every finished cell, selected or not.

    A number that the records file has already is kept, whatever the store holds. The records in `read_before`, by stage
    key, are not read again. Refuses a file that disagrees with the store, and one that cannot be read.
    """
    computed = computed_records(plan, store, read_before)
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
    warning = (
        f"Warning: of {disagreements} cells another file has another number; those of the file named first are shown."
    )
    grid = dataclasses.replace(content.grid, warnings=(*content.grid.warnings, *([warning] if disagreements else [])))
    order = {name: number for axis in (grid.rows, grid.tasks, grid.seeds) for number, name in enumerate(axis)}

    def position(record: Record) -> list[int]:
        try:
            return [order[record[axis]] for axis in ("method", "task", "seed")]
        except KeyError as error:
            raise InputError(f"{record['cell']} is no cell of the grid {grid.name}, which has no {error}.") from error

    cells = dict(sorted(content.cells.items(), key=lambda item: position(item[1])))
    return Results(RecordsFile(grid, cells, content.stages), results, RecordsFile(None, {}, {}))


# ------------------------------------------------------------------------------------------------ tables


BOLD = ("\x02", "\x03")
"""Stand around what is to be bold until the format is known."""


def tables(facts: GridFacts, records: Sequence[Record], stages: Mapping[str, Record]) -> dict[str, str]:
    """Write the table in every format, by the ending of its file."""
    runs = runs_of(facts, records, stages)
    head, *body = array(facts, runs)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *([_bold(cell, "", "") for cell in row] for row in body)])
    latex = tabulate(body, headers=head, tablefmt="latex_booktabs", disable_numparse=True)
    latex = _bold(latex, r"\textbf{", "}").replace("±", r"$\pm$").replace("–", "--")
    # The differences to the reference row and the legend stand in Markdown alone.
    differences = differences_to(runs, facts.reference)
    over_tasks = runs.over_tasks(facts.reference) if len(facts.tasks) > 1 else []
    compared = difference_rows(differences, facts.reference, over_tasks)
    legend = [*_comparison(facts, differences, over_tasks), *cost_line(facts, records, stages)]
    parts = [_in_markdown(lines) for lines in ([head, *body], compared) if lines]
    markdown = "\n\n".join([f"# {facts.name}", *parts, _legend(facts, records, legend)])
    return {"md": markdown, "csv": text.getvalue(), "tex": f"{latex}\n"}


def _in_markdown(lines: list[list[str]]) -> str:
    head, *body = lines
    return _bold(tabulate(body, headers=head, tablefmt="github", disable_numparse=True), "**", "**")


def _bold(text: str, before: str, after: str) -> str:
    return text.replace(BOLD[0], before).replace(BOLD[1], after)


def array(facts: GridFacts, runs: RunTable) -> list[list[str]]:
    """Fill the table: a line of heads, one for each row of the grid, then what the test sets are."""
    # A cell of the table is a method on a task; its values are one for each seed that has finished. Example: accuracies
    # .90 and .92 of three planned seeds read "91.00 ± 1.41 (2/3)".
    best = {task: runs.best(task) for task in facts.tasks}
    ranks = runs.average_ranks() if len(facts.tasks) > 1 else {}
    body = []
    for row in facts.rows:
        cells = [runs.summary(row, task).text() for task in facts.tasks]
        cells = [f"{BOLD[0]}{cell}{BOLD[1]}" if best[t] == row else cell for t, cell in zip(best, cells, strict=True)]
        body.append([row, *cells, *([f"{ranks[row]:.1f}" if row in ranks else "–"] if ranks else [])])
    padding = [""] if ranks else []
    sizes = [str(facts.test[task].examples) if task in facts.test else "–" for task in facts.tasks]
    tests = [["most frequent class", *baseline_row(facts), *padding], ["test examples", *sizes, *padding]]
    return [["method", *facts.tasks, *(["average rank"] if ranks else [])], *body, *(tests if facts.test else [])]


def _legend(facts: GridFacts, records: Sequence[Record], of_comparison: Sequence[str]) -> str:
    files = f"{facts.name}/records.jsonl (the grid, then a JSON object per finished cell) and stages.jsonl beside it"
    lines = [
        *facts.legend,
        *lost_candidates(records),
        *of_comparison,
        f"Code: {_distinct(records, 'commit') or 'no finished cell'}.",
        f"Machine: {_distinct(records, 'device', 'instruction_set', 'threads') or 'no finished cell'}.",
        *_mixed_devices(records),
        *(f"Warning: {line}." for line in inactive_parts(records)),
        *facts.warnings,
        f"Records: {files}; python -m bench.collate --records rebuilds this table from them.",
    ]
    return "".join(f"- {line}\n" for line in lines)


def _comparison(
    facts: GridFacts, differences: Mapping[str, Sequence[Difference]], over_tasks: Sequence[OverTasks]
) -> list[str]:
    """Say what bold, differences, p and P mean, as far as they occur."""
    lines = ["Bold: complete, and better than every other row of its column by an interval that excludes 0."]
    if len(facts.rows) > 1:
        what = "mean over common seeds of the paired differences, positive where the row is better"
        lines.append(f"Differences to {facts.reference}: {what}, with its 95 % t interval.")
    if any(difference.conditional for of_tasks in differences.values() for difference in of_tasks):
        why = "a stage or choice that only one of the two rows has is the same for several seeds"
        lines.append(f"{CONDITIONAL} {FINE_TUNING_ONLY}: {why}, so its luck is in all of them; such pairs get no bold.")
    if any(result.p is not None for result in over_tasks):
        counts = f"{len(facts.tasks)} task means, {len(facts.seeds)} seeds planned"
        lines.append(f"p: paired t test over tasks ({counts}), by Holm for all rows together.")
    if (ropes := {result.rope for result in over_tasks} - {None}) != set():
        rope = ", ".join(f"{rope:g}" for rope in ropes if rope is not None)
        lines.append(
            f"P: probabilities of better / within ± {rope} / worse on a new task (Bayesian signed rank); no p."
        )
    return lines


def lost_candidates(records: Sequence[Record]) -> list[str]:
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


def inactive_parts(records: Sequence[Record]) -> Iterator[str]:
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
