"""Records -> tables: `results/NAME.md`, `.csv` and `.tex` beside `results/NAME/records.jsonl` and `stages.jsonl`."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tabulate import tabulate

from bench.data.metrics import METRICS
from bench.errors import InputError
from bench.planning.describe import first_of
from bench.planning.plan import Plan, code_span
from bench.specs import walk
from bench.store.activity import describe_inactive, inactive
from bench.store.code import other_code
from bench.store.files import write_text
from bench.store.store import Store
from bench.tables.compare import Difference, OverTasks, RunTable
from bench.tables.comparison import (
    baseline_row,
    comparison_notes,
    cost_line,
    difference_rows,
    difference_text,
    differences_to,
    missing_warning,
    runs_of,
    same_computations,
)
from bench.tables.grid_facts import METRIC_LINE, GridFacts, facts_of
from bench.tables.latex import in_latex
from bench.tables.layout import AXES, Arranged, arranged
from bench.tables.quantities import QUANTITIES, NothingToShow, by_column
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
from bench.tables.verdicts import Judged, judged, published_csv, published_legend, published_rows


@dataclass(frozen=True)
class View:
    """The choice of what a table shows.

    `measure` names a quantity; None is the metric of each column. `layout` names the axis that its columns are on; None
    is a table of rows and tasks.
    """

    measure: str | None = None
    layout: str | None = None

    @property
    def suffix(self) -> str:
        """The part of its files' names after the grid's; no grid's name has an `@`."""
        return "".join(f"@{name}" for name in (self.measure, self.layout) if name is not None)

    @property
    def options(self) -> str:
        """What asks for it on the command line."""
        named = {"--measure": self.measure, "--layout": self.layout}
        return " ".join(f"{option} {name}" for option, name in named.items() if name is not None)


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
    views: tuple[View, ...] = ()
    """What other tables there are to be beside that of the columns' metrics."""

    @property
    def records(self) -> list[Record]:
        """One for each cell that has a number."""
        return list(self.content.cells.values())

    @property
    def name(self) -> str:
        assert self.content.grid is not None
        return self.content.grid.name

    @property
    def records_file(self) -> Path:
        return records_path(self.folder, self.name)

    @cached_property
    def texts(self) -> dict[str, str]:
        """Every table in every format, by the name of its file.

        Refuses a view that the records do not have.
        """
        assert self.content.grid is not None
        texts: dict[str, str] = {}
        for view in (View(), *self.views):
            try:
                written = tables(self.content.grid, self.records, self.content.stages, view)
            except NothingToShow as reason:
                raise InputError(f"{view.options}: {reason}.") from reason
            texts |= {f"{self.name}{view.suffix}{ending}": text for ending, text in written.items()}
        return texts

    @property
    def shown(self) -> list[Path]:
        """The tables that a person asked for."""
        return [self.folder / f"{self.name}{view.suffix}.md" for view in self.views or (View(),)]

    @property
    def markdown(self) -> str:
        """The text of the tables that a person asked for."""
        return "\n".join(self.texts[path.name] for path in self.shown)

    def write(self) -> Path | None:
        """Write all files, and the others into one of their own, whose path is returned."""
        # The records are written before the tables: whoever reads a table has the numbers behind it.
        assert self.content.grid is not None
        set_aside = write_aside(self.others, self.folder, self.name)
        write_text(stages_path(self.records_file), lines_of(self.content.stages.values()))
        write_text(self.records_file, lines_of([self.content.grid.as_line(), *self.records]))
        for name, text in self.texts.items():
            write_text(self.folder / name, text)
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
    warnings = (
        *_outdated(records),
        *(unfinished if awaited else []),
        *_failed(plan, store, {record["cell"] for record in records}),
    )
    facts = dataclasses.replace(facts_of(plan), warnings=warnings)
    selected_done = all(cell.name in in_store for cell in plan.selected)
    return Results(content._replace(grid=facts), results, others, selected_done)


def rebuilt(content: RecordsFile, results: Path) -> Results:
    """Make the tables of records files, without plan or store."""
    grid = content.grid
    assert grid is not None
    order = {name: number for axis in (grid.rows, grid.tasks, grid.seeds) for number, name in enumerate(axis)}

    def position(record: Record) -> list[int]:
        return [order[record[axis]] for axis in ("method", "task", "seed")]

    cells = dict(sorted(content.cells.items(), key=lambda item: position(item[1])))
    return Results(RecordsFile(grid, cells, content.stages), results, RecordsFile(None, {}, {}))


# ------------------------------------------------------------------------------------------------ tables


BOLD = ("\x02", "\x03")
"""Stand around what is to be bold until the format is known."""
Lines = list[list[str]]
"""A line of heads, then one for each row."""


@dataclass(frozen=True)
class Table:
    """A table still to be written in every format.

    Markdown alone has the title, the `further` tables below and the legend.
    """

    title: str
    lines: Lines
    further: tuple[Lines, ...]
    legend: tuple[str, ...]

    def markdown(self) -> str:
        parts = [in_markdown(lines) for lines in (self.lines, *self.further) if len(lines) > 1]
        # The name of a class or file may hold a line break, which would end the item.
        legend = "".join(f"- {_without_html(' '.join(line.splitlines()))}\n" for line in self.legend)
        return "\n\n".join([f"# {self.title}", *parts, legend])

    def csv(self) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([[_bold(cell, "", "") for cell in row] for row in self.lines])
        return text.getvalue()

    def latex(self) -> str:
        head, *body = self.lines
        return _bold(in_latex(head, body), r"\textbf{", "}") + "\n"


def tables(
    facts: GridFacts, records: Sequence[Record], stages: Mapping[str, Record], view: View | None = None
) -> dict[str, str]:
    """Write a table in every format, by the ending of its file.

    Refuses a view that the records do not have.
    """
    view = view or View()
    shown = by_column(facts, view.measure)
    runs = runs_of(facts, records, stages, shown)
    if view.measure is not None and not runs.runs:
        reason = "no cell has finished"
        if records:
            title = QUANTITIES[view.measure].title
            reason = f"no record has the {title}: older versions did not measure it, and --again computes it anew"
        raise NothingToShow(reason)
    if view.layout is not None:
        table, published = _laid_out(facts, records, stages, view, runs), []
    else:
        published = judged(facts, records, stages, runs, view.measure)
        table = _row_by_row(facts, records, stages, view, runs, published)
    texts = {".md": table.markdown(), ".csv": table.csv(), ".tex": table.latex()}
    return texts | ({"@published.csv": published_csv(published)} if published else {})


def _row_by_row(
    facts: GridFacts,
    records: Sequence[Record],
    stages: Mapping[str, Record],
    view: View,
    runs: RunTable,
    published: Sequence[Judged],
) -> Table:
    """Make the table of rows and tasks."""
    differences = differences_to(runs, facts.reference)
    over_tasks = runs.over_tasks(facts.reference) if len(facts.tasks) > 1 else []
    decimals = runs.columns[0].decimals
    further = difference_rows(differences, facts.reference, over_tasks, decimals), published_rows(published)
    every = [difference for of_row in differences.values() for difference in of_row]
    compared = _comparison(facts.reference, runs, every, over_tasks)
    cost = [] if view.measure else cost_line(facts, records, stages)
    legend = _legend(facts, records, stages, view, [*compared, *published_legend(published), *cost])
    title = facts.name if view.measure is None else f"{facts.name}: {QUANTITIES[view.measure].label}"
    return Table(title, array(facts, runs, _test_metrics(facts, view.measure)), further, tuple(legend))


def _laid_out(
    facts: GridFacts, records: Sequence[Record], stages: Mapping[str, Record], view: View, runs: RunTable
) -> Table:
    """Make the table of methods over an axis."""
    assert view.layout is not None
    axis = AXES[view.layout]
    cells: dict[tuple[str, str], list[Record]] = {(row, task): [] for row in facts.rows for task in facts.tasks}
    for record in records:
        cells[record["method"], record["task"]].append(record)
    laid = arranged(axis, runs, cells, stages)
    best = {column: laid.runs.best(column) for column in laid.columns.values()}
    lines = _over_positions(laid, facts, "method", lambda row, column: _cell(laid.runs, row, column, best[column]))
    reference = laid.series.get(facts.reference)
    differences = {
        (row, column): laid.runs.difference(row, reference, column)
        for row, column in laid.spots
        if reference is not None and row != reference and (reference, column) in laid.spots
    }
    texts = {cell: difference_text(each, laid.runs.columns[0].decimals) for cell, each in differences.items()}
    compared = _over_positions(laid, facts, f"minus {reference}", lambda row, column: texts.get((row, column), ""))
    notes = [
        f"Columns: {axis.label}. A line is a method, whose rows differ in them; or a row, where two share a column.",
        *([f"Not in the table: {'; '.join(laid.unplaced)}."] if laid.unplaced else []),
        *_comparison(reference, laid.runs, list(differences.values())),
    ]
    quantity = "test metric" if view.measure is None else QUANTITIES[view.measure].label
    title = f"{facts.name}: {quantity} over {axis.title}"
    return Table(title, lines, (compared,), tuple(_legend(facts, records, stages, view, notes)))


def _over_positions(laid: Arranged, facts: GridFacts, head: str, text: Callable[[str, str], str]) -> Lines:
    """Write a line for each task and row that has a text.

    It has a column for each position. `text` is handed a row and a column of the arranged runs.
    """
    # Positions of another task stay empty. Example: digits has rows at 100 and 1000 examples, pydocs at 100 and 2000:
    #   task    method    100          1000         2000
    #   digits  finetune  80.00 (1)    90.00 (1)
    #   pydocs  finetune  70.00 (1)                 95.00 (1)
    several = len(facts.tasks) > 1
    body = []
    for task in facts.tasks:
        for row in laid.runs.rows:
            columns = [laid.columns.get((task, position)) for position in laid.positions]
            cells = [text(row, column) if column and (row, column) in laid.spots else "" for column in columns]
            if any(cells):
                body.append([*([task] if several else []), row, *cells])
    return [[*(["task"] if several else []), head, *map(str, laid.positions)], *body]


def in_markdown(lines: Lines) -> str:
    """Write a table for Markdown."""
    # A name with a bar would be two cells, and one that looks like HTML would be some.
    head, *body = [[cell.replace("|", r"\|").replace("<", "&lt;") for cell in line] for line in lines]
    return _bold(tabulate(body, headers=head, tablefmt="github", disable_numparse=True), "**", "**")


def _without_html(line: str) -> str:
    """Escape the `<` of names that look like HTML, outside of code."""
    code, tag = r"(?<!`)(`++).*?(?<!`)\1(?!`)", r"<(?=[A-Za-z/!?])"
    return re.sub(f"{code}|{tag}", lambda match: match[0] if match[0] != "<" else "&lt;", line)


def _bold(text: str, before: str, after: str) -> str:
    return text.replace(BOLD[0], before).replace(BOLD[1], after)


def _test_metrics(facts: GridFacts, measure: str | None) -> dict[str, str]:
    """Return the metric that each column shows, by its name in a record.

    There is none where the columns show what is no metric.
    """
    if measure is None:
        return facts.metrics
    return dict.fromkeys(facts.tasks, measure) if measure in METRICS else {}


def array(facts: GridFacts, runs: RunTable, metrics: Mapping[str, str]) -> Lines:
    """Fill the table of rows and tasks: a line of heads, then the rows.

    Two lines on the test sets follow, their most frequent class and their sizes. `metrics` are those of the columns;
    where it is empty, these two are left out.
    """
    # A cell of the table is a method on a task; its values are one for each seed that has finished. Example: accuracies
    # .90 and .92 of three planned seeds read "91.00 ± 1.41 (2/3)".
    best = {task: runs.best(task) for task in facts.tasks}
    ranks = runs.average_ranks() if len(facts.tasks) > 1 else {}
    body = []
    for row in facts.rows:
        cells = [_cell(runs, row, task, best[task]) for task in facts.tasks]
        body.append([row, *cells, *([f"{ranks[row]:.1f}" if row in ranks else "–"] if ranks else [])])
    padding = [""] if ranks else []
    if facts.test and metrics:
        sizes = [str(facts.test[task].examples) if task in facts.test else "–" for task in facts.tasks]
        body.append(["most frequent class", *baseline_row(facts, metrics), *padding])
        body.append(["test examples", *sizes, *padding])
    return [["method", *facts.tasks, *(["average rank"] if ranks else [])], *body]


def _cell(runs: RunTable, row: str, column: str, best: str | None) -> str:
    text = runs.summary(row, column).text()
    return f"{BOLD[0]}{text}{BOLD[1]}" if best == row else text


def _legend(
    facts: GridFacts, records: Sequence[Record], stages: Mapping[str, Record], view: View, of_table: Sequence[str]
) -> list[str]:
    """Say all that a reader of a table needs.

    `of_table` are the lines about what it compares.
    """
    files = f"{facts.name}/records.jsonl (the grid, then a JSON object per finished cell) and stages.jsonl beside it"
    options = f"{view.options} --records".strip()
    return [
        *(facts.legend if view.measure is None else _legend_of_quantity(facts, records, view.measure)),
        *lost_candidates(records),
        *several_numbers(records),
        *same_computations(facts, records),
        *of_table,
        f"Code: {_distinct(records, 'commit') or 'no finished cell'}.",
        f"Machine: {_distinct(records, 'device', 'instruction_set', 'threads') or 'no finished cell'}.",
        *missing_warning(records, stages),
        *_mixed_commits(records),
        *_mixed_devices(records),
        *(f"Warning: {line}." for line in inactive_parts(records)),
        *facts.warnings,
        f"Records: {files}; python -m bench.collate {options} rebuilds this table from them.",
    ]


def _legend_of_quantity(facts: GridFacts, records: Sequence[Record], measure: str) -> list[str]:
    """Name a quantity in place of the columns' metrics.

    Says how many finished cells lack it.
    """
    quantity, shown = QUANTITIES[measure], by_column(facts, measure)
    lacking = sum(shown[record["task"]].value(record) is None for record in records)
    return [
        f"Quantity: {quantity.label}. {quantity.explanation}".rstrip(),
        *([f"Warning: {lacking} finished cells have no {quantity.title}; they count as missing."] if lacking else []),
        *(line for line in facts.legend if not line.startswith(METRIC_LINE)),
    ]


def _comparison(
    reference: str | None, runs: RunTable, differences: Sequence[Difference], over_tasks: Sequence[OverTasks] = ()
) -> list[str]:
    """Say what bold and differences mean, as far as they occur."""
    directed = all(column.better is not None for column in runs.columns)
    bold = "Bold: complete, and better than every other row of its column by an interval that excludes 0."
    without = "No bold and no ranks: neither direction is the better one."
    return [bold if directed else without, *comparison_notes(reference, differences, over_tasks, directed)]


def lost_candidates(records: Sequence[Record]) -> list[str]:
    """Say how many candidates of searches behind the numbers diverged."""
    # Cells of several seeds share their candidates, so each is counted once, by its key.
    tried = [candidate for record in records if record.get("search") for candidate in record["search"]["candidates"]]
    lost = len({candidate["key"] for candidate in tried if "diverged" in candidate})
    count = len({candidate["key"] for candidate in tried})
    return [f"Search: {lost} of {count} candidates diverged and counted as the worst."] if lost else []


def several_numbers(records: Sequence[Record]) -> list[str]:
    """Warn of the cells that have other numbers from other computers or code, which their records keep."""
    cells = sum(bool(record.get("also")) for record in records)
    reason = "records of other computers or code have other numbers, which stand under 'also' in the records"
    return [f"Warning: {cells} cells show the number that came first; {reason}."] if cells else []


def _distinct(records: Sequence[Record], *names: str) -> str:
    """List what the records say of their origin, each value once.

    Numbers of different origins may not be comparable.
    """

    def named(provenance: dict[str, Any], name: str) -> str:
        # A number of threads needs a unit; code without a commit is named by the version that is installed.
        if name == "threads":
            return f"{provenance[name]} thread{'s' if provenance[name] > 1 else ''}"
        if name == "commit" and provenance[name] is None:
            return f"version {provenance['versions']['adaptation-bench']}, installed"
        return str(provenance[name])

    return "; ".join(sorted({", ".join(named(r["provenance"], name) for name in names) for r in records}))


def _mixed_commits(records: Sequence[Record]) -> list[str]:
    """Warn where several commits led to the numbers of a table."""
    commits = {record["provenance"]["commit"] for record in records}
    warning = (
        f"Warning: {len(commits)} commits of the code led to these numbers; `provenance` in the records says which."
    )
    return [warning] if len(commits) > 1 else []


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


def _failed(plan: Plan, store: Store, shown: Collection[str]) -> Iterator[str]:
    """Say of which cells a stage failed, so that they have no number."""
    failures: dict[str, str | None] = {}
    cells: dict[str, list[str]] = {}
    for cell in plan.cells:
        if cell.name in shown or cell.stage.unprepared:
            continue
        for stage in walk(cell.stage):
            if stage.key not in failures:
                failures[stage.key] = store.failure(stage)
            if (reason := failures[stage.key]) is not None:
                cells.setdefault(reason.partition(":")[0], []).append(cell.name)
                break
    # Only the kind: a message may name folders of this computer, and tables are published.
    for kind, names in cells.items():
        some = first_of([code_span(name) for name in names], NAMED_CELLS)
        yield f"Warning: no number of {some}, as a stage failed ({kind}); python -m bench.status --failed says why."


NAMED_CELLS = 3
"""How many failed cells a warning names."""


def _outdated(records: Sequence[Record]) -> list[str]:
    """Warn where other code than today's led to a number, or weights that were replaced since."""
    names = [name for record in records for name in other_code(record.get("code", {}))]
    cells = sum(bool(other_code(record.get("code", {}))) for record in records)
    of = ", ".join(f"{name} ({count})" for name, count in sorted(Counter(names).items()))
    code = [f"Warning: {cells} cells were computed by other code than the one that wrote this table, of {of}."]
    swapped = sum(bool(record.get("other_weights")) for record in records)
    weights = [f"Warning: {swapped} cells began with weights that were computed anew since, to other values."]
    return (code if cells else []) + (weights if swapped else [])
