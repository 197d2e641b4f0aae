"""In which state every stage of a plan is, by the store's files and, where jobs were submitted, by Slurm's word."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from bench.errors import DamagedStore, InputError
from bench.launch.slurm import client, ledger
from bench.launch.slurm.client import JobState, SlurmError
from bench.launch.slurm.ledger import Submission
from bench.planning.plan import Plan, PlannedCell
from bench.specs import Stage
from bench.store.ownership import Attempt
from bench.store.store import Store

STATES = ("done", "running", "requeued", "stale", "unknown", "queued", "planned", "failed", "blocked")
"""Of several unfinished stages behind a cell, the one whose state comes first here is shown."""
ENDED_BADLY = frozenset(("FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"))
HELD = frozenset(("REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT"))
WAITING = HELD | {"PENDING", "CONFIGURING"}
UNASKED = JobState("UNASKED", "Slurm could not be asked")
"""Our word for the state of a job when Slurm does not answer."""


@dataclass(frozen=True)
class Seen:
    """What one look showed of a stage: one of STATES, a note, the share of its steps that are done, its job's state."""

    state: str
    note: str = ""
    share: float = 0.0
    job: str = ""


@dataclass
class Look:
    """One look at a grid; what lies behind finished stages is left out."""

    seen: dict[str, Seen] = field(default_factory=dict)
    """By stage key."""
    shown: dict[str, Stage] = field(default_factory=dict)
    """Stage key -> the stage that tells how far it is: itself, or the earliest unfinished one behind it."""
    attempts: dict[str, list[Attempt]] = field(default_factory=dict)
    """Key of an unfinished stage -> the attempts at it."""
    places: dict[str, tuple[Submission, int]] = field(default_factory=dict)
    """Folder of an unfinished stage -> its last submission, and the index of its element there."""
    warning: str = ""
    tables: str = ""
    """What became of the job that writes the tables, if it failed."""
    tables_time: float = 0.0
    """When that job was submitted, in seconds since 1970."""

    def of(self, cell: PlannedCell) -> Seen:
        """What to show for a cell."""
        return self.seen[self.shown[cell.stage.key].key]


def look(plan: Plan, store: Store, done: set[str]) -> Look:
    """Read the folder of every needed stage once, and ask Slurm once; adds the keys of finished stages to `done`."""
    found = Look()
    damage = _read(plan, store, done, found)
    unfinished = [stage for stage in plan.stages if stage.key in found.attempts]
    queued = _ask(store, plan.source, unfinished, found)
    for stage in plan.stages:  # parents first
        if stage.key in done:
            found.seen[stage.key], found.shown[stage.key] = Seen("done"), stage
        elif stage.key in found.attempts:
            seen = Seen("unknown", damage[stage.key]) if stage.key in damage else _seen(stage, store, found, queued)
            found.seen[stage.key] = _behind_failure(stage, seen, found)
            found.shown[stage.key] = _shown(stage, found)
    return found


def _read(plan: Plan, store: Store, done: set[str], found: Look) -> dict[str, str]:
    """Note the finished stages, and the attempts at the others; returns what is damaged, by stage key."""
    damage: dict[str, str] = {}
    there = set(os.listdir(store.root)) if store.root.is_dir() else set()

    def read(stage: Stage) -> None:
        found.attempts[stage.key] = []
        if stage.unprepared or stage.folder not in there:
            return
        try:
            if store.record(stage) is not None:
                done.add(stage.key)
                del found.attempts[stage.key]
            else:
                found.attempts[stage.key] = store.attempts(stage)
        except (InputError, OSError) as error:
            damage[stage.key] = str(error)

    level = {cell.stage.key: cell.stage for cell in plan.selected}
    with ThreadPoolExecutor(8) as pool:  # network file systems answer late, but several at once
        while level := {key: stage for key, stage in level.items() if key not in done and key not in found.attempts}:
            list(pool.map(read, level.values()))
            level = {p.key: p for stage in level.values() if stage.key not in done for p in stage.parents}
    return damage


def _ask(store: Store, source: str, unfinished: Iterable[Stage], found: Look) -> dict[str, JobState]:
    """Note which submissions hold these stages; returns what Slurm says of them."""
    names = {stage.folder for stage in unfinished}
    known: list[Submission] = []
    queued: dict[str, JobState] = {}
    try:
        noted = ledger.submissions(store.root)
        known = [one for one in noted if any(name in names for task in one.tasks for name in task)]
        tables = [one for one in noted if one.source == source and not one.tasks][-1:]
        queued = client.queue([one.name for one in (*known, *tables)])
        for made in ledger.identified(tables, queued):
            state = ledger.element_state(made, 0, queued)
            if state.state in ENDED_BADLY:
                found.tables = f"{state.state}, see {ledger.log_folder(store.root, made.token)}"
                found.tables_time = made.time
    except DamagedStore as error:
        found.warning = str(error)
    except SlurmError as error:
        found.warning = f"{UNASKED.reason}: {error}"
    for made in ledger.identified(known, queued):
        for index, task in enumerate(made.tasks):
            for name in task:
                before = found.places.get(name)
                if before is None or not ledger.element_state(*before, queued).live:
                    found.places[name] = made, index
    return queued


# --------------------------------------------------------------------------------------------------------- one stage


def _seen(stage: Stage, store: Store, found: Look, queued: Mapping[str, JobState]) -> Seen:
    """The state of an unfinished stage, whatever those behind it do."""
    attempts, place = found.attempts[stage.key], found.places.get(stage.folder)
    last = attempts[-1] if attempts else None
    share = _share(stage, store, last)
    if place is None:
        return _without_job(stage, last, share)
    made, index = place
    job = UNASKED if found.warning else ledger.element_state(made, index, queued)
    ours = last is not None and "job" in last.facts["owner"] and last.facts["owner"]["job"] == made.element(index)
    since = ours or (last is not None and float(last.facts["began"]) >= made.time)
    if _failed(last) and (since or (not job.live and job.state not in ENDED_BADLY)):
        return Seen("failed", _end(last, "reason"), share, job.state)
    if job.live:
        return _with_live_job(job, last, ours, share)
    if since and not ours:  # somebody else took over
        return _without_job(stage, last, share)
    if job.state in ENDED_BADLY:
        return Seen("failed", f"its job ended: {job.state} {job.reason}".rstrip(), share, job.state)
    if job.state == "CANCELLED":
        return Seen("planned", "its job was cancelled", share)
    if job.state == "COMPLETED":
        return Seen("unknown", "its job completed, but its record is not to be seen (yet)", share)
    if job.state not in (client.GONE, UNASKED.state) or _alive(last):
        return _without_job(stage, last, share)
    if job.state == client.GONE and last is not None and last.end is None:
        return _without_job(stage, last, share)
    return Seen("unknown", job.reason, share)


def _without_job(stage: Stage, last: Attempt | None, share: float) -> Seen:
    if stage.unprepared:
        return Seen("planned", "not prepared")
    if _failed(last):
        return Seen("failed", _end(last, "reason"), share)
    if _alive(last):
        return Seen("running", "", share)
    if last is not None and last.end is None:
        return Seen("stale", "its process is gone; run the grid again to go on", share)
    return Seen("planned", _end(last, "state"), share)


def _with_live_job(job: JobState, last: Attempt | None, ours: bool, share: float) -> Seen:
    if job.state not in WAITING:
        return Seen("running", "" if last is not None and last.end is None else "starting", share)
    if ours or job.state in HELD:
        when = f"starts after {moment(job.start)}" if job.start is not None else job.reason
        return Seen("requeued", "held" if job.state == "REQUEUE_HOLD" else when, share)
    return Seen("running", "", share) if _alive(last) else Seen("queued", job.reason, share)


def _failed(last: Attempt | None) -> bool:
    return _end(last, "state") in ("failed", "refused")


def _end(last: Attempt | None, fact: str) -> str:
    return "" if last is None or last.end is None else str(last.end[fact])


def _alive(attempt: Attempt | None) -> bool:
    try:
        return attempt is not None and attempt.alive
    except OSError:  # looking must be possible where nothing can be written
        return False


def _share(stage: Stage, store: Store, last: Attempt | None) -> float:
    """How much of a stage is done: by where its last attempt began and ended, its checkpoints and its log."""
    if last is None:
        return 0.0
    folder = store.folder(stage)
    steps = [int(last.facts["from_step"] or 0), int((last.end or {}).get("step") or 0)]
    steps += [int(path.stem.partition("-")[2]) for path in (folder / "checkpoints").glob("step-*.json")]
    if last.end is None and last.facts["from_step"] is not None:
        steps += [int(step) for step in re.findall(r"^step (\d+)/", tail(folder / "log.txt"), re.MULTILINE)[-1:]]
    return min(1.0, max(steps) / stage.total_steps)


def _behind_failure(stage: Stage, seen: Seen, found: Look) -> Seen:
    """A stage is blocked where one that it needs has failed, or is blocked itself; also if a job of it tried and ended.

    What its own ledger tells of counts more.
    """
    attempts = found.attempts.get(stage.key, [])
    last = attempts[-1] if attempts else None
    if (seen.state == "running" and _alive(last)) or (seen.state == "failed" and _failed(last)):
        return seen
    for parent in stage.parents:
        state, note = found.seen[parent.key].state, found.seen[parent.key].note
        if state == "blocked":
            return Seen("blocked", note)
        if state == "failed":
            return Seen("blocked", f"its stage {parent.folder} failed: {note}")
    if seen.state == "failed" and any(found.seen[parent.key].state != "done" for parent in stage.parents):
        return Seen("planned", "its parents are not there yet")  # a job of it found that, and ended
    return seen


def _shown(stage: Stage, found: Look) -> Stage:
    if found.seen[stage.key].state in ("running", "failed", "blocked"):
        return stage
    behind = [found.shown[parent.key] for parent in stage.parents if found.seen[parent.key].state != "done"]
    return min(behind, key=lambda one: STATES.index(found.seen[one.key].state), default=stage)


# -------------------------------------------------------------------------------------------------------- logs, times


def log(stage: Stage, store: Store, found: Look) -> Path | None:
    """The log of a stage; what its job printed where the stage itself came to nothing; None without either."""
    own, place = store.folder(stage) / "log.txt", found.places.get(stage.folder)
    attempts = found.attempts.get(stage.key, [])
    if place is not None and not (attempts and attempts[-1].facts["began"] >= place[0].time):
        folder = ledger.log_folder(store.root, place[0].token)
        printed = sorted(folder.glob(f"{place[0].element(place[1])}_*log.out"))
        if printed:
            return printed[-1]
    return own if own.exists() else None


def tail(path: Path, size: int = 4096) -> str:
    """The last so many bytes of a file, as text; '' without the file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - size))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def moment(seconds: float) -> str:
    """A time in words: with the date only where it is not near."""
    near = abs(seconds - time.time()) < 12 * 3600
    return time.strftime("%H:%M:%S" if near else "%Y-%m-%d %H:%M", time.localtime(seconds))
