"""The supervisor under a real Slurm: preempted, out of time, cancelled, killed; the same bits and nothing left over."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import sys
from pathlib import Path

import pytest
from submitit import SlurmExecutor

from bench.launch.slurm import ledger, worklist
from bench.launch.slurm.assignment import Assignment
from bench.launch.slurm.snapshot import snapshot
from bench.launch.slurm.supervisor import supervise
from bench.planning.plan import Plan, make_plan
from bench.specs import Stage
from bench.specs.cluster import Cluster
from bench.store.store import Store
from bench.training.protocol import Settings
from bench.training.worker import run
from tests.slurm.cluster import DevCluster, wait_for

pytestmark = pytest.mark.group("slurm")

# Five seconds of training: a preemption comes in the middle. No checkpoint but those that a signal asks for.
GRID = """
grid.rows = ['finetune']
grid.tasks = ['digits']
grid.seeds = [0, 1]
grid.checkpoint_steps = 100000
finetune.steps = 600
finetune.batch_size = 16
finetune.lr = 1e-3
finetune.augmentation = 'none'
source_pretrain.steps = 20
"""


class Workspace:
    """A store with the parents' records, and a way to submit its two stages."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder, self.data = folder, data
        self.store = Store(folder / "runs")
        gin = folder / "grid.gin"
        gin.parent.mkdir(parents=True, exist_ok=True)
        gin.write_text(GRID)
        self.plan: Plan = make_plan([str(gin)], [], [], data, self.store)
        self.stages = [cell.stage for cell in self.plan.selected]

    def submit(
        self,
        *elements: tuple[Stage, ...],
        partition: str = "low",
        minutes: int = 5,
        delay: int = 30,
        code: Path | None = None,
    ) -> list[str]:
        """One array through submitit (a plain job for one element); each element has a worklist of its own stages."""
        executor = SlurmExecutor(
            self.folder / "jobs", max_num_timeout=10**6, python=f"exec {shlex.quote(sys.executable)}"
        )
        code = code or snapshot(self.store.root)
        executor.update_parameters(
            use_srun=False,
            stderr_to_stdout=True,
            wckey="",
            partition=partition,
            time=minutes,
            cpus_per_task=1,
            setup=["trap '' USR2", f"export PYTHONSAFEPATH=1 PYTHONPATH={shlex.quote(str(code))}"],
            additional_parameters={"signal": f"B:USR2@{delay}", "requeue": True},
        )
        with executor.batch():
            jobs = []
            for stages in elements:
                token = ledger.new_token()
                cluster = Cluster(signal_delay_s=delay, timeout_min=minutes, runs_per_job=len(stages))
                attempts = {stage.key: len(self.store.attempts(stage)) for stage in stages}
                listed = worklist.worklist(token, stages, attempts, {"finetune": cluster})
                worklist.write(self.store.root, listed)
                settings = Settings(self.data, checkpoint_steps=self.plan.grid.checkpoint_steps)
                assignment = Assignment(self.store.root, code, settings, token, 0, cluster, "scontrol")
                jobs.append(executor.submit(supervise, assignment))
        return [job.job_id for job in jobs]

    def step(self, stage: Stage) -> int:
        """The last step that the stage's log tells of."""
        log = self.store.folder(stage) / "log.txt"
        lines = log.read_text().splitlines() if log.exists() else []
        steps = [int(line.split()[1].partition("/")[0]) for line in lines if line.startswith("step ")]
        return steps[-1] if steps else 0

    def states(self, stage: Stage) -> list[str | None]:
        return [attempt.end["state"] if attempt.end else None for attempt in self.store.attempts(stage)]

    def weights(self, stage: Stage) -> str:
        record = json.loads((self.store.folder(stage) / "record.json").read_text())
        return str(record["weights"]["sha256"])

    def worker(self, stage: Stage) -> int:
        """The process id of the last attempt's worker."""
        return int(self.store.attempts(stage)[-1].facts["owner"]["pid"])

    def printed(self) -> str:
        return "".join(path.read_text() for path in sorted((self.folder / "jobs").glob("*.out")))


@pytest.fixture(scope="module")
def undisturbed(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = Workspace(tmp_path_factory.mktemp("undisturbed"), prepared)
    for stage in workspace.plan.stages:
        outcome = run(
            workspace.store.add(stage), Settings(prepared, checkpoint_steps=100000), lambda: False, lambda *_: None
        )
        assert outcome.state == "done", outcome
    return workspace


@pytest.fixture
def workspace(undisturbed: Workspace, prepared: Path, tmp_path: Path) -> Workspace:
    """The same grid with its parents done and its two last stages to run."""
    last = {stage.folder for stage in undisturbed.stages}
    shutil.copytree(undisturbed.store.root, tmp_path / "runs", ignore=lambda _, names: last & set(names))
    workspace = Workspace(tmp_path, prepared)
    for stage in workspace.stages:
        workspace.store.add(stage)
    return workspace


def check_resumed(workspace: Workspace, undisturbed: Workspace, stage: Stage) -> None:
    """Interrupted once, gone on with from that very step, and the same bits as if nothing had happened."""
    first, second = workspace.store.attempts(stage)
    assert first.end is not None
    assert (first.end["state"], workspace.states(stage)[-1]) == ("interrupted", "done")
    assert second.facts["from_step"] == first.end["step"] > 0
    assert workspace.weights(stage) == undisturbed.weights(stage)


def finished(slurm: DevCluster, name: str) -> str:
    """The final state of a job that is over; a requeued one first waits, as Slurm has it."""
    ends = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL")
    wait_for(lambda: slurm.job(name)["JobState"] in ends, 120)
    return slurm.job(name)["JobState"]


FORK = """\
        import multiprocessing
        child = multiprocessing.get_context("fork").Process(target=threading.Event().wait, daemon=True)
        child.start()
        print("child", child.pid, flush=True)
"""


def with_child(workspace: Workspace) -> Path:
    """A copy of the code whose workers fork a child, as a data loader does, and print its number."""
    code = workspace.folder / "code"
    shutil.copytree(snapshot(workspace.store.root), code)
    worker, inside = code / "bench" / "training" / "worker.py", "    with stop.on_signals(second_ends):\n"
    text = worker.read_text()
    assert text.count(inside) == 1
    worker.write_text(text.replace(inside, inside + FORK))
    return code


def test_preempted_by_a_job_of_higher_priority(slurm: DevCluster, workspace: Workspace, undisturbed: Workspace) -> None:
    """Though the worker has a child, which outlives neither the worker nor its own, inherited, handlers' signals."""
    stage = workspace.stages[0]
    (name,) = workspace.submit((stage,), code=with_child(workspace))
    dependency = ["--dependency", f"afterok:{name}", "--kill-on-invalid-dep=yes"]
    child = slurm.ask(
        "sbatch",
        "--parsable",
        *dependency,
        "--output=/dev/null",
        "--wrap",
        f"ls {workspace.store.folder(stage)}/record.json",
    )
    wait_for(lambda: workspace.step(stage) > 0)
    forked = int(workspace.printed().split("child ")[1].split()[0])
    assert forked in slurm.processes()
    slurm.preempt()
    wait_for(lambda: workspace.states(stage) == ["interrupted"], 30)
    wait_for(lambda: slurm.job(name)["JobState"] == "PENDING", 30)
    assert forked not in slurm.processes()
    assert slurm.job(child)["JobState"] == "PENDING"
    assert finished(slurm, name) == "COMPLETED"
    assert slurm.job(name)["Restarts"] == "1"
    assert finished(slurm, child) == "COMPLETED"
    check_resumed(workspace, undisturbed, stage)


def hold(workspace: Workspace, *stages: Stage) -> None:
    """Stop the stages' workers once they train, so that nothing depends on this computer's speed."""
    for stage in stages:
        wait_for(lambda stage=stage: workspace.step(stage) > 0, 120)
        os.kill(workspace.worker(stage), signal.SIGSTOP)


def release(workspace: Workspace, *stages: Stage) -> None:
    for stage in stages:
        os.kill(workspace.worker(stage), signal.SIGCONT)


def test_out_of_time(slurm: DevCluster, workspace: Workspace, undisturbed: Workspace) -> None:
    stage = workspace.stages[0]
    (name,) = workspace.submit((stage,), partition="main", minutes=10, delay=90)
    hold(workspace, stage)
    # Shortened now that it trains: at least one minute is left, and less than the delay within half a minute.
    minutes = int(slurm.job(name)["RunTime"].split(":")[1]) + 2
    slurm.ask("scontrol", "update", f"JobId={name}", f"TimeLimit={minutes}")
    wait_for(lambda: "end announced: checkpointing" in workspace.printed(), 120)
    release(workspace, stage)
    wait_for(lambda: slurm.job(name)["Restarts"] == "1" and slurm.job(name)["JobState"] == "PENDING", 30)
    slurm.ask("scontrol", "update", f"JobId={name}", "TimeLimit=10")
    assert finished(slurm, name) == "COMPLETED", workspace.printed()
    assert slurm.job(name)["Restarts"] == "1"
    check_resumed(workspace, undisturbed, stage)


def test_one_element_is_cancelled(slurm: DevCluster, workspace: Workspace, undisturbed: Workspace) -> None:
    first, second = workspace.stages
    first_name, last_name = workspace.submit((first,), (second,))
    wait_for(lambda: workspace.step(first) > 0 and workspace.step(second) > 0)
    slurm.ask("scancel", first_name)
    assert finished(slurm, first_name) == "CANCELLED"
    assert finished(slurm, last_name) == "COMPLETED"
    assert workspace.states(first) == ["interrupted"]
    assert slurm.job(first_name)["Restarts"] == "0"
    assert workspace.weights(second) == undisturbed.weights(second)


def test_a_job_that_is_cancelled_while_it_checkpoints_stays_cancelled(slurm: DevCluster, workspace: Workspace) -> None:
    stage = workspace.stages[0]
    (name,) = workspace.submit((stage,))
    hold(workspace, stage)
    slurm.ask("scancel", "--batch", "--signal=USR2", name)
    wait_for(lambda: "end announced: checkpointing" in workspace.printed())
    slurm.ask("scancel", name)
    release(workspace, stage)
    wait_for(slurm.empty)
    assert slurm.job(name)["JobState"] == "CANCELLED"
    assert workspace.states(stage) == ["interrupted"]


def test_only_the_last_element_is_requeued(slurm: DevCluster, workspace: Workspace, undisturbed: Workspace) -> None:
    first, second = workspace.stages
    first_name, last_name = workspace.submit((first,), (second,))
    hold(workspace, first, second)
    assert (
        slurm.job(last_name)["JobId"] == last_name.partition("_")[0]
    )  # the raw id of the last one is the whole array's
    slurm.ask("scancel", "--batch", "--signal=USR2", last_name)
    wait_for(lambda: "end announced: checkpointing" in workspace.printed())
    release(workspace, second)
    wait_for(lambda: slurm.job(last_name)["Restarts"] == "1")
    assert slurm.job(first_name)["JobState"] == "RUNNING"
    release(workspace, first)
    assert finished(slurm, last_name) == "COMPLETED"
    assert finished(slurm, first_name) == "COMPLETED"
    assert slurm.job(first_name)["Restarts"] == "0"
    assert workspace.states(first) == ["done"]
    assert workspace.weights(first) == undisturbed.weights(first)
    check_resumed(workspace, undisturbed, second)


def test_two_stages_in_one_element(slurm: DevCluster, workspace: Workspace, undisturbed: Workspace) -> None:
    (name,) = workspace.submit(tuple(workspace.stages))
    hold(workspace, *workspace.stages)
    slurm.preempt()
    wait_for(lambda: "end announced: checkpointing" in workspace.printed())
    release(workspace, *workspace.stages)
    assert finished(slurm, name) == "COMPLETED"
    for stage in workspace.stages:
        check_resumed(workspace, undisturbed, stage)


def test_a_worker_is_killed(slurm: DevCluster, workspace: Workspace) -> None:
    stage = workspace.stages[0]
    (name,) = workspace.submit((stage,))
    dependency = ["--dependency", f"afterok:{name}", "--kill-on-invalid-dep=yes"]
    child = slurm.ask("sbatch", "--parsable", *dependency, "--output=/dev/null", "--wrap", "true")
    wait_for(lambda: workspace.step(stage) > 0)
    os.kill(workspace.worker(stage), signal.SIGKILL)
    assert finished(slurm, name) == "FAILED"
    assert finished(slurm, child) == "CANCELLED"
    assert workspace.states(stage) == ["failed"]
    assert "SIGKILL" in (workspace.store.failure(stage) or "")
    assert not (workspace.store.folder(stage) / "record.json").exists()


def test_a_supervisor_is_killed(slurm: DevCluster, workspace: Workspace, undisturbed: Workspace) -> None:
    stage = workspace.stages[0]
    (name,) = workspace.submit((stage,))
    hold(workspace, stage)
    supervisors = [pid for pid, command in slurm.processes().items() if "submitit" in command]
    assert len(supervisors) == 1
    os.kill(supervisors[0], signal.SIGKILL)
    assert finished(slurm, name) == "FAILED"
    wait_for(lambda: not slurm.processes(), 10)
    (again,) = workspace.submit((stage,))
    assert finished(slurm, again) == "COMPLETED"
    assert workspace.states(stage) == ["died", "done"]
    assert workspace.weights(stage) == undisturbed.weights(stage)


def test_the_process_that_forks_workers_is_killed(
    slurm: DevCluster, workspace: Workspace, undisturbed: Workspace
) -> None:
    """Workers go on, and another one is started for the next."""
    first, second = workspace.stages
    (name,) = workspace.submit((first, second))
    hold(workspace, first, second)
    workers = {workspace.worker(stage) for stage in (first, second)}
    (server,) = {pid for pid, command in slurm.processes().items() if "fork_server" in command} - workers
    os.kill(server, signal.SIGKILL)
    os.kill(workspace.worker(second), signal.SIGTERM)  # as somebody else may: it is started again
    release(workspace, first, second)
    assert finished(slurm, name) == "COMPLETED"
    assert (workspace.states(first), workspace.states(second)) == (["done"], ["interrupted", "done"])
    assert [workspace.weights(stage) for stage in (first, second)] == [
        undisturbed.weights(stage) for stage in (first, second)
    ]


def test_the_copied_code_is_what_runs(slurm: DevCluster, workspace: Workspace, tmp_path: Path) -> None:
    """Whatever lies in the working directory or is installed by now."""
    stage, code = workspace.stages[0], tmp_path / "code"
    shutil.copytree(snapshot(workspace.store.root), code)
    future = "from __future__ import annotations\n"
    for path in (code / "bench" / "training" / "worker.py", code / "bench" / "launch" / "slurm" / "supervisor.py"):
        path.write_text(path.read_text().replace(future, f"{future}print('copied {path.stem}')\n", 1))
    (name,) = workspace.submit((stage,), code=code)
    wait_for(lambda: "copied worker" in workspace.printed() and "copied supervisor" in workspace.printed())
    slurm.ask("scancel", name)
    assert finished(slurm, name) == "CANCELLED"
