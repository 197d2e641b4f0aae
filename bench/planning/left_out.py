"""Lines of an included file that are for rows or tasks which the including grid leaves out.

    image.gin    grid.rows = ['finetune', 'mars']           mine.gin    include 'image.gin'
                 MarsProjection.radius = 2.0                            grid.rows = ['finetune']
                 mars/finetune.lr = 1e-4

Nothing of mine.gin reads the last two lines of image.gin, and that is no mistake. They are noted, not refused; a line
that the included grid would not read either stays an error, and so does one in the file that leaves the row out.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from bench.errors import InputError, SpecError
from bench.planning.bindings import Binding, Bindings
from bench.planning.cell import Expansion
from bench.planning.settings import Grid, Row

AXES = ("rows", "tasks")


def wider_grid(grid: Grid, bindings: Bindings, file: str) -> Grid:
    """Return the grid with the rows and tasks that other files, or the command line, leave out.

    The lines of `file` may be for those. They may not be for what the file itself leaves out, and those of the command
    line for nothing that is left out.
    """
    if not file:
        return grid
    axes: dict[str, list[str]] = {axis: list(getattr(grid, axis)) for axis in AXES}
    rows = {*grid.named_rows}
    own = {axis for axis, binding in _axes(bindings).items() if binding.file == file}
    for axis, binding in _replaced_axes(bindings):
        for label in binding.value if isinstance(binding.value, tuple) and axis not in own else ():
            with contextlib.suppress(SpecError):  # a row that does not exist, in a line that is not in effect
                name = Row.parse(label).name if axis == "rows" else label
                if label not in axes[axis] and (axis == "tasks" or name not in rows):
                    axes[axis].append(label)
                    rows.add(name)
    return dataclasses.replace(grid, rows=tuple(axes["rows"]), tasks=tuple(axes["tasks"]))


def left_out(expansion: Expansion, unused: Iterable[Binding]) -> set[Binding]:
    """Return those of the unused lines that rows or tasks left out would read."""
    lines: dict[Grid, set[Binding]] = defaultdict(set)
    for binding in unused:
        lines[wider_grid(expansion.grid, expansion.bindings, binding.file)].add(binding)
    return {binding for wider, own in lines.items() for binding in own & _read_only_by(wider, expansion)}


def _read_only_by(wider: Grid, expansion: Expansion) -> set[Binding]:
    """Return the lines that the cells read which `wider` has and the grid itself has not."""
    bindings = Bindings(expansion.bindings.all, expansion.bindings.candidates)
    whole = Expansion(wider, bindings, expansion.data_root, check_sources=False)
    for row in whole.rows:
        for task in wider.tasks:
            if row not in expansion.rows or task not in expansion.grid.tasks:
                with contextlib.suppress(InputError):  # it is not run, so what is wrong with it is no matter
                    whole.stage(row, task, wider.base_seed)
    return bindings.used


def describe_left_out(lines: Iterable[Binding]) -> Iterator[str]:
    """Say how many lines of each file are not for this grid."""
    for file, count in sorted(Counter(line.file for line in lines).items()):
        yield f"left out: rows or tasks that this grid does not have; {file} has {count} settings for them"


def _axes(bindings: Bindings) -> dict[str, Binding]:
    """Return the lines in effect that name the rows and the tasks, by axis."""
    strongest = bindings.layers(("",))
    return {axis: strongest["grid", axis][1] for axis in AXES if ("grid", axis) in strongest}


def _replaced_axes(bindings: Bindings) -> Iterator[tuple[str, Binding]]:
    """Yield the lines that those in effect replace, each with its axis."""
    strongest = _axes(bindings)
    for binding in (*bindings.replaced, *bindings.all):
        axis = binding.setting
        if binding.configurable == "grid" and axis in strongest and not binding.scope and binding != strongest[axis]:
            yield axis, binding
