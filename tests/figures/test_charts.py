"""The numbers behind each kind of figure, against values computed by hand."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from bench.figures.charts import KINDS, Chart, paired_difference, summary
from bench.planning.plan import make_plan
from bench.store.files import sha256
from bench.store.store import Store
from bench.tables.grid_facts import facts_of
from bench.tables.quantities import NothingToShow
from bench.tables.records import RecordsFile, computed_records
from tests import tiny_grid
from tests.figures.made_up import PROVENANCE, MadeUp, stage


def at(chart: Chart, **wanted: Any) -> dict[str, Any]:
    """The only point of a chart with these values."""
    (point,) = (p for p in chart.points if all(p[name] == value for name, value in wanted.items()))
    return point


def series(chart: Chart, task: str = "digits") -> dict[str, list[tuple[int | None, float | None]]]:
    """The points (x, mean) of a task by their series."""
    points: dict[str, list[tuple[int | None, float | None]]] = {}
    for point in chart.points:
        if point["task"] == task:
            points.setdefault(point["series"], []).append((point["x"], point["mean"]))
    return points


def test_a_summary_counts_what_is_missing_or_not_finite() -> None:
    point = summary([90.0, 92.0, math.nan, math.inf], 5)
    assert (point["n"], point["planned"], point["not_finite"], point["mean"]) == (2, 5, 2, 91)
    assert point["std"] == pytest.approx(math.sqrt(2))
    assert (point["low"], point["high"]) == pytest.approx((91 - math.sqrt(2), 91 + math.sqrt(2)))
    assert summary([90.0], 1) | {"mean": 90, "std": None, "low": None, "high": None} == summary([90.0], 1)
    assert summary([], 2)["mean"] is None
    assert summary([math.nan], 2) | {"n": 0, "not_finite": 1, "mean": None} == summary([math.nan], 2)


def test_paired_differences_have_t_intervals() -> None:
    made_up = MadeUp(["finetune", "mars"])
    made_up.add("finetune", [0.5, 0.6])
    made_up.add("mars", [0.51, 0.63])
    point = at(KINDS["forest"](made_up.source()), row="mars")
    # Differences of 1 and 3 points: mean 2, standard error 1, and t is 12.706 with one degree of freedom.
    assert (point["n"], point["mean"]) == (2, pytest.approx(2))
    assert (point["low"], point["high"]) == pytest.approx((2 - 12.7062, 2 + 12.7062), abs=1e-3)
    assert point["conditional"] is False


def test_only_common_seeds_are_paired_and_one_has_no_interval() -> None:
    made_up = MadeUp(["finetune", "mars", "r3f"], seeds=3)
    made_up.add("finetune", [0.5, None, 0.7])
    made_up.add("mars", [None, 0.6, 0.75])
    made_up.add("r3f", [None, 0.6, None])
    chart = KINDS["forest"](made_up.source())
    mars, r3f = at(chart, row="mars"), at(chart, row="r3f")
    assert (mars["n"], mars["mean"], mars["low"]) == (1, pytest.approx(5), None)
    assert (r3f["n"], r3f["mean"]) == (0, None)
    assert "mars on digits 1/3" in chart.caption and "r3f on digits 0/3" in chart.caption


def test_lower_is_better_turns_the_difference() -> None:
    made_up = MadeUp(["finetune", "mars"], metric="loss")
    made_up.add("finetune", [0.5, 0.5])
    made_up.add("mars", [0.25, 0.25])
    chart = KINDS["forest"](made_up.source())
    point = at(chart, row="mars")
    assert (point["mean"], point["low"], point["high"]) == (0.25, None, None)  # equal differences have no interval
    assert "nats" in chart.labels["digits"]


def test_differences_are_conditional_where_one_row_alone_shares_stages_between_seeds() -> None:
    made_up = MadeUp(["finetune", "tapt", "other", "elsewhere"])
    shared = stage("further_pretrain")
    made_up.add("finetune", [0.5, 0.5])
    made_up.add("tapt", [0.5, 0.5], shared)
    made_up.add("other", [0.5, 0.5], shared)
    made_up.add("elsewhere", [0.5, 0.5], stage("source_pretrain", "photographs"))
    source = made_up.source()
    assert paired_difference(source, "tapt", "finetune", "digits")["conditional"]
    # What both have in common is no noise of their difference; a backbone that one alone was given is.
    assert not paired_difference(source, "tapt", "other", "digits")["conditional"]
    assert paired_difference(source, "elsewhere", "finetune", "digits")["conditional"]
    for record in made_up.content.cells.values():
        record["search"] = {"candidates": [{"key": record["method"]}]} if record["method"] == "other" else None
    source = made_up.source()
    assert paired_difference(source, "tapt", "other", "digits")["conditional"]
    assert "conditional" in KINDS["forest"](source).caption


def test_without_stages_nobody_knows_whether_a_difference_is_conditional() -> None:
    made_up = MadeUp(["finetune", "mars"])
    made_up.add("finetune", [0.5, 0.6])
    made_up.add("mars", [0.51, 0.63])
    made_up.content.stages.clear()
    chart = KINDS["forest"](made_up.source())
    assert at(chart, row="mars")["conditional"] and "1 of 1 are squares" in chart.caption


def test_accuracy_over_pretraining_steps() -> None:
    rows = ["finetune", "a/tapt", "b/tapt", "c/tapt", "a/self_distillation"]
    made_up = MadeUp(rows)
    made_up.add("finetune", [0.5, 0.6])
    for row, steps in (("a/tapt", 10), ("b/tapt", 20)):
        made_up.add(row, [0.6, 0.7], stage("further_pretrain", of=row, schedule={"steps": steps}))
    epochs = stage("further_pretrain", of="c", schedule={"steps": None, "epochs": 2.0}) | {"steps": 30}
    made_up.add("a/self_distillation", [0.7, None], epochs, stage("self_distill_1"))
    chart = KINDS["steps"](made_up.source())
    assert series(chart) == {
        "finetune": [(0, pytest.approx(55))],
        "tapt": [(10, pytest.approx(65)), (20, pytest.approx(65)), (None, None)],
        "self_distillation": [(30, pytest.approx(70))],
    }
    assert "c/tapt on digits 0/2" in chart.caption


def test_accuracy_over_training_set_size() -> None:
    made_up = MadeUp(["a/finetune", "b/finetune"])
    made_up.add("a/finetune", [0.5, 0.5], data={"subset": 100, "examples": 1000})
    made_up.add("b/finetune", [0.6, 0.6], data={"subset": None, "examples": 1000})
    assert series(KINDS["size"](made_up.source())) == {
        "finetune": [(100, pytest.approx(50)), (1000, pytest.approx(60))]
    }


def rounds() -> MadeUp:
    made_up = MadeUp(["finetune", "zero/tapt", "one/self_distillation", "two/self_distillation"])
    made_up.add("finetune", [0.5, 0.5])
    stages = [stage("further_pretrain")]
    for row in made_up.facts.rows[1:]:
        number = len(stages)
        measured = [{"generalisation_gap": 1 / number, "encoder_distance": 10.0 / number}] * 2
        made_up.add(row, [0.5 + number / 100, 0.5 + number / 100], *stages, measured=measured)
        stages.append(stage(f"self_distill_{number}"))
    return made_up


@pytest.mark.parametrize(
    ("kind", "values"),
    [("rounds", (51, 52, 53)), ("gap_rounds", (1, 1 / 2, 1 / 3)), ("distance_rounds", (10, 5, 10 / 3))],
)
def test_quantities_over_rounds_begin_with_further_pretraining(kind: str, values: tuple[float, ...]) -> None:
    zero, one, two = map(pytest.approx, values)
    assert series(KINDS[kind](rounds().source())) == {"tapt": [(0, zero)], "self_distillation": [(1, one), (2, two)]}


def test_measured_quantities_row_by_row() -> None:
    made_up = rounds()
    chart = KINDS["gap"](made_up.source())
    assert at(chart, row="one/self_distillation")["mean"] == pytest.approx(0.5)
    assert at(chart, row="finetune")["n"] == 0
    assert at(KINDS["distance"](made_up.source()), row="zero/tapt")["mean"] == 10
    cell = next(record for record in made_up.content.cells.values() if record["method"] == "zero/tapt")
    cell["measured"]["generalisation_gap"] = math.nan
    chart = KINDS["gap"](made_up.source())
    assert at(chart, row="zero/tapt") | {"n": 1, "not_finite": 1, "mean": 1, "std": None} == at(chart, row="zero/tapt")
    assert "zero/tapt on digits 1/2 (1 not finite)" in chart.caption


def test_rows_that_have_no_place_on_an_axis_are_named() -> None:
    assert "Without a place on this axis: finetune on digits." in KINDS["rounds"](rounds().source()).caption


def test_rows_of_a_method_at_the_same_place_are_series_of_their_own() -> None:
    made_up = MadeUp(["a/tapt", "b/tapt", "c/tapt", "a/other", "b/other"])
    for row, steps in (("a/tapt", 10), ("b/tapt", 20), ("c/tapt", 20), ("a/other", 10), ("b/other", 20)):
        made_up.add(row, [0.5, 0.5], stage("further_pretrain", of=row, schedule={"steps": steps}))
    assert series(KINDS["steps"](made_up.source())).keys() == {"a/tapt", "b/tapt", "c/tapt", "other"}


def test_costs_count_each_stage_once_and_find_the_front() -> None:
    made_up = MadeUp(["finetune", "as good", "as cheap", "tapt", "worse", "partial"])
    made_up.add("finetune", [0.5, 0.5])
    made_up.add("as good", [0.5, 0.5])
    made_up.add("as cheap", [0.4, 0.4])
    made_up.add("tapt", [0.6, 0.6], stage("further_pretrain", seconds=6 * 3600))
    made_up.add("worse", [0.55, 0.55], stage("further_pretrain", seconds=7 * 3600, of="worse"))
    made_up.add("partial", [0.7, None])
    chart = KINDS["cost"](made_up.source())
    # Two seeds of an hour each; with a pre-training of six hours, eight.
    assert {p["row"]: p["x"] for p in chart.points} == {
        **dict.fromkeys(["finetune", "as good", "as cheap"], 2),
        "tapt": 8,
        "worse": 9,
        "partial": 1,
    }
    assert {p["row"] for p in chart.points if p["front"]} == {"finetune", "as good", "tapt"}
    assert "core-hours" in chart.x_label


def test_core_hours_count_threads_and_gpu_hours_do_not() -> None:
    for device_type, hours, unit in (("cpu", 8, "core-hours"), ("cuda", 2, "GPU-hours")):
        made_up = MadeUp(["finetune"])
        made_up.add("finetune", [0.5, 0.5])
        for line in made_up.content.stages.values():
            line["provenance"] = {**PROVENANCE, "device_type": device_type, "threads": 4}
        chart = KINDS["cost"](made_up.source())
        assert (chart.points[0]["x"], chart.x_label) == (hours, f"cost ({unit})")
    next(iter(made_up.content.stages.values()))["provenance"] = PROVENANCE
    with pytest.raises(NothingToShow, match="cpu and cuda"):
        KINDS["cost"](made_up.source())


def test_what_the_data_do_not_have_is_no_figure() -> None:
    made_up = MadeUp(["finetune"])
    for kind in KINDS:
        with pytest.raises(NothingToShow):
            KINDS[kind](made_up.source())
    made_up.add("finetune", [0.5, 0.5])
    for kind in KINDS.keys() - {"cost"}:
        with pytest.raises(NothingToShow):
            KINDS[kind](made_up.source())
    made_up.content.stages.clear()
    with pytest.raises(NothingToShow, match=r"stages\.jsonl"):
        KINDS["cost"](made_up.source())


def test_records_of_a_real_plan_have_what_the_axes_need(prepared: Path, tmp_path: Path) -> None:
    rows = ["finetune", "a/tapt", "b/tapt", "small/finetune", "one/self_distillation", "two/self_distillation"]
    bindings = ["a/further_pretrain.steps = 4", "b/further_pretrain.steps = 8", "one/further_pretrain.steps = 4"]
    bindings += ["two/further_pretrain.steps = 4", "two/self_distillation.rounds = 2", "small/data.subset = 40"]
    path = tiny_grid.write(tmp_path, rows, *bindings)
    path.write_text(path.read_text().replace("['digits', 'pydocs']", "['digits']"))
    store = Store(tmp_path / "runs")
    store.root.mkdir()
    plan = make_plan([str(path)], [], [], prepared, store)
    for planned in plan.stages:
        store.add(planned)
        attempt = store.claim(planned)
        assert attempt is not None
        weights = store.folder(planned) / "weights.safetensors"
        weights.write_bytes(b"weights")
        facts = {"metrics": {"accuracy": 0.5}, "measured": {}, "seconds": 1.0, "provenance": PROVENANCE}
        kept = {"file": weights.name, "sha256": sha256(weights), "bytes": 7}
        store.publish(attempt, planned, {"key": planned.key, "weights": kept, **facts})
        curve = [{"step": step, "loss": 1 / step, "lr": 0.1, "parts": {}} for step in (1, 2)]
        (store.folder(planned) / "curve.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in curve))
    computed = computed_records(plan, store)
    made_up = MadeUp(["finetune"])
    made_up.content = RecordsFile(facts_of(plan), computed.cells, computed.stages)
    source = made_up.source(store.root)
    steps, sizes = series(KINDS["steps"](source)), series(KINDS["size"](source))
    assert steps["tapt"] == [(4, 50), (8, 50)]
    assert [x for x, _ in sizes["finetune"]][1] == 40 and sizes["finetune"][0][0] > 40  # type: ignore[operator]
    assert series(KINDS["rounds"](source))["self_distillation"] == [(1, 50), (2, 50)]
    curves = KINDS["curves"](source)
    assert list(curves.labels) == [
        f"{name} on digits" for name in ("finetune", "further_pretrain", "self_distill_1", "self_distill_2")
    ]
    first = at(curves, panel="self_distill_1 on digits", x=2)
    assert (first["loss"], first["series"]) == (0.5, "one/self_distillation, two/self_distillation")
