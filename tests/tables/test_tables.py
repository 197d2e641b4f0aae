"""Tables: what a cell says, recomputed independently; what the legend warns of."""

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.data.manifest import read_manifest
from bench.planning.plan import make_plan
from bench.specs import Stage
from bench.store.files import sha256
from bench.store.manifest import write_manifest
from bench.store.store import Store
from bench.tables.compare import Column, Run, RunTable
from bench.tables.table import collate
from tests import tiny_grid


def cell_text(values: list[float], planned: int) -> str:
    """How a table shows a cell with these values, in percent."""
    runs = tuple(Run("finetune", "digits", seed, value) for seed, value in enumerate(values))
    return (
        RunTable(("finetune",), (Column("digits"),), tuple(range(planned)), runs).summary("finetune", "digits").text()
    )


def test_mean_and_sample_standard_deviation() -> None:
    values = [91.0, 93.0, 98.0]
    mean = sum(values) / 3
    sample = math.sqrt(sum((value - mean) ** 2 for value in values) / 2)  # ddof = 1
    assert cell_text(values, 3) == f"{mean:.2f} ± {sample:.2f} (3)"
    assert cell_text([93.52, 93.52], 2) == "93.52 ± 0.00 (2)"


def test_values_that_are_not_finite_are_shown_as_such() -> None:
    assert cell_text([math.nan, 0.5], 2) == "0.50 (1/2; 1 × nan)"
    assert cell_text([math.inf, 0.5], 2) == "0.50 (1/2; 1 × inf)"


def test_one_value_has_no_spread_and_an_incomplete_cell_says_so() -> None:
    assert cell_text([50.0], 1) == "50.00 (1)"
    assert cell_text([50.0], 3) == "50.00 (1/3)"
    assert cell_text([50.0, 70.0], 5) == "60.00 ± 14.14 (2/5)"
    assert cell_text([], 5) == "– (0/5)"


CPU = {"device": "A processor", "device_type": "cpu"}
OTHER_CPU = {"device": "Another processor"}  # from before GPUs
CARD, OTHER_CARD = ({"device": name, "device_type": "cuda"} for name in ("Card 1", "Card 2"))


@pytest.mark.parametrize(
    ("pretraining", "finetuning", "kinds"),
    [
        (CPU, [CPU, OTHER_CPU], []),
        (CARD, [CARD, CARD], []),
        (CPU, [CPU, CARD], ["CPU", "Card 1"]),
        (CARD, [CARD, OTHER_CARD], ["Card 1", "Card 2"]),
        (CPU, [CARD, CARD], ["CPU", "Card 1"]),
        (CPU, [OTHER_CARD, CARD], ["CPU", "Card 1", "Card 2"]),
    ],
)
def test_a_table_from_several_kinds_of_device_warns(
    pretraining: dict[str, str], finetuning: list[dict[str, str]], kinds: list[str], prepared: Path, tmp_path: Path
) -> None:
    text = tiny_grid.write(tmp_path, ["finetune"]).read_text().replace("grid.seeds = [0]", "grid.seeds = [0, 1]")
    (tmp_path / "tiny.gin").write_text(text)
    plan = make_plan([str(tmp_path / "tiny.gin")], [], [], prepared, Store(tmp_path / "runs"))
    store = Store(tmp_path / "runs")
    ran_on = {stage.key: pretraining for stage in plan.stages}
    for cell in plan.cells:
        ran_on[cell.stage.key] = finetuning[cell.seed]
    for stage in plan.stages:
        store.add(stage)
        publish(store, stage, {**ran_on[stage.key], "commit": "c", "instruction_set": "AVX2", "threads": 1})
    text = collate(plan, store, tmp_path / "results").markdown
    (machine,) = (line for line in text.splitlines() if line.startswith("- Machine: "))
    assert all(one["device"] in machine for one in finetuning)
    warnings = [line for line in text.splitlines() if line.startswith("- Warning: ")]
    assert len(warnings) == (1 if kinds else 0)
    assert all(f"({'; '.join(kinds)})" in warning for warning in warnings)


def publish(store: Store, stage: Stage, provenance: dict[str, Any]) -> None:
    """A made-up record of a stage."""
    attempt = store.claim(stage)
    assert attempt is not None
    path = store.folder(stage) / "weights.safetensors"
    path.write_bytes(b"weights")
    weights = {"file": path.name, "sha256": sha256(path), "bytes": 7}
    facts = {"metrics": {"accuracy": 0.5}, "measured": {}, "seconds": 1.0, "provenance": provenance}
    store.publish(attempt, stage, {"key": stage.key, "weights": weights, **facts})
    store.finish(attempt, "done")


def test_the_overlap_of_train_and_test_stands_in_the_legend(prepared: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(prepared, tmp_path / "data"))
    path = tiny_grid.write(tmp_path, ["finetune"])

    def legend() -> list[str]:
        plan = make_plan([str(path)], [], [], data, Store(tmp_path / "runs"))
        text = collate(plan, Store(tmp_path / "runs"), tmp_path / "results").markdown
        return [line for line in text.splitlines() if line.startswith("- Overlap: ")]

    assert legend() == []
    task = make_plan([str(path)], [], [], data, Store(tmp_path / "runs")).grid.tasks[0]
    manifest = read_manifest(task, data)
    assert manifest is not None
    write_manifest(data / task, replace(manifest, overlap={"test in train": 7}))
    (line,) = legend()
    assert f"{task}: 7 of {manifest.splits['test'].examples} examples of test also occur in train" in line
    splits = {**manifest.splits, "validation": manifest.splits["test"]}
    write_manifest(data / task, replace(manifest, splits=splits, overlap={"validation in train": 3}))
    assert legend() == [], "nothing was selected on that split"
    path.write_text(f"{path.read_text()}\nfinetune/search.candidates = ['finetune.lr = 1e-3', 'finetune.lr = 1e-2']\n")
    (line,) = legend()
    assert "examples of validation also occur in train" in line
