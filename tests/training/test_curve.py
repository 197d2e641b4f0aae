"""Learning curves: a line per step, however often a stage is interrupted; and predictions: metrics come out again."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from bench.data.manifest import read_manifest
from bench.errors import DamagedStore
from bench.planning.plan import make_plan
from bench.specs import Stage
from bench.store.files import digest, sha256
from bench.store.store import Store
from bench.training.curve import CURVE, Curve, losses_at_the_ends, read_curve
from bench.training.evaluate import metrics
from bench.training.protocol import Settings
from bench.training.worker import run
from tests import tiny_grid


def test_a_curve_is_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    curve = Curve(tmp_path)
    curve.cut(0)
    for step in (10, 20, 30):
        curve.add(step, 0.1 * step, {"masked": 1.0, "loss": float(step)})
    with (tmp_path / CURVE).open("a") as file:
        file.write('{"step": 4')  # a kill in the middle of a line
    assert [point["step"] for point in read_curve(tmp_path)] == [10, 20, 30]
    curve.cut(25)
    curve.add(30, 3.0, {"loss": 7.0})
    assert [(point["step"], point["loss"]) for point in read_curve(tmp_path)] == [(10, 10.0), (20, 20.0), (30, 7.0)]
    assert read_curve(tmp_path)[0] == {"step": 10, "lr": 1.0, "loss": 10.0, "parts": {"masked": 1.0}}


@pytest.mark.parametrize("line", ["[]", "{}", '{"step": "x"}', "x"])
def test_a_damaged_line_ends_the_curve(line: str, tmp_path: Path) -> None:
    (tmp_path / CURVE).write_text(f'{{"step": 10}}\n{line}\n{{"step": 30}}\n')
    assert [point["step"] for point in read_curve(tmp_path)] == [10]
    assert read_curve(tmp_path / "nowhere") == []


def test_a_byte_that_is_no_text_ends_the_curve(tmp_path: Path) -> None:
    (tmp_path / CURVE).write_bytes(b'{"step": 10}\n{"step": \xff20}\n{"step": 30}\n')
    Curve(tmp_path).cut(20)
    assert [point["step"] for point in read_curve(tmp_path)] == [10]


def test_the_first_and_the_last_tenth_of_a_curve_say_whether_the_loss_fell(tmp_path: Path) -> None:
    assert losses_at_the_ends(tmp_path) == {}
    curve = Curve(tmp_path)
    for step in range(1, 21):
        curve.add(step, 0.1, {"loss": 1 / step})
    assert losses_at_the_ends(tmp_path) == pytest.approx({"first_loss": 3 / 4, "last_loss": (1 / 19 + 1 / 20) / 2})
    (tmp_path / CURVE).write_text('{"step": 10}\n{"step": 20, "loss": 0.5}\n')
    assert losses_at_the_ends(tmp_path) == {"first_loss": 0.5, "last_loss": 0.5}


def trained(folder: Path, data: Path, stops: list[int]) -> tuple[Store, Stage]:
    """The fine-tuning of the tiny grid with 40 steps, interrupted after each of `stops`."""
    folder.mkdir()
    path = tiny_grid.write(folder, ["finetune"])
    overrides = ["finetune.steps = 40", "data.subset = 40"]
    store = Store(folder / "runs")
    stage = make_plan([str(path)], overrides, [], data, store).cells[0].stage
    for parent in stage.parents:
        assert run(store.add(parent), Settings(data, "cpu"), lambda: False, lambda *_: None).state == "done"
    stage_folder = store.add(stage)
    for stop in [*stops, 10**9]:
        done: list[int] = [0]

        def progress(step: int, steps: int, loss: float, done: list[int] = done) -> None:
            done[0] = step

        outcome = run(stage_folder, Settings(data, "cpu"), lambda stop=stop, done=done: done[0] >= stop, progress)
    assert outcome.state == "done"
    return store, stage


def test_interruptions_change_no_line_of_a_curve(prepared: Path, tmp_path: Path) -> None:
    curves: list[Any] = []
    ends: list[tuple[float, float]] = []
    for name, stops in (("whole", []), ("interrupted", [10, 20])):
        store, stage = trained(tmp_path / name, prepared, stops)
        curves.append(read_curve(store.folder(stage)))
        record = store.record(stage)
        assert record is not None
        ends.append((record["measured"]["first_loss"], record["measured"]["last_loss"]))
        assert len(store.attempts(stage)) == len(stops) + 1
    assert curves[0] == curves[1]
    assert ends[0] == ends[1] == (curves[0][0]["loss"], curves[0][-1]["loss"])
    assert [point["step"] for point in curves[0]] == [10, 20, 30, 40]
    assert curves[0][0]["lr"] > curves[0][-1]["lr"] > 0


def test_a_curve_that_is_not_what_the_record_promises_is_refused(prepared: Path, tmp_path: Path) -> None:
    store, stage = trained(tmp_path / "grid", prepared, [])
    folder, record = store.folder(stage), store.record(stage)
    assert record is not None
    whole = (folder / CURVE).read_text()
    assert record["curve"] == sha256(folder / CURVE)
    (folder / CURVE).write_text(whole.replace('"step": 40', '"step": 41'))
    with pytest.raises(DamagedStore, match=rf"{CURVE}.*damaged"):
        read_curve(folder)
    # Records of before curves had a checksum.
    older = {name: value for name, value in record.items() if name not in ("curve", "digest")}
    (folder / "record.json").write_text(json.dumps({**older, "digest": digest(older)}))
    assert store.record(stage) is not None
    assert read_curve(folder)[-1]["step"] == 41
    (folder / CURVE).unlink()
    assert read_curve(folder) == []


def test_metrics_come_out_of_the_kept_predictions_again(prepared: Path, tmp_path: Path) -> None:
    store, stage = trained(tmp_path / "grid", prepared, [])
    record = store.record(stage)
    assert record is not None
    path = store.folder(stage) / record["predictions"]["file"]
    assert sha256(path) == record["predictions"]["sha256"]
    tensors = load_file(path)
    assert tensors.keys() == {"test/index", "test/labels", "test/logits"}
    assert tensors["test/index"].tolist() == list(range(len(tensors["test/labels"])))
    manifest = read_manifest(stage.data.task, prepared)
    assert manifest is not None and manifest.class_names is not None
    assert metrics(tensors["test/logits"].double(), tensors["test/labels"], manifest.class_names) == record["metrics"]
    assert json.loads(json.dumps(record))["predictions"]["bytes"] == path.stat().st_size
