"""Hand a plan to Slurm: job arrays with dependencies, submitted through submitit; nothing waits for them here.

Submitting is idempotent: what is queued or running already is left alone, also where an earlier submission was killed
before it noted an id. Jobs never submit; the whole graph is planned here.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.errors import InputError
from bench.launch.slurm import client, ledger, sbatch, supervisor
from bench.launch.slurm.arrays import Array, Queued, arrange
from bench.launch.slurm.assignment import Assignment
from bench.launch.slurm.client import JobState, SlurmError
from bench.launch.slurm.ledger import Submission
from bench.launch.slurm.limits import array_size
from bench.launch.slurm.snapshot import snapshot
from bench.planning.gin_files import copy_gin
from bench.planning.load import load_grid
from bench.planning.plan import Plan, look_up
from bench.specs import Stage
from bench.store.states import why_blocked
from bench.store.store import Store
from bench.tables.command import run_as_job
from bench.training.protocol import Settings

ENDING_SECONDS = 90.0
"""For so long jobs that are just ending are waited for before their stages are submitted again."""
TABLES_MINUTES = 15
"""The time limit of the job that writes the tables."""


@dataclass
class Submitted:
    """What a submission came to: arrays, ids, and what hindered it."""

    arrays: list[Array] = field(default_factory=list)
    job_ids: list[str] = field(default_factory=list)
    in_flight: dict[str, Queued] = field(default_factory=dict)
    """Key of a stage that was queued or running before -> its element."""
    blocked: dict[str, str] = field(default_factory=dict)
    """Key of a stage that was not submitted -> which failure is in its way."""
    tables_job: str | None = None
    refused: str = ""
    """Slurm's words where it refused an array after others were submitted."""
    tables_refused: str = ""
    """Slurm's words where it refused the job that writes the tables."""

    @property
    def stages(self) -> list[Stage]:
        """The stages that were submitted."""
        return [stage for array in self.arrays for task in array.tasks for stage in task]


@dataclass(frozen=True)
class CommandLine:
    """What the command line names: gin files, `--set` lines, and folders."""

    gin: Sequence[str]
    set: Sequence[str]
    results: Path
    data: Path

    def for_tables(self, folder: Path, store_root: Path) -> list[str]:
        """Return the arguments of `bench.collate` for the job that writes tables.

        The gin files may change meanwhile, so that the arguments name copies of them in a folder.
        """
        copies = [str(path) for path in copy_gin(self.gin, folder)]
        load_grid(copies, self.set)  # what cannot be read is better told now than by the last job
        arguments = ["--gin", *copies, *(["--set", *self.set] if self.set else [])]
        for option, path in (("--store", store_root), ("--results", self.results), ("--data", self.data)):
            arguments += [option, str(path.absolute())]
        return arguments


# ------------------------------------------------------------------------------------------------------ submitting


def submit(plan: Plan, store: Store, command_line: CommandLine, retry: bool = False) -> Submitted:
    """Submit what is neither done nor queued, then the tables' job.

    Raises InputError with sbatch's own words if it refuses the first one; what was submitted before another refusal
    stays queued, and the same command goes on from there.
    """
    size = array_size(plan.cluster)
    with ledger.submitting(store.root):
        # 1. What is in the queue already: ids that a killed submission never noted are noted now.
        noted = ledger.submissions(store.root)
        submissions, queued = _settled(plan, store)
        for before, now in zip(noted, submissions, strict=False):
            if before.job_id is None and now.job_id is not None:
                ledger.complete(store.root, before, now.job_id)
        # 2. What is left to submit, by what the store holds after that look: a job may have ended meanwhile.
        look_up(plan, store)
        submitted = _missing(plan, store, submissions, queued, retry, size)
        # 3. The specs, which the jobs read, then the arrays, then the tables' job, which waits for all of them.
        if submitted.arrays:
            with ThreadPoolExecutor(16) as pool:  # each waits for the disk
                list(pool.map(store.add, (stage for stage in plan.stages if not stage.unprepared)))
            _submit_arrays(submitted, plan, store, command_line.data)
        if not submitted.refused:
            _submit_tables(submitted, plan, store, command_line, submissions, queued)
    return submitted


def _settled(plan: Plan, store: Store) -> tuple[list[Submission], dict[str, JobState]]:
    """Ask Slurm, and wait for this plan's jobs that are just ending.

    It is not known yet whether those are to be requeued. After ENDING_SECONDS they are waited for no more.
    """
    open_stages = {stage.folder for stage in plan.stages if stage.key not in plan.done}
    end, waiting_is_told = time.monotonic() + ENDING_SECONDS, False
    while True:
        submissions, queued = ledger.look(store.root)
        ending = sum(
            not open_stages.isdisjoint(task) and ledger.element_state(submission, index, queued).state == "COMPLETING"
            for submission in submissions
            for index, task in enumerate(submission.tasks)
        )
        if not ending or time.monotonic() >= end:
            return submissions, queued
        if not waiting_is_told:
            waiting_is_told = True
            print(f"waiting: {ending} jobs of these stages are just ending", flush=True)
        time.sleep(1)


def draft(plan: Plan, store: Store, retry: bool = False) -> Submitted:
    """Return what `submit` would submit now; writes nothing."""
    submissions, queued = ledger.look(store.root)
    return _missing(plan, store, submissions, queued, retry, array_size(plan.cluster))


def _in_flight(
    plan: Plan, store: Store, submissions: Iterable[Submission], queued: Mapping[str, JobState]
) -> dict[str, Queued]:
    """Map stages to the elements of earlier submissions that run them.

    Stages are named by their keys; the elements run or are to run.
    """
    by_folder = {stage.folder: stage for stage in plan.stages if stage.key not in plan.done}
    in_flight = {}
    for submission in submissions:
        for index, task in enumerate(submission.tasks):
            element = submission.element(index)
            if element is None or not task or not ledger.element_state(submission, index, queued).live:
                continue
            for folder in task:
                stage = by_folder.get(folder)
                if stage is not None and not _failed_since(submission.time, stage, plan, store):
                    in_flight[stage.key] = Queued(element, packed=len(task) > 1)
    return in_flight


def _failed_since(moment: float, stage: Stage, plan: Plan, store: Store) -> bool:
    """Tell whether a stage failed after a moment.

    The element that was submitted then will not try again.
    """
    if stage.key not in plan.failed:
        return False
    end = store.attempts(stage)[-1].end
    return end is not None and float(end.get("time", 0.0)) > moment


def _missing(
    plan: Plan,
    store: Store,
    submissions: Sequence[Submission],
    queued: Mapping[str, JobState],
    retry: bool,
    max_array_size: int,
) -> Submitted:
    """Decide which arrays are to be submitted.

    Every stage that is to run is one of three: in flight, if an earlier submission runs it; blocked, if a stage that it
    needs failed; else runnable. Example: of A, B and C, each the parent of the next, A failed and a job with C is still
    queued. With `retry`, all three are runnable: C's own job would find no B, and give up. Without, B and C are
    blocked.
    """
    in_flight = _in_flight(plan, store, submissions, queued)
    submitted = Submitted(in_flight=in_flight)
    failed = {} if retry else {key: reason for key, reason in plan.failed.items() if key not in in_flight}
    runnable: list[Stage] = []
    for stage in plan.to_run(retry):  # parents first
        # A failed parent that does not block is one that a search can do without: nothing is to be waited for.
        reason = why_blocked(stage, failed, submitted.blocked)
        ended = plan.done.keys() | failed.keys() | submitted.blocked.keys()
        parents_come = reason is None and all(
            parent.key in ended or parent.key in in_flight for parent in stage.parents
        )
        if parents_come and stage.key in in_flight:
            continue
        in_flight.pop(stage.key, None)  # what is to run it will find a parent missing
        if reason is None:
            runnable.append(stage)
        else:
            submitted.blocked[stage.key] = reason
    ended = plan.done.keys() | failed.keys() | submitted.blocked.keys()
    submitted.arrays = arrange(runnable, ended, plan.cluster.runs_per_job, max_array_size, in_flight)
    return submitted


def _submit_arrays(submitted: Submitted, plan: Plan, store: Store, data: Path) -> None:
    """Submit one array after another.

    A refusal of the first is raised, that of a later one noted.
    """
    cluster, grid = plan.cluster, plan.grid
    code = snapshot(store.root).absolute()
    assignment = Assignment(
        store=store.root.absolute(),
        code=code,
        settings=Settings(data.absolute(), "cpu", grid.threads, grid.checkpoint_steps, grid.cuda_graphs),
        gpus=cluster.gpus,
        signal=cluster.signal,
        signal_delay_s=cluster.signal_delay_s,
        give_up_after=cluster.give_up_after,
        stages=(),
    )
    # An array's dependencies name the ids of those before it, so each is submitted before the next one is built. A kill
    # in between leaves the arrays so far in the queue, and the next `submit` adds the others to them.
    for array in submitted.arrays:
        folders = [tuple(stage.folder for stage in task) for task in array.tasks]
        elements = [(replace(assignment, stages=folders[index]),) for index in array.indices]
        submission = ledger.note(store.root, str(grid.name), plan.source, folders)
        log, dependency = ledger.log_folder(store.root, submission.token), array.dependency(submitted.job_ids)
        executor = sbatch.executor(log, cluster, submission.name, array.indices, dependency, code)
        try:
            submitted.job_ids.append(sbatch.make(store.root, submission, executor, supervisor.supervise, elements))
        except SlurmError as error:
            if not submitted.job_ids and not submitted.in_flight:
                raise
            submitted.refused = f"{error}\n{len(submitted.job_ids)} of {len(submitted.arrays)} arrays are submitted."
            submitted.arrays = submitted.arrays[: len(submitted.job_ids)]
            return


def _submit_tables(
    submitted: Submitted,
    plan: Plan,
    store: Store,
    command_line: CommandLine,
    submissions: Sequence[Submission],
    queued: Mapping[str, JobState],
) -> None:
    """Have the tables written once this grid's jobs ended, well or not.

    The job replaces an earlier one of the same kind.
    """
    grid = str(plan.grid.name)
    # `waiting` are the tables' jobs of earlier submissions of this grid, `in_flight` the jobs whose stages are in
    # flight. Examples: with new arrays, the tables have to wait for those, too, so that a new job replaces the waiting
    # one. With none, a waiting job is right as it is; and with nothing waiting and nothing in flight, no job is needed.
    ours = [each.job_id for each in submissions if (each.grid, each.source, each.tasks) == (grid, plan.source, ())]
    waiting = [job for job in ours if job is not None and f"{job}_0" in queued and queued[f"{job}_0"].live]
    in_flight = sorted({each.element.partition("_")[0] for each in submitted.in_flight.values()}, key=int)
    if not submitted.job_ids and (waiting or not in_flight):
        submitted.tables_job = waiting[-1] if waiting else None
        return
    code = snapshot(store.root).absolute()
    dependency = ":".join(["afterany", *in_flight, *submitted.job_ids])
    # A small job that needs no GPU, so that options of sbatch about GPUs must not come along.
    extra = tuple(option for option in plan.cluster.extra if not re.match(r"gres|tres|[\w-]*gpu", option))
    small = replace(plan.cluster, cpus=1, gpus=0, runs_per_job=1, timeout_min=TABLES_MINUTES, signal_delay_s=120)
    cluster = replace(small, extra=extra)
    copies = ledger.folder(store.root) / "gin"
    copies.mkdir(exist_ok=True)
    try:
        arguments = command_line.for_tables(Path(tempfile.mkdtemp(dir=copies)), store.root)
        submission = ledger.note(store.root, grid, plan.source, ())
        log = ledger.log_folder(store.root, submission.token)
        executor = sbatch.executor(log, cluster, submission.name, (0,), dependency, code)
        submitted.tables_job = sbatch.make(store.root, submission, executor, run_as_job, [arguments])
    except InputError as error:  # sbatch's, or that of a gin file that was changed since it was read
        submitted.tables_refused = f"the job that writes the tables: {error}"
        return
    if waiting:
        with contextlib.suppress(SlurmError):  # it began meanwhile, or ended; a table more does no harm
            client.ask("scancel", *waiting)
