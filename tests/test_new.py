"""Skeletons: they pass the kit and run as they are, and nothing is written over."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import grid, new
from bench.check import __main__ as check
from bench.errors import InputError


@pytest.mark.parametrize(
    ("kind", "name", "says"),
    [
        ("method", "my-labels", "Write my_labels"),
        ("method", "2nd", "must be a letter"),
        ("method", "class", "no word of Python"),
        ("method", "finetune", "a method of that name"),
        ("method", "digits", "a task of that name"),
        ("method", "photos_mae", "a backbone of that name"),
        ("method", "further_pretrain", "settings of that name"),
        ("method", "torch", "would hide"),
        ("task", "my-pets", "Write my_pets"),
        ("task", "digits", "of that name"),
        ("task", "downloads", "of that name"),
    ],
)
def test_a_name_that_cannot_be_used_is_refused(
    kind: str, name: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=says):
        new.main([kind, name])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "there"), [("method", "own_one.py"), ("method", "own_one.gin"), ("task", "own_one.gin")]
)
def test_nothing_is_written_over(kind: str, there: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(there).write_text("mine")
    with pytest.raises(InputError, match=f"{there}: there already"):
        new.main([kind, "own_one"])
    assert [path.name for path in tmp_path.iterdir()] == [there] and Path(there).read_text() == "mine"


@pytest.mark.usefixtures("registries")
def test_a_new_method_passes_the_kit_and_its_grid_runs_unchanged(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(prepared)
    assert new.main(["method", "sharp_labels"]) == 0
    assert check.main(["sharp_labels.py"]) == 0, capsys.readouterr()
    assert "note:" not in capsys.readouterr().out
    assert grid.main(["--gin", "sharp_labels.gin", "--launcher", "inline"]) == 0, capsys.readouterr()
    assert "| strong/sharp_labels |" in capsys.readouterr().out


def test_the_grid_of_a_new_task_runs_unchanged(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for folder in prepared.iterdir():
        (tmp_path / "data" / folder.name).symlink_to(folder)
    assert new.main(["task", "opinions"]) == 0
    capsys.readouterr()
    assert grid.main(["--gin", "opinions.gin", "--launcher", "inline"]) == 0, capsys.readouterr()
    shown = capsys.readouterr().out
    assert "| test examples" in shown and "12" in shown
