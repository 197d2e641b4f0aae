"""Stages as job arrays: what waits for what, in how many sbatch calls."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from bench.launch.slurm.arrays import Array, Element, Queued, arrange
from bench.specs import Stage, walk
from tests.examples import finetuning, pretraining, tiny_backbone


def child(parent: Stage, seed: int, **changes: object) -> Stage:
    return finetuning(backbone=tiny_backbone(weights=parent), seed=seed, **changes)


def head(init: Stage | str) -> str | None:
    """A fresh classifier where the start has one."""
    return "fresh" if isinstance(init, Stage) else None


def random_grid(seed: int) -> list[Stage]:
    """Up to some dozens of stages, parents first, each with none to two parents."""
    draw = random.Random(seed)
    stages: list[Stage] = []
    for number in range(draw.randint(1, 40)):
        trained = [stage for stage in stages if stage.name == "finetune"]
        weights = pretraining(seed=draw.randint(0, 3))
        init = draw.choice(trained) if trained and draw.random() < 0.6 else "pretrained"
        stages.append(finetuning(backbone=tiny_backbone(weights=weights), init=init, seed=number, head=head(init)))
    return list(walk(*stages))


def places(arrays: Sequence[Array]) -> dict[str, Element]:
    found: dict[str, Element] = {}
    for number, array in enumerate(arrays):
        for index, task in enumerate(array.tasks):
            for stage in task:
                assert stage.key not in found, "a stage would run twice"
                found[stage.key] = Element(number, index)
    return found


def waited_for(arrays: Sequence[Array], place: Element, known: dict[Element, set[Element]]) -> set[Element]:
    """The elements that have ended before an element starts, directly or further back; `known` saves work."""
    if place not in known:
        array = arrays[place.array]
        direct = [one for one in (*array.ok, *array.ended) if isinstance(one, Element)]
        if array.corresponding is not None:
            assert place.index in arrays[array.corresponding].indices, "it would wait for an element that is not there"
            direct.append(Element(array.corresponding, place.index))
        known[place] = set()
        for one in direct:
            assert one.array < place.array, "an id has to be known before it is waited for"
            of_it = [one] if one.index is not None else [Element(one.array, i) for i in arrays[one.array].indices]
            known[place].update(of_it, *(waited_for(arrays, element, known) for element in of_it))
    return known[place]


@pytest.mark.parametrize("seed", range(30))
def test_every_stage_runs_once_and_after_all_its_parents(seed: int) -> None:
    draw = random.Random(seed + 1000)
    runs, size = draw.choice([1, 1, 2, 3, 5]), draw.choice([1, 2, 3, 7, 1001])
    stages = random_grid(seed)
    done = {stage.key for stage in stages if not stage.parents and draw.random() < 0.3}
    to_run = [stage for stage in stages if stage.key not in done]
    arrays = arrange(to_run, done, runs, size)
    where = places(arrays)
    known: dict[Element, set[Element]] = {}
    assert where.keys() == {stage.key for stage in to_run}
    for stage in to_run:
        before = waited_for(arrays, where[stage.key], known)
        assert all(where[parent.key] in before for parent in stage.parents if parent.key not in done)
    for array in arrays:
        assert array.indices
        assert max(array.indices) < size, "an index above the limit is refused"
        assert all(len(task) <= runs for task in array.tasks)


@pytest.mark.parametrize("seed", range(30))
def test_a_failure_stops_nothing_but_its_descendants(seed: int) -> None:
    """`afterok` and `aftercorr` may only name elements whose failure is that of an ancestor."""
    draw = random.Random(seed + 2000)
    stages = random_grid(seed)
    arrays = arrange(stages, (), draw.choice([1, 2, 4]), draw.choice([2, 1001]))
    for number, array in enumerate(arrays):
        for index in array.indices:
            needed = list(array.ok)
            if array.corresponding is not None:
                needed.append(Element(array.corresponding, index))
            for one in needed:
                assert isinstance(one, Element)
                assert one.index is not None, "a whole array succeeds only if all of it does"
                (ancestor,) = arrays[one.array].tasks[one.index]
                for stage in arrays[number].tasks[index]:
                    assert ancestor.key in {other.key for other in walk(stage)}


def test_below_the_limit_a_stage_waits_for_its_ancestors_only() -> None:
    """No barrier: a fine-tuning starts as soon as its own teacher exists."""
    teachers = [child(pretraining(seed=task), seed) for task in range(2) for seed in range(5)]
    students = [
        finetuning(init=teacher, backbone=teacher.backbone, seed=teacher.seed + 10, head="fresh")
        for teacher in teachers
    ]
    stages = list(
        walk(*students, *(child(pretraining(seed=task), seed) for task in range(2) for seed in range(20, 30)))
    )
    arrays = arrange(stages, (), 1, 1001)
    where = places(arrays)
    known: dict[Element, set[Element]] = {}
    stage_at = {place: key for key, place in where.items()}
    for stage in stages:
        ancestors = {other.key for other in walk(stage)} - {stage.key}
        assert {stage_at[one] for one in waited_for(arrays, where[stage.key], known)} == ancestors
    assert len(arrays) == 5


def test_children_of_one_parent_form_one_array() -> None:
    parent = pretraining()
    arrays = arrange(list(walk(*(child(parent, seed) for seed in range(30)))), (), 1, 1001)
    assert [len(array.tasks) for array in arrays] == [1, 30]
    assert arrays[1].dependency(["7"]) == "afterok:7_0"


def test_parents_with_a_child_each_take_one_array_with_the_same_indices() -> None:
    parents = [pretraining(seed=seed) for seed in range(30)]
    children = [child(parent, 0) for parent in parents[::2]]
    arrays = arrange([*parents, *children], (), 1, 1001)
    assert len(arrays) == 2
    assert arrays[1].dependency(["7"]) == "aftercorr:7"
    for index in arrays[1].indices:
        assert arrays[1].tasks[index][0].parents == arrays[0].tasks[index]


def test_a_parent_with_many_children_does_not_multiply_the_calls_of_the_others() -> None:
    parents = [pretraining(seed=seed) for seed in range(10)]
    children = [child(parent, 0) for parent in parents] + [child(parents[4], seed) for seed in range(1, 50)]
    arrays = arrange([*parents, *children], (), 1, 1001)
    assert len(arrays) == 3


def test_calls_stay_below_the_limit_and_a_failure_stays_with_its_own() -> None:
    """300 parents with two children each that share nothing else, in arrays of three elements."""
    parents = [pretraining(seed=seed) for seed in range(300)]
    children = [child(parent, seed) for parent in parents for seed in range(2)]
    pairs = [
        finetuning(init=first, teacher=None, seed=9, backbone=tiny_backbone(weights=second), head="fresh")
        for first, second in zip(children, reversed(parents), strict=False)
    ]
    stages = list(walk(*pairs, *children))
    arrays = arrange(stages, (), 1, 1001)
    assert len(arrays) <= 0.2 * len(stages)
    where = places(arrays)
    known: dict[Element, set[Element]] = {}
    barriers = [array for array in arrays if any(isinstance(one, Element) and one.index is None for one in array.ended)]
    assert barriers, "pairs that share no parents would take a call each"
    for stage in stages:
        before = waited_for(arrays, where[stage.key], known)
        assert all(where[parent.key] in before for parent in stage.parents)


@pytest.mark.parametrize(("parents", "children", "calls"), [(40, 60, 41), (60, 40, 41)])
def test_whichever_takes_fewer_calls(parents: int, children: int, calls: int) -> None:
    shared = [tiny_backbone(weights=pretraining(seed=seed)) for seed in range(parents)]
    cells = [finetuning(backbone=backbone, seed=seed) for backbone in shared for seed in range(children)]
    assert len(arrange(list(walk(*cells)), (), 1, 1001)) == calls


def test_chunks_at_the_limit_of_the_index() -> None:
    stages = [pretraining(seed=seed) for seed in range(7)]
    assert [array.indices for array in arrange(stages, (), 1, 7)] == [tuple(range(7))]
    assert [array.indices for array in arrange(stages, (), 1, 6)] == [tuple(range(6)), (0,)]
    children = [child(stage, 0) for stage in stages]
    arrays = arrange([*stages, *children], (), 1, 3)
    assert [array.dependency(list("abcdef")) for array in arrays[3:]] == ["aftercorr:a", "aftercorr:b", "afterok:c_0"]


def test_a_child_of_a_packed_task_waits_for_its_end_only() -> None:
    """The task fails if one of its stages does, which must not block the children of the others."""
    parents = [pretraining(seed=seed) for seed in range(3)]
    children = [child(parent, 0) for parent in parents]
    arrays = arrange([*parents, *children], (), 2, 1001)
    where = places(arrays)
    for stage in children:
        array = arrays[where[stage.key].array]
        (parent,) = stage.parents
        place = where[parent.key]
        packed = len(arrays[place.array].tasks[place.index or 0]) > 1
        assert (array.ended, array.ok) == (((place,), ()) if packed else ((), (place,)))


def test_parents_in_the_queue_are_waited_for_by_their_element() -> None:
    first, second = pretraining(seed=1), pretraining(seed=2)
    queued = {first.key: Queued("41_3", packed=False), second.key: Queued("42_0", packed=True)}
    arrays = arrange([child(first, 0), child(second, 0)], (), 1, 1001, queued)
    assert {array.dependency([]) for array in arrays} == {"afterok:41_3", "afterany:42_0"}


def test_a_parent_that_is_nowhere_is_refused() -> None:
    with pytest.raises(ValueError, match="neither done"):
        arrange([child(pretraining(), 0)], (), 1, 1001)


def test_dependencies_name_all_ids() -> None:
    array = Array(((pretraining(),),), ok=(Element(0, 2), "9_1"), ended=(Element(1, None),), corresponding=2)
    assert array.dependency(["5", "6", "8"]) == "afterok:5_2:9_1,afterany:6,aftercorr:8"
    assert Array(((pretraining(),),)).dependency([]) is None


def test_stages_with_the_longest_line_of_descendants_come_first() -> None:
    alone, parent = finetuning(seed=8, backbone=tiny_backbone(weights=pretraining())), pretraining(seed=5)
    stages = [alone.parents[0], parent, child(parent, 0)]
    arrays = arrange([pretraining(seed=7), *stages], (), 1, 1001)
    assert arrays[0].tasks[0] == (parent,)
