"""In which state every stage of a plan is, by the store's files and, where jobs were submitted, by Slurm's word."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.errors import DamagedStore, InputError
from bench.launch.slurm import client, ledger
from bench.launch.slurm.client import JobState, SlurmError
from bench.launch.slurm.ledger import Submission
from bench.planning.plan import Plan, PlannedCell
from bench.specs import Stage
from bench.store.activity import inactive
from bench.store.code import outdated
from bench.store.ownership import Attempt
from bench.store.states import UNSUCCESSFUL, StageState, is_alive, state_in_store, why_blocked
from bench.store.store import Store

STATES = (
    *(StageState.DONE, StageState.RUNNING, StageState.REQUEUED, StageState.STALE, StageState.UNKNOWN),
    *(StageState.QUEUED, StageState.PLANNED, StageState.FAILED, StageState.BLOCKED),
)
"""Those that are shown; of several unfinished stages behind a cell, the one whose state comes first here."""
UNDER_WAY = frozenset((StageState.RUNNING, StageState.QUEUED, StageState.REQUEUED))
ENDED = frozenset((StageState.DONE, StageState.FAILED, StageState.BLOCKED))
ENDED_BADLY = frozenset(("FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"))
HELD = frozenset(("REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT"))
WAITING = HELD | {"PENDING", "CONFIGURING"}
UNASKED = JobState("UNASKED", "Slurm could not be asked")
"""Our word for the state of a job when Slurm does not answer."""


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
class Look:
    """One look at a grid, without what lies behind finished stages."""

    seen: dict[str, Seen] = field(default_factory=dict)
    """By stage key."""
    shown: dict[str, Stage] = field(default_factory=dict)
    """Stage key -> the stage that tells how far it is: itself, or the earliest unfinished one behind it."""
    attempts: dict[str, list[Attempt]] = field(default_factory=dict)
    """Key of an unfinished stage -> the attempts at it."""
    elements: dict[str, tuple[Submission, int]] = field(default_factory=dict)
    """Folder of an unfinished stage -> its last submission, and the index of its element there."""
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


def look(plan: Plan, store: Store, done: Finished) -> Look:
    """Read the folder of every needed stage and ask Slurm, each once.

    Finished stages are added to `done`, and those behind them, whose code they rest on.
    """
    view = Look()
    damage = _read(plan, store, done, view)
    unfinished = [stage for stage in plan.stages if stage.key in view.attempts]
    queued = _ask(store, plan.source, unfinished, view)
    for stage in plan.stages:  # parents first
        if stage.key in done:
            view.seen[stage.key], view.shown[stage.key] = Seen(StageState.DONE), stage
        elif stage.key in view.attempts:
            if stage.key in damage:
                seen = Seen(StageState.UNKNOWN, damage[stage.key])
            else:
                seen = _seen(stage, store, view, queued)
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


def _ask(store: Store, source: str, unfinished: Iterable[Stage], view: Look) -> dict[str, JobState]:
    """Note which submissions hold these stages.

    Returns what Slurm says of them.
    """
    folders = {stage.folder for stage in unfinished}
    submissions: list[Submission] = []
    queued: dict[str, JobState] = {}
    try:
        noted = ledger.submissions(store.root)
        submissions = [each for each in noted if any(not folders.isdisjoint(task) for task in each.tasks)]
        tables = [each for each in noted if each.source == source and not each.tasks][-1:]
        queued = client.queue([each.name for each in (*submissions, *tables)])
        for submission in ledger.identified(tables, queued):
            state = ledger.element_state(submission, 0, queued)
            if state.state in ENDED_BADLY:
                view.tables = f"{state.state}, see {ledger.log_folder(store.root, submission.token)}"
                view.tables_time = submission.time
    except DamagedStore as error:
        view.warning = str(error)
    except SlurmError as error:
        view.warning = f"{UNASKED.reason}: {error}"
    # Oldest first: a later submission takes the place of an earlier one, unless that is still to run or running.
    # Example: a stage is in 7_0, which still runs, and was submitted again as 9_3: 7_0 tells how the stage stands.
    for submission in ledger.identified(submissions, queued):
        for index, task in enumerate(submission.tasks):
            for folder in task:
                earlier = view.elements.get(folder)
                if earlier is None or not ledger.element_state(*earlier, queued).live:
                    view.elements[folder] = submission, index
    return queued


# --------------------------------------------------------------------------------------------------------- one stage


def _seen(stage: Stage, store: Store, view: Look, queued: Mapping[str, JobState]) -> Seen:
    """Decide the state of an unfinished stage, whatever those behind it do.

    Two witnesses tell of it: the attempts in the store, and Slurm's word for the job that was to run it. They can
    disagree, and the first case below that applies counts. Example: the store holds an open attempt of job 7_0, whose
    heartbeat is still fresh, and Slurm says that 7_0 is PENDING. Its node was lost, so the stage is "requeued" (case
    2), though by the store alone it would be "running".
    """
    last = view.last_attempt(stage)
    by_store = _seen_in_store(stage, store, last)
    if stage.folder not in view.elements:
        return by_store
    submission, index = view.elements[stage.folder]
    job = UNASKED if view.warning else ledger.element_state(submission, index, queued)
    share = by_store.share
    # Whether this very element made the last attempt, and whether anybody made it after the submission.
    ours = last is not None and last.facts["owner"].get("job", "") == submission.element(index)
    tried_since = ours or (last is not None and float(last.facts["began"]) >= submission.time)

    # 1. A failure that the store holds has the best reason. But one from before the submission is what the job is to
    #    put right: it counts only once the job is neither live nor known to have failed in its own way.
    if by_store.state == StageState.FAILED and (tried_since or not (job.live or job.state in ENDED_BADLY)):
        return replace(by_store, job=job.state)
    # 2. A live job counts more than any open attempt: heartbeats are late, Slurm is not.
    if job.live:
        return _seen_of_live_job(job, by_store, ours)
    # 3. Somebody else took the stage over after the job was submitted, so how the job ended is of no interest.
    if tried_since and not ours:
        return by_store
    # 4. Slurm knows how the job ended. "Completed" without a record is no success: files may only be late.
    if job.state in ENDED_BADLY:
        return Seen(StageState.FAILED, f"its job ended: {job.state} {job.reason}".rstrip(), share, job.state)
    if job.state == "CANCELLED":
        return Seen(StageState.PLANNED, "its job was cancelled", share)
    if job.state == "COMPLETED":
        return Seen(StageState.UNKNOWN, "its job completed, but its record is not to be seen (yet)", share)
    # 5. Slurm never got the job, or has a word for it that decides nothing: the store tells the rest.
    if job.state not in (client.GONE, UNASKED.state):
        return by_store
    # 6. Slurm says nothing. A living process runs; a dead one is stale if its job is gone too. That Slurm cannot be
    #    asked proves nothing of the kind, and without an open attempt nothing is known.
    if by_store.state == StageState.RUNNING or (by_store.state == StageState.STALE and job.state == client.GONE):
        return by_store
    return Seen(StageState.UNKNOWN, job.reason, share)


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


def _seen_of_live_job(job: JobState, by_store: Seen, ours: bool) -> Seen:
    """Show a stage whose job is to run or running.

    `ours` says that the job has tried the stage before.
    """
    share = by_store.share
    if job.state not in WAITING:
        begun = by_store.state in (StageState.RUNNING, StageState.STALE)
        return Seen(StageState.RUNNING, "" if begun else "starting", share)
    if ours or job.state in HELD:
        when = f"starts after {moment(job.start)}" if job.start is not None else job.reason
        return Seen(StageState.REQUEUED, "held" if job.state == "REQUEUE_HOLD" else when, share)
    # Before the job's first attempt, another process may have the stage.
    return by_store if by_store.state == StageState.RUNNING else Seen(StageState.QUEUED, job.reason, share)


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
    steps += [int(path.stem.partition("-")[2]) for path in (folder / "checkpoints").glob("step-*.json")]
    if last.end is None and last.facts["from_step"] is not None:
        steps += [int(step) for step in re.findall(r"^step (\d+)/", tail(folder / "log.txt"), re.MULTILINE)[-1:]]
    return min(1.0, max(steps) / stage.total_steps)


def _behind_failure(stage: Stage, seen: Seen, view: Look) -> Seen:
    """Show a stage as blocked where one that it needs has failed.

    Or is blocked itself. That holds, too, if a job of the stage tried and ended. What the stage's own ledger tells
    counts more. Example: A failed, and its child B is queued: B is blocked. If a process runs B all the same, it is
    running, and if B's own attempt failed, it has failed.
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


def log(stage: Stage, store: Store, view: Look) -> Path | None:
    """Find a stage's log, or its job's where the stage never began.

    Returns None without either.
    """
    own, last = store.folder(stage) / "log.txt", view.last_attempt(stage)
    if stage.folder in view.elements:
        submission, index = view.elements[stage.folder]
        if last is None or last.facts["began"] < submission.time:
            folder = ledger.log_folder(store.root, submission.token)
            printed = sorted(folder.glob(f"{submission.element(index)}_*log.out"))
            if printed:
                return printed[-1]
    return own if own.exists() else None


def tail(path: Path, size: int = 4096) -> str:
    """Read the last so many bytes of a file as text.

    Returns '' without the file.
    """
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - size))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def moment(seconds: float) -> str:
    """Format a time, with the date only where it is not near."""
    near = abs(seconds - time.time()) < 12 * 3600
    return time.strftime("%H:%M:%S" if near else "%Y-%m-%d %H:%M", time.localtime(seconds))
