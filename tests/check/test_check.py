"""`bench.check`: what is demanded of methods outside the suite is told with what to mend."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import bench
from bench import grid
from bench.check import __main__ as check
from bench.check.kit import Kit, Unmet
from bench.errors import InputError
from bench.store.states import StageState
from bench.training.protocol import Outcome
from tests.examples import pretraining

ROOT = Path(bench.__file__).parents[1]
PAGE = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")

# Each recipe breaks one promise, and one of them several.
MISTAKES = """
import dataclasses
import random
import torch
from bench.methods import Activity, AdamW, CrossEntropy, Loss, Objective, finetune, recipe
from torch.nn.functional import cross_entropy

def loss_of(model, batch):
    return cross_entropy(model.logits(batch.inputs), batch.labels)

@dataclasses.dataclass(frozen=True)
class Added(Objective):
    NEEDS = frozenset({"labels", "head"})
    def loss(self, model, batch, state, context):
        return Loss(loss_of(model, batch) * len(batch.labels))

@dataclasses.dataclass(frozen=True)
class Seeding(Objective):
    NEEDS = frozenset({"labels", "head"})
    def loss(self, model, batch, state, context):
        random.seed(0)
        return Loss(loss_of(model, batch))

SEEN = []

@dataclasses.dataclass(frozen=True)
class Remembering(Objective):
    NEEDS = frozenset({"labels", "head"})
    def begin(self, model, teacher, context):
        SEEN.clear()
        return super().begin(model, teacher, context)
    def loss(self, model, batch, state, context):
        SEEN.append(1)
        return Loss(loss_of(model, batch) * (1 + len(SEEN)) / 2)

@dataclasses.dataclass(frozen=True)
class Failing(Objective):
    NEEDS = frozenset({"labels", "head"})
    def loss(self, model, batch, state, context):
        return Loss(loss_of(model, batch) + undefined)

@dataclasses.dataclass(frozen=True)
class Thawing(Objective):
    NEEDS = frozenset({"labels", "head", "teacher"})
    def begin(self, model, teacher, context):
        teacher.train()
        return super().begin(model, teacher, context)
    def loss(self, model, batch, state, context):
        return Loss(loss_of(model, batch))

@dataclasses.dataclass(frozen=True)
class Silent(AdamW):
    def activity(self, schedule, total_steps):
        return {"Silent": Activity(float("nan"), "nothing", False)}

@dataclasses.dataclass(frozen=True)
class Ordered(Objective):
    NEEDS = frozenset({"labels", "head"})
    order: str = ",".join({"one", "two", "three", "four", "five", "six"})
    def loss(self, model, batch, state, context):
        return Loss(loss_of(model, batch))
"""
RECIPES = {
    "adding": ("objective=Added()", "takes micro-batches or refuses them", "Return a mean over the micro-batch"),
    "seeding": ("objective=Seeding()", "leaves random generators alone", "Seed nothing"),
    "remembering": ("objective=Remembering()", "goes on after an interruption to the same bits", "State.tensors"),
    "failing": ("objective=Failing()", "trains to the end", "mistakes.py:40"),
    "thawing": ("objective=Thawing(), teacher=finetune(cell)", "keeps teachers frozen", "TeacherOutput"),
    "silent": ("optimizer=Silent()", "says what it did", "no finite number"),
    "ordering": ("objective=Ordered()", "has a stable key", "the order of a set"),
    "needy": ("teacher=finetune(cell)", "can be planned", "takes no teacher"),
}


@pytest.mark.usefixtures("registries")
def test_each_broken_promise_is_told_of_its_recipe_with_what_to_mend(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    recipes = [
        f"@recipe()\ndef {name}(cell):\n    return finetune(cell, {parts})\n" for name, (parts, _, _) in RECIPES.items()
    ]
    (tmp_path / "mistakes.py").write_text("\n".join([MISTAKES, *recipes]))
    assert check.main(["mistakes.py", "--data", str(prepared)]) == 1
    lines = (shown := capsys.readouterr().out).splitlines()
    for name, (_, demand, mend) in RECIPES.items():
        (line,) = [line for line in lines if line.startswith(f"unmet   {name}: {demand}: ")]
        assert mend in line
    assert "skipped failing" in shown
    met = {line for line in lines if line.startswith("met ")}
    assert {f"met     {name}: trains to the end" for name in ("adding", "seeding", "ordering")} <= met


def test_what_is_unmet_for_a_stage_is_unmet_for_every_recipe_that_shares_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit = Kit((), tmp_path, tmp_path)
    monkeypatch.setattr(Kit, "_run", lambda *_: Outcome(StageState.FAILED, "ValueError: no"))
    for _ in range(2):
        with pytest.raises(Unmet, match="ValueError: no"):
            kit.stop_after_every_step(pretraining())
        with pytest.raises(Unmet, match="ValueError: no"):
            kit.first_losses(pretraining(), 1)


@pytest.mark.usefixtures("registries")
def test_a_class_that_is_no_frozen_dataclass_is_told(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own_parts.py").write_text(
        "from bench.methods import Objective\nclass Bare(Objective):\n    rate: float = 0.1\n"
    )
    assert check.main(["own_parts.py", "--data", str(prepared)]) == 1
    assert "unmet   Bare: is a frozen dataclass" in capsys.readouterr().out


@pytest.mark.usefixtures("registries")
def test_a_plugin_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"there is no .*none\.py"):
        check.main(["none.py"])


@pytest.mark.usefixtures("registries")
def test_the_examples_of_the_page_pass_and_train(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are modules of one package here, so that a package as plugin is tried, too."""
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert len(examples) == 4
    package = tmp_path / "examples_of_page"
    package.mkdir()
    (package / "__init__.py").write_text("from . import example_0, example_1, example_2, example_3\n")
    for number, text in enumerate(examples):
        (package / f"example_{number}.py").write_text(text)
    assert check.main(["./examples_of_page", "--data", str(prepared)]) == 0, capsys.readouterr()
    rows = re.findall(r"^@recipe\(.*\)\ndef (\w+)\(", PAGE, re.MULTILINE)
    assert rows == ["confidence_penalty", "momentum", "cool_down"]
    (tmp_path / "g.gin").write_text(
        f"grid.plugins = ['./examples_of_page']\ngrid.rows = {rows}\ngrid.tasks = ['digits']\ngrid.seeds = [0]\n"
        "finetune.steps = 4\nfinetune.warmup_steps = 1\nsource_pretrain.steps = 4\ncool_down.steps = 4\n"
        "ConfidencePenalty.beta = 0.2\nMomentum.momentum = 0.5\ndigits/task.backbone = 'pooled_mae'\n"
    )
    capsys.readouterr()
    assert grid.main(["--gin", "g.gin", "--data", str(prepared), "--launcher", "inline"]) == 0, capsys.readouterr()
    shown = capsys.readouterr().out
    assert all(re.search(rf"^\| {row} +\| +[\d.]+ \(1\)", shown, re.MULTILINE) for row in rows), shown
