"""The states that a stage can be in: one vocabulary, and which of them the store tells of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum

from bench.specs import Selected, Stage
from bench.store.ownership import Attempt


class StageState(StrEnum):
    """Name the states of a stage; the values are the words on disk and on the screen."""

    # How an attempt ended: what the store keeps.
    DONE = "done"
    FAILED = "failed"
    REFUSED = "refused"
    """By damage outside the stage: nothing is held against it, and the next run tries again."""
    INTERRUPTED = "interrupted"
    DIED = "died"
    # How a process ended that left the stage to another one: what workers and launchers say to each other.
    CROWDED = "crowded"
    """Out of memory on a device that others use too: interrupted, to be tried again alone there."""
    BUSY = "busy"
    """Held by another process."""
    # What stands before an end: what the plan and the store tell.
    NOT_PREPARED = "not prepared"
    UNNEEDED = "no longer needed"
    TO_RUN = "to run"
    PLANNED = "planned"
    RUNNING = "running"
    STALE = "stale"
    """Begun by a process that is gone."""
    BLOCKED = "blocked"
    """A stage that it needs has failed."""
    # What only a cluster adds.
    QUEUED = "queued"
    REQUEUED = "requeued"
    UNKNOWN = "unknown"


UNSUCCESSFUL = frozenset((StageState.FAILED, StageState.REFUSED))
"""Ends after which nothing goes on by itself."""


def state_in_store(stage: Stage, last: Attempt | None) -> StageState:
    """Decide the state of a stage without a record from its last attempt."""
    if stage.unprepared:
        return StageState.NOT_PREPARED
    if last is None:
        return StageState.PLANNED
    if last.end is None:
        return StageState.RUNNING if is_alive(last) else StageState.STALE
    # Any other end, of whatever version of the suite, leaves the stage to be run again.
    return StageState(last.end["state"]) if last.end["state"] in UNSUCCESSFUL else StageState.PLANNED


def is_alive(attempt: Attempt) -> bool:
    """Say whether an attempt's owner still works on it, also where nothing can be written."""
    try:
        return attempt.alive
    except OSError:  # telling the time of another machine's heartbeat takes a new file
        return False


def diverged(reason: str) -> bool:
    """Tell whether a failure or a blockage comes of training that diverged, and of nothing else.

    `reason` is that of the failed stage, or what `why_blocked` says of one behind it.
    """
    return re.match(r"(its stage \S+ failed: )?Diverged: ", reason) is not None


def why_blocked(stage: Stage, failed: Mapping[str, str], blocked: Mapping[str, str]) -> str | None:
    """Say which failure keeps a stage from running; None if none does.

    `failed` and `blocked` hold reasons by stage key. The reason travels down: where A failed, B needs A and C needs B,
    both B and C are blocked by "its stage A failed: …".

    A search can do without what diverged, as long as one of its candidates has not. Example: of the candidates A, B and
    C, A diverged and B starts from a P that diverged: the search chooses C, and what A's and B's finals start from may
    be missing, too. If C diverges as well, or failed in any other way, the search is blocked.
    """
    reasons: dict[str, str] = {}
    for parent in stage.parents:
        if parent.key in blocked:
            reasons[parent.key] = blocked[parent.key]
        elif parent.key in failed:
            reasons[parent.key] = f"its stage {parent.name} failed: {failed[parent.key]}"
    lost = {key for key, reason in reasons.items() if diverged(reason)}
    if isinstance(stage, Selected) and any(candidate.key not in lost for candidate in stage.candidates):
        reasons = {key: reason for key, reason in reasons.items() if key not in lost}
    # A failure of another kind comes first: it may be put right, and what it blocks did not diverge.
    ordered = sorted(reasons, key=lambda key: key in lost)
    return reasons[ordered[0]] if ordered else None
