"""`tests/matrix.py` covers the Python versions that the package claims, and keeps the table that it writes."""

from __future__ import annotations

import tomllib
from pathlib import Path

from tests.matrix import ENVIRONMENTS, read_table, summary, table

ROOT = Path(__file__).parents[1]


def test_every_python_that_the_package_claims_has_an_environment() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    last_words = {classifier.rpartition(" :: ")[2] for classifier in project["classifiers"]}
    claimed = {word for word in last_words if word.startswith("3.")}
    assert {environment.python for environment in ENVIRONMENTS.values()} == claimed
    assert project["requires-python"] == f">={min(claimed, key=lambda version: int(version.split('.')[1]))}"


def test_the_table_of_the_last_run_is_read_as_it_is_written() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = read_table(text)
    assert rows.keys() == ENVIRONMENTS.keys()
    assert table(rows) in text


def test_a_summary_has_every_count_and_no_time() -> None:
    assert summary("15 failed, 4961 passed, 330 skipped, 2 warnings in 4641.12s (1:17:21)") == (
        "15 failed, 4961 passed, 330 skipped"
    )
    assert summary("1 error in 0.12s") == "1 error"
    assert summary("pytest: command not found").startswith("no summary")
