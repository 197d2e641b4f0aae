"""A node that does not get as far as Python, on a real Slurm: named, tried again, and given up after three times."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.launch.slurm import client, ledger, sbatch
from bench.launch.slurm.ledger import Submission
from bench.specs.cluster import Cluster
from tests.slurm.cluster import DevCluster, wait_for

pytestmark = pytest.mark.group("slurm")


def _submit(store: Path, *setup: str) -> tuple[Submission, str]:
    """An array of one element, which prints a word; returns its submission and the element's id."""
    store.mkdir()
    cluster = Cluster(partition="main", mem_gb=0.1, timeout_min=5, signal_delay_s=30, setup=setup)
    submission = ledger.note(store, "setup", "", [["stage"]])
    log = ledger.log_folder(store, submission.token)
    executor = sbatch.executor(log, cluster, submission.name, (0,), None)
    job = sbatch.make(store, submission, executor, print, [["Python began"]])
    return submission, f"{job}_0"


def _printed(store: Path, submission: Submission) -> str:
    return "".join(path.read_text() for path in ledger.log_folder(store, submission.token).glob("*.out"))


def _troubles(store: Path) -> dict[str, list[str]]:
    folder = ledger.folder(store) / sbatch.TROUBLES
    return {path.name: path.read_text().splitlines() for path in sorted(folder.glob("*.txt"))}


def test_a_node_that_is_mended_meanwhile(slurm: DevCluster, tmp_path: Path) -> None:
    broken, store = tmp_path / "broken", tmp_path / "runs"
    broken.touch()
    submission, element = _submit(store, f"test ! -e {broken}")
    wait_for(lambda: slurm.job(element)["Restarts"] == "1", 60)
    broken.unlink()
    wait_for(lambda: client.queue([submission.name])[element].state == "COMPLETED", 60)
    assert "Python began" in _printed(store, submission)
    ((name, lines),) = _troubles(store).items()
    assert name == f"setup-{element}-0.txt"
    assert lines[1] in ("n1", "n2") and lines[2:] == ["1", f"test ! -e {broken}", ""]


def test_a_line_that_fails_everywhere(slurm: DevCluster, tmp_path: Path) -> None:
    store = tmp_path / "runs"
    submission, element = _submit(store, "if true; then", "  module load no/such", "fi")
    wait_for(lambda: client.queue([submission.name])[element].state == "FAILED", 90)
    state = client.queue([submission.name], [element])[element]
    assert (state.exit_code, state.node in ("n1", "n2")) == ("127:0", True)
    assert list(_troubles(store)) == [f"setup-{element}-{restarts}.txt" for restarts in range(3)]
    printed = _printed(store, submission)
    assert printed.count("with exit status 127:   module load no/such") == 3
    assert "Python began" not in printed
