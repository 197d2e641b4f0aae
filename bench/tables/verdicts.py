"""Which published number a cell of ours is to be held against, and what tables say of it."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.tables.compare import RunTable, Summary
from bench.tables.grid_facts import GridFacts
from bench.tables.layout import lineage, rounds, training_examples
from bench.tables.published import (
    Pretraining,
    PublishedCell,
    Verdict,
    compare_with_published,
    read_published,
)
from bench.tables.quantities import NothingToShow
from bench.tables.records import Record

SETTINGS = ("steps", "epochs", "batch_size", "lr", "weight_decay")
"""What published fields say of a kind of stage, such as `finetune.steps`."""


@dataclass(frozen=True)
class Judged:
    """A cell of ours beside its published counterpart."""

    row: str
    task: str
    ours: Summary
    published: PublishedCell
    verdict: Verdict

    @property
    def cell(self) -> str:
        return f"{self.row} on {self.task}"

    @property
    def table(self) -> str:
        """The published table as people cite it: `table_4_train` is Table 4."""
        return f"Table {self.published.table.split('_')[1]}"


def judged(
    facts: GridFacts,
    records: Sequence[Record],
    stages: Mapping[str, Record],
    runs: RunTable,
    measure: str | None = None,
) -> list[Judged]:
    """Judge every cell that has a published counterpart.

    They come in the order of the rows. `runs` are what the table shows: the columns' metrics, or the quantity that
    `measure` names.
    """
    published = list(read_published().values())
    of_cell: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        of_cell[record["method"], record["task"]].append(record)
    result = []
    for row in facts.rows:
        for task in facts.tasks:
            counterpart = _counterpart(published, row, task, facts.metrics[task], measure)
            if counterpart is None or not of_cell[row, task]:
                continue
            cells = of_cell[row, task]
            fields = {"metric": measure or facts.metrics[task]} | _fields(cells, stages)
            ours = runs.summary(row, task)
            verdict = compare_with_published(ours, counterpart, fields, _pretraining(facts, cells, stages))
            result.append(Judged(row, task, ours, counterpart, verdict))
    return result


def _counterpart(
    published: Iterable[PublishedCell], row: str, task: str, metric: str, measure: str | None
) -> PublishedCell | None:
    """Return the published counterpart of a cell of ours, or None."""
    # A row is published under its own name or that of its method: tapt_10k/tapt is held against the published tapt,
    # and its steps then say that it is not comparable. What the paper prints in several tables counts once, in the
    # first; a table without a margin (of losses) is none that a row's metric is held against, unless it is that metric.
    recipe = row.rpartition("/")[2]
    candidates = [cell for cell in published if cell.task == task and cell.row in (row, recipe)]
    shown = [cell for cell in candidates if cell.fields["metric"] == (measure or metric)]
    others = [] if measure else [cell for cell in candidates if cell.margin is not None]
    return min(shown or others, key=lambda cell: cell.row != row, default=None)


def _fields(cells: Sequence[Record], stages: Mapping[str, Record]) -> dict[str, str | float]:
    """Collect what decides whether cells are comparable.

    It goes by the names of published fields. Where cells, or stages of one kind, differ in a field, its values are
    joined with "and".
    """
    values: dict[str, dict[Any, None]] = defaultdict(dict)
    for record in cells:
        for name, value in _fields_of(record, stages):
            if value is not None:
                values[name][value] = None
    return {name: next(iter(each)) if len(each) == 1 else " and ".join(map(str, each)) for name, each in values.items()}


def _fields_of(record: Record, stages: Mapping[str, Record]) -> Iterator[tuple[str, Any]]:
    """Yield the fields of a cell.

    Where a stage behind it is not known, only those are left that its record says itself.
    """
    yield "backbone", record["backbone"]
    try:
        trained = lineage(record, stages)
    except NothingToShow:
        return
    yield "training_examples", training_examples(trained)
    for stage in trained:
        distilled = re.fullmatch(r"self_distill_\d+", stage["name"]) is not None
        # A published round of self-distillation trains as further pre-training does, so it has the same fields.
        kind = "further_pretrain" if distilled else stage["name"]
        if kind == "further_pretrain" or stage is trained[-1]:
            spec = stage["spec"]
            settings = (spec.get("schedule") or {}) | (spec.get("optimizer") or {})
            yield from ((f"{kind}.{name}", settings.get(name)) for name in SETTINGS)
        if distilled:
            yield "self_distillation.rounds", rounds(trained)
            yield "self_distillation.mae_weight", _mae_weight(stage["spec"].get("objective") or {})


def _mae_weight(objective: Mapping[str, Any]) -> float:
    terms = objective.get("terms", [objective])
    return float(next((term["weight"] for term in terms if term.get("type") == "MaskedAutoEncoding"), 0.0))


def _pretraining(facts: GridFacts, cells: Sequence[Record], stages: Mapping[str, Record]) -> Pretraining:
    """Say how often stages on the task's data before a cell's own ran."""
    earlier = Counter(
        stage["key"] for record in cells for stage in _earlier(record, stages) if stage["task"] == record["task"]
    )
    if not earlier:
        return "none"
    if len(cells) == 1:  # one seed shares with none, so what the grid says of all counts
        return "shared" if facts.pretraining_seeds == "shared" else "per_seed"
    return "shared" if max(earlier.values()) > 1 else "per_seed"


def _earlier(record: Record, stages: Mapping[str, Record]) -> list[Record]:
    """Return the stages before a cell's own; where some are not known, the others with what a search tried."""
    try:
        return lineage(record, stages)[:-1]
    except NothingToShow:
        return [stages[key] for key in record.get("stages", ())[:-1] if key in stages]


# ------------------------------------------------------------------------------------------------ what tables say


def published_rows(cells: Sequence[Judged]) -> list[list[str]]:
    """Write the verdicts: a line of heads, then one for each row."""
    tasks = list(dict.fromkeys(each.task for each in cells))
    texts = {(each.row, each.task): verdict_text(each.verdict) for each in cells}
    rows = dict.fromkeys(each.row for each in cells)
    return [["minus published", *tasks], *([row, *(texts.get((row, task), "") for task in tasks)] for row in rows)]


def verdict_text(verdict: Verdict) -> str:
    """Write `+0.30 [−0.88, 1.48] reproduced`, without what there is not."""
    mean = "" if verdict.mean is None else f"{verdict.mean:+.2f} "
    interval = "" if verdict.low is None else f"[{verdict.low:.2f}, {verdict.high:.2f}] "
    return f"{mean}{interval}".replace("-", "−") + verdict.kind


def published_legend(cells: Sequence[Judged]) -> list[str]:
    """Say what the verdicts mean, and why cells have none.

    A verdict whose interval does not hold the noise of pre-training is named, too.
    """
    if not cells:
        return []
    tables = ", ".join(sorted({each.table for each in cells}))
    source = "; ".join(dict.fromkeys(each.published.source for each in cells))
    lines = [f"Minus published: the mean of each cell less the one in {tables} of {source}."]
    margins = {each.published.margin for each in cells if each.verdict.low is not None}
    if margins:
        margin = ", ".join(f"{margin:g}" for margin in margins if margin is not None)
        lines.append(
            f"Reproduced: Welch's 90 % interval of that difference lies within ± {margin}; different: it lies wholly "
            "outside; undecided: neither, or there is no interval."
        )
    not_comparable = [each for each in cells if each.verdict.kind == "not comparable"]
    without_interval = [each for each in cells if each.verdict.kind == "undecided" and each.verdict.low is None]
    return [
        *lines,
        *_grouped("Not comparable", [(each.verdict.reason, each) for each in not_comparable]),
        *_grouped("Undecided", [(each.verdict.reason, each) for each in without_interval]),
        *_grouped("Fine-tuning noise only", [(each.verdict.caveat, each) for each in cells if each.verdict.caveat]),
    ]


def _grouped(what: str, reasons: Iterable[tuple[str, Judged]]) -> Iterator[str]:
    """Write a line for each reason, with all cells that have it."""
    cells: dict[str, list[str]] = defaultdict(list)
    for reason, each in reasons:
        cells[reason].append(each.cell)
    yield from (f"{what}, as {reason}: {', '.join(of_reason)}." for reason, of_reason in cells.items())


def _as_columns(each: Judged) -> dict[str, Any]:
    """Return all facts of a cell, by the columns of a CSV file."""
    ours, published, verdict = each.ours, each.published, each.verdict
    return {
        "row": each.row,
        "task": each.task,
        "verdict": verdict.kind,
        "reason": verdict.reason,
        "caveat": verdict.caveat,
        "difference": verdict.mean,
        "low": verdict.low,
        "high": verdict.high,
        "margin": published.margin,
        "mean": ours.mean,
        "std": ours.std,
        "n": ours.n,
        "published_table": published.table,
        "published_row": published.row,
        "published_mean": published.mean,
        "published_std": published.std,
        "published_n": published.n,
        "notes": " ".join(published.notes),
    }


def published_csv(cells: Sequence[Judged]) -> str:
    """Write the verdicts as CSV, a line for each cell.

    Numbers have six digits behind the point: their last bits depend on the machine.
    """
    text = io.StringIO()
    lines = [
        {name: round(value, 6) if isinstance(value, float) else value for name, value in _as_columns(each).items()}
        for each in cells
    ]
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()
