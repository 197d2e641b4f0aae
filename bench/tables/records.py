"""The records behind a table: those of the store and those that the file has already."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from bench.data.metrics import NO_ENTRY
from bench.data.tasks import trained_task
from bench.errors import InputError, SpecError
from bench.planning.plan import Plan, PlannedCell
from bench.specs import Selected, Stage, canonical_data, walk
from bench.store.activity import ActivityFacts
from bench.store.code import other_weights
from bench.store.files import digest, parse_json, write_text
from bench.store.shape import shaped
from bench.store.store import Store, whole_seconds
from bench.tables.grid_facts import GridFacts, read_facts

Record = dict[str, Any]
Earlier = dict[tuple[str, str], Record]
"""The cells of a records file, by key and cell."""


NONE_READ: Mapping[str, Record] = MappingProxyType({})


class RecordsFile(NamedTuple):
    """What a records file holds, and the file of stages beside it.

    `stages` are by key; files of version 1 have none, and no grid.
    """

    grid: GridFacts | None
    cells: Earlier
    stages: dict[str, Record]


NOTHING = RecordsFile(None, {}, {})


class LeftOut(NamedTuple):
    """A line that could not be used: of a records file or of the stages beside it."""

    path: Path
    number: int
    reason: str
    whole_file: bool = False
    """Whether nothing of its file could be used, as it is the first one."""

    def __str__(self) -> str:
        return f"{self.path}:{self.number}: not a record of this suite ({self.reason})"


@dataclass(frozen=True)
class Provenance:
    """What a table says of where a number came from."""

    commit: str | None
    device: str
    instruction_set: str
    threads: int
    device_type: str = "cpu"
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """What a table says of a candidate of a search."""

    key: str


@dataclass(frozen=True)
class RecordLine:
    """What tables rely on in a line of a records file; there is more in it."""

    key: str
    cell: str
    method: str
    task: str
    seed: int
    value: float
    metrics: dict[str, float]
    provenance: Provenance
    measured: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    seconds_with_parents: float | None = None
    metric: str | None = None
    search: Any = None
    devices: tuple[str, ...] = ()
    code: dict[str, tuple[str, ...]] = field(default_factory=dict)
    activity: dict[str, ActivityFacts] = field(default_factory=dict)
    stages: tuple[str, ...] = ()
    diverged: tuple[str, ...] = ()
    """Of these stages, those that a search did without, as they diverged, and that have no record."""
    also: Any = ()
    """Records of the same key with other numbers, computed on other computers or by other code."""


@dataclass(frozen=True)
class StageLine:
    """What is relied on in a line of a file of stages; there is more in it."""

    key: str
    name: str
    task: str
    seconds: float
    parents: tuple[str, ...]
    spec: dict[str, Any]
    provenance: Provenance


def records_path(results: Path, name: str) -> Path:
    """Return where the records of a grid are written."""
    return results / name / "records.jsonl"


def stages_path(records: Path) -> Path:
    """Return where the stages of a records file are written."""
    return records.with_name("stages.jsonl")


def earlier_records(plan: Plan, results: Path, computed: RecordsFile = NOTHING) -> RecordsFile:
    """Read what a grid's records file has already; `computed` is what it may have of the store.

    Refuses a file that the plan's numbers could not be merged with; a run asks before it begins.
    """
    path = records_path(results, plan.table_name)
    earlier = read_file(path, computed)
    _refuse_unknown_keys(plan, earlier.cells, path)
    return earlier


def computed_records(plan: Plan, store: Store, read_before: Mapping[str, Record] = NONE_READ) -> RecordsFile:
    """Build the records of the cells that the store holds finished, and those of the stages behind them.

    Each stage's record is read once, however many cells need it, and not at all if it is in `read_before`, by key.
    """
    records: dict[str, Record | None] = dict(read_before)

    def read(stages: Iterable[Stage]) -> None:
        records.update(store.each(store.record, (stage for stage in stages if stage.key not in records)))

    prepared = [cell for cell in plan.cells if not cell.stage.unprepared]
    read(cell.stage for cell in prepared)
    finished = [cell for cell in prepared if records.get(cell.stage.key) is not None]
    behind = list(walk(*(cell.stage for cell in finished)))
    read(behind)
    cells = {(cell.stage.key, cell.name): cell_record(cell, records) for cell in finished}
    stages = {
        stage.key: stage_record(stage, record) for stage in behind if (record := records.get(stage.key)) is not None
    }
    return RecordsFile(None, cells, stages)


def merged_records(plan: Plan, store: Store, computed: RecordsFile, results: Path) -> tuple[RecordsFile, RecordsFile]:
    """Return the records of the plan's cells, from store and file, and the file's others.

    `computed` are the store's. Refuses a file that disagrees with them, but for what `--again` replaced.
    """
    # Example: the file has 42 cells. `--only` with an empty store runs 6 of them: the file keeps the other 36, by key.
    # With other settings the keys differ: there are 42 new records, and the 42 old ones are others.
    earlier, path = earlier_records(plan, results, computed), records_path(results, plan.table_name)
    others, records = dict(earlier.cells), Earlier()
    for cell in plan.cells:
        identity = (cell.stage.key, cell.name)
        own, kept = computed.cells.get(identity), others.pop(identity, None)
        if own is not None and kept is not None and disagree(own["metrics"], kept["metrics"]):
            if kept["metrics"] not in store.replaced(cell.stage):
                raise InputError(
                    f"{path} says {kept['value']} for {cell.name}, the store {own['value']}: "
                    "the same stage has two results, for instance of two kinds of computer. Name another --results, or "
                    "move the file away."
                )
            others[identity] = kept  # computed anew since, with --again
        if own is not None and kept is not None and "also" in kept:
            own = {**own, "also": kept["also"]}
        record = own or (None if kept is None else _of_cell(kept, cell, path))
        if record is not None:
            records[identity] = record
    return _with_stages(None, records, earlier, computed), _with_stages(earlier.grid, others, earlier)


def _with_stages(grid: GridFacts | None, cells: Earlier, *sources: RecordsFile) -> RecordsFile:
    """Bring together cells and the stages behind them. Of a stage that several sources have, the last is taken."""
    there = {key: stage for source in sources for key, stage in source.stages.items()}
    behind = dict.fromkeys(key for record in cells.values() for key in record.get("stages", ()))
    return RecordsFile(grid, cells, {key: there[key] for key in behind if key in there})


def _of_cell(kept: Record, cell: PlannedCell, path: Path) -> Record:
    """Return a record of the file with the metric that the plan asks for.

    The metric that a table shows is no part of the stage's key, so the file may show another one of the same stage.
    """
    if cell.metric not in kept["metrics"]:
        raise InputError(
            f"{path} has no {cell.metric} of {cell.name}: {NO_ENTRY}. Or move the file away, or name another --results."
        )
    facts = {name: getattr(cell, name) for name in ("row", "method", "task", "backbone", "seed", "metric")}
    return {**kept, **facts, "value": kept["metrics"][cell.metric]}


def disagree(own: Mapping[str, float], kept: Mapping[str, float]) -> bool:
    """Tell whether two results of a stage differ. Older versions measured less; that is no difference."""
    return not all(same(own[name], kept[name]) for name in own.keys() & kept.keys())


def same(first: object, second: object) -> bool:
    """Tell whether two numbers of records are the same; NaN is the same as NaN."""
    return first == second or (first != first and second != second)


def read_records(path: Path) -> Earlier:
    """Read the cells of a records file, by key and cell."""
    return read_file(path).cells


def read_file(path: Path, expected: RecordsFile = NOTHING, left_out: list[LeftOut] | None = None) -> RecordsFile:
    """Read a records file and the stages beside it; empty where there is none.

    A line that says what `expected` says is taken from there. Refuses any other line that is no record, by its number.
    With `left_out` such a line is added to that list instead, and the rest is read; but if it is the first line of
    the records, which says what the others mean, nothing of the file is used.
    """
    # A grid's file mostly holds what its store holds. To write a record of the store as a line and look for this line
    # in the file is faster than to parse the line and check its shape.
    grid: GridFacts | None = None
    records: Earlier = {}
    stages: dict[str, Record] = {}
    lines = _lines(stages_path(path))
    same_lines = {line_of(stage).encode(): stage for stage in expected.stages.values()} if lines else {}
    for number, line in lines:
        try:
            stage = same_lines.get(line) or _stage_of(parse_json(line))
            if stages.get(stage["key"], stage) != stage:
                raise ValueError(f"the stage {stage['key']} stands there before with other values")
        except DAMAGE as error:
            _leave_out(stages_path(path), number, error, left_out)
            continue
        stages[stage["key"]] = stage
    checked: set[str] = set()
    lines = _lines(path)
    same_lines = {line_of(record).encode(): record for record in expected.cells.values()} if lines else {}
    for number, line in lines:
        try:
            record = same_lines.get(line)
            if record is None:
                record = parse_json(line)
                if isinstance(record, dict) and "grid" in record:
                    grid = _first_facts(record, number)
                    continue
                if isinstance(record, dict) and record.keys() == {"stage"}:  # in a file of records that were set aside
                    stages[record["stage"]["key"]] = _stage_of(record["stage"])
                    continue
                _check_record(record, checked)
                _check_behind(record, stages)
                check_stage(record, stages.get(record["key"]))
                # Records from before GPUs name no device.
                record.setdefault("devices", [_kind(record["provenance"])])
            key, cell = record["key"], record["cell"]
            if grid is not None:
                _refuse_foreign(record, grid)
            if records.get((key, cell), record) != record:
                raise ValueError(f"{cell} stands there before with other values")
        except DAMAGE as error:
            _leave_out(path, number, error, left_out, whole_file=number == 1)
            if number == 1:
                return NOTHING
            continue
        records[key, cell] = record
    return RecordsFile(grid, records, stages)


def _stage_of(line: Any) -> Record:
    """Return the JSON data of a stage's line. Refuses another shape."""
    shaped(line, StageLine)
    spec = line["spec"]
    if "version" in spec:  # else it is no canonical JSON
        if digest(spec) != line["key"]:
            raise ValueError(f"its spec is not that of its key {line['key'][:16]}")
        facts = {"name": spec.get("name"), "seed": spec.get("seed"), "task": spec.get("data", {}).get("task")}
        for name, there in facts.items():
            if there is not None and line[name] != there:
                raise ValueError(f"its {name} is {line[name]}, and that of its spec {there}")
    _check_seconds("seconds", line["seconds"])
    if line.get("search") is not None:
        finals = line["spec"].get("finals", ())
        if not 0 <= line["search"]["chosen"] < len(finals):
            raise ValueError(f"its search chose {line['search']['chosen']} of {len(finals)} settings")
    stage: Record = line
    return stage


def _check_seconds(name: str, seconds: float | None) -> None:
    """Refuse a duration that is none. None is that of a record whose parents are not known."""
    if seconds is not None and not 0 <= seconds < math.inf:
        raise ValueError(f"{name} is {seconds}, which is no duration")


DAMAGE = (ValueError, TypeError, KeyError, RecursionError, SpecError)
"""What reading a line raises that is no record."""


def _first_facts(record: Record, number: int) -> GridFacts:
    """Read a line about a grid, which is the first of its file."""
    facts = read_facts(record)  # first, as another version explains more than another position
    if number > 1:
        raise ValueError("the line of a grid is the first of its file; --records joins files")
    return facts


def _check_record(record: Any, checked: set[str]) -> None:
    """Refuse what is no record of a cell. `checked` are the signatures of records whose shape is known."""
    signature = _signature(record)
    if not signature or signature not in checked:
        shaped(record, RecordLine)
        checked.add(signature)
    if record.get("search") is not None:
        shaped(record["search"], dict[str, Any], "search")
        candidates = {str(number): each for number, each in enumerate(record["search"]["candidates"])}
        shaped(candidates, dict[str, Candidate], "search")
    for other in record.get("also", ()):
        _check_record(other, checked)
    for name in ("seconds", "seconds_with_parents"):
        _check_seconds(name, record.get(name))
    if {"row", "backbone"} <= record.keys():
        row = record["row"]  # its line of the table is "method", which is "row" or "row/name of the method"
        cell = f"{row}/{record['task']}/{record['backbone']}/{record['seed']}"
        if record["cell"] != cell or not f"{record['method']}/".startswith(f"{row}/"):
            raise ValueError(f"its cell is {record['cell']}, its facts are those of {cell} in {record['method']}")
    metric = record.get("metric")
    if metric is not None and not same(record["value"], record["metrics"].get(metric)):
        raise ValueError(f"its value is {record['value']}, its {metric} {record['metrics'].get(metric)}")


def _check_behind(record: Record, stages: Mapping[str, Record]) -> None:
    """Refuse a record whose list of stages lacks its own or a parent of another: verdicts rest on that list."""
    listed = record.get("stages", [record["key"]])
    parents = {parent for key in listed if key in stages for parent in stages[key]["parents"]}
    if listed[-1:] != [record["key"]] or not parents <= set(listed):
        raise ValueError(f"its stages {', '.join(listed)} are not {record['key']} and all that it was trained from")


def check_stage(record: Record, stage: Record | None) -> None:
    """Refuse a record whose stage has another task, seed or result by its own line.

    Numbers of other computers or code may differ: where files were joined, a record and a line of two files may meet.
    """
    if stage is None:
        return
    own, there = {"task": trained_task(record["task"]), "seed": record["seed"]}, stage
    if alike(record) == alike(stage):
        own, there = own | record["metrics"], stage | stage.get("metrics", {})
        # What takes time or memory differs from run to run.
        own |= {f"measured {name}": value for name, value in record.get("measured", {}).items() if name not in COSTS}
        there |= {f"measured {name}": value for name, value in stage.get("measured", {}).items()}
    for name in own.keys() & there.keys():
        if not same(own[name], there[name]):
            line = f"its stage {stage['key'][:16]} in stages.jsonl"
            raise ValueError(f"its {name} is {own[name]}, and that of {line} {there[name]}")


COSTS = ("evaluation_seconds", "examples_per_second", "peak_memory_bytes")
"""What a record measured of a run, not of its numbers."""
SAME_BITS = ("device", "instruction_set", "threads", "versions")
"""The parts of provenance under which equal keys have equal numbers."""


def alike(record: Record) -> Any:
    """Return what decides the bits of a number beside its key, of a record or a stage's line."""
    return [record["provenance"].get(name) for name in SAME_BITS], record.get("code", {})


def _refuse_foreign(record: Record, grid: GridFacts) -> None:
    """Refuse a record of a row, task, seed or metric that the file's grid does not have."""
    for axis, legal in (("method", grid.rows), ("task", grid.tasks), ("seed", grid.seeds)):
        if record[axis] not in legal:
            raise ValueError(f"{record['cell']} is no cell of the grid {grid.name}, which has no {axis} {record[axis]}")
    if record.get("metric") not in (None, metric := grid.metrics[record["task"]]):
        raise ValueError(f"it shows {record['metric']}, and its column of the grid {grid.name} {metric}")


def _lines(path: Path) -> list[tuple[int, bytes]]:
    """Read the lines of a file with their numbers; none where there is no file."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}). Move it away.") from error
    # Not splitlines(), which also splits at characters that JSON leaves as they are.
    return list(enumerate(content.removesuffix(b"\n").split(b"\n") if content else [], start=1))


def _leave_out(
    path: Path, number: int, error: Exception, left_out: list[LeftOut] | None, whole_file: bool = False
) -> None:
    """Note a line that is no record, or refuse its file where nobody takes such notes."""
    reason = str(error)
    if isinstance(error, json.JSONDecodeError):  # its own text names a line and a column within this line
        reason = f"no whole JSON object: {error.msg}, at character {error.pos + 1}"
    elif isinstance(error, KeyError):
        reason = f"{error.args[0]} is missing"
    line = LeftOut(path, number, reason, whole_file)
    if left_out is None:
        raise InputError(f"{line}. Move the file away.") from error
    left_out.append(line)


def _signature(record: Any) -> str:
    """Write what the check of a record's shape depends on.

    Nearly all of the thousands of lines of a large grid have the signature of an earlier line, and need no check of
    their own. It is '' for what does not look like a record, which is then always checked.
    """
    if not isinstance(record, dict) or not isinstance(record.get("metrics"), dict):
        return ""
    kinds = [[(name, type(value)) for name, value in part.items()] for part in (record, record["metrics"])]
    stages = record.get("stages")
    kinds_of_stages = set(map(type, stages)) if isinstance(stages, list) else None
    return repr((kinds, kinds_of_stages, *(record.get(name) for name in ("provenance", "code", "devices", "activity"))))


def _refuse_unknown_keys(plan: Plan, earlier: Earlier, path: Path) -> None:
    """Refuse to replace records of cells whose data are not prepared here.

    Such a cell has no key yet, so nobody can tell whether the records are its own.
    """
    recorded = {cell for _, cell in earlier}
    unknown = [cell for cell in plan.cells if cell.stage.unprepared and cell.name in recorded]
    if unknown:
        missing = sorted(set().union(*(cell.stage.unprepared for cell in unknown)))
        command = plan.catalogue.command(missing, plan.data_root)
        raise InputError(
            f"{path} holds {len(unknown)} cells whose data are not prepared here, such as {unknown[0].name}, so "
            f"whether they are this plan's cannot be told. {command} prepares them; or name another --results."
        )


def write_aside(others: RecordsFile, results: Path, name: str) -> Path | None:
    """Write records of other plans, and their stages, into a file.

    Its name has a digest of its content, so that it replaces no other one.
    """
    if not others.cells:
        return None
    grid = [] if others.grid is None else [others.grid.as_line()]
    lines = lines_of([*grid, *({"stage": stage} for stage in others.stages.values()), *others.cells.values()])
    path = results / f"{name}.before-{digest(lines)[:12]}.jsonl"
    write_text(path, lines)
    return path


def lines_of(records: Iterable[Record]) -> str:
    """Write records as JSON lines."""
    return "".join(line_of(record) + "\n" for record in records)


line_of = json.JSONEncoder(sort_keys=True, ensure_ascii=False).encode
"""Write a record as a line."""


def cell_record(cell: PlannedCell, records: Mapping[str, Record | None]) -> Record:
    """Build the record of a finished cell from those of its stages.

    It holds the cell's number, every metric, cost, provenance and the keys of the stages behind it.
    """
    record = records[cell.stage.key]
    assert record is not None, "the cell is finished"
    if cell.metric not in record["metrics"]:
        raise InputError(f"{cell.stage.folder} has no {cell.metric}, which {cell.name} should show: {NO_ENTRY}.")
    # The stages behind a number are the cell's own and all those it was trained from. Example: fine-tuning for 10 s
    # after pre-training for 60 s has seconds 10 and seconds_with_parents 70; None where a parent's record was deleted
    # since.
    stages = list(walk(cell.stage))
    there = {stage.key: each for stage in stages if (each := records.get(stage.key)) is not None}
    swapped = [
        folder
        for stage in stages
        if stage.key in there
        for folder in other_weights(there[stage.key], {p.folder: there[p.key] for p in stage.parents if p.key in there})
    ]
    lost = sorted(_lost(cell.stage, record) - there.keys())
    return {
        "key": cell.stage.key,
        "cell": cell.name,
        "row": cell.row,
        "method": cell.method,
        "task": cell.task,
        "backbone": cell.backbone,
        "seed": cell.seed,
        "metric": cell.metric,
        "value": record["metrics"][cell.metric],
        "metrics": record["metrics"],
        "measured": record["measured"],
        "seconds": record["seconds"],
        "seconds_with_parents": round(sum(each["seconds"] for each in there.values()), 3)
        if len(there) + len(lost) == len(stages)
        else None,
        "stages": [stage.key for stage in stages],
        **({"diverged": lost} if lost else {}),
        "search": record.get("search"),
        "code": record.get("code", {}),
        "activity": _activity(cell.stage, there),
        "other_weights": sorted(set(swapped)),
        "devices": sorted({_kind(stage["provenance"]) for stage in there.values()}),
        "provenance": record["provenance"],
    }


def _lost(stage: Stage, record: Record) -> set[str]:
    """Return the keys of what candidates of a search that diverged would have needed; they may have no records."""
    if not isinstance(stage, Selected):
        return set()
    lost = [number for number, facts in enumerate(record["search"].get("candidates", ())) if "diverged" in facts]
    roots = [each for number in lost for each in (stage.candidates[number], *stage.finals[number].parents)]
    return {each.key for each in walk(*roots)}


def missing_stages(record: Record, stages: Mapping[str, Record]) -> set[str]:
    """Return the keys of stages behind a cell that `stages` lacks, but for those that diverged and have no record."""
    # Not a difference of sets: one with `stages.keys()` reads all of the keys, for each of the cells.
    behind = {key for key in record.get("stages", (record["key"],)) if key not in stages}
    return behind - set(record.get("diverged", ()))


def stage_record(stage: Stage, record: Record) -> Record:
    """Build the line of a stage: what it computes, what that took, and where it came from.

    Other stages in its `spec` stand as their keys.
    """
    facts = ("metrics", "measured", "activity", "parameters", "steps", "seconds", "attempt", "date", "search", "code")
    return {
        "key": stage.key,
        "name": stage.name,
        "task": stage.data.task,
        "seed": stage.seed,
        "parents": [parent.key for parent in stage.parents],
        "spec": canonical_data(stage),
        "weights": record["weights"]["sha256"],
        **{name: record[name] for name in (*facts, "provenance") if name in record},
    }


def stage_hours(stage: Record) -> float:
    """Return what a stage cost: hours of its GPU, or of its cores.

    Example: 1800 s on a CPU with 4 threads are 2 core-hours.
    """
    provenance = stage.get("provenance", {})
    units = provenance.get("threads", 1) if provenance.get("device_type", "cpu") == "cpu" else 1
    return float(stage["seconds"] * units / 3600)


def evaluation_untimed(stages: Iterable[Record]) -> int:
    """Count evaluated stages whose seconds are those of training alone.

    They were computed by code that did not time evaluation.
    """
    return sum(whole_seconds(stage) is None for stage in stages)


def _activity(last: Stage, records: Mapping[str, Record]) -> dict[str, Any]:
    """Return what the parts of a cell's method did; those of stages before its own under `stage.part`."""
    activity: dict[str, Any] = {}
    for stage in _lineage(last, records):
        prefix = "" if stage is last else f"{stage.name}."
        parts = records.get(stage.key, {}).get("activity", {})
        activity |= {f"{prefix}{name}": part for name, part in parts.items()}
    return activity


def _lineage(stage: Stage, records: Mapping[str, Record]) -> Iterator[Stage]:
    """Yield a stage and those it was trained from, parents first.

    What a search tried and did not choose is not among them. Example: for tapt, searched among two rates, it yields
    the further_pretrain of the chosen fine-tuning and the fine-tuning itself, but neither of the two trials.
    """
    trained: Stage | None = stage
    if isinstance(stage, Selected):
        trained = stage.finals[records[stage.key]["search"]["chosen"]] if stage.key in records else None
    for parent in trained.parents if trained is not None else ():
        yield from _lineage(parent, records)
    yield stage


def _kind(provenance: dict[str, Any]) -> str:
    """Name what a stage ran on: any CPU, or a GPU's model.

    Records from before GPUs name no type.
    """
    return "CPU" if provenance.get("device_type", "cpu") == "cpu" else str(provenance["device"])
