"""Which stage of a worklist a job takes next.

A stage is ready when all its parents are done, it is neither done nor failed itself, and nobody works on it. Of several
the first is one that was interrupted, then the one with the longest chain of steps ahead. Everything is read from the
store; what was seen finished is never looked at again, and nobody tells the jobs what others do.

A job that was submitted for generation g serves the generations 0 to g, its `scope`, and ends when no stage of those is
left: the jobs of the next generation start then. While others still run stages of its scope and nothing there is ready,
it takes what is ready of later generations, so that it never idles without need.

Example: P0 and P1 (generation 0) with the children A0, B0, A1 and B1 (generation 1); the first array has two jobs, the
second four, which wait for the end of the first.

    P0 done, P1 still runs    job 0 takes A0, since the second array cannot start yet
    P1 done                   job 1 finds its scope finished, and ends
    A0 done                   job 0 ends; the second array starts with four jobs, for B0, A1 and B1, and the fourth ends
"""

from __future__ import annotations

import heapq
import os
from collections import defaultdict, deque
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from bench.errors import DamagedStore
from bench.launch.slurm import troubles
from bench.launch.slurm.leases import Leases
from bench.launch.slurm.worklist import Entry, Worklist
from bench.specs import Stage
from bench.specs.cluster import Cluster
from bench.store.states import StageState, diverged, is_alive
from bench.store.store import Store

LOOKS = 100
"""How many of the stages that only other jobs can run each `take` looks at, to see whether they have ended."""


class _Turn(NamedTuple):
    """The turn of a stage: the least comes first."""

    minus_ahead: int
    position: int


class Pool:
    """What one job knows of its worklist, and the stages that it took."""

    def __init__(self, store: Store, listed: Worklist, cluster: Cluster, generation: int) -> None:
        self.listed = listed
        self.leases = Leases(store.root)
        self.failed: dict[str, str] = {}
        """Folder of a stage that failed for good -> why."""
        self.damaged: dict[str, str] = {}
        """Folder of a stage that could not be read when it was last looked at -> why."""
        self._store = store
        self._cluster = cluster
        self._generation = generation
        self._given_up: dict[str, str] = {}
        self._positions = {entry.folder: position for position, entry in enumerate(listed.entries)}
        self._ended: set[int] = set()
        """Positions of stages that are done, failed or blocked."""
        self._lost: set[int] = set()
        """Of those, the ones without a result."""
        self._children: dict[int, list[int]] = defaultdict(list)
        for position, entry in enumerate(listed.entries):
            for parent in entry.parents:
                self._children[parent].append(position)
        self._left_in_scope = sum(entry.generation <= generation for entry in listed.entries)
        # Of the stages whose parents have all ended, two heaps hold those that this job can run, in the order in which
        # it would. The others ask for resources that only other jobs have.
        self._ready_in_scope: list[_Turn] = []
        self._ready_later: list[_Turn] = []
        self._for_other_jobs: deque[int] = deque()
        for position, entry in enumerate(listed.entries):
            if not entry.parents:
                self._becomes_ready(position)

    @property
    def over(self) -> bool:
        """Whether every stage of this job's scope was seen ended."""
        return self._left_in_scope == 0

    # ------------------------------------------------------------------------------------------------ taking a stage

    def take(self) -> Stage | None:
        """Take the next ready stage; None if there is none now.

        It stays this job's until `give_back` or `leave`.
        """
        held = self.leases.look()
        self._given_up = troubles.given_up(self._store.root, self.listed.token)
        for _ in range(min(LOOKS, len(self._for_other_jobs))):
            position = self._for_other_jobs.popleft()
            if held.get(self.listed.entries[position].folder, False) or not self._has_ended(position):
                self._for_other_jobs.append(position)
        # A stage with a lease that nobody keeps any more was interrupted, and comes first.
        interrupted = {name for name, alive in held.items() if not alive}
        for heap in (self._ready_in_scope, self._ready_later):
            for turn in sorted(turn for turn in heap if self.listed.entries[turn.position].folder in interrupted):
                if self._may_run(turn.position) and (stage := self._taken(turn.position)) is not None:
                    return stage
        taken = self._next(self._ready_in_scope, held)
        if taken is None and not self.over:
            taken = self._next(self._ready_later, held)
        return taken

    def give_back(self, stage: Stage) -> None:
        """Give back a stage that this job took and that leaves nothing to resume."""
        self.leases.release(stage.folder)

    def leave(self, stage: Stage) -> None:
        """Leave an interrupted stage to the next job that takes one."""
        self.leases.leave(stage.folder)

    def _next(self, heap: list[_Turn], held: Mapping[str, bool]) -> Stage | None:
        """Take the first stage of a heap that nobody has. A stage that is seen ended leaves the heap for good."""
        stage, waiting = None, []
        while heap and stage is None:
            turn = heapq.heappop(heap)
            if turn.position in self._ended:
                continue
            if held.get(self.listed.entries[turn.position].folder, False):
                waiting.append(turn)
            elif self._may_run(turn.position):
                waiting.append(turn)
                stage = self._taken(turn.position)
            elif turn.position not in self._ended:  # it cannot be read now
                waiting.append(turn)
        for turn in waiting:
            heapq.heappush(heap, turn)
        return stage

    def _taken(self, position: int) -> Stage | None:
        """Take the lease of a stage, and look at its folder again; None where another job or launcher has it."""
        entry = self.listed.entries[position]
        if not self.leases.take(entry.folder):
            return None
        # Between the look and the lease another job may have finished it, and a network file system may show what was
        # true half a minute ago: the folder is listed, which has it look again, and everything is read anew.
        folder = self._store.root / entry.folder
        try:
            os.listdir(folder)
            stage = self._store.load(folder)
            attempts = self._store.attempts(stage)
        except (DamagedStore, FileNotFoundError) as error:
            self.damaged[entry.folder] = str(error)
            self.leases.release(entry.folder)
            return None
        if self._may_run(position) and not (attempts and is_alive(attempts[-1])):
            return stage
        self.leases.release(entry.folder)
        return None

    # ------------------------------------------------------------------------------------------------ what has ended

    def _becomes_ready(self, position: int) -> None:
        entry = self.listed.entries[position]
        if not self._cluster.serves(self.listed.clusters[entry.kind]):
            self._for_other_jobs.append(position)
            return
        heap = self._ready_in_scope if entry.generation <= self._generation else self._ready_later
        heapq.heappush(heap, _Turn(-entry.ahead, position))

    def _may_run(self, position: int) -> bool:
        """Look whether a stage has not ended, and can be read."""
        return not self._has_ended(position) and self.listed.entries[position].folder not in self.damaged

    def _has_ended(self, position: int) -> bool:
        """Look whether a stage is done or has failed for good, and note it.

        What cannot be read has not ended: the record may be visible before its weights, and it is looked at again.
        """
        entry = self.listed.entries[position]
        folder = self._store.root / entry.folder
        if position in self._ended:
            return True
        self.damaged.pop(entry.folder, None)
        try:
            # By the key in the folder's name: reading the specs of thousands of stages would take minutes.
            done = self._store.record_in(folder, folder.name.rpartition("-")[2]) is not None
            reason = None if done else self._failure(entry, folder)
        except DamagedStore as error:  # one stage's damage is not to end the others'
            self.damaged[entry.folder] = str(error)
            return False
        if reason is not None:
            self.failed[entry.folder] = reason
        if done or reason is not None:
            self._note_end(position, lost=not done)
        return position in self._ended

    def _failure(self, entry: Entry, folder: Path) -> str | None:
        """Say why a stage has failed for good; None if it may be tried.

        Attempts from before the worklist was made do not count, nor does what was no fault of the stage.
        """
        if (folder / "attempts").is_dir():
            last = self._store.attempts(self._store.load(folder))[entry.attempts :][-1:]
            if last and last[0].end is not None and last[0].end["state"] == StageState.FAILED:
                return str(last[0].end["reason"])
        return self._given_up.get(entry.folder)

    def _note_end(self, position: int, lost: bool) -> None:
        """Note that a stage ended, and what that means for its children.

        A child is ready when all its parents have ended well. Behind one that was lost it has ended, too, unless it is
        a search that can do without: example in `bench.store.states.why_blocked`.
        """
        if position in self._ended:
            return
        self._ended.add(position)
        if lost:
            self._lost.add(position)
        self._left_in_scope -= self.listed.entries[position].generation <= self._generation
        for child in self._children[position]:
            entry = self.listed.entries[child]
            lacking = any(parent in self._lost for parent in entry.parents)
            if lacking and not entry.may_lack:
                self._note_end(child, lost=True)
            elif all(parent in self._ended for parent in entry.parents):
                if lacking and not self._can_do_without(entry):
                    self._note_end(child, lost=True)
                else:
                    self._becomes_ready(child)

    def _can_do_without(self, entry: Entry) -> bool:
        """Tell whether a search can run without the parents that it lost."""
        try:
            return not self._store.missing_parents(self._store.load(self._store.root / entry.folder))
        except DamagedStore:  # the worker that runs it reports the damage
            return True

    # ------------------------------------------------------------------------------------------------ what it tells

    def attempts_before(self, stage: Stage) -> int:
        """Return how many attempts a stage had when the worklist was made."""
        return self.listed.entries[self._positions[stage.folder]].attempts

    def look_at(self, stage: Stage) -> None:
        """Note now whether a stage has ended: `take` may not look at it for long."""
        self._given_up = troubles.given_up(self._store.root, self.listed.token)
        self._has_ended(self._positions[stage.folder])

    @property
    def failures(self) -> list[str]:
        """Why stages failed for good; those that diverged, as candidates of a search may, are left out."""
        return [reason for reason in self.failed.values() if not diverged(reason)]
