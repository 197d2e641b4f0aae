"""What a plan says it would cost: by finished stages, by those of other grids, by a few timed steps."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bench import cli, grid
from bench.planning import cost
from bench.planning.cost import TABLE_WIDTH, describe_cost, finished_rates, kind_of, seconds_of, unpriced
from bench.planning.describe import describe_plan
from bench.planning.plan import Plan, make_plan
from bench.specs import PLUGIN_NAMES, canonical_json
from bench.store.store import Store, whole_seconds
from bench.training import timing
from bench.training.protocol import Settings
from tests import tiny_grid


def plan_with_times(plan: Plan, seconds: float, *kinds: str) -> Plan:
    """Pretend that all stages of these kinds but the last are finished, and took so long."""
    stages = [stage for stage in plan.stages if stage.name in kinds]
    plan.done.update((stage.key, seconds) for stage in stages[:-1])
    return plan


def test_a_stage_is_of_the_kind_that_its_specification_says(
    tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PLUGIN_NAMES, "baselines", "other")  # as where a method is a plugin's
    gin = tiny_grid.write(tmp_path, ["mars", "self_distillation", "recadam"])
    kinds = set()
    for stage in make_plan([str(gin)], [], [], prepared, None).stages:
        kinds.add(kind_of(stage))
        assert cost._kind_in(json.loads(canonical_json(stage))) == kind_of(stage)
    assert {kind.constraint for kind in kinds} == {"", "other.MarsProjection"}
    assert any("other.FeatureMatching" in kind.objective for kind in kinds)


def test_stages_are_priced_by_examples_of_finished_ones_of_their_kind(tmp_path: Path, prepared: Path) -> None:
    lines = ("grid.tasks = ['digits']", "grid.seeds = [0, 1]")
    plan = tiny_grid.plan(tmp_path, prepared, ["finetune"])
    plan = make_plan([str(tmp_path / "tiny.gin")], lines, [], prepared, None)
    plan = plan_with_times(plan, 8.0, "finetune")
    left = next(stage for stage in plan.to_run(retry=True) if stage.name == "finetune")
    rates = finished_rates(plan, None)
    assert seconds_of(left, rates) == pytest.approx(8.0)  # 4 steps of 8 examples in 8 s, and as many once more
    assert rates[kind_of(left), "digits"] == pytest.approx(8.0 / 32)
    assert {kind.stage for kind in unpriced(plan, rates)} == {"source_pretrain"}


def test_a_method_that_computes_something_else_has_no_price_by_another(tmp_path: Path, prepared: Path) -> None:
    plan = tiny_grid.plan(tmp_path, prepared, ["finetune", "r3f"])
    plan.done.update((stage.key, 8.0) for stage in plan.stages if kind_of(stage).objective != "R3F")
    text = "\n".join(describe_cost(plan, finished_rates(plan, None)))
    assert re.findall(r"unknown: (\d) (\S+) \((\S+)", text) == [("1", "finetune", "R3F"), ("1", "finetune", "R3F")]
    assert "unknown for 2" in text or "the 2 to run" in text
    assert "--measure" in text


def test_seconds_of_training_alone_price_nothing(tmp_path: Path, prepared: Path) -> None:
    """As older code left evaluation out, which may take as long as training."""
    plan = tiny_grid.plan(tmp_path, prepared, ["finetune"])
    store = Store(tmp_path / "runs")
    fine_tuned = next(stage for stage in plan.stages if stage.name == "finetune")
    for measured, price in (({}, None), ({"evaluation_seconds": 1.0}, 4.0)):
        record = {"steps": fine_tuned.total_steps, "seconds": 4.0, "metrics": {"accuracy": 0.5}, "measured": measured}
        plan.done = {fine_tuned.key: whole_seconds(record)}
        assert seconds_of(fine_tuned, finished_rates(plan, None)) == price
        plan.done = {}
        (store.add(fine_tuned) / "record.json").write_text(json.dumps(record))
        assert seconds_of(fine_tuned, finished_rates(plan, store)) == price


def test_stages_of_other_grids_in_the_store_price_too_and_damage_does_not(tmp_path: Path, prepared: Path) -> None:
    plan = tiny_grid.plan(tmp_path, prepared, ["finetune"])
    store = Store(tmp_path / "runs")
    for stage in plan.stages:
        folder = store.add(stage)
        (folder / "record.json").write_text(json.dumps({"steps": stage.total_steps, "seconds": 4.0}))
    other = make_plan([str(tmp_path / "tiny.gin")], ["finetune.lr = 1e-2", "finetune.steps = 8"], [], prepared, None)
    last = other.cells[0].stage
    assert seconds_of(last, finished_rates(other, store)) == pytest.approx(8.0)
    for damage in ("{", "[]"):
        for path in store.root.glob("*/record.json"):
            path.write_text(damage)
        assert seconds_of(last, finished_rates(other, store)) is None


def test_a_few_steps_price_what_nothing_else_does(
    tmp_path: Path, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gin = tiny_grid.write(tmp_path, ["self_distillation"], "further_pretrain.steps = 6", "grid.seeds = [1]")
    text = gin.read_text().replace("grid.seeds = [0]\n", "")
    gin.write_text(text)
    command = ["--gin", str(gin), "--data", str(prepared), "--store", str(tmp_path / "runs"), "--device", "cpu"]
    assert grid.main([*command, "--plan"]) == 0
    assert "cost: unknown" in capsys.readouterr().out
    assert grid.main([*command, "--plan", "--measure"]) == 0
    shown = capsys.readouterr().out
    assert "measuring: self_distill (" in shown and re.search(r"cost: about \d+\.\d minutes of one worker", shown)
    assert "unknown" not in shown
    assert not (tmp_path / "runs").exists()
    assert cli.reporting_errors(lambda: grid.main([*command, "--measure"])) == 2


def test_what_is_timed_counts_evaluation(tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training set is evaluated, too, for its loss; pre-training evaluates nothing."""
    monkeypatch.setattr(timing, "seconds_per_example", lambda *of: 1000.0)
    plan = tiny_grid.plan(tmp_path, prepared, ["tapt"])
    evaluated, unevaluated = (
        next(stage for stage in plan.stages if (stage.name, stage.data.task) == (name, "digits"))
        for name in ("finetune", "further_pretrain")
    )
    examples = sum(data.examples or 0 for data in (evaluated.data, *evaluated.evaluations))
    assert examples > 1000
    settings = Settings(prepared)
    assert timing.estimated_seconds(evaluated, settings) == pytest.approx(1000.0 * examples, rel=1e-3)
    assert timing.estimated_seconds(unevaluated, settings) < 1000.0


def test_a_stage_that_diverges_at_once_leaves_the_price_to_another_of_its_kind(
    tmp_path: Path, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--plan", "--measure", "--data", str(prepared), "--store", str(tmp_path / "runs"), "--device", "cpu"]
    gin = tiny_grid.write(tmp_path, ["finetune", "hot/finetune"], "hot/finetune.lr = 1e30")
    assert grid.main(["--gin", str(gin), *command]) == 0
    shown = capsys.readouterr().out
    assert "cannot be timed: the loss is" in shown and "unknown" not in shown
    assert grid.main(["--gin", str(gin), "--only", "hot", *command]) == 0
    shown = capsys.readouterr().out
    assert "unknown: 1 finetune" in shown and shown.count("cannot be timed") == shown.count("measuring: finetune")


def test_its_tables_fit_eighty_columns_and_its_words_are_explained(tmp_path: Path, prepared: Path) -> None:
    rows = ["finetune", "self_distillation", "a_row_of_a_rather_long_name/supcon", "tapt"]
    shown = describe_plan(tiny_grid.plan(tmp_path, prepared, rows)).splitlines()
    assert max(map(len, shown)) <= TABLE_WIDTH
    for word in ("row", "cell", "stage", "source_pretrain"):
        assert any(line.startswith(f"  {word}: ") for line in shown)


@pytest.mark.parametrize(
    ("only", "rows"),
    [
        ("finetune", {"finetune"}),
        ("tapt", {"slow"}),
        ("slow/tapt", {"slow"}),
        ("slow/tapt/digits/*/0", {"slow"}),
        ("digits", {"finetune", "slow"}),
        ("docs_mlm", {"finetune", "slow"}),
        ("further_pretrain", {"slow"}),
        ("f*", {"finetune"}),
        ("*/digits/*", {"finetune", "slow"}),
    ],
)
def test_a_name_alone_means_all_its_cells(only: str, rows: set[str], tmp_path: Path, prepared: Path) -> None:
    gin = tiny_grid.write(tmp_path, ["finetune", "slow/tapt"])
    plan = make_plan([str(gin)], [], [only], prepared, None)
    assert {cell.row for cell in plan.selected} == rows
    one_task = {
        "digits": {"digits"},
        "slow/tapt/digits/*/0": {"digits"},
        "docs_mlm": {"pydocs"},
        "*/digits/*": {"digits"},
    }
    assert {cell.task for cell in plan.selected} == one_task.get(only, {"digits", "pydocs"})
