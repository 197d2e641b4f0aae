"""Programs that stand in for Slurm's."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

Fake = Callable[..., Path]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Make a program that prints a text, notes its arguments, and ends with a status; returns the notes' path."""
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}/usr/bin{os.pathsep}/bin")

    def make(name: str, prints: str = "", status: int = 0, error: str = "") -> Path:
        (programs / f"{name}.out").write_text(prints)
        (programs / f"{name}.err").write_text(error)
        calls = programs / f"{name}.calls"
        program = programs / name
        program.write_text(
            f'#!/bin/sh\necho "$@" >> {calls}\n'
            f"cat {programs}/{name}.out\ncat {programs}/{name}.err >&2\nexit {status}\n"
        )
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        return calls

    return make
