"""Hand a plan to Slurm: a worklist, and job arrays that pull from it, submitted through submitit; nothing waits here.

Submitting is idempotent: stages for which jobs are queued or running already are left to those, also where an earlier
submission was killed before it noted an id. The jobs that run stages never submit; only the one that writes the tables
does, for what they left (`finish`).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import baselines
from bench.errors import InputError
from bench.launch.slurm import client, ledger, limits, partitions, sbatch, supervisor, troubles, worklist
from bench.launch.slurm.arrays import Array, arrange
from bench.launch.slurm.assignment import Assignment
from bench.launch.slurm.client import JobState, SlurmError
from bench.launch.slurm.cover import covered, first_arrays
from bench.launch.slurm.ledger import Submission
from bench.launch.slurm.snapshot import changed_since, copied_plugins, snapshot
from bench.launch.slurm.worklist import Worklist
from bench.planning.describe import counted
from bench.planning.gin_files import copy_gin
from bench.planning.load import load_grid
from bench.planning.plan import Plan, look_up, make_plan
from bench.planning.plugins import LOADED, as_setting
from bench.specs import Stage
from bench.specs.cluster import Cluster
from bench.store.states import StageState, why_blocked
from bench.store.store import Store, newest_checkpoint
from bench.tables.command import run_as_job
from bench.training.protocol import EXIT_STATUS, Settings

ENDING_SECONDS = 90.0
"""For so long jobs that are just ending are waited for before their stages are submitted again."""
LAUNCH_FAILED = frozenset(("FAILED", "NODE_FAIL", "BOOT_FAIL"))
"""Slurm's words for a job that may never have come to our code."""
TABLES_MINUTES = 15
"""The time limit of the job that writes the tables."""


@dataclass
class Submitted:
    """What a submission came to: arrays, ids, and what hindered it."""

    stages: list[Stage] = field(default_factory=list)
    """Those for which jobs were submitted."""
    arrays: list[Array] = field(default_factory=list)
    job_ids: list[str] = field(default_factory=list)
    wanted: set[str] = field(default_factory=set)
    """Keys of all stages that are neither done nor blocked: to be submitted now or later, or in flight."""
    in_flight: dict[str, str] = field(default_factory=dict)
    """Key of a stage that jobs submitted before are to run -> the worklist that they pull from."""
    earlier: dict[int, list[str]] = field(default_factory=dict)
    """Generation of stages -> the arrays submitted before that are to run what they need."""
    blocked: dict[str, str] = field(default_factory=dict)
    """Key of a stage that was not submitted -> which failure is in its way."""
    by_others: bool = False
    """Whether stages are in flight in jobs that were submitted for another grid, which may be cancelled."""
    other_code: str = ""
    """A sentence on how the code of jobs submitted before differs from today's."""
    fewer: str = ""
    """A sentence on the limit that leaves room for fewer jobs than the grid is wide."""
    tables_job: str | None = None
    refused: str = ""
    """Slurm's words where it refused an array after others were submitted."""
    tables_refused: str = ""
    """Slurm's words where it refused the job that writes the tables."""


@dataclass(frozen=True)
class CommandLine:
    """What the command line names: gin files, `--set` lines, and folders.

    `only` are globs of the cells to run; the tables hold all. `again` counts how often jobs have submitted the grid
    again since a person did.
    """

    gin: Sequence[str]
    set: Sequence[str]
    results: Path
    data: Path
    again: int = 0
    only: Sequence[str] = ()

    def copied(self, folder: Path, code: Path) -> CommandLine:
        """Return what a later job is to be told: absolute paths, and copies of the gin files in a folder.

        The files themselves may change meanwhile; so may plugins, of which the job takes the copies beside the `code`.
        """
        copies = [str(path) for path in copy_gin(self.gin, folder)]
        lines = [text for text in self.set if re.match(r"\s*grid\.plugins\b", text) is None]
        # What cannot be read is better told now than by the last job. The paths of plugins in the copied files are
        # relative to where these were, so this process's own plugins are named instead.
        load_grid(copies, [*lines, *as_setting(LOADED.values())])
        lines += as_setting(copied_plugins(code))
        return CommandLine(copies, lines, self.results.absolute(), self.data.absolute(), self.again, self.only)

    def of_tables(self, store_root: Path) -> list[str]:
        """Return the arguments of `bench.collate` that write the tables."""
        arguments = ["--gin", *self.gin, *(["--set", *self.set] if self.set else [])]
        for option, path in (("--store", store_root), ("--results", self.results), ("--data", self.data)):
            arguments += [option, str(path)]
        return arguments


# ------------------------------------------------------------------------------------------------------ submitting


def submit(plan: Plan, store: Store, command_line: CommandLine, retry: bool = False) -> Submitted:
    """Submit what is neither done nor in other jobs' hands, then the tables' job.

    Raises InputError with sbatch's own words if it refuses the first one; what was submitted before another refusal
    stays queued, and the same command goes on from there.
    """
    with ledger.submitting(store.root):
        # --cancel takes this lock, too: a job that waited for it may have been cancelled, and not have ended yet.
        if command_line.again and ledger.was_cancelled(store.root, plan.source):
            raise InputError("the grid was cancelled")
        # 1. What is in the queue already: ids that a killed submission never noted are noted now.
        noted = ledger.submissions(store.root)
        submissions, queued = _settled(plan, store)
        for before, now in zip(noted, submissions, strict=False):
            if before.job_id is None and now.job_id is not None:
                ledger.complete(store.root, before, now.job_id)
        _note_launch_failures(store, submissions, queued)
        refuse_stopped(plan, store, submissions, retry)
        # 2. What is left to submit, by what the store holds after that look: a job may have ended meanwhile.
        look_up(plan, store)
        submitted, listed = _missing(plan, store, submissions, queued, retry)
        # 3. The specs and the worklist, which the jobs read, then the arrays, then the tables' job, the last one.
        if submitted.arrays:
            with ThreadPoolExecutor(16) as pool:  # each waits for the disk
                list(pool.map(store.add, (stage for stage in plan.stages if not stage.unprepared)))
            worklist.write(store.root, listed)
            if not command_line.again:
                troubles.forget_nodes(store.root)
            _submit_arrays(submitted, listed, plan, store, command_line.data)
        _submit_tables(submitted, plan, store, command_line, submissions, queued)
    return submitted


def _settled(plan: Plan, store: Store) -> tuple[list[Submission], dict[str, JobState]]:
    """Ask Slurm, and wait for this grid's jobs that are just ending.

    It is not known yet whether those are to be requeued. After ENDING_SECONDS they are waited for no more.
    """
    end, waiting_is_told = time.monotonic() + ENDING_SECONDS, False
    while True:
        submissions, queued = ledger.look(store.root)
        ending = sum(
            state.state == "COMPLETING"
            for submission in submissions
            if submission.runs_stages and submission.source == plan.source
            for state in ledger.states(submission, queued)
        )
        if not ending or time.monotonic() >= end:
            return submissions, queued
        if not waiting_is_told:
            waiting_is_told = True
            print(f"waiting for {counted(ending, 'job')} of this grid to end", flush=True)
        time.sleep(1)


def draft(plan: Plan, store: Store, retry: bool = False) -> Submitted:
    """Return what `submit` would submit now; writes nothing."""
    submissions, queued = ledger.look(store.root)
    return _missing(plan, store, submissions, queued, retry)[0]


def _missing(
    plan: Plan, store: Store, submissions: Sequence[Submission], queued: Mapping[str, JobState], retry: bool
) -> tuple[Submitted, Worklist]:
    """Decide what is to be submitted, and in which arrays.

    Every stage that is to run is one of three: in flight, if live jobs will pull it; blocked, if a stage that it needs
    failed; else missing. Example: of A, B and C, each the parent of the next, A failed, and the worklist of a live job
    holds all three. With `retry`, all three are missing, since that job takes A for failed and so pulls none of them;
    without, B and C are blocked.
    """
    submitted = Submitted()
    covering = covered(store.root, submissions, queued)
    attempts = store.each(lambda stage: len(store.attempts(stage)), plan.to_run(retry))
    unblocked, submitted.blocked = _unblocked(plan, retry)
    submitted.wanted = {stage.key for stage in unblocked}
    missing: set[str] = set()
    for stage in unblocked:
        cover = covering.get(stage.folder)
        will_be_tried = stage.key not in plan.failed or (cover is not None and cover.attempts == attempts[stage.key])
        if cover is None or not will_be_tried or any(parent.key in missing for parent in stage.parents):
            missing.add(stage.key)
        else:
            submitted.in_flight[stage.key] = cover.worklist
    submitted.stages = [stage for stage in unblocked if stage.key in missing]
    lists = {*submitted.in_flight.values()}
    submitted.by_others = any(each.worklist in lists and each.source != plan.source for each in submissions)
    submitted.other_code = _other_code(store, submissions, lists)
    # What is missing may wait for what is in flight: that is listed, too, and has jobs already. The new ones wait for
    # those, as they would end if they had nothing to do for a minute.
    listed = worklist.worklist(ledger.new_token(), unblocked if missing else (), attempts, plan.clusters)
    if missing:
        folders, size = {stage.folder for stage in submitted.stages}, limits.array_size(plan.cluster)
        submitted.earlier = _earlier(listed, folders, first_arrays(store.root, submissions, queued))
        room, submitted.fewer = limits.room(plan.cluster)
        submitted.arrays = arrange(listed, room - 1, size, folders)  # one is for the tables
        width = sum(array.jobs for array in arrange(listed, len(listed.entries), len(listed.entries), folders))
        if sum(array.jobs for array in submitted.arrays) >= width:
            submitted.fewer = ""
    return submitted, listed


def _earlier(listed: Worklist, folders: Collection[str], arrays: Mapping[str, str]) -> dict[int, list[str]]:
    """Find the arrays already submitted that the stages in `folders` wait for.

    `arrays` maps the folder of a stage in flight to the id of its array. Returns such ids by the generation of the
    stage that waits. Example: a pre-training P is in flight in array 7, and its fine-tuning A, of generation 1, is
    missing: {1: ['7']}.
    """
    earlier: dict[int, set[str]] = defaultdict(set)
    for entry in listed.entries:
        if entry.folder in folders:
            parents = {listed.entries[parent].folder for parent in entry.parents} - {*folders}
            earlier[entry.generation] |= {arrays[parent] for parent in parents if parent in arrays}
    return {generation: sorted(ids, key=int) for generation, ids in earlier.items() if ids}


def _unblocked(plan: Plan, retry: bool) -> tuple[list[Stage], dict[str, str]]:
    """Divide the stages to run into unblocked ones and blocked ones.

    Of the blocked ones returns the reasons, by key.
    """
    failed, blocked = {} if retry else plan.failed, dict[str, str]()
    unblocked = []
    for stage in plan.to_run(retry):  # parents first
        reason = why_blocked(stage, failed, blocked)
        if reason is None:
            unblocked.append(stage)
        else:
            blocked[stage.key] = reason
    return unblocked, blocked


def _other_code(store: Store, submissions: Sequence[Submission], lists: set[str]) -> str:
    """Say where the code that jobs of these worklists run differs from today's; '' where it does not."""
    of_plan = (each for each in submissions if each.worklist in lists and each.code)
    for code, submission in {each.code: each for each in of_plan}.items():  # several arrays run one copy
        if files := changed_since(store.root, code):
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(submission.time))
            more = f" and {len(files) - 3} more" if len(files) > 3 else ""
            return f"queued with the code of {when}; yours differs in {', '.join(files[:3])}{more}"
    return ""


def _note_launch_failures(store: Store, submissions: Sequence[Submission], queued: Mapping[str, JobState]) -> None:
    """Note, as troubles of their nodes, jobs that failed before our code ran.

    A node that does not see the store, or has another Python, ends them at once: their logs lack the first line.
    """
    noted = {trouble.job for trouble in troubles.read(store.root)}
    for submission in submissions:
        for index, state in enumerate(ledger.states(submission, queued) if submission.worklist else []):
            element = submission.element(index)
            if state.state not in LAUNCH_FAILED or not state.node or element is None or element in noted:
                continue
            logs = ledger.log_folder(store.root, submission.token).glob(f"{element}_*log.out")
            if not any(supervisor.FIRST_WORDS.format(element) in log.read_text(errors="replace") for log in logs):
                reason = f"its job ended before it began: {state.state} {state.exit_code}".rstrip()
                troubles.note(store.root, element, submission.worklist, "", reason, state.node)


def refuse_stopped(plan: Plan, store: Store, submissions: Sequence[Submission], retry: bool) -> None:
    """Refuse a grid that stopped itself since its stages failed alike, unless they are to be tried again."""
    mine = [each for each in submissions if each.source == plan.source and each.worklist]
    reason = _stopped(plan, store, mine[-1].worklist) if mine else None
    if reason is not None and not retry:
        raise InputError(
            f"this grid was stopped: {reason}. bench.status --failed shows the logs. Mend the cause, then go on with "
            "--retry."
        )


def _stopped(plan: Plan, store: Store, token: str) -> str | None:
    """Say why a worklist is stopped; stop it first where its jobs could not.

    Jobs that never come to Python have their troubles noted for them (`_note_launch_failures`), and stop nothing.
    """
    nodes = {trouble.node for trouble in troubles.read(store.root) if trouble.worklist == token}
    if not nodes:
        return troubles.stopped(store.root, token)
    names = partitions.names(plan.cluster.partition)
    return troubles.stop_if_hopeless(store.root, token, (), not partitions.has_others(names, nodes))


def progress(plan: Plan, store: Store) -> int:
    """Return a number that grows whenever a stage of a grid gets further: finished stages and steps in checkpoints."""
    # One more than its steps, so that a stage with a checkpoint of its last step gets further by its end, too.
    return sum(
        stage.total_steps + 1 if stage.key in plan.done else newest_checkpoint(store.folder(stage))
        for stage in plan.stages
    )


def progress_to_beat(submitted: Submitted, plan: Plan, store: Store) -> int:
    """Return what `progress` must have exceeded for a grid to be submitted again without a person.

    Where others' jobs were to run its stages, nothing has to happen first: those may have been cancelled.
    """
    return -1 if submitted.by_others else progress(plan, store)


def _submit_arrays(submitted: Submitted, listed: Worklist, plan: Plan, store: Store, data: Path) -> None:
    """Submit one array after another, in fewer jobs where Slurm refuses that many.

    A refusal of the first is raised, that of a later one noted.
    """
    grid = plan.grid
    code = snapshot(store.root).absolute()
    settings = Settings(
        data.absolute(),
        "cpu",
        grid.threads,
        grid.checkpoint_steps,
        grid.cuda_graphs,
        plugins=copied_plugins(code),
    )
    scontrol = shutil.which("scontrol") or "scontrol"

    def make(array: Array) -> str:
        assignment = Assignment(
            store.root.absolute(), code, settings, listed.token, array.generation, array.cluster, scontrol
        )
        submission = ledger.note(
            store.root,
            str(grid.name),
            plan.source,
            "-".join(array.kinds)[:60],
            worklist=listed.token,
            generation=array.generation,
            kinds=array.kinds,
            jobs=array.jobs,
            code=code.name,
        )
        log = ledger.log_folder(store.root, submission.token)
        dependency = array.dependency(submitted.job_ids, submitted.earlier)
        cluster = _without_nodes(array.cluster, store)
        executor = sbatch.executor(
            log, cluster, submission.name, range(array.jobs), dependency, code, worklist=listed.token
        )
        return sbatch.make(store.root, submission, executor, supervisor.supervise, [(assignment,)] * array.jobs)

    # An array's dependencies name the ids of those before it, so each is submitted before the next one is built. A kill
    # in between leaves the arrays so far in the queue, and the next `submit` adds the others to them.
    for number, wanted in enumerate(submitted.arrays):
        try:
            submitted.arrays[number], id_ = _halved(wanted, make, submitted)
        except SlurmError as error:
            if not submitted.job_ids and not submitted.in_flight:
                raise
            submitted.refused = f"{error}\n{len(submitted.job_ids)} of {len(submitted.arrays)} arrays are submitted."
            submitted.arrays = submitted.arrays[: len(submitted.job_ids)]
            served = {
                entry.folder
                for entry in listed.entries
                if any(each.will_run(entry.generation, listed.clusters[entry.kind]) for each in submitted.arrays)
            }
            submitted.stages = [stage for stage in submitted.stages if stage.folder in served]
            return
        submitted.job_ids.append(id_)


def _halved(array: Array, make: Callable[[Array], str], submitted: Submitted) -> tuple[Array, str]:
    """Make an array with half its jobs, and half of those, until the queue has room for it.

    Slurm has limits that nobody can read in advance: those of accounts above the user's count the jobs of others, too.
    Returns the array that was taken and its id. Raises Slurm's refusal of a single job, or for another reason.
    """
    while True:
        try:
            return array, make(array)
        except SlurmError as error:
            if array.jobs == 1 or not client.is_full(error):
                raise
            submitted.fewer = f"no more may be queued: {error}"
            array = replace(array, jobs=array.jobs // 2)


def _without_nodes(cluster: Cluster, store: Store) -> Cluster:
    """Keep away from nodes in trouble, besides those that the cluster's settings exclude.

    Where a job's partitions have no other nodes, all are used.
    """
    nodes = sorted(troubles.excluded(store.root))
    if not nodes or not partitions.has_others(partitions.names(cluster.partition), nodes):
        return cluster
    others = [option for option in cluster.extra if not option.startswith("exclude")]
    listed = [str(cluster.options["exclude"])] if "exclude" in cluster.options else []
    return replace(cluster, extra=(*others, f"exclude={','.join([*listed, *nodes])}"))


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
    # `waiting` are the tables' jobs of earlier submissions of this grid, `in_flight` the jobs that are to run stages of
    # it. Examples: with new arrays, the tables have to wait for those, too, so that a new job replaces the waiting one.
    # With none, a waiting job is right as it is; and with nothing waiting and nothing in flight, no job is needed. One
    # that has begun does not wait: it may be this very process, in `finish`.
    ours = [each for each in submissions if (each.grid, each.source, each.runs_stages) == (grid, plan.source, False)]
    waiting = [each.job_id for each in ours if each.job_id and ledger.element_state(each, 0, queued).waiting]
    lists = {*submitted.in_flight.values()}
    running = [each for each in submissions if each.runs_stages and each.worklist in lists and each.job_id]
    live = [each for each in running if any(state.live for state in ledger.states(each, queued))]
    in_flight = sorted({str(each.job_id) for each in live}, key=int)
    if not submitted.job_ids and (waiting or not in_flight):
        submitted.tables_job = waiting[-1] if waiting else None
        return
    code = snapshot(store.root).absolute()
    dependency = ":".join(["afterany", *in_flight, *submitted.job_ids])
    # A small job that needs no GPU, so that options of sbatch about GPUs must not come along.
    extra = tuple(option for option in plan.cluster.extra if not re.match(r"gres|tres|[\w-]*gpu", option))
    small = replace(plan.cluster, cpus=1, gpus=0, runs_per_job=1, timeout_min=TABLES_MINUTES, signal_delay_s=120)
    cluster = _without_nodes(replace(small, extra=extra), store)
    copies = ledger.folder(store.root) / "gin"
    copies.mkdir(exist_ok=True)
    try:
        copied = command_line.copied(Path(tempfile.mkdtemp(dir=copies)), code)
        last = (copied, store.root.absolute(), plan.source, progress_to_beat(submitted, plan, store))

        def make() -> str:
            submission = ledger.note(store.root, grid, plan.source)
            log = ledger.log_folder(store.root, submission.token)
            executor = sbatch.executor(log, cluster, submission.name, (0,), dependency, code)
            return sbatch.make(store.root, submission, executor, finish, [last])

        try:
            submitted.tables_job = make()
        except SlurmError as error:
            if not (client.is_full(error) and _gave_up_one(submitted)):
                raise
            submitted.tables_job = make()
    except InputError as error:  # sbatch's, or that of a gin file that was changed since it was read
        submitted.tables_refused = f"the job that writes the tables: {error}"
        return
    if waiting:
        with contextlib.suppress(SlurmError):  # it began meanwhile, or ended; a table more does no harm
            client.ask("scancel", *waiting)


def _gave_up_one(submitted: Submitted) -> bool:
    """Cancel one waiting job of an array that has others, for the tables' job to find room in a full queue.

    The array's other jobs do its work. Returns whether there was one to spare.
    """
    for number, array in reversed(list(enumerate(submitted.arrays))):
        pending = ("--noheader", "--array", "--states=PENDING", "--format=%i", f"--jobs={submitted.job_ids[number]}")
        elements = client.ask("squeue", *pending).split()
        if elements and array.jobs > 1:
            # Not with --state=PENDING: of an array that waits as a whole, that cancels all elements.
            client.ask("scancel", elements[-1])
            submitted.arrays[number] = replace(array, jobs=array.jobs - 1)
            return True
    return False


# ------------------------------------------------------------------------------------------------------ the last job


MOST_AGAIN = 10
"""So often jobs submit a grid again without a person."""
WAIT_MINUTES = 10
"""So long the last job waits for room in a full queue, each time,"""
MOST_WAITS = 150
"""and so often: a day."""
AWAY_SECONDS = 3600.0
"""So long the controller may be away when it asks to start again."""


def finish(command_line: CommandLine, store_root: Path, source: str, progress_before: int) -> None:
    """Write the tables, then submit what the grid's jobs have left, as the last job of a grid.

    Jobs may have been cancelled, or lost with their nodes, or too few were allowed at once. Nothing is submitted if no
    stage got further since this job was submitted, nor after MOST_AGAIN times. Where other jobs fill the queue, this
    one starts again later, as it does where the controller is away or the partition closed. An incomplete table is no
    failure.
    """
    baselines.register()
    run_as_job(*command_line.of_tables(store_root))
    store = Store(store_root)
    plan = make_plan(command_line.gin, command_line.set, command_line.only, command_line.data, store)
    plan.source = source  # that of the files themselves, not of their copies: it says whose jobs these are
    left, _ = _unblocked(plan, retry=False)
    if not left:
        print("nothing is left to submit")
    elif command_line.again >= MOST_AGAIN:
        print(f"{counted(len(left), 'stage')} left, and the grid was submitted again {MOST_AGAIN} times: not once more")
    elif progress(plan, store) <= progress_before:
        print(
            f"{counted(len(left), 'stage')} left, and none got further since the last submission: not submitted again"
        )
    else:
        try:
            submitted = submit(plan, store, replace(command_line, again=command_line.again + 1))
        except InputError as error:  # the grid was stopped, or Slurm refuses: the table is written all the same
            print(f"{counted(len(left), 'stage')} left, which could not be submitted again: {error}")
            if client.may_pass(error):
                _come_again()
            return
        print(
            f"submitted again: {counted(len(submitted.stages), 'stage')}, jobs {', '.join(submitted.job_ids) or 'none'}"
        )
        if submitted.in_flight:
            print(f"queued or running already: {counted(len(submitted.in_flight), 'stage')}")
        refusals = [*filter(None, (submitted.refused, submitted.tables_refused))]
        for refused in refusals:
            print(f"refused: {refused}")
        if submitted.tables_job is None and any(map(client.may_pass, refusals)):  # no other job will write the tables
            _come_again()


def _come_again() -> None:
    """Have this job start again later, as Slurm takes no jobs now; its own place in the queue is kept.

    Ends the process. After MOST_WAITS times nothing is done.
    """
    if int(os.environ.get("SLURM_RESTART_COUNT") or 0) >= MOST_WAITS:
        print(f"Slurm took no jobs {MOST_WAITS} times: not tried again")
        return
    print(f"tried again in {WAIT_MINUTES} minutes, when Slurm may take jobs again", flush=True)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it comes with the requeue
    job, program, until = supervisor.job_name(), shutil.which("scontrol") or "scontrol", time.monotonic() + AWAY_SECONDS
    supervisor.requeue(job, program, until)
    supervisor.control(program, "update", f"JobId={job}", f"StartTime=now+{WAIT_MINUTES}minutes", until=until)
    sys.exit(EXIT_STATUS[StageState.INTERRUPTED])
