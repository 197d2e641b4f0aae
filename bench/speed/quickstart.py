"""How long the quickstart takes, from the command to the table, and what its stages wait for; imports no torch."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import bench
from bench.errors import InputError
from bench.store.files import read_json

GRID = "gin/quickstart.gin"
POLL_SECONDS = 0.02
ONE_STEP = tuple(
    f"{stage}.steps = 1" for stage in ("source_pretrain", "further_pretrain", "supcon_pretrain", "finetune")
)
"""A run of this length reads every data set, so that their arrays are there; it is not timed."""


class Waited(NamedTuple):
    """A stage on the critical path: what it waited for (a parent, a worker), when it began and ended, in seconds."""

    stage: str
    waited_for: str
    began: float
    ended: float


@dataclass(frozen=True)
class Timed:
    """One run of the grid: seconds from the command to its end and to the first step, and the critical path."""

    seconds: float
    first_step: float
    path: tuple[Waited, ...]


def compare(against: Path | None, data: Path, device: str, rounds: int, quick: bool) -> dict[str, list[Timed]]:
    """Run the grid in fresh stores, this checkout and another one by turns, on data prepared before.

    `quick` trains every stage for one step. Returns the runs of "this" and "other".
    """
    checkouts = {"this": Path(bench.__file__).parents[1]}
    if against is not None:
        if not (against / "bench" / "grid.py").is_file():
            raise InputError(
                f"--against {against}: no checkout of this suite. Name a folder that holds bench/ and gin/."
            )
        checkouts["other"] = against.resolve()
    for checkout in checkouts.values():
        _run(checkout, data, device, ONE_STEP)
    runs: dict[str, list[Timed]] = {name: [] for name in checkouts}
    for _ in range(rounds):
        for name, checkout in checkouts.items():
            runs[name].append(_run(checkout, data, device, ONE_STEP if quick else ()))
    return runs


def figures(runs: dict[str, list[Timed]]) -> dict[str, float]:
    """Give the medians: seconds and first step of this checkout, seconds and ratio of the other one where it ran."""
    seconds = {name: statistics.median(run.seconds for run in timed) for name, timed in runs.items()}
    found = {
        "seconds": seconds["this"],
        "first_step": statistics.median(run.first_step for run in runs["this"]),
    }
    if "other" in seconds:
        found |= {"other_seconds": seconds["other"], "quickstart_ratio": seconds["other"] / seconds["this"]}
    return found


def _run(checkout: Path, data: Path, device: str, settings: Sequence[str]) -> Timed:
    with tempfile.TemporaryDirectory() as name:
        store = Path(name) / "runs"
        command = [sys.executable, "-m", "bench.grid", "--gin", GRID, "--data", str(data.resolve())]
        command += ["--store", str(store), "--results", str(Path(name) / "results")]
        command += ["--set", *settings] if settings else []
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(checkout), os.environ.get("PYTHONPATH", "")])}
        if device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        with (Path(name) / "log").open("w+", encoding="utf-8") as log:
            began, wall = time.perf_counter(), time.time()
            process = subprocess.Popen(command, cwd=checkout, env=environment, stdout=log, stderr=subprocess.STDOUT)
            first: float | None = None
            while process.poll() is None:
                if first is None and _has_begun(store):
                    first = time.perf_counter() - began
                time.sleep(POLL_SECONDS)
            seconds = time.perf_counter() - began
            log.seek(0)
            if process.returncode != 0 or first is None:
                said = (log.read().strip().splitlines() or ["nothing"])[-1]
                raise InputError(f"{GRID} ended with exit status {process.returncode} and said: {said}")
        return Timed(seconds, first, tuple(critical_path(store, wall)))


def _has_begun(store: Path) -> bool:
    """Whether a stage of the store has come as far as its first step."""
    for attempt in store.glob("*/attempts/*.json"):
        try:
            facts = json.loads(attempt.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # just being written
            continue
        if facts.get("from_step") is not None:
            return True
    return False


def critical_path(store: Path, since: float) -> list[Waited]:
    """Follow the stages back from the last one: each began when its last parent, or a worker, was done.

    Times are in seconds after `since`.
    """
    spans: dict[str, tuple[float, float]] = {}
    parents: dict[str, set[str]] = {}
    for folder in store.iterdir():
        attempts = folder / "attempts"
        if not attempts.is_dir():
            continue
        fix = "Run the grid again in a fresh store."
        began = read_json(attempts / "000001.json", fix)["began"]
        ended = max(read_json(end, fix)["time"] for end in attempts.glob("*.end.json"))
        spans[folder.name] = began - since, ended - since
        parents[folder.name] = {key[:16] for key in _keys(read_json(folder / "spec.json", fix))}
    path: list[Waited] = []
    last = max(spans, key=lambda name: spans[name][1], default=None)
    while last is not None:
        began, ended = spans[last]
        before = {name: span[1] for name, span in spans.items() if span[1] <= began and name != last}
        previous = max(before, key=lambda name: before[name], default=None)
        if previous is None:
            reason = "the command"
        elif previous.rpartition("-")[2] in parents[last]:
            reason = "its parent"
        else:
            reason = "a worker"
        path.append(Waited(last, reason, began, ended))
        last = previous
    return path[::-1]


def _keys(data: Any) -> list[str]:
    """The keys of all stages that a spec names."""
    if isinstance(data, dict):
        own = [data["stage"]] if isinstance(data.get("stage"), str) else []
        return own + [key for value in data.values() for key in _keys(value)]
    return [key for value in data for key in _keys(value)] if isinstance(data, list) else []
