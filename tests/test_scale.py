"""The cost of a grid grows with its cells and no faster: counted, not timed. `tests/scale.py` measures seconds."""

from pathlib import Path
from typing import Any

import pytest

from bench import grid
from bench.errors import InputError
from bench.methods import finetune, recipe
from bench.planning.cell import Cell, Expansion
from bench.planning.plan import Plan, make_plan
from bench.specs import Stage, spec, stage, walk
from bench.specs.objectives import AdamW
from bench.store.store import Store
from bench.tables import records
from bench.tables.command import write_tables
from tests import tiny_grid
from tests.scale import fill

ROWS = ["finetune", "mars", "self_distillation", "supcon"]


def calls(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[tuple[Any, ...]]:
    """The arguments of all calls of a function from now on."""
    noted: list[tuple[Any, ...]] = []
    function = getattr(owner, name)

    def noting(*arguments: Any) -> Any:
        noted.append(arguments)
        return function(*arguments)

    monkeypatch.setattr(owner, name, noting)
    return noted


def many_seeds(folder: Path, data: Path, seeds: int, store: Store) -> Plan:
    gin = tiny_grid.write(folder, ROWS, "supcon_pretrain.steps = 4", "further_pretrain.steps = 4")
    return make_plan([str(gin)], [f"grid.seeds = {list(range(seeds))}"], [], data, store)


def test_settings_are_resolved_once_for_all_seeds(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved = calls(monkeypatch, Cell, "_overlay")
    parts, keys = calls(monkeypatch, spec, "canonical_json"), calls(monkeypatch, stage, "canonical_json")
    counts = []
    for seeds in (2, 12):
        for noted in (resolved, parts, keys):
            noted.clear()
        plan = many_seeds(tmp_path, prepared, seeds, Store(tmp_path / "none"))
        assert len({id(each) for (each,) in keys}) == len(keys) >= len(plan.stages)  # no stage's text is made twice
        counts.append((len(resolved), len(parts)))
    (few, few_parts), (many, many_parts) = counts
    assert few == many
    # Ten seeds more are 80 cells more. Most of their parts are made once; a method may hand each cell one or two new.
    assert many_parts - few_parts <= 2 * 80


def test_every_distinct_stage_is_checked(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = calls(monkeypatch, Stage, "check")
    plan = many_seeds(tmp_path, prepared, 3, Store(tmp_path / "none"))
    assert {each.key for each in plan.stages} <= {each.key for (each,) in checked}


def test_a_recipe_is_asked_once_for_all_seeds(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = calls(monkeypatch, Cell, "setting")
    counts = []
    for seeds in (2, 12):
        asked.clear()
        many_seeds(tmp_path, prepared, seeds, Store(tmp_path / "none"))
        counts.append(len(asked))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("name", ["quickstart", "ablation", "label_regularization_gpt"])
@pytest.mark.parametrize("pretraining", ["shared", "per_seed"])
def test_stages_that_are_built_once_for_all_seeds_are_those_built_for_each(
    name: str, pretraining: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan() -> tuple[list[tuple[str, Stage]], list[str]]:
        changed = ["grid.seeds = [0, 3, 1]", "grid.base_seed = 3", f"grid.pretraining_seeds = '{pretraining}'"]
        made = make_plan([f"gin/{name}.gin"], changed, [], tmp_path, None)
        return [(cell.name, cell.stage) for cell in made.cells], [each.key for each in made.stages]

    cells, keys = plan()
    put_in = calls(monkeypatch, Expansion, "_with_seed")
    monkeypatch.setattr(Expansion, "_with_seed", refuse)
    cells_of_each, keys_of_each = plan()
    assert not put_in
    assert keys == keys_of_each
    assert cells == cells_of_each  # in all fields, whatever of them the keys cover


def refuse(*_: Any) -> Stage:
    raise InputError("built for each seed")


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize("own_first", [True, False])
def test_a_recipe_that_reads_the_seed_is_asked_for_each(own_first: bool, tmp_path: Path) -> None:
    seen: list[int] = []

    @recipe()
    def reads_its_seed(cell: Cell) -> Stage:
        seen.append(cell.seed)
        return finetune(cell, optimizer=AdamW(weight_decay=cell.seed / 10))

    @recipe()
    def starts_from_it(cell: Cell) -> Stage:
        return finetune(cell, init=cell.row("reads_its_seed"), head="fresh")

    rows = ["reads_its_seed", "starts_from_it"][:: 1 if own_first else -1]
    gin = tiny_grid.write(tmp_path, rows)
    plan = make_plan([str(gin)], ["grid.seeds = [2, 5]"], [], tmp_path / "none", None)
    assert set(seen) == {2, 5}
    for cell in plan.cells:
        own = cell.stage if cell.row == "reads_its_seed" else cell.stage.init
        assert isinstance(own, Stage) and isinstance(own.optimizer, AdamW)
        assert (own.seed, own.optimizer.weight_decay, cell.stage.seed) == (cell.seed, cell.seed / 10, cell.seed)


def test_cells_that_need_a_stage_share_it(prepared: Path, tmp_path: Path) -> None:
    plan = many_seeds(tmp_path, prepared, 3, Store(tmp_path / "none"))
    needed = [each for cell in plan.cells for each in walk(cell.stage)]
    assert len({id(each) for each in needed}) == len({each.key for each in needed})


def test_a_teachers_row_is_searched_once_for_all_candidates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searched = calls(monkeypatch, Expansion, "_search")
    for candidates in (2, 6):
        searched.clear()
        lines = [f"finetune.dropout = 0.{number}" for number in range(candidates)]
        gin = tiny_grid.write(tmp_path, ["finetune", "self_kd"], f"search.candidates = {lines}")
        make_plan([str(gin)], [], [], tmp_path / "none", Store(tmp_path / "none"))
        # On each of two tasks: finetune, self_kd, and finetune as the teacher on the part of the data there to fit.
        assert len(searched) == 6


def test_tables_read_each_record_and_the_records_file_once(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "runs")
    fill(store, many_seeds(tmp_path, prepared, 5, store).stages)
    plan = many_seeds(tmp_path, prepared, 5, store)
    read, files = calls(monkeypatch, Store, "record"), calls(monkeypatch, records, "read_file")
    assert write_tables(plan, store, tmp_path / "results") == 0
    assert sorted(each.key for _, each in read) == sorted(each.key for each in plan.stages)
    assert len(files) == 1


def test_an_unchanged_run_reads_each_record_and_the_records_file_once(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "runs")
    fill(store, many_seeds(tmp_path, prepared, 5, store).stages)
    read, files = calls(monkeypatch, Store, "record"), calls(monkeypatch, records, "read_file")
    folders = ["--data", str(prepared), "--store", str(store.root), "--results", str(tmp_path / "results")]
    arguments = ["--gin", str(tmp_path / "tiny.gin"), "--set", "grid.seeds = [0, 1, 2, 3, 4]", *folders]
    assert grid.main(["--device", "cpu", *arguments]) == 0
    assert len(read) == len({each.key for _, each in read})
    assert len(files) == 1


def test_lines_that_the_store_leads_to_again_are_not_read(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, results = Store(tmp_path / "runs"), tmp_path / "results"
    fill(store, many_seeds(tmp_path, prepared, 5, store).stages)
    plan = many_seeds(tmp_path, prepared, 5, store)
    assert write_tables(plan, store, results) == 0
    before = {path: path.read_bytes() for path in results.rglob("*.*")}
    checked = calls(monkeypatch, records, "shaped")
    assert write_tables(plan, store, results) == 0
    assert checked == []
    assert {path: path.read_bytes() for path in results.rglob("*.*")} == before


def test_a_run_reads_all_records_again_for_its_table(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # While it runs another process sets a finished stage aside and computes it anew, to another number.
    store = Store(tmp_path / "runs")
    *finished, last = many_seeds(tmp_path, prepared, 2, store).stages
    cell = next(cell for cell in many_seeds(tmp_path, prepared, 2, store).cells if cell.stage.key != last.key)
    fill(store, finished)

    def run(*_: object) -> bool:
        store.set_aside(cell.stage)
        fill(store, [last, cell.stage])
        return False

    monkeypatch.setattr(grid, "_run", run)
    folders = ["--data", str(prepared), "--store", str(store.root), "--results", str(tmp_path / "results")]
    arguments = ["--gin", str(tmp_path / "tiny.gin"), "--set", "grid.seeds = [0, 1]", "grid.name = 'two'", *folders]
    assert grid.main(["--device", "cpu", *arguments]) == 0
    record = store.record(cell.stage)
    assert record is not None
    table = records.read_records(tmp_path / "results" / "two" / "records.jsonl")
    assert table[cell.stage.key, cell.name]["metrics"] == record["metrics"] != {}
