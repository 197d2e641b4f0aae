"""The live jobs of a grid, and what each of them runs."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from datetime import timedelta

from bench.launch.slurm import ledger
from bench.launch.slurm.client import JobState
from bench.launch.slurm.ledger import Submission
from bench.monitor.states import Look
from bench.planning.describe import counted
from bench.planning.plan import Plan
from bench.specs import Stage, walk
from bench.store.ownership import Attempt
from bench.store.store import Store

NAMED_CELLS = 3
"""So many cells of a stage are named; more are counted."""


def describe_jobs(plan: Plan, store: Store, view: Look) -> str:
    """List the live jobs of a grid, each with its stages and their cells.

    What a job runs is told by the open attempts in the store. Jobs of one array that wait for the same thing share a
    line. Where Slurm cannot be asked, the jobs of open attempts are listed: they may have ended. Example:

        1 running, 7 waiting; logs lie in
          runs/.slurm/log
        17_0  finetune  RUNNING on n1 for 0:12:03
          finetune-digits-1a2b3c4d5e6f7a8b
            finetune/digits/tiny/0
          log: 68f1c2d09b7e4a51/17_0_0_log.out
        17: 7 jobs  finetune  PENDING: Priority
    """
    stages_of = _stages_by_job(plan, view)
    cells = _cells(plan, {stage.key for stages in stages_of.values() for stage in stages})
    logs = ledger.folder(store.root) / "log"
    runs: list[str] = []
    running, waiting = 0, Counter[tuple[str, str]]()  # of those that wait, by array and words
    for submission, job, state in _listed(stages_of, view):
        head = f"  {_kind(submission)}  {state.state}"
        if state.waiting and job not in stages_of:
            waiting[job.partition("_")[0], f"{head}: {state.reason}".removesuffix(": ")] += 1
            continue
        running += 1
        stages = stages_of.get(job, [])
        runs.append(f"{job}{head}{_whereabouts(state, view.last_attempt(stages[0]) if stages else None)}")
        for stage in stages:
            runs += [f"  {stage.folder}", *(f"    {name}" for name in cells.get(stage.key, ()))]
        printed = sorted((logs / submission.token).glob(f"{job}_*log.out"))
        runs += [f"  log: {path.relative_to(logs)}" for path in printed[-1:]]
    queued = [f"{array}: {counted(count, 'job')}{words}" for (array, words), count in waiting.items()]
    first = f"{running} running, {waiting.total()} waiting"
    if view.warning:
        first = f"warning: {view.warning}\nby the store alone, {counted(running, 'job')} with an unfinished attempt"
    return "\n".join([*([f"{first}; logs lie in", f"  {logs}"] if runs else [first]), *runs, *queued])


def _stages_by_job(plan: Plan, view: Look) -> dict[str, list[Stage]]:
    """Return the stages with an open attempt by the job that made it: '17_0'."""
    stages: dict[str, list[Stage]] = defaultdict(list)
    for stage in plan.stages:
        last = view.last_attempt(stage)
        if last is not None and last.end is None and view.jobs.submission_of(last) is not None:
            stages[last.facts["owner"]["job"]].append(stage)
    return stages


def _listed(stages_of: Mapping[str, list[Stage]], view: Look) -> Iterator[tuple[Submission, str, JobState]]:
    """Yield the live jobs, those of the tables last; where Slurm cannot be asked, those with a stage."""
    if not view.warning:
        yield from view.jobs.live()
        return
    for job, stages in stages_of.items():
        submission = view.jobs.submission_of(view.last_attempt(stages[0]))
        assert submission is not None  # else the job would not be there
        yield submission, job, JobState("UNKNOWN")


def _kind(submission: Submission) -> str:
    """Return what the jobs of a submission do, as it stands in their name: bench-GRID-WHAT-TOKEN."""
    what = submission.name.removeprefix(f"bench-{submission.grid}").removesuffix(submission.token).strip("-")
    return what or ("stages" if submission.runs_stages else "tables")


def _whereabouts(state: JobState, attempt: Attempt | None) -> str:
    """Say on which node a job runs and for how long, by Slurm's word or else by its stage's attempt."""
    node, seconds = state.node, state.elapsed_s
    if attempt is not None:
        node = node or attempt.host
        seconds = time.time() - float(attempt.facts["began"]) if seconds is None else seconds
    reason = f" ({state.reason})" if state.reason else ""
    lasted = f" for {timedelta(seconds=round(max(0.0, seconds)))}" if seconds is not None else ""
    return f"{reason}{f' on {node}' if node else ''}{lasted}"


def _cells(plan: Plan, keys: Collection[str]) -> dict[str, list[str]]:
    """Name the cells that need these stages, by key."""
    cells: dict[str, list[str]] = defaultdict(list)
    for cell in plan.selected:
        for stage in walk(cell.stage):
            if stage.key in keys:
                cells[stage.key].append(cell.name)
    return {
        key: [*names[:NAMED_CELLS], *([f"and {len(names) - NAMED_CELLS} more"] if len(names) > NAMED_CELLS else [])]
        for key, names in cells.items()
    }
