"""Stages -> job arrays with dependencies between them, in few sbatch calls.

A stage waits for its own parents and for nothing else. Stages that wait for the same elements form one array, with
`afterok` on those; where the stages of an array have a child each, or a few, element i of a further array waits for
element i of theirs (`aftercorr`). Only where that would take too many sbatch calls does a whole generation wait for
the arrays that hold its parents. No cluster is asked here.

Example: 2 methods x 3 seeds, where both methods fine-tune (A, B) what a further pre-training (P) of their seed left.
Generation 0 is P0 P1 P2, generation 1 the other six:

    array 0   P0 P1 P2
    array 1   A0 A1 A2    aftercorr:0, so that A0 waits for P0 only, A1 for P1, A2 for P2
    array 2   B0 B1 B2    aftercorr:0

That is three calls. A0 starts when P0 is done, however long P1 takes, and a failure of P1 stops A1 and B1 alone.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from bench.specs import Selected, Stage

CALLS_PER_THOUSAND = 200
"""Above so many sbatch calls per thousand stages, generations wait for whole arrays."""
FEW_CALLS = 20
"""So many calls are always fine."""


@dataclass(frozen=True, order=True)
class Element:
    """An element of an array, or with `index` None all of them.

    `array` is the array's number in the list of arrays, `index` that of the element in it.
    """

    array: int
    index: int | None


@dataclass(frozen=True)
class Queued:
    """A stage that an earlier submission runs.

    `element` is the id of its array element, `packed` says whether other stages share that element.
    """

    element: str
    packed: bool


Waited = Element | str
"""An element of these arrays, or the id of one submitted earlier."""


@dataclass(frozen=True)
class Array:
    """One sbatch call: the stages of each element, and their dependencies.

    `tasks[i]` are the stages of element i; there are none at an index that is left out. All elements wait until each of
    `ok` has succeeded and each of `ended` has ended; element i until element i of the array `corresponding` has
    succeeded.
    """

    tasks: tuple[tuple[Stage, ...], ...]
    ok: tuple[Waited, ...] = ()
    ended: tuple[Waited, ...] = ()
    corresponding: int | None = None

    @property
    def indices(self) -> tuple[int, ...]:
        """The indices that are used: those with stages."""
        return tuple(index for index, stages in enumerate(self.tasks) if stages)

    def dependency(self, ids: Sequence[str]) -> str | None:
        """Return the value of sbatch's --dependency; None without any.

        `ids` are the job ids of the arrays before it. Examples: 'afterok:17_2:17_3,afterany:18', 'aftercorr:19'.
        """
        kinds = {"afterok": self.ok, "afterany": self.ended}
        parts = [":".join([kind, *(_id(item, ids) for item in waited)]) for kind, waited in kinds.items() if waited]
        if self.corresponding is not None:
            parts.append(f"aftercorr:{ids[self.corresponding]}")
        return ",".join(parts) or None


def _id(waited: Waited, ids: Sequence[str]) -> str:
    if isinstance(waited, str):
        return waited
    return ids[waited.array] if waited.index is None else f"{ids[waited.array]}_{waited.index}"


def arrange(
    stages: Sequence[Stage],
    done_keys: Collection[str],
    runs_per_job: int,
    max_array_size: int,
    queued: Mapping[str, Queued] | None = None,
) -> list[Array]:
    """Return the arrays that run `stages`, each after those it waits for.

    `stages` have parents first. `runs_per_job` stages share an element; an array has at most `max_array_size` elements,
    counted from 0. Raises ValueError if a parent is neither among the stages nor done nor queued.
    """
    generations = _generations(stages, done_keys, queued or {})
    limit = max(FEW_CALLS, len(stages) * CALLS_PER_THOUSAND // 1000)
    barriers: set[int] = set()
    # Every stage waits for its own parents at first. While that takes too many calls, the generation that takes most of
    # them becomes a barrier: it waits for whole arrays, and so fits into few. Example: 1000 stages, at most 200 calls;
    # the generations take 1, 150 and 90, so that the second becomes a barrier, and 1 + 1 + 90 calls are few enough.
    while True:
        draft = _Draft(runs_per_job, max_array_size, queued or {})
        counts = {}
        for number, generation in enumerate(generations):
            before = len(draft.arrays)
            draft.add(generation, barrier=number in barriers)
            counts[number] = len(draft.arrays) - before
        costly = {number: count for number, count in counts.items() if number not in barriers and count > 1}
        if len(draft.arrays) <= limit or not costly:
            return draft.arrays
        barriers.add(max(costly, key=lambda number: costly[number]))


class _Pending(NamedTuple):
    """A stage and those of its parents that it waits for."""

    stage: Stage
    parents: tuple[str, ...]


def _generations(
    stages: Sequence[Stage], done_keys: Collection[str], queued: Mapping[str, Queued]
) -> list[list[_Pending]]:
    """Group the stages by how many generations come before them.

    Within a generation, the stage with the longest line of descendants is first. A parent that another parent descends
    from is not waited for: the other cannot succeed before it. Example: of A -> B -> C and A -> C, the generations are
    [A], [B], [C], and C waits for B alone.
    """
    keys = {stage.key for stage in stages}
    generation: dict[str, int] = {}
    ancestors: dict[str, frozenset[str]] = {}
    ordered: list[_Pending] = []
    for stage in stages:
        parents = [parent.key for parent in stage.parents if parent.key not in done_keys]
        for parent in parents:
            if parent not in ancestors and parent not in queued:
                raise ValueError(f"{stage.folder}: its parent {parent[:16]} is neither done, queued nor before it")
        ancestors[stage.key] = frozenset(parents).union(*(ancestors.get(parent, ()) for parent in parents))
        needed = [key for key in parents if not any(key in ancestors.get(other, ()) for other in parents)]
        # Parents that are queued from before take no part in the count: nothing here has to come after their arrays.
        generation[stage.key] = 1 + max((generation[key] for key in needed if key in keys), default=-1)
        ordered.append(_Pending(stage, tuple(needed)))
    descent: dict[str, int] = defaultdict(int)  # key -> the length of the longest line of descendants
    for pending in reversed(ordered):
        for parent in pending.parents:
            descent[parent] = max(descent[parent], descent[pending.stage.key] + 1)
    generations: list[list[_Pending]] = [[] for _ in range(1 + max(generation.values(), default=-1))]
    for pending in sorted(ordered, key=lambda pending: -descent[pending.stage.key]):
        generations[generation[pending.stage.key]].append(pending)
    return generations


@dataclass
class _Draft:
    """Arrays in the making, a generation at a time."""

    runs_per_job: int
    max_array_size: int
    queued: Mapping[str, Queued]
    arrays: list[Array] = field(default_factory=list)
    elements: dict[str, Element] = field(default_factory=dict)
    """Stage key -> the element that runs it."""

    @cached_property
    def packed_before(self) -> set[str]:
        """The ids of elements of earlier submissions that run several stages."""
        return {queued.element for queued in self.queued.values() if queued.packed}

    def add(self, generation: Sequence[_Pending], barrier: bool) -> None:
        """Add a generation's arrays; those of a barrier wait for whole arrays."""
        if barrier:
            self._add_waiting_for_arrays(generation)
            return
        rest = self._add_corresponding(generation) if self.runs_per_job == 1 else list(generation)
        groups: dict[tuple[frozenset[Waited], bool], list[Stage]] = defaultdict(list)
        for pending in rest:
            waited = frozenset(map(self._awaited, pending.parents))
            groups[waited, _may_lack(pending.stage)].append(pending.stage)
        for (waited, may_lack), stages in groups.items():
            for tasks in self._chunks(stages):
                ordered = sorted(waited, key=_order)
                ended = tuple(item for item in ordered if may_lack or self._packed(item))
                self._append(Array(tasks, tuple(item for item in ordered if item not in ended), ended))

    def _add_corresponding(self, generation: Sequence[_Pending]) -> list[_Pending]:
        """Add arrays with element-wise dependencies, and return the stages left over.

        Element i of such an array waits for element i of its parents' array, and for nothing else (`aftercorr`). So one
        call serves one child of every parent, and the parents in an array take as many calls as the one with the most
        children has. A parent can also be left out: its children are left over, and the caller gives them arrays of
        their own, at one call for every `max_array_size` of them.

        The parents with the most children are left out, as many as make the sum of both least. With the numbers of
        children c_0 >= c_1 >= ... >= c_(n-1), c_n = 0 and the size s of an array, leaving out the first k takes

            calls(k) = ceil(c_0 / s) + ... + ceil(c_(k-1) / s) + c_k

        Of equal sums the greatest k counts. Example: the parents P0 P1 P2 of array 0 have two children each, one per
        method: calls(0) = 2, calls(1) = 1 + 2, calls(2) = 2 + 2, calls(3) = 3, so that none is left out, and there are
        two arrays, A0 A1 A2 and B0 B1 B2. With a further P3 that has five children, calls(0) = 5, calls(1) = 1 + 2 and
        calls(4) = 4, so that P3 is left out.
        """
        # Number of an array -> index of a parent in it -> the stages that wait for that element alone.
        children: dict[int, dict[int, list[_Pending]]] = defaultdict(lambda: defaultdict(list))
        rest = []
        for pending in generation:
            corresponds = len(pending.parents) == 1 and not _may_lack(pending.stage)
            waited = self._awaited(pending.parents[0]) if corresponds else None
            if isinstance(waited, Element) and waited.index is not None and not self._packed(waited):
                children[waited.array][waited.index].append(pending)
            else:
                rest.append(pending)
        for array, of_index in children.items():
            by_count = sorted(of_index, key=lambda index: -len(of_index[index]))
            counts = [*(len(of_index[index]) for index in by_count), 0]
            alone = [0]  # the calls for the first k parents, with arrays of their own
            for count in counts[:-1]:
                alone.append(alone[-1] + math.ceil(count / self.max_array_size))
            cut = min(range(len(counts)), key=lambda k: (alone[k] + counts[k], -k))
            rest += [pending for index in by_count[:cut] for pending in of_index[index]]
            # The first children of the others are an array, then the second children of those that have two, and so on.
            for turn in range(counts[cut]):
                chosen = {index: of_index[index][turn].stage for index in by_count[cut:] if turn < len(of_index[index])}
                tasks = tuple((chosen[index],) if index in chosen else () for index in range(max(chosen) + 1))
                self._append(Array(tasks, corresponding=array))
        return rest

    def _add_waiting_for_arrays(self, generation: Sequence[_Pending]) -> None:
        """Add arrays that wait for all arrays with any of their parents.

        They wait for the end of those, well or not, so that a failure stops its own dependants only: a worker refuses a
        stage whose parent has no weights. Stages are sorted by their first parent, so that an array waits for few.
        """
        parents = {pending.stage.key: pending.parents for pending in generation}

        def first_parent(stage: Stage) -> tuple[str, int, int, str]:
            return min((_order(self._awaited(parent)) for parent in parents[stage.key]), default=_order(""))

        stages = sorted((pending.stage for pending in generation), key=first_parent)
        for tasks in self._chunks(stages):
            waited = {self._awaited(parent) for task in tasks for stage in task for parent in parents[stage.key]}
            whole = {Element(item.array, None) if isinstance(item, Element) else item for item in waited}
            self._append(Array(tasks, ended=tuple(sorted(whole, key=_order))))

    def _chunks(self, stages: Sequence[Stage]) -> Iterable[tuple[tuple[Stage, ...], ...]]:
        """Split stages into elements, and elements into arrays of legal size."""
        size = self.runs_per_job
        tasks = [tuple(stages[start : start + size]) for start in range(0, len(stages), size)]
        for start in range(0, len(tasks), self.max_array_size):
            yield tuple(tasks[start : start + self.max_array_size])

    def _append(self, array: Array) -> None:
        for index, task in enumerate(array.tasks):
            for stage in task:
                self.elements[stage.key] = Element(len(self.arrays), index)
        self.arrays.append(array)

    def _awaited(self, key: str) -> Waited:
        """Return the element, new or submitted earlier, that runs a parent."""
        return self.elements[key] if key in self.elements else self.queued[key].element

    def _packed(self, waited: Waited) -> bool:
        """Tell whether an element runs several stages.

        Such an element fails if one of its stages does, which the others' children must not feel.
        """
        if isinstance(waited, Element):
            assert waited.index is not None
            return len(self.arrays[waited.array].tasks[waited.index]) > 1
        return waited in self.packed_before


def _may_lack(stage: Stage) -> bool:
    """Tell whether a stage can run though a parent failed.

    A search can, without the candidates that diverged. So it waits for their ends, and its own job decides.
    """
    return isinstance(stage, Selected)


def _order(waited: Waited) -> tuple[str, int, int, str]:
    if isinstance(waited, str):
        return ("queued", 0, 0, waited)
    return ("array", waited.array, -1 if waited.index is None else waited.index, "")
