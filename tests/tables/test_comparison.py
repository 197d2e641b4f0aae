"""Records as runs to compare, those of older versions too."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from bench.data.manifest import read_manifest
from bench.planning.plan import make_plan
from bench.store.manifest import write_manifest
from bench.store.store import Store
from bench.tables import grid_facts as facts_module
from bench.tables.comparison import baseline_row, cost_line, runs_of
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


def test_a_plan_names_the_classes_of_two_class_tasks_alone(prepared: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(prepared, tmp_path / "data"))
    plan = make_plan([str(tiny_grid.write(tmp_path, ["finetune"]))], [], [], data, Store(tmp_path / "runs"))
    assert {test.class_names for test in facts_module.facts_of(plan).test.values()} == {None}
    manifest = read_manifest("digits", data)
    assert manifest is not None
    splits = {name: replace(facts, per_class=(facts.examples, 0)) for name, facts in manifest.splits.items()}
    write_manifest(data / "digits", replace(manifest, class_names=("no", "yes"), splits=splits))
    assert facts_module.facts_of(plan).test["digits"].class_names == ("no", "yes")
