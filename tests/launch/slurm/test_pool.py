"""Which stage of a worklist a job takes next, and when it has nothing left to do. No process is started here."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from bench.launch.slurm import ledger, pool, worklist
from bench.launch.slurm.leases import Leases
from bench.launch.slurm.pool import Pool
from bench.specs import Schedule, Selected, Stage, walk
from bench.specs.cluster import Cluster, stage_kind
from bench.store.files import create_json, sha256
from bench.store.store import Store
from tests.examples import finetuning, pretraining, tiny_backbone

CLUSTER = Cluster()


class Grid:
    """A store with the stages of a worklist, and other jobs' deeds."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder / "runs")

    def pool(self, *stages: Stage, generation: int = 9, kinds: dict[str, Cluster] | None = None) -> Pool:
        for stage in stages:
            self.store.add(stage)
        clusters = {stage_kind(stage.name): CLUSTER for stage in stages} | (kinds or {})
        attempts = {stage.key: len(self.store.attempts(stage)) for stage in stages}
        listed = worklist.worklist(ledger.new_token(), stages, attempts, clusters)
        worklist.write(self.store.root, listed)
        return Pool(self.store, worklist.read(self.store.root, listed.token), CLUSTER, generation)

    def end(self, stage: Stage, state: str = "done", reason: str = "") -> None:
        attempt = self.store.claim(stage)
        assert attempt is not None
        if state == "done":
            weights = self.store.folder(stage) / "weights.safetensors"
            weights.write_bytes(b"weights")
            facts = {"file": weights.name, "sha256": sha256(weights), "bytes": 7}
            self.store.publish(attempt, stage, {"key": stage.key, "metrics": {}, "seconds": 1.0, "weights": facts})
        self.store.finish(attempt, state, reason)  # type: ignore[arg-type]

    def trouble(self, token: str, stage: Stage, nodes: Iterable[str]) -> None:
        for node in nodes:
            facts = {"time": 1.0, "node": node, "job": "7_0", "worklist": token, "stage": stage.folder, "reason": "no"}
            assert create_json(self.store.root / ".slurm" / "troubles" / f"{node}.json", facts)


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    return Grid(tmp_path)


def length(steps: int, seed: int = 0) -> Stage:
    return pretraining(schedule=Schedule(steps=steps), seed=seed)


def child(parent: Stage, seed: int = 0, **changes: Any) -> Stage:
    return finetuning(backbone=tiny_backbone(weights=parent), seed=seed, **changes)


def all_taken(job: Pool) -> list[Stage]:
    """All stages that a job may take now, in their order."""
    return list(iter(job.take, None))


def test_the_longest_chain_of_steps_comes_first(grid: Grid) -> None:
    short, long, parent = length(10), length(20), length(10, seed=1)
    children = [child(parent, schedule=Schedule(steps=15), seed=seed) for seed in range(2)]
    job = grid.pool(short, long, parent, *children)
    assert all_taken(job) == [parent, long, short]  # 25, 20 and 10 steps ahead


def test_equal_chains_are_taken_in_the_order_of_the_list(grid: Grid) -> None:
    stages = [length(10, seed=seed) for seed in (3, 1, 2)]
    assert all_taken(grid.pool(*stages)) == stages


def test_what_was_interrupted_comes_before_longer_chains(grid: Grid) -> None:
    long, short = length(20), length(10)
    other, job = grid.pool(long, short), grid.pool(long, short)
    assert [other.take(), other.take()] == [long, short]
    assert job.take() is None
    other.leave(short)
    other.give_back(long)
    assert all_taken(job) == [short, long]


def test_what_another_job_holds_is_not_taken(grid: Grid) -> None:
    first, second = length(20), length(10)
    job = grid.pool(first, second)
    other = Leases(grid.store.root)
    assert other.take(first.folder)
    assert all_taken(job) == [second]
    other.release(first.folder)
    assert all_taken(job) == [first]


def test_what_a_launcher_without_leases_runs_is_not_taken(grid: Grid) -> None:
    stage = length(10)
    job = grid.pool(stage)
    attempt = grid.store.claim(stage)
    assert attempt is not None
    assert job.take() is None
    assert Leases(grid.store.root).look() == {}
    grid.store.finish(attempt, "interrupted")  # type: ignore[arg-type]
    assert job.take() == stage


def test_what_ends_between_the_look_and_the_lease_is_not_taken(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = length(20), length(10)
    job = grid.pool(first, second)
    take = job.leases.take

    def late(name: str) -> bool:
        if name == first.folder:
            grid.end(first)
        return take(name)

    monkeypatch.setattr(job.leases, "take", late)
    assert job.take() == second
    assert Leases(grid.store.root).look().keys() == {second.folder}


def test_a_child_is_ready_when_all_its_parents_are_done(grid: Grid) -> None:
    parent = length(10)
    job = grid.pool(parent, child(parent))
    assert all_taken(job) == [parent]
    grid.end(parent)
    assert job.take() is None  # the lease is still held: the record is not looked for
    job.give_back(parent)
    assert all_taken(job) == [child(parent)]


def test_a_job_serves_later_generations_only_while_its_own_is_unfinished(grid: Grid) -> None:
    parents = [length(10, seed=seed) for seed in range(2)]
    children = [child(parent, seed) for seed in (7, 8) for parent in parents]
    grid.store.root.mkdir()
    job, other = grid.pool(*parents, *children, generation=0), Leases(grid.store.root)
    assert other.take(parents[1].folder)
    assert job.take() == parents[0]
    grid.end(parents[0])
    job.give_back(parents[0])
    early = job.take()
    assert early in (children[0], children[2]) and not job.over
    grid.end(parents[1])
    other.release(parents[1].folder)
    assert job.take() is None and job.over


def test_own_stages_come_before_those_of_later_generations(grid: Grid) -> None:
    parent, own = length(10), length(10, seed=1)
    late = child(parent, schedule=Schedule(steps=99))
    job = grid.pool(parent, own, late, generation=0)
    grid.end(parent)
    assert all_taken(job) == [own, late]


def test_a_stage_that_failed_since_is_left_and_so_is_what_needs_it(grid: Grid) -> None:
    failed, parent = length(10), length(10, seed=1)
    grid.store.add(failed)
    grid.end(failed, "failed", "before the submission")
    job = grid.pool(failed, parent, child(parent), child(failed))
    assert set(all_taken(job)) == {failed, parent}
    grid.end(failed, "failed", "OutOfMemory")
    job.give_back(failed)
    assert job.take() is None and not job.over
    assert job.failures == ["OutOfMemory"]
    grid.end(parent)
    job.give_back(parent)
    assert all_taken(job) == [child(parent)]
    grid.end(child(parent))
    job.look_at(child(parent))
    assert job.over
    assert worklist.count_finished(grid.store.root, "unwritten") == 0
    worklist.write(grid.store.root, job.listed)
    assert worklist.count_finished(grid.store.root, job.listed.token) == 2


@pytest.mark.parametrize("state", ["refused", "interrupted", "died"])
def test_other_ends_leave_a_stage_to_be_taken_again(state: str, grid: Grid) -> None:
    stage = length(10)
    job = grid.pool(stage)
    grid.end(stage, state, "no space left")
    assert job.take() == stage


def test_a_stage_is_given_up_for_its_troubles(grid: Grid) -> None:
    stage, other = length(20), length(10)
    job = grid.pool(stage, other)
    grid.trouble(job.listed.token, stage, "ab")
    assert job.take() == stage
    job.give_back(stage)
    grid.trouble(job.listed.token, stage, "c")
    assert all_taken(job) == [other]
    assert "a, b, c" in job.failed[stage.folder]


def test_what_needs_more_than_this_job_has_is_left_to_others_but_waited_for(grid: Grid) -> None:
    parent = length(10)
    job = grid.pool(parent, child(parent), kinds={"source_pretrain": Cluster(cpus=4)})
    assert job.take() is None and not job.over
    grid.end(parent)
    assert job.take() == child(parent)


def test_many_stages_of_others_are_looked_at_in_turn(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "LOOKS", 2)
    stages = [length(10, seed=seed) for seed in range(5)]
    job = grid.pool(*stages, kinds={"source_pretrain": Cluster(cpus=4)})
    for stage in stages:
        grid.end(stage)
    assert job.take() is None and not job.over
    for _ in range(2):
        assert job.take() is None
    assert job.over


def test_a_damaged_stage_is_passed_over_and_looked_at_again(grid: Grid) -> None:
    damaged, other = length(20), length(10)
    job = grid.pool(damaged, other, child(damaged))
    grid.end(damaged)
    weights = grid.store.folder(damaged) / "weights.safetensors"
    weights.unlink()  # a network file system may show the record first
    assert all_taken(job) == [other]
    assert "missing or truncated" in job.damaged[damaged.folder]
    weights.write_bytes(b"weights")
    assert all_taken(job) == [child(damaged)]
    assert job.damaged == {}


def test_a_stage_whose_folder_is_missing_keeps_no_other_from_running(grid: Grid) -> None:
    missing, other = length(20), length(10)
    job = grid.pool(missing, other)
    (grid.store.folder(missing) / "spec.json").unlink()
    grid.store.folder(missing).rmdir()
    assert all_taken(job) == [other]
    assert missing.folder in job.damaged[missing.folder]
    assert Leases(grid.store.root).look().keys() == {other.folder}


def test_a_search_is_ready_without_what_diverged_and_lost_with_any_other_failure(tmp_path: Path) -> None:
    candidates = tuple(child(length(10, seed=1), seed) for seed in (11, 12))
    search = Selected.among(candidates, (child(length(10, seed=2), 13),), "accuracy")
    *others, last = walk(search)
    assert last == search
    for number, (reasons, ready) in enumerate(
        [
            ({candidates[0].key: "Diverged: nan"}, True),
            ({candidates[0].key: "OSError: no"}, False),
            ({each.key: "Diverged: nan" for each in candidates}, False),
        ]
    ):
        grid = Grid(tmp_path / str(number))
        job = grid.pool(*others, search)
        for stage in others:
            grid.end(stage, "failed" if stage.key in reasons else "done", reasons.get(stage.key, ""))
        assert job.take() == (search if ready else None)
        assert job.over == (not ready)
        assert job.failures == [reason for reason in reasons.values() if "Diverged" not in reason]
