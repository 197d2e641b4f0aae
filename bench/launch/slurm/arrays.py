"""A worklist -> job arrays: how many jobs, of which kind, and when they start. No cluster is asked here.

There is one array for every generation of stages and kind of resources, `afterany` on those of the generation before:
its jobs start when theirs have ended, however that was. Jobs are bound to no stage (`bench.launch.slurm.pool`), so an
array needs as many of them as its generation is wide, and works with fewer.

Example: 2 methods x 3 seeds, where both methods fine-tune (A, B) what a further pre-training (P) of their seed left.
The cluster lets 5 jobs be queued, one of which is to write the tables:

    array 0   2 jobs for P0 P1 P2
    array 1   2 jobs for A0 B0 A1 B1 A2 B2    afterany:0

Were only two jobs allowed, there would be one array with one job, which runs all nine stages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench.launch.slurm.worklist import Worklist
from bench.specs.cluster import Cluster


@dataclass(frozen=True)
class Array:
    """One sbatch call: `jobs` jobs that serve the generations up to `generation`.

    They ask for what `kinds` of stages need, of which `stages` are counted here; they start when the arrays with the
    numbers `after` have ended.
    """

    generation: int
    kinds: tuple[str, ...]
    cluster: Cluster
    stages: int
    jobs: int
    after: tuple[int, ...] = ()

    def dependency(self, ids: Sequence[str]) -> str | None:
        """Return the value of sbatch's --dependency; None without any. `ids` are those of the arrays before it."""
        return ":".join(["afterany", *(ids[number] for number in self.after)]) if self.after else None


def arrange(listed: Worklist, most_jobs: int, largest_array: int) -> list[Array]:
    """Return the arrays that run a worklist, with `most_jobs` jobs at most in all.

    An array has at most `largest_array` jobs. Where not even one job for every array is allowed, the last arrays are
    left out, and the last that is left serves all generations that it can.
    """
    arrays: list[Array] = []
    before: tuple[int, ...] = ()
    for generation, width in enumerate(listed.widths()):
        by_cluster: dict[Cluster, list[str]] = {}
        for kind in width:
            by_cluster.setdefault(listed.clusters[kind], []).append(kind)
        first = len(arrays)
        for cluster, kinds in by_cluster.items():
            stages = sum(width[kind] for kind in kinds)
            jobs = min(math.ceil(stages / cluster.runs_per_job), cluster.array_parallelism, largest_array)
            arrays.append(Array(generation, tuple(sorted(kinds)), cluster, stages, jobs, before))
        before = tuple(range(first, len(arrays)))
    return _fitted(arrays, most_jobs, listed.last_generation)


def _fitted(arrays: list[Array], most_jobs: int, last_generation: int) -> list[Array]:
    """Take jobs from the arrays with most of them until so few are left in all; see `arrange`.

    Example: of arrays with 1, 4 and 9 jobs, 8 in all leave 1, 3 and 4.
    """
    arrays = arrays[: max(1, most_jobs)]
    if not arrays:
        return []
    most = max(array.jobs for array in arrays)
    while most > 1 and sum(min(array.jobs, most) for array in arrays) > most_jobs:
        most -= 1
    spare = most_jobs - sum(min(array.jobs, most) for array in arrays)
    fitted = []
    for array in arrays:
        more = array.jobs > most and spare > 0
        spare -= more
        fitted.append(replace(array, jobs=min(array.jobs, most + more)))
    # Without the arrays that were left out, nobody else would come for the stages of theirs.
    return [*fitted[:-1], replace(fitted[-1], generation=last_generation)]
