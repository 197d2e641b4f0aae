"""A submission in words."""

from __future__ import annotations

from bench.launch.slurm.submit import Submitted
from bench.planning.describe import counted


def describe_submission(submitted: Submitted) -> str:
    """Describe the arrays in words, with what each waits for.

    Arrays that are submitted come with their ids.
    """
    lines = []
    for number, array in enumerate(submitted.arrays):
        id_ = f"job {submitted.job_ids[number]}: " if number < len(submitted.job_ids) else ""
        size = f"{counted(array.jobs, 'job')} for {counted(array.stages, 'stage')}"
        before = " and ".join(map(str, array.after))
        waits = f"; after array{'' if len(array.after) == 1 else 's'} {before}" if array.after else ""
        lines.append(f"  array {number}: {id_}{size} ({', '.join(array.kinds)}){waits}")
    if submitted.fewer:
        lines.append(f"  fewer jobs than stages that could run at once: {submitted.fewer}; each job takes more of them")
    return "\n".join(lines)
