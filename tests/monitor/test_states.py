"""How often the queue is asked."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import pytest

from bench.launch.slurm import ledger
from bench.launch.slurm.client import JobState
from bench.launch.slurm.ledger import Submission
from bench.monitor import states
from bench.monitor.states import ASK_SECONDS, PatientQueue


class Clock:
    """A queue that is asked, and a time that passes when it is told to."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.asked: list[list[str]] = []
        self.expected: list[Collection[str] | None] = []
        self.answer = {"7_0": JobState("PENDING", "Priority")}
        patch.setattr(states.time, "monotonic", lambda: self.now)
        patch.setattr(ledger, "queue", self._queue)

    def _queue(self, names: Iterable[str], expected: Collection[str] | None) -> dict[str, JobState]:
        self.asked.append(list(names))
        self.expected.append(expected)
        return dict(self.answer)


def named(*names: str, job: str | None = "7") -> list[Submission]:
    facts = {"grid": "g", "job_id": job, "time": 0.0, "source": "", "worklist": "w", "jobs": 2}
    return [Submission(name=name, token=name, **facts) for name in names]  # type: ignore[arg-type]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_the_queue_is_asked_once_for_many_looks(clock: Clock) -> None:
    queue = PatientQueue()
    for _ in range(10):
        assert queue(named("a"))["7_0"].state == "PENDING"
        clock.now += 0.3
    assert clock.asked == [["a"]]
    clock.now += 1.3 * ASK_SECONDS[0]
    queue(named("a"))
    assert len(clock.asked) == 2


def test_other_jobs_are_asked_for_at_once(clock: Clock) -> None:
    queue = PatientQueue()
    for names in ("a", "ab", "ab", "b"):
        queue(named(*names))
    assert clock.asked == [["a"], ["a", "b"], ["b"]]


def test_the_queue_is_asked_less_often_while_nothing_changes(clock: Clock) -> None:
    queue = PatientQueue()

    def asked_in(seconds: int) -> int:
        before = len(clock.asked)
        for second in range(seconds):
            clock.now += 1
            clock.answer = {"7_0": JobState("RUNNING", elapsed_s=float(second))}  # older, and otherwise the same
            queue(named("a"))
        return len(clock.asked) - before

    asked_in(300)
    assert 600 / (1.3 * ASK_SECONDS[1]) - 1 <= asked_in(600) <= 600 / (0.7 * ASK_SECONDS[1]) + 1
    clock.answer = {"7_0": JobState("COMPLETING")}
    clock.now += 2 * ASK_SECONDS[1]
    queue(named("a"))
    before = len(clock.asked)
    clock.now += 1.3 * ASK_SECONDS[0]
    queue(named("a"))
    assert len(clock.asked) == before + 1, "something happens: soon again"


def test_accounting_is_asked_once_for_what_has_ended(clock: Clock) -> None:
    """What the queue forgets is looked up, and then remembered; what lives is never looked up."""
    queue = PatientQueue()
    clock.answer = {"7_0": JobState("OUT_OF_MEMORY"), "7_1": JobState("RUNNING")}
    assert queue(named("a"))["7_0"].state == "OUT_OF_MEMORY"
    clock.answer = {"7_1": JobState("RUNNING")}
    clock.now += 2 * ASK_SECONDS[1]
    assert queue(named("a"))["7_0"].state == "OUT_OF_MEMORY", "though nobody tells of it any more"
    assert clock.expected == [["7_0", "7_1"], ["7_1"]]
    clock.answer = {"7_0": JobState("PENDING"), "7_1": JobState("RUNNING")}  # somebody requeued it
    clock.now += 2 * ASK_SECONDS[1]
    assert queue(named("a"))["7_0"].state == "PENDING"


def test_a_job_without_a_noted_id_is_looked_for_by_its_name(clock: Clock) -> None:
    PatientQueue()(named("a", job=None))
    assert clock.expected == [None]
