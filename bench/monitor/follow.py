"""Report on the stages of a grid while Slurm runs them, until all have ended; nothing depends on somebody following."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from bench.launch.reporter import Reporter
from bench.monitor import states
from bench.monitor.states import ENDED, UNDER_WAY, Look, Seen
from bench.planning.plan import Plan
from bench.specs import Stage
from bench.store.states import StageState
from bench.store.store import Store
from bench.training.protocol import Outcome

POLL_SECONDS = 5.0
"""Between two looks at the store; Slurm is asked less often."""
LOST_SECONDS = 120.0
"""For so long a stage may be neither in the queue nor in the store: files appear late on network file systems."""


@dataclass
class Ended:
    """How the stages ended that were followed: reasons by key.

    `left` are stages that have not ended, and that no job is left to run: what is known of each, by key.
    """

    failed: dict[str, str] = field(default_factory=dict)
    blocked: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def add(self, later: Ended) -> None:
        """Add what was seen later, which takes the place of what was left before."""
        self.failed.update(later.failed)
        self.blocked.update(later.blocked)
        self.left = later.left

    def left_by_reason(self, plan: Plan) -> dict[str, list[str]]:
        """Group the titles of stages that are left by what is known of each."""
        titles: dict[str, list[str]] = defaultdict(list)
        for stage in plan.stages:
            if stage.key in self.left:
                titles[self.left[stage.key]].append(stage.title)
        return titles


def follow(
    plan: Plan,
    keys: Collection[str],
    store: Store,
    stop: Callable[[], bool],
    report: Reporter,
    at_once: bool = False,
) -> Ended:
    """Report on these stages until they end, no job is left for them, or a stop is requested.

    With `at_once` it also returns when no job is left for a stage that could start, if another has finished meanwhile.
    Example: all jobs with a GPU were cancelled, those without go on; a fine-tuning that needs one could begin.
    """
    pending = {stage.key: (number, stage) for number, stage in enumerate(plan.stages) if stage.key in keys}
    ended, queue, finished = Ended(), states.PatientQueue(), False
    running: set[str] = set()
    done: states.Finished = {}
    lost: dict[str, float] = {}
    warned = ""
    while pending and not stop():
        view = states.look(plan, store, done, queue)
        if view.warning and not warned:  # the controller may be restarting; the jobs go on
            report.console.print(f"warning: {view.warning}", markup=False)
        warned = view.warning
        # Start and end of a stage are reported once each. A short one may run between two looks, and have an end only.
        for key, (number, stage) in list(pending.items()):
            # What lies behind a finished stage is not looked at: it was finished before.
            seen = view.seen.get(key, Seen(StageState.DONE))
            if seen.state == StageState.RUNNING:
                if key not in running:
                    running.add(key)
                    report.started(stage, number)
                report.progress(number, round(seen.share * stage.total_steps), stage.total_steps, float("nan"))
            if seen.state in ENDED:
                finished |= seen.state == StageState.DONE
                del pending[key]
                report.ended(stage, number, _outcome(stage, store, seen))
                if seen.state == StageState.FAILED:
                    ended.failed[key] = seen.note
                elif seen.state == StageState.BLOCKED:
                    ended.blocked[key] = seen.note
        ended.left = _left(pending, view, lost)
        ready = [key for key in ended.left if not any(parent.key in pending for parent in pending[key][1].parents)]
        if len(ended.left) == len(pending) or (at_once and finished and ready and not view.jobs.stopped):
            break
        _sleep(stop)
    return ended


def _left(pending: Collection[str], view: Look, lost: dict[str, float]) -> dict[str, str]:
    """Return the stages that no job is left to run, with what is known of each.

    `lost` notes since when neither Slurm nor the store knows of a stage.
    """
    left, now = {}, time.monotonic()
    for key in pending:
        seen = view.seen.get(key)
        if seen is None or seen.state in UNDER_WAY or view.warning:
            lost.pop(key, None)
        elif now - lost.setdefault(key, now) >= LOST_SECONDS or seen.state in (StageState.PLANNED, StageState.STALE):
            left[key] = seen.note or seen.state
    return left


def _outcome(stage: Stage, store: Store, seen: Seen) -> Outcome:
    """Say how a stage ended."""
    if seen.state == StageState.DONE:
        attempts = store.attempts(stage)
        last = attempts[-1].facts if attempts else {}
        return Outcome(StageState.DONE, from_step=last.get("from_step") or 0, warnings=tuple(last.get("warnings", ())))
    return Outcome(seen.state, seen.note)


def _sleep(stop: Callable[[], bool]) -> None:
    end = time.monotonic() + POLL_SECONDS
    while time.monotonic() < end and not stop():
        time.sleep(0.2)
