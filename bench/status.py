"""Show how a grid stands: `python -m bench.status --gin gin/quickstart.gin`, whatever launcher runs it.

Exit status: 0 all selected cells done, 1 something failed or is blocked, 2 bad input, 3 still to do.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import baselines
from bench import cli
from bench.monitor.failures import describe_failures, print_log
from bench.monitor.jobs import describe_jobs
from bench.monitor.matrix import describe_states
from bench.monitor.states import ENDED, UNDER_WAY, Finished, Look, look
from bench.planning.plan import Plan, make_plan
from bench.store.states import StageState
from bench.store.store import Store
from bench.training.signals import ended_by_second_signal

REFRESH_SECONDS = 5.0
QUIET_SECONDS = 120.0
"""Watching ends when nothing has been running or queued for so long, though not all is done."""


# -------------------------------------------------------------------------------------------------------- the command


def main(arguments: Sequence[str] | None = None) -> int:
    """Look once, or again and again until everything has ended."""
    parser = cli.parser("python -m bench.status", __doc__ or "")
    cli.add_list(parser, "--only", "GLOB", "cells, as of bench.grid")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--watch", action="store_true", help="look again every few seconds until all has ended")
    what.add_argument("--failed", action="store_true", help="the failed stages by class, with what helps")
    what.add_argument("--jobs", action="store_true", help="the grid's jobs on a cluster, and what each of them runs")
    what.add_argument("--log", metavar="CELL", help="print the log of a cell: row/task/backbone/seed")
    options = parser.parse_args(arguments)
    baselines.register()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a log may hold what this terminal cannot show
    if options.watch:
        with ended_by_second_signal():
            return _watch(options)
    store, plan = Store(options.store), _plan(options)
    view = look(plan, store, {})
    if options.log is not None:
        print_log(plan, store, view, options.log)
        return 0
    if options.failed:
        print(describe_failures(plan, store, view))
    elif options.jobs:
        print(describe_jobs(plan, store, view))
    else:
        print(_text(plan, view, options.results))
    table = options.results / f"{plan.table_name}.md"
    if table.is_file() and not (options.failed or options.jobs):
        print(f"table: {table}")
    return _exit_status(plan, view)


def _watch(options: argparse.Namespace) -> int:
    """Show what changes until all has ended, or nothing more will happen by itself.

    Ctrl-C ends only the watching.
    """
    store, before, last_active = Store(options.store), "", time.monotonic()
    done: Finished = {}
    try:
        plan = _plan(options)
        while True:
            view = look(plan, store, done)
            if (text := _text(plan, view, options.results)) != before:
                print(f"\033[H\033[2J{text}" if sys.stdout.isatty() else text, flush=True)
            before, states = text, {seen.state for seen in view.seen.values()}
            if states & UNDER_WAY:
                last_active = time.monotonic()
            elif states <= ENDED or time.monotonic() - last_active > QUIET_SECONDS:
                return _exit_status(plan, view)
            time.sleep(REFRESH_SECONDS)
            plan = _plan(options) if plan.unprepared else plan
    except KeyboardInterrupt:
        return 0


def _plan(options: argparse.Namespace) -> Plan:
    # Looked up nowhere: `look` reads each folder itself, and takes damage for a state instead of an error.
    return make_plan(options.gin, options.set, options.only, cli.data_root(options), None, check_sources=False)


def _text(plan: Plan, view: Look, results: Path) -> str:
    table = results / f"{plan.table_name}.md"
    if table.is_file() and table.stat().st_mtime > view.tables_time:  # written since, by whomever
        view.tables = ""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    return describe_states(plan, view, sys.stdout.encoding, width)


def _exit_status(plan: Plan, view: Look) -> int:
    states = {view.of(cell).state for cell in plan.selected}
    if states & (ENDED - {StageState.DONE}):
        return 1
    return 0 if states == {StageState.DONE} else 3


if __name__ == "__main__":
    sys.exit(cli.reporting_errors(main))
