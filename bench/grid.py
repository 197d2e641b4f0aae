"""Run a grid: `python -m bench.grid --gin gin/quickstart.gin`.

Exit status: 0 all selected cells done (with `--launcher slurm`: submitted), 1 some failed or blocked, or sbatch refused
a part of the jobs, 2 bad input (nothing was written), 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import baselines
from bench import cli
from bench.errors import InputError
from bench.planning.cost import Rates, examples_of, finished_rates, to_measure, unpriced
from bench.planning.describe import counted, describe_plan
from bench.planning.plan import Plan, look_up, make_plan, refuse_edited_plugins, source
from bench.planning.plugins import LOADED
from bench.specs import Selected, Stage
from bench.specs.cluster import Cluster
from bench.store.code import keep_todays
from bench.store.files import in_threads
from bench.store.provenance import cores
from bench.store.store import Store
from bench.tables.command import write_tables
from bench.tables.predictions import paths_while_written
from bench.tables.records import earlier_records

if TYPE_CHECKING:
    from bench.launch.slurm.submit import Submitted
    from bench.training.protocol import Settings


FULL_SECONDS = 60.0
"""Between two tries to submit where other jobs fill the queue."""
LONGEST = f"/checkpoints/.step-{0:08}.json.{0:012}"
"""As long as the longest name below the folder of a stage."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Plan, prepare what is embedded, run, write the tables."""
    options = _parser().parse_args(arguments)
    baselines.register()
    keep_todays()
    # The order: whatever can be refused is refused before anything is written. Arguments first, as they need nothing;
    # then the plan; then what is not prepared, the folders and the devices. Data that come with the packages are
    # prepared then, and the plan is made again, because only now their checksums, and so the stages' keys, are known.
    _check_arguments(options)
    store, data = Store(options.store), cli.data_root(options)
    if options.cancel:
        return _cancel(options)
    plan = make_plan(options.gin, options.set, options.only, data, store, options.again)
    below_store = [f"{stage.folder}{LONGEST}" for stage in plan.stages]
    below_results = paths_while_written(plan)
    if options.plan:
        cli.check_length("--store", options.store, *below_store)
        cli.check_length("--results", options.results, cli.longest_table(plan.table_name), *below_results)
        print(describe_plan(plan, store, _measure(plan, options, store, data) if options.measure else None))
        if options.launcher == "slurm":
            _plan_jobs(plan, options, store, data)
        return 0
    refuse_edited_plugins(plan)
    plan.catalogue.refuse_missing(plan.unprepared, data)
    to_run = plan.to_run(options.retry)
    if to_run or plan.unprepared:  # a finished store may lie on a disk that nobody can write any more
        cli.check_writable("--store", options.store, *below_store)
        _check_folders(to_run, store)
    cli.check_results(options.results, plan.table_name, *below_results)
    devices = [] if options.launcher == "slurm" else _devices(options)
    if options.launcher == "slurm":
        _check_cluster(plan, options, data)
    if plan.unprepared:
        cli.check_writable("--data", data)
        print(f"preparing data in {data}, each up to a minute or two", flush=True)
        for name in sorted(plan.unprepared):
            print(f"{name}: ", end="", flush=True)
            print(plan.catalogue.prepare(name, data), flush=True)
        plan = make_plan(options.gin, options.set, options.only, data, store, options.again)
        refuse_edited_plugins(plan)
    to_run = plan.to_run(options.retry)
    if not to_run:
        print(describe_plan(plan, store), flush=True)
        return write_tables(plan, store, options.results, read_before=plan.records)
    earlier = earlier_records(plan, options.results)  # refuses now what the tables could not be merged with at the end
    print(describe_plan(plan, store), flush=True)
    if plan.again:
        _set_aside(plan, options, store, [*earlier.cells.values()])
    # Others may write the file while this grid runs, and set stages aside: all is read again for the tables.
    del earlier
    plan.records.clear()
    if options.launcher == "slurm":
        return _submit(plan, options, store, data)
    interrupted = _run(plan, options, store, data, devices)
    status = write_tables(plan, store, options.results)
    if interrupted:
        same = f"the same command{' without --again' if options.again else ''}"
        print(f"interrupted: checkpoints are written; {same} goes on from them", file=sys.stderr)
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("python -m bench.grid", __doc__ or "")
    parser.add_argument("--plan", action="store_true", help="show what would run, and exit")
    parser.add_argument("--measure", action="store_true", help="with --plan: time a few steps of what has no price yet")
    cells = "cells: row/task/backbone/seed, or the name of a row, method, task, backbone or kind of stage"
    cli.add_list(parser, "--only", "GLOB", cells)
    parser.add_argument("--launcher", choices=("inline", "local", "slurm"), default="local")
    parser.add_argument(
        "--device", help="cpu, cuda (every GPU) or cuda:N (default: BENCH_DEVICE, else every GPU, or the CPU)"
    )
    parser.add_argument(
        "--workers", type=int, help="processes of the local launcher (default: one per GPU, or per core)"
    )
    parser.add_argument("--workers-per-device", type=int, help="processes of the local launcher on each GPU")
    parser.add_argument("--retry", action="store_true", help="run stages again whose last attempt failed")
    anew = "cells to compute anew; what the store holds of them, and of all that starts from them, is set aside"
    cli.add_list(parser, "--again", "GLOB", anew)
    parser.add_argument("--wait", action="store_true", help="slurm: follow the jobs until all have ended")
    parser.add_argument(
        "--cancel", action="store_true", help="cancel the jobs that --launcher slurm submitted for this grid"
    )
    return parser


def _check_arguments(options: argparse.Namespace) -> None:
    for name, count in (("--workers", options.workers), ("--workers-per-device", options.workers_per_device)):
        if count is not None and count < 1:
            raise InputError(f"{name} {count}: must be at least 1.")
    if options.launcher == "slurm":
        for name, value, instead in (
            ("--device", options.device, "a job asks for GPUs by slurm.gpus, 0 for the CPU"),
            ("--workers", options.workers, "how many jobs run at once is slurm.array_parallelism"),
            ("--workers-per-device", options.workers_per_device, "stages share a job's GPUs by slurm.runs_per_job"),
        ):
            if value is not None:
                raise InputError(f"{name}: is not for --launcher slurm; {instead}.")
    if options.launcher == "inline" and (options.workers_per_device is not None or (options.workers or 1) > 1):
        name = "--workers" if options.workers_per_device is None else "--workers-per-device"
        raise InputError(f"{name}: --launcher inline runs one stage at a time; use --launcher local.")
    if options.workers_per_device is not None and options.workers is not None:
        raise InputError("--workers counts the processes of all devices, --workers-per-device those of one: give one.")
    if options.measure and not options.plan:
        raise InputError("--measure: is for --plan, which it helps to price; a grid that runs is timed anyway.")
    if options.wait and options.launcher != "slurm":
        raise InputError(f"--wait: --launcher {options.launcher} always waits; it is for --launcher slurm.")
    if options.cancel and (options.plan or options.retry or options.wait or options.again):
        raise InputError("--cancel: cannot be combined with --plan, --retry, --wait or --again.")
    if options.again and options.only:
        raise InputError(
            "--again: cannot be combined with --only, which could leave out cells that start from stages to run again."
        )
    if options.cancel and options.only:
        raise InputError("--cancel: cancels all jobs of the grid; single ones can be ended with scancel.")


def _check_folders(stages: Sequence[Stage], store: Store) -> None:
    """Refuse stages that another user began and whose folders this one cannot write."""
    for folder in map(store.folder, stages):
        for part in (folder, folder / "attempts"):
            if part.is_dir() and not os.access(part, os.W_OK | os.X_OK):
                raise InputError(
                    f"--store {store.root}: {part} cannot be written.{cli.shared_hint(part)} Or name another store."
                )


def _set_aside(plan: Plan, options: argparse.Namespace, store: Store, earlier: Sequence[Mapping[str, Any]]) -> None:
    """Set aside the stages of `--again`. Refuses while Slurm has one of them."""
    from bench.launch.again import set_aside

    if options.launcher == "slurm":
        from bench.launch.slurm.submit import draft

        in_flight = draft(plan, store, options.retry).in_flight
        for stage in plan.again:
            if stage.key in in_flight:
                raise InputError(f"--again: {stage.folder} is queued or running. --cancel ends the jobs of this grid.")
    count = set_aside(plan, store, earlier)
    print(f"set aside: {counted(count, 'stage')}, under their names with '.before-' and the time", flush=True)


def _devices(options: argparse.Namespace) -> list[str]:
    """List the devices that stages may run on.

    Refuses devices that are not there, and several workers per device on a CPU.
    """
    from bench.launch.devices import local_devices

    devices = local_devices(options.device or os.environ.get("BENCH_DEVICE") or None)
    if options.workers_per_device is not None and devices == ["cpu"]:
        raise InputError("--workers-per-device: is for GPUs, and stages would run on the CPU; use --workers.")
    return devices


def _measure(plan: Plan, options: argparse.Namespace, store: Store, data: Path) -> Rates:
    """Time a few steps of one stage of each kind that no finished stage prices."""
    if plan.unprepared:
        return {}
    from bench.training.loop import Diverged
    from bench.training.timing import estimated_seconds

    (settings, *_) = _workers(plan, options, data, _devices(options)[:1], 1)
    rates: Rates = {}
    for kind, stages in unpriced(plan, finished_rates(plan, store)).items():
        print(f"measuring: {kind}", flush=True)
        # Settings of one row may diverge at once: then the first of the kind is tried, if it is another than the last.
        for stage in map(to_measure, (stages, stages[:1]) if len(stages) > 1 else (stages,)):
            try:
                rates[kind, ""] = estimated_seconds(stage, settings) / examples_of(stage)
                break
            except Diverged as error:
                print(f"{stage.title} cannot be timed: {error}", flush=True)
    return rates


def _workers(plan: Plan, options: argparse.Namespace, data: Path, devices: Sequence[str], most: int) -> list[Settings]:
    """Give each worker of the local launcher its device. There are `most` workers at most."""
    from bench.training.protocol import Settings

    grid = plan.grid
    usual = max(1, cores() // grid.threads) if devices == ["cpu"] else len(devices) * (options.workers_per_device or 1)
    # Example: 3 workers on 2 GPUs get cuda:0, cuda:1 and cuda:0; for those on cuda:0 `shared` is true.
    used = [devices[number % len(devices)] for number in range(min(options.workers or usual, most))]
    return [
        Settings(
            data,
            device,
            grid.threads,
            grid.checkpoint_steps,
            grid.cuda_graphs,
            used.count(device) > 1,
            tuple(LOADED.values()),
        )
        for device in used
    ]


def _run(plan: Plan, options: argparse.Namespace, store: Store, data: Path, devices: Sequence[str]) -> bool:
    """Run what is to run; tell whether it was interrupted."""
    from bench.launch import inline, local
    from bench.launch.queue import Queue
    from bench.launch.reporter import Reporter
    from bench.training.signals import StopFlag

    stages = plan.to_run(options.retry)
    failed = {} if options.retry else plan.failed
    queue = Queue(stages, plan.done, failed)
    in_threads(store.add, [stage for stage in plan.stages if not stage.unprepared])
    stop = StopFlag()
    workers = _workers(plan, options, data, devices, 1 if options.launcher == "inline" else len(stages))
    if stages:
        count = f"{counted(len(stages), 'stage')} in {counted(len(workers), 'worker')}"
        print(f"running {count}; before the first one torch is imported: seconds", flush=True)
    reporter = Reporter(
        len(stages), _rows(plan), stages=stages, rates=finished_rates(plan, store), workers=len(workers)
    )
    with stop.on_signals(), reporter as report:
        if options.launcher == "inline":
            inline.run(queue, store, workers[0], stop, report)
        else:
            local.run(queue, store, workers, stop, report)
    _report_failures(plan, options, store, queue.failed, queue.blocked)
    return stop()


def _report_failures(
    plan: Plan, options: argparse.Namespace, store: Store, failed: Mapping[str, str], blocked: Mapping[str, str]
) -> None:
    """Name the cells that failed or are blocked, each failed one with the command that shows its log."""
    cells = plan.first_cells() if failed else {}
    # A search that is not blocked, though one of its candidates diverged, goes on with the others.
    searches = [stage for stage in plan.stages if isinstance(stage, Selected) and stage.key not in blocked]
    spared = {candidate.key for search in searches for candidate in search.candidates}
    for stage in plan.stages:
        if stage.key in failed:
            rest = "; its search goes on with the other candidates" if stage.key in spared else ""
            print(f"failed: {cells[stage.key]}: its stage {stage.name}: {failed[stage.key]}{rest}")
            if (log := store.folder(stage) / "log.txt").exists():
                # The log of a cell is not that of a candidate which its search could do without.
                shown = log if stage.key in spared else _status_command(options, "--log", cells[stage.key])
                print(f"  its log: {shown}")
    for cell in plan.selected:
        if cell.stage.key in blocked:
            print(f"blocked: {cell.name}: {blocked[cell.stage.key]}")


# ------------------------------------------------------------------------------------------------------- a cluster


def _check_cluster(plan: Plan, options: argparse.Namespace, data: Path) -> None:
    from bench.launch.slurm import limits

    kinds: dict[Cluster, list[str]] = defaultdict(list)
    for kind, cluster in plan.clusters.items():
        kinds[cluster].append(kind)
    warnings: dict[str, None] = {}  # each once, in order
    for cluster, names in kinds.items():
        try:
            of_cluster = limits.check(cluster, plan.grid.threads, {"--store": options.store, "--data": data})
        except InputError as error:
            if len(kinds) == 1:
                raise
            raise InputError(f"jobs for {', '.join(names)}: {error}") from error
        warnings.update(dict.fromkeys(of_cluster))
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


def _plan_jobs(plan: Plan, options: argparse.Namespace, store: Store, data: Path) -> None:
    """Show the arrays that would be submitted."""
    from bench.launch.slurm.describe import describe_submission
    from bench.launch.slurm.submit import draft

    if plan.unprepared:
        print("jobs: unknown until the data are prepared")
        return
    _check_cluster(plan, options, data)
    drafted = draft(plan, store, options.retry)
    arrays, stages = counted(len(drafted.arrays), "job array"), counted(len(drafted.stages), "stage")
    print(f"jobs: {arrays} for {stages}, and a job for the tables")
    if drafted.arrays:
        print(describe_submission(drafted))


def _submit(plan: Plan, options: argparse.Namespace, store: Store, data: Path) -> int:
    """Hand what is missing to Slurm; follow it if asked to."""
    from bench.launch.slurm.client import may_pass
    from bench.launch.slurm.describe import describe_submission
    from bench.launch.slurm.submit import CommandLine, submit

    command_line, waiting = CommandLine(options.gin, options.set, options.results, data, only=options.only), False
    while True:
        try:
            submitted = submit(plan, store, command_line, options.retry)
            break
        except InputError as error:
            if not (options.wait and may_pass(error)):
                raise
            if not waiting:
                print(f"waiting until Slurm takes jobs again: {error}", flush=True)
        waiting = True
        time.sleep(FULL_SECONDS)
    stages = submitted.stages
    if submitted.arrays:
        arrays = counted(len(submitted.arrays), "job array")
        print(f"submitted: {counted(len(stages), 'stage')} in {arrays}\n{describe_submission(submitted)}")
    if submitted.in_flight:
        print(f"attached: {counted(len(submitted.in_flight), 'stage')} queued or running already")
    if submitted.other_code:
        print(f"{submitted.other_code}; to have yours run: --cancel, then this command again")
    for cell in plan.selected:
        if cell.stage.key in submitted.blocked:
            print(f"blocked: {cell.name}: {submitted.blocked[cell.stage.key]} (--retry runs it again)")
    if not stages and not submitted.in_flight:
        return write_tables(plan, store, options.results)
    if submitted.tables_job is not None:
        print(f"the tables are written by job {submitted.tables_job}, when all others have ended")
    print(f"to follow: {_status_command(options)}", flush=True)
    if options.wait:  # who waits submits what is refused now when there is room, and writes the tables
        return _follow(plan, options, store, submitted)
    refused = submitted.refused or submitted.tables_refused
    if submitted.tables_job is not None and refused and may_pass(refused) and not options.retry:
        print(f"{refused}\nThe job that writes the tables submits what is left then.")
        return 0
    if refused:
        print(f"error: {refused}\nWhen jobs have ended, run the same command to go on.", file=sys.stderr)
    return 1 if refused else 0


def _status_command(options: argparse.Namespace, *more: str) -> str:
    """Return the command that shows how the grid of this command line stands."""
    repeated = [("--gin", options.gin), ("--set", options.set), ("--store", [options.store])]
    repeated += [("--data", [options.data])] if options.data else []
    arguments = [str(text) for option, values in repeated if values for text in (option, *values)]
    return shlex.join(["python", "-m", "bench.status", *arguments, *more])


def _follow(plan: Plan, options: argparse.Namespace, store: Store, submitted: Submitted) -> int:
    """Follow the jobs, and submit what they leave, until all is done or has failed for good."""
    from bench.launch.reporter import Reporter
    from bench.launch.slurm.client import is_unreachable, may_pass
    from bench.launch.slurm.ledger import was_cancelled
    from bench.launch.slurm.submit import CommandLine, progress, progress_to_beat, submit
    from bench.monitor.follow import Ended, follow
    from bench.training.signals import StopFlag

    keys = submitted.wanted
    command_line = CommandLine(options.gin, options.set, options.results, cli.data_root(options), again=1)
    stop, ended, refused = StopFlag(), Ended(), ""
    with stop.on_signals(), Reporter(len(keys), _rows(plan)) as report:
        before, waiting = progress_to_beat(submitted, plan, store), False
        while keys and not stop():
            # Where a limit leaves room for fewer jobs, what no job is left for waits until all others have ended.
            at_once = not (submitted.refused or submitted.fewer)
            ended.add(follow(plan, keys, store, stop, report, at_once))
            if not ended.left or stop():
                break
            # Nobody is left to run these: jobs were lost, or cancelled by Slurm, or too few were allowed at once.
            look_up(plan, store)
            if progress(plan, store) <= before or was_cancelled(store.root, plan.source):
                break
            if not waiting:
                report.console.print(f"submitting again: no job is left for {len(ended.left)} stages", markup=False)
            try:
                submitted = submit(plan, store, command_line)
            except InputError as error:  # the grid was stopped, or Slurm refuses: the table is written all the same
                if is_unreachable(error):
                    report.console.print(f"warning: {error}", markup=False)
                    continue  # following waits for the controller
                if may_pass(error):
                    if not waiting:
                        report.console.print(f"waiting until Slurm takes jobs again: {error}", markup=False)
                    waiting, end = True, time.monotonic() + FULL_SECONDS
                    while time.monotonic() < end and not stop():
                        time.sleep(0.2)
                    continue
                refused = str(error)
                break
            waiting = False
            ended.left.clear()
            keys, before = submitted.wanted, progress_to_beat(submitted, plan, store)
    if stop():
        print("detached: the jobs go on; the same command follows them again, --cancel ends them", file=sys.stderr)
        return 130
    for reason, titles in ended.left_by_reason(plan).items():
        print(f"left: {counted(len(titles), 'stage')}, such as {titles[0]}: {reason}; run the same command to go on")
    if refused:
        print(f"error: {refused}", file=sys.stderr)
    _report_failures(plan, options, store, ended.failed, {**submitted.blocked, **ended.blocked})
    return write_tables(plan, store, options.results)


def _cancel(options: argparse.Namespace) -> int:
    from bench.launch.slurm.cancel import cancel_grid
    from bench.planning.load import load_grid

    Store(options.store).check_exists()
    grid, bindings = load_grid(options.gin, options.set)
    ids, others = cancel_grid(options.store, str(grid.name), source(options.gin, options.set, bindings))
    what = counted(len(ids), "job or array", "jobs or arrays")
    print(f"cancelled {what} of grid {grid.name}{': ' if ids else ''}{' '.join(ids)}")
    for other, left in others.items():
        print(f"left alone: {' '.join(left)}, submitted with {other}; --cancel with the same arguments ends them")
    return 0


def _rows(plan: Plan) -> dict[str, str]:
    """Name the rows that need a stage, by its key."""
    rows: dict[str, list[str]] = defaultdict(list)
    for row, stages in plan.stages_by_row().items():
        for stage in stages:
            rows[stage.key].append(row)
    return {key: ", ".join(names) for key, names in rows.items()}


if __name__ == "__main__":
    sys.exit(cli.reporting_errors(main))
