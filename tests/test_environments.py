"""The commands where people run them: locales, terminals, folders, proxies, notebooks; and their exit statuses."""

from __future__ import annotations

import io
import os
import runpy
import subprocess
import sys
import threading
from argparse import ArgumentParser
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest

import bench
from bench import grid, prepare, status
from bench.__main__ import COMMANDS
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


def folders(folder: Path, data: Path) -> list[str]:
    return ["--store", str(folder / "runs"), "--results", str(folder / "results"), "--data", str(data)]


@pytest.mark.parametrize("kind", ENVIRONMENTS)
def test_a_grid_is_planned_in(kind: str, tmp_path: Path, prepared: Path) -> None:
    gin = tiny_grid.write(tmp_path, ["finetune", "tapt"])
    done = command("bench.grid", "--gin", str(gin), "--plan", *folders(tmp_path, prepared), **ENVIRONMENTS[kind])
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
        *folders(tmp_path, prepared),
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
    arguments = ["--gin", str(gin), "--only", "digits", "--device", "cpu", *folders(tmp_path, prepared)]

    def cell() -> None:
        for launcher in ("inline", "local"):
            ended.append(grid.main([*arguments, "--launcher", launcher, "--set", f"finetune.steps = {len(launcher)}"]))

    thread = threading.Thread(target=cell)
    thread.start()
    thread.join()
    assert ended == [0, 0]
    assert output.getvalue().count("done, ") >= 2


def status_of(command: str, arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> object:
    """Run a command as `python -m` does, in this process; return its exit status."""
    monkeypatch.setattr(sys, "argv", [command, *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(find_spec(COMMANDS[command].module).origin), run_name="__main__")  # type: ignore[union-attr]
    return ended.value.code


@pytest.mark.parametrize("command", COMMANDS)
def test_bad_input_ends_with_status_2(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = {
        "data": ["prepare", "nothing"],
        "figures": ["--records", "nowhere.jsonl", "--output", str(tmp_path / "out")],
        "report": ["--records", "nowhere.jsonl", "--output", str(tmp_path / "out.html")],
        "predictions": [str(tmp_path / "nowhere.jsonl")],
        "tensorboard": ["--store", str(tmp_path / "nowhere"), "--output", str(tmp_path / "out")],
        "new": ["method", "no-name"],
        "check": ["nowhere.py"],
        "theory": ["--rounds", "0"],
    }.get(command, ["--gin", "nowhere.gin"])
    assert status_of(command, arguments, monkeypatch) == 2
    first = "usage: " if command == "theory" else "error: "  # it has its arguments checked by argparse alone
    assert capsys.readouterr().err.startswith(first)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_interruption_ends_with_status_130(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ArgumentParser, "parse_args", interrupted)
    assert status_of(command, [], monkeypatch) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_the_statuses_0_1_and_3(tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gin = tiny_grid.write(tmp_path, ["finetune"])
    arguments = ["--gin", str(gin), "--only", "digits", *folders(tmp_path, prepared)]
    run = [*arguments, "--launcher", "inline", "--device", "cpu"]
    assert status.main(arguments) == 3
    assert (
        grid.main([*run, "--set", "finetune.lr = 1e30"])
        == status.main([*arguments, "--set", "finetune.lr = 1e30"])
        == 1
    )
    assert grid.main(run) == status.main(arguments) == 0
    assert collate.main(["--gin", str(gin), *folders(tmp_path, prepared)]) == 1  # of pydocs there is nothing
    assert prepare.main(["list", "--data", str(prepared)]) == 0
