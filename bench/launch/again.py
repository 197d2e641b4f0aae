"""Compute cells anew: what `--again` names is set aside, so that the run that follows finds it missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.errors import InputError
from bench.planning.plan import Plan
from bench.specs import Stage
from bench.store.states import is_alive
from bench.store.store import Store


def set_aside(plan: Plan, store: Store, recorded: Sequence[Mapping[str, Any]]) -> int:
    """Set aside the folders of the stages that are to run again; return how many there were.

    `recorded` are the records of an earlier table: those of these stages no longer count. Refuses, before anything is
    moved, a stage that a live process works on.
    """
    for stage in plan.again:
        _refuse_running(stage, store)
    count = 0
    # Children first: wherever a kill comes, no stage is left that counts as done and whose parent is to be run again.
    for stage in reversed(plan.again):
        _refuse_running(stage, store)  # another grid may have begun it since
        numbers = [record["metrics"] for record in recorded if record["key"] == stage.key]
        count += store.set_aside(stage, numbers) is not None
    return count


def _refuse_running(stage: Stage, store: Store) -> None:
    attempts = store.attempts(stage)
    if attempts and is_alive(attempts[-1]):
        raise InputError(
            f"--again: {stage.folder} is running. Wait until it has ended, or end its process, and try again."
        )
