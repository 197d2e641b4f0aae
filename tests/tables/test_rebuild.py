"""Tables rebuilt from records files alone: byte for byte, joined from parts, compared."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from bench import collate
from bench.errors import InputError
from bench.figures.__main__ import main as draw_figures
from bench.report.__main__ import main as write_report
from bench.store.store import Store
from bench.tables.command import main
from bench.tables.layout import AXES
from bench.tables.records import read_file
from tests.tables.test_records import Workspace

COMMITTED = [
    path
    for path in sorted((Path(__file__).parents[2] / "results").glob("*/records.jsonl"))
    if read_file(path).grid is not None
]


@pytest.fixture
def workspace(prepared: Path, tmp_path: Path) -> Workspace:
    return Workspace(tmp_path, prepared)


def files_of(results: Path) -> dict[str, bytes]:
    """Every file below a folder of results but locks, by its path there."""
    paths = (path for path in results.rglob("*") if path.is_file() and not path.name.endswith(".lock"))
    return {str(path.relative_to(results)): path.read_bytes() for path in paths}


def rebuild(results: Path, *files: Path) -> dict[str, bytes]:
    assert main(["--records", *map(str, files), "--results", str(results)]) == 0
    return files_of(results)


def option_of(name: str) -> str:
    """The option that asks for a quantity or an axis of this name."""
    return f"--layout={name}" if name in AXES else f"--measure={name}"


@pytest.mark.parametrize("path", COMMITTED, ids=[path.parent.name for path in COMMITTED])
def test_committed_tables_are_those_of_their_records(path: Path, tmp_path: Path) -> None:
    name = path.parent.name
    rebuilt = rebuild(tmp_path / "rebuilt", path)
    for table in path.parents[1].glob(f"{name}@*.md"):
        options = map(option_of, table.stem.split("@")[1:])
        assert main(["--records", str(path), "--results", str(tmp_path / table.stem), *options]) == 0
        rebuilt |= files_of(tmp_path / table.stem)
    assert rebuilt.keys() >= {
        f"{name}.md",
        f"{name}.csv",
        f"{name}.tex",
        f"{name}/records.jsonl",
        f"{name}/stages.jsonl",
    }
    assert rebuilt == {file: (path.parents[1] / file).read_bytes() for file in rebuilt}


@pytest.mark.parametrize("path", COMMITTED, ids=[path.parent.name for path in COMMITTED])
def test_the_numbers_of_committed_figures_are_those_of_their_records(path: Path, tmp_path: Path) -> None:
    for numbers in path.parent.glob("*.csv"):
        arguments = ["--records", str(path), "--output", str(tmp_path), "--kind", numbers.stem]
        assert draw_figures(arguments) == 0
        assert (tmp_path / numbers.name).read_bytes() == numbers.read_bytes()
        assert numbers.with_suffix(".svg").is_file() and numbers.with_suffix(".png").is_file()


@pytest.mark.parametrize("tasks", [["digits", "pydocs"], ["pydocs", "digits"]])
@pytest.mark.parametrize("cells", [(), (3,), (0, 1, 4), range(8)])
def test_all_files_come_back_byte_for_byte_without_a_store(
    cells: Sequence[int], tasks: Sequence[str], workspace: Workspace
) -> None:
    overrides = (f"grid.tasks = {tasks}", "grid.name = 'tiny'")
    workspace.collate(workspace.store("some", cells, overrides=overrides), *overrides)
    written = files_of(workspace.results)
    assert rebuild(workspace.folder / "again", workspace.results / "tiny" / "records.jsonl") == written


def test_parts_of_a_grid_are_joined(workspace: Workspace) -> None:
    workspace.collate(workspace.store("whole", range(8)))
    whole = files_of(workspace.results)
    parts = []
    for name, cells in (("even", (0, 2, 4, 6)), ("odd", (1, 3, 5, 7))):
        workspace.results = workspace.folder / f"results of {name}"
        workspace.collate(workspace.store(name, cells))
        parts.append(workspace.results / "tiny" / "records.jsonl")
    joined = rebuild(workspace.folder / "joined", *parts)
    assert joined["tiny.md"] == whole["tiny.md"]
    assert joined["tiny/records.jsonl"] == whole["tiny/records.jsonl"]
    assert sorted(joined["tiny/stages.jsonl"].splitlines()) == sorted(whole["tiny/stages.jsonl"].splitlines())


def test_seeds_of_different_settings_in_one_entry_are_told(workspace: Workspace) -> None:
    parts = []
    for number, overrides in enumerate((["grid.seeds = [0]"], ["grid.seeds = [1]", "digits/finetune.lr = 0.5"])):
        workspace.results = workspace.folder / f"part {number}"
        named = [*overrides, "grid.name = 'tiny'"]
        workspace.collate(workspace.store(f"store {number}", range(4), overrides=named), *named)
        parts.append(workspace.results / "tiny" / "records.jsonl")
    text = rebuild(workspace.folder / "joined", *parts)["tiny.md"].decode()
    (warning,) = [line for line in text.splitlines() if "computed with different settings" in line]
    assert "`finetune` on `digits`" in warning and "`mars` on `digits`" in warning and "pydocs" not in warning


def elsewhere(path: Path, folder: Path, **provenance: Any) -> Path:
    """A copy of a records file whose cells have another accuracy, from a machine that differs so."""
    copy = folder / "records.jsonl"
    folder.mkdir(parents=True)
    grid, *cells = path.read_text().splitlines()
    records = [json.loads(cell) for cell in cells]
    for record in records:
        record["metrics"]["accuracy"] = record["value"] = 0.75
        record["provenance"] |= provenance
    copy.write_text("".join(f"{line}\n" for line in (grid, *map(json.dumps, records))))
    return copy


def test_numbers_of_another_machine_are_kept_and_counted_and_the_first_file_is_shown(workspace: Workspace) -> None:
    workspace.collate(workspace.store("whole", range(8)))
    path = workspace.results / "tiny" / "records.jsonl"
    other = elsewhere(path, workspace.folder / "other", instruction_set="AVX512")
    joined = rebuild(workspace.folder / "joined", path, other)
    text = joined["tiny.md"].decode()
    assert "50.00" in text and "75.00" not in text and "Warning: 8 cells show the number that came first" in text
    for line, single in zip(
        joined["tiny/records.jsonl"].splitlines()[1:], path.read_text().splitlines()[1:], strict=True
    ):
        record = json.loads(line)
        assert [each["provenance"]["instruction_set"] for each in record["also"]] == ["AVX512"]
        assert [each["value"] for each in record.pop("also")] == [0.75]
        assert record == json.loads(single)
    assert "75.00" in rebuild(workspace.folder / "turned", other, path)["tiny.md"].decode()
    # Whatever is joined once more, no number is lost, doubled or counted twice.
    both = workspace.folder / "joined" / "tiny" / "records.jsonl"
    assert rebuild(workspace.folder / "again", both, other, path) == joined
    assert rebuild(workspace.folder / "later", path, both) == joined
    workspace.results = workspace.folder / "joined"
    workspace.collate(Store(workspace.folder / "whole"))
    assert "Warning: 8 cells show the number that came first" in (workspace.results / "tiny.md").read_text()


def test_numbers_that_disagree_on_equal_machines_are_refused(workspace: Workspace) -> None:
    workspace.collate(workspace.store("whole", range(8)))
    path = workspace.results / "tiny" / "records.jsonl"
    with pytest.raises(InputError, match=r"finetune/digits/photos_mae/0 is 0\.75, .* 0\.5"):
        rebuild(workspace.folder / "joined", path, elsewhere(path, workspace.folder / "other"))
    assert not (workspace.folder / "joined").exists()


@pytest.mark.parametrize("command", [main, draw_figures, write_report])
@pytest.mark.parametrize("backbone", ["photos_mae", "another"])
def test_a_cell_with_two_keys_is_refused_with_both_files(
    backbone: str, command: Callable[[list[str]], int], workspace: Workspace
) -> None:
    workspace.collate(workspace.store("whole", range(8)))
    path = workspace.results / "tiny" / "records.jsonl"
    other = workspace.folder / "other.jsonl"
    key = json.loads(path.read_text().splitlines()[1])["key"]
    other.write_text(path.read_text().replace(key, "f" * len(key)).replace("photos_mae", backbone))
    target = workspace.folder / "joined"
    option = "--results" if command is main else "--output"
    with pytest.raises(InputError, match=rf"{re.escape(str(other))}: finetune/digits/.*{re.escape(str(path))}"):
        command(["--records", str(path), str(other), option, str(target)])
    assert not target.exists()


def test_against_lists_what_changed(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    workspace.collate(workspace.store("whole", range(8)))
    path = workspace.results / "tiny" / "records.jsonl"
    assert main(["--records", str(path), "--against", str(path)]) == 0
    other = elsewhere(path, workspace.folder / "other")
    other.write_text("".join(other.read_text().splitlines(keepends=True)[:-1]))
    capsys.readouterr()
    assert main(["--records", str(path), "--against", str(other)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    assert "finetune/digits/photos_mae/0: 0.75 became 0.5" in lines
    assert sum(line.endswith("only in the first file") for line in lines) == 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "--records"),
        (["--gin", "gin/quickstart.gin", "--records", "x"], "not both"),
        (["--records", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--gin", "gin/quickstart.gin", "--against", "x"], "--against"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(
    arguments: list[str], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=reason):
        collate.main(arguments)
    assert not any(tmp_path.iterdir())


def test_another_grids_file_in_the_way_is_not_replaced(workspace: Workspace) -> None:
    workspace.collate(workspace.store("whole", range(8)))
    before = files_of(workspace.results)
    other = elsewhere(
        workspace.results / "tiny" / "records.jsonl", workspace.folder / "other", instruction_set="AVX512"
    )
    with pytest.raises(InputError, match="is there already"):
        main(["--records", str(other), "--results", str(workspace.results)])
    assert files_of(workspace.results) == before


@pytest.mark.parametrize("damage", ["grid", "rows", "schema"])
def test_a_damaged_file_is_refused_by_line(damage: str, workspace: Workspace) -> None:
    workspace.collate(workspace.store("whole", range(8)))
    path = workspace.results / "tiny" / "records.jsonl"
    first, *rest = path.read_text().splitlines(keepends=True)
    facts = json.loads(first)["grid"]
    changed = {"grid": [], "rows": {**facts, "rows": 5}, "schema": {**facts, "schema": 3}}
    path.write_text(json.dumps({"grid": changed[damage]}) + "\n" + "".join(rest))
    with pytest.raises(InputError, match=r"\.jsonl:1: not a record"):
        rebuild(workspace.folder / "again", path)


@pytest.mark.parametrize("file", ["records", "stages"])
@pytest.mark.parametrize("seconds", ["NaN", "-1.0", "Infinity", '"long"'])
def test_a_duration_that_is_none_is_refused_by_line(file: str, seconds: str, workspace: Workspace) -> None:
    workspace.collate(workspace.store("whole", range(8)))
    path = workspace.results / "tiny" / "records.jsonl"
    damaged = path.with_name(f"{file}.jsonl")
    damaged.write_text(re.sub(r'"seconds": [0-9.]+', f'"seconds": {seconds}', damaged.read_text(), count=1))
    with pytest.raises(InputError, match=rf"{file}\.jsonl:[12]: .*seconds"):
        read_file(path)


@pytest.mark.parametrize("search", ['{"chosen": 1}', '{"chosen": -1}', "{}", "3"])
def test_a_search_that_chose_what_is_not_there_is_refused_by_line(search: str, workspace: Workspace) -> None:
    workspace.collate(workspace.store("whole", range(8)))
    path = workspace.results / "tiny" / "records.jsonl"
    damaged = path.with_name("stages.jsonl")
    damaged.write_text(damaged.read_text().replace('"seconds"', f'"search": {search}, "seconds"', 1))
    with pytest.raises(InputError, match=r"stages\.jsonl:1: "):
        read_file(path)


@pytest.mark.parametrize(
    ("was", "damaged", "reason"),
    [
        ('"accuracy": 0.5', '"accuracy": 0.6', r"records\.jsonl:2: .*0\.5, .*stage .* in stages\.jsonl 0\.6"),
        ('"task": "digits", "w', '"task": "pydocs", "w', r"stages\.jsonl:1: .*pydocs, .*spec digits"),
        ('"lr": 0.0001', '"lr": 0.0002', r"stages\.jsonl:1: .*spec"),
        ('"name": "finetune", "parents"', '"name": "tuning", "parents"', r"stages\.jsonl:.* tuning, .*finetune"),
    ],
)
def test_a_record_that_its_stages_line_denies_is_refused(
    was: str, damaged: str, reason: str, workspace: Workspace
) -> None:
    workspace.collate(workspace.store("whole", range(8)))
    path = workspace.results / "tiny" / "records.jsonl"
    stages = path.with_name("stages.jsonl")
    assert was in stages.read_text()
    stages.write_text(stages.read_text().replace(was, damaged))
    with pytest.raises(InputError, match=reason):
        read_file(path)
    assert main(["--records", str(path), "--results", str(workspace.folder / "again")]) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a file that is always full is Linux's")
def test_tables_are_written_though_the_output_finds_no_room(workspace: Workspace) -> None:
    workspace.collate(workspace.store("whole", range(8)))
    again = workspace.folder / "again"
    files = ["--records", str(workspace.results / "tiny" / "records.jsonl"), "--results", str(again)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "bench.collate", *files], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert (done.returncode, done.stderr) == (1, b"error: standard output: No space left on device\n")
    assert files_of(again) == files_of(workspace.results)


def test_what_a_record_measured_is_held_against_its_stages_line(tmp_path: Path) -> None:
    """Tables of `--measure` show it. Times differ from run to run."""
    (committed,) = [path for path in COMMITTED if path.parent.name == "quickstart"]
    path = tmp_path / "records.jsonl"
    path.with_name("stages.jsonl").write_bytes(committed.with_name("stages.jsonl").read_bytes())
    head, first, *others = committed.read_text().splitlines()
    for name, status in (("train_loss", 1), ("examples_per_second", 0)):
        record = json.loads(first)
        record["measured"][name] += 1.0
        path.write_text("\n".join([head, json.dumps(record), *others]) + "\n")
        assert main(["--records", str(path), "--results", str(tmp_path / name)]) == status


def test_a_record_and_a_stages_line_of_two_files_are_compared(workspace: Workspace) -> None:
    workspace.collate(workspace.store("whole", range(8)))
    path = workspace.results / "tiny" / "records.jsonl"
    other = workspace.folder / "other" / "records.jsonl"
    other.parent.mkdir()
    other.write_text(path.read_text().splitlines(keepends=True)[0])  # no cell
    stages = path.with_name("stages.jsonl").read_text()
    other.with_name("stages.jsonl").write_text(stages.replace('"accuracy": 0.5', '"accuracy": 0.6'))
    with pytest.raises(InputError, match=r"finetune/digits.* 0\.6: one of the files is damaged"):
        main(["--records", str(other), str(path), "--results", str(workspace.folder / "again")])


def test_numbers_of_another_computer_may_differ_from_the_stages_line(workspace: Workspace) -> None:
    workspace.collate(workspace.store("whole", range(8)))
    path = workspace.results / "tiny" / "records.jsonl"
    stages = path.with_name("stages.jsonl")
    text = stages.read_text().replace('"accuracy": 0.5', '"accuracy": 0.6')
    stages.write_text(text.replace('"instruction_set": "', '"instruction_set": "another '))
    assert len(read_file(path).cells) == 8


@pytest.mark.parametrize("file", ["records", "stages"])
def test_half_a_character_is_damage(file: str, workspace: Workspace) -> None:
    workspace.collate(workspace.store("whole", range(8)))
    path = workspace.results / "tiny" / "records.jsonl"
    damaged = path.with_name(f"{file}.jsonl")
    damaged.write_text(damaged.read_text().replace('"digits"', r'"\ud800"', 1 if file == "stages" else 2))
    with pytest.raises(InputError, match=rf"{file}\.jsonl:[12]: .*surrogates"):
        read_file(path)


def test_a_number_that_is_none_is_read_back(workspace: Workspace) -> None:
    workspace.collate(workspace.store("whole", range(8)))
    path = workspace.results / "tiny" / "records.jsonl"
    text = path.read_text()
    path.write_text(text.replace('"accuracy": 0.5', '"accuracy": NaN').replace('"value": 0.5', '"value": NaN'))
    stages = path.with_name("stages.jsonl")
    stages.write_text(stages.read_text().replace('"accuracy": 0.5', '"accuracy": NaN'))
    again = rebuild(workspace.folder / "again", path, path)
    assert again["tiny/records.jsonl"] == path.read_bytes() and b"2 \xc3\x97 nan" in again["tiny.md"]
    assert main(["--records", str(path), "--against", str(path)]) == 0
