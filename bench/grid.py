"""Run a grid: `python -m bench.grid --gin gin/quickstart.gin`.

Exit status: 0 all selected cells done, 1 some failed or blocked, 2 bad input (nothing was written), 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from bench import cli
from bench.data import check_preparable, prepare
from bench.errors import InputError
from bench.plan import Plan, describe, make_plan
from bench.specs import walk
from bench.store import Store


def main(arguments: Sequence[str] | None = None) -> int:
    """Plan, prepare what is embedded, run, write the tables."""
    parser = cli.parser("python -m bench.grid", __doc__ or "")
    parser.add_argument("--plan", action="store_true", help="show what would run, and exit")
    parser.add_argument(
        "--only", nargs="+", action="extend", default=[], metavar="GLOB", help="cells: row/task/backbone/seed"
    )
    parser.add_argument("--launcher", choices=("inline", "local"), default="local")
    parser.add_argument(
        "--workers", type=int, help="processes of the local launcher (default: one per GPU, or per core)"
    )
    parser.add_argument("--retry", action="store_true", help="run stages again whose last attempt failed")
    given = parser.parse_args(arguments)
    if given.workers is not None and given.workers < 1:
        raise InputError(f"--workers {given.workers}: must be at least 1.")
    store, data = Store(given.store), cli.data_root(given)
    plan = make_plan(given.gin, given.set, given.only, data, store)
    if given.plan:
        print(describe(plan))
        return 0
    check_preparable(plan.unprepared)
    cli.check_writable("--store", given.store)
    cli.check_results(given.results, plan.grid.name)
    if plan.unprepared:
        cli.check_writable("--data", data)
        for name in sorted(plan.unprepared):
            print(f"preparing {name} in {data}", flush=True)
            prepare(name, data)
        plan = make_plan(given.gin, given.set, given.only, data, store)
    print(describe(plan), flush=True)
    interrupted = False
    if plan.to_run(given.retry):
        interrupted = _run(plan, given, store, data)
    status = cli.write_tables(plan, store, given.results)
    if interrupted:
        print("interrupted: checkpoints are written; the same command goes on from them", file=sys.stderr)
        return 130
    return 0 if all(store.record(cell.stage) is not None for cell in plan.selected) else status


def _run(plan: Plan, given: argparse.Namespace, store: Store, data: Path) -> bool:
    """Run what is to run; says whether it was interrupted."""
    from bench.launch import inline, local
    from bench.launch.queue import Queue
    from bench.progress import Reporter
    from bench.worker import Settings, StopFlag

    stages = plan.to_run(given.retry)
    failed = {} if given.retry else plan.failed
    queue = Queue(stages, plan.done, failed)
    for stage in plan.stages:
        if not stage.unprepared:
            store.add(stage)
    stop = StopFlag()
    devices = _devices()
    settings = [Settings(data, device, plan.grid.threads, plan.grid.checkpoint_steps) for device in devices]
    with stop.on_signals(), Reporter(len(stages), _rows(plan)) as report:
        if given.launcher == "inline":
            inline.run(queue, store, settings[0], stop, report)
        else:
            count = given.workers or (len(devices) if devices != ["cpu"] else max(1, _cores() // plan.grid.threads))
            count = min(count, len(stages))
            local.run(queue, store, [settings[i % len(settings)] for i in range(count)], stop, report)
    for stage in plan.stages:
        if stage.key in queue.failed:
            print(f"failed: {stage.folder}: {queue.failed[stage.key]}\n  log: {store.folder(stage) / 'log.txt'}")
    for cell in plan.selected:
        if cell.stage.key in queue.blocked:
            print(f"blocked: {cell.name}: {queue.blocked[cell.stage.key]}")
    return stop()


def _rows(plan: Plan) -> dict[str, str]:
    rows: dict[str, dict[str, None]] = defaultdict(dict)
    for cell in plan.selected:
        for stage in walk(cell.stage):
            rows[stage.key][cell.row] = None
    return {key: ", ".join(names) for key, names in rows.items()}


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _devices() -> list[str]:
    import torch

    return [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cpu"]


if __name__ == "__main__":
    sys.exit(cli.reporting_errors(main))
