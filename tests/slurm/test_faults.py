"""What goes wrong around the jobs of a real Slurm: nodes, the controller, the store's disk, no accounting."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import grid, status
from bench.monitor import follow
from bench.planning.plan import make_plan
from bench.store.files import sha256
from bench.store.store import Store
from tests.slurm.cluster import DevCluster, wait_for
from tests.slurm.workspaces import CLUSTER, Trouble, finish, run_and_exit, state

pytestmark = pytest.mark.group("slurm")

# ----------------------------------------------------------------------------------------------- the whole quickstart

FEW_STEPS = (
    "grid.seeds = [0]",
    "source_pretrain.steps = 8",
    *(f"digits/{stage}.steps = 8" for stage in ("finetune", "further_pretrain", "supcon_pretrain")),
    *(f"pydocs/{stage}.epochs = None" for stage in ("finetune", "further_pretrain", "supcon_pretrain")),
    *(f"pydocs/{stage}.steps = 8" for stage in ("finetune", "further_pretrain", "supcon_pretrain")),
)


def test_the_quickstart_by_slurm_equals_the_inline_one(slurm: DevCluster, tmp_path: Path, prepared: Path) -> None:
    weights, tables = {}, {}
    for kind in ("slurm", "inline"):
        store = Store(tmp_path / kind / "runs")
        bindings = [*FEW_STEPS, *CLUSTER, "slurm.runs_per_job = 2", "grid.name = 'quickstart'"]
        arguments = ["--gin", "quickstart.gin", "--set", *bindings, "--launcher", kind, "--data", str(prepared)]
        arguments += ["--store", str(store.root), "--results", str(tmp_path / kind / "results")]
        assert grid.main([*arguments, *(["--wait"] if kind == "slurm" else [])]) == 0
        wait_for(slurm.empty)
        plan = make_plan(["quickstart.gin"], bindings, [], prepared, store)
        assert {cell.row for cell in plan.cells} == set(plan.grid.rows)
        assert (len(plan.cells), len(plan.stages)) == (14, 22)
        weights[kind] = {stage.folder: sha256(store.weights(stage)) for stage in plan.stages}
        tables[kind] = (tmp_path / kind / "results" / "quickstart.md").read_text().split("- Cost of")[0]
    assert weights["slurm"] == weights["inline"]
    assert tables["slurm"] == tables["inline"]


# ------------------------------------------------------------------------------------------------ nodes, controller


@pytest.mark.parametrize("replaced", [False, True], ids=["another takes it", "replaced"])
def test_a_node_is_lost(
    replaced: bool, slurm: DevCluster, tmp_path: Path, prepared: Path, undisturbed: Trouble
) -> None:
    workspace = Trouble(tmp_path, prepared, *(["slurm.extra = ['nodelist=n1']"] if replaced else []))
    assert workspace.run() == 0
    workspace.hold()
    name, at = workspace.element(workspace.last), workspace.step()
    node = slurm.job(name)["NodeList"]
    try:
        slurm.control("node-kill", node)
        wait_for(lambda: state(slurm, name) == "PENDING", 60)
        if replaced:
            slurm.control("node-start", node)
        wait_for(lambda: state(slurm, name) == "COMPLETED", 180)
    finally:
        slurm.control("node-start", node)
    assert slurm.job(name)["Restarts"] == "1"
    assert (slurm.job(name)["NodeList"] == node) == replaced
    assert workspace.ends() == ["died", "done"]
    assert workspace.from_steps() == [0, at]
    assert at > 0
    wait_for(slurm.empty)
    workspace.check_same(undisturbed)


def test_a_node_is_lost_to_slurm_but_its_processes_live(
    slurm: DevCluster, tmp_path: Path, prepared: Path, undisturbed: Trouble
) -> None:
    """The second start of the element leaves the stage to the first one, which still runs it."""
    workspace = Trouble(tmp_path, prepared)
    assert workspace.run() == 0
    worker, name = workspace.hold(), workspace.element(workspace.last)
    node = slurm.job(name)["NodeList"]
    try:
        slurm.control("node-kill", node, "--leave-tasks")
        wait_for(lambda: slurm.job(name)["Restarts"] == "1" and state(slurm, name) == "RUNNING", 120)
        os.kill(worker, signal.SIGCONT)
        wait_for(lambda: state(slurm, name) == "COMPLETED", 180)
    finally:
        slurm.control("node-start", node)
    assert slurm.job(name)["Restarts"] == "1"
    assert (workspace.ends(), workspace.from_steps()) == (["done"], [0])
    wait_for(slurm.empty)
    workspace.check_same(undisturbed)


def test_cancelled_and_submitted_again_at_once(
    slurm: DevCluster, tmp_path: Path, prepared: Path, undisturbed: Trouble
) -> None:
    """What is just ending is neither attached to nor waited for by new jobs, which would be cancelled with it."""
    workspace = Trouble(tmp_path, prepared)
    assert workspace.run() == 0
    workspace.hold()  # so that its job ends only when Slurm kills it
    assert workspace.run("--cancel") == 0
    assert state(slurm, workspace.element(workspace.last)) == "COMPLETING"
    finish(workspace, slurm)
    workspace.check_same(undisturbed)


def test_the_controller_is_restarted(
    slurm: DevCluster, tmp_path: Path, prepared: Path, undisturbed: Trouble, capfd: pytest.CaptureFixture[str]
) -> None:
    """One stage runs, one waits for a start, one is told to end while nobody can be asked to requeue it."""
    rows = ("finetune", "tapt")
    short = "tapt/finetune.steps = 40"
    workspace = Trouble(tmp_path / "a", prepared, short, "slurm.array_parallelism = 1", rows=rows)
    follower = multiprocessing.get_context("fork").Process(target=run_and_exit, args=(workspace, "--wait"))
    follower.start()
    heard: list[str] = []

    def warned() -> bool:
        heard.append(capfd.readouterr().out)
        return "warning: Slurm could not be asked" in "".join(heard)

    try:
        worker = workspace.hold()
        name = workspace.element(workspace.last)
        wait_for(lambda: {"PENDING", "RUNNING"} <= {*slurm.ask("squeue", "--noheader", "--format=%T").split()})
        slurm.control("controller-stop")
        try:
            workspace.announce_end(worker)
            wait_for(lambda: f"scontrol requeue {name}:" in workspace.printed(), 60)
            wait_for(warned)
            assert follower.is_alive()
        finally:
            slurm.control("controller-start")
        follower.join(240)
        assert follower.exitcode == 0, workspace.printed()
    finally:
        follower.kill()
        follower.join()
    wait_for(slurm.empty)
    assert workspace.ends() == ["interrupted", "done"]
    assert (workspace.from_steps()[1] or 0) > 0
    inline = Trouble(tmp_path / "b", prepared, short, rows=rows)
    shutil.copytree(undisturbed.store.root, inline.store.root)
    assert grid.main(inline.arguments("--launcher", "inline")) == 0
    workspace.check_same(inline)


# ------------------------------------------------------------------------------------------------- no accounting


@pytest.fixture
def unaccounted(dev_cluster: DevCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[DevCluster]:
    """A cluster whose sacct fails, and that forgets a finished job after half a minute."""
    folder = Path(tempfile.mkdtemp(prefix="bench-slurm-"))
    cluster = DevCluster(folder)
    try:
        cluster.control("up", "--no-accounting", BENCH_SLURM_MIN_JOB_AGE="30")
        monkeypatch.setenv("SLURM_CONF", str(cluster.configuration))
        assert subprocess.run(["sacct"], capture_output=True, check=False).returncode != 0
        yield cluster
        subprocess.run(["scancel", "--me"], check=False)
        wait_for(cluster.empty)
        wait_for(lambda: not cluster.processes(), 10)
    finally:
        cluster.control("down")
        shutil.rmtree(folder, ignore_errors=True)


def test_without_accounting(
    unaccounted: DevCluster,
    tmp_path: Path,
    prepared: Path,
    undisturbed: Trouble,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A cancelled job is not followed for ever, its state is told while Slurm has it and after, and a grid ends."""
    workspace = Trouble(tmp_path, prepared)
    with monkeypatch.context() as patch:
        patch.setattr(follow, "LOST_SECONDS", 3.0)
        patch.setattr(follow, "POLL_SECONDS", 0.5)
        follower = multiprocessing.get_context("fork").Process(target=run_and_exit, args=(workspace, "--wait"))
        follower.start()
    try:
        worker = workspace.hold()
        assert workspace.run("--cancel") == 0
        os.kill(worker, signal.SIGCONT)
        follower.join(120)
        assert follower.exitcode == 1, "nobody submits again what a person cancelled"
    finally:
        follower.kill()
        follower.join()
    assert "its job was cancelled" in capfd.readouterr().out
    assert workspace.ends() == ["interrupted"]

    def shown() -> str:
        assert status.main(workspace.arguments()) == 3
        return capfd.readouterr().out

    assert "its job was cancelled" in shown()
    wait_for(lambda: "its job was cancelled" not in shown(), 150)
    finish(workspace, unaccounted)
    assert workspace.ends() == ["interrupted", "done"]
    assert (workspace.from_steps()[1] or 0) > 0
    workspace.check_same(undisturbed)
