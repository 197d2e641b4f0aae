"""A real Slurm on this computer for the tests of this folder: that of `slurm/dev_cluster.sh up`, brought up before."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import grid
from tests.slurm.cluster import DevCluster, wait_for
from tests.slurm.workspaces import Trouble


@pytest.fixture(scope="session")
def dev_cluster() -> Iterator[DevCluster]:
    """The cluster in BENCH_SLURM_FOLDER; SLURM_CONF names it, no other variable of Slurm's is set.

    Where pytest-xdist runs tests in several processes, all but the first bring up a cluster of their own beside it: the
    tests of one cluster wait for it to be empty.
    """
    process = os.environ.get("PYTEST_XDIST_WORKER", "gw0")
    own = "" if process == "gw0" else f"-{process}"
    cluster = DevCluster(Path(os.environ["BENCH_SLURM_FOLDER"] + own))
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("SLURM", "SBATCH_", "SRUN_", "SQUEUE_", "SACCT_", "SCANCEL_", "SCONTROL_")):
                patch.delenv(name)
        cluster.control("up")  # again, where an interrupted run of these tests left a node down
        patch.setenv("SLURM_CONF", str(cluster.configuration))
        yield cluster
        if own:
            cluster.control("down")


@pytest.fixture
def slurm(dev_cluster: DevCluster) -> Iterator[DevCluster]:
    """The cluster, empty; after the test its jobs are cancelled, and none may have left a process behind."""
    wait_for(dev_cluster.empty)
    yield dev_cluster
    subprocess.run(["scancel", "--me"], check=False)
    wait_for(dev_cluster.empty)
    try:
        wait_for(lambda: not dev_cluster.processes(), 10)
    except AssertionError:
        pytest.fail(f"processes outlived their jobs: {dev_cluster.processes()}")


@pytest.fixture(scope="session")
def undisturbed(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Trouble:
    """The grid of `Trouble`, run by this process."""
    workspace = Trouble(tmp_path_factory.mktemp("undisturbed"), prepared)
    assert grid.main(workspace.arguments("--launcher", "inline")) == 0
    return workspace
