"""Methods over what their rows differ in: positions, bold and differences in each column, rows without a place."""

import csv
import io
from pathlib import Path

import pytest

from bench.errors import InputError
from bench.tables.command import main
from bench.tables.layout import lineage
from bench.tables.table import View, tables
from tests.figures.made_up import MadeUp, stage


def sizes() -> MadeUp:
    """Two methods at two sizes each, on two tasks; the larger size is another one on each."""
    rows = ["few/finetune", "few/mars", "all/finetune", "all/mars"]
    made_up = MadeUp(rows, ["digits", "pydocs"], seeds=3)
    for task, examples in (("digits", 1000), ("pydocs", 2000)):
        for row in rows:
            start = 0.5 + 0.3 * row.startswith("all") + 0.1 * row.endswith("mars")
            values = [start + 0.01 * seed + 0.001 * seed * row.endswith("mars") for seed in range(3)]
            subset = 100 if row.startswith("few") else None
            made_up.add(row, values, task=task, data={"subset": subset, "examples": examples})
    return made_up


def rounds() -> MadeUp:
    made_up = MadeUp(["finetune", "zero/tapt", "one/self_distillation", "two/self_distillation"])
    made_up.add("finetune", [0.5, 0.5])
    stages = [stage("further_pretrain")]
    for row in made_up.facts.rows[1:]:
        number = len(stages)
        made_up.add(row, [0.5 + number / 100] * 2, *stages, measured=[{"encoder_distance": 10.0 / number}] * 2)
        stages.append(stage(f"self_distill_{number}"))
    return made_up


def test_what_a_search_tried_is_no_stage_that_a_cell_was_trained_from() -> None:
    """Of two rates of pre-training and of fine-tuning, the second of each was chosen."""
    made_up = MadeUp(["tapt"], seeds=1)
    pretrainings = [stage("further_pretrain", of=f"rate {number}") for number in range(2)]
    finals = [
        {"schedule": {"lr": lr}, "init": {"stage": of["key"]}} for lr, of in zip((1, 2), pretrainings, strict=True)
    ]
    trials = [stage("finetune", of=f"trial {number}", init=each["init"]) for number, each in enumerate(finals)]
    made_up.add("tapt", [0.5], *pretrainings, *trials, finals=finals, init=finals[0]["init"])
    (record,) = made_up.content.cells.values()
    made_up.content.stages[record["key"]]["search"] = {"chosen": 1}
    trained = lineage(record, made_up.content.stages)
    assert [line["key"] for line in trained] == [pretrainings[1]["key"], record["key"]]
    assert trained[-1]["spec"] == finals[1]


def table(made_up: MadeUp, view: View) -> dict[str, str]:
    return tables(made_up.facts, list(made_up.content.cells.values()), made_up.content.stages, view)


def lines_of(made_up: MadeUp, view: View) -> list[list[str]]:
    return list(csv.reader(io.StringIO(table(made_up, view)[".csv"])))


def test_columns_are_positions_and_lines_methods() -> None:
    assert lines_of(sizes(), View(layout="size")) == [
        ["task", "method", "100", "1000", "2000"],
        ["digits", "finetune", "51.00 ± 1.00 (3)", "81.00 ± 1.00 (3)", ""],
        ["digits", "mars", "61.10 ± 1.10 (3)", "91.10 ± 1.10 (3)", ""],
        ["pydocs", "finetune", "51.00 ± 1.00 (3)", "", "81.00 ± 1.00 (3)"],
        ["pydocs", "mars", "61.10 ± 1.10 (3)", "", "91.10 ± 1.10 (3)"],
    ]


def test_bold_and_differences_are_those_of_a_column() -> None:
    text = table(sizes(), View(layout="size"))[".md"]
    assert text.count("**61.10 ± 1.10 (3)**") == 2 and text.count("**91.10 ± 1.10 (3)**") == 2
    # The reference row is few/finetune, so the method of all lines is compared with finetune at its own size.
    compared = text.split("minus finetune")[1].split("\n\n")[0]
    assert compared.count("+10.10 [9.85, 10.35]") == 4
    assert "- p:" not in text and "average rank" not in text


def test_a_layout_of_a_measured_quantity() -> None:
    lines = lines_of(rounds(), View("encoder_distance", "rounds"))
    assert lines == [
        ["method", "0", "1", "2"],
        ["tapt", "10.00 ± 0.00 (2)", "", ""],
        ["self_distillation", "", "5.00 ± 0.00 (2)", "3.33 ± 0.00 (2)"],
    ]
    text = table(rounds(), View("encoder_distance", "rounds"))[".md"]
    assert text.startswith("# made_up: encoder distance (no unit) over rounds\n")
    assert "--measure encoder_distance --layout rounds --records rebuilds" in text and "minus" not in text


def test_lines_that_are_left_out_are_told_under_a_layout(tmp_path: Path) -> None:
    path = sizes().write(tmp_path / "made_up")
    path.write_text(path.read_text(encoding="utf-8") + "{\n", encoding="utf-8")
    assert main(["--records", str(path), "--results", str(tmp_path / "out"), "--layout", "size"]) == 1
    text = (tmp_path / "out" / "made_up@size.md").read_text(encoding="utf-8")
    assert "`made_up/records.jsonl:26` (this line)" in text and "81.00 ± 1.00 (3)" in text


def test_rows_without_a_place_are_named_under_the_table() -> None:
    made_up = MadeUp(["finetune", "a/tapt", "b/tapt", "c/tapt", "mixed/tapt"])
    made_up.add("finetune", [0.5, 0.6])
    for row, steps in (("a/tapt", 10), ("b/tapt", 20)):
        made_up.add(row, [0.6, 0.7], stage("further_pretrain", of=row, schedule={"steps": steps}))
    two = [stage("further_pretrain", of=f"mixed {steps}", schedule={"steps": steps}) for steps in (10, 20)]
    made_up.add("mixed/tapt", [0.6, None], *two)
    text = table(made_up, View(layout="steps"))[".md"]
    (line,) = (line for line in text.splitlines() if line.startswith("- Not in the table:"))
    assert "c/tapt on digits, of which no cell has finished" in line
    assert "mixed/tapt on digits, which has no one count of steps" in line
    assert lines_of(made_up, View(layout="steps")) == [
        ["method", "0", "10", "20"],
        ["finetune", "55.00 ± 7.07 (2)", "", ""],
        ["tapt", "", "65.00 ± 7.07 (2)", "65.00 ± 7.07 (2)"],
    ]


def test_rows_at_the_same_place_are_lines_of_their_own() -> None:
    made_up = MadeUp(["a/tapt", "b/tapt", "c/tapt", "a/other", "b/other"])
    for row, steps in (("a/tapt", 10), ("b/tapt", 20), ("c/tapt", 20), ("a/other", 10), ("b/other", 20)):
        made_up.add(row, [0.5, 0.5], stage("further_pretrain", of=row, schedule={"steps": steps}))
    assert [line[0] for line in lines_of(made_up, View(layout="steps"))] == [
        "method", "a/tapt", "b/tapt", "c/tapt", "other"
    ]  # fmt: skip


def test_the_command_writes_and_rebuilds_layouts(tmp_path: Path) -> None:
    path = rounds().write(tmp_path / "made_up")
    arguments = ["--records", str(path), "--results", str(tmp_path), "--layout", "rounds", "steps"]
    with pytest.raises(InputError, match="--layout steps: no method has numbers at two"):
        main(arguments)
    assert [file.name for file in tmp_path.iterdir()] == ["made_up"]
    assert main([*arguments[:-1], "--measure", "encoder_distance", "accuracy"]) == 0
    first = {file.name: file.read_bytes() for file in tmp_path.glob("made_up*.*")}
    assert first.keys() >= {"made_up@encoder_distance@rounds.md", "made_up@accuracy@rounds.tex", "made_up.csv"}
    assert main([*arguments[:-1], "--measure", "encoder_distance", "accuracy"]) == 0
    assert {file.name: file.read_bytes() for file in tmp_path.glob("made_up*.*")} == first


def test_missing_stages_are_told(tmp_path: Path) -> None:
    path = rounds().write(tmp_path / "made_up")
    path.with_name("stages.jsonl").unlink()
    with pytest.raises(InputError, match=r"--layout rounds: stages\.jsonl beside the records lacks stages"):
        main(["--records", str(path), "--results", str(tmp_path), "--layout", "rounds"])
