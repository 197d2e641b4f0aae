"""Made-up records of a grid of any size, as files."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.tables.grid_facts import SCHEMA, GridFacts, TestFacts
from bench.tables.records import Record, RecordsFile, lines_of, read_file

HOSTILE = "</script><img src=x onerror=alert(1)>"
VERSIONS = {"adaptation-bench": "0.1.0", "numpy": "2.4.6", "python": "3.11.7", "torch": "2.15.0", "timm": "1.0.31"}


def provenance(**changes: Any) -> dict[str, Any]:
    facts = {"commit": "c" * 40, "device": "A processor", "instruction_set": "AVX2", "threads": 1, "cores": 2}
    return {**facts, "device_type": "cpu", "versions": VERSIONS, **changes}


def digest(*names: object) -> str:
    return hashlib.sha256(repr(names).encode()).hexdigest()


def records_of(row: str, task: str, seed: int, value: float, metric: str = "accuracy") -> tuple[Record, list[Record]]:
    """A cell, and the stages behind it: pre-training that all rows and seeds share, and its own."""
    own, parent = digest(row, task, seed), digest(task)
    draw = random.Random(own)
    measured = {name: draw.random() for name in ("encoder_distance", "generalisation_gap", "train_loss", "speed")}
    metrics = {"macro_f1": draw.random(), "mcc": draw.random(), "auroc": draw.random(), metric: value}
    common = {"provenance": provenance(), "seconds": round(60 * draw.random(), 3)}
    spec = {
        "backbone": {"name": "tiny", "depth": 2, "heads": 4, "network": "bert", "type": "MaskedLanguageModel"},
        "data": {"task": task, "split": "train", "examples": 1688, "checksum": digest(task), "labelled": True},
        "evaluation": {"task": task, "split": "test", "examples": 139, "checksum": digest(task, "test")},
        "execution": {"deterministic": False, "precision": "float32"},
        "objective": {"type": "CrossEntropy", "version": 1},
        "optimizer": {"type": "AdamW", "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01},
        "schedule": {"batch_size": 16, "decay": "linear", "epochs": 5.0, "lr": 0.001, "warmup_fraction": 0.1},
    }
    activity = {f"part of {row}": {"value": 0.5, "meaning": "share of steps", "nil": False}}
    named = {"task": task, "seed": seed, "date": "2026-11-27T01:00:00Z", "attempt": 1, "steps": 300, **common}
    stages = [
        {**named, "key": parent, "name": "further_pretrain", "parents": [], "spec": {**spec, "init": "random"}},
        {
            **named,
            "key": own,
            "name": "finetune",
            "parents": [parent],
            "weights": digest(own),
            "metrics": metrics,
            "measured": measured,
            "spec": {**spec, "seed": seed, "init": parent},
        },
    ]
    cell = {
        "key": own,
        "cell": f"{row}/{task}/tiny/{seed}",
        "row": row,
        "method": row,
        "task": task,
        "seed": seed,
        "backbone": "tiny",
        "metric": metric,
        "value": value,
        "metrics": metrics,
        "measured": measured,
        "stages": [parent, own],
        "activity": activity,
        "devices": ["CPU"],
        "seconds_with_parents": 90.5,
        **common,
    }
    return cell, stages


def grid_facts(rows: Sequence[str], tasks: Sequence[str], seeds: Sequence[int], **changes: Any) -> GridFacts:
    facts = {
        "schema": SCHEMA,
        "name": "sample",
        "rows": tuple(rows),
        "tasks": tuple(tasks),
        "seeds": tuple(seeds),
        "pretraining_seeds": "shared",
        "reference": rows[0],
        "metrics": dict.fromkeys(tasks, "accuracy"),
        "test": {task: TestFacts(139, None) for task in tasks},
        "legend": ("A line of the legend.",),
    }
    return GridFacts(**{**facts, **changes})


def sample(rows: Sequence[str], tasks: Sequence[str], seeds: Sequence[int], **changes: Any) -> RecordsFile:
    """A grid of which every cell is there; values differ by row, task and seed."""
    grid = grid_facts(rows, tasks, seeds, **changes)
    cells, stages = {}, {}
    for i, row in enumerate(rows):
        for j, task in enumerate(tasks):
            for seed in seeds:
                value = 0.5 + 0.01 * i + 0.1 * j + 0.001 * seed + 0.0005 * (i * seed % 2)
                cell, behind = records_of(row, task, seed, value, grid.metrics[task])
                cells[cell["key"], cell["cell"]] = cell
                stages |= {stage["key"]: stage for stage in behind}
    return RecordsFile(grid, cells, stages)


def write(content: RecordsFile, folder: Path) -> Path:
    """Write it as the tables are written, and read it back: whatever a sample holds is a legal file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "records.jsonl"
    assert content.grid is not None
    path.write_text(lines_of([content.grid.as_line(), *content.cells.values()]), encoding="utf-8")
    path.with_name("stages.jsonl").write_text(lines_of(content.stages.values()), encoding="utf-8")
    assert read_file(path).cells.keys() == content.cells.keys()
    return path
