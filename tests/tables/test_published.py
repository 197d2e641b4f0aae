"""Published numbers: what the file holds, and what is said of ours beside them."""

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from scipy import stats

import bench
from bench.data.metrics import METRICS
from bench.data.tasks import TASKS
from bench.errors import InputError
from bench.planning.gin_files import read_bindings
from bench.tables.compare import Summary
from bench.tables.published import FILE, PublishedCell, compare_with_published, read_published, welch_interval
from tests import simulate_tables as simulated

ROOT = Path(bench.__file__).parents[1]
FIELDS: dict[str, str | float] = {"metric": "accuracy", "finetune.steps": 10_000}
CELL = PublishedCell("table_1", "finetune", "aircraft", 72.0, 1.0, 5, 2.0, FIELDS, "none", ())


def ours(mean: float, std: float | None = 1.0, n: int = 5) -> Summary:
    return Summary(5, n, mean, std)


# --------------------------------------------------------------------------------------------------- the file


def test_the_file_holds_the_papers_tables() -> None:
    results = ROOT / "results"
    assert not results.exists() or (results / "published.json").resolve() == FILE
    cells = read_published()
    counts = Counter(table for table, _, _ in cells)
    assert counts == {
        "table_1": 36, "table_2": 24, "table_3": 14, "table_4_train": 12, "table_4_test": 12, "table_5": 2, "table_6": 4
    }  # fmt: skip
    assert (cells["table_1", "tapt", "chest_xray"].mean, cells["table_1", "tapt", "chest_xray"].std) == (77.79, 2.06)
    assert cells["table_2", "mars", "acl_arc"].fields["metric"] == "macro_f1"
    assert cells["table_2", "mars", "chemprot"].fields["metric"] == "micro_f1"
    assert cells["table_1", "self_distillation", "flower"].mean == 90.28
    for (_, _, task), cell in cells.items():
        assert task in TASKS and cell.std > 0 and cell.n == 5
        assert cell.margin == (None if cell.table.startswith("table_4") else 2.0)
        assert cell.fields["metric"] in METRICS or cell.fields["metric"] == "log_train_loss"
        assert cell.fields["backbone"] == TASKS[task].backbone


def test_cells_that_the_paper_prints_twice_agree() -> None:
    cells = read_published(FILE)
    for row, task, other in [
        ("self_distillation", "cub", ("table_1", "self_distillation", "cub")),
        ("self_distillation_without_distill", "cub", ("table_1", "tapt", "cub")),
        ("self_distillation_without_distill", "scierc", ("table_2", "tapt", "scierc")),
    ]:
        assert (cells["table_3", row, task].mean, cells["table_3", row, task].std) == (
            cells[other].mean,
            cells[other].std,
        )


def test_errata_stand_beside_the_cells_that_they_are_about() -> None:
    cells = read_published(FILE)
    assert any("5,594" in note for note in cells["table_1", "mars", "cub"].notes)
    assert any("79.68" in note for note in cells["table_1", "self_distillation", "flower"].notes)
    assert not any("79.68" in note for note in cells["table_1", "finetune", "flower"].notes)


@pytest.mark.parametrize(("table", "grid"), [("table_1", "image"), ("table_2", "text")])
def test_the_fields_are_the_settings_of_the_papers_grid(table: str, grid: str) -> None:
    bindings = read_bindings([str(ROOT / "gin" / f"{grid}.gin")], []).all
    settings = {binding.target: binding.value for binding in bindings}
    for cell in (cell for cell in read_published(FILE).values() if cell.table == table):
        protocol = {
            name: value for name, value in cell.fields.items() if name.startswith(("finetune.", "further_pretrain."))
        }
        assert protocol == {name: settings[name] for name in protocol}
        assert any(name.startswith("further_pretrain.") for name in protocol) == (cell.pretraining != "none")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    content = json.loads(FILE.read_text())
    del content["tables"]["table_1"]["margin"]
    short = json.loads(FILE.read_text())
    short["tables"]["table_1"]["rows"]["mars"]["cells"].pop()
    for text in ("", "{", "[]", json.dumps(content), json.dumps(short)):
        (tmp_path / "published.json").write_text(text)
        with pytest.raises(InputError, match=r"published\.json"):
            read_published(tmp_path / "published.json")
    with pytest.raises(InputError, match=r"missing\.json"):
        read_published(tmp_path / "missing.json")


# -------------------------------------------------------------------------------------------------- the verdict


def test_the_interval_is_welchs() -> None:
    # The reference value: SciPy's Welch test of two samples that have these means and deviations.
    left, right = [1.0, 2.0, 4.0], [0.0, 0.5, 0.2, 0.9, 0.1]
    expected = stats.ttest_ind(left, right, equal_var=False).confidence_interval(0.9)
    groups = [(float(stats.tstd(values)), len(values)) for values in (left, right)]
    mean = sum(left) / 3 - sum(right) / 5
    assert welch_interval(mean, *groups) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize(
    ("summary", "kind"),
    [
        # For n = 5 and 5 and stds of 1, the interval is the difference ± 1.8595 · 0.6325 = ± 1.176.
        (ours(72.0), "reproduced"),
        (ours(72.8), "reproduced"),
        (ours(71.2), "reproduced"),
        (ours(72.9), "undecided"),
        (ours(75.1), "undecided"),
        (ours(75.2), "different"),
        (ours(68.8), "different"),
        (ours(72.0, 4.0), "undecided"),
        (ours(72.0, None, 1), "undecided"),
        (Summary(5, 0, None, None), "undecided"),
        (Summary(5, 0, None, None, (math.nan,)), "undecided"),
    ],
)
def test_the_verdict_is_where_the_interval_lies(summary: Summary, kind: str) -> None:
    verdict = compare_with_published(summary, CELL, FIELDS, "none")
    assert verdict.kind == kind
    assert bool(verdict.reason) == (kind == "undecided")
    assert verdict.caveat == ""
    if verdict.low is not None and verdict.high is not None and verdict.mean is not None:
        assert verdict.low < verdict.mean < verdict.high


def test_without_a_margin_or_any_spread_nothing_is_decided() -> None:
    assert compare_with_published(ours(72.0), replace(CELL, margin=None), FIELDS, "none").kind == "undecided"
    assert compare_with_published(ours(72.0, 0.0), replace(CELL, std=0.0), FIELDS, "none").kind == "undecided"
    assert compare_with_published(ours(72.0, 0.0), CELL, FIELDS, "none").kind == "reproduced"


@pytest.mark.parametrize("steps", [{}, {"finetune.steps": 500}])
def test_another_protocol_is_not_comparable_and_the_field_is_named(steps: dict[str, str | float]) -> None:
    verdict = compare_with_published(ours(72.0), CELL, {"metric": "accuracy", **steps}, "none")
    assert verdict.kind == "not comparable" and verdict.mean is None
    assert "finetune.steps" in verdict.reason and "metric" not in verdict.reason


def test_shared_pretraining_is_told_on_either_side() -> None:
    both = compare_with_published(ours(72.0), replace(CELL, pretraining="shared"), FIELDS, "shared")
    assert both.kind == "reproduced" and "ours shared" in both.caveat and "published shared" in both.caveat
    perhaps = compare_with_published(ours(72.0), replace(CELL, pretraining="unstated"), FIELDS, "per_seed")
    assert "published perhaps" in perhaps.caveat and "ours" not in perhaps.caveat


@pytest.mark.parametrize("seeds", [2, 5])
def test_at_the_margin_neither_verdict_is_given_too_often(seeds: int) -> None:
    rates = simulated.verdicts(2.0, 0.0, seeds, draws=1000)
    assert rates.get("reproduced", 0) <= 7 and rates.get("different", 0) <= 7
    assert simulated.verdicts(0.0, 0.0, 5, draws=300)["reproduced"] > 70
    assert simulated.verdicts(5.0, 0.0, 5, draws=300)["different"] > 70
