"""A plan in words: what `--plan` prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from bench.errors import InputError
from bench.planning.cost import TABLE_WIDTH, Rates, describe_cost, finished_rates
from bench.planning.plan import Plan, searched
from bench.specs import PRETRAINED, PublicWeights, Stage
from bench.store.states import StageState
from bench.store.store import Store

STATES = (StageState.DONE, StageState.TO_RUN, StageState.FAILED, StageState.NOT_PREPARED, StageState.UNNEEDED)

NO_BREAK = "\xa0"
"""A blank at which no line of a table is broken."""

WORDS = (
    "row: a method with its settings, a line of the table",
    "cell: a row on one task with one seed, a number in the table",
    "stage: a training run behind cells; cells that begin alike share it",
)
SOURCE_WORDS = "source_pretrain: source pre-training, first weights for a backbone without any"


def counted(number: int, noun: str, several: str = "") -> str:
    """Write a number of things, one of them in the singular; `several` where that is more than an s."""
    return f"{number} {noun if number == 1 else several or f'{noun}s'}"


def first_of(names: Sequence[str], most: int) -> str:
    """List the first names, at most so many, and count the others."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def describe_plan(plan: Plan, store: Store | None = None, measured: Rates | None = None) -> str:
    """Put a plan into words for `--plan`.

    Shown are its cells, its stages and how rows share them, what is done and to do, and the cost. That is priced by the
    finished stages of the plan and of `store`, and by what was `measured`.
    """
    to_run = {stage.key for stage in plan.to_run(retry=True)}
    grid, states = plan.grid, Counter(_state(plan, stage, to_run) for stage in plan.stages)
    axes = " x ".join(
        counted(len(axis), noun) for axis, noun in ((grid.rows, "row"), (grid.tasks, "task"), (grid.seeds, "seed"))
    )
    size = f"{axes} = {counted(len(plan.cells), 'cell')}"
    words = (*WORDS, SOURCE_WORDS) if any(stage.name == "source_pretrain" for stage in plan.stages) else WORDS
    selected = f", {len(plan.selected)} selected" if len(plan.selected) < len(plan.cells) else ""
    lines = [
        f"grid {grid.name}: {size}{selected}",
        f"pre-training seeds: {grid.pretraining_seeds}",
        *([f"search seeds: {grid.search_seeds}"] if any(map(searched, plan.cells)) else []),
        *(f"  {line}" for line in words),
        "",
        *_sharing(plan),
        "",
        "stages: " + ", ".join(f"{states[state]} {state}" for state in STATES if states[state] or state in STATES[:2]),
    ]
    lines += [f"  {line}" for line in _not_prepared(plan)]
    cells = plan.first_cells() if plan.failed else {}
    for stage in plan.stages:
        if stage.key in plan.failed and stage.key in to_run:
            reason = f"its stage {stage.name}: {plan.failed[stage.key]}"
            lines.append(f"  failed: {cells[stage.key]}: {reason} (run again with --retry)")
    if plan.again:
        lines.append(
            f"  again: {counted(len(plan.again), 'stage')} run anew; what the store holds of them is set aside:"
        )
        lines += [f"    {stage.folder}" for stage in plan.again]
    lines += [f"  {line}" for line in outdated(plan.outdated.values())]
    lines += [f"  {line}" for line in (*plan.splits, *plan.notes)]
    lines += [f"  fresh decoder: {line}" for line in fresh_decoders(plan.stages)]
    lines += [f"  not pinned: {line}" for line in unpinned(plan)]
    rates = finished_rates(plan, store) | (measured or {})
    lines += describe_cost(plan, rates, measured is not None)
    return "\n".join(lines)


def outdated(reasons: Iterable[str]) -> Iterator[str]:
    """Say how many finished stages would not come out the same today, and why. `reasons` has the reason of each."""
    for reason, count in sorted(Counter(reasons).items()):
        yield (f"outdated: {count} finished stages rest on {reason} than today's; --again GLOB computes cells anew")


def fresh_decoders(stages: Iterable[Stage]) -> Iterator[str]:
    """Say whose decoder starts from random values since the weight file lacks it.

    The file may also lack a part of it. Stages that train no decoder, or start from another stage, do not count.
    """
    absent = {
        stage.backbone.name: stage.backbone.weights.fresh
        for stage in stages
        if stage.init == PRETRAINED
        and "decoder" in stage.objective.needs
        and isinstance(stage.backbone.weights, PublicWeights)
    }
    for name, fresh in sorted(absent.items()):
        if fresh:
            parts = fresh[0] if len(fresh) == 1 else f"{len(fresh)} tensors, such as {fresh[0]}"
            yield f"the weights of {name} lack {parts}: pre-training starts it from random values"


def unpinned(plan: Plan) -> Iterator[str]:
    """Say which backbones name a repository of the hub without a commit, so that two people may fetch other weights."""
    for name in sorted({stage.backbone.name for stage in plan.stages} & plan.catalogue.checkpoints.keys()):
        source = plan.catalogue.checkpoints[name]
        if not source.local and "@" not in source.weights:
            checked = "" if source.weights_checksum is None else "; the sha256 of its file is"
            yield f"{name} is whatever {source.weights} holds when it is prepared, as no commit is named{checked}"


def _not_prepared(plan: Plan) -> Iterable[str]:
    for name in sorted(plan.unprepared):
        how = plan.catalogue.command([name], plan.data_root)
        if plan.catalogue.local(name):
            try:
                plan.catalogue.refuse_missing_source(name)
                how = "the first run builds it"
            except InputError as error:
                how = f"and cannot be: {error}"
        yield f"{name}: not prepared ({how})"


def _state(plan: Plan, stage: Stage, to_run: set[str]) -> StageState:
    if stage.unprepared:
        return StageState.NOT_PREPARED
    if stage.key in plan.done:
        return StageState.DONE
    if stage.key not in to_run:
        return StageState.UNNEEDED
    return StageState.FAILED if stage.key in plan.failed else StageState.TO_RUN


def _sharing(plan: Plan) -> Iterable[str]:
    from tabulate import tabulate

    # `alone` holds the stages that a row would need if it ran alone. With the rows finetune and tapt:
    # {"finetune": [finetune], "tapt": [further_pretrain, another finetune]}, so none of them is shared.
    alone, methods = plan.stages_by_row(), {cell.row: cell.method for cell in plan.selected}
    users = Counter(stage.key for stages in alone.values() for stage in stages)
    rows = [
        (
            methods[row],
            len(stages),
            sum(users[stage.key] > 1 for stage in stages),
            ", ".join(f"{n}{NO_BREAK}{name}" for name, n in Counter(stage.name for stage in stages).items()),
        )
        for row, stages in alone.items()
    ]
    # Two blanks stand between columns; what the first three leave is for the list of stages.
    heads = ("row", "alone", "shared", "stages")
    left = max(len("row"), *(len(row) for row, *_ in rows)) + sum(len(head) + 4 for head in heads[1:3])
    wide = [None, None, None, max(20, TABLE_WIDTH - left)]
    table = tabulate(rows, headers=heads, tablefmt="simple", maxcolwidths=wide, disable_numparse=[0, 3])
    yield table.replace(NO_BREAK, " ")
    yield f"{sum(map(len, alone.values()))} stages if every row ran alone, {len(plan.stages)} distinct"
