"""Stages that two rows would have shared but for a binding."""

from __future__ import annotations

from collections.abc import Iterable

from bench.errors import InputError
from bench.planning.bindings import Bindings
from bench.planning.cell import Expansion
from bench.specs import Stage, walk


def _splits(expansion: Expansion) -> Iterable[str]:
    """For each row, task: the stages that it would share with another row were it not for the row's own bindings.

    Last stages are left out: rows exist so that those differ. So do rows of one recipe, in any stage; and a stage that
    the row shares with another one under the same bindings belongs to a series (of budgets, of subsets). Searches are
    left out, too: the stages compared are those at the grid's own settings.
    """
    grid, seed, root = expansion.grid, expansion.grid.seeds[0], expansion.data_root
    bindings = Bindings(binding for binding in expansion.bindings.all if binding.configurable != "search")
    unsearched = Expansion(grid, bindings, root)
    of_row = {(row, task): _stages(unsearched, row, task, seed) for row in expansion.rows for task in grid.tasks}
    told: set[str] = set()
    for row, its in expansion.rows.items():
        others = [name for name, other in expansion.rows.items() if other.recipe != its.recipe]
        scopes = {row, *(f"{task}/{row}" for task in grid.tasks)}
        if not any(binding.scope in scopes for binding in bindings.all):
            continue
        plain = Expansion(grid, bindings.without_scopes(scopes), root)
        for task in grid.tasks:
            own, unbound = of_row[row, task], _stages(plain, row, task, seed)
            for stage in list(unbound.values())[:-1]:
                sharing = [other for other in others if stage.key in of_row[other, task]]
                if not sharing or stage.key in own:
                    continue
                # Its counterpart: of the same part in the method and on the same backbone (kd has two `finetune`).
                place = (stage.name, stage.backbone.name)
                counterparts = (s for s in own.values() if (s.name, s.backbone.name) == place and s.key not in unbound)
                split = next(counterparts, None)
                if split is None or any(split.key in of_row[other, task] for other in others):
                    continue
                blamed = {str(binding) for binding in unsearched.sources[split.key] if binding.scope in scopes}
                lines = {
                    f"{one}: splits {stage.name}, which {row} would share with {', '.join(sharing)}" for one in blamed
                }
                yield from sorted(lines - told)
                told |= lines


def _stages(expansion: Expansion, row: str, task: str, seed: int) -> dict[str, Stage]:
    """The stages behind a cell, parents first; none where the row makes no sense under these bindings."""
    try:
        return {stage.key: stage for stage in walk(expansion.stage(row, task, seed))}
    except InputError:
        return {}
