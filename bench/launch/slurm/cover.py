"""Which stages live jobs will take, so that nobody has to submit them again."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.errors import DamagedStore
from bench.launch.slurm import ledger, troubles, worklist
from bench.launch.slurm.client import JobState
from bench.launch.slurm.ledger import Submission


class Cover(NamedTuple):
    """That live jobs will pull a stage from a worklist; `attempts` are those that it had when that was made."""

    worklist: str
    attempts: int


def covered(store_root: Path, submissions: Sequence[Submission], queued: Mapping[str, JobState]) -> dict[str, Cover]:
    """Map the folders of stages to what says that live jobs will pull them.

    Live are jobs that run or are to run. A stage that failed since its worklist was made will not be pulled any more;
    that is left to the caller, who knows its attempts. A worklist that was stopped covers nothing.
    """
    covering: dict[str, Cover] = {}
    reach: dict[str, int] = {}  # worklist -> the last generation that its live jobs serve
    for submission in submissions:
        if not any(state.live for state in ledger.states(submission, queued)):
            continue
        for task in submission.tasks:  # of an earlier version
            covering.update(dict.fromkeys(task, Cover("", 0)))
        if submission.worklist and troubles.stopped(store_root, submission.worklist) is None:
            reach[submission.worklist] = max(submission.generation, reach.get(submission.worklist, 0))
    for token, generation in reach.items():
        with contextlib.suppress(DamagedStore):  # its jobs cannot read it either
            entries = worklist.read(store_root, token).entries
            served = (entry for entry in entries if entry.generation <= generation)
            covering.update({entry.folder: Cover(token, entry.attempts) for entry in served})
    return covering
