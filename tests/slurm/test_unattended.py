"""What happens to a grid on a real Slurm overnight: requeues, a controller that is away, preemption, a lost node."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import grid
from bench.launch.slurm import ledger
from tests.slurm.cluster import PATIENCE, SLOWEST, DevCluster, job_limit, wait_for
from tests.slurm.workspaces import Trouble, Workspace, finish, state

pytestmark = pytest.mark.group("slurm")


def test_requeued_five_times_within_seconds(
    slurm: DevCluster, tmp_path: Path, prepared: Path, undisturbed: Trouble
) -> None:
    """What others do to a job is not held against its stage."""
    workspace = Trouble(tmp_path, prepared)
    assert workspace.run() == 0
    workspace.hold()
    name = workspace.element(workspace.last)
    for restarts in range(1, 6):
        slurm.ask("scontrol", "requeue", name)
        wait_for(lambda restarts=restarts: slurm.job(name)["Restarts"] == str(restarts), PATIENCE)
        wait_for(lambda: state(slurm, name) == "RUNNING", PATIENCE)
    wait_for(lambda: workspace.store.record(workspace.last) is not None, PATIENCE)
    wait_for(slurm.empty, PATIENCE)
    workspace.check_same(undisturbed)


def test_the_controller_is_away_for_90_seconds_at_the_end_of_a_job(
    slurm: DevCluster, tmp_path: Path, prepared: Path, undisturbed: Trouble
) -> None:
    workspace = Trouble(tmp_path, prepared)
    assert workspace.run() == 0
    worker, name = workspace.hold(), workspace.element(workspace.last)
    slurm.control("controller-stop")
    try:
        workspace.announce_end(worker)
        time.sleep(90)  # what is tried again all the while
    finally:
        slurm.control("controller-start")
    wait_for(lambda: slurm.job(name)["Restarts"] == "1", PATIENCE)
    wait_for(slurm.empty, PATIENCE)
    assert workspace.ends() == ["interrupted", "done"]
    workspace.check_same(undisturbed)


def test_a_job_without_scontrol_on_its_path_goes_on(
    slurm: DevCluster, tmp_path: Path, prepared: Path, undisturbed: Trouble
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for folder in ("/usr/bin", "/bin"):
        for path in Path(folder).iterdir():
            link = programs / path.name
            if path.name != "scontrol" and not link.exists():
                link.symlink_to(path)
    workspace = Trouble(tmp_path / "place", prepared, f"slurm.setup = ['export PATH={programs}']")
    assert workspace.run() == 0
    worker, name = workspace.hold(), workspace.element(workspace.last)
    slurm.ask("scancel", "--batch", "--signal=USR2", name)
    wait_for(lambda: "end announced: checkpointing" in workspace.printed())
    os.kill(worker, signal.SIGCONT)
    wait_for(lambda: slurm.job(name)["Restarts"] == "1", PATIENCE)
    finish(workspace, slurm)
    assert workspace.ends() == ["interrupted", "done"]
    workspace.check_same(undisturbed)


def test_jobs_that_slurm_cancels_are_submitted_again_once(
    slurm: DevCluster, tmp_path: Path, prepared: Path, undisturbed: Trouble
) -> None:
    """As on a cluster that preempts by cancelling: the follower or the tables' job is first, and the other attaches."""
    workspace = Trouble(tmp_path, prepared)
    follower = subprocess.Popen(
        [sys.executable, "-m", "bench.grid", *workspace.arguments("--launcher", "slurm", "--wait")],
        stdout=subprocess.PIPE,
    )
    worker = workspace.hold()
    os.kill(worker, signal.SIGCONT)
    slurm.ask("scancel", workspace.element(workspace.last).partition("_")[0])
    output, _ = follower.communicate(timeout=SLOWEST * PATIENCE)
    assert follower.returncode == 0, output
    assert len({each.worklist for each in ledger.submissions(workspace.store.root) if each.worklist}) == 2
    wait_for(slurm.empty)
    workspace.check_same(undisturbed)


@pytest.fixture
def twelve_jobs(slurm: DevCluster) -> Iterator[None]:
    """A user who may have twelve jobs in the queue."""
    with job_limit(slurm, 12):
        yield


def test_a_night(twelve_jobs: None, slurm: DevCluster, tmp_path: Path, prepared: Path) -> None:
    """Two waves of preemption, a node that breaks, a controller restarted, a submit limit; nobody at the keyboard."""
    few = ("slurm.partition = 'low'", "grid.seeds = [0, 1, 2, 3, 4, 5]", "grid.pretraining_seeds = 'per_seed'")
    rows = ["finetune", "mars", "r3f", "tapt"]
    workspace = Workspace(tmp_path / "a", prepared, "tiny", rows, *few)
    stages = workspace.plan.stages
    assert len(stages) >= 60
    assert workspace.run() == 0

    def done() -> int:
        return sum((workspace.store.folder(stage) / "record.json").exists() for stage in stages)

    wait_for(lambda: done() >= 4, PATIENCE)
    slurm.preempt()
    wait_for(lambda: done() >= 12, PATIENCE)
    try:
        slurm.control("node-kill", "n1")
        wait_for(lambda: done() >= 20, PATIENCE)
        slurm.control("controller-restart")
        wait_for(lambda: done() >= 28, PATIENCE)
    finally:
        slurm.control("node-start", "n1")
    slurm.preempt()
    table = tmp_path / "a" / "results" / "tiny.md"
    wait_for(lambda: table.is_file() and table.read_text().count("(6)") == 8, PATIENCE)
    wait_for(slurm.empty, PATIENCE)
    for stage in stages:
        attempts = workspace.store.attempts(stage)
        assert [each.end["state"] for each in attempts if each.end is not None].count("done") == 1, "trained once"
    inline = Workspace(tmp_path / "b", prepared, "tiny", rows, *few)
    assert grid.main(inline.arguments("--launcher", "inline")) == 0
    assert workspace.weights() == inline.weights()
