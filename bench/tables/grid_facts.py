"""What tables say that stands in no record: the grid, in a line, so that they need neither plan nor store."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.data.manifest import describe_overlap, read_manifest
from bench.data.metrics import describe, metric_of
from bench.data.tasks import FURTHER_EVALUATIONS
from bench.errors import InputError
from bench.planning.describe import fresh_decoders, unpinned
from bench.planning.plan import Plan, searched
from bench.specs import PublicWeights, Selected
from bench.store.shape import shaped

SCHEMA = 2
"""Files of version 1 have no such line, and the whole specification in every cell."""


@dataclass(frozen=True)
class TestFacts:
    """The test set of a column: its size and the examples of each class.

    `per_class` is None where nobody counted. `class_names` are in its order; they are kept for tasks of two classes
    only, for the F1 of one of them, and older files have none.
    """

    examples: int
    per_class: tuple[int, ...] | None
    class_names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class GridFacts:
    """What a grid is. `metrics` and `test` are by column.

    `legend` are the lines of the table's legend that the plan alone decides; `warnings` those that were true when the
    table was written, of the code and the store of that moment. `reference` is the row that others are compared with:
    `finetune`, or else the first.
    """

    schema: int
    name: str
    rows: tuple[str, ...]
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    pretraining_seeds: str
    reference: str
    metrics: dict[str, str]
    test: dict[str, TestFacts]
    legend: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    def as_line(self) -> dict[str, Any]:
        """Return it as the first line of a records file."""
        facts = dataclasses.asdict(self)
        for test in facts["test"].values():
            # An older file has no such entry, and is to be written back byte for byte.
            if test["class_names"] is None:
                del test["class_names"]
        return {"grid": facts}


def read_facts(line: Mapping[str, Any]) -> GridFacts:
    """Read the first line of a records file.

    Raises `SpecError` for another shape, ValueError for another version or what names no column.
    """
    facts: GridFacts = shaped(line["grid"], GridFacts, "grid")
    if facts.schema != SCHEMA:
        raise ValueError(f"it is of version {facts.schema}, and this code reads version {SCHEMA}")
    if facts.metrics.keys() != set(facts.tasks) or facts.reference not in facts.rows:
        raise ValueError("its metrics or its reference are those of other columns or rows")
    if not all(name.isprintable() for name in (facts.name, *facts.rows, *facts.tasks)):
        raise ValueError("a name in it holds a character that cannot be printed")
    for axis, names in (("row", facts.rows), ("task", facts.tasks), ("seed", facts.seeds)):
        if not names or len(set(names)) < len(names):
            raise ValueError(f"it has no {axis}, or one of them twice")
    for metric in facts.metrics.values():
        try:
            metric_of(metric)
        except KeyError:
            raise ValueError(f"it has the metric {metric}, which this code does not know") from None
    for column, test in facts.test.items():
        if test.per_class is not None and (min(test.per_class, default=0) < 0 or sum(test.per_class) != test.examples):
            raise ValueError(f"test.{column} has {test.examples} examples, and counts of its classes that are others")
        if test.class_names is not None and len(set(test.class_names)) != len(test.per_class or test.class_names):
            raise ValueError(f"test.{column} has {len(test.class_names)} class names for other classes")
    # A file has its names in the order of the alphabet, and a table its columns in that of the grid.
    return dataclasses.replace(
        facts,
        metrics={task: facts.metrics[task] for task in facts.tasks},
        test={task: facts.test[task] for task in facts.tasks if task in facts.test},
    )


def check_file_name(facts: GridFacts) -> None:
    """Refuse a grid's name that is no plain file name.

    With a slash in it, or as `..`, its tables would be written outside the folder of results.
    """
    if "/" in facts.name or facts.name in ("", ".", ".."):
        raise InputError(
            f"--records: the grid's name is {facts.name!r}, which is no file's: its first line is damaged."
        )


def facts_of(plan: Plan) -> GridFacts:
    """Collect what a plan says of its tables."""
    grid = plan.grid
    return GridFacts(
        schema=SCHEMA,
        name=plan.table_name,
        rows=grid.rows,
        tasks=grid.tasks,
        seeds=grid.seeds,
        pretraining_seeds=grid.pretraining_seeds,
        reference="finetune" if "finetune" in grid.rows else grid.rows[0],
        metrics={cell.task: cell.metric for cell in plan.cells},
        test=_test_sets(plan),
        legend=tuple(_legend(plan)),
    )


def _test_sets(plan: Plan) -> dict[str, TestFacts]:
    facts: dict[str, TestFacts] = {}
    for column in plan.grid.tasks:
        task, split = FURTHER_EVALUATIONS.get(column, (column, "test"))
        manifest = read_manifest(task, plan.data_root)
        if manifest is not None and split in manifest.splits:
            test, names = manifest.splits[split], manifest.class_names
            facts[column] = TestFacts(
                test.examples, test.per_class, names if names is not None and len(names) == 2 else None
            )
    return facts


def _legend(plan: Plan) -> list[str]:
    """Say all that a reader needs to judge the numbers without the code, as far as the plan decides it."""
    grid = plan.grid
    n = len(grid.seeds)
    backbones: dict[str, set[str]] = defaultdict(set)
    for cell in plan.cells:
        backbones[cell.task].add(cell.backbone)
    backbones_of_tasks = "; ".join(f"{task}: {','.join(sorted(names))}" for task, names in backbones.items())
    seeds = f"seeds {', '.join(map(str, grid.seeds))}; (k/{n}) means only k of {n} have finished; one seed has no ±"
    return [
        *_metrics(plan),
        "Split: one evaluation on the test split after training ended; nothing was selected on it.",
        *_further_splits(plan),
        f"A cell reads mean ± sample standard deviation (ddof = 1) over seeds, then (n); {seeds}.",
        "The seed varies head initialisation, data order, dropout and augmentation of labelled stages.",
        *_unlabelled(plan),
        *_search(plan),
        *_remarks(plan),
        f"Backbones: {backbones_of_tasks}.",
        *_weights(plan),
        *(f"Fresh decoder: {line}." for line in fresh_decoders(plan.stages)),
        *(f"Not pinned: {line}." for line in unpinned(plan)),
        *_overlap(plan),
        *_predictions(plan),
        f"Grid: {plan.origin}.",
    ]


METRIC_LINE = "Metric, "
"""How the lines of a legend begin that name the columns' metrics."""


def _metrics(plan: Plan) -> list[str]:
    """Name the metric of each column, those in percent first, and say where less is better."""
    titles: dict[str, dict[str, str]] = {"%": {}, "": {}}
    for cell in plan.cells:
        metric = metric_of(cell.metric)
        lower = " (lower is better)" if metric.better == "lower" else ""
        titles[metric.unit][cell.task] = f"{cell.task}: {describe(cell.metric)}{lower}"
    headings = {"%": f"{METRIC_LINE}in percent", "": f"{METRIC_LINE}not in percent"}
    return [f"{headings[unit]}: {'; '.join(columns.values())}." for unit, columns in titles.items() if columns]


def _further_splits(plan: Plan) -> list[str]:
    """Say which columns show stages of another column, or of a task, on a further split."""
    splits = {column: FURTHER_EVALUATIONS[column] for column in plan.grid.tasks if column in FURTHER_EVALUATIONS}
    return [
        f"Column {column}: the stages trained on {task}, on its split {split}."
        for column, (task, split) in splits.items()
    ]


def _remarks(plan: Plan) -> list[str]:
    """Pass on what the objectives of a row say of themselves, each remark once."""
    # The row's own stages only, not those behind them; of a search each that can be chosen.
    remarks: dict[str, dict[str, None]] = defaultdict(dict)
    for cell in plan.cells:
        for stage in cell.stage.finals if isinstance(cell.stage, Selected) else (cell.stage,):
            if (remark := stage.objective.remark(stage)) is not None:
                remarks[cell.row][remark] = None
    return [f"The row {row} is {', or '.join(sorted(texts))}." for row, texts in remarks.items()]


def _weights(plan: Plan) -> list[str]:
    """Name the checkpoints made elsewhere that the grid began with."""
    # Only prepared ones: until then nobody knows the checksum that says which weights they are.
    backbones = {stage.backbone.name: stage.backbone.weights for stage in plan.stages}
    descriptions = [
        f"{name}: {weights.repository or 'a local folder'}, weight file sha256 {str(weights.checksum)[:16]}"
        for name, weights in sorted(backbones.items())
        if isinstance(weights, PublicWeights) and weights.checksum is not None
    ]
    return [f"Checkpoints: {'; '.join(descriptions)}."] if descriptions else []


OVERLAP_LINE = "Overlap: "
"""How the line of a legend begins that names the tasks whose test examples occur in another split, too."""


def _overlap(plan: Plan) -> list[str]:
    """Say of which tasks test examples also occur in another split, and those that a search judges by.

    The counts are the manifests'.
    """
    columns = {column: FURTHER_EVALUATIONS.get(column, (column, "test")) for column in plan.grid.tasks}
    judged = {cell.task for cell in plan.cells if searched(cell)}
    manifests = {column: read_manifest(task, plan.data_root) for column, (task, _) in columns.items()}
    shared = [
        f"{column}: {line}"
        for column, manifest in manifests.items()
        for line in (describe_overlap(manifest) if manifest is not None else [])
        if any(f"of {split} " in line for split in (columns[column][1], *(["validation"] if column in judged else [])))
    ]
    compared = "texts compared without case and white space, images byte for byte"
    return [f"{OVERLAP_LINE}{'; '.join(shared)} ({compared})."] if shared else []


def _predictions(plan: Plan) -> list[str]:
    """Say where the predictions of a grid that publishes them lie."""
    precision = plan.grid.publish_predictions
    what = f"{plan.table_name}/predictions/ has each cell's logits ({precision}), predicted classes and losses"
    return [f"Predictions: {what}; python -m bench.predictions computes its metrics from them."] if precision else []


def _search(plan: Plan) -> list[str]:
    """Say how settings were searched."""
    count = max(map(searched, plan.cells))
    if not count:
        return []
    judged = "judged on held-out or validation data"
    if plan.grid.search_seeds == "per_seed":
        how = f"each trained with every seed and {judged}"
        then = "with each seed the best was trained on all training data and tested once, so ± holds the choice's luck"
    else:
        how = f"each trained once with seed {plan.grid.base_seed} and {judged}"
        trained = "the best was trained on all training data with every seed and tested once"
        then = f"{trained}: ± does not hold that choice's luck"
    return [f"Search: {count} configurations for every row and task, {how}; {then}."]


def _unlabelled(plan: Plan) -> list[str]:
    """Say how unlabelled stages relate to seeds. Returns nothing where the grid has none but the backbones' own."""
    grid = plan.grid
    tasks = {cell.stage.data.task for cell in plan.cells}
    if not any(not stage.data.labelled and stage.data.task in tasks for stage in plan.stages):
        return []
    if grid.pretraining_seeds == "per_seed":
        return ["Unlabelled stages on the task's data were repeated with every seed, so ± holds their variance."]
    seed = f"once for all seeds, with seed {grid.base_seed} (the papers' protocol)"
    return [f"Unlabelled stages on the task's data ran {seed}: ± holds no pre-training variance."]
