"""Plugins in the copy that jobs run: editing a file changes nothing for what is queued."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from bench.launch.slurm.snapshot import changed_since, copied_plugins, snapshot
from bench.launch.slurm.submit import CommandLine
from bench.planning.load import load_grid
from bench.planning.plan import make_plan
from bench.planning.plugins import Plugin
from bench.store.store import Store
from bench.training.protocol import Settings
from tests.planning.test_plugins import SMOOTHED, WITH_SETTINGS

# As in a job: from the copy, whatever the working directory holds; then the stage that the store has.
IN_A_JOB = """
import pickle, sys
import baselines
from pathlib import Path
from bench.planning.plugins import load_all
from bench.planning.plan import make_plan
from bench.store.code import code_of
from bench.store.store import Store
settings, folder, command_line = pickle.loads(Path(sys.argv[1]).read_bytes())
baselines.register()
load_all(settings.plugins)
stage = Store(folder.parent).load(folder)
plan = make_plan(command_line.gin, command_line.set, (), command_line.data, None)
print(stage.objective.WEIGHT_OF_JOB, sys.modules["my_methods"].__file__, code_of(stage)["my_methods.Smoothed"], sep="|")
print(plan.table_name, plan.origin, [cell.stage.key == stage.key for cell in plan.cells], sep="|")
"""


@pytest.mark.parametrize("entry", ["lib/my_methods.py", "lib/my_methods"])
@pytest.mark.usefixtures("registries")
def test_jobs_load_the_copy_of_a_plugin_and_of_what_it_imports(
    entry: str, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = SMOOTHED.replace("    epsilon", "    WEIGHT_OF_JOB = my_helper.WEIGHT\n    epsilon")
    text = f"import my_helper\n{text}"
    own = tmp_path / (entry if entry.endswith(".py") else f"{entry}/__init__.py")
    own.parent.mkdir(parents=True)
    own.write_text(text)
    helper = tmp_path / "lib" / "my_helper.py"  # found as `python -m` finds what lies in the working directory
    helper.write_text("WEIGHT = 'before'\n")
    monkeypatch.syspath_prepend(helper.parent)
    (tmp_path / "g.gin").write_text(WITH_SETTINGS.format(entry=entry))
    store = Store(tmp_path / "runs")
    plan = make_plan([str(tmp_path / "g.gin")], [], [], prepared, store)
    folder = [store.add(stage) for stage in plan.stages][-1]
    code = snapshot(store.root)
    assert changed_since(store.root, code.name) == []
    copy = CommandLine([str(tmp_path / "g.gin")], [], tmp_path, prepared).copied(tmp_path / "gin", code)
    facts = tmp_path / "facts.pkl"
    facts.write_bytes(pickle.dumps((Settings(prepared, plugins=copied_plugins(code)), folder, copy)))

    own.write_text(f"{text}\n1 + 1\n")
    helper.write_text("WEIGHT = 'after'\n")
    assert changed_since(store.root, code.name) == [os.path.relpath(own, tmp_path / "lib"), "my_helper.py"]
    assert snapshot(store.root) != code
    # PYTHONPATH leads to the edited file, too, but behind the copy.
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": f"{code}{os.pathsep}{tmp_path / 'lib'}"}
    ran = subprocess.run(
        [sys.executable, "-c", IN_A_JOB, str(facts)], env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    stage, table = ran.stdout.splitlines()
    weight, file, digest = stage.split("|")
    assert weight == "before" and Path(file).is_relative_to(code) and len(digest) == len("['0123456789abcdef']")
    assert table == "g|g.gin|[False, True]"  # neither name nor legend tell of the copies


@pytest.mark.usefixtures("registries")
def test_a_line_of_the_command_line_for_plugins_gives_way_to_the_copies(tmp_path: Path) -> None:
    (tmp_path / "my_methods.py").write_text(SMOOTHED)
    (tmp_path / "g.gin").write_text(WITH_SETTINGS.format(entry="no_such.py"))
    line = f"grid.plugins = ['{tmp_path / 'my_methods.py'}']"
    load_grid([str(tmp_path / "g.gin")], [line])
    code = tmp_path / "code"
    copied = CommandLine([str(tmp_path / "g.gin")], ["finetune.steps = 7", line], tmp_path, tmp_path).copied(
        tmp_path / "gin", code
    )
    assert copied.set == ["finetune.steps = 7", f"grid.plugins = ['{code / 'my_methods.py'}']"]


@pytest.mark.usefixtures("registries")
def test_settings_of_a_worker_hold_its_plugins() -> None:
    plugin = Plugin("own_methods", "own.methods", Path("/somewhere/own"))
    arguments = Settings(Path("data"), plugins=(plugin,)).arguments()
    assert arguments[arguments.index("--plugin") + 1 :][:3] == ["own_methods", "own.methods", "/somewhere/own"]
