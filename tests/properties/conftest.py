"""Searches for inputs that break a promise, with hypothesis.

In the suite the examples are the same every time and few: about half a minute in all. Long and random, by hand:

    python -m pytest tests/properties --hypothesis-profile=long
"""

import os
import tempfile

import pytest
from hypothesis import HealthCheck, settings

COMMON = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": True}
settings.register_profile("suite", derandomize=True, database=None, max_examples=40, **COMMON)
settings.register_profile("long", derandomize=False, max_examples=3000, **COMMON)


def pytest_configure(config: pytest.Config) -> None:
    # hypothesis keeps tables and failing examples in a folder, by default in the checkout.
    storage = tempfile.TemporaryDirectory(prefix="bench-hypothesis-", ignore_cleanup_errors=True)
    config.add_cleanup(storage.cleanup)
    os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", storage.name)
    if not config.getoption("--hypothesis-profile"):
        settings.load_profile("suite")


def examples(share: float) -> int:
    """So many examples of a property that takes longer or less long than others."""
    return max(1, round(settings.get_profile(settings.get_current_profile_name()).max_examples * share))
