"""What the stages of a plan would cost, by what stages like them took. Nothing here imports torch."""

from __future__ import annotations

import json
import textwrap
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from bench.planning.plan import Plan
from bench.specs import Selected, Stage, canonical_data
from bench.specs.cluster import stage_kind
from bench.store.store import Store, whole_seconds

TABLE_WIDTH = 80
"""So many columns are used of what may be a wider terminal."""

READ_PER_KIND = 5
"""So many stages of other grids are read for each kind, the newest first."""


class Kind(NamedTuple):
    """What decides how long an example takes; stages that share it are priced by each other."""

    stage: str
    objective: str
    optimizer: str
    constraint: str
    backbone: str

    def __str__(self) -> str:
        parts = [part for part in (self.objective, self.optimizer, self.constraint) if part]
        return f"{self.stage} ({' + '.join(parts)} on {self.backbone})"


Rates = dict[tuple[Kind, str], float]
"""Kind and task -> seconds for a training example; the task '' stands for the mean over all."""


def kind_of(stage: Stage) -> Kind:
    """Return the kind of a stage."""
    return _kind_in(canonical_data(stage))


def _kind_in(spec: dict[str, Any]) -> Kind:
    """Return the kind of a stage by its specification, as the store holds it."""
    terms = spec["objective"].get("terms", [spec["objective"]])
    objective = " + ".join(term["type"] for term in terms)
    constraint = "" if spec["constraint"] is None else spec["constraint"]["type"]
    optimizer, backbone = spec["optimizer"]["type"], spec["backbone"]["name"]
    return Kind(stage_kind(spec["name"]), objective, optimizer, constraint, backbone)


def finished_rates(plan: Plan, store: Store | None) -> Rates:
    """Compute the rates of finished stages.

    They are those of this plan; a kind of which it has none takes those of other grids in the store. Example: of a
    kind, stages on digits took 2 and 4 ms for an example, one on flower 9 ms. Then a stage on digits is priced with 3
    ms, one on flower with 9, and one on a task that none was trained on with their mean, 5.
    """
    samples: dict[tuple[Kind, str], list[float]] = defaultdict(list)
    for stage in plan.stages:
        if (seconds := plan.done.get(stage.key)) is not None:
            for task in (stage.data.task, ""):
                samples[kind_of(stage), task].append(seconds / examples_of(stage))
    kinds = {kind_of(stage) for stage in plan.to_run(retry=True)}
    for kind in kinds - {kind for kind, _ in samples}:
        for task, rate in _of_other_grids(kind, store):
            for each in (task, ""):
                samples[kind, each].append(rate)
    return {key: sum(values) / len(values) for key, values in samples.items()}


def unpriced(plan: Plan, rates: Rates) -> dict[Kind, list[Stage]]:
    """Group the stages to run that no rate prices by their kind."""
    without: dict[Kind, list[Stage]] = defaultdict(list)
    for stage in plan.to_run(retry=True):
        if (kind_of(stage), "") not in rates:
            without[kind_of(stage)].append(stage)
    return without


def describe_cost(plan: Plan, rates: Rates, measured: bool = False) -> list[str]:
    """Estimate how long the stages to run will take, and name those of which nothing is known."""
    if plan.unprepared:
        return ["cost: unknown until the data are prepared"]
    to_run, unknown = plan.to_run(retry=True), unpriced(plan, rates)
    if not to_run:
        return ["cost: nothing to run"]
    rest = sum(map(len, unknown.values()))
    by_kind: dict[str, float] = defaultdict(float)
    for stage in to_run:
        by_kind[stage_kind(stage.name)] += seconds_of(stage, rates) or 0.0
    lines = [f"cost: unknown, the store holds no finished stage like the {rest} to run"]
    if rest < len(to_run):
        priced = f"cost: about {_minutes(sum(by_kind.values()))} of one worker for {len(to_run) - rest} stages"
        lines = [priced + (f"; unknown for {rest} more" if rest else "")]
        lines += [f"  {name}: {_minutes(seconds)}" for name, seconds in by_kind.items() if seconds and len(by_kind) > 1]
    for kind, stages in unknown.items():
        lines += textwrap.wrap(f"  unknown: {len(stages)} {kind}", TABLE_WIDTH, subsequent_indent=" " * 11)
    if unknown and not measured:
        lines.append("  --plan --measure times a few steps of each kind that is unknown")
    return lines


def seconds_of(stage: Stage, rates: Rates) -> float | None:
    """Estimate the seconds of a stage; None where no rate fits."""
    kind = kind_of(stage)
    rate = rates.get((kind, stage.data.task), rates.get((kind, "")))
    return None if rate is None else rate * examples_of(stage)


def to_measure(stages: Sequence[Stage]) -> Stage:
    """Choose the stage of a kind of which to time a few steps.

    That is the last one, or what it may train if it is a search.
    """
    stage = stages[-1]
    return stage.finals[0] if isinstance(stage, Selected) else stage


def examples_of(stage: Stage) -> int:
    """Count the training examples that a stage reads, in all its steps."""
    return stage.total_steps * stage.schedule.batch_size


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} hours"


def _of_other_grids(kind: Kind, store: Store | None) -> list[tuple[str, float]]:
    """Read task and seconds for an example of finished stages of a kind.

    Whatever grid left them in the store, the newest READ_PER_KIND count.
    """
    paths = [] if store is None else [*store.root.glob(f"{kind.stage}*-*/record.json")]
    samples: list[tuple[str, float]] = []
    for path in sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True):
        if len(samples) == READ_PER_KIND:
            break
        try:
            spec = json.loads(path.with_name("spec.json").read_text())
            record = json.loads(path.read_text())
            if _kind_in(spec) == kind and (seconds := whole_seconds(record)) is not None:
                examples = record["steps"] * spec["schedule"]["batch_size"]
                samples.append((spec["data"]["task"], seconds / examples))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError):
            continue  # damaged, or of an older version: it prices nothing
    return samples
