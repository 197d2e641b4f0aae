"""A worklist as job arrays: how many jobs, of which kind, what they wait for; whatever the limits."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import pytest

from bench.launch.slurm.arrays import Array, arrange
from bench.launch.slurm.worklist import Worklist, worklist
from bench.specs import Stage, walk
from bench.specs.cluster import Cluster, stage_kind
from tests.examples import finetuning, pretraining, tiny_backbone

SMALL, LARGE = Cluster(mem_gb=4.0), Cluster(mem_gb=16.0)


def child(parent: Stage, seed: int) -> Stage:
    return finetuning(backbone=tiny_backbone(weights=parent), seed=seed)


def family(parents: int, children: int) -> list[Stage]:
    """Pre-trainings, and fine-tunings of each of them."""
    first = [pretraining(seed=seed) for seed in range(parents)]
    return [*first, *(child(parent, seed) for parent in first for seed in range(children))]


def listed(stages: Sequence[Stage], clusters: Mapping[str, Cluster] | None = None) -> Worklist:
    kinds = {stage_kind(stage.name) for stage in stages}
    return worklist("0", stages, {}, {**dict.fromkeys(kinds, Cluster()), **(clusters or {})})


def random_grid(seed: int) -> tuple[Worklist, set[Cluster]]:
    """Some dozens of stages of several kinds and generations, and what those ask for."""
    draw = random.Random(seed)
    stages: list[Stage] = []
    for number in range(draw.randint(1, 40)):
        trained = [stage for stage in stages if stage.name != "source_pretrain"]
        weights = pretraining(seed=draw.randint(0, 3))
        init = draw.choice(trained) if trained and draw.random() < 0.6 else "pretrained"
        name = draw.choice(["finetune", "self_distill_1", "further_pretrain"])
        head = "fresh" if isinstance(init, Stage) else None
        backbone = tiny_backbone(weights=weights)
        stages.append(finetuning(name=name, backbone=backbone, init=init, seed=number, head=head))
    sizes = [
        SMALL,
        LARGE,
        Cluster(cpus=4, gpus=1, runs_per_job=draw.randint(1, 3), mem_gb=8.0),
        Cluster(constraint="fast", mem_gb=2.0, array_parallelism=draw.randint(1, 5)),
    ]
    kinds = ("source_pretrain", "finetune", "self_distill", "further_pretrain")
    whole = listed(list(walk(*stages)), {kind: draw.choice(sizes) for kind in kinds})
    return whole, set(whole.clusters.values())


def servers(arrays: Sequence[Array], whole: Worklist) -> list[list[Array]]:
    """For every stage, the arrays whose jobs can run it and come for it."""
    return [
        [
            array
            for array in arrays
            if array.generation >= entry.generation and array.cluster.serves(whole.clusters[entry.kind])
        ]
        for entry in whole.entries
    ]


@pytest.mark.parametrize("seed", range(40))
def test_every_stage_has_jobs_that_can_run_it_whatever_the_limits(seed: int) -> None:
    draw = random.Random(seed + 1000)
    whole, classes = random_grid(seed)
    most_jobs, size = draw.choice([1, 2, 3, 5, 12, 10**9]), draw.choice([1, 2, 7, 1001])
    arrays = arrange(whole, most_jobs, size)
    assert 1 <= sum(array.jobs for array in arrays) <= most_jobs
    assert all(1 <= array.jobs <= min(size, array.cluster.array_parallelism) for array in arrays)
    covered = [bool(each) for each in servers(arrays, whole)]
    if most_jobs >= len(classes):
        assert all(covered)
    # Too few jobs for all classes: what is left is submitted when these have ended, and some can begin at once.
    assert any(has for entry, has in zip(whole.entries, covered, strict=True) if entry.generation == 0)


@pytest.mark.parametrize("seed", range(20))
def test_an_array_waits_for_the_generation_before_and_never_for_a_later_one(seed: int) -> None:
    whole, _ = random_grid(seed)
    arrays = arrange(whole, 10**9, 1001)
    for number, array in enumerate(arrays):
        assert all(before < number for before in array.after), "an id has to be known before it is waited for"
        assert {arrays[before].generation for before in array.after} == ({array.generation - 1} - {-1})
        of_before = [n for n, each in enumerate(arrays) if each.generation == array.generation - 1]
        assert list(array.after) == of_before
    widths = [sum(width.values()) for width in whole.widths()]
    for generation, width in enumerate(widths):
        assert sum(array.stages for array in arrays if array.generation == generation) == width


def test_a_generation_is_an_array_as_wide_as_it_is() -> None:
    arrays = arrange(listed(family(3, 2)), 10**9, 1001)
    assert [(array.jobs, array.stages, array.after) for array in arrays] == [(3, 3, ()), (6, 6, (0,))]
    assert [array.dependency(["17"]) for array in arrays] == [None, "afterany:17"]


def test_kinds_with_resources_of_their_own_have_arrays_of_their_own() -> None:
    first = pretraining(seed=0)
    stages = [first, child(first, 0), child(first, 1), finetuning(name="self_distill_1", seed=0)]
    stages = list(walk(*stages))
    arrays = arrange(listed(stages, {"finetune": SMALL, "self_distill": LARGE}), 10**9, 1001)
    assert [(array.kinds, array.cluster) for array in arrays] == [
        (("source_pretrain",), Cluster()),
        (("finetune",), SMALL),
        (("self_distill",), LARGE),
    ]
    assert arrays[1].after == arrays[2].after == (0,)
    alike = arrange(listed(stages, {"finetune": SMALL, "self_distill": SMALL}), 10**9, 1001)
    assert [array.kinds for array in alike] == [("source_pretrain",), ("finetune", "self_distill")]


def test_stages_that_share_a_job_need_fewer_of_them() -> None:
    packed = dict.fromkeys(("source_pretrain", "finetune"), Cluster(runs_per_job=4))
    assert [array.jobs for array in arrange(listed(family(5, 2), packed), 10**9, 1001)] == [2, 3]


def test_no_array_is_larger_than_slurm_and_the_settings_allow() -> None:
    assert [array.jobs for array in arrange(listed(family(7, 1)), 10**9, 6)] == [6, 6]
    few = dict.fromkeys(("source_pretrain", "finetune"), Cluster(array_parallelism=2))
    assert [array.jobs for array in arrange(listed(family(7, 1), few), 10**9, 6)] == [2, 2]


@pytest.mark.parametrize(
    ("most_jobs", "jobs", "generations"),
    [(1, [1], [1]), (2, [1, 1], [0, 1]), (3, [2, 1], [0, 1]), (4, [2, 2], [0, 1]), (8, [3, 5], [0, 1])],
)
def test_where_few_jobs_are_allowed_all_arrays_give_some(
    most_jobs: int, jobs: list[int], generations: list[int]
) -> None:
    arrays = arrange(listed(family(3, 2)), most_jobs, 1001)
    assert [array.jobs for array in arrays] == jobs
    assert [array.generation for array in arrays] == generations


def test_every_class_of_resources_is_kept_before_a_second_array_of_one() -> None:
    """Two small generations, then a large one: with two arrays, the first of each."""
    first = pretraining(seed=0)
    second = child(first, 0)
    third = finetuning(name="self_distill_1", backbone=second.backbone, init=second, head="fresh", seed=5)
    clusters = {"source_pretrain": SMALL, "finetune": SMALL, "self_distill": LARGE}
    arrays = arrange(listed([first, second, third], clusters), 2, 1001)
    assert [(array.cluster, array.generation, array.after) for array in arrays] == [(SMALL, 0, ()), (LARGE, 2, (0,))]
    # A job with more memory can run the fine-tuning, too; one with less could not.
    assert all(servers(arrays, listed([first, second, third], clusters)))
    (alone,) = arrange(listed([first, second, third], clusters), 1, 1001)
    assert (alone.cluster, alone.generation, alone.jobs) == (SMALL, 1, 1)


def test_only_stages_without_jobs_of_their_own_have_arrays() -> None:
    whole = listed(family(3, 2))
    folders = [entry.folder for entry in whole.entries if entry.generation == 1][:4]
    (array,) = arrange(whole, 10**9, 1001, folders)
    assert (array.generation, array.jobs, array.stages, array.after) == (1, 4, 4, ())
    # What runs their parents was submitted before; what generation 2 waits for is no matter here.
    assert array.dependency([], {1: ["8", "11"], 2: ["20"]}) == "afterany:8:11"
    assert array.dependency([]) is None


def test_an_empty_worklist_has_no_arrays() -> None:
    assert arrange(listed([]), 5, 1001) == []
