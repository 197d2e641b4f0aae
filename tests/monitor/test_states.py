"""How often the queue is asked."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from bench.launch.slurm import client
from bench.launch.slurm.client import JobState
from bench.monitor import states
from bench.monitor.states import ASK_SECONDS, PatientQueue


class Clock:
    """A queue that is asked, and a time that passes when it is told to."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.asked: list[list[str]] = []
        self.answer = {"7_0": JobState("PENDING", "Priority")}
        patch.setattr(states.time, "monotonic", lambda: self.now)
        patch.setattr(client, "queue", self._queue)

    def _queue(self, names: Iterable[str]) -> dict[str, JobState]:
        self.asked.append(list(names))
        return dict(self.answer)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_the_queue_is_asked_once_for_many_looks(clock: Clock) -> None:
    queue = PatientQueue()
    for _ in range(10):
        assert queue(["a"])["7_0"].state == "PENDING"
        clock.now += 0.3
    assert clock.asked == [["a"]]
    clock.now += 1.3 * ASK_SECONDS[0]
    queue(["a"])
    assert len(clock.asked) == 2


def test_other_jobs_are_asked_for_at_once(clock: Clock) -> None:
    queue = PatientQueue()
    for names in (["a"], ["a", "b"], ["a", "b"], ["b"]):
        queue(names)
    assert clock.asked == [["a"], ["a", "b"], ["b"]]


def test_the_queue_is_asked_less_often_while_nothing_changes(clock: Clock) -> None:
    queue = PatientQueue()

    def asked_in(seconds: int) -> int:
        before = len(clock.asked)
        for second in range(seconds):
            clock.now += 1
            clock.answer = {"7_0": JobState("RUNNING", elapsed_s=float(second))}  # older, and otherwise the same
            queue(["a"])
        return len(clock.asked) - before

    asked_in(300)
    assert 600 / (1.3 * ASK_SECONDS[1]) - 1 <= asked_in(600) <= 600 / (0.7 * ASK_SECONDS[1]) + 1
    clock.answer = {"7_0": JobState("COMPLETING")}
    clock.now += 2 * ASK_SECONDS[1]
    queue(["a"])
    before = len(clock.asked)
    clock.now += 1.3 * ASK_SECONDS[0]
    queue(["a"])
    assert len(clock.asked) == before + 1, "something happens: soon again"
