"""Write the mini-sweep beside this file again: `python tests/tables/mini_sweep/write.py [FOLDER]`.

Four rows on two tasks with three seeds, and every kind of damage that a reader of records files meets. Plain json, no
code of the suite: what the files mean shall not change with it.

| | digits | pydocs |
|---|---|---|
| finetune | 3 seeds | 3 seeds |
| mars | the same three values: ties | better than all others: bold |
| tapt | pre-training shared by the seeds: conditional | pre-training of each seed; one seed on a GPU |
| r3f | NaN, one value (n = 1), a line that is cut off | seed 2 failed: no record; another commit |
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

NAN = float("nan")
VALUES = {
    ("finetune", "digits"): (0.90, 0.92, 0.91),
    ("mars", "digits"): (0.90, 0.92, 0.91),
    ("tapt", "digits"): (0.93, 0.935, 0.925),
    ("r3f", "digits"): (NAN, 0.88, 0.87),
    ("finetune", "pydocs"): (0.60, 0.62, 0.61),
    ("mars", "pydocs"): (0.70, 0.72, 0.715),
    ("tapt", "pydocs"): (0.65, 0.64, 0.66),
    ("r3f", "pydocs"): (0.50, 0.5205, None),
}
CUT_OFF = ("r3f", "digits", 2)
CPU = {"device": "A processor", "device_type": "cpu"}
GPU = {"device": "A GPU", "device_type": "cuda"}
GRID = {
    "schema": 2,
    "name": "mini_sweep",
    "rows": ["finetune", "mars", "tapt", "r3f"],
    "tasks": ["digits", "pydocs"],
    "seeds": [0, 1, 2],
    "pretraining_seeds": "shared",
    "reference": "finetune",
    "metrics": {"digits": "accuracy", "pydocs": "accuracy"},
    "test": {"digits": {"examples": 60, "per_class": [10, 20, 30]}, "pydocs": {"examples": 30, "per_class": [5, 25]}},
    "legend": ["Made up: no training led to these numbers."],
    "warnings": [],
}


def provenance(row: str, task: str, seed: int) -> dict[str, Any]:
    device = GPU if (row, task, seed) == ("tapt", "pydocs", 0) else CPU
    commit = "b" * 40 if (row, task) == ("r3f", "pydocs") else "a" * 40
    return {**device, "commit": commit, "instruction_set": "AVX2", "threads": 2, "versions": {"torch": "2.11.0"}}


def stage(key: str, name: str, task: str, seconds: float, parents: list[str], origin: dict[str, Any]) -> dict[str, Any]:
    return {
        "key": key,
        "name": name,
        "task": task,
        "seconds": seconds,
        "parents": parents,
        "spec": {"type": "Stage"},
        "provenance": origin,
    }


def sweep() -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """The records of the cells, and the stages behind them by key."""
    cells, stages = [], {}
    for (row, task), values in VALUES.items():
        for seed, value in enumerate(values):
            if value is None:
                continue
            key, origin, parents = f"{row}-{task}-{seed}", provenance(row, task, seed), []
            if row == "tapt":
                parents = [f"pretraining-{task}" + ("" if task == "digits" else f"-{seed}")]
                stages[parents[0]] = stage(parents[0], "further_pretrain", task, 360.0, [], origin)
            stages[key] = stage(key, "finetune", task, 180.0, parents, origin)
            cells.append(
                {
                    "key": key,
                    "cell": f"{row}/{task}/tiny/{seed}",
                    "row": row,
                    "method": row,
                    "task": task,
                    "seed": seed,
                    "metric": "accuracy",
                    "value": value,
                    "metrics": {"accuracy": value},
                    "stages": [*parents, key],
                    "devices": ["A GPU" if origin["device_type"] == "cuda" else "CPU"],
                    "provenance": origin,
                }
            )
    return cells, stages


def files() -> dict[str, str]:
    """The text of both files by their names."""
    cells, stages = sweep()
    lines = [json.dumps({"grid": GRID})]
    for cell in cells:
        line = json.dumps(cell)
        lines.append(line[: len(line) // 2] if (cell["method"], cell["task"], cell["seed"]) == CUT_OFF else line)
    sam = {
        "key": "sam-digits-0",
        "cell": "sam/digits/tiny/0",
        "row": "sam",
        "method": "sam",
        "stages": ["sam-digits-0"],
    }
    of_another_grid = {**cells[0], **sam}
    another_value = {**cells[0], "value": 0.5, "metrics": {"accuracy": 0.5}}
    lines += [
        json.dumps({"epoch": 3, "val_acc": 0.5}),  # of another program
        json.dumps({"grid": {**GRID, "schema": 3, "columns": []}}),  # of a newer version
        json.dumps(of_another_grid),
        json.dumps(another_value),  # the key of line 2
    ]
    of_stages = [*map(json.dumps, stages.values()), json.dumps({"key": "x", "name": 5})]
    return {"records.jsonl": "\n".join(lines) + "\n", "stages.jsonl": "\n".join(of_stages) + "\n"}


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for name, text in files().items():
        (folder / name).write_text(text, encoding="utf-8")
