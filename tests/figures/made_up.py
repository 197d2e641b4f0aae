"""Made-up records of small grids, written by hand and not by running anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.figures.charts import Source
from bench.tables.grid_facts import SCHEMA, GridFacts, TestFacts
from bench.tables.records import Record, RecordsFile, lines_of

PROVENANCE = {"device": "A processor", "device_type": "cpu", "commit": "c", "instruction_set": "AVX2", "threads": 1}


def stage(
    name: str, task: str = "digits", seconds: float = 3600.0, seed: int = 0, of: str = "", **fields: Any
) -> Record:
    """A stage's line; `of` makes a second one of the same name and seed another."""
    spec = {"schedule": {"steps": 100}, "data": {"subset": None, "examples": 1000}} | fields
    head = {"key": f"{name}-{task}-{seed}-{of}".ljust(64, "0"), "name": name, "task": task, "seed": seed, "parents": []}
    return {**head, "spec": spec, "seconds": seconds, "provenance": PROVENANCE}


class MadeUp:
    """A grid to which cells are added one by one."""

    def __init__(
        self, rows: Sequence[str], tasks: Sequence[str] = ("digits",), seeds: int = 2, metric: str = "accuracy"
    ) -> None:
        self.facts = GridFacts(
            schema=SCHEMA,
            name="made_up",
            rows=tuple(rows),
            tasks=tuple(tasks),
            seeds=tuple(range(seeds)),
            pretraining_seeds="shared",
            reference="finetune" if "finetune" in rows else rows[0],
            metrics=dict.fromkeys(tasks, metric),
            test={task: TestFacts(100, None) for task in tasks},
            legend=(),
        )
        self.content = RecordsFile(self.facts, {}, {})

    def add(
        self,
        row: str,
        values: Sequence[float | None],
        *parents: Record,
        task: str = "digits",
        measured: Sequence[Mapping[str, float]] = (),
        backbone: str = "backbone",
        **fields: Any,
    ) -> None:
        """Add a row's values on a task, one for each seed; None is a cell that has not finished."""
        metric = self.facts.metrics[task]
        for seed, value in enumerate(values):
            own = stage("finetune", task, seed=seed, of=row, **fields)
            if value is None:
                continue
            self.content.stages.update({line["key"]: line for line in (*parents, own)})
            name = row.partition("/")[0]
            cell = f"{name}/{task}/{backbone}/{seed}"
            self.content.cells[own["key"], cell] = {
                "key": own["key"],
                "cell": cell,
                "row": name,
                "method": row,
                "task": task,
                "backbone": backbone,
                "seed": seed,
                "metric": metric,
                "value": value,
                "metrics": {metric: value},
                "measured": dict(measured[seed]) if measured else {},
                "seconds": own["seconds"],
                "stages": [line["key"] for line in (*parents, own)],
                "search": None,
                "devices": ["CPU"],
                "provenance": PROVENANCE,
            }

    def source(self, store: Path | None = None) -> Source:
        return Source(self.content, store)

    def write(self, folder: Path) -> Path:
        """Write the files of records and stages; return the first."""
        folder.mkdir(parents=True)
        (folder / "stages.jsonl").write_text(lines_of(self.content.stages.values()))
        path = folder / "records.jsonl"
        path.write_text(lines_of([self.facts.as_line(), *self.content.cells.values()]))
        return path
