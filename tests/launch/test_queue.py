"""Which stage may run next."""

from bench.launch.queue import Queue
from bench.specs import Schedule, walk
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
    assert bad.folder in queue.blocked[children[0].key]
    assert "it diverged" in queue.blocked[children[0].key]


def test_the_reason_travels_down_the_chain() -> None:
    root = pretraining()
    middle = finetuning()
    last = finetuning(init=middle, seed=9)
    queue = Queue(list(walk(last)), (), {root.key: "out of memory"})
    queue.waiting.remove(root)
    assert queue.next() is None
    assert "out of memory" in queue.blocked[last.key]
    assert root.folder in queue.blocked[last.key]


def test_busy_and_interrupted_stages_wait_again() -> None:
    queue = Queue([pretraining()], (), {})
    for state in ("busy", "interrupted"):
        assert queue.next() == pretraining()
        queue.finish(pretraining(), Outcome(state))
        assert not queue.over


def test_the_longest_chain_goes_first() -> None:
    short = pretraining(seed=1, schedule=Schedule(steps=30))
    long = pretraining(seed=2, schedule=Schedule(steps=20))
    child = finetuning(backbone=tiny_backbone(weights=long), schedule=Schedule(steps=20))
    assert Queue(list(walk(short, child)), (), {}).next() == long
