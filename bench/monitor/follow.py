"""Report on the stages of a grid while Slurm runs them, until all have ended; nothing depends on somebody following."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from bench.launch.reporter import Reporter
from bench.monitor import states
from bench.monitor.states import ENDED, UNDER_WAY, Look, Seen
from bench.planning.plan import Plan
from bench.specs import Stage
from bench.store.states import StageState
from bench.store.store import Store
from bench.training.protocol import Outcome

POLL_SECONDS = 5.0
LOST_SECONDS = 120.0
"""For so long a stage may be neither in the queue nor in the store: files appear late on network file systems."""


def follow(
    plan: Plan, keys: Collection[str], store: Store, stop: Callable[[], bool], report: Reporter
) -> tuple[dict[str, str], dict[str, str]]:
    """Report on these stages until they end or a stop is requested.

    Returns what failed and what is blocked, with the reasons by key.
    """
    pending = {stage.key: (number, stage) for number, stage in enumerate(plan.stages) if stage.key in keys}
    ends: dict[StageState, dict[str, str]] = {StageState.FAILED: {}, StageState.BLOCKED: {}}
    running: set[str] = set()
    done: states.Finished = {}
    lost: dict[str, float] = {}
    warned = ""
    while pending and not stop():
        view = states.look(plan, store, done)
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
            outcome = _outcome(stage, store, seen, view, lost)
            if outcome is not None:
                del pending[key]
                report.ended(stage, number, outcome)
                if outcome.state != StageState.DONE:
                    ends[outcome.state][key] = outcome.reason
        if pending:
            _sleep(stop)
    return ends[StageState.FAILED], ends[StageState.BLOCKED]


def _outcome(stage: Stage, store: Store, seen: Seen, view: Look, lost: dict[str, float]) -> Outcome | None:
    """Say how a stage ended; None while it has not.

    `lost` notes since when neither Slurm nor the store knows of it.
    """
    if seen.state == StageState.DONE:
        attempts = store.attempts(stage)
        last = attempts[-1].facts if attempts else {}
        return Outcome(StageState.DONE, from_step=last.get("from_step") or 0, warnings=tuple(last.get("warnings", ())))
    if seen.state in ENDED:
        return Outcome(seen.state, seen.note)
    if seen.state in UNDER_WAY or view.warning:
        lost.pop(stage.key, None)
        return None
    now = time.monotonic()
    if now - lost.setdefault(stage.key, now) < LOST_SECONDS:
        return None
    return Outcome(
        StageState.FAILED, f"it has no record ({seen.note or seen.state}); run the grid again to go on with it"
    )


def _sleep(stop: Callable[[], bool]) -> None:
    end = time.monotonic() + POLL_SECONDS
    while time.monotonic() < end and not stop():
        time.sleep(0.2)
