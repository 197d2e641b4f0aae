"""Which stage may run next."""

from collections.abc import Mapping

from bench.launch.queue import Queue
from bench.specs import Schedule, Selected, Stage, walk
from bench.store.states import diverged
from bench.training.protocol import Outcome
from tests.examples import finetuning, pretraining, tiny_backbone


def test_parents_run_first_and_a_failure_blocks_its_dependants_only() -> None:
    good, bad = pretraining(seed=1), pretraining(seed=2)
    children = [finetuning(backbone=tiny_backbone(weights=parent)) for parent in (bad, good)]
    queue = Queue(list(walk(*children)), (), {})
    assert {queue.next(), queue.next()} == {good, bad}
    assert queue.next() is None
    assert not queue.over
    queue.finish(bad, Outcome("failed", "it diverged"))
    queue.finish(good, Outcome("done"))
    assert queue.next() == children[1]
    queue.finish(children[1], Outcome("done"))
    assert queue.over or queue.next() is None
    assert queue.over
    assert f"its stage {bad.name} failed" in queue.blocked[children[0].key]
    assert "it diverged" in queue.blocked[children[0].key]


def test_the_reason_travels_down_the_chain() -> None:
    root = pretraining()
    middle = finetuning()
    last = finetuning(init=middle, seed=9, head="fresh")
    queue = Queue(list(walk(last)), (), {root.key: "out of memory"})
    queue.waiting.remove(root)
    assert queue.next() is None
    assert "out of memory" in queue.blocked[last.key]
    assert f"its stage {root.name} failed" in queue.blocked[last.key]


def test_busy_and_interrupted_stages_wait_again() -> None:
    queue = Queue([pretraining()], (), {})
    for state in ("busy", "interrupted"):
        assert queue.next() == pretraining()
        queue.finish(pretraining(), Outcome(state))
        assert not queue.over


def searching() -> tuple[Selected, list[Stage], list[Stage]]:
    """A search between two candidates, each of which starts from a stage of its own; so do the finals."""
    fitted = [pretraining(seed=seed) for seed in (1, 2)]
    candidates = [finetuning(init=start, seed=seed) for seed, start in enumerate(fitted, start=11)]
    finals = tuple(finetuning(init=pretraining(seed=seed), seed=20 + seed) for seed in (3, 4))
    return Selected.among(tuple(candidates), finals, "accuracy"), fitted, candidates


def play(stages: list[Stage], ends: Mapping[str, Outcome]) -> Queue:
    """Run all stages one after another: well, unless `ends` has another end for a key."""
    queue = Queue(stages, (), {})
    while (stage := queue.next()) is not None:
        queue.finish(stage, ends.get(stage.key, Outcome("done")))
    assert queue.over
    return queue


DIVERGED, FAILED = Outcome("failed", "Diverged: the loss is nan"), Outcome("failed", "OSError: no")


def test_a_search_does_without_candidates_that_diverged_or_that_start_from_what_did() -> None:
    search, fitted, candidates = searching()
    stages = list(walk(search))
    for lost in (fitted[0], candidates[0], search.finals[0].parents[-1]):
        assert search.key in play(stages, {lost.key: DIVERGED}).done
    for lost in (fitted[0], candidates[0], search.finals[0].parents[-1]):
        assert "OSError: no" in play(stages, {lost.key: FAILED}).blocked[search.key]
    reason = play(stages, {candidates[0].key: DIVERGED, candidates[1].key: FAILED}).blocked[search.key]
    assert "OSError: no" in reason and not diverged(reason)


def test_a_search_is_blocked_when_all_its_candidates_diverged() -> None:
    search, fitted, candidates = searching()
    queue = play(list(walk(search)), {candidates[0].key: DIVERGED, fitted[1].key: DIVERGED})
    assert diverged(queue.blocked[search.key])


def test_what_is_behind_a_failure_and_something_that_diverged_did_not_diverge() -> None:
    first, second = pretraining(seed=1), pretraining(seed=2)
    child = finetuning(backbone=tiny_backbone(weights=first), init=second)
    queue = play(list(walk(child)), {first.key: DIVERGED, second.key: FAILED})
    assert not diverged(queue.blocked[child.key])
    queue = play(list(walk(child)), {first.key: DIVERGED})
    assert diverged(queue.blocked[child.key])


def test_the_longest_chain_goes_first() -> None:
    short = pretraining(seed=1, schedule=Schedule(steps=30))
    long = pretraining(seed=2, schedule=Schedule(steps=20))
    child = finetuning(backbone=tiny_backbone(weights=long), schedule=Schedule(steps=20))
    assert Queue(list(walk(short, child)), (), {}).next() == long
