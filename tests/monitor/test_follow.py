"""Following a grid's jobs to their end, and what is submitted when none is left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bench import grid
from bench.errors import InputError
from bench.launch.reporter import Reporter
from bench.launch.slurm import submit
from bench.launch.slurm.submit import Submitted
from bench.monitor import follow as following
from bench.monitor import states
from bench.monitor.follow import Ended, follow
from bench.monitor.states import Look, Seen
from bench.planning.plan import Plan
from bench.specs import Stage, walk
from bench.store.states import StageState
from bench.store.store import Store
from tests.examples import finetuning, pretraining

PARENT, CHILD = walk(finetuning())
OTHER = pretraining(seed=9)
PLAN = cast(Plan, SimpleNamespace(stages=[PARENT, CHILD, OTHER], source="--gin a.gin"))


class Events:
    """What is reported, instead of a terminal."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.console = SimpleNamespace(print=lambda text, **_: self.events.append(("said", text)))

    def started(self, stage: Stage, _: int) -> None:
        self.events.append(("started", stage.name))

    def progress(self, *_: object) -> None:
        pass

    def ended(self, stage: Stage, _: int, outcome: Any) -> None:
        self.events.append((str(outcome.state), stage.name))


Follow = Callable[..., tuple[Ended, list[tuple[str, str]]]]


@pytest.fixture
def followed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Follow:
    """Follow stages through these looks: the states of parent, child and maybe another stage, or a warning."""

    def run(*looks: tuple[str, ...] | str, **options: bool) -> tuple[Ended, list[tuple[str, str]]]:
        remaining = list(looks)
        stages = PLAN.stages[: len(looks[-1])]

        def look(*_: object) -> Look:
            now = remaining.pop(0)
            if isinstance(now, str):
                return Look(warning=now)
            seen = zip(stages, now, strict=True)
            return Look({stage.key: Seen(StageState(word), f"why {word}") for stage, word in seen})

        monkeypatch.setattr(states, "look", look)
        monkeypatch.setattr(following, "_sleep", lambda stop: None)
        events = Events()
        keys = {stage.key for stage in stages}
        ended = follow(PLAN, keys, Store(tmp_path), lambda: not remaining, cast(Reporter, events), **options)
        return ended, events.events

    return run


def test_starts_and_ends_are_reported_once_each(followed: Follow) -> None:
    looks = [("running", "queued")] * 3 + [("done", "running")] * 2 + [("done", "done"), ("done", "done")]
    ended, events = followed(*looks)
    assert events == [
        ("started", "source_pretrain"),
        ("done", "source_pretrain"),
        ("started", "finetune"),
        ("done", "finetune"),
    ]
    assert (ended.failed, ended.blocked, ended.left) == ({}, {}, {})


def test_failures_and_what_they_block_end_it(followed: Follow) -> None:
    ended, events = followed(("running", "queued"), ("failed", "blocked"), ("done", "done"))
    assert (ended.failed, ended.blocked) == ({PARENT.key: "why failed"}, {CHILD.key: "why blocked"})
    assert ("done", "finetune") not in events


@pytest.mark.parametrize("word", ["planned", "stale"])
def test_it_ends_when_no_job_is_left(word: str, followed: Follow) -> None:
    ended, events = followed(("running", "queued"), ("done", word), ("done", "done"), ("done", "done"))
    assert ended.left == {CHILD.key: f"why {word}"}
    assert ("done", "finetune") not in events


def test_while_one_is_under_way_its_job_may_take_the_others(followed: Follow) -> None:
    ended, _ = followed(("running", "planned"), ("running", "planned"), ("done", "done"), ("done", "done"))
    assert ended.left == {}


@pytest.mark.parametrize(
    ("looks", "at_once", "left"),
    [
        ([("done", "planned", "running")], True, {CHILD.key}),
        ([("done", "planned", "running")], False, set()),
        ([("running", "planned", "running")], True, set()),  # its parent runs: it could not begin
        ([("planned", "planned", "running")], True, set()),  # nothing was finished meanwhile
        ([("planned", "planned", "running"), ("planned", "planned", "done")], True, {PARENT.key, CHILD.key}),
    ],
)
def test_what_could_begin_and_has_no_job_does_not_wait_for_what_runs(
    looks: list[tuple[str, ...]], at_once: bool, left: set[str], followed: Follow
) -> None:
    ended, _ = followed(*looks, ("done", "done", "done"), ("done", "done", "done"), at_once=at_once)
    assert ended.left.keys() == left


def test_a_controller_that_is_away_is_waited_for(followed: Follow) -> None:
    ended, events = followed(("queued", "queued"), *["no answer"] * 5, ("done", "done"), ("done", "done"))
    assert events.count(("said", "warning: no answer")) == 1
    assert [name for word, name in events if word == "done"] == ["source_pretrain", "finetune"]
    assert ended.left == {}


def test_what_nobody_knows_of_is_waited_for_a_while(followed: Follow, monkeypatch: pytest.MonkeyPatch) -> None:
    ended, _ = followed(("unknown", "queued"), ("unknown", "queued"), ("done", "done"), ("done", "done"))
    assert ended.left == {}
    monkeypatch.setattr(following, "LOST_SECONDS", 0.0)
    ended, _ = followed(("unknown", "unknown"), ("done", "done"), ("done", "done"))
    assert ended.left.keys() == {PARENT.key, CHILD.key}


# ------------------------------------------------------------------------------------------------ submitting again


@pytest.mark.parametrize("case", ["progress", "none", "refused", "away"])
def test_what_is_left_is_submitted_again_after_progress(
    case: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = iter(range(100)) if case != "none" else iter([7] * 100)
    left = Ended(left={CHILD.key: "cancelled"})
    follows = iter([left, left, Ended()] if case == "away" else [left, Ended()])
    submitted: list[object] = []

    def again(*arguments: object) -> Submitted:
        submitted.append(arguments)
        if case == "refused":
            raise InputError("this grid was stopped")
        if case == "away" and len(submitted) == 1:
            raise InputError("sbatch: error: Unable to contact slurm controller (connect failure)")
        return Submitted(stages=[CHILD], wanted={CHILD.key})

    monkeypatch.setattr(submit, "progress", lambda *_: next(steps))
    monkeypatch.setattr(submit, "submit", again)
    monkeypatch.setattr(following, "follow", lambda *_: next(follows))
    monkeypatch.setattr(grid, "look_up", lambda *_: None)
    monkeypatch.setattr(grid, "_rows", lambda *_: {})
    monkeypatch.setattr(grid, "_report_failures", lambda *_: None)
    monkeypatch.setattr(grid, "write_tables", lambda *_: 5)
    options = cast(Any, SimpleNamespace(gin=["a.gin"], set=[], results=tmp_path, data=tmp_path))
    first = Submitted(stages=[PARENT, CHILD], wanted={PARENT.key, CHILD.key})
    status = grid._follow(PLAN, options, Store(tmp_path), first)
    printed = capsys.readouterr()
    assert status == 5, "the table is written, whatever is left"
    assert len(submitted) == {"none": 0, "away": 2}.get(case, 1)
    assert (f"left: 1 stage, such as {CHILD.title}: cancelled" in printed.out) == (case in ("none", "refused"))
    assert ("this grid was stopped" in printed.err) == (case == "refused")


def test_what_was_refused_at_first_is_followed_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And as there is no room now, it is submitted when all others have ended."""
    asked: list[tuple[object, ...]] = []

    def note(*arguments: object) -> Ended:
        asked.append(arguments)
        return Ended()

    monkeypatch.setattr(submit, "progress", lambda *_: 0)
    monkeypatch.setattr(following, "follow", note)
    monkeypatch.setattr(grid, "_rows", lambda *_: {})
    monkeypatch.setattr(grid, "_report_failures", lambda *_: None)
    monkeypatch.setattr(grid, "write_tables", lambda *_: 5)
    options = cast(Any, SimpleNamespace(gin=["a.gin"], set=[], results=tmp_path, data=tmp_path))
    keys = {PARENT.key, CHILD.key}
    for refused in ("AssocMaxSubmitJobLimit", ""):
        grid._follow(PLAN, options, Store(tmp_path), Submitted(stages=[PARENT], wanted=keys, refused=refused))
    assert [(each[1], each[-1]) for each in asked] == [(keys, False), (keys, True)]
