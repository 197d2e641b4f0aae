"""Which state the store tells of, and why a stage is blocked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.store.ownership import Attempt, this_process
from bench.store.states import StageState, state_in_store, why_blocked
from tests.examples import finetuning, pretraining

STAGE = pretraining()


def attempt(folder: Path, end: str | None, pid: int | None = None) -> Attempt:
    """An attempt of this process, or of another one, as the ledger has it."""
    path = folder / "000001.json"
    path.touch()
    owner = this_process() | ({} if pid is None else {"pid": pid})
    return Attempt(1, path, {"owner": owner}, None if end is None else {"state": end, "reason": ""})


@pytest.mark.parametrize(
    ("end", "state"),
    [
        (None, StageState.RUNNING),
        ("failed", StageState.FAILED),
        ("refused", StageState.REFUSED),
        ("interrupted", StageState.PLANNED),
        ("died", StageState.PLANNED),
        ("a word of another version", StageState.PLANNED),
    ],
)
def test_the_last_attempt_decides(end: str | None, state: StageState, tmp_path: Path) -> None:
    assert state_in_store(STAGE, attempt(tmp_path, end)) == state


def test_what_nobody_has_begun_is_planned_and_what_its_owner_left_is_stale(tmp_path: Path) -> None:
    assert state_in_store(STAGE, None) == StageState.PLANNED
    assert state_in_store(STAGE, attempt(tmp_path, None, pid=2**22 + 1)) == StageState.STALE


def test_states_are_words_on_disk_and_on_the_screen() -> None:
    assert json.dumps(StageState.NOT_PREPARED) == '"not prepared"'
    assert f"{StageState.DONE}" == "done" and StageState("stale") is StageState.STALE


def test_the_reason_of_a_failure_travels_down() -> None:
    child = finetuning()
    (parent,) = child.parents
    reason = f"its stage {parent.name} failed: it diverged"
    assert why_blocked(child, {}, {}) is None
    assert why_blocked(child, {child.key: "a failure of its own"}, {}) is None
    assert why_blocked(child, {parent.key: "it diverged"}, {}) == reason
    assert (
        why_blocked(finetuning(init=child, seed=9, head="fresh"), {parent.key: "it diverged"}, {child.key: reason})
        == reason
    )
