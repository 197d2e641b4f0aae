"""The pages about methods say what the code and the committed results say."""

import importlib.util
import itertools
from types import ModuleType

import pytest

from bench.planning.registry import RECIPES
from tests.test_readme import ROOT


@pytest.fixture(scope="module")
def writer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_baselines", ROOT / "docs" / "write_baselines.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_are_those_that_the_script_writes(writer: ModuleType) -> None:
    pages = writer.pages()
    assert {path: path.read_text(encoding="utf-8") for path in writer.PAGES.iterdir()} == pages


def test_every_method_has_a_page_with_its_settings_and_numbers(writer: ModuleType) -> None:
    text = "".join(writer.pages().values())
    own = [name for name, recipe in RECIPES.items() if recipe.__module__.startswith("baselines.")]
    assert len(own) >= 30
    for recipe in own:
        assert f"| `{recipe}` " in text
        assert f"\n| {recipe} " in text, "no committed number"
    assert "| `RecAdam.gamma`        | `5000.0`       |" in text
    assert "| `kd.teacher_backbone`" in text


def test_tables_have_as_many_entries_in_every_line(writer: ModuleType) -> None:
    for path, text in writer.pages().items():
        lines = text.splitlines()
        for line, following in itertools.pairwise(lines):
            if line.startswith("|") and following.startswith("|"):
                assert line.replace("\\|", "").count("|") == following.replace("\\|", "").count("|"), (
                    f"{path}: {following}"
                )
