"""Cancelling what a grid has in Slurm's queue."""

from __future__ import annotations

from pathlib import Path

from bench.launch.slurm import client, ledger
from bench.launch.slurm.client import SlurmError


def cancel_grid(store_root: Path, grid: str, source: str) -> tuple[list[str], dict[str, list[str]]]:
    """Cancel all waiting and running jobs of a grid, and no others.

    Returns their ids, and those of other grids of that name, by what of the command line says which they are.
    """
    with ledger.submitting(store_root):
        others = _live_jobs(store_root, grid)
        ids = others.pop(source, [])
        mine = [each for each in ledger.submissions(store_root, grid) if each.source == source]
        for submission in mine:
            if submission.job_id in ids or submission is mine[-1]:  # the last one tells, though its job may have ended
                ledger.note_cancelled(store_root, submission)
        for start in range(0, len(ids), 500):
            try:
                client.ask("scancel", *ids[start : start + 500])
            except SlurmError:
                if {*ids} & {*_live_jobs(store_root, grid).get(source, ())}:  # else they ended meanwhile
                    for submission in mine:  # as it was: what goes on is not cancelled
                        ledger.note_cancelled(store_root, submission, submission.cancelled)
                    raise
    return ids, others


def _live_jobs(store_root: Path, grid: str) -> dict[str, list[str]]:
    """List the ids of live jobs of this grid, by source.

    Grids of one name may have several sources: what of the command line says which they are. Live jobs are to run or
    running; here those count, too, that Slurm will never start.
    """
    submissions, queued = ledger.look(store_root)
    sources = {submission.name: submission.source for submission in submissions if submission.grid == grid}
    jobs: dict[str, set[str]] = {}
    for job, state in queued.items():
        if state.name in sources and state.state in client.LIVE:
            jobs.setdefault(sources[state.name], set()).add(job.partition("_")[0])
    return {source: sorted(ids, key=int) for source, ids in jobs.items()}
