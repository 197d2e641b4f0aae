"""A grid on a real Slurm that gets into trouble and heals itself: nobody at the keyboard."""

from __future__ import annotations

import contextlib
import getpass
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import grid, status
from bench.errors import InputError
from bench.launch.slurm import ledger, troubles
from tests.slurm.conftest import SLOWEST, DevCluster, wait_for
from tests.slurm.test_faults import Trouble, finish, state
from tests.slurm.test_faults import undisturbed as undisturbed  # a fixture
from tests.slurm.test_submit import LATER, ONE_TASK, Workspace

pytestmark = pytest.mark.group("slurm")

PATIENCE = 400
"""Seconds; a computer may be busy with other tests, and what is waited for takes ten times less on an idle one."""
SIX = ("grid.seeds = [0, 1, 2, 3, 4, 5]", *ONE_TASK)


@contextlib.contextmanager
def job_limit(slurm: DevCluster, jobs: int) -> Iterator[None]:
    """Let this user have so many jobs in the queue meanwhile."""
    user = ("sacctmgr", "--immediate", "modify", "user", "where", f"name={getpass.getuser()}", "set")
    slurm.ask(*user, f"MaxSubmitJobs={jobs}")
    try:
        yield
    finally:
        subprocess.run(["scancel", "--me"], check=False)
        slurm.ask(*user, "MaxSubmitJobs=-1")


@pytest.fixture
def three_jobs(slurm: DevCluster) -> Iterator[None]:
    """A user who may have three jobs in the queue."""
    with job_limit(slurm, 3):
        yield


def test_six_seeds_where_three_jobs_may_be_queued(
    three_jobs: None, slurm: DevCluster, tmp_path: Path, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fewer jobs do the same work, and nobody submits a second time."""
    workspace = Workspace(tmp_path / "a", prepared, "tiny", ["finetune"], *SIX)
    assert workspace.run("--plan") == 0
    assert "you may queue 3 more jobs" in capsys.readouterr().out
    assert workspace.run() == 0
    table = tmp_path / "a" / "results" / "tiny.md"
    wait_for(lambda: table.is_file() and "(6)" in table.read_text(), PATIENCE)
    inline = Workspace(tmp_path / "b", prepared, "tiny", ["finetune"], *SIX)
    assert grid.main(inline.arguments("--launcher", "inline")) == 0
    assert workspace.weights() == inline.weights()


def test_a_node_whose_setup_fails_costs_no_cell(
    slurm: DevCluster, tmp_path: Path, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup = """slurm.setup = ['test "$SLURMD_NODENAME" != n1']"""
    workspace = Workspace(tmp_path, prepared, "tiny", ["finetune", "tapt"], *SIX, setup)
    assert workspace.run("--wait") == 0
    assert all(workspace.store.record(cell.stage) is not None for cell in workspace.plan.cells)
    nodes = {trouble.node for trouble in troubles.read(workspace.store.root)}
    assert nodes == {"n1"}
    capsys.readouterr()
    assert status.main(workspace.arguments()) == 0


def test_a_grid_whose_setup_fails_everywhere_is_stopped(
    slurm: DevCluster, tmp_path: Path, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the line as the reason, and without a requeue for every job that is still to start."""
    line = "module load no_such_module"
    workspace = Workspace(tmp_path, prepared, "tiny", ["finetune", "tapt"], *SIX, f"slurm.setup = ['{line}']")
    assert workspace.run("--wait") == 1
    capsys.readouterr()
    status.main(workspace.arguments())
    shown = capsys.readouterr().out
    assert "stopped: no stage could be begun" in shown and line in shown
    wait_for(slurm.empty, PATIENCE)
    ids = [each.job_id for each in ledger.submissions(workspace.store.root) if each.runs_stages]
    assert slurm.job(f"{ids[-1]}_0")["Restarts"] == "0", "the last array"
    with pytest.raises(InputError, match=line):
        workspace.run()
    workspace.bindings = (*workspace.bindings[:-2], "slurm.setup = []", workspace.bindings[-1])
    assert workspace.run("--retry", "--wait") == 0


def test_a_grid_above_the_longest_time_that_the_accounting_allows_is_refused(
    slurm: DevCluster, tmp_path: Path, prepared: Path
) -> None:
    """Before anything is written; a shorter time is taken."""
    workspace = Workspace(tmp_path, prepared, "tiny", ["finetune"], *ONE_TASK, LATER)
    limit = ("sacctmgr", "--immediate", "modify", "qos", "normal", "set")
    slurm.ask(*limit, "MaxWall=00:04:00")
    try:
        with pytest.raises(InputError, match=r"slurm.timeout_min = 5.*MaxWall"):
            workspace.run()
        assert not workspace.store.root.exists() and slurm.empty()
        workspace.bindings = (*workspace.bindings[:-1], "slurm.timeout_min = 4", workspace.bindings[-1])
        assert workspace.run() == 0
    finally:
        slurm.ask(*limit, "MaxWall=-1")


def test_a_held_job_needs_somebody_and_goes_on_when_released(
    slurm: DevCluster, tmp_path: Path, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = Workspace(tmp_path, prepared, "tiny", ["finetune"], *ONE_TASK, "slurm.extra = ['begin=now+3600']")
    assert workspace.run() == 0
    first = next(each.job_id for each in ledger.submissions(workspace.store.root) if each.runs_stages)
    slurm.ask("scontrol", "hold", str(first))
    capsys.readouterr()
    status.main(workspace.arguments())
    shown = capsys.readouterr().out
    assert f"scontrol release {first}" in shown and "needs somebody" in shown
    slurm.ask("scontrol", "release", str(first))
    for each in ledger.submissions(workspace.store.root):
        slurm.ask("scontrol", "update", f"JobId={each.job_id}", "StartTime=now")
    assert workspace.run("--wait") == 0


def test_workers_that_die_on_one_node_before_their_first_step(
    slurm: DevCluster, tmp_path: Path, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The node is named while the grid runs, kept away from, and no stage is failed for it."""
    # The supervisor's Python runs, and finds no thread for a worker: OpenMP dies of a limit on address space.
    limit = "if [ $SLURMD_NODENAME = n1 ]; then ulimit -v 900000; fi"
    workspace = Workspace(tmp_path, prepared, "tiny", ["finetune", "tapt"], *SIX, f"slurm.setup = ['{limit}']")
    assert workspace.run("--wait") == 0
    assert all(workspace.store.record(cell.stage) is not None for cell in workspace.plan.cells)
    assert {trouble.node for trouble in troubles.read(workspace.store.root)} == {"n1"}
    assert {
        str(a.facts["owner"]["machine"]) for stage in workspace.plan.stages for a in workspace.store.attempts(stage)
    }


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
    supervisor = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
    slurm.control("controller-stop")
    try:
        os.kill(supervisor, signal.SIGUSR2)
        wait_for(lambda: "end announced: checkpointing" in workspace.printed())
        os.kill(worker, signal.SIGCONT)
        wait_for(lambda: workspace.ends() == ["interrupted"])
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
