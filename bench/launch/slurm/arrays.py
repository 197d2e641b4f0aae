"""A worklist -> job arrays: how many jobs, of which kind, and when they start. No cluster is asked here.

There is one array for every generation of stages and kind of resources, `afterany` on those of the generation before:
its jobs start when the jobs of those have ended, well or not. Jobs are bound to no stage (`bench.launch.slurm.pool`),
so an array needs as many of them as its generation is wide, and works with fewer.

Example: 2 methods x 3 seeds, where both methods fine-tune (A, B) what a further pre-training (P) of their seed left.
The cluster lets 5 jobs be queued, one of which is to write the tables:

    array 0   2 jobs for P0 P1 P2
    array 1   2 jobs for A0 B0 A1 B1 A2 B2    afterany:0

Were only two jobs allowed, there would be one array with one job, which runs all nine stages.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

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

    def dependency(self, ids: Sequence[str], earlier: Mapping[int, Sequence[str]] = MappingProxyType({})) -> str | None:
        """Return the value of sbatch's --dependency; None without any.

        `ids` are those of the arrays before it. `earlier` holds, by generation, the ids of arrays of former submissions
        that run what stages of that generation need.
        """
        others = {id_ for generation, jobs in earlier.items() if generation <= self.generation for id_ in jobs}
        jobs = [*sorted(others, key=int), *(ids[number] for number in self.after)]
        return ":".join(["afterany", *jobs]) if jobs else None

    def will_run(self, generation: int, needed: Cluster) -> bool:
        """Tell whether its jobs come for stages of a generation that need such resources."""
        return generation <= self.generation and self.cluster.serves(needed)


def arrange(
    listed: Worklist, most_jobs: int, largest_array: int, folders: Collection[str] | None = None
) -> list[Array]:
    """Return the arrays that run a worklist, with `most_jobs` jobs at most in all.

    An array has at most `largest_array` jobs. Where not even one job for every array is allowed, some are left out, and
    others serve their generations, too. With `folders` there are jobs for those stages alone, as others have theirs.
    """
    arrays: list[Array] = []
    for generation, width in enumerate(listed.widths(folders)):
        by_cluster: dict[Cluster, list[str]] = defaultdict(list)
        for kind in width:
            by_cluster[listed.clusters[kind]].append(kind)
        for cluster, kinds in by_cluster.items():
            stages = sum(width[kind] for kind in kinds)
            jobs = min(math.ceil(stages / cluster.runs_per_job), cluster.array_parallelism, largest_array)
            arrays.append(Array(generation, tuple(sorted(kinds)), cluster, stages, jobs))
    most_jobs = max(1, most_jobs)
    return _fewer_jobs(_fewer_arrays(arrays, most_jobs), most_jobs)


def _fewer_arrays(arrays: Sequence[Array], most: int) -> list[Array]:
    """Leave out arrays until `most` are left, and set what each waits for.

    The first array of each class of resources is kept before any second one, so that all classes are there where that
    is possible. For a generation that was left out, the last array comes that can run its stages. Example, with 3
    arrays allowed, of the classes S (small) and L (large):

        generation 0 L    kept
        generation 1 S    kept, as the first of S; after that of generation 0
        generation 1 L    kept, as there is room for a third; serves the generations to 2, for the one left out
        generation 2 L    left out

    Where no class that is kept can run them, stages are left over, and submitted when these jobs have ended.
    """
    first_of_class = {array.cluster: number for number, array in reversed(list(enumerate(arrays)))}.values()
    ranked = sorted(range(len(arrays)), key=lambda number: (number not in first_of_class, number))
    kept = [arrays[number] for number in sorted(ranked[:most])]
    reach = [array.generation for array in kept]
    for left_out in (arrays[number] for number in ranked[most:]):
        able = [position for position, array in enumerate(kept) if array.cluster.serves(left_out.cluster)]
        if able:
            reach[able[-1]] = max(reach[able[-1]], left_out.generation)
    fewer = []
    for array, generation in zip(kept, reach, strict=True):
        before = max((each.generation for each in kept if each.generation < array.generation), default=None)
        after = tuple(position for position, each in enumerate(kept) if each.generation == before)
        fewer.append(replace(array, generation=generation, after=after))
    return fewer


def _fewer_jobs(arrays: Sequence[Array], most_jobs: int) -> list[Array]:
    """Take jobs from the widest arrays until `most_jobs` are left in all.

    Example: of arrays with 1, 4 and 9 jobs, 8 in all leave 1, 4 and 3.
    """
    most = max((array.jobs for array in arrays), default=1)
    while most > 1 and sum(min(array.jobs, most) for array in arrays) > most_jobs:
        most -= 1
    spare = most_jobs - sum(min(array.jobs, most) for array in arrays)
    fewer = []
    for array in arrays:
        has_one_more = array.jobs > most and spare > 0
        spare -= has_one_more
        fewer.append(replace(array, jobs=min(array.jobs, most + has_one_more)))
    return fewer
