"""A grid on a real Slurm that gets into trouble and heals itself: nobody at the keyboard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import status
from bench.errors import InputError
from bench.launch.slurm import ledger, troubles
from tests.slurm.cluster import PATIENCE, DevCluster, job_limit, wait_for
from tests.slurm.workspaces import LATER, ONE_TASK, Workspace

pytestmark = pytest.mark.group("slurm")

SIX = ("grid.seeds = [0, 1, 2, 3, 4, 5]", *ONE_TASK)
FOUR = ("grid.seeds = [0, 1, 2, 3]", *ONE_TASK)
"""One job more than a node may fail to start before jobs keep away from it."""


@pytest.fixture
def three_jobs(slurm: DevCluster) -> Iterator[None]:
    """A user who may have three jobs in the queue."""
    with job_limit(slurm, 3):
        yield


def test_six_seeds_where_three_jobs_may_be_queued(
    three_jobs: None, slurm: DevCluster, tmp_path: Path, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fewer jobs do the same work, and nobody submits a second time."""
    workspace = Workspace(tmp_path, prepared, "tiny", ["finetune"], *SIX)
    assert workspace.run("--plan") == 0
    assert "you may queue 3 more jobs" in capsys.readouterr().out
    assert workspace.run() == 0
    table = tmp_path / "results" / "tiny.md"
    wait_for(lambda: table.is_file() and "(6)" in table.read_text(), PATIENCE)


def test_a_limit_of_the_account_that_is_met_in_the_middle_of_submitting(
    slurm: DevCluster, tmp_path: Path, prepared: Path
) -> None:
    """The array is made smaller, and has one job fewer again for the one that writes the tables."""
    workspace = Workspace(tmp_path, prepared, "tiny", ["finetune"], *SIX)
    with job_limit(slurm, 4, of_account=True):
        assert workspace.run() == 0
        arrays = [each.jobs for each in ledger.submissions(workspace.store.root) if each.runs_stages]
        assert arrays == [1, 3]
        table = tmp_path / "results" / "tiny.md"
        wait_for(lambda: table.is_file() and "(6)" in table.read_text(), PATIENCE)


def test_a_node_whose_setup_fails_costs_no_cell(
    slurm: DevCluster, tmp_path: Path, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup = """slurm.setup = ['test "$SLURMD_NODENAME" != n1']"""
    workspace = Workspace(tmp_path, prepared, "tiny", ["finetune"], *FOUR, setup)
    assert workspace.run("--wait") == 0
    assert all(workspace.store.record(cell.stage) is not None for cell in workspace.plan.cells)
    nodes = {trouble.node for trouble in troubles.read(workspace.store.root)}
    assert nodes == {"n1"}
    capsys.readouterr()
    assert status.main(workspace.arguments()) == 0


def test_a_node_whose_python_does_not_start_costs_no_cell_and_no_table(
    slurm: DevCluster, tmp_path: Path, prepared: Path
) -> None:
    """Slurm starts every job on that node, which is the first and free again at once, also that of the tables."""
    setup = "slurm.setup = ['if [ $SLURMD_NODENAME = n1 ]; then export PYTHONHOME=/nowhere; fi']"
    workspace = Workspace(tmp_path, prepared, "tiny", ["finetune"], *FOUR, setup)
    assert workspace.run() == 0
    table = tmp_path / "results" / "tiny.md"
    wait_for(lambda: table.is_file() and "(4)" in table.read_text(), PATIENCE)
    assert {trouble.node for trouble in troubles.read(workspace.store.root)} == {"n1"}


def test_a_grid_whose_setup_fails_everywhere_is_stopped(
    slurm: DevCluster, tmp_path: Path, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the line as the reason, and without a requeue for every job that is still to start."""
    line = "module load no_such_module"
    workspace = Workspace(tmp_path, prepared, "tiny", ["finetune"], *SIX, f"slurm.setup = ['{line}']")
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


def test_an_element_that_is_held_keeps_nothing_waiting(slurm: DevCluster, tmp_path: Path, prepared: Path) -> None:
    """As Slurm holds those that a node could not launch: the others of its array do the work, and the grid ends."""
    workspace = Workspace(tmp_path, prepared, "tiny", ["tapt"], "grid.seeds = [0, 1, 2]", *ONE_TASK)
    workspace.bindings = ("grid.pretraining_seeds = 'per_seed'", *workspace.bindings)
    assert workspace.run() == 0
    arrays = [each.job_id for each in ledger.submissions(workspace.store.root) if each.runs_stages]
    slurm.ask("scontrol", "hold", f"{arrays[1]}_2")
    table = tmp_path / "results" / "tiny.md"
    wait_for(lambda: table.is_file() and "(3)" in table.read_text(), PATIENCE)
    wait_for(slurm.empty, PATIENCE)


def test_workers_that_die_on_one_node_before_their_first_step(
    slurm: DevCluster, tmp_path: Path, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The node is named while the grid runs, kept away from, and no stage is failed for it."""
    # The supervisor's Python runs, and finds no thread for a worker: OpenMP dies of a limit on address space.
    limit = "if [ $SLURMD_NODENAME = n1 ]; then ulimit -v 900000; fi"
    workspace = Workspace(tmp_path, prepared, "tiny", ["finetune"], *FOUR, f"slurm.setup = ['{limit}']")
    assert workspace.run("--wait") == 0
    assert all(workspace.store.record(cell.stage) is not None for cell in workspace.plan.cells)
    assert {trouble.node for trouble in troubles.read(workspace.store.root)} == {"n1"}
    assert {
        str(a.facts["owner"]["machine"]) for stage in workspace.plan.stages for a in workspace.store.attempts(stage)
    }
