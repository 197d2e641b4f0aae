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


class Workspace:
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
def workspace(prepared: Path, tmp_path: Path) -> Workspace:
    return Workspace(tmp_path, prepared)


def test_an_empty_store_and_a_part_of_the_cells_lose_nothing(workspace: Workspace) -> None:
    full = workspace.store("full", range(8))
    workspace.collate(full)
    before, table = workspace.written(), (workspace.results / "tiny.md").read_text()
    assert len(before) == 8
    for name, cells in (("empty", []), ("part", [0, 3])):
        store = workspace.store(name, cells)
        assert workspace.collate(store) == (8, None)
        assert workspace.written() == before
        assert (workspace.results / "tiny.md").read_text() == table


def test_a_table_without_a_number_is_gone_on_with(workspace: Workspace) -> None:
    for name, cells in (("none", []), ("one", [0])):
        store = workspace.store(name, cells)
        assert workspace.collate(store) == (len(cells), None)


def test_parts_computed_in_two_stores_make_one_table(workspace: Workspace) -> None:
    for name, cells in (("first", [0, 1, 2]), ("second", [2, 5])):
        store = workspace.store(name, cells)
        done, _ = workspace.collate(store)
    assert done == 4
    order = [cell.name for cell in workspace.plan(store).cells]
    assert [cell for _, cell in workspace.written()] == [order[number] for number in (0, 1, 2, 5)]


def test_records_of_another_plan_move_to_a_file_of_their_own(workspace: Workspace) -> None:
    store = workspace.store("one", range(8))
    workspace.collate(store)
    before = workspace.written()
    workspace.gin.write_text(workspace.gin.read_text().replace("finetune.steps = 4", "finetune.steps = 5"))
    other = workspace.store("other", range(8), accuracy=0.7)
    for _ in range(2):  # a second time there is nothing left to move
        _, set_aside = workspace.collate(other)
    assert set_aside is None
    (aside,) = workspace.results.glob("tiny.before-*.jsonl")
    assert read_records(aside) == before
    assert {record["value"] for record in workspace.written().values()} == {0.7}


def test_store_and_file_that_disagree_are_refused_and_nothing_is_written(workspace: Workspace) -> None:
    store = workspace.store("one", range(8))
    workspace.collate(store)
    before = {path: path.read_bytes() for path in workspace.results.rglob("*") if path.is_file()}
    other = workspace.store("other", [1], accuracy=0.7)
    with pytest.raises(InputError, match=r"says 0\.5 for finetune/digits/photos_mae/1, the store 0\.7"):
        workspace.collate(other)
    assert {path: path.read_bytes() for path in workspace.results.rglob("*") if path.is_file()} == before


def test_records_whose_data_are_not_prepared_are_not_replaced(workspace: Workspace, tmp_path: Path) -> None:
    store = workspace.store("one", range(8))
    workspace.collate(store)
    before = (workspace.results / "tiny" / "records.jsonl").read_bytes()
    workspace.data = tmp_path / "nothing prepared"
    empty = Store(tmp_path / "runs")
    with pytest.raises(InputError, match=r"holds 8 cells whose data are not prepared here"):
        workspace.collate(empty)
    assert (workspace.results / "tiny" / "records.jsonl").read_bytes() == before


def test_a_cell_that_stands_twice_with_other_values_is_refused(workspace: Workspace) -> None:
    store = workspace.store("one", [0])
    workspace.collate(store)
    path = workspace.results / "tiny" / "records.jsonl"
    grid_line, line = path.read_text().splitlines(keepends=True)
    path.write_text(grid_line + line + line)
    assert len(read_records(path)) == 1
    path.write_text(grid_line + line + line.replace('"seconds": 1.0', '"seconds": 2.0'))
    with pytest.raises(InputError, match=r"records\.jsonl:3: .*with other values"):
        workspace.collate(store)


@pytest.mark.parametrize("line", ["{", "[]", "7", '{"key": "a"}', '{"key": "a", "cell": "b"}'])
def test_a_file_that_holds_anything_else_is_refused_by_line(line: str, workspace: Workspace) -> None:
    store = workspace.store("one", [0])
    workspace.collate(store)
    path = workspace.results / "tiny" / "records.jsonl"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(InputError, match=r"records\.jsonl:3: not a record"):
        workspace.collate(store)


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
    overrides: list[str], named: str | None, workspace: Workspace, tmp_path: Path
) -> None:
    plan = workspace.plan(Store(tmp_path / "runs"), *overrides)
    if named is not None:
        assert plan.table_name == named
        return
    name, plus, digest = plan.table_name.partition("+")
    assert (name, plus, len(digest)) == ("tiny", "+", 8)
    assert plan.table_name == workspace.plan(Store(tmp_path / "runs"), *overrides).table_name
    store = workspace.store("changed", [0], overrides=overrides)
    workspace.collate(store, *overrides)
    assert len(workspace.written(plan.table_name)) == 1
    assert not (workspace.results / "tiny.md").exists()
    assert (workspace.results / f"{plan.table_name}.md").read_text().startswith(f"# {plan.table_name}\n")


def test_records_are_one_line_each_whatever_they_hold(workspace: Workspace) -> None:
    store = workspace.store("one", [0])
    workspace.collate(store)
    path = workspace.results / "tiny" / "records.jsonl"
    record = cell_of(path)
    record["row"] = record["method"] = "a\u2028b\x85c"
    record["cell"] = record["cell"].replace("finetune", record["row"])
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
        *(("cell", damaged) for damaged in ("finetune/digits/photos_mae/1", "tapt/digits/photos_mae/0", "")),
        *(("stages", damaged) for damaged in ([], ["0" * 16])),
    ],
)
def test_a_field_of_another_shape_is_refused_by_line(field: str, damaged: Any, workspace: Workspace) -> None:
    workspace.collate(workspace.store("one", [0]))
    path = workspace.results / "tiny" / "records.jsonl"
    path.write_text(json.dumps({**cell_of(path), field: damaged}) + "\n")
    with pytest.raises(InputError, match=r"records\.jsonl:1: not a record"):
        workspace.collate(workspace.store("empty", []))


def test_a_damaged_name_never_counts_for_another_cell(workspace: Workspace) -> None:
    workspace.collate(workspace.store("one", [0]))
    path, table = workspace.results / "tiny" / "records.jsonl", (workspace.results / "tiny.md").read_text()
    record = cell_of(path)
    store = workspace.store("empty", [])
    for damaged in ({"method": "mars"}, {"task": "pydocs"}, {"seed": 1}, {"backbone": "docs_mlm"}):
        path.write_text(json.dumps({**record, **damaged}) + "\n")
        before = path.read_text()
        with pytest.raises(InputError, match=r"records\.jsonl:1: not a record"):
            workspace.collate(store)
        assert (workspace.results / "tiny.md").read_text() == table
        assert path.read_text() == before


def test_a_number_of_the_file_is_that_of_the_metric_asked_for(workspace: Workspace) -> None:
    workspace.collate(workspace.store("one", [0]))
    path = workspace.results / "tiny" / "records.jsonl"
    record = cell_of(path)
    record["metrics"]["macro_f1"] = 0.25
    path.write_text(json.dumps(record) + "\n")
    other = ("digits/task.metric = 'macro_f1'", "grid.name = 'tiny'")
    assert workspace.collate(workspace.store("empty", []), *other) == (1, None)
    assert [(record["metric"], record["value"]) for record in workspace.written().values()] == [("macro_f1", 0.25)]
    assert "25.00" in (workspace.results / "tiny.md").read_text()
    with pytest.raises(InputError, match=r"has no micro_f1 of finetune/digits"):
        workspace.collate(workspace.store("nothing", []), "digits/task.metric = 'micro_f1'", "grid.name = 'tiny'")


def test_a_result_of_before_that_measured_less_is_the_same_result(workspace: Workspace) -> None:
    workspace.collate(workspace.store("one", [0]))
    path = workspace.results / "tiny" / "records.jsonl"
    record = cell_of(path)
    # What the file has and the store lacks, or the other way round, is no disagreement; the store's record counts.
    for metrics in ({"accuracy": 0.5, "older": 0.1}, {"accuracy": 0.5}):
        path.write_text(json.dumps({**record, "metrics": metrics}) + "\n")
        assert workspace.collate(workspace.store(f"again, {len(metrics)}", [0])) == (1, None)
        assert [each["metrics"] for each in workspace.written().values()] == [{"accuracy": 0.5}]
    with pytest.raises(InputError, match="two results"):
        workspace.collate(workspace.store("other", [0], accuracy=0.6))


def test_a_record_of_before_without_the_metric_says_what_computes_it(workspace: Workspace) -> None:
    with pytest.raises(InputError, match=r"finetune-digits-\w+ has no mcc.*--again"):
        workspace.collate(workspace.store("one", [0]), "digits/task.metric = 'mcc'")


def test_a_loss_is_shown_as_it_is_and_its_direction_told(workspace: Workspace) -> None:
    workspace.collate(workspace.store("one", [0, 1], loss=1.25), "digits/task.metric = 'loss'", "grid.name = 'tiny'")
    text = (workspace.results / "tiny.md").read_text()
    assert "1.25 ± 0.00 (2)" in text
    assert "- Metric, in percent: pydocs: accuracy.\n" in text
    assert "- Metric, not in percent: digits: cross-entropy (lower is better).\n" in text


def test_a_run_refuses_such_a_file_before_it_begins(workspace: Workspace) -> None:
    path = workspace.results / "tiny" / "records.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("{\n")
    arguments = ["--gin", str(workspace.gin), "--data", str(workspace.data), "--results", str(workspace.results)]
    with pytest.raises(InputError, match=r"records\.jsonl:1"):
        grid.main([*arguments, "--store", str(workspace.folder / "runs"), "--device", "cpu", "--launcher", "inline"])
    assert not (workspace.folder / "runs").exists()


def test_a_full_results_disk_is_named_and_the_table_printed_all_the_same(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = workspace.store("one", [0])

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("bench.tables.table.write_text", fail)
    with pytest.raises(OSError, match=re.escape(str(workspace.results)) + ".*No space left"):
        write_tables(workspace.plan(store), store, workspace.results)
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


def test_two_grids_that_end_at_once_lose_nothing(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = workspace.store("first", [0]), workspace.store("second", [1])
    other = threading.Thread(target=write_tables, args=(workspace.plan(second), second, workspace.results))
    write = Results.write

    def write_while_another_ends(results: Results) -> Path | None:
        if threading.current_thread() is not other:
            other.start()
            other.join(0.5)  # it waits for its turn; else it would have written by now, and what follows replace that
        return write(results)

    monkeypatch.setattr(Results, "write", write_while_another_ends)
    write_tables(workspace.plan(first), first, workspace.results)
    other.join()
    assert len(workspace.written()) == 2


def test_tables_are_written_where_the_file_system_has_no_locks(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise NotImplementedError("this file system has no flock")

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    store = workspace.store("one", [0])
    write_tables(workspace.plan(store), store, workspace.results)
    assert len(workspace.written()) == 1
