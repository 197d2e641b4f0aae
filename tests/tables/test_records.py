"""A published number is never lost or replaced by less: the records file keeps it, moves it aside, or argues."""

import errno
import json
import os
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import filelock
import pytest

from bench import grid
from bench.errors import InputError
from bench.planning.plan import Plan, code_span, make_plan
from bench.store.files import sha256
from bench.store.store import Store
from bench.tables.command import write_tables
from bench.tables.records import read_records
from bench.tables.table import Results, collate
from tests import tiny_grid

PROVENANCE = {"device": "A processor", "device_type": "cpu", "commit": "c", "instruction_set": "AVX2", "threads": 1}


class Place:
    """A grid of two rows, two tasks and two seeds, its results, and stores with made-up records."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder, self.data, self.results = folder, data, folder / "results"
        text = tiny_grid.write(folder, ["finetune", "mars"]).read_text()
        self.gin = folder / "tiny.gin"
        self.gin.write_text(text.replace("grid.seeds = [0]", "grid.seeds = [0, 1]"))

    def plan(self, store: Store, *overrides: str) -> Plan:
        return make_plan([str(self.gin)], overrides, [], self.data, store)

    def store(
        self,
        name: str,
        cells: Sequence[int],
        accuracy: float = 0.5,
        overrides: Sequence[str] = (),
        **metrics: float,
    ) -> Store:
        """A store that holds the cells at these positions of the plan."""
        store = Store(self.folder / name)
        store.root.mkdir()
        plan = self.plan(store, *overrides)
        for stage in plan.stages:
            store.add(stage)
        for number in cells:
            stage = plan.cells[number].stage
            attempt = store.claim(stage)
            assert attempt is not None
            path = store.folder(stage) / "weights.safetensors"
            path.write_bytes(b"weights")
            weights = {"file": path.name, "sha256": sha256(path), "bytes": 7}
            facts = {"metrics": {"accuracy": accuracy, **metrics}, "measured": {}, "seconds": 1.0}
            facts["provenance"] = PROVENANCE
            store.publish(attempt, stage, {"key": stage.key, "weights": weights, **facts})
        return store

    def collate(self, store: Store, *overrides: str) -> tuple[int, Path | None]:
        """Write the tables; how many cells they have, and where the file's other records went."""
        results = collate(self.plan(store, *overrides), store, self.results)
        return len(results.records), results.write()

    def written(self, name: str = "tiny") -> dict[tuple[str, str], dict[str, Any]]:
        return read_records(self.results / name / "records.jsonl")


def cell_of(path: Path) -> dict[str, Any]:
    """The one cell of a records file."""
    record: dict[str, Any] = json.loads(path.read_text().removesuffix("\n").split("\n")[-1])
    return record


@pytest.fixture
def place(prepared: Path, tmp_path: Path) -> Place:
    return Place(tmp_path, prepared)


def test_an_empty_store_and_a_part_of_the_cells_lose_nothing(place: Place) -> None:
    full = place.store("full", range(8))
    place.collate(full)
    before, table = place.written(), (place.results / "tiny.md").read_text()
    assert len(before) == 8
    for name, cells in (("empty", []), ("part", [0, 3])):
        store = place.store(name, cells)
        assert place.collate(store) == (8, None)
        assert place.written() == before
        assert (place.results / "tiny.md").read_text() == table


def test_a_table_without_a_number_is_gone_on_with(place: Place) -> None:
    for name, cells in (("none", []), ("one", [0])):
        store = place.store(name, cells)
        assert place.collate(store) == (len(cells), None)


def test_parts_computed_in_two_stores_make_one_table(place: Place) -> None:
    for name, cells in (("first", [0, 1, 2]), ("second", [2, 5])):
        store = place.store(name, cells)
        done, _ = place.collate(store)
    assert done == 4
    order = [cell.name for cell in place.plan(store).cells]
    assert [cell for _, cell in place.written()] == [order[number] for number in (0, 1, 2, 5)]


def test_records_of_another_plan_move_to_a_file_of_their_own(place: Place) -> None:
    store = place.store("one", range(8))
    place.collate(store)
    before = place.written()
    place.gin.write_text(place.gin.read_text().replace("finetune.steps = 4", "finetune.steps = 5"))
    other = place.store("other", range(8), accuracy=0.7)
    for _ in range(2):  # a second time there is nothing left to move
        _, set_aside = place.collate(other)
    assert set_aside is None
    (aside,) = place.results.glob("tiny.before-*.jsonl")
    assert read_records(aside) == before
    assert {record["value"] for record in place.written().values()} == {0.7}


def test_store_and_file_that_disagree_are_refused_and_nothing_is_written(place: Place) -> None:
    store = place.store("one", range(8))
    place.collate(store)
    before = {path: path.read_bytes() for path in place.results.rglob("*") if path.is_file()}
    other = place.store("other", [1], accuracy=0.7)
    with pytest.raises(InputError, match=r"says 0\.5 for finetune/digits/photos_mae/1, the store 0\.7"):
        place.collate(other)
    assert {path: path.read_bytes() for path in place.results.rglob("*") if path.is_file()} == before


def test_records_whose_data_are_not_prepared_are_not_replaced(place: Place, tmp_path: Path) -> None:
    store = place.store("one", range(8))
    place.collate(store)
    before = (place.results / "tiny" / "records.jsonl").read_bytes()
    place.data = tmp_path / "nothing prepared"
    empty = Store(tmp_path / "runs")
    with pytest.raises(InputError, match=r"holds 8 cells whose data are not prepared here"):
        place.collate(empty)
    assert (place.results / "tiny" / "records.jsonl").read_bytes() == before


def test_a_cell_that_stands_twice_with_other_values_is_refused(place: Place) -> None:
    store = place.store("one", [0])
    place.collate(store)
    path = place.results / "tiny" / "records.jsonl"
    grid_line, line = path.read_text().splitlines(keepends=True)
    path.write_text(grid_line + line + line)
    assert len(read_records(path)) == 1
    path.write_text(grid_line + line + line.replace('"seconds": 1.0', '"seconds": 2.0'))
    with pytest.raises(InputError, match=r"records\.jsonl:3: .*with other values"):
        place.collate(store)


@pytest.mark.parametrize("line", ["{", "[]", "7", '{"key": "a"}', '{"key": "a", "cell": "b"}'])
def test_a_file_that_holds_anything_else_is_refused_by_line(line: str, place: Place) -> None:
    store = place.store("one", [0])
    place.collate(store)
    path = place.results / "tiny" / "records.jsonl"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(InputError, match=r"records\.jsonl:3: not a record"):
        place.collate(store)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ([], "tiny"),
        (["slurm.partition = 'low'", "grid.threads = 2", "grid.cuda_graphs = False"], "tiny"),
        (["finetune.steps = 5", "grid.name = 'longer'"], "longer"),
        (["finetune.steps = 5"], None),
        (["grid.seeds = [0]"], None),
    ],
)
def test_what_the_command_line_changes_has_tables_of_its_own(
    overrides: list[str], named: str | None, place: Place, tmp_path: Path
) -> None:
    plan = place.plan(Store(tmp_path / "runs"), *overrides)
    if named is not None:
        assert plan.table_name == named
        return
    name, plus, digest = plan.table_name.partition("+")
    assert (name, plus, len(digest)) == ("tiny", "+", 8)
    assert plan.table_name == place.plan(Store(tmp_path / "runs"), *overrides).table_name
    store = place.store("changed", [0], overrides=overrides)
    place.collate(store, *overrides)
    assert len(place.written(plan.table_name)) == 1
    assert not (place.results / "tiny.md").exists()
    assert (place.results / f"{plan.table_name}.md").read_text().startswith(f"# {plan.table_name}\n")


def test_records_are_one_line_each_whatever_they_hold(place: Place) -> None:
    store = place.store("one", [0])
    place.collate(store)
    path = place.results / "tiny" / "records.jsonl"
    record = cell_of(path)
    record["row"] = "a\u2028b\x85c"
    path.write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")
    assert [kept["row"] for kept in read_records(path).values()] == ["a\u2028b\x85c"]


@pytest.mark.parametrize(
    ("field", "damaged"),
    [
        *(("value", damaged) for damaged in (None, "0.5", [], True, 5)),
        *(("metrics", damaged) for damaged in ({}, {"accuracy": 0.6}, {"accuracy": None})),
        *(("provenance", damaged) for damaged in (None, {}, {**PROVENANCE, "threads": "1"})),
        *(("code", []), ("code", None), ("devices", 5), ("method", []), ("search", 5), ("search", {})),
        *(("search", {"candidates": damaged}) for damaged in (5, [5], [{}])),
    ],
)
def test_a_field_of_another_shape_is_refused_by_line(field: str, damaged: Any, place: Place) -> None:
    place.collate(place.store("one", [0]))
    path = place.results / "tiny" / "records.jsonl"
    path.write_text(json.dumps({**cell_of(path), field: damaged}) + "\n")
    with pytest.raises(InputError, match=r"records\.jsonl:1: not a record"):
        place.collate(place.store("empty", []))


def test_a_damaged_name_never_counts_for_another_cell(place: Place) -> None:
    place.collate(place.store("one", [0]))
    path, table = place.results / "tiny" / "records.jsonl", (place.results / "tiny.md").read_text()
    before = path.read_text()
    path.write_text(json.dumps({**cell_of(path), "method": "mars", "task": "pydocs", "seed": 1}) + "\n")
    place.collate(place.store("empty", []))
    assert (place.results / "tiny.md").read_text() == table
    assert path.read_text() == before


def test_a_number_of_the_file_is_that_of_the_metric_asked_for(place: Place) -> None:
    place.collate(place.store("one", [0]))
    path = place.results / "tiny" / "records.jsonl"
    record = cell_of(path)
    record["metrics"]["macro_f1"] = 0.25
    path.write_text(json.dumps(record) + "\n")
    other = ("digits/task.metric = 'macro_f1'", "grid.name = 'tiny'")
    assert place.collate(place.store("empty", []), *other) == (1, None)
    assert [(record["metric"], record["value"]) for record in place.written().values()] == [("macro_f1", 0.25)]
    assert "25.00" in (place.results / "tiny.md").read_text()
    with pytest.raises(InputError, match=r"has no micro_f1 of finetune/digits"):
        place.collate(place.store("nothing", []), "digits/task.metric = 'micro_f1'", "grid.name = 'tiny'")


def test_a_result_of_before_that_measured_less_is_the_same_result(place: Place) -> None:
    place.collate(place.store("one", [0]))
    path = place.results / "tiny" / "records.jsonl"
    record = cell_of(path)
    # What the file has and the store lacks, or the other way round, is no disagreement; the store's record counts.
    for metrics in ({"accuracy": 0.5, "older": 0.1}, {"accuracy": 0.5}):
        path.write_text(json.dumps({**record, "metrics": metrics}) + "\n")
        assert place.collate(place.store(f"again, {len(metrics)}", [0])) == (1, None)
        assert [each["metrics"] for each in place.written().values()] == [{"accuracy": 0.5}]
    with pytest.raises(InputError, match="two results"):
        place.collate(place.store("other", [0], accuracy=0.6))


def test_a_record_of_before_without_the_metric_says_what_computes_it(place: Place) -> None:
    with pytest.raises(InputError, match=r"finetune-digits-\w+ has no mcc.*--again"):
        place.collate(place.store("one", [0]), "digits/task.metric = 'mcc'")


def test_a_loss_is_shown_as_it_is_and_its_direction_told(place: Place) -> None:
    place.collate(place.store("one", [0, 1], loss=1.25), "digits/task.metric = 'loss'", "grid.name = 'tiny'")
    text = (place.results / "tiny.md").read_text()
    assert "1.25 ± 0.00 (2)" in text
    assert "- Metric, in percent: pydocs: accuracy.\n" in text
    assert "- Metric, not in percent: digits: cross-entropy (lower is better).\n" in text


def test_a_run_refuses_such_a_file_before_it_begins(place: Place) -> None:
    path = place.results / "tiny" / "records.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("{\n")
    arguments = ["--gin", str(place.gin), "--data", str(place.data), "--results", str(place.results)]
    with pytest.raises(InputError, match=r"records\.jsonl:1"):
        grid.main([*arguments, "--store", str(place.folder / "runs"), "--device", "cpu", "--launcher", "inline"])
    assert not (place.folder / "runs").exists()


def test_a_full_results_disk_is_named_and_the_table_printed_all_the_same(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = place.store("one", [0])

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("bench.tables.table.write_text", fail)
    with pytest.raises(OSError, match=re.escape(str(place.results)) + ".*No space left"):
        write_tables(place.plan(store), store, place.results)
    assert "| 50.00 (1/2)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text", ["a | b", "<script>alert(1)</script>", "`x` and ``y``", "two\nlines", "**bold** [a](b) $x$", "\\end{x}"]
)
def test_what_the_command_line_set_stands_in_the_legend_as_code(text: str) -> None:
    span = code_span(f"grid.name = '{text}'")
    fence = span[: len(span) - len(span.lstrip("`"))]
    assert "\n" not in span
    assert span.endswith(fence)
    assert fence not in span.strip("`").replace(fence + "`", "")


def test_two_grids_that_end_at_once_lose_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = place.store("first", [0]), place.store("second", [1])
    other = threading.Thread(target=write_tables, args=(place.plan(second), second, place.results))
    write = Results.write

    def write_while_another_ends(results: Results) -> Path | None:
        if threading.current_thread() is not other:
            other.start()
            other.join(0.5)  # it waits for its turn; else it would have written by now, and what follows replace that
        return write(results)

    monkeypatch.setattr(Results, "write", write_while_another_ends)
    write_tables(place.plan(first), first, place.results)
    other.join()
    assert len(place.written()) == 2


def test_tables_are_written_where_the_file_system_has_no_locks(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise NotImplementedError("this file system has no flock")

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    store = place.store("one", [0])
    write_tables(place.plan(store), store, place.results)
    assert len(place.written()) == 1
