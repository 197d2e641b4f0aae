"""Which stage may run next: parents first, a failure blocks its dependants and nothing else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from bench.specs import Stage
from bench.store.states import UNSUCCESSFUL, StageState, why_blocked
from bench.training.protocol import Outcome


class Queue:
    """The stages still to run, given out once their parents are done.

    The one with the longest chain of dependants is first.
    """

    def __init__(self, stages: Sequence[Stage], done: Iterable[str], failed: Mapping[str, str]) -> None:
        ahead = steps_ahead(stages)
        self.waiting = sorted(stages, key=lambda stage: -ahead[stage.key])
        self.done = set(done)
        self.failed = dict(failed)
        self.blocked: dict[str, str] = {}
        self.running: set[str] = set()

    def next(self) -> Stage | None:
        """Return a stage whose parents are done, now counted as running.

        None if there is none at present.
        """
        # Blocked stages are noted on the way, in a list that gets shorter meanwhile: hence the copy.
        for stage in list(self.waiting):
            # A failed parent that does not block is one that a search can do without.
            ended = self.done | self.failed.keys() | self.blocked.keys()
            reason = why_blocked(stage, self.failed, self.blocked)
            if reason is not None:
                self.waiting.remove(stage)
                self.blocked[stage.key] = reason
            elif all(parent.key in ended for parent in stage.parents):
                self.waiting.remove(stage)
                self.running.add(stage.key)
                return stage
        return None

    def finish(self, stage: Stage, outcome: Outcome) -> None:
        """Note how a stage ended.

        An interrupted one, or one held elsewhere, waits again.
        """
        self.running.discard(stage.key)
        if outcome.state == StageState.DONE:
            self.done.add(stage.key)
        elif outcome.state in UNSUCCESSFUL:
            self.failed[stage.key] = outcome.reason
        else:
            self.waiting.append(stage)

    @property
    def over(self) -> bool:
        """Whether nothing runs and nothing is left to run."""
        return not self.waiting and not self.running


def steps_ahead(stages: Sequence[Stage]) -> dict[str, int]:
    """Count the optimiser steps of the longest chain from each stage on.

    The counts go by stage key; `stages` have parents first. Example: of A (100 steps) with the children B (10) and C
    (50), the chain of A has 150 steps, so that a free worker takes A first and then C.
    """
    ahead: dict[str, int] = defaultdict(int)
    for stage in reversed(stages):
        ahead[stage.key] += stage.total_steps
        for parent in stage.parents:
            ahead[parent.key] = max(ahead[parent.key], ahead[stage.key])
    return ahead
