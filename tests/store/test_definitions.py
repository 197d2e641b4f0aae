"""Digests of source code: what changes one, and what does not."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.store import definitions

FILES = {
    "__init__.py": "",
    "method.py": '''
"""A method."""
from __future__ import annotations
from mine.base import Base
from mine import helpers
from mine.names import renamed as half
LIMIT = 3

class Method(Base):
    """A docstring."""

    rate: float = 1.0

    def loss(self, value: float) -> float:
        from mine.lazy import late
        return helpers.double(value) + half(LIMIT) + late(value)  # a comment

def unrelated():
    return 7
''',
    "base.py": "class Base:\n    def loss(self, value):\n        return value\n",
    "helpers.py": "def double(value):\n    return inner(value)\ndef inner(value):\n    return 2 * value\nunused = 1\n",
    "names.py": "from mine.origin import half as renamed\n",
    "origin.py": "if True:\n    def half(value):\n        return value / 2\n",
    "lazy.py": "def late(value):\n    return value - 1\n",
}


@pytest.fixture
def digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str | None]]:
    """The digest of mine.method.Method after one replacement in one file."""
    folder = tmp_path / "mine"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))

    def compute(file: str = "method.py", old: str = "", new: str = "", module: str = "mine.method") -> str | None:
        for name, text in FILES.items():
            (folder / name).write_text(text)
        assert old in (folder / file).read_text()
        (folder / file).write_text((folder / file).read_text().replace(old, new) if old else FILES[file])
        definitions.digest_of.cache_clear()
        definitions._module.cache_clear()
        importlib.import_module("mine")
        return definitions.digest_of(module, "Method")

    yield compute
    sys.modules.pop("mine", None)
    definitions.digest_of.cache_clear()
    definitions._module.cache_clear()


@pytest.mark.parametrize(
    "change",
    [
        ("method.py", "  # a comment", ""),
        ("method.py", "A docstring", "Another"),
        ("method.py", "value: float) -> float", "value)"),
        ("method.py", "helpers.double(value) + half(LIMIT)", "(helpers.double( value )+half(LIMIT))"),
        ("method.py", "return 7", "return 8"),
        ("helpers.py", "unused = 1", "unused = 2"),
        ("helpers.py", "def double", "import os\n\ndef double"),
    ],
)
def test_what_computes_nothing_else_changes_no_digest(digest: Callable[..., str], change: tuple[str, ...]) -> None:
    assert digest() == digest(*change)


@pytest.mark.parametrize(
    "change",
    [
        ("method.py", "+ half", "- half"),
        ("method.py", "rate: float", "rate: int"),
        ("method.py", "rate: float = 1.0", "rate: float = 2.0"),
        ("method.py", "LIMIT = 3", "LIMIT = 4"),
        ("method.py", "self, value: float", "self, value: float = 1"),
        ("base.py", "return value", "return -value"),
        ("helpers.py", "2 * value", "3 * value"),  # by way of an imported module, and one function further
        ("origin.py", "value / 2", "value / 3"),  # imported under another name, defined in a branch
        ("lazy.py", "value - 1", "value - 2"),  # imported within the function
    ],
)
def test_what_computes_something_else_changes_the_digest(digest: Callable[..., str], change: tuple[str, ...]) -> None:
    assert digest() != digest(*change)


def test_moving_code_changes_no_digest(digest: Callable[..., str], tmp_path: Path) -> None:
    before = digest()
    moved = FILES["method.py"].replace("from mine.base import Base", FILES["base.py"])
    moved = moved.replace("from mine import helpers", "import mine.helpers")
    (tmp_path / "mine" / "elsewhere.py").write_text(moved.replace("helpers.double", "mine.helpers.double"))
    # The way to the helper is written otherwise, so that counts; the class and its base stand in another module.
    again = FILES["method.py"].replace("from mine.base import Base", FILES["base.py"])
    (tmp_path / "mine" / "elsewhere.py").write_text(again)
    assert definitions.digest_of("mine.elsewhere", "Method") == before


def test_without_source_there_is_no_digest() -> None:
    assert definitions.digest_of("bench.training.fit", "nothing_of_this_name") is None
    assert definitions.digest_of("not_a_package.module", "Method") is None


def test_the_loops_digest_covers_networks_data_and_steps_and_imports_nothing() -> None:
    reached = definitions.reached("bench.training.fit", "fit")
    for location in (
        ("bench.training.loop", "train"),
        ("bench.models.image", "ImageModel"),
        ("bench.models.text", "masked_token_loss"),
        ("bench.data.examples", "TextExamples"),
        ("bench.training.evaluate", "evaluate"),
        ("bench.device", "numerics"),
    ):
        assert location in reached
    assert not any(module.startswith(("bench.store", "bench.planning")) for module, _ in reached)
