"""Stages -> job arrays with dependencies between them, in few sbatch calls.

A stage waits for its own parents and for nothing else. Stages that wait for the same elements form one array, with
`afterok` on those; where the stages of an array have a child each, or a few, element i of a further array waits for
element i of theirs (`aftercorr`). Only where that would take too many sbatch calls does a whole generation wait for
the arrays that hold its parents. No cluster is asked here.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from bench.specs import Stage

CALLS_PER_THOUSAND = 200
"""Above so many sbatch calls per thousand stages, generations wait for whole arrays."""
FEW_CALLS = 20
"""So many calls are always fine."""


@dataclass(frozen=True, order=True)
class Element:
    """An element of an array: the array's number in the list, the index in it; index None for all of them."""

    array: int
    index: int | None


@dataclass(frozen=True)
class Queued:
    """A stage that an earlier submission runs: the id of its element, and whether other stages share that."""

    element: str
    packed: bool


Waited = Element | str
"""An element of these arrays, or the id of one submitted earlier."""


@dataclass(frozen=True)
class Array:
    """One sbatch call: the stages of each element (none at an index that is left out) and what they wait for.

    All elements wait until each of `ok` has succeeded and each of `ended` has ended; element i until element i of the
    array `corresponding` has succeeded.
    """

    tasks: tuple[tuple[Stage, ...], ...]
    ok: tuple[Waited, ...] = ()
    ended: tuple[Waited, ...] = ()
    corresponding: int | None = None

    @property
    def indices(self) -> tuple[int, ...]:
        """The indices that are used."""
        return tuple(index for index, stages in enumerate(self.tasks) if stages)

    def dependency(self, ids: Sequence[str]) -> str | None:
        """Slurm's words for what it waits for; `ids` are the job ids of the arrays before it."""
        kinds = {"afterok": self.ok, "afterany": self.ended}
        parts = [":".join([kind, *(_id(each, ids) for each in waited)]) for kind, waited in kinds.items() if waited]
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
    """The arrays that run `stages` (parents first), an array after those it waits for.

    `runs_per_job` stages share an element; an array has at most `max_array_size` elements, counted from 0. Raises
    ValueError if a parent is neither among the stages nor done nor queued.
    """
    generations = _generations(stages, done_keys, queued or {})
    limit = max(FEW_CALLS, len(stages) * CALLS_PER_THOUSAND // 1000)
    barriers: set[int] = set()
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
    """A stage and those of its parents that have to be waited for."""

    stage: Stage
    parents: tuple[str, ...]


def _generations(
    stages: Sequence[Stage], done_keys: Collection[str], queued: Mapping[str, Queued]
) -> list[list[_Pending]]:
    """The stages by how many generations come before them; the longest line of descendants first.

    A parent that another parent descends from is not waited for: the other cannot succeed before it.
    """
    known = {stage.key for stage in stages}
    generation: dict[str, int] = {}
    above: dict[str, frozenset[str]] = {}
    ordered: list[_Pending] = []
    below: dict[str, int] = defaultdict(int)
    for stage in stages:
        parents = [parent.key for parent in stage.parents if parent.key not in done_keys]
        for parent in parents:
            if parent not in above and parent not in queued:
                raise ValueError(f"{stage.folder}: its parent {parent[:16]} is neither done, queued nor before it")
        above[stage.key] = frozenset(parents).union(*(above.get(parent, ()) for parent in parents))
        needed = [one for one in parents if not any(one in above.get(other, ()) for other in parents)]
        generation[stage.key] = 1 + max((generation[one] for one in needed if one in known), default=-1)
        ordered.append(_Pending(stage, tuple(needed)))
    for one in reversed(ordered):
        for parent in one.parents:
            below[parent] = max(below[parent], below[one.stage.key] + 1)
    found: list[list[_Pending]] = [[] for _ in range(1 + max(generation.values(), default=-1))]
    for one in sorted(ordered, key=lambda pending: -below[pending.stage.key]):
        found[generation[one.stage.key]].append(one)
    return found


@dataclass
class _Draft:
    """Arrays in the making."""

    runs_per_job: int
    max_array_size: int
    queued: Mapping[str, Queued]
    arrays: list[Array] = field(default_factory=list)
    places: dict[str, Element] = field(default_factory=dict)
    packed_before: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self.packed_before = {one.element for one in self.queued.values() if one.packed}

    def add(self, generation: Sequence[_Pending], barrier: bool) -> None:
        if barrier:
            self._add_waiting_for_arrays(generation)
            return
        rest = self._add_corresponding(generation) if self.runs_per_job == 1 else list(generation)
        groups: dict[frozenset[Waited], list[Stage]] = defaultdict(list)
        for pending in rest:
            groups[frozenset(map(self._place, pending.parents))].append(pending.stage)
        for waited, stages in groups.items():
            for tasks in self._chunks(stages):
                ordered = sorted(waited, key=_order)
                ended = tuple(one for one in ordered if self._packed(one))
                self._append(Array(tasks, tuple(one for one in ordered if one not in ended), ended))

    def _add_corresponding(self, generation: Sequence[_Pending]) -> list[_Pending]:
        """Add arrays whose elements wait for the same ones of their parents' array; returns the stages left over.

        One call serves a child of every element, so parents with many children, which get an array of their own from
        the caller, are left out where that saves calls.
        """
        children: dict[int, dict[int, list[_Pending]]] = defaultdict(lambda: defaultdict(list))
        rest = []
        for pending in generation:
            place = self._place(pending.parents[0]) if len(pending.parents) == 1 else None
            if isinstance(place, Element) and place.index is not None and not self._packed(place):
                children[place.array][place.index].append(pending)
            else:
                rest.append(pending)
        for array, of_index in children.items():
            by_count = sorted(of_index, key=lambda index: -len(of_index[index]))
            counts = [*(len(of_index[index]) for index in by_count), 0]
            alone = [0]  # the calls for the first so many parents, with an array of their own each
            for count in counts[:-1]:
                alone.append(alone[-1] + math.ceil(count / self.max_array_size))
            cut = min(range(len(counts)), key=lambda number: (alone[number] + counts[number], -number))
            rest += [pending for index in by_count[:cut] for pending in of_index[index]]
            for turn in range(counts[cut]):
                chosen = {index: of_index[index][turn].stage for index in by_count[cut:] if turn < len(of_index[index])}
                tasks = tuple((chosen[index],) if index in chosen else () for index in range(max(chosen) + 1))
                self._append(Array(tasks, corresponding=array))
        return rest

    def _add_waiting_for_arrays(self, generation: Sequence[_Pending]) -> None:
        """Add arrays that wait until those with any of their parents have ended, well or not.

        So that a failure stops its own dependants only: a worker refuses a stage whose parent has no weights.
        """
        parents = {pending.stage.key: pending.parents for pending in generation}
        first = {key: min((_order(self._place(one)) for one in parents[key]), default=_order("")) for key in parents}
        stages = sorted((pending.stage for pending in generation), key=lambda stage: first[stage.key])
        for tasks in self._chunks(stages):
            places = {self._place(one) for task in tasks for stage in task for one in parents[stage.key]}
            whole = {Element(one.array, None) if isinstance(one, Element) else one for one in places}
            self._append(Array(tasks, ended=tuple(sorted(whole, key=_order))))

    def _chunks(self, stages: Sequence[Stage]) -> Iterable[tuple[tuple[Stage, ...], ...]]:
        size = self.runs_per_job
        tasks = [tuple(stages[start : start + size]) for start in range(0, len(stages), size)]
        for start in range(0, len(tasks), self.max_array_size):
            yield tuple(tasks[start : start + self.max_array_size])

    def _append(self, array: Array) -> None:
        for index, task in enumerate(array.tasks):
            for stage in task:
                self.places[stage.key] = Element(len(self.arrays), index)
        self.arrays.append(array)

    def _place(self, key: str) -> Waited:
        return self.places[key] if key in self.places else self.queued[key].element

    def _packed(self, place: Waited) -> bool:
        """Whether an element runs several stages: it fails if one does, which the others' children must not feel."""
        if isinstance(place, Element):
            assert place.index is not None
            return len(self.arrays[place.array].tasks[place.index]) > 1
        return place in self.packed_before


def _order(waited: Waited) -> tuple[str, int, int, str]:
    if isinstance(waited, str):
        return ("queued", 0, 0, waited)
    return ("array", waited.array, -1 if waited.index is None else waited.index, "")
