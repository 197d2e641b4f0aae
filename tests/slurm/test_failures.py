"""How jobs fail on a real Slurm, in its own words, and the class that is read from them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import status
from bench.launch.slurm import client
from bench.launch.slurm.client import JobState
from bench.monitor.failures import classify
from tests.slurm.cluster import DevCluster, wait_for
from tests.slurm.workspaces import ONE_TASK, Workspace

pytestmark = pytest.mark.group("slurm")

EATER = "import time; memory = b'x' * 200 * 2**20; time.sleep(60)"
MEMORY_KILL = "JobAcctGatherParams=OverMemoryKill\n"
HUNGRY = '''
import time
from dataclasses import dataclass
from bench.methods import CrossEntropy, finetune, recipe

@dataclass(frozen=True)
class HungryLoss(CrossEntropy):
    """Cross-entropy beside more memory than its job may use."""

    def loss(self, model, batch, state, context):
        memory = b"x" * 3 * 2**30
        time.sleep(120)
        return super().loss(model, batch, state, context)

@recipe()
def hungry(cell):
    """Fine-tune with too much memory."""
    return finetune(cell, objective=HungryLoss())
'''


@pytest.fixture
def memory_limits(slurm: DevCluster) -> Iterator[None]:
    """Jobs that use more memory than they asked for are killed, within 5 s."""
    before = slurm.configuration.read_text()
    slurm.configuration.write_text(before + MEMORY_KILL)
    slurm.ask("scontrol", "reconfigure")
    yield
    slurm.configuration.write_text(before)
    slurm.ask("scontrol", "reconfigure")


def _end(slurm: DevCluster, *options: str) -> JobState:
    """Submit a job, wait until it has ended, and return its last state."""
    name = "bench-fails-00000000"
    job = slurm.ask("sbatch", "--parsable", f"--job-name={name}", *options)
    wait_for(lambda: not client.queue([name])[job].live, 60)
    return client.queue([name], [job])[job]


def _class(state: JobState, log: str = "") -> str:
    return classify(f"its job ended: {state.state} {state.reason}", "", log)


def test_a_job_above_its_memory_limit(slurm: DevCluster, memory_limits: None, tmp_path: Path) -> None:
    log = tmp_path / "log"
    state = _end(slurm, "--mem=50", f"--output={log}", "--wrap", f'exec {sys.executable} -c "{EATER}"')
    assert (state.exit_code, state.node in ("n1", "n2")) == ("0:9", True)
    assert _class(state, log.read_text()) == "out of memory"


def test_a_stage_above_the_memory_of_its_jobs_is_given_up_and_costs_no_other(
    slurm: DevCluster,
    memory_limits: None,
    registries: None,
    tmp_path: Path,
    prepared: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Though Slurm kills the worker and its supervisor at once: what is left tells why, and what to raise."""
    plugin = tmp_path / "hungry.py"
    plugin.write_text(HUNGRY)
    plugins = (f"grid.plugins = ['{plugin}']", "grid.rows = ['hungry', 'finetune']", "slurm.mem_gb = 2.0")
    workspace = Workspace(tmp_path / "place", prepared, "tiny", ["finetune"], *ONE_TASK, *plugins)
    assert workspace.run("--wait") == 1
    finished = {cell.row for cell in workspace.plan.cells if workspace.store.record(cell.stage) is not None}
    assert finished == {"finetune"}
    capsys.readouterr()
    assert status.main(workspace.arguments("--failed")) == 3
    shown = capsys.readouterr().out
    assert "out of memory" in shown and "slurm.mem_gb" in shown and "hungry/digits/photos_mae/0" in shown
    wait_for(slurm.empty)


def test_a_job_that_slurm_could_not_launch(slurm: DevCluster) -> None:
    state = _end(slurm, "--mem=10", "--output=/nowhere/at/all/log", "--wrap", "true")
    assert state.exit_code == "0:53"
    assert _class(state) == "setup"


def test_a_job_whose_interpreter_is_missing(slurm: DevCluster, tmp_path: Path) -> None:
    script, log = tmp_path / "script", tmp_path / "log"
    script.write_text("#!/nowhere/bash\ntrue\n")
    state = _end(slurm, "--mem=10", f"--output={log}", str(script))
    assert _class(state, log.read_text()) == "setup"
