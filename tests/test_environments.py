"""The commands where people run them: locales, terminals, folders, proxies, notebooks; and their exit statuses."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import bench
from bench import cli, grid, predictions, prepare, status, tensorboard
from bench.figures import __main__ as figures
from bench.report import __main__ as report
from bench.tables import command as collate
from tests import tiny_grid

ROOT = Path(bench.__file__).parents[1]
ENVIRONMENTS = {
    "the C locale": {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "an encoding without Greek letters": {"PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"},
    "a dumb terminal": {"TERM": "dumb", "COLUMNS": "20"},
    "a home that cannot be written": {"HOME": "/proc/no/home", "XDG_CACHE_HOME": "", "MPLCONFIGDIR": ""},
    "proxies that lead nowhere": dict.fromkeys(("http_proxy", "https_proxy", "ALL_PROXY"), "http://127.0.0.1:9"),
}


def command(module: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        cwd=environment.get("PWD", "/"),
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=240,
        check=False,
    )


def places(folder: Path, data: Path) -> list[str]:
    return ["--store", str(folder / "runs"), "--results", str(folder / "results"), "--data", str(data)]


@pytest.mark.parametrize("kind", ENVIRONMENTS)
def test_a_grid_is_planned_in(kind: str, tmp_path: Path, prepared: Path) -> None:
    gin = tiny_grid.write(tmp_path, ["finetune", "tapt"])
    done = command("bench.grid", "--gin", str(gin), "--plan", *places(tmp_path, prepared), **ENVIRONMENTS[kind])
    assert done.returncode == 0, done.stderr
    assert "stages: 0 done" in done.stdout and not done.stderr


def test_a_grid_runs_to_its_table_with_all_of_it_at_once(tmp_path: Path, prepared: Path) -> None:
    """Also in another folder, below a shell whose startup prints."""
    (tmp_path / "talks").write_text("echo welcome to this cluster\n")
    every = {name: value for environment in ENVIRONMENTS.values() for name, value in environment.items()}
    gin = tiny_grid.write(tmp_path, ["finetune"], "slow/finetune.lr = 3e-3")
    gin.write_text(gin.read_text().replace("['finetune']", "['finetune', 'slow/finetune']"), encoding="utf-8")
    arguments = [
        "--gin",
        str(gin),
        "--only",
        "digits",
        "--device",
        "cpu",
        "--workers",
        "1",
        *places(tmp_path, prepared),
    ]
    done = command("bench.grid", *arguments, BASH_ENV=str(tmp_path / "talks"), ENV=str(tmp_path / "talks"), **every)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[3/3] finetune digits seed 0" in done.stdout and "Traceback" not in done.stderr
    table = next((tmp_path / "results").glob("*.md")).read_text(encoding="utf-8")
    assert "±" in table or "(1)" in table


def test_a_grid_runs_in_a_notebook(tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There a cell may run in a thread, where no signal can be caught, and output is no file."""
    output, ended = io.StringIO(), []
    monkeypatch.setattr(sys, "stdout", output)
    gin = tiny_grid.write(tmp_path, ["finetune"])
    arguments = ["--gin", str(gin), "--only", "digits", "--device", "cpu", *places(tmp_path, prepared)]

    def cell() -> None:
        for launcher in ("inline", "local"):
            ended.append(grid.main([*arguments, "--launcher", launcher, "--set", f"finetune.steps = {len(launcher)}"]))

    thread = threading.Thread(target=cell)
    thread.start()
    thread.join()
    assert ended == [0, 0]
    assert output.getvalue().count("done, ") >= 2


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "grid": grid.main,
    "status": status.main,
    "collate": collate.main,
    "data": prepare.main,
    "figures": figures.main,
    "report": report.main,
    "predictions": predictions.main,
    "tensorboard": tensorboard.main,
}


@pytest.mark.parametrize("name", COMMANDS)
def test_bad_input_ends_with_status_2_and_an_interruption_with_130(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = {
        "data": ["prepare", "nothing"],
        "figures": ["--records", "nowhere.jsonl", "--output", str(tmp_path / "out")],
        "report": ["--records", "nowhere.jsonl", "--output", str(tmp_path / "out.html")],
        "predictions": [str(tmp_path / "nowhere.jsonl")],
        "tensorboard": ["--store", str(tmp_path / "nowhere"), "--output", str(tmp_path / "out")],
    }.get(name, ["--gin", "nowhere.gin"])
    assert cli.reporting_errors(lambda: COMMANDS[name](wrong)) == 2
    assert capsys.readouterr().err.startswith("error: ")

    def interrupted() -> int:
        raise KeyboardInterrupt

    assert cli.reporting_errors(interrupted) == 130


def test_the_statuses_0_1_and_3(tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gin = tiny_grid.write(tmp_path, ["finetune"])
    arguments = ["--gin", str(gin), "--only", "digits", *places(tmp_path, prepared)]
    run = [*arguments, "--launcher", "inline", "--device", "cpu"]
    assert status.main(arguments) == 3
    assert (
        grid.main([*run, "--set", "finetune.lr = 1e30"])
        == status.main([*arguments, "--set", "finetune.lr = 1e30"])
        == 1
    )
    assert grid.main(run) == status.main(arguments) == 0
    assert collate.main(["--gin", str(gin), *places(tmp_path, prepared)]) == 1  # of pydocs there is nothing
    assert prepare.main(["list", "--data", str(prepared)]) == 0
