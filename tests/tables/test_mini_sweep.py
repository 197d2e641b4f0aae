"""The damaged mini-sweep, recomputed here by code of its own, against the files that `bench.collate` writes of it.

Nothing of `bench.tables` computes what is expected: the lines are read with json, and the numbers come from statistics,
NumPy and SciPy's distributions.
"""

import csv
import io
import json
import math
import runpy
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import rankdata, t

from bench.errors import InputError
from bench.figures.__main__ import main as draw_figures
from bench.report.__main__ import main as write_report
from bench.tables.command import main
from bench.tables.records import LeftOut, line_of, read_file

SWEEP = Path(__file__).parent / "mini_sweep"
ROWS, TASKS, SEEDS = ("finetune", "mars", "tapt", "r3f"), ("digits", "pydocs"), (0, 1, 2)
DAMAGED_LINES = {13: "JSON", 25: "key is missing", 26: "version 3", 27: "no method sam", 28: "other values"}
"""Of records.jsonl: the line that is cut off, and those of another program, version, grid and value."""

Written = dict[str, str]


def points() -> dict[tuple[str, str], dict[int, float]]:
    """The values of every cell by seed, in percent: of the first whole line with its name that is of the grid."""
    cells: dict[tuple[str, str], dict[int, float]] = {(row, task): {} for row in ROWS for task in TASKS}
    for line in (SWEEP / "records.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if record.get("method") in ROWS:
            cells[record["method"], record["task"]].setdefault(record["seed"], 100 * record["value"])
    return cells


POINTS = points()
FINITE = {
    cell: {seed: value for seed, value in values.items() if math.isfinite(value)} for cell, values in POINTS.items()
}


def mean(row: str, task: str) -> float:
    return statistics.fmean(FINITE[row, task].values())


def interval(differences: list[float]) -> tuple[float, float, float]:
    """The mean of paired differences, and half the width of its 95 % t interval, and its p."""
    average, error = statistics.fmean(differences), statistics.stdev(differences) / math.sqrt(len(differences))
    freedom = len(differences) - 1
    return average, float(t.ppf(0.975, freedom)) * error, 2 * float(t.sf(abs(average) / error, freedom))


def differences(row: str, other: str, task: str) -> list[float]:
    common = sorted(FINITE[row, task].keys() & FINITE[other, task].keys())
    return [FINITE[row, task][seed] - FINITE[other, task][seed] for seed in common]


def cell_text(row: str, task: str) -> str:
    finite, all_values = list(FINITE[row, task].values()), POINTS[row, task]
    spread = f" ± {statistics.stdev(finite):.2f}" if len(finite) > 1 else ""
    not_finite = len(all_values) - len(finite)
    count = "3" if len(finite) == 3 else f"{len(finite)}/3" + (f"; {not_finite} × nan" if not_finite else "")
    return f"{statistics.fmean(finite):.2f}{spread} ({count})"


def bold_row(task: str) -> str | None:
    """The complete row whose interval against every other excludes 0; conditional ones, of tapt on digits, never do."""
    for row in ROWS:
        pairs = {other: differences(row, other, task) for other in ROWS if other != row}
        conditional = task == "digits" and row == "tapt"
        if conditional or len(FINITE[row, task]) < 3 or any(len(set(np.round(pair, 9))) < 2 for pair in pairs.values()):
            continue
        if all(average > width for average, width, _ in map(interval, pairs.values())):
            return row
    return None


def ranks() -> dict[str, str]:
    complete = [row for row in ROWS if all(len(FINITE[row, task]) == 3 for task in TASKS)]
    of_tasks = [rankdata([-round(mean(row, task), 9) for row in complete]) for task in TASKS]
    averages = dict(zip(complete, np.mean(of_tasks, axis=0), strict=True))
    return {row: f"{averages[row]:.1f}" if row in averages else "–" for row in ROWS}


def difference_text(row: str, task: str) -> str:
    pair = differences(row, "finetune", task)
    mark = "°" if (row, task) == ("tapt", "digits") else ""
    text = f"{statistics.fmean(pair):+.2f}"
    if len(pair) > 1 and len(set(np.round(pair, 9))) > 1:
        average, width, _ = interval(pair)
        text += f" [{average - width:.2f}, {average + width:.2f}]"
    return f"{text}{mark}".replace("-", "−")


def over_tasks() -> dict[str, str]:
    """The mean over tasks, its interval, and its p, multiplied by Holm: the smallest of three by 3, the next by 2."""
    intervals = {
        row: interval([statistics.fmean(differences(row, "finetune", task)) for task in TASKS])
        for row in ROWS
        if row != "finetune"
    }
    adjusted, largest = {}, 0.0
    for times, row in zip((3, 2, 1), sorted(intervals, key=lambda row: intervals[row][2]), strict=True):
        largest = max(largest, min(1.0, times * intervals[row][2]))
        adjusted[row] = largest
    texts = {
        row: f"{average:+.2f} [{average - width:.2f}, {average + width:.2f}]"
        for row, (average, width, _) in intervals.items()
    }
    return {row: f"{texts[row]}, p = {adjusted[row]:.2g}".replace("-", "−") for row in intervals}


EXPECTED = [[row, *(cell_text(row, task) for task in TASKS), ranks()[row]] for row in ROWS] + [
    ["most frequent class", f"{100 * 30 / 60:.2f}", f"{100 * 25 / 30:.2f}", ""],
    ["test examples", "60", "30", ""],
]


def copied(folder: Path) -> Path:
    shutil.copytree(SWEEP, folder)
    return folder / "records.jsonl"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    results = tmp_path_factory.mktemp("results")
    assert main(["--records", str(SWEEP / "records.jsonl"), "--results", str(results)]) == 1
    return {ending: (results / f"mini_sweep.{ending}").read_text(encoding="utf-8") for ending in ("md", "csv", "tex")}


def markdown_tables(text: str) -> list[list[list[str]]]:
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    rows = [[line for line in block if not line.startswith("|--")] for block in blocks]
    return [[[cell.strip() for cell in line.strip("|").split("|")] for line in lines] for lines in rows]


def test_the_committed_files_are_those_that_the_script_writes() -> None:
    files: Callable[[], dict[str, str]] = runpy.run_path(str(SWEEP / "write.py"))["files"]
    assert files() == {name: (SWEEP / name).read_text(encoding="utf-8") for name in ("records.jsonl", "stages.jsonl")}


def test_the_sweep_has_what_it_is_for() -> None:
    assert cell_text("r3f", "digits") == "88.00 (1/3; 1 × nan)"
    assert cell_text("r3f", "pydocs").endswith("(2/3)")
    assert FINITE["mars", "digits"] == FINITE["finetune", "digits"]
    assert [bold_row(task) for task in TASKS] == [None, "mars"]
    assert ranks()["r3f"] == "–"


def test_csv_is_what_is_recomputed(written: Written) -> None:
    head, *body = csv.reader(io.StringIO(written["csv"]))
    assert head == ["method", *TASKS, "average rank"]
    assert body == EXPECTED


def test_markdown_is_what_is_recomputed(written: Written) -> None:
    table, compared = markdown_tables(written["md"])[:2]
    bold = {task: bold_row(task) for task in TASKS}
    expected = [
        [row, *(f"**{cell}**" if bold[task] == row else cell for task, cell in zip(TASKS, cells, strict=True)), rank]
        for row, *cells, rank in EXPECTED
    ]
    assert table == [["method", *TASKS, "average rank"], *expected]
    over = over_tasks()
    assert compared == [
        ["minus finetune", *TASKS, "over tasks"],
        *([row, *(difference_text(row, task) for task in TASKS), over[row]] for row in over),
    ]


def test_tex_is_what_is_recomputed(written: Written) -> None:
    def in_tex(text: str) -> str:
        return text.replace("±", r"$\pm$").replace("–", "--").replace("×", r"$\times$")

    lines = [line.strip().removesuffix(r"\\") for line in written["tex"].splitlines() if "&" in line]
    table = [[cell.strip() for cell in line.split("&")] for line in lines]
    expected = [[in_tex(cell) for cell in row] for row in EXPECTED]
    mars = next(row for row in expected if row[0] == "mars")
    mars[2] = rf"\textbf{{{mars[2]}}}"
    assert table == [["method", *TASKS, "average rank"], *expected]


def test_costs_are_summed_over_distinct_stages(written: Written) -> None:
    hours = 180 / 3600
    core = {"finetune": 6 * hours * 2, "mars": 6 * hours * 2, "r3f": 4 * hours * 2}
    # Of tapt, one seed on pydocs ran on the GPU, pre-training and all; that of digits is one stage for three seeds.
    core["tapt"] = 2 * (5 * hours + 3 * 2 * hours)
    for row, of_row in core.items():
        assert f"{row} {of_row:.2f} core-hours" in written["md"]
    assert f"and {3 * hours:.2f} GPU-hours" in written["md"]


def test_every_damage_is_told_in_the_legend_and_on_standard_error(
    written: Written, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--records", str(SWEEP / "records.jsonl"), "--results", str(tmp_path)])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(DAMAGED_LINES) + 1
    assert any(f"{SWEEP}/stages.jsonl:28" in line for line in lines)
    for number, reason in DAMAGED_LINES.items():
        (line,) = (line for line in lines if f"records.jsonl:{number}:" in line)
        assert reason in line
        assert f"`mini_sweep/records.jsonl:{number}`" in written["md"]
    assert "mini_sweep/stages.jsonl:28" in written["md"]
    assert "Code: " + "a" * 40 + "; " + "b" * 40 in written["md"]
    assert "Warning: 2 commits" in written["md"]
    assert "different kinds of device (A GPU; CPU)" in written["md"]
    assert str(SWEEP) not in written["md"]  # a published table holds no path


def test_tables_of_what_was_left_out_say_so_when_they_are_built_again(written: Written, tmp_path: Path) -> None:
    main(["--records", str(SWEEP / "records.jsonl"), "--results", str(tmp_path / "first")])
    path = tmp_path / "first" / "mini_sweep" / "records.jsonl"
    assert main(["--records", str(path), "--results", str(tmp_path / "again")]) == 0
    for ending, text in written.items():
        assert (tmp_path / "again" / f"mini_sweep.{ending}").read_text(encoding="utf-8") == text


def test_damaged_lines_are_not_overwritten(tmp_path: Path) -> None:
    path = copied(tmp_path / "mini_sweep")
    before = path.read_bytes()
    with pytest.raises(InputError, match="without the lines that are left out"):
        main(["--records", str(path), "--results", str(tmp_path)])
    assert path.read_bytes() == before and not (tmp_path / "mini_sweep.md").exists()


def test_a_table_of_a_quantity_says_what_was_left_out(tmp_path: Path) -> None:
    files = ["--records", str(SWEEP / "records.jsonl"), "--results", str(tmp_path)]
    assert main([*files, "--measure", "accuracy"]) == 1
    text = (tmp_path / "mini_sweep@accuracy.md").read_text(encoding="utf-8")
    assert all(f"`mini_sweep/records.jsonl:{number}`" in text for number in DAMAGED_LINES)
    assert r"1 $\times$ nan" in (tmp_path / "mini_sweep@accuracy.tex").read_text(encoding="utf-8")


def test_a_comparison_of_what_was_left_out_does_not_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = str(SWEEP / "records.jsonl")
    assert main(["--records", damaged, "--results", str(tmp_path)]) == 1
    whole = str(tmp_path / "mini_sweep" / "records.jsonl")
    capsys.readouterr()
    assert main(["--records", whole, "--against", whole]) == 0
    assert main(["--records", damaged, "--against", whole]) == 1
    assert capsys.readouterr().out.splitlines() == ["no cell differs"] * 2


def test_lines_that_are_expected_and_lines_that_are_none(tmp_path: Path) -> None:
    path = copied(tmp_path / "mini_sweep")
    left_out: list[LeftOut] = []
    content = read_file(path, left_out=left_out)
    again: list[LeftOut] = []
    same = read_file(path, content, again)
    assert again == left_out and len(again) == len(DAMAGED_LINES) + 1
    assert all(same.cells[identity]["cell"] == record["cell"] for identity, record in content.cells.items())
    assert same.grid == content.grid and list(same.stages) == list(content.stages)


@pytest.mark.parametrize("damage", ["another grid", "another value before"])
def test_an_expected_line_is_checked_beside_the_others(damage: str, tmp_path: Path) -> None:
    content = read_file(SWEEP / "records.jsonl", left_out=[])
    assert content.grid is not None
    first, *_ = content.cells.values()
    facts = content.grid.as_line()
    path = tmp_path / "records.jsonl"
    if damage == "another grid":
        facts["grid"]["seeds"] = [1, 2]
        lines = [facts, first]
    else:
        lines = [facts, {**first, "seconds": 5.0}, first]
    path.write_text("".join(f"{line_of(line)}\n" for line in lines), encoding="utf-8")
    with pytest.raises(InputError, match="no seed 0" if damage == "another grid" else "other values"):
        read_file(path, content)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b'{"epoch": 1}\n{"epoch": 2}\n', "missing"),
        (b'{"grid": {"schema"\n', "JSON"),
        (b"PAR1\xff\xfe\x00\n", "utf-8"),
        (None, "version 3"),
    ],
)
def test_a_file_whose_first_line_is_none_is_left_out_as_a_whole(
    content: bytes | None, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = copied(tmp_path / "good"), tmp_path / "bad" / "records.jsonl"
    bad.parent.mkdir()
    text = good.read_bytes()
    bad.write_bytes(text.replace(b'"schema": 2', b'"schema": 3') if content is None else content)
    assert main(["--records", str(bad), str(good), "--results", str(tmp_path / "out")]) == 1
    # Once, whatever its other lines are: nobody knows what they mean.
    (message,) = (line for line in capsys.readouterr().err.splitlines() if str(bad.parent) in line)
    assert f"{bad}:1:" in message
    assert reason in message and "the whole file" in message
    table = (tmp_path / "out" / "mini_sweep.md").read_text(encoding="utf-8")
    assert "`bad/records.jsonl:1` (the whole file)" in table and "91.00 ± 1.00 (3)" in table
    with pytest.raises(InputError, match=reason):
        main(["--records", str(bad), "--results", str(tmp_path / "nothing")])
    assert not (tmp_path / "nothing").exists()


def test_figures_and_report_tell_the_damage_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = SWEEP / "records.jsonl"
    assert draw_figures(["--records", str(path), "--output", str(tmp_path / "figures"), "--kind", "forest"]) == 1
    assert write_report(["--records", str(path), "--output", str(tmp_path / "page.html")]) == 1
    streams = capsys.readouterr()
    assert "mini_sweep/records.jsonl:13" in streams.out  # the figures' warnings
    assert streams.err.count("records.jsonl:13:") == 2


def test_a_missing_line_of_a_stage_makes_no_difference_look_certain(tmp_path: Path) -> None:
    path = copied(tmp_path / "mini_sweep")
    stages: list[dict[str, Any]] = [
        json.loads(line) for line in path.with_name("stages.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    kept = [stage for stage in stages if stage["key"] not in ("pretraining-digits", "x")]
    path.with_name("stages.jsonl").write_text("".join(f"{json.dumps(stage)}\n" for stage in kept), encoding="utf-8")
    main(["--records", str(path), "--results", str(tmp_path / "out")])
    assert "+2.00 [−0.15, 4.15]°" in (tmp_path / "out" / "mini_sweep.md").read_text(encoding="utf-8")


def changed(folder: Path, file: str, number: int, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of the sweep in which one line, by its number, is another one."""
    path = copied(folder)
    of_file = path.with_name(file)
    lines = of_file.read_text(encoding="utf-8").splitlines()
    line = json.loads(lines[number - 1])
    change(line)
    lines[number - 1] = json.dumps(line)
    of_file.write_text("".join(f"{each}\n" for each in lines), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "facts",
    [
        {"tasks": [], "metrics": {}},
        {"rows": ["finetune", "mars", "mars", "tapt", "r3f"]},
        {"seeds": [0, 1, 1]},
        {"metrics": {"digits": "bleu", "pydocs": "accuracy"}},
        {"test": {"digits": {"examples": 60, "per_class": [10, 20, 31]}}},
        {"test": {"digits": {"examples": 60, "per_class": [-1, 61]}}},
    ],
    ids=str,
)
def test_a_grid_that_is_none_is_named_and_nothing_is_written(facts: dict[str, Any], tmp_path: Path) -> None:
    path = changed(tmp_path / "in", "records.jsonl", 1, lambda line: line["grid"].update(facts))
    with pytest.raises(InputError, match=r"records\.jsonl:1:"):
        main(["--records", str(path), "--results", str(tmp_path / "out" / "results")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../elsewhere", "..", ""])
def test_a_name_that_is_no_files_writes_nothing(name: str, tmp_path: Path) -> None:
    path = changed(tmp_path / "in", "records.jsonl", 1, lambda line: line["grid"].update(name=name))
    for command in (main, write_report):
        with pytest.raises(InputError, match="name"):
            command(["--records", str(path), "--results", str(tmp_path / "out")])
    assert [folder.name for folder in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        ("records.jsonl", {"stages": None}, "stages"),
        ("records.jsonl", {"stages": [1]}, "stages"),
        ("records.jsonl", {"metric": "macro_f1", "metrics": {"macro_f1": 0.9}}, "macro_f1"),
        ("stages.jsonl", {"provenance": "a processor"}, "provenance"),
        ("stages.jsonl", {"key": "finetune-digits-0", "seconds": 5.0}, "other values"),
    ],
    ids=str,
)
def test_a_line_that_is_damaged_inside_is_left_out(
    file: str, change: dict[str, Any], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = changed(tmp_path / "in", file, 6, lambda line: line.update(change))
    assert main(["--records", str(path), "--results", str(tmp_path / "out")]) == 1
    (message,) = (line for line in capsys.readouterr().err.splitlines() if f"/{file}:6:" in line)
    assert reason in message
    assert write_report(["--records", str(path), "--output", str(tmp_path / "page.html")]) == 1


def test_a_table_without_its_stages_says_so(written: Written, tmp_path: Path) -> None:
    path = copied(tmp_path / "mini_sweep")
    path.with_name("stages.jsonl").unlink()
    main(["--records", str(path), "--results", str(tmp_path / "out")])
    (line,) = (line for line in (tmp_path / "out" / "mini_sweep.md").read_text().splitlines() if "lacks stages" in line)
    assert f"{sum(map(len, POINTS.values()))} of" in line
    assert "lacks stages" not in written["md"]
