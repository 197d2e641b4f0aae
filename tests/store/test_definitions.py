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
from math import exp as curve
from . import tables
from .stars import *
import mine.package.module
LIMIT = 3
if "fast".startswith("f"):
    from mine.names import renamed as chosen
else:
    from mine.slow import chosen
BOX = {"a": 1}
BOX |= {"b": 2}

class Method(Base):
    """A docstring."""

    rate: float = 1.0

    def loss(self, value: float) -> float:
        from mine.lazy import late
        value += sum(each(value) for each in TABLE) + curve(value) + chosen(value) + mine.package.module.deep(value)
        value += BOX["b"] + sum(getattr(tables, name)(value) for name in ("first",)) + starred(value) + self.scale
        return helpers.double(value) + half(LIMIT) + late(value)  # a comment

Method.scale = 2

@(lambda function: function)
def entry(value):
    return value + 5

TABLE = []
TABLE.append(entry)
for number in (1, 2):
    TABLE.append(lambda value: value * 7)

def change():
    global LIMIT
    LIMIT = 8

change()

def unrelated():
    return 7
''',
    "base.py": "class Base:\n    def loss(self, value):\n        return value\n",
    "helpers.py": "def double(value):\n    return inner(value)\ndef inner(value):\n    return 2 * value\nunused = 1\n",
    "names.py": "from mine.origin import half as renamed\n",
    "origin.py": "if True:\n    def half(value):\n        return value / 2\n",
    "slow.py": "def chosen(value):\n    return value * 9\n",
    "tables.py": "def first(value):\n    return value + 10\n",
    "stars.py": "def starred(value):\n    return value + 11\n",
    "package/__init__.py": "",
    "package/module.py": "def deep(value):\n    return value + 12\n",
    "lazy.py": "def late(value):\n    return value - 1\n",
}


def forget() -> None:
    """Have the files read again."""
    for read in (definitions.digest_of, definitions._text, definitions._all_needed, definitions._module):
        read.cache_clear()
    for read in (definitions._file, definitions._source, definitions._has_version):
        read.cache_clear()


@pytest.fixture
def digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str | None]]:
    """The digest of mine.method.Method after one replacement in one file."""
    folder = tmp_path / "mine"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))

    def compute(file: str = "method.py", old: str = "", new: str = "", module: str = "mine.method") -> str | None:
        (folder / "package").mkdir(exist_ok=True)
        for name, text in FILES.items():
            (folder / name).write_text(text)
        assert old in (folder / file).read_text()
        (folder / file).write_text((folder / file).read_text().replace(old, new) if old else FILES[file])
        forget()
        importlib.import_module("mine")
        return definitions.digest_of(module, "Method")

    yield compute
    sys.modules.pop("mine", None)
    forget()


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
        ("method.py", "math import exp", "math import sqrt"),  # another function of another package
        ("method.py", "from math", "from cmath"),
        ("method.py", '"fast".startswith', '"slow".startswith'),  # what decides between two imports
        ("slow.py", "value * 9", "value * 8"),  # either of the two
        ("method.py", '"b": 2', '"b": 3'),  # a table that is added to
        ("method.py", "scale = 2", "scale = 3"),  # an attribute that is set outside the class
        ("method.py", "value + 5", "value + 6"),  # by way of a call at import
        ("method.py", "lambda function: function", "lambda function: abs"),
        ("method.py", "value * 7", "value * 8"),  # in a loop at import
        ("method.py", "LIMIT = 8", "LIMIT = 9"),  # a function that changes a name of the module
        ("tables.py", "value + 10", "value + 20"),  # looked up by text in a module
        ("stars.py", "value + 11", "value + 21"),
        ("package/module.py", "value + 12", "value + 22"),  # found through its packages
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


def test_code_edited_while_a_process_runs_is_not_taken_for_its_own(digest: Callable[..., str], tmp_path: Path) -> None:
    before = digest()
    forget()
    definitions.keep_sources(["mine.method"])
    (tmp_path / "mine" / "lazy.py").write_text("def late(value):\n    return value - 2\n")
    assert definitions.digest_of("mine.method", "Method") == before
    forget()
    assert definitions.digest_of("mine.method", "Method") != before


NEIGHBOURS = {
    "plain_method.py": """
from plain_helpers import weight
import bench.training.loop as loop
class Method:
    def loss(self, value):
        import plain_late
        return plain_late.late(weight(value))
def mine(value):
    return 0.5
loop.learning_rate = mine
""",
    "plain_helpers.py": "def weight(value):\n    return value * 2\n",
    "plain_late.py": "def late(value):\n    return value + 3\n",
}
"""A method in a file, which imports modules of its user's and replaces a function of the suite."""


@pytest.fixture
def neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, text in NEIGHBOURS.items():
        (tmp_path / name).write_text(text)
    forget()
    yield tmp_path
    for name in NEIGHBOURS:
        sys.modules.pop(name.removesuffix(".py"), None)
    forget()


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("plain_helpers.py", "value * 2", "value * 3"),
        ("plain_late.py", "value + 3", "value + 4"),  # not imported before it is called
        ("plain_method.py", "return 0.5", "return 0.6"),  # what it sets in another module
    ],
)
def test_modules_without_a_version_beside_a_method_count(file: str, old: str, new: str, neighbours: Path) -> None:
    before = definitions.digest_of("plain_method", "Method")
    (neighbours / file).write_text(NEIGHBOURS[file].replace(old, new))
    forget()
    assert definitions.digest_of("plain_method", "Method") not in (before, None)


def test_whether_a_module_is_imported_already_changes_no_digest(neighbours: Path) -> None:
    before = definitions.digest_of("plain_method", "Method")
    importlib.import_module("plain_late")
    forget()
    assert definitions.digest_of("plain_method", "Method") == before


def test_the_code_of_neighbours_is_kept_too(neighbours: Path) -> None:
    before = definitions.digest_of("plain_method", "Method")
    importlib.import_module("plain_helpers")
    forget()
    definitions.keep_sources(["plain_method"])
    (neighbours / "plain_helpers.py").write_text("def weight(value):\n    return value * 9\n")
    assert definitions.digest_of("plain_method", "Method") == before


def test_a_file_with_a_byte_order_mark_is_read(digest: Callable[..., str], tmp_path: Path) -> None:
    before = digest()
    path = tmp_path / "mine" / "lazy.py"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    forget()
    assert definitions.digest_of("mine.method", "Method") == before


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
        ("bench.training.evaluate", "predict"),
        ("bench.device", "numerics"),
    ):
        assert location in reached
    assert not any(module.startswith(("bench.store", "bench.planning")) for module, _ in reached)
