"""Programs that stand in for Slurm's."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.launch.slurm import worklist

Fake = Callable[..., Path]

SINFO = """\
main*|gpu:2|8|16000|n1|idle
main*|(null)|16|64000|n2|mixed
long|gpu:a100:4(S:0-1),tmp:5|64|256000|n3|drained
"""
SCONTROL = """\
Configuration data
MaxArraySize            = 1001
MaxBatchRequeue = 5
PartitionName=main Default=YES MaxTime=1-00:00:00 State=UP
PartitionName=long Default=NO MaxTime=UNLIMITED State=UP
"""


@pytest.fixture(autouse=True)
def _forget_worklists() -> None:
    """A folder for tests may be called like one of another test before, where other worklists lay."""
    worklist.read.cache_clear()


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Make a program that prints a text, notes its arguments and environment, and ends with a status."""
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}/usr/bin{os.pathsep}/bin")

    def make(name: str, prints: str = "", status: int = 0, error: str = "") -> Path:
        (programs / f"{name}.out").write_text(prints)
        (programs / f"{name}.err").write_text(error)
        log = programs / f"{name}.calls"
        program = programs / name
        program.write_text(
            f'#!/bin/sh\necho "$@" >> {log}\nenv > {programs}/{name}.env\n'
            f"cat {programs}/{name}.out\ncat {programs}/{name}.err >&2\nexit {status}\n"
        )
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        return log

    return make


@pytest.fixture
def cluster(fake: Fake) -> Fake:
    """A cluster that takes every job: two partitions, no queue, no accounting."""
    for name in ("sbatch", "squeue", "scancel", "srun"):
        fake(name)
    fake("sinfo", SINFO)
    fake("scontrol", SCONTROL)
    fake("sacct", status=1, error="Slurm accounting storage is disabled\n")
    return fake
