"""Methods with mistakes, of the suite and of plugins: one message that names the file, the line and what is legal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import grid
from bench.errors import InputError, MissingPlugin
from bench.planning.load import load_bindings
from bench.planning.plan import Plan, make_plan
from bench.planning.plugins import GROUP, LOADED, load_installed
from bench.planning.registry import RECIPES
from bench.specs import canonical_json
from bench.store.store import Store

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


# ------------------------------------------------------------------------------------------------ plugins


SMOOTHED = """
from dataclasses import dataclass
from bench.methods import Loss, Objective, finetune, recipe

@dataclass(frozen=True)
class Smoothed(Objective):
    NEEDS = frozenset({"labels", "head"})
    epsilon: float = 0.1

    def loss(self, model, batch, state, context):
        from torch.nn.functional import cross_entropy
        return Loss(cross_entropy(model.logits(batch.inputs), batch.labels, label_smoothing=self.epsilon))

@recipe()
def smoothed(cell):
    return finetune(cell, objective=cell.configure(Smoothed()))
"""
WITH_SETTINGS = """grid.plugins = ['{entry}']
grid.rows = ['smoothed', 'half/smoothed']
grid.tasks = ['digits']
grid.seeds = [0]
half/Smoothed.epsilon = 0.5
"""


@pytest.mark.usefixtures("registries")
def test_a_recipe_whose_last_stage_has_a_seed_of_its_own_is_refused(tmp_path: Path) -> None:
    """Every seed of a row would be that one run, with a spread of zero."""
    last = "finetune(cell, objective=cell.configure(Smoothed()))"
    assert last in SMOOTHED
    text = SMOOTHED.replace(last, f"dataclasses.replace({last}, seed=7)")
    (tmp_path / "my_methods.py").write_text(f"import dataclasses\n{text}")
    with pytest.raises(InputError, match=r"smoothed on digits with seed 0: .* the seed 7"):
        plan_with(tmp_path, "my_methods.py")


def plan_with(folder: Path, entry: str) -> Plan:
    (folder / "g.gin").write_text(WITH_SETTINGS.format(entry=entry))
    return make_plan([str(folder / "g.gin")], [], [], folder / "data", None)


@pytest.mark.parametrize(
    ("entry", "file"),
    [
        ("my_methods.py", "my_methods.py"),
        ("lib/my_methods.py", "lib/my_methods.py"),
        ("my_methods", "my_methods.py"),
        ("lib/my_methods", "lib/my_methods/__init__.py"),
    ],
)
@pytest.mark.usefixtures("registries")
def test_a_plugin_beside_the_gin_file_is_named_by_its_file_alone(entry: str, file: str, tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(SMOOTHED)
    first, second = (cell.stage for cell in plan_with(tmp_path, entry).cells)
    assert '"type":"my_methods.Smoothed"' in canonical_json(first)
    assert first.objective.epsilon == 0.1 and second.objective.epsilon == 0.5  # type: ignore[attr-defined]
    # The key holds no path: it is the same whichever of these ways led to it.
    assert first.key[:16] == KEY


KEY = "9907efe8a144470d"


@pytest.mark.usefixtures("registries")
def test_an_importable_module_and_one_within_a_package_are_plugins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "path" / "own_package").mkdir(parents=True)
    (tmp_path / "path" / "own_package" / "__init__.py").touch()
    (tmp_path / "path" / "own_package" / "losses.py").write_text(SMOOTHED)
    monkeypatch.syspath_prepend(tmp_path / "path")
    stage = plan_with(tmp_path, "own_package.losses").cells[0].stage
    assert '"type":"own_package.Smoothed"' in canonical_json(stage)


@pytest.mark.usefixtures("registries")
def test_an_entry_point_is_loaded_and_named_after_its_distribution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "methods_of_us.py").write_text(SMOOTHED)
    facts = tmp_path / "our_methods-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: Our-Methods\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(f"[{GROUP}]\nours = methods_of_us\n")
    monkeypatch.syspath_prepend(tmp_path)
    load_installed()
    assert LOADED["methods_of_us"].name == "our_methods"
    assert "smoothed" in RECIPES


@pytest.mark.parametrize(
    ("entry", "files", "says"),
    [
        ("no_such.py", {}, "there is no"),
        ("no_such", {}, "no module of that name can be imported"),
        ("no-such", {}, "neither a module's name nor a path"),
        ("own.py", {"own.py": "def own("}, "SyntaxError"),
        ("own.py", {"own.py": "x = 1\n1 / 0"}, "own.py:2"),
        ("own.py", {"own.py": "raise SystemExit(3)"}, "SystemExit"),
        ("own.py", {"own.py": "import beside_it", "beside_it.py": ""}, "beside_it"),
        ("own.py", {"own.py": "x = 1"}, "registers nothing"),
        ("./own.txt", {"own.txt": SMOOTHED}, "is no Python file"),
        ("./own", {"own/losses.py": SMOOTHED}, "has no __init__.py"),
        ("own-methods.py", {"own-methods.py": SMOOTHED}, "must be a letter"),
        ("torch.py", {"torch.py": SMOOTHED}, "would hide"),
        ("json.py", {"json.py": SMOOTHED}, "would hide"),
        ("bench.theory", {}, "part of the suite"),
        ("own.py", {"own.py": SMOOTHED.replace("def smoothed", "def finetune")}, "baselines/finetune.py"),
        ("own.py", {"own.py": SMOOTHED.replace("Smoothed", "CrossEntropy")}, "bench/specs/objectives.py"),
        ("own.py", {"own.py": HEAD + "def own():\n    return 1\n"}, "takes no cell"),
    ],
)
@pytest.mark.usefixtures("registries")
def test_a_plugin_with_a_mistake_is_refused_with_its_line_and_file(
    entry: str, files: dict[str, str], says: str, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "g.gin").write_text(f"\ngrid.plugins = ['{entry}']\n")
    with pytest.raises(InputError) as refused:
        load_bindings([str(tmp_path / "g.gin")], [])
    message = str(refused.value)
    assert message.startswith(f"{tmp_path / 'g.gin'}:2: the plugin ")
    assert Path(entry).name in message and says in message


@pytest.mark.usefixtures("registries")
def test_two_plugins_with_one_name_are_refused_with_both_files(tmp_path: Path) -> None:
    for name in ("one.py", "two.py"):
        (tmp_path / name).write_text(SMOOTHED)
    (tmp_path / "g.gin").write_text("grid.plugins = ['one.py', 'two.py']\n")
    with pytest.raises(InputError) as refused:
        load_bindings([str(tmp_path / "g.gin")], [])
    assert str(tmp_path / "one.py") in str(refused.value) and str(tmp_path / "two.py") in str(refused.value)


@pytest.mark.usefixtures("registries")
def test_two_files_of_one_name_are_refused_with_both(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "own.py").write_text(SMOOTHED)
    (tmp_path / "g.gin").write_text("grid.plugins = ['one/own.py', 'two/own.py']\n")
    with pytest.raises(InputError) as refused:
        load_bindings([str(tmp_path / "g.gin")], [])
    assert str(tmp_path / "one" / "own.py") in str(refused.value)
    assert str(tmp_path / "two" / "own.py") in str(refused.value)


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.usefixtures("registries")
def test_workers_load_plugins_and_an_edited_one_refuses_its_finished_stages(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the stages, those of the suite stay; --again computes the others anew; comments change nothing."""
    own = tmp_path / "lib" / "my_methods.py"
    own.parent.mkdir()
    own.write_text(SMOOTHED)
    short = "finetune.steps = 4\nfinetune.warmup_steps = 1\nsource_pretrain.steps = 4\n"
    (tmp_path / "g.gin").write_text(WITH_SETTINGS.format(entry="lib/my_methods.py") + short)
    run = ["bench.grid", "--gin", "g.gin", "--data", str(prepared), "--workers", "1"]
    assert (done := command(tmp_path, *run)).returncode == 0, done.stderr
    store = Store(tmp_path / "runs")
    (folder, *_) = store.root.glob("finetune-digits-*")
    record = json.loads((folder / "record.json").read_text())
    assert len(record["code"]["my_methods.Smoothed"]) == 1
    with pytest.raises(MissingPlugin, match=r"my_methods.*grid\.plugins"):  # nothing of it is loaded here
        store.load(folder)

    own.write_text(f"# a comment\n{SMOOTHED}")
    assert (same := command(tmp_path, *run)).returncode == 0, same.stderr
    own.write_text(SMOOTHED.replace("=self.epsilon)", "=self.epsilon / 2)"))
    before = sorted(store.root.rglob("*"))
    refused = command(tmp_path, *run)
    assert refused.returncode == 2 and sorted(store.root.rglob("*")) == before
    assert str(own) in refused.stderr and "--again 'smoothed/*' 'half/*'" in refused.stderr
    for module in ("bench.status", "bench.collate"):
        shown = command(tmp_path, module, "--gin", "g.gin", "--data", str(prepared))
        assert shown.returncode == 0 and "other code" in shown.stdout and "my_methods.Smoothed" in shown.stdout
    monkeypatch.chdir(tmp_path)
    assert grid.main([*run[1:-2], "--launcher", "inline", "--again", "*"]) == 0
    assert (after := command(tmp_path, *run)).returncode == 0, after.stderr


@pytest.mark.usefixtures("registries")
def test_a_backbone_of_a_type_that_nothing_can_read_is_refused_by_the_plan(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from dataclasses import dataclass\nfrom bench.methods import Backbone, register_backbone\n"
        "@dataclass(frozen=True)\nclass Own(Backbone):\n    MODALITY = 'image'\n"
        "@register_backbone(Own)\ndef own(cell):\n    return Own('own', None)\n"
    )
    (tmp_path / "g.gin").write_text("grid.plugins = ['own.py']\n")
    with pytest.raises(InputError, match=r"Own.*Derive it from MaskedAutoEncoder"):
        load_bindings([str(tmp_path / "g.gin")], [])
