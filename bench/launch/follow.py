"""Report on the stages of a grid while Slurm runs them, until all have ended; nothing depends on somebody following."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from bench.launch import jobs
from bench.launch.jobs import JobState, SlurmError, Submission
from bench.progress import Reporter
from bench.specs import Stage
from bench.store import Store
from bench.worker import Outcome

POLL_SECONDS = 5.0
LOST_SECONDS = 120.0
"""For so long a stage may be neither in the queue nor in the store: files appear late on network file systems."""


def follow(
    stages: Sequence[Stage], store: Store, stop: Callable[[], bool], report: Reporter
) -> tuple[dict[str, str], dict[str, str]]:
    """Report on stages (parents first) until all have ended or a stop is asked for: what failed, what is blocked."""
    pending = {stage.key: (number, stage) for number, stage in enumerate(stages)}
    failed: dict[str, str] = {}
    blocked: dict[str, str] = {}
    running: set[str] = set()
    absent: dict[str, float] = {}
    told = False
    while pending and not stop():
        try:
            places = _places(*jobs.look(store.root))
            told = False
        except SlurmError as error:  # the controller may be restarting; the jobs go on
            if not told:
                report.console.print(f"warning: {error}", markup=False)
            told = True
            _sleep(stop)
            continue
        for key, (number, stage) in list(pending.items()):
            state = places.get(stage.folder, jobs.NOTHING)
            outcome = _outcome(stage, store, state, failed, blocked, absent)
            if state.state == "RUNNING" and key not in running:
                running.add(key)
                report.started(stage, number)
            if outcome is not None:
                del pending[key]
                report.ended(stage, number, outcome)
                if outcome.state == "blocked":
                    blocked[key] = outcome.reason
                elif outcome.state == "failed":
                    failed[key] = outcome.reason
        if pending:
            _sleep(stop)
    return failed, blocked


def _places(known: Sequence[Submission], queued: Mapping[str, JobState]) -> dict[str, JobState]:
    """Folder name of a stage -> the state of the element that was submitted last to run it."""
    return {
        name: jobs.element_state(made, index, queued)
        for made in known
        for index, task in enumerate(made.tasks)
        for name in task
    }


def _outcome(
    stage: Stage,
    store: Store,
    state: JobState,
    failed: Mapping[str, str],
    blocked: Mapping[str, str],
    absent: dict[str, float],
) -> Outcome | None:
    """How a stage ended, None while it has not; `absent` notes since when Slurm does not know its job any more."""
    if (store.folder(stage) / "record.json").exists() and store.record(stage) is not None:
        attempts = store.attempts(stage)
        last = attempts[-1].facts if attempts else {}
        return Outcome("done", from_step=last.get("from_step") or 0, warnings=tuple(last.get("warnings", ())))
    if state.live:
        absent.pop(stage.key, None)
        return None
    attempts = store.attempts(stage)
    last_end = attempts[-1].end if attempts else None
    if last_end is not None and last_end["state"] == "failed":
        return Outcome("failed", str(last_end["reason"]))
    for parent in stage.parents:
        if parent.key in failed or parent.key in blocked:
            why = f"its stage {parent.folder} failed: {failed.get(parent.key)}"
            return Outcome("blocked", blocked.get(parent.key, why))
    if attempts and attempts[-1].alive:  # another launcher has it
        return None
    now = time.monotonic()
    if now - absent.setdefault(stage.key, now) < LOST_SECONDS:
        return None
    what = f"{state.state} {state.reason}".rstrip()
    return Outcome("failed", f"its job is over ({what}) and it has no record; run the grid again to go on with it")


def _sleep(stop: Callable[[], bool]) -> None:
    end = time.monotonic() + POLL_SECONDS
    while time.monotonic() < end and not stop():
        time.sleep(0.2)
