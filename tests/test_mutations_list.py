"""The list of planted mistakes fits the code; `python tests/mutations.py` plants them."""

import ast
from pathlib import Path

import pytest

from tests.mutations import MUTATIONS, Mutation, location_error, named_tests

ROOT = Path(__file__).parents[1]


def functions_of(file: str) -> set[str]:
    """The names of the test functions of a file."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_there_are_enough_and_every_name_is_one_mistakes() -> None:
    assert len(MUTATIONS) >= 25
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mistake_has_exactly_one_place_and_changes_it(mutation: Mutation) -> None:
    assert location_error(mutation) is None
    assert mutation.wrong != mutation.original
    text = (ROOT / mutation.file).read_text(encoding="utf-8").replace(mutation.original, mutation.wrong)
    ast.parse(text)  # a syntax error would be caught by anything


def test_every_named_test_exists() -> None:
    assert all(mutation.tests for mutation in MUTATIONS)
    for test in named_tests(MUTATIONS):
        file, _, name = test.partition("::")
        assert (ROOT / file).is_file(), test
        assert not name or name.partition("[")[0] in functions_of(file), test
