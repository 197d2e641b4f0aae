"""Numbers of other code are told, and `--again` computes cells anew without losing or mixing anything."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import grid, status
from bench.errors import InputError
from bench.launch.again import set_aside
from bench.monitor.states import Finished, look
from bench.planning.plan import Plan, PlannedCell, make_plan
from bench.specs import Stage, walk
from bench.store import code
from bench.store.files import digest
from bench.store.store import Store
from bench.tables import command
from bench.tables.records import read_records
from tests import tiny_grid
from tests.scale import fill

Edit = Callable[[str], None]


class Workspace:
    """A grid of two rows on one task, run inline."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.gin = tiny_grid.write(folder, ["finetune", "mars"])
        self.gin.write_text(self.gin.read_text().replace("['digits', 'pydocs']", "['digits']"))
        self.data, self.store, self.results = data, Store(folder / "runs"), folder / "results"

    def arguments(self, *more: str) -> list[str]:
        folders = ["--store", str(self.store.root), "--data", str(self.data), "--results", str(self.results)]
        return ["--gin", str(self.gin), *folders, *more]

    def run(self, *more: str) -> int:
        return grid.main(self.arguments("--launcher", "inline", *more))

    def plan(self, *again: str) -> Plan:
        return make_plan([str(self.gin)], [], [], self.data, self.store, again)

    def cell(self, row: str) -> PlannedCell:
        return next(cell for cell in self.plan().cells if cell.row == row)

    def value(self, row: str) -> float:
        records = read_records(self.results / "tiny" / "records.jsonl")
        return float(records[self.cell(row).stage.key, self.cell(row).name]["value"])


@pytest.fixture(scope="module")
def finished(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the grid has run."""
    workspace = Workspace(tmp_path_factory.mktemp("again"), prepared)
    assert workspace.run() == 0
    return workspace.gin.parent


@pytest.fixture
def workspace(finished: Path, prepared: Path, tmp_path: Path) -> Workspace:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return Workspace(tmp_path, prepared)


@pytest.fixture
def edit(monkeypatch: pytest.MonkeyPatch) -> Edit:
    """Make the code of a class another one than that of the records."""
    today = code.today
    edited: set[str] = set()
    monkeypatch.setattr(code, "today", lambda name: "0" * 16 if name in edited else today(name))
    return edited.add


def forge(workspace: Workspace, row: str, accuracy: float) -> None:
    """Make the number of a cell another one, in store and table: what older code computed."""
    path = workspace.store.folder(workspace.cell(row).stage) / "record.json"
    record: dict[str, Any] = json.loads(path.read_text())
    del record["digest"]
    record["metrics"]["accuracy"] = accuracy
    path.write_text(json.dumps({**record, "digest": digest(record)}))
    for table in (workspace.results / "tiny.md", workspace.results / "tiny" / "records.jsonl"):
        table.unlink()
    assert workspace.run() == 0
    assert workspace.value(row) == accuracy


def test_a_record_names_its_code_and_what_it_began_with(workspace: Workspace) -> None:
    record = workspace.store.record(workspace.cell("mars").stage)
    assert record is not None
    (parent,) = workspace.cell("mars").stage.parents
    before = workspace.store.record(parent)
    assert before is not None
    assert record["parents"] == {parent.folder: before["weights"]["sha256"]}
    assert {"loop", "MarsProjection", "MaskedAutoEncoding"} <= record["code"].keys()
    assert code.other_code(record["code"]) == []


def test_other_code_is_told_by_plan_status_and_legend(
    workspace: Workspace, edit: Edit, capsys: pytest.CaptureFixture[str]
) -> None:
    quiet = (
        grid.main(workspace.arguments("--plan")),
        status.main(workspace.arguments()),
        command.main(workspace.arguments()),
    )
    assert quiet == (0, 0, 0)
    assert "other code" not in capsys.readouterr().out
    edit("MarsProjection")
    assert workspace.plan().outdated == {workspace.cell("mars").stage.key: "other code of MarsProjection"}
    for main, arguments in ((grid.main, ["--plan"]), (status.main, []), (command.main, [])):
        assert main(workspace.arguments(*arguments)) == 0
        assert "MarsProjection" in capsys.readouterr().out
    assert "MarsProjection (1)" in (workspace.results / "tiny.md").read_text()


def test_plan_and_status_tell_of_all_that_rests_on_other_weights(prepared: Path, tmp_path: Path) -> None:
    # further pre-training -> distillation -> fine-tuning: the first was computed anew, to other weights.
    store = Store(tmp_path / "runs")
    stages = tiny_grid.plan(tmp_path, prepared, ["self_distillation"]).stages
    fill(store, stages)
    first = next(stage for stage in stages if stage.name == "further_pretrain")
    path = store.folder(first) / "record.json"
    record: dict[str, Any] = json.loads(path.read_text())
    del record["digest"]
    record["weights"]["sha256"] = "0" * 64
    path.write_text(json.dumps({**record, "digest": digest(record)}))
    plan = tiny_grid.plan(tmp_path, prepared, ["self_distillation"])
    resting = [stage for stage in stages if first in walk(stage) and stage != first]
    assert [stage.name for stage in resting] == ["self_distill_1", "finetune"]
    assert plan.outdated == {stage.key: f"other weights of {first.folder}" for stage in resting}
    done: Finished = {}
    for _ in range(2):  # a second look reads no finished stage again
        assert look(plan, store, done).outdated == plan.outdated


def test_what_rests_on_other_code_is_told_across_stages_that_were_deleted(prepared: Path, tmp_path: Path) -> None:
    stages = tiny_grid.plan(tmp_path, prepared, ["self_distillation"]).stages
    last = next(stage for stage in reversed(stages) if stage.name == "finetune")
    first = next(stage for stage in walk(last) if stage.name == "further_pretrain")
    assert first not in last.parents
    weights = {"sha256": "0" * 64}
    records = {first.key: {"code": {"Gone": ["0"]}, "weights": weights}, last.key: {"code": {}, "weights": weights}}
    assert code.outdated(stages, records) == dict.fromkeys(records, "other code of Gone")


def test_again_runs_what_is_outdated_behind_a_cell_and_all_that_starts_from_it(
    workspace: Workspace, edit: Edit
) -> None:
    finetune, mars = workspace.cell("finetune").stage, workspace.cell("mars").stage
    assert workspace.plan("finetune/*").again == [finetune]
    edit("MarsProjection")
    assert workspace.plan("mars/*").again == [mars]
    edit("MaskedAutoEncoding")
    assert workspace.plan("finetune/*").again == workspace.plan().stages
    assert workspace.plan("finetune/*").to_run(retry=False) == workspace.plan().stages


def test_again_replaces_the_number_and_keeps_the_old_one(workspace: Workspace, edit: Edit) -> None:
    true = workspace.value("mars")
    forge(workspace, "mars", 0.123)
    edit("MarsProjection")
    untouched = workspace.value("finetune")
    assert workspace.run("--again", "mars/*") == 0
    assert (workspace.value("mars"), workspace.value("finetune")) == (true, untouched)
    assert workspace.plan().outdated == {}
    (aside,) = workspace.store.root.glob(f"{workspace.cell('mars').stage.folder}.before-*")
    assert json.loads((aside / "record.json").read_text())["metrics"]["accuracy"] == 0.123
    (records,) = workspace.results.glob("tiny.before-*.jsonl")
    assert [record["value"] for record in read_records(records).values()] == [0.123]
    assert command.main(workspace.arguments()) == 0


def test_a_number_that_only_the_table_holds_is_replaced_too(workspace: Workspace, tmp_path: Path) -> None:
    true = workspace.value("mars")
    forge(workspace, "mars", 0.123)
    workspace.store = Store(tmp_path / "another store")
    assert workspace.run("--again", "mars/*") == 0
    assert workspace.value("mars") == true


def test_a_number_set_aside_is_told_until_there_is_a_new_one(workspace: Workspace) -> None:
    true = workspace.value("mars")
    workspace.store.set_aside(workspace.cell("mars").stage)  # and the run that follows is killed
    assert command.main(workspace.arguments()) == 0
    assert workspace.value("mars") == true
    warning = "Warning: 1 cells show numbers that --again set aside"
    assert warning in (workspace.results / "tiny.md").read_text()
    assert workspace.run() == 0
    assert warning not in (workspace.results / "tiny.md").read_text()


def test_other_weights_of_a_parent_are_told(workspace: Workspace) -> None:
    (parent,) = workspace.cell("mars").stage.parents
    path = workspace.store.folder(parent) / "record.json"
    record = json.loads(path.read_text())
    del record["digest"]
    record["weights"]["sha256"] = "0" * 64
    path.write_text(json.dumps({**record, "digest": digest(record)}))
    reason = f"other weights of {parent.folder}"
    assert set(workspace.plan().outdated.values()) == {reason}
    assert len(workspace.plan().outdated) == 2
    assert command.main(workspace.arguments()) == 0
    assert "Warning: 2 cells" in (workspace.results / "tiny.md").read_text()


def test_a_stage_that_runs_is_not_set_aside(workspace: Workspace) -> None:
    stage = workspace.cell("mars").stage
    (workspace.store.folder(stage) / "record.json").unlink()
    assert workspace.store.claim(stage) is not None  # by this process, which lives
    with pytest.raises(InputError, match=f"{stage.folder} is running"):
        workspace.run("--again", "*")
    assert not list(workspace.store.root.glob("*.before-*"))


def test_a_stage_that_begins_meanwhile_is_not_set_aside(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another grid begins the second stage after all were looked at and the first was set aside."""
    second, first = workspace.plan("*").again[-2:]
    set_aside = Store.set_aside

    def then_begin(store: Store, *arguments: Any) -> Path | None:
        path = set_aside(store, *arguments)
        (store.folder(second) / "record.json").unlink(missing_ok=True)
        assert store.claim(second) is not None
        return path

    monkeypatch.setattr(Store, "set_aside", then_begin)
    with pytest.raises(InputError, match=f"{second.folder} is running"):
        workspace.run("--again", "*")
    assert not workspace.store.folder(first).exists()
    assert workspace.store.folder(second).exists()


@pytest.mark.parametrize("more", [["--only", "mars/*"], ["--cancel"]])
def test_again_goes_with_neither_only_nor_cancel(more: list[str], prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--again"):
        Workspace(tmp_path, prepared).run("--again", "mars/*", *more)


def test_a_kill_while_setting_aside_leaves_no_child_of_what_is_gone(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, moved = workspace.plan("*"), []

    def kill(store: Store, stage: Stage, numbers: object = ()) -> None:
        if len(moved) == 2:
            raise KeyboardInterrupt
        moved.append(stage.key)

    plan.again = plan.stages
    monkeypatch.setattr(Store, "set_aside", kill)
    with pytest.raises(KeyboardInterrupt):
        set_aside(plan, workspace.store, [])
    for stage in plan.stages:
        assert stage.key in moved or not {parent.key for parent in stage.parents} & set(moved)


def test_a_glob_that_matches_no_cell_is_refused(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--again 'tapt/\\*' matches no cell"):
        Workspace(tmp_path, prepared).run("--again", "tapt/*")
