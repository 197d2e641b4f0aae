"""What the report says of records: verdicts, warnings, and what comes from a store."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from bench.report import content as module
from bench.report.content import CURVE_POINTS, LOG_CHARACTERS, report
from bench.tables.records import Record, RecordsFile
from tests.report.sample import provenance, sample


def small(**changes: Any) -> RecordsFile:
    return sample(["finetune", "mars"], ["digits", "pydocs"], [0, 1], **changes)


def warnings(content: RecordsFile) -> dict[str, list[str]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_figures", lambda _: ())  # which take long to draw, and warn of nothing
        return dict(report(content, None)["warnings"])


def change(content: RecordsFile, **changes: Any) -> Record:
    """Change the first cell; the cell."""
    record = next(iter(content.cells.values()))
    record.update(changes)
    return record


def test_a_complete_grid_of_one_origin_has_no_warnings() -> None:
    assert warnings(small()) == {}


def test_missing_seeds_are_named_by_row_and_task() -> None:
    content = small()
    content.cells.pop(next(iter(content.cells)))
    assert warnings(content) == {"Missing seeds: 1 of 8 planned numbers are not there.": ["finetune on digits: 0"]}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"commit": "d" * 40}, "Mixed commits"),
        ({"commit": None}, "Mixed commits"),
        ({"device": "Another processor"}, "Mixed devices"),
        ({"instruction_set": "AVX512"}, "Mixed instruction sets"),
        ({"threads": 2}, "Mixed numbers of threads"),
        ({"versions": {"torch": "2.11.0"}}, "Mixed versions of torch"),
    ],
)
def test_mixed_origins_are_warned_of_even_behind_the_cells(changes: dict[str, Any], named: str) -> None:
    content = small()
    stage = next(stage for stage in content.stages.values() if stage["name"] == "further_pretrain")
    stage["provenance"] = provenance(**changes)
    ((line, values),) = warnings(content).items()
    assert line.startswith(named)
    assert [value.rpartition(" ")[2] for value in values] == ["(9)", "(1)"]


def test_mixed_kinds_of_device_are_warned_of_without_stages() -> None:
    content = small()._replace(stages={})
    change(content, devices=["CPU", "A GPU"])
    assert any(line.startswith("Mixed kinds of device") for line in warnings(content))


def test_other_dates_are_no_warning_but_stand_in_the_provenance() -> None:
    content = small()
    next(iter(content.stages.values()))["date"] = "2025-01-01T00:00:00Z"
    assert warnings(content) == {}
    assert ["dates", [("2026-11-27", 9), ("2025-01-01", 1)]] in report(content, None)["provenance"]


def infinite(content: RecordsFile) -> None:
    record = change(content, value=math.nan)
    record["metrics"]["accuracy"] = math.nan


def inactive(content: RecordsFile) -> None:
    change(content, activity={"pull": {"value": 0.0, "meaning": "share of steps", "nil": True}})


@pytest.mark.parametrize(
    ("damage", "line", "where"),
    [
        (infinite, "not finite", "finetune/digits/tiny/0"),
        (inactive, "did nothing", "pull did nothing in finetune on digits"),
    ],
)
def test_what_makes_a_number_doubtful_is_warned_of(
    damage: Callable[[RecordsFile], None], line: str, where: str
) -> None:
    content = small()
    damage(content)
    ((warning, lines),) = warnings(content).items()
    assert line in warning
    assert len(lines) == 1 and where in lines[0]


def test_warnings_of_the_grid_come_first_and_records_without_stages_are_told() -> None:
    content = small(warnings=("Warning: 3 cells were computed by other code.",))._replace(stages={})
    first, last = warnings(content)
    assert first == "3 cells were computed by other code."
    assert "stages.jsonl" in last


def test_rows_are_sorted_by_where_they_are_better_beyond_noise() -> None:
    # What each row's two seeds score on two tasks. A difference that is the same with both seeds, or nearly, is beyond
    # noise; one of +10 and +39 points is not.
    values: dict[str, tuple[tuple[float, float], ...]] = {
        "reference": ((0.5, 0.51), (0.5, 0.51)),
        "same": ((0.5, 0.51), (0.5, 0.51)),
        "better": ((0.6, 0.611), (0.6, 0.611)),
        "better once": ((0.6, 0.611), (0.6, 0.9)),
        "mixed": ((0.6, 0.611), (0.4, 0.411)),
        "undecided": ((0.6, 0.9), (0.5, 0.51)),
        "worse once": ((0.4, 0.411), (0.5, 0.51)),
        "worse": ((0.4, 0.411), (0.4, 0.411)),
        "worse, once no number": ((math.nan, math.nan), (0.4, 0.411)),
    }
    content = sample([*values, "absent"], ["digits", "pydocs"], [0, 1])
    for identity, record in list(content.cells.items()):
        if record["row"] == "absent":
            del content.cells[identity]
        else:
            record["value"] = values[record["row"]][record["task"] == "pydocs"][record["seed"]]
    assert [rows for _, rows in report(content, None)["verdicts"]] == [
        ["better"],
        ["better once"],
        ["mixed"],
        ["undecided"],
        ["worse once"],
        ["worse", "worse, once no number"],
        ["same"],
        ["absent"],
    ]


def test_other_numbers_of_a_cell_are_warned_of_and_shown_with_it() -> None:
    content = small()
    record = next(iter(content.cells.values()))
    other = {**record, "value": 0.25, "provenance": {**record["provenance"], "device": "Another processor"}}
    change(content, also=[other])
    (warning,) = warnings(content)
    assert warning.startswith("1 cells show the number that came first")
    (cell,) = [cell for cell in report(content, None)["cells"] if "also" in cell]
    (shown,) = cell["also"]
    assert (shown["value"], shown["device"]) == (25.0, "Another processor")


def test_values_are_in_the_units_of_the_table() -> None:
    content = small(metrics={"digits": "accuracy", "pydocs": "loss"})
    cells = {cell["cell"]: cell["value"] for cell in report(content, None)["cells"]}
    assert cells["mars/digits/tiny/1"] == pytest.approx(51.15)
    assert cells["mars/pydocs/tiny/1"] == pytest.approx(0.6115)


def test_a_grid_without_any_number_has_a_report() -> None:
    content = small()
    shown = report(RecordsFile(content.grid, {}, {}), None)
    assert dict(shown["verdicts"]) == {"not compared": ["mars"]}
    assert shown["table"][0] == ["finetune", "– (0/2)", "– (0/2)"]


# ----------------------------------------------------------------------------------------------- curves and logs


def folders(content: RecordsFile, root: Path, steps: int) -> dict[str, Path]:
    """Folders with a curve and a log for all stages but one, of which there is nothing."""
    result = {key: root / key for key in content.stages}
    for folder in list(result.values())[1:]:
        folder.mkdir()
        points = ({"step": step, "lr": 0.1, "loss": 1 / step, "parts": {}} for step in range(1, steps + 1))
        (folder / "curve.jsonl").write_text("".join(f"{json.dumps(point)}\n" for point in points))
        (folder / "log.txt").write_text("".join(f"step {step}/{steps}\n" for step in range(1, steps + 1)))
    return result


def test_every_figure_that_the_records_have_is_drawn_with_its_caption() -> None:
    figures = report(sample(["finetune", "a<b 方法"], ["digits"], [0, 1]), None)["figures"]
    titles = ["Differences to finetune", "Generalisation gap", "Encoder distance", "Test metric and cost"]
    assert [figure["text"].partition(".")[0] for figure in figures] == titles
    assert all(ElementTree.fromstring(figure["svg"]).tag.endswith("svg") for figure in figures)
    assert "a&lt;b 方法" in figures[0]["svg"]


def test_a_report_without_a_store_has_no_curves() -> None:
    assert report(small(), None)["store"] is None


def test_curves_and_logs_of_a_store_are_cut_to_their_end(tmp_path: Path) -> None:
    content = small()
    stored = report(content, folders(content, tmp_path, 1000))["store"]
    without, *rest = stored.values()
    assert stored.keys() == content.stages.keys()
    assert without == {"curve": [], "log": ""}
    for stage in rest:
        assert stage["curve"][-1] == [1000, 0.001]
        assert 100 < len(stage["curve"]) <= 200
        assert stage["log"].endswith("step 1000/1000\n") and len(stage["log"]) == 2000


def test_many_stages_share_the_room_for_curves_and_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = small()
    assert CURVE_POINTS >= 10 * 10_000 and LOG_CHARACTERS >= 10 * 10_000
    monkeypatch.setattr("bench.report.content.CURVE_POINTS", 10 * 20)
    monkeypatch.setattr("bench.report.content.LOG_CHARACTERS", 10 * 150)
    last = list(report(content, folders(content, tmp_path, 100))["store"].values())[-1]
    assert len(last["curve"]) == 20
    assert len(last["log"]) == 150


def test_the_reference_is_that_of_the_grid() -> None:
    content = small()
    assert content.grid is not None
    content = content._replace(grid=dataclasses.replace(content.grid, reference="mars"))
    assert {difference["row"] for difference in report(content, None)["differences"]} == {"finetune"}
