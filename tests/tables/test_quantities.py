"""What tables and figures show of a cell beside its metric: values, directions, what a table says of them."""

import csv
import io
import math
from pathlib import Path

import pytest

from bench.data.metrics import METRICS
from bench.errors import InputError
from bench.tables.command import main
from bench.tables.compare import Column, Run, RunTable
from bench.tables.quantities import QUANTITIES, by_column
from bench.tables.table import View, tables
from tests.figures.made_up import MadeUp
from tests.tables.test_rebuild import files_of
from tests.tables.test_records import Workspace


def measured() -> MadeUp:
    """Two rows, of which mars moves less and has the smaller losses, in both seeds."""
    made_up = MadeUp(["finetune", "mars"], ["digits", "pydocs"])
    for task in made_up.facts.tasks:
        for row, size in (("finetune", 2.0), ("mars", 1.0)):
            values = [{"encoder_distance": 10 * size + seed / 10, "train_loss": size / 8} for seed in (0, 1)]
            made_up.add(row, [0.5, 0.6], task=task, measured=values)
    for record in made_up.content.cells.values():
        record["metrics"]["loss"] = 0.5 + 0.001 * record["seed"] * (record["method"] == "mars")
    return made_up


def table(made_up: MadeUp, view: View) -> dict[str, str]:
    return tables(made_up.facts, list(made_up.content.cells.values()), made_up.content.stages, view)


def lines_of(made_up: MadeUp, measure: str) -> dict[str, list[str]]:
    """The lines of a table by their first entry."""
    head, *lines = csv.reader(io.StringIO(table(made_up, View(measure))[".csv"]))
    return {line[0]: line[1:] for line in (head, *lines)}


def test_a_measured_quantity_is_a_table_of_its_own() -> None:
    lines = lines_of(measured(), "encoder_distance")
    assert lines == {
        "method": ["digits", "pydocs"],
        "finetune": ["20.05 ± 0.07 (2)"] * 2,
        "mars": ["10.05 ± 0.07 (2)"] * 2,
    }
    assert lines_of(measured(), "train_loss")["mars"] == ["0.1250 ± 0.0000 (2)"] * 2
    text = table(measured(), View("encoder_distance"))[".md"]
    assert (
        text.startswith("# made_up: encoder distance (no unit)\n")
        and "--measure encoder_distance --records rebuilds" in text
    )
    assert "−10.00" in text  # mars moves less: without a direction, a difference is the plain one


def test_the_log_of_the_loss_is_taken_seed_by_seed() -> None:
    made_up = measured()
    first, second, *_ = made_up.content.cells.values()
    first["measured"]["train_loss"], second["measured"]["train_loss"] = 0.01, 1.0
    mean, std = math.log(0.01) / 2, math.log(100) / math.sqrt(2)
    assert lines_of(made_up, "log_train_loss")["finetune"][0] == f"{mean:.2f} ± {std:.2f} (2)"
    first["measured"]["train_loss"] = 0.0
    assert lines_of(made_up, "log_train_loss")["finetune"][0] == "0.00 (1/2; 1 × -inf)"


@pytest.mark.parametrize(("better", "best"), [("higher", "a"), ("lower", "b"), (None, None)])
def test_without_a_direction_nothing_is_best_and_nothing_has_a_rank(better: str | None, best: str | None) -> None:
    runs = tuple(Run(row, "t", seed, value + seed / 10) for row, value in (("a", 9.0), ("b", 1.0)) for seed in range(5))
    spread = tuple(Run(run.row, "t", run.seed, run.value + 0.01 * (run.row == "b") * run.seed) for run in runs)
    runs_of_rows = RunTable(("a", "b"), (Column("t", better, "nats"),), tuple(range(5)), spread)  # type: ignore[arg-type]
    assert runs_of_rows.best("t") == best
    assert bool(runs_of_rows.average_ranks()) == (better is not None)
    assert (runs_of_rows.difference("a", "b", "t").mean or 0) * (-1 if better == "lower" else 1) > 0


def test_p_values_over_tasks_need_no_direction_and_probabilities_do() -> None:
    tasks = [f"t{number}" for number in range(6)]
    runs = [Run(row, t, 0, float(n + (n + 2) * (row == "b"))) for n, t in enumerate(tasks) for row in ("a", "b")]
    for better in ("higher", None):
        columns = tuple(Column(task, better, "%") for task in tasks)  # type: ignore[arg-type]
        (result,) = RunTable(("a", "b"), columns, (0,), tuple(runs)).over_tasks("a", draws=1000)
        assert result.p is not None and (result.better is None) == (better is None)


def test_bold_and_ranks_follow_the_direction() -> None:
    made_up = measured()
    for record in made_up.content.cells.values():
        record["measured"]["peak_memory_bytes"] = 2e6 if record["method"] == "mars" else 8e6 + 1e5 * record["seed"]
    text = table(made_up, View("peak_memory_bytes"))
    assert "| **2.0 ± 0.0 (2)** | **2.0 ± 0.0 (2)** | 1.0 " in text[".md"].replace("   ", " ").replace("  ", " ")
    assert r"\textbf{2.0 $\pm$ 0.0 (2)}" in text[".tex"]
    assert "**" not in table(made_up, View("encoder_distance"))[".md"]


def test_the_gap_is_that_of_the_split_which_a_column_shows() -> None:
    made_up = MadeUp(["finetune"], ["mnli", "mnli_mismatched"])
    made_up.facts.metrics["mnli_mismatched"] = "mismatched/accuracy"
    for task in made_up.facts.tasks:
        made_up.add("finetune", [0.5, 0.6], task=task, measured=[{"generalisation_gap": 0.25, "train_loss": 0.5}] * 2)
    for record in made_up.content.cells.values():
        record["metrics"] |= {"loss": 0.75, "mismatched/loss": 0.875, "mismatched/macro_f1": 0.3, "macro_f1": 0.2}
    assert lines_of(made_up, "generalisation_gap")["finetune"] == ["0.250 ± 0.000 (2)", "0.375 ± 0.000 (2)"]
    assert lines_of(made_up, "macro_f1")["finetune"][:2] == ["20.00 ± 0.00 (2)", "30.00 ± 0.00 (2)"]


def test_cells_without_the_quantity_are_counted() -> None:
    made_up = measured()
    del next(iter(made_up.content.cells.values()))["measured"]["encoder_distance"]
    assert lines_of(made_up, "encoder_distance")["finetune"][0] == "20.10 (1/2)"
    assert "Warning: 1 finished cells have no encoder distance" in table(made_up, View("encoder_distance"))[".md"]


@pytest.mark.parametrize(("loss", "text"), [("x", "– (0/2)"), (None, "– (0/2)"), (-1.0, "– (0/2; 2 × nan)")])
def test_a_damaged_measurement_is_no_number(loss: object, text: str) -> None:
    made_up = measured()
    for record in made_up.content.cells.values():
        if record["method"] == "mars":
            record["measured"]["train_loss"] = loss
    assert lines_of(made_up, "log_train_loss")["mars"] == [text] * 2


def test_every_metric_is_a_quantity_with_its_own_direction() -> None:
    without_class = {name: metric for name, metric in METRICS.items() if not metric.needs_positive_class}
    assert without_class.keys() <= QUANTITIES.keys()
    assert all(QUANTITIES[name].better == metric.better for name, metric in without_class.items())
    facts = measured().facts
    assert by_column(facts)["digits"].value({"value": 0.5}) == 50


# ------------------------------------------------------------------------------------------------ the command


def test_tables_of_quantities_are_rebuilt_byte_for_byte(prepared: Path, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, prepared)
    store = workspace.store("whole", range(8), macro_f1=0.25)
    common = ["--results", str(workspace.results), "--measure", "seconds", "macro_f1", "seconds"]
    assert main(["--gin", str(workspace.gin), "--data", str(prepared), "--store", str(store.root), *common]) == 0
    written = files_of(workspace.results)
    assert written.keys() >= {"tiny.md", "tiny@seconds.md", "tiny@seconds.csv", "tiny@macro_f1.tex"}
    again = tmp_path / "again"
    records = workspace.results / "tiny" / "records.jsonl"
    assert main(["--records", str(records), "--results", str(again), "--measure", "seconds", "macro_f1"]) == 0
    assert files_of(again) == written


def test_what_is_no_quantity_or_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = measured().write(tmp_path / "made_up")
    results = ["--results", str(tmp_path / "results")]
    with pytest.raises(SystemExit, match="2"):
        main(["--records", str(path), "--measure", "speed", *results])
    assert "'encoder_distance'" in capsys.readouterr().err
    with pytest.raises(InputError, match="--measure auroc: no record has the AUROC: older versions"):
        main(["--records", str(path), "--measure", "encoder_distance", "auroc", *results])
    with pytest.raises(InputError, match="--against"):
        main(["--records", str(path), "--against", str(path), "--measure", "loss", *results])
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    with pytest.raises(InputError, match="no cell has finished"):
        main(["--records", str(path), "--measure", "seconds", *results])
    assert not (tmp_path / "results").exists()
