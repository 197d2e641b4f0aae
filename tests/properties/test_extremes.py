"""Extreme values: what the plan lets through can be run, to finite numbers or to a failure with a reason."""

import contextlib
import io
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import cli, grid
from bench.tables.records import read_records
from tests import tiny_grid
from tests.properties.conftest import examples

SETTINGS = [
    *(
        "finetune.lr",
        "finetune.weight_decay",
        "finetune.eps",
        "finetune.clip_norm",
        "finetune.dropout",
        "finetune.betas",
    ),
    *("finetune.steps", "finetune.epochs", "finetune.batch_size", "finetune.micro_batches", "finetune.warmup_fraction"),
    *("finetune.warmup_steps", "MarsProjection.radius", "MarsProjection.head_radius", "grid.seeds", "grid.threads"),
    *("grid.checkpoint_steps", "data.train_examples", "backbone.width", "backbone.depth", "backbone.mlp_width"),
    *("backbone.heads", "backbone.mask_ratio", "backbone.image_size", "backbone.patch_size"),
]
VALUES = [
    *("0", "1", "-1", "1e-45", "1e-300", "3e38", "1e39", "1e300", "0.999999999", "1.0000001", "2**31"),
    *("10**30", "None", "()", "(0.0, 0.0)", "(0.9, 1.0)", "[0]", "[2147483648]", "[18446744073709551616]", "''"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("extremes")


@settings(max_examples=examples(1))
@given(setting=st.sampled_from(SETTINGS), value=st.sampled_from(VALUES))
def test_what_the_plan_lets_through_ends_in_numbers_or_a_reason(
    setting: str, value: str, folder: Path, prepared: Path
) -> None:
    if setting in ("finetune.steps", "finetune.epochs") and value in ("2**31", "3e38", "10**30"):
        return  # legal up to a billion, and takes as long
    path = tiny_grid.write(folder, ["mars"])
    text = path.read_text().replace("['digits', 'pydocs']", "['digits']")
    number = {"2**31": str(2**31), "10**30": str(10**30)}.get(value, value)
    lines = [line for line in text.splitlines() if not line.startswith(f"{setting} ")]
    path.write_text("\n".join([*lines, f"{setting} = {number}", "grid.name = 'extreme'"]) + "\n")
    said, results = io.StringIO(), folder / "results"
    folders = ["--store", str(folder / "runs"), "--data", str(prepared), "--results", str(results)]
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        arguments = ["--gin", str(path), *folders, "--launcher", "inline", "--device", "cpu"]
        code = cli.reporting_errors(lambda: grid.main(arguments))
    text = said.getvalue()
    assert "Traceback" not in text, text
    if code == 0:
        metrics = [record["metrics"] for record in read_records(results / "extreme" / "records.jsonl").values()]
        assert metrics
        assert all(math.isfinite(number) for each in metrics for number in each.values())
    else:
        assert (code, "error: " in text) == (2, True) or (code, "failed: " in text) == (1, True), text
