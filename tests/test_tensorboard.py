"""Learning curves as TensorBoard events."""

import sys
from pathlib import Path

import pytest

from bench import tensorboard
from bench.errors import InputError
from bench.training.curve import CURVE, Curve


def write_curve(store: Path, name: str, losses: list[float]) -> None:
    (store / name).mkdir(parents=True)
    curve = Curve(store / name)
    for number, loss in enumerate(losses, start=1):
        curve.add(10 * number, 0.1 * number, {"masked": 2 * loss, "loss": loss})


def read_events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The scalars of a run, read by TensorBoard itself."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_names_of_a_points_numbers() -> None:
    point = {"step": 10, "loss": 0.5, "lr": 1, "parts": {"masked": 0.25, "odd": None}}
    assert dict(tensorboard.scalars(point)) == {"loss": 0.5, "lr": 1.0, "parts/masked": 0.25}
    assert dict(tensorboard.scalars({"step": 10})) == {}


def test_a_missing_package_is_named_with_what_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    write_curve(tmp_path / "runs", "finetune-digits-1", [1.0])
    with pytest.raises(InputError, match=r"pip install 'adaptation-bench\[tensorboard\]'"):
        tensorboard.main(["--store", str(tmp_path / "runs"), "--output", str(tmp_path / "events")])
    assert not (tmp_path / "events").exists()


@pytest.mark.parametrize(("curves", "reason"), [(["mars-digits-1"], "It has mars-digits-1"), ([], "Stages write one")])
def test_a_store_without_such_a_curve_is_refused(
    curves: list[str], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorboard, "event_writer", lambda: None)
    arguments = ["--store", str(tmp_path / "runs"), "--output", str(tmp_path / "events"), "--only", "finetune-*"]
    with pytest.raises(InputError, match="no such folder"):
        tensorboard.main(arguments)
    (tmp_path / "runs").mkdir()
    for name in curves:
        write_curve(tmp_path / "runs", name, [1.0])
    with pytest.raises(InputError, match=reason):
        tensorboard.main(arguments)
    assert not (tmp_path / "events").exists()


@pytest.mark.group("tensorboard")
@pytest.mark.filterwarnings("ignore")  # of the packages that TensorBoard brings
def test_events_are_the_curve(tmp_path: Path) -> None:
    store, output = tmp_path / "runs", tmp_path / "events"
    write_curve(store, "finetune-digits-1", [1.0, 0.5, float("nan")])
    write_curve(store, "mars-digits-2", [2.0])
    (store / "empty-digits-3").mkdir()
    (store / "empty-digits-3" / CURVE).touch()
    arguments = ["--store", str(store), "--output", str(output)]
    for _ in range(2):  # a second time replaces the first
        assert tensorboard.main(arguments) == 0
    assert sorted(path.name for path in output.iterdir()) == ["finetune-digits-1", "mars-digits-2"]
    scalars = read_events(output / "finetune-digits-1")
    assert scalars["loss"][:2] == [(10, 1.0), (20, 0.5)] and scalars["loss"][2][0] == 30
    assert scalars["loss"][2][1] != scalars["loss"][2][1]
    assert scalars["lr"] == [(step, pytest.approx(0.01 * step)) for step in (10, 20, 30)]
    assert scalars["parts/masked"][:2] == [(10, 2.0), (20, 1.0)]
    assert read_events(output / "mars-digits-2")["loss"] == [(10, 2.0)]
    write_curve(store, "mars-digits-4", [3.0])
    assert tensorboard.main([*arguments, "--only", "mars-*"]) == 0
    assert read_events(output / "mars-digits-4")["loss"] == [(10, 3.0)]


@pytest.mark.group("tensorboard")
@pytest.mark.filterwarnings("ignore")
def test_files_of_events_do_not_name_the_computer(tmp_path: Path) -> None:
    write_curve(tmp_path / "runs", "finetune-digits-1", [1.0])
    tensorboard.main(["--store", str(tmp_path / "runs"), "--output", str(tmp_path / "events")])
    assert [path.name for path in (tmp_path / "events").rglob("*") if path.is_file()] == [tensorboard.EVENTS]
