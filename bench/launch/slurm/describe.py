"""A submission in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from bench.launch.slurm.arrays import Array, Element
from bench.launch.slurm.submit import Submitted


def describe_submission(submitted: Submitted) -> str:
    """Describe the arrays in words, with what each waits for.

    Arrays that are submitted come with their ids.
    """
    lines = []
    for number, array in enumerate(submitted.arrays):
        names = Counter(stage.name for task in array.tasks for stage in task)
        what = ", ".join(f"{count} {name}" for name, count in names.items())
        id_ = f"job {submitted.job_ids[number]}: " if number < len(submitted.job_ids) else ""
        tasks = len(array.indices)
        lines.append(f"  array {number}: {id_}{tasks} {'task' if tasks == 1 else 'tasks'}: {what}{_waits(array)}")
    return "\n".join(lines)


def _waits(array: Array) -> str:
    parts = [f"until {_listed(array.ok)} succeeded"] if array.ok else []
    parts += [f"until {_listed(array.ended)} ended"] if array.ended else []
    if array.corresponding is not None:
        parts.append(f"each until the same task of array {array.corresponding} succeeded")
    return f"; waits {' and '.join(parts)}" if parts else ""


def _listed(waited: Sequence[Element | str]) -> str:
    def words(item: Element | str) -> str:
        if isinstance(item, str):
            return f"job {item}"
        return f"array {item.array}" if item.index is None else f"task {item.index} of array {item.array}"

    rest = f" and {len(waited) - 3} more" if len(waited) > 3 else ""
    return ", ".join(map(words, waited[:3])) + rest
