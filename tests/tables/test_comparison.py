"""Records as runs to compare, those of older versions too."""

from bench.tables.comparison import cost_line, runs_of
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
