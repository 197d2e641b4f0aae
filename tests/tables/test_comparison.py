"""Records as runs to compare, those of older versions too."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

from bench.data.manifest import read_manifest
from bench.data.metrics import describe
from bench.planning.plan import make_plan
from bench.store.manifest import write_manifest
from bench.store.store import Store
from bench.tables import grid_facts as facts_module
from bench.tables.comparison import baseline_row, cost_line, runs_of
from bench.tables.table import Table, tables
from tests import tiny_grid
from tests.report.sample import digest, grid_facts, records_of


def test_a_record_of_before_may_be_a_stage_behind_a_newer_one() -> None:
    """As plain fine-tuning is, whose network teaches the row beside it."""
    taught, behind = records_of("b", "task", 0, 0.6)
    plain, _ = records_of("a", "task", 0, 0.5)
    del plain["stages"]
    plain["spec"] = {"type": "Stage", "key": plain["key"], "data": {"task": "task"}, "init": "pretrained"}
    teacher = {**behind[-1], "key": plain["key"]}
    taught["stages"].insert(0, teacher["key"])
    stages = {stage["key"]: stage for stage in (*behind, teacher)}
    grid = grid_facts(["a", "b"], ["task"], [0])
    runs = {run.row: run.stages for run in runs_of(grid, [plain, taught], stages).runs}
    assert runs == {"a": {plain["key"]}, "b": {plain["key"], digest("task"), taught["key"]}}
    assert cost_line(grid, [plain, taught], stages) == []  # nobody knows all that the older one took


@pytest.mark.parametrize(("backbones", "conditional"), [("same", False), ("different", True)])
def test_a_backbone_of_one_row_alone_makes_its_differences_conditional(backbones: str, conditional: bool) -> None:
    """It was trained once, on other data, and its luck is in the numbers of all seeds."""
    records, stages = [], {}
    for row, value in (("a", 0.5), ("b", 0.6)):
        for seed in (0, 1):
            record, behind = records_of(row, "task", seed, value + 0.01 * seed)
            backbone = {**behind[-1], "key": digest(row if backbones == "different" else "backbone"), "task": "photos"}
            record["stages"] = [backbone["key"], record["key"]]
            records.append(record)
            stages |= {stage["key"]: stage for stage in (*behind, backbone)}
    difference = runs_of(grid_facts(["a", "b"], ["task"], [0, 1]), records, stages).difference("b", "a", "task")
    assert difference.conditional == conditional


def test_the_cost_says_of_how_many_stages_evaluation_was_not_timed() -> None:
    """Only stages that are evaluated count: pre-training has nothing to evaluate."""
    record, behind = records_of("finetune", "task", 0, 0.6)
    stages = {stage["key"]: {**stage, "seconds": 1800.0} for stage in behind}
    stages[record["key"]]["provenance"] = {**stages[record["key"]]["provenance"], "threads": 1}
    grid = grid_facts(["finetune"], ["task"], [0])
    (line,) = cost_line(grid, [record], stages)
    assert line.endswith("core-hours, without the evaluation of 1, which was not timed.")
    stages[record["key"]]["measured"]["evaluation_seconds"] = 600.0
    (line,) = cost_line(grid, [record], stages)
    assert line.endswith("core-hours.")


def test_the_most_frequent_class_has_an_f1_where_the_classes_have_names() -> None:
    metrics = {"pairs": "binary_f1[a/b]", "others": "mismatched/binary_f1[no]", "before": "binary_f1[no]"}
    test = {
        "pairs": facts_module.TestFacts(10, (7, 3), ("a/b", "no")),
        "others": facts_module.TestFacts(10, (7, 3), ("a/b", "no")),
        "before": facts_module.TestFacts(10, (7, 3)),
    }
    grid = grid_facts(["finetune"], list(metrics), [0], metrics=metrics, test=test)
    # 7 of 10 are a/b: precision .7 and recall 1; the other class is never said.
    assert baseline_row(grid, grid.metrics) == [f"{200 * 0.7 / 1.7:.2f}", "0.00", "–"]
    line = grid.as_line()
    assert "class_names" not in line["grid"]["test"]["before"]  # as files of before have none
    assert facts_module.read_facts(json.loads(json.dumps(line))) == grid
    line["grid"]["test"]["pairs"]["class_names"] = ["a/b", "no", "more"]
    with pytest.raises(ValueError, match="class names"):
        facts_module.read_facts(json.loads(json.dumps(line)))


def test_the_most_frequent_class_stands_in_its_own_column_after_reading() -> None:
    test = {"b": facts_module.TestFacts(10, (7, 3)), "a": facts_module.TestFacts(10, (5, 5))}
    grid = grid_facts(["finetune"], ["b", "a"], [0], test=test)
    read = facts_module.read_facts(json.loads(json.dumps(grid.as_line(), sort_keys=True)))
    assert baseline_row(read, {"a": "accuracy", "b": "accuracy"}) == ["70.00", "50.00"]
    assert list(read.metrics) == list(read.test) == ["b", "a"]


def test_a_plan_names_the_classes_of_two_class_tasks_alone(prepared: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(prepared, tmp_path / "data"))
    plan = make_plan([str(tiny_grid.write(tmp_path, ["finetune"]))], [], [], data, Store(tmp_path / "runs"))
    assert {test.class_names for test in facts_module.facts_of(plan).test.values()} == {None}
    manifest = read_manifest("digits", data)
    assert manifest is not None
    splits = {name: replace(facts, per_class=(facts.examples, 0)) for name, facts in manifest.splits.items()}
    write_manifest(data / "digits", replace(manifest, class_names=("no", "yes"), splits=splits))
    assert facts_module.facts_of(plan).test["digits"].class_names == ("no", "yes")


Values = dict[tuple[str, str], tuple[float | None, ...]]


def legend_of(values: Values, same: Mapping[tuple[str, str, int], str] = MappingProxyType({})) -> list[str]:
    """The legend of a table of these values, by row and task and in the order of seeds.

    `same` are cells that are the stage of another row.
    """
    rows, tasks = (list(dict.fromkeys(names)) for names in zip(*values, strict=True))
    records, stages = [], {}
    for (row, task), of_seeds in values.items():
        for seed, value in enumerate(of_seeds):
            if value is not None:
                record, behind = records_of(same.get((row, task, seed), row), task, seed, value)
                records.append({**record, "row": row, "method": row})
                stages |= {stage["key"]: stage for stage in behind}
    facts = grid_facts(rows, tasks, range(max(map(len, values.values()))))
    return tables(facts, records, stages)[".md"].splitlines()


def test_rows_that_are_the_same_computation_are_named() -> None:
    values: Values = {(row, task): (0.5, 0.6, 0.7) for row in ("a", "b", "c", "d", "e") for task in ("t", "u")}
    assert not any("same computation" in line for line in legend_of(values))  # equal numbers are no equal keys
    same = {("c", task, seed): "a" for task in ("t", "u") for seed in range(3)}
    same |= {("d", "u", seed): "b" for seed in range(3)} | {("e", "t", 0): "a"}
    (line,) = (line for line in legend_of(values, same) if "same computation" in line)
    assert line.endswith(": a and c on all tasks; b and d on u.")


def test_a_legend_says_of_how_many_tasks_and_seeds_each_p_is() -> None:
    values: Values = {
        ("finetune", "t"): (0.50, 0.51, 0.53),
        ("finetune", "u"): (0.60, 0.62, 0.61),
        ("finetune", "v"): (0.70, 0.72, 0.73),
        ("whole", "t"): (0.51, 0.52, 0.55),
        ("whole", "u"): (0.63, 0.62, 0.61),
        ("whole", "v"): (0.71, 0.77, 0.70),
        ("gaps", "t"): (0.51, None, 0.55),
        ("gaps", "u"): (0.63, 0.62, 0.61),
        ("gaps", "v"): (None, None, None),
    }
    (line,) = (line for line in legend_of(values) if "Holm" in line)
    assert "(3 tasks, 3 seeds; of gaps 2 tasks, 2 to 3 seeds)" in line


def test_a_legend_says_why_a_difference_has_no_interval() -> None:
    spread, whole = (0.50, 0.52), (0.51, 0.55)
    assert not any("No interval" in line for line in legend_of({("finetune", "t"): spread, ("a", "t"): whole}))
    for other, reason in (((0.51, None), "one seed"), ((0.51, 0.53), "the same difference for every seed")):
        (line,) = (line for line in legend_of({("finetune", "t"): spread, ("a", "t"): other}) if "No interval" in line)
        assert f"({reason})" in line


def test_a_column_whose_stages_count_under_another_is_named() -> None:
    """As mnli_mismatched is: the stages of mnli on another split."""
    records, stages = [], {}
    for row, value in (("finetune", 0.5), ("a", 0.6)):
        for seed in range(2):
            record, behind = records_of(row, "t", seed, value + 0.01 * seed * (row == "a"))
            records += [{**record, "task": task, "cell": f"{row}/{task}/tiny/{seed}"} for task in ("t", "again")]
            stages |= {stage["key"]: stage for stage in behind}
    lines = tables(grid_facts(["finetune", "a"], ["t", "again"], [0, 1]), records, stages)[".md"].splitlines()
    assert any("count once: again " in line for line in lines) and any("(one task)" in line for line in lines)


def test_a_name_with_a_bar_or_html_stays_one_cell_of_text() -> None:
    lines = legend_of({("finetune", "t"): (0.5, 0.6), ("a|<b>", "t"): (0.7, 0.8)})
    of_row = [line for line in lines if line.startswith("|") and "b>" in line]
    assert [line.replace(r"\|", "").count("|") for line in of_row] == [3, 3]
    assert not any("<b>" in line for line in of_row)


def test_a_name_that_looks_like_html_is_text_in_a_legend_too() -> None:
    table = Table(
        "t",
        [["method"]],
        (),
        ("The row <b>x</b> has p < 0.05.", "`` <i> `.", "Left out: `<b>.jsonl`, `` a`<b> ``, <b>."),
    )
    assert table.markdown().splitlines()[2:] == [
        "- The row &lt;b>x&lt;/b> has p < 0.05.",
        "- `` &lt;i> `.",
        "- Left out: `<b>.jsonl`, `` a`<b> ``, &lt;b>.",
    ]


def test_a_class_with_a_line_break_stays_within_its_line_of_the_legend() -> None:
    named = describe("binary_f1[not\n- equal]")
    table = Table("t", [["method"]], (), (f"{named}.", "Next."))
    assert table.markdown().splitlines()[2:] == ["- F1 of the class not - equal.", "- Next."]
