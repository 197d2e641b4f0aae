"""Published predictions: metrics come out of them to the last bit, whatever precision their logits have."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench import grid
from bench.data.manifest import read_manifest
from bench.errors import InputError
from bench.planning.plan import make_plan
from bench.predictions import main, recomputed
from bench.store.files import sha256
from bench.store.store import Store
from bench.tables.command import main as collate
from bench.tables.predictions import predictions_path, read_predictions
from bench.training.evaluate import metrics
from tests import tiny_grid
from tests.tables.test_records import PROVENANCE


def made_up(
    folder: Path, data: Path, logits: torch.Tensor, precision: str | None = "float16", keep: bool = True
) -> tuple[list[str], Store, Path]:
    """A store with a cell of these logits, the arguments of `collate`, and where its predictions will be published."""
    gin = tiny_grid.write(folder, ["finetune"], *([f"grid.publish_predictions = {precision!r}"] if precision else []))
    store = Store(folder / "runs")
    plan = make_plan([str(gin)], [], [], data, store)
    cell = plan.cells[0]
    for stage in plan.stages:
        store.add(stage)
    attempt = store.claim(cell.stage)
    assert attempt is not None
    home = store.folder(cell.stage)
    (home / "weights.safetensors").write_bytes(b"weights")
    labels = torch.arange(len(logits)) % 10
    save_file(
        {"test/index": torch.arange(len(logits)), "test/labels": labels, "test/logits": logits},
        home / "predictions.safetensors",
    )
    manifest = read_manifest("digits", data)
    assert manifest is not None and manifest.class_names is not None
    facts = {
        name: {"file": path.name, "sha256": sha256(path), "bytes": path.stat().st_size}
        for name in ("weights", "predictions")
        if (path := home / f"{name}.safetensors")
    }
    if not keep:
        del facts["predictions"]
    values = metrics(logits.double(), labels, manifest.class_names)
    record = {"metrics": values, "measured": {}, "seconds": 1.0, "provenance": PROVENANCE}
    store.publish(attempt, cell.stage, {"key": cell.stage.key, **facts, **record})
    results = folder / "results"
    arguments = ["--gin", str(gin), "--data", str(data), "--store", str(store.root), "--results", str(results)]
    return arguments, store, predictions_path(results, "tiny", cell.name, cell.stage.key)


def near_ties(examples: int = 60) -> torch.Tensor:
    """Logits whose two greatest are a tie in float16, where the wrong one stands first."""
    logits = torch.randn(examples, 10, generator=torch.Generator().manual_seed(0))
    logits[:, 3], logits[:, 7] = 5.0, 5.0 + 2**-12
    return logits


@pytest.mark.parametrize("command", [["grid", "--plan"], ["grid"], ["collate"]])
def test_names_too_long_for_a_file_of_predictions_are_refused_first(
    command: list[str], prepared: Path, tmp_path: Path
) -> None:
    row = "a" * 210  # too long only with task, backbone, seed and key
    gin = tiny_grid.write(tmp_path, [f"{row}/finetune"], "grid.publish_predictions = 'float32'")
    (tmp_path / "runs").mkdir()
    arguments = ["--gin", str(gin), "--data", str(prepared), "--store", str(tmp_path / "runs")]
    name, *options = command
    with pytest.raises(InputError, match=r"--results.*too long for the file system"):
        (collate if name == "collate" else grid.main)([*arguments, "--results", str(tmp_path / "results"), *options])
    assert not list((tmp_path / "runs").iterdir()) and not (tmp_path / "results").exists()


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_metrics_of_a_trained_grid_come_out_again(
    precision: str, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gin = tiny_grid.write(tmp_path, ["finetune"], f"grid.publish_predictions = '{precision}'", "data.subset = 40")
    results = tmp_path / "results"
    arguments = ["--gin", str(gin), "--data", str(prepared), "--store", str(tmp_path / "runs")]
    arguments += ["--results", str(results), "--device", "cpu", "--launcher", "inline"]
    assert grid.main(arguments) == 0
    path = results / "tiny" / "records.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    assert len(records) == 2
    for record in records:
        predictions = read_predictions(predictions_path(results, "tiny", record["cell"], record["key"]))
        values = recomputed(predictions)
        left_out = {"auroc"} if precision == "float16" else set()
        assert values.keys() == record["metrics"].keys() - left_out
        assert values == {name: record["metrics"][name] for name in values}
        assert predictions.tensors["logits"].dtype == getattr(torch, precision)
    assert f"logits ({precision})" in (results / "tiny.md").read_text(encoding="utf-8")
    capsys.readouterr()
    assert main([str(path)]) == 0
    assert "come out" in capsys.readouterr().out


def test_a_tie_in_float16_flips_no_predicted_class(prepared: Path, tmp_path: Path) -> None:
    logits = near_ties()
    arguments, _, path = made_up(tmp_path, prepared, logits)
    collate(arguments)
    published = load_file(path)
    assert published["logits"].argmax(dim=1).tolist() == [3] * 60
    assert published["predicted"].tolist() == [7] * 60
    losses = torch.nn.functional.cross_entropy(logits.double(), published["labels"], reduction="none")
    assert published["loss"].dtype == torch.float64 and torch.equal(published["loss"], losses)
    record = json.loads((tmp_path / "results" / "tiny" / "records.jsonl").read_text().splitlines()[1])
    values = recomputed(read_predictions(path))
    assert values == {name: record["metrics"][name] for name in record["metrics"].keys() - {"auroc"}}


@pytest.mark.parametrize("number", [-float("inf"), 1e5])
def test_logits_beyond_float16(number: float, prepared: Path, tmp_path: Path) -> None:
    logits = near_ties()
    logits[5, 2] = number
    arguments, _, path = made_up(tmp_path, prepared, logits)
    collate(arguments)
    record = json.loads((tmp_path / "results" / "tiny" / "records.jsonl").read_text().splitlines()[1])
    values = recomputed(read_predictions(path))
    assert values["accuracy"] == record["metrics"]["accuracy"]
    assert str(values["loss"]) == str(record["metrics"]["loss"])


def test_nothing_is_published_unasked_and_no_key_depends_on_it(prepared: Path, tmp_path: Path) -> None:
    keys = []
    for name, precision in (("without", None), ("half", "float16"), ("whole", "float32")):
        (tmp_path / name).mkdir()
        arguments, _, path = made_up(tmp_path / name, prepared, near_ties(), precision)
        collate(arguments)
        assert path.is_file() == (precision is not None)
        keys.append(path.name)
    assert len(set(keys)) == 1
    overridden = make_plan(
        [str(tmp_path / "without" / "tiny.gin")], ["grid.publish_predictions = 'float16'"], [], prepared, None
    )
    assert overridden.table_name == "tiny"  # it computes nothing else


@pytest.mark.parametrize("value", ["'bfloat16'", "'float64'", "16", "True", "''"])
def test_other_precisions_are_refused(value: str, prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"publish_predictions = .*'float32', 'float16'"):
        tiny_grid.plan(tmp_path, prepared, ["finetune"], f"grid.publish_predictions = {value}")


def test_cells_of_older_records_are_named(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, _, path = made_up(tmp_path, prepared, near_ties(), keep=False)
    collate(arguments)
    (warning,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("warning"))
    assert "1 cells" in warning and "finetune/digits/photos_mae/0" in warning and "pydocs" not in warning
    assert not path.exists()
    assert main([str(tmp_path / "results" / "tiny" / "records.jsonl")]) == 1
    assert "no predictions at" in capsys.readouterr().out


def test_what_was_published_is_kept_and_replaced_only_by_something_else(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, store, path = made_up(tmp_path, prepared, near_ties())
    collate(arguments)
    written = path.stat().st_mtime_ns
    collate(arguments)
    assert path.stat().st_mtime_ns == written
    collate([*arguments, "--set", "grid.publish_predictions = 'float32'"])
    assert load_file(path)["logits"].dtype == torch.float32
    path.write_bytes(b"damaged")
    collate(arguments)
    assert load_file(path)["logits"].dtype == torch.float16
    # The cells of a grid whose store is gone keep what is there, without a warning.
    (tmp_path / "empty").mkdir()
    arguments[arguments.index(str(store.root))] = str(tmp_path / "empty")
    capsys.readouterr()
    collate(arguments)
    assert path.is_file() and "warning" not in capsys.readouterr().err


def test_predictions_that_are_damaged_in_the_store_are_refused(prepared: Path, tmp_path: Path) -> None:
    arguments, store, path = made_up(tmp_path, prepared, near_ties())
    (source,) = store.root.glob("*/predictions.safetensors")
    source.write_bytes(source.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"predictions\.safetensors: missing or damaged"):
        collate(arguments)
    assert not path.exists() and (tmp_path / "results" / "tiny.md").is_file()


def test_a_changed_bit_in_published_predictions_is_told_and_mended(prepared: Path, tmp_path: Path) -> None:
    arguments, _, path = made_up(tmp_path, prepared, near_ties())
    collate(arguments)
    whole = path.read_bytes()
    records = tmp_path / "results" / "tiny" / "records.jsonl"
    assert main([str(records)]) == 0
    for position in (-1, -40, -200):  # of whichever tensor
        damaged = bytearray(whole)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="damaged"):
            main([str(records)])
        collate(arguments)
        assert path.read_bytes() == whole


@pytest.mark.parametrize("damage", ["cut off", "foreign", "other cell", "value"])
def test_damaged_or_foreign_predictions_are_told(
    damage: str, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, _, path = made_up(tmp_path, prepared, near_ties())
    collate(arguments)
    records = tmp_path / "results" / "tiny" / "records.jsonl"
    if damage == "value":
        head, line = records.read_text().splitlines()
        record = json.loads(line)
        record["value"] = record["metrics"]["accuracy"] = 0.75
        records.write_text(f"{head}\n{json.dumps(record)}\n")
        stages = records.with_name("stages.jsonl")  # else the two files disagree
        lines = [json.loads(line) for line in stages.read_text().splitlines()]
        for stage in lines:
            if stage["key"] == record["key"]:
                stage["metrics"]["accuracy"] = 0.75
        stages.write_text("".join(f"{json.dumps(stage)}\n" for stage in lines))
        capsys.readouterr()
        assert main([str(records)]) == 1
        assert "accuracy is 0.75 in the records" in capsys.readouterr().out
        return
    if damage == "cut off":
        path.write_bytes(path.read_bytes()[:50])
    elif damage == "foreign":
        save_file({"x": torch.zeros(1)}, path)
    else:
        path.write_bytes(path.read_bytes().replace(b"finetune/digits/photos_mae/0", b"finetune/digits/photos_mae/1"))
    with pytest.raises(InputError, match="another cell" if damage == "other cell" else "damaged, or no predictions"):
        main([str(records)])
