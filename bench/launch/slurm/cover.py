"""Which stages live jobs will take, so that nobody has to submit them again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.errors import DamagedStore
from bench.launch.slurm import ledger, troubles, worklist
from bench.launch.slurm.client import JobState
from bench.launch.slurm.ledger import Submission


class Cover(NamedTuple):
    """The worklist from which live jobs will pull a stage.

    `attempts` is how many the stage had when that worklist was made.
    """

    worklist: str
    attempts: int


def covered(store_root: Path, submissions: Sequence[Submission], queued: Mapping[str, JobState]) -> dict[str, Cover]:
    """Find the stages that live jobs will pull, by folder.

    Live are jobs that run or are to run. A stage that failed since its worklist was made will not be pulled any more;
    that is left to the caller, who knows its attempts. A worklist that was stopped covers nothing.
    """
    covering: dict[str, Cover] = {}
    for submission in submissions:
        if not any(state.live for state in ledger.states(submission, queued)):
            continue
        for task in submission.tasks:  # of an earlier version
            covering.update(dict.fromkeys(task, Cover("", 0)))
        if submission.worklist and troubles.stopped(store_root, submission.worklist) is None:
            attempts = served(store_root, submission)
            covering.update({folder: Cover(submission.worklist, count) for folder, count in attempts.items()})
    return covering


def served(store_root: Path, submission: Submission) -> dict[str, int]:
    """Count the earlier attempts at each stage that an array's jobs can run.

    The counts go by the stage's folder, as of when the worklist was made. An array's jobs can run the stages up to its
    generation for which its resources are enough. Example: an array without GPUs for the
    generations up to 1 serves no stage of generation 1 that asks for one. Nothing can be pulled from a worklist that
    cannot be read, and arrays of earlier versions, which did not note their `kinds`, count for all resources.
    """
    try:
        listed = worklist.read(store_root, submission.worklist)
    except DamagedStore:
        return {}
    offered = [listed.clusters[kind] for kind in submission.kinds[:1] if kind in listed.clusters]
    kinds = {kind for kind, needed in listed.clusters.items() if all(cluster.serves(needed) for cluster in offered)}
    entries = (entry for entry in listed.entries if entry.generation <= submission.generation and entry.kind in kinds)
    return {entry.folder: entry.attempts for entry in entries}


def first_arrays(store_root: Path, submissions: Sequence[Submission], queued: Mapping[str, JobState]) -> dict[str, str]:
    """Map each stage, by folder, to the live array that comes for it first.

    Of several arrays that can run a stage it is the one of the lowest generation, and the oldest of those.
    """
    first: dict[str, str] = {}
    for submission in sorted(submissions, key=lambda each: each.generation):
        if submission.worklist and any(state.live for state in ledger.states(submission, queued)):
            for folder in served(store_root, submission):
                first.setdefault(folder, str(submission.job_id))
    return first
