"""Stages that two rows would have shared but for a binding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from bench.errors import InputError
from bench.planning.bindings import Bindings
from bench.planning.cell import Expansion
from bench.specs import Stage, walk


def describe_splits(expansion: Expansion) -> Iterable[str]:
    """Name the bindings that split a stage which rows would share.

    Each row is planned twice: as it is, and without its own bindings. An example, with `tapt` in the grid, too:

        self_distillation/further_pretrain.steps = 100
        without it    further_pretrain (the very stage of tapt), self_distill_1, finetune
        with it       another further_pretrain, …: this line splits it

    Last stages are left out: rows exist so that those differ. So do rows of one recipe, in any stage; and a stage that
    the row shares with another one under the same bindings belongs to a series (of budgets, of subsets). Searches are
    left out, too: the stages compared are those at the grid's own settings.
    """
    grid, seed, root = expansion.grid, expansion.grid.seeds[0], expansion.data_root
    bindings = Bindings(binding for binding in expansion.bindings.all if binding.configurable != "search")
    unsearched = Expansion(grid, bindings, root, check_sources=False)
    stages = {(row, task): _stages(unsearched, row, task, seed) for row in expansion.rows for task in expansion.tasks}
    reported: set[str] = set()
    for name, row in expansion.rows.items():
        scopes = {name, *(f"{task}/{name}" for task in expansion.tasks)}
        if not any(binding.scope in scopes for binding in bindings.all):
            continue  # nothing of its own can split a stage
        plain = Expansion(grid, bindings.without_scopes(scopes), root, check_sources=False)
        for task in expansion.tasks:
            others = {
                other: stages[other, task] for other in expansion.rows if expansion.rows[other].recipe != row.recipe
            }
            for stage, split, sharing in _split_stages(stages[name, task], _stages(plain, name, task, seed), others):
                lines = {
                    f"{binding}: splits {stage.name}, which {name} would share with {', '.join(sharing)}"
                    for binding in unsearched.stages[split.key][1]
                    if binding.scope in scopes
                }
                yield from sorted(lines - reported)
                reported |= lines


def _split_stages(
    own: Mapping[str, Stage], unbound: Mapping[str, Stage], others: Mapping[str, Mapping[str, Stage]]
) -> Iterator[tuple[Stage, Stage, list[str]]]:
    """Yield stages that one row could share, but for its bindings.

    Each comes with the row's own stage in its stead, and with the rows that could share it. `own` are a row's stages by
    key, `unbound` those without its bindings, `others` those of the rows of other recipes.
    """
    for stage in list(unbound.values())[:-1]:
        sharing = [other for other, stages in others.items() if stage.key in stages]
        if not sharing or stage.key in own:
            continue  # nobody else has it, or the row has it in spite of its bindings
        # The row's own stage in its stead has the same name and backbone: kd has two stages named finetune, the
        # teacher's on a larger backbone.
        part = (stage.name, stage.backbone.name)
        counterparts = (s for s in own.values() if (s.name, s.backbone.name) == part and s.key not in unbound)
        split = next(counterparts, None)
        if split is not None and not any(split.key in stages for stages in others.values()):
            yield stage, split, sharing


def _stages(expansion: Expansion, row: str, task: str, seed: int) -> dict[str, Stage]:
    """List the stages behind a cell by key, parents first.

    There are none where the row makes no sense under these bindings.
    """
    try:
        return {stage.key: stage for stage in walk(expansion.stage(row, task, seed))}
    except InputError:
        return {}
