"""How long the quickstart takes, from the command to the table, and what its stages wait for; imports no torch."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import bench
from bench.errors import DamagedStore, InputError
from bench.store.files import read_json

GRID = "gin/quickstart.gin"
POLL_SECONDS = 0.02
ONE_STEP = tuple(
    f"{stage}.steps = 1" for stage in ("source_pretrain", "further_pretrain", "supcon_pretrain", "finetune")
)
"""A run of this length reads every data set, so that their arrays are there; it is not timed."""
FIX = "Run the grid again in a fresh store."


class Waited(NamedTuple):
    """A stage on the critical path.

    `waited_for` is a parent or a worker; `began` and `ended` are in seconds.
    """

    stage: str
    waited_for: str
    began: float
    ended: float


@dataclass(frozen=True)
class Timed:
    """One run: seconds to its end, to its first step, critical path."""

    seconds: float
    first_step: float
    path: tuple[Waited, ...]


def compare(against: Path | None, data: Path, device: str, rounds: int, quick: bool) -> dict[str, list[Timed]]:
    """Run the grid in fresh stores, checkouts by turns, on prepared data.

    The other checkout is `against`, if there is one; `quick` trains every stage for one step. Returns the runs of
    "this" and "other".
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


def figures(runs: Mapping[str, Sequence[Timed]]) -> dict[str, Any]:
    """Return this checkout's medians and critical path, and the other's ratio."""
    seconds = {name: statistics.median(run.seconds for run in timed) for name, timed in runs.items()}
    first_step = statistics.median(run.first_step for run in runs["this"])
    facts = {"seconds": seconds["this"], "first_step": first_step, "path": runs["this"][-1].path}
    if "other" in seconds:
        facts |= {"other_seconds": seconds["other"], "quickstart_ratio": seconds["other"] / seconds["this"]}
    return facts


def _run(checkout: Path, data: Path, device: str, settings: Sequence[str]) -> Timed:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store, log = folder / "runs", folder / "log.txt"
        command = [sys.executable, "-m", "bench.grid", "--gin", GRID, "--data", str(data.resolve())]
        command += ["--store", str(store), "--results", str(folder / "results")]
        command += ["--set", *settings] if settings else []
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(checkout), os.environ.get("PYTHONPATH", "")])}
        if device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        began, wall = time.perf_counter(), time.time()
        with log.open("w") as output:
            process = subprocess.Popen(command, cwd=checkout, env=environment, stdout=output, stderr=output)
        # Watched from outside, by the files of the store: an older checkout need not know that it is timed.
        first_step: float | None = None
        while process.poll() is None:
            if first_step is None and _has_begun(store):
                first_step = time.perf_counter() - began
            time.sleep(POLL_SECONDS)
        seconds = time.perf_counter() - began
        if process.returncode != 0 or first_step is None:
            last_line = (log.read_text("utf-8").strip().splitlines() or ["nothing"])[-1]
            raise InputError(f"{GRID} ended with exit status {process.returncode} and said: {last_line}")
        return Timed(seconds, first_step, tuple(critical_path(store, wall)))


def _has_begun(store: Path) -> bool:
    """Tell whether a stage of the store has begun its first step."""
    try:
        attempts = [read_json(path, FIX) for path in store.glob("*/attempts/*.json")]
    except DamagedStore:  # just being written
        return False
    return any(attempt.get("from_step") is not None for attempt in attempts)


def critical_path(store: Path, since: float) -> list[Waited]:
    """Follow the stages back, each to what it waited for.

    A stage begins when its last parent, or a worker, is done. Times are in seconds after `since`. An example, with two
    workers:

        worker 1   |--a--|--c--|         d is the last to end; before it began, the last to end was b,
        worker 2   |---b----|----d---|   of which d is a child: d waited for its parent, and b for the command.
    """
    spans: dict[str, tuple[float, float]] = {}
    for folder in store.iterdir():
        attempts = folder / "attempts"
        if attempts.is_dir():
            ended = max(read_json(end, FIX)["time"] for end in attempts.glob("*.end.json"))
            spans[folder.name] = read_json(attempts / "000001.json", FIX)["began"] - since, ended - since
    path: list[Waited] = []
    last = max(spans, key=lambda name: spans[name][1], default=None)
    while last is not None:
        began, ended = spans[last]
        before = {name: span[1] for name, span in spans.items() if span[1] <= began and name != last}
        previous = max(before, key=lambda name: before[name], default=None)
        # A spec names its parents by their keys, folders end with the first 16 digits.
        parents = re.findall(r'"stage": "([0-9a-f]{16})', (store / last / "spec.json").read_text("utf-8"))
        reason = "a worker" if previous else "the command"
        if previous is not None and previous.rpartition("-")[2] in parents:
            reason = "its parent"
        path.append(Waited(last, reason, began, ended))
        last = previous
    return path[::-1]
