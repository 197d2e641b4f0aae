"""results/README.md says what the committed records say, and leaves out nothing that looks wrong."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import re
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from bench.tables.compare import Summary
from bench.tables.comparison import runs_of
from tests.test_readme import README, ROOT

Cells = list[dict[str, Any]]


@pytest.fixture(scope="module")
def writer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_results", ROOT / "docs" / "write_results.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def changed(grid: Any, change: Callable[[Cells], None]) -> Any:
    """Return the grid as if its cells were others."""
    cells = copy.deepcopy(grid.cells)
    change(cells)
    return dataclasses.replace(grid, cells=cells, runs=runs_of(grid.facts, cells, grid.stages))


def test_the_page_is_what_the_script_writes(writer: ModuleType) -> None:
    assert writer.PAGE.read_text(encoding="utf-8") == writer.page()


def test_no_number_stands_in_the_script(writer: ModuleType) -> None:
    texts = [*writer.GRIDS.values(), *writer.EXPLAINED.values(), *writer.UNANSWERED, writer.SHOWCASES]
    texts += [text for question in writer.QUESTIONS for text in (question.text, question.remark)]
    assert not [text for text in texts if re.search(r"(?<![\w-])\d", text)]


def test_every_grid_named_is_there_and_asked(writer: ModuleType) -> None:
    asked = {row for question in writer.QUESTIONS for pair in question.comparisons for row in pair}
    for name in writer.GRIDS:
        assert (ROOT / "gin" / f"{name}.gin").is_file()
    for path in writer.UNANSWERED.values():
        assert (ROOT / path).is_file()
        assert not (ROOT / "results" / path.removeprefix("gin/").removesuffix(".gin")).exists(), "it has run"
    compared = {row for name in writer.GRIDS if (ROOT / "results" / name).is_dir() for row in grid_rows(writer, name)}
    assert compared <= asked


def grid_rows(writer: ModuleType, name: str) -> tuple[str, ...]:
    rows: tuple[str, ...] = writer.Grid.read(name).facts.rows
    return rows


def of(cells: Cells, row: str) -> Cells:
    return [cell for cell in cells if (cell["method"], cell["task"]) == (row, "scierc")]


def guessing(cells: Cells) -> None:
    for cell in of(cells, "mars"):
        cell["value"] = cell["metrics"]["macro_f1"] = 0.1


def like_finetune(cells: Cells) -> None:
    of(cells, "mars")[0]["metrics"] = of(cells, "finetune")[0]["metrics"]


def guessing_once(cells: Cells) -> None:
    of(cells, "mars")[1]["value"] = 0.1011  # the most frequent class has this macro-F1


def without_spread(cells: Cells) -> None:
    for cell in of(cells, "mars"):
        cell["value"] = 0.25


def not_learned(cells: Cells) -> None:
    of(cells, "mars")[1]["measured"]["train_loss"] = 1.99


def idle(cells: Cells) -> None:
    of(cells, "mars")[2]["activity"]["MarsProjection"]["nil"] = True


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (guessing, "mars on scierc is not above the most frequent class"),
        (guessing_once, "mars on scierc answers the most frequent class with seed 1"),
        (like_finetune, "mars on scierc equals finetune"),
        (without_spread, "mars on scierc has no spread over seeds"),
        (not_learned, "mars on scierc has a training loss that did not fall below that of the class frequencies"),
        (idle, "MarsProjection did nothing in mars on scierc"),
    ],
)
def test_what_looks_wrong_is_named_and_needs_a_cause(
    change: Callable[[Cells], None], finding: str, writer: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = writer.Grid.read("small_text")
    assert finding not in writer.findings(grid)
    wrong = changed(grid, change)
    assert finding in writer.findings(wrong)
    monkeypatch.setattr(writer, "GRIDS", {"small_text": ""})
    monkeypatch.setattr(writer.Grid, "read", lambda name: wrong)
    with pytest.raises(SystemExit, match=re.escape(finding)):
        writer.page()


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.1, 2.0, "better"), (-2.0, -0.1, "worse"), (-1.0, 2.0, "undecided"), (None, None, "undecided")],
)
def test_a_verdict_is_whether_an_interval_of_all_noise_excludes_0(
    low: float | None, high: float | None, expected: str, writer: ModuleType
) -> None:
    assert writer.verdict(writer.Difference("task", 3, 1.0, low, high, False)) == expected
    assert writer.verdict(writer.Difference("task", 3, 1.0, low, high, True)) == "undecided"


def test_the_interval_of_the_share_of_pretraining_holds_the_true_one(writer: ModuleType) -> None:
    """Of 2,000 pairs of five seeds each, in which pre-training has three quarters of the variance, 95 % do."""
    generator = np.random.default_rng(0)
    shares = []
    for _ in range(2000):
        anew, once = generator.normal(0, 2, 5).std(ddof=1), generator.normal(0, 1, 5).std(ddof=1)
        shares.append(writer.pretraining_share(Summary(5, 5, 0.0, anew), Summary(5, 5, 0.0, once)))
    assert 0.94 < np.mean([share.low <= 0.75 <= share.high for share in shares]) < 0.96
    assert 0.6 < np.median([share.value for share in shares]) < 0.9
    assert all(share.low <= share.value <= share.high <= 1 for share in shares)


def test_a_share_is_above_0_where_its_whole_interval_is(writer: ModuleType) -> None:
    once = Summary(5, 5, 0.0, 1.0)
    for anew, verdict in ((0.1, "undecided"), (1.2, "undecided"), (9.0, "above 0")):
        assert writer._share_verdict(writer.pretraining_share(Summary(5, 5, 0.0, anew), once)) == verdict


@pytest.mark.parametrize("missing", [None, 0.0])
def test_there_is_no_share_without_a_spread(missing: float | None, writer: ModuleType) -> None:
    assert writer.pretraining_share(Summary(5, 5, 1.0, missing), Summary(5, 5, 1.0, 2.0)) is None
    assert writer.pretraining_share(Summary(5, 5, 1.0, 2.0), Summary(5, 5, 1.0, missing)) is None


def test_the_answer_is_in_the_records(writer: ModuleType) -> None:
    """One line of the page, computed by hand from the committed records."""
    grid = writer.Grid.read("small_image")
    values = {row: [100 * cell["value"] for cell in grid.of(row, "flower")] for row in ("tapt", "self_distillation")}
    mean = sum(b - a for a, b in zip(values["tapt"], values["self_distillation"], strict=True)) / 3
    shown = f"{mean:+.2f}".replace("-", "\N{MINUS SIGN}")
    named = ("| small_image ", "| self_distillation \N{MINUS SIGN} tapt ", "| flower ")
    (line,) = [line for line in writer.page().splitlines() if all(name in line for name in named)]
    assert shown in line


def test_what_the_readme_says_of_its_table_is_in_the_records(writer: ModuleType) -> None:
    grid = writer.Grid.read("study_cpu")
    rows = [row for row in grid.facts.rows if row != "finetune"]
    differences = [grid.runs.difference(row, "finetune", task) for row in rows for task in grid.facts.tasks]
    excluding = [each for each in differences if not each.low <= 0 <= each.high]
    assert all(each.conditional for each in excluding)
    named = set(re.findall(r"that of `(\w+)` on (\w+) is far below it", README))
    rows_of_tasks = [(row, task) for row in rows for task in grid.facts.tasks]
    assert named == {where for where, each in zip(rows_of_tasks, differences, strict=True) if each in excluding}
    assert all(each.mean < 0 for each in excluding)
    assert set(grid.facts.metrics.values()) == {"macro_f1"} and len(grid.facts.seeds) == 5
    assert not any(each.low > 0 or each.high < 0 for each in differences if not each.conditional)
    assert (
        "self-distillation is better\nthan TAPT on twitter_emotion, and not decided against plain fine-tuning" in README
    )
    fixed = writer.Grid.read("study_cpu_fixed").runs
    found = [fixed.difference("self_distillation", other, "twitter_emotion") for other in ("tapt", "finetune")]
    assert [writer.verdict(each) for each in found] == ["better", "undecided"]
    assert all(result.p is not None and result.p > 0.05 for result in grid.runs.over_tasks("finetune"))


@pytest.mark.parametrize("name", sorted(path.parent.name for path in ROOT.glob("results/*/records.jsonl")))
def test_numbers_of_cells_are_those_of_their_stages(name: str, writer: ModuleType) -> None:
    """A number changed by hand in one of the two files would stand on the page."""
    grid = writer.Grid.read(name)
    for cell in grid.cells:
        stage = grid.stages[cell["key"]]
        assert (cell["metrics"], cell["measured"]) == (stage["metrics"], stage["measured"])


def test_a_cause_is_named_for_nothing_that_is_not_seen(writer: ModuleType) -> None:
    for name, finding in writer.EXPLAINED:
        assert finding in writer.findings(writer.Grid.read(name))


def test_a_task_that_plain_fine_tuning_did_not_learn_is_named(writer: ModuleType) -> None:
    grid = writer.Grid.read("small_text")
    finding = writer.UNLEARNED.format("finetune", "scierc")

    def learned(cells: Cells) -> None:
        for cell in of(cells, "finetune"):
            cell["metrics"]["balanced_accuracy"] = 4 / 7  # halfway from the chance of one in seven to all right

    assert finding in writer.findings(grid)
    assert finding not in writer.findings(changed(grid, learned))


def test_a_stage_whose_loss_did_not_fall_is_named(writer: ModuleType) -> None:
    grid = writer.Grid.read("small_text")
    finding = "further_pretrain of tapt on scierc has a loss that did not fall"
    for last, expected in ((1.9, False), (2.0, True)):
        stages = copy.deepcopy(grid.stages)
        for stage in stages.values():
            if stage["name"] == "further_pretrain":
                stage["measured"] |= {"first_loss": 2.0, "last_loss": last}
        assert (finding in writer.findings(dataclasses.replace(grid, stages=stages))) == expected


def test_what_a_search_tried_and_did_not_choose_may_go_wrong(writer: ModuleType) -> None:
    grid = writer.Grid.read("study_cpu")
    stages = copy.deepcopy(grid.stages)
    for cell in grid.of("tapt", "acl_arc"):
        search = cell["search"]
        for number, candidate in enumerate(search["candidates"]):
            if number != search["chosen"]:
                stages[candidate["key"]]["measured"] |= {"first_loss": 1.0, "last_loss": 2.0}
    assert list(writer.findings(dataclasses.replace(grid, stages=stages))) == list(writer.findings(grid))
