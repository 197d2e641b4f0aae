"""Methods with mistakes: one message that names the recipe, its file and what is legal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import grid

REPOSITORY = Path(grid.__file__).parents[1]

# The real package, and further modules beside it, as where somebody works on methods of their own.
PACKAGE = f"""
__path__.append({str(REPOSITORY / "baselines")!r})
exec(open({str(REPOSITORY / "baselines" / "__init__.py")!r}).read())
"""
HEAD = "from baselines.finetune import finetune\nfrom bench.registry import recipe\n@recipe()\n"
GRID = "grid.rows = ['own']\ngrid.tasks = ['digits']\ngrid.seeds = [0]\n"


@pytest.mark.parametrize(
    ("code", "line", "says"),
    [
        ("def own(cell):\n    finetune(cell)\n", 3, "returned NoneType"),
        ("def own(cell):\n    return [finetune(cell)]\n", 3, "returned list"),
        ("def own(cell):\n    rounds = 0\n    return 1 // rounds\n", 6, "ZeroDivisionError"),
        ("def own(cell):\n    return finetune(cell, rate=1.0)\n", 5, "'rate'"),
        ("def own():\n    return finetune(None)\n", 3, "takes no cell"),
        ("def own(*, cell):\n    return finetune(cell)\n", 3, "takes no cell"),
        ("def own(cell, rate=1.0):\n    return finetune(cell)\n", 3, "'rate' has no type"),
        ("def own(cell, rate: float):\n    return finetune(cell)\n", 3, "'rate' has no default"),
        ("def own(cell, **settings):\n    return finetune(cell)\n", 3, "'settings' has no type"),
    ],
)
def test_a_recipe_with_a_mistake_is_named_with_its_line_and_what_is_legal(
    code: str, line: int, says: str, tmp_path: Path
) -> None:
    shown = refused(tmp_path, HEAD + code)
    assert f"{tmp_path / 'baselines' / 'own.py'}:{line}: the recipe 'own'" in shown
    assert says in shown and "A recipe is a function of a cell" in shown


@pytest.mark.parametrize(
    "code", ["import no_such_library", "def own(", "from baselines.finetune import no_such_name", "1 / 0", "x = y"]
)
def test_a_file_that_cannot_be_imported_is_named(code: str, tmp_path: Path) -> None:
    assert "baselines/own.py cannot be imported: " in refused(tmp_path, code)


def refused(folder: Path, code: str) -> str:
    """Plan a grid with such a method; returns the one message."""
    (folder / "baselines").mkdir()
    (folder / "baselines" / "__init__.py").write_text(PACKAGE)
    (folder / "baselines" / "own.py").write_text(code)
    (folder / "g.gin").write_text(GRID)
    done = subprocess.run(
        [sys.executable, "-m", "bench.grid", "--gin", "g.gin", "--plan"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(folder), str(REPOSITORY)))},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr and done.stderr.count("\n") == 1
    return done.stderr
