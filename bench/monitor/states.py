"""In which state every stage of a plan is, by the store's files and, where jobs were submitted, by Slurm's word."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.errors import DamagedStore, InputError
from bench.launch.slurm import client, ledger, troubles
from bench.launch.slurm.client import JobState, SlurmError
from bench.launch.slurm.cover import Cover, covered, served
from bench.launch.slurm.ledger import Submission
from bench.planning.plan import Plan, PlannedCell
from bench.specs import Stage
from bench.store.activity import inactive
from bench.store.code import outdated
from bench.store.ownership import Attempt
from bench.store.states import UNSUCCESSFUL, StageState, is_alive, state_in_store, why_blocked
from bench.store.store import Store, newest_checkpoint

STATES = (
    *(StageState.DONE, StageState.RUNNING, StageState.REQUEUED, StageState.STALE, StageState.UNKNOWN),
    *(StageState.QUEUED, StageState.PLANNED, StageState.FAILED, StageState.BLOCKED),
)
"""The states that are shown, in order: of several unfinished stages behind a cell, the first is shown for it."""
UNDER_WAY = frozenset((StageState.RUNNING, StageState.QUEUED, StageState.REQUEUED))
ENDED = frozenset((StageState.DONE, StageState.FAILED, StageState.BLOCKED))
ENDED_BADLY = frozenset(("FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"))
ASK_SECONDS = (5.0, 45.0)
"""Between two questions to the controller, the shortest and the longest."""
UNASKED = "Slurm could not be asked"
TAIL_BYTES = 4096
"""How much of a log is read to see its last lines."""


AskQueue = Callable[[Sequence[Submission]], dict[str, JobState]]
"""A function of submissions that returns the states of jobs and elements by id."""


@dataclass(frozen=True)
class Seen:
    """What one look showed of a stage.

    `state` is one of STATES, `share` the share of its steps that are done, `job` the state of its job.
    """

    state: StageState
    note: str = ""
    share: float = 0.0
    job: str = ""


@dataclass
class Jobs:
    """The jobs that were submitted for the unfinished stages of a grid."""

    submissions: list[Submission] = field(default_factory=list)
    """The submissions whose jobs may run some of those stages, and those that these wait for; oldest first."""
    tables: list[Submission] = field(default_factory=list)
    """The last submission whose job writes the grid's tables, if there is one."""
    queued: dict[str, JobState] = field(default_factory=dict)
    """What Slurm says of the array elements of these submissions."""
    covering: dict[str, Cover] = field(default_factory=dict)
    """Folder of a stage -> from which worklist a live job will pull it."""
    listed: dict[str, Submission] = field(default_factory=dict)
    """Folder of a stage -> the last submission that was to run it."""
    serving: dict[str, frozenset[str]] = field(default_factory=dict)
    """Token of a submission -> folders of the unfinished stages that its jobs can run."""
    unasked: frozenset[str] = frozenset()
    """Folders of the stages of which Slurm might tell more, where it could not be asked."""
    stopped: str = ""
    """Why the grid's jobs take no further stage, if they do not."""
    excluded: dict[str, str] = field(default_factory=dict)
    """Nodes that jobs keep away from, and why."""
    _waits_by_token: dict[str, tuple[str, bool]] = field(default_factory=dict)

    def of(self, attempt: Attempt | None) -> JobState | None:
        """Return the state of the job that made an attempt; None if it is none of these."""
        submission = self.submission_of(attempt)
        if attempt is None or submission is None:
            return None
        index = int(str(attempt.facts["owner"]["job"]).rpartition("_")[2])
        return ledger.element_state(submission, index, self.queued)

    def submission_of(self, attempt: Attempt | None) -> Submission | None:
        """Return the submission whose job made an attempt; None if it is none of these."""
        job = "" if attempt is None else str(attempt.facts["owner"].get("job", ""))
        array = job.partition("_")[0]
        return next((each for each in self.submissions if "_" in job and each.job_id == array), None)

    def live(self) -> Iterator[tuple[Submission, str, JobState]]:
        """Yield the jobs that run or are to run, and that of the tables, with their ids."""
        for submission in (*self.submissions, *self.tables):
            for index, state in enumerate(ledger.states(submission, self.queued)):
                if state.live:
                    yield submission, str(submission.element(index)), state

    def waiting_for(self, folder: str) -> str:
        """Say what a stage waits for whose jobs are live."""
        worklist = self.covering[folder].worklist
        mine = (each for each in self.submissions if each.worklist == worklist and folder in self.serving[each.token])
        waits = [self._waits(each) for each in mine]
        if any(runs for _, runs in waits):
            return "a job that runs will take it"
        return next((reason for reason, _ in waits if reason), "")

    def _waits(self, submission: Submission) -> tuple[str, bool]:
        """Say what live jobs of a submission wait for, and whether one runs; worked out once for all of its stages."""
        if submission.token not in self._waits_by_token:
            live = [state for state in ledger.states(submission, self.queued) if state.live]
            reason = next((state.reason for state in live if state.reason), "")
            self._waits_by_token[submission.token] = reason, not all(state.waiting for state in live)
        return self._waits_by_token[submission.token]


@dataclass
class Look:
    """One look at a grid, without what lies behind finished stages."""

    seen: dict[str, Seen] = field(default_factory=dict)
    """By stage key."""
    shown: dict[str, Stage] = field(default_factory=dict)
    """Stage key -> the stage that tells how far it is: itself, or the earliest unfinished one behind it."""
    attempts: dict[str, list[Attempt]] = field(default_factory=dict)
    """Key of an unfinished stage -> the attempts at it."""
    jobs: Jobs = field(default_factory=Jobs)
    """What Slurm runs, or is to run, of the unfinished stages."""
    outdated: dict[str, str] = field(default_factory=dict)
    """Key of a finished stage -> why it would not come out the same today."""
    inactive: list[tuple[str, str, str]] = field(default_factory=list)
    """Parts of methods that did nothing in a finished stage: name, what was measured, stage and task."""
    warning: str = ""
    tables: str = ""
    """What became of the job that writes the tables, if it failed."""
    tables_time: float = 0.0
    """When that job was submitted, in seconds since 1970."""

    def of(self, cell: PlannedCell) -> Seen:
        """Return what to show for a cell."""
        return self.seen[self.shown[cell.stage.key].key]

    def last_attempt(self, stage: Stage) -> Attempt | None:
        """Return the last attempt at an unfinished stage; None without any."""
        attempts = self.attempts.get(stage.key)
        return attempts[-1] if attempts else None


Finished = dict[str, dict[str, Any]]
"""Key of a finished stage -> what its record says of FACTS; kept from look to look, as it does not change."""

FACTS = ("code", "parents", "weights", "activity")


def look(plan: Plan, store: Store, done: Finished, queue: AskQueue = ledger.ask) -> Look:
    """Read the folder of every needed stage and ask Slurm, each once.

    Finished stages are added to `done`, and those behind them, whose code they rest on; `queue` asks for the jobs of
    submissions.
    """
    view = Look()
    damage = _read(plan, store, done, view)
    unfinished = [stage for stage in plan.stages if stage.key in view.attempts]
    _ask(store, plan.source, unfinished, view, queue)
    for stage in plan.stages:  # parents first
        if stage.key in done:
            view.seen[stage.key], view.shown[stage.key] = Seen(StageState.DONE), stage
        elif stage.key in view.attempts:
            seen = Seen(StageState.UNKNOWN, damage[stage.key]) if stage.key in damage else _seen(stage, store, view)
            view.seen[stage.key] = _behind_failure(stage, seen, view)
            view.shown[stage.key] = _shown(stage, view)
    return view


def _read(plan: Plan, store: Store, done: Finished, view: Look) -> dict[str, str]:
    """Note the finished stages, and the attempts at the others.

    Returns, by stage key, what is damaged.
    """
    damage: dict[str, str] = {}

    def read(stage: Stage) -> None:
        try:
            record = store.record(stage)
            if record is not None:
                done[stage.key] = {name: record[name] for name in FACTS if name in record}
                view.attempts.pop(stage.key, None)
            elif stage.key in view.attempts:
                view.attempts[stage.key] = store.attempts(stage)
        except (InputError, OSError) as error:
            damage[stage.key] = str(error)

    # From the cells' own stages backwards, a generation at a time, to what is not needed any more: it lies behind a
    # finished stage. Example: of A -> B -> C, with a cell of C and B done, C is read, then B, and A is not needed.
    level = {cell.stage.key: cell.stage for cell in plan.selected}
    while level := {key: stage for key, stage in level.items() if key not in done and key not in view.attempts}:
        view.attempts.update((key, []) for key in level)
        store.each(read, (stage for stage in level.values() if not stage.unprepared))
        unfinished = [stage for stage in level.values() if stage.key not in done]
        level = {parent.key: parent for stage in unfinished for parent in stage.parents}
    # Of A only the record counts: what B began with. That it is missing or damaged is nobody's concern.
    behind = (stage for stage in plan.stages if stage.key not in done and stage.key not in view.attempts)
    store.each(read, [stage for stage in behind if not stage.unprepared])
    view.outdated = outdated(plan.stages, done)
    for stage in plan.stages:
        for name, meaning in inactive(done.get(stage.key, {}).get("activity", {})).items():
            view.inactive.append((name, meaning, f"{stage.name} on {stage.data.task}"))
    return damage


def _ask(store: Store, source: str, unfinished: Iterable[Stage], view: Look, queue: AskQueue) -> None:
    """Note which jobs are to run these stages, and what Slurm says of them."""
    folders, jobs = {stage.folder for stage in unfinished}, view.jobs
    try:
        noted = ledger.submissions(store.root)
        jobs.serving = {each.token: _folders(store, each) & folders for each in noted if each.runs_stages}
        # Arrays of one worklist wait for each other: one that is held keeps those of the next generation waiting, also
        # where no stage of its own is left.
        lists = {each.worklist or each.token for each in noted if jobs.serving.get(each.token)}
        jobs.submissions = [each for each in noted if each.runs_stages and (each.worklist or each.token) in lists]
        jobs.tables = [each for each in noted if each.source == source and not each.runs_stages][-1:]
        # Set twice: now, for where Slurm cannot be asked, and again with the ids that the queue tells.
        jobs.listed = {folder: each for each in jobs.submissions for folder in jobs.serving[each.token]}
        jobs.queued = queue([*jobs.submissions, *jobs.tables])
        jobs.submissions = ledger.identified(jobs.submissions, jobs.queued)
        jobs.tables = ledger.identified(jobs.tables, jobs.queued)
        jobs.listed = {folder: each for each in jobs.submissions for folder in jobs.serving[each.token]}
        jobs.covering = covered(store.root, jobs.submissions, jobs.queued)
        of_grid = [each.worklist for each in jobs.submissions if each.source == source]
        jobs.stopped = (troubles.stopped(store.root, of_grid[-1]) or "") if of_grid else ""
        jobs.excluded = troubles.excluded(store.root) if jobs.submissions else {}
        for submission in jobs.tables:
            state = ledger.element_state(submission, 0, jobs.queued)
            if state.state in ENDED_BADLY:
                view.tables = f"{state.state}, see {ledger.log_folder(store.root, submission.token)}"
                view.tables_time = submission.time
    except DamagedStore as error:
        view.warning, jobs.unasked = str(error), frozenset(folders)
    except SlurmError as error:
        view.warning, jobs.unasked = f"{UNASKED}: {error}", frozenset(jobs.listed)


def _folders(store: Store, submission: Submission) -> frozenset[str]:
    """Return the folders of the stages that a submission was to run."""
    if not submission.worklist:
        return frozenset(folder for task in submission.tasks for folder in task)
    return frozenset(served(store.root, submission))


class PatientQueue:
    """Asks Slurm for jobs, and not again before some time has passed, however often it is called.

    That time grows to a minute while nothing changes, and differs from process to process, so that many followers do
    not ask a controller in step.
    """

    def __init__(self) -> None:
        self._answer: tuple[list[str], dict[str, JobState]] | None = None
        self._ended: dict[str, JobState] = {}
        """Elements that were seen ended: nobody asks accounting for them again and again."""
        self._again_at = 0.0
        self._wait = ASK_SECONDS[0]

    def __call__(self, asked: Sequence[Submission]) -> dict[str, JobState]:
        """Return the states of elements by id, as `ledger.ask` does, maybe of a minute ago."""
        listed = [each.name for each in asked]
        if self._answer is None or listed != self._answer[0] or time.monotonic() >= self._again_at:
            before, states = self._answer, {**self._ended, **ledger.ask(asked, self._ended)}
            self._ended = {element: state for element, state in states.items() if state.state not in client.LIVE}
            changed = before is None or before[0] != listed or _essence(before[1]) != _essence(states)
            self._wait = ASK_SECONDS[0] if changed else min(1.5 * self._wait, ASK_SECONDS[1])
            self._answer, self._again_at = (listed, states), time.monotonic() + self._wait * random.uniform(0.7, 1.3)
        return self._answer[1]


def _essence(states: Mapping[str, JobState]) -> dict[str, tuple[str, str]]:
    """Return what matters of jobs' states: not how long they have run, or when they may start."""
    return {job: (state.state, state.reason) for job, state in states.items()}


# --------------------------------------------------------------------------------------------------------- one stage


def _seen(stage: Stage, store: Store, view: Look) -> Seen:
    """Decide the state of an unfinished stage, whatever those behind it do.

    Two witnesses tell of it: the attempts in the store, and Slurm's word for the jobs. They can differ, and the first
    case below that applies counts. Example: the store holds an open attempt of job 7_0, whose heartbeat is still fresh,
    and Slurm says that 7_0 is PENDING. Its node was lost, so the stage is "requeued" (case 3), though by the store
    alone it would be "running".
    """
    last = view.last_attempt(stage)
    by_store = _seen_in_store(stage, store, last)
    jobs, share = view.jobs, by_store.share
    cover, job = jobs.covering.get(stage.folder), jobs.of(last)
    # 1. Slurm cannot be asked. A living process runs, a failure is one; of all else nothing is known.
    if view.warning:
        certain = by_store.state in (StageState.RUNNING, StageState.FAILED) or stage.folder not in jobs.unasked
        return by_store if certain else Seen(StageState.UNKNOWN, UNASKED, share)
    # 2. A failure that the store holds has the best reason, unless a live job is to try the stage again: it was listed
    #    after the failure, or was no fault of the stage. In that case the next submission tries it, too.
    if by_store.state == StageState.FAILED and not _tried_again(stage, store, view, cover):
        words = job.state if job is not None else ""
        if cover is None and _is_nobodys_fault(stage, store, view):
            return Seen(StageState.STALE, f"{by_store.note}; run the grid again to go on", share, words)
        return replace(by_store, job=words)
    # 3. The job of the last attempt is live. Slurm's word counts more than a heartbeat, which is late.
    if job is not None and job.live and last is not None and (last.end is None or job.waiting):
        if not job.waiting:
            return Seen(StageState.RUNNING, "", share)
        when = f"starts after {moment(job.start)}" if job.start is not None else job.reason
        return Seen(StageState.REQUEUED, "held" if job.state == "REQUEUE_HOLD" else when, share)
    # 4. An open attempt of a process that is no live job's: another launcher's, or of a job that is gone.
    if by_store.state == StageState.RUNNING and (job is None or job.state == client.GONE):
        return by_store
    # 5. Some live job will take it.
    if cover is not None:
        was = f"its job ended: {_words(job)}; " if job is not None and job.state in ENDED_BADLY else ""
        return Seen(StageState.QUEUED, f"{was}{jobs.waiting_for(stage.folder)}", share)
    # 6. Nobody will. How its last job ended, or the jobs that were to run it, says why.
    if job is not None and last is not None and last.end is None and job.state in ENDED_BADLY:
        return Seen(StageState.STALE, f"its job ended: {_words(job)}; run the grid again to go on", share, job.state)
    if job is not None and job.state == "CANCELLED":
        return Seen(StageState.PLANNED, "its job was cancelled", share)
    submission = jobs.listed.get(stage.folder)
    if submission is None or (last is not None and float(last.facts["began"]) >= submission.time):
        return by_store
    return _seen_without_jobs(submission, by_store, jobs)


def _tried_again(stage: Stage, store: Store, view: Look, cover: Cover | None) -> bool:
    """Tell whether a live job is to try a stage again whose last attempt failed or was refused."""
    attempts = view.attempts[stage.key]
    if cover is None or cover.attempts == len(attempts):
        return cover is not None
    return _is_nobodys_fault(stage, store, view)


def _is_nobodys_fault(stage: Stage, store: Store, view: Look) -> bool:
    """Tell whether a stage's last attempt, by one of the grid's jobs, was refused, and the stage is not given up."""
    last = view.last_attempt(stage)
    submission = view.jobs.submission_of(last)
    refused = last is not None and last.end is not None and last.end["state"] == StageState.REFUSED
    if not refused or submission is None:
        return False
    return stage.folder not in troubles.given_up(store.root, submission.worklist)


def _seen_without_jobs(submission: Submission, by_store: Seen, jobs: Jobs) -> Seen:
    """Show a stage that was submitted, never begun since, and that no live job will take."""
    states = ledger.states(submission, jobs.queued)
    bad = next((state for state in states if state.state in ENDED_BADLY), None)
    words, share = {state.state for state in states}, by_store.share
    if jobs.stopped:
        return Seen(StageState.PLANNED, f"the grid was stopped: {jobs.stopped}", share)
    if bad is not None:
        return Seen(StageState.PLANNED, f"its jobs ended before they began it: {_words(bad)}", share, bad.state)
    if "CANCELLED" in words:
        return Seen(StageState.PLANNED, "its jobs were cancelled", share)
    if words <= {client.GONE}:
        return Seen(StageState.UNKNOWN, states[0].reason, share)
    if words <= {ledger.UNSUBMITTED}:
        return by_store
    return Seen(StageState.PLANNED, "no job is left to run it: run the grid again", share)


def _words(job: JobState | None) -> str:
    return "" if job is None else f"{job.state} {job.reason}".rstrip()


def _seen_in_store(stage: Stage, store: Store, last: Attempt | None) -> Seen:
    """Tell an unfinished stage's state, one of STATES, by the store alone."""
    state, share = state_in_store(stage, last), _share(stage, store, last)
    if state == StageState.NOT_PREPARED:
        return Seen(StageState.PLANNED, state)
    if state in UNSUCCESSFUL:
        return Seen(StageState.FAILED, _end(last, "reason"), share)
    if state == StageState.STALE:
        return Seen(state, "its process is gone; run the grid again to go on", share)
    return Seen(state, _end(last, "state"), share)


def _end(last: Attempt | None, fact: str) -> str:
    """Return a fact of the last attempt's end; '' without an end."""
    return "" if last is None or last.end is None else str(last.end[fact])


def _share(stage: Stage, store: Store, last: Attempt | None) -> float:
    """Return how much of a stage is done, from 0 to 1.

    The greatest step counts of those where its last attempt began and ended, of its checkpoints and, while an attempt
    runs, of the last progress in its log.
    """
    if last is None:
        return 0.0
    folder = store.folder(stage)
    steps = [int(last.facts["from_step"] or 0), int((last.end or {}).get("step") or 0)]
    steps.append(newest_checkpoint(folder))
    if last.end is None and last.facts["from_step"] is not None:
        steps += [int(step) for step in re.findall(r"^step (\d+)/", tail(folder / "log.txt"), re.MULTILINE)[-1:]]
    return min(1.0, max(steps) / stage.total_steps)


def _behind_failure(stage: Stage, seen: Seen, view: Look) -> Seen:
    """Show a stage as blocked where one that it needs failed or is blocked.

    That holds whatever became of jobs that were to run it. What its own attempts tell counts more. Example: A failed,
    and its child B is queued: B is blocked. If a process runs B all the same, it is running, and if B's own attempt
    failed, it has failed.
    """
    parents = {parent.key: view.seen[parent.key] for parent in stage.parents}
    failed, blocked = (
        {key: parent.note for key, parent in parents.items() if parent.state == state}
        for state in (StageState.FAILED, StageState.BLOCKED)
    )
    reason, last = why_blocked(stage, failed, blocked), view.last_attempt(stage)
    if reason is None and seen.state != StageState.FAILED:
        return seen
    if seen.state == StageState.RUNNING and last is not None and is_alive(last):
        return seen
    if seen.state == StageState.FAILED and _end(last, "state") in UNSUCCESSFUL:
        return seen
    if reason is not None:
        return Seen(StageState.BLOCKED, reason)
    if any(parent.state not in ENDED for parent in parents.values()):
        return Seen(StageState.PLANNED, "its parents are not there yet")  # a job of it found that, and ended
    return seen


def _shown(stage: Stage, view: Look) -> Stage:
    """Return the stage that tells how far this one is.

    That is the stage itself if it runs, failed or is blocked, else the unfinished one behind it whose state comes first
    in STATES, or itself without any. Example: a queued stage with a running parent shows the parent and how much of
    that is done.
    """
    if view.seen[stage.key].state in (StageState.RUNNING, StageState.FAILED, StageState.BLOCKED):
        return stage
    # A failed parent that does not block is one that a search can do without.
    behind = [view.shown[each.key] for each in stage.parents if view.seen[each.key].state not in ENDED]
    return min(behind, key=lambda each: STATES.index(view.seen[each.key].state), default=stage)


# -------------------------------------------------------------------------------------------------------- logs, times


def logs(stage: Stage, store: Store, view: Look) -> list[Path]:
    """Find the logs that tell of a stage.

    These are its own, and that of the job which ran it last, or was to run it.
    """
    own, last = store.folder(stage) / "log.txt", _attempt_since_submitted(stage, view)
    if last is not None:
        submission, printed = view.jobs.submission_of(last), f"{last.facts['owner'].get('job', '')}_*log.out"
    else:
        submission, printed = view.jobs.listed.get(stage.folder), "*log.out"
    jobs = sorted(ledger.log_folder(store.root, submission.token).glob(printed)) if submission is not None else []
    return [*([own] if own.exists() else []), *jobs[-1:]]


def log(stage: Stage, store: Store, view: Look) -> Path | None:
    """Find a stage's log, or its job's where the stage has not begun since that was submitted.

    Returns None without either.
    """
    paths = logs(stage, store, view)
    return next(iter(paths if _attempt_since_submitted(stage, view) is not None else paths[::-1]), None)


def _attempt_since_submitted(stage: Stage, view: Look) -> Attempt | None:
    """Return a stage's last attempt, if it began after the last submission.

    That is the last one of those that were to run the stage; without any submission every attempt counts.
    """
    last, submission = view.last_attempt(stage), view.jobs.listed.get(stage.folder)
    return last if last is not None and (submission is None or last.facts["began"] >= submission.time) else None


def tail(path: Path) -> str:
    """Read the last TAIL_BYTES of a file as text.

    Returns '' without the file.
    """
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def moment(seconds: float) -> str:
    """Format a time, with the date only where it is not near."""
    near = abs(seconds - time.time()) < 12 * 3600
    return time.strftime("%H:%M:%S" if near else "%Y-%m-%d %H:%M", time.localtime(seconds))
