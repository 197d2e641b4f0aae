"""The README keeps its promises: its commands exist, its examples run, its numbers are those in results/."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bench.planning.plan import make_plan
from bench.store.store import Store

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"\bmake (\w+)", "\n".join(blocks("bash"))))
    assert {"quickstart", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_commands_are_accepted(tmp_path: Path) -> None:
    commands = [shlex.split(line, comments=True) for line in "\n".join(blocks("bash")).splitlines()]
    grids = [command[1:] for command in commands if command[:3] == ["python", "-m", "bench.grid"]]
    assert len(grids) >= 4
    for command in grids:
        places = ["--plan", "--store", str(tmp_path / "runs"), "--data", str(tmp_path / "data")]
        result = subprocess.run(
            [sys.executable, *command, *places], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(("number", "cells"), [(0, 24), (1, 10)])
def test_the_example_grids_plan_cleanly(number: int, cells: int, tmp_path: Path) -> None:
    (tmp_path / "example.gin").write_text(blocks("gin")[number])
    plan = make_plan([str(tmp_path / "example.gin")], (), (), tmp_path, Store(tmp_path / "runs"))
    assert len(plan.cells) == cells
    assert not plan.splits


def test_it_lists_every_method_and_no_other() -> None:
    from bench.planning.registry import RECIPES

    listed = {
        name for row in re.findall(r"^\| (`.*?) \|", README, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    }
    listed |= {"self_distillation_without_distill"}  # written with an ellipsis
    assert RECIPES.keys() <= listed


def test_the_example_method_plugs_in(tmp_path: Path) -> None:
    (method,) = blocks("python")
    (tmp_path / "my_methods.py").write_text(method)
    (tmp_path / "g.gin").write_text(
        "grid.plugins = ['my_methods.py']\n"
        "grid.rows = ['finetune', 'smoothed', 'half/smoothed']\ngrid.tasks = ['digits', 'pydocs']\n"
        "half/SmoothedCrossEntropy.epsilon = 0.5\n"
    )
    command = [sys.executable, "-m", "bench.grid", "--plan", "--gin", str(tmp_path / "g.gin")]
    command += ["--store", str(tmp_path / "runs")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "30 cells" in result.stdout


def table_rows(text: str) -> list[list[str]]:
    rows = [line for line in text.splitlines() if line.startswith("| ") and "±" in line]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_the_quoted_table_is_the_committed_one() -> None:
    committed = table_rows((ROOT / "results" / "quickstart.md").read_text(encoding="utf-8"))
    assert table_rows(README) == committed
    assert len(committed) == 7


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:bench|baselines|gin|results)/[\w./]*)`", README))))
def test_paths_it_names_exist(path: str) -> None:
    assert (ROOT / path).exists()
