"""What goes wrong around the jobs of a real Slurm: nodes, the controller, the store's disk, no accounting."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import grid, status
from bench.errors import InputError
from bench.monitor import follow
from bench.planning.plan import make_plan
from bench.specs import Stage
from bench.store.files import sha256
from bench.store.store import Store
from tests.slurm.conftest import DevCluster, wait_for
from tests.slurm.test_submit import CLUSTER, ONE_TASK, Workspace

pytestmark = pytest.mark.group("slurm")

# Long enough to be stopped after its first checkpoint, at whatever speed. The network has the size that it has in
# gin/quickstart.gin, for checkpoints that do not fit where words still do.
SIZE = {"width": 48, "depth": 3, "heads": 4, "mlp_width": 192}
LONG = (
    *("finetune.steps = 400", "finetune.batch_size = 16", "finetune.lr = 1e-3", "grid.checkpoint_steps = 50"),
    *(f"photos_mae/backbone.{name} = {value}" for name, value in SIZE.items()),
)


class Trouble(Workspace):
    """A grid on the task digits whose fine-tuning can be watched, stopped for a while and let go on."""

    def __init__(self, folder: Path, data: Path, *bindings: str, rows: tuple[str, ...] = ("finetune",)) -> None:
        super().__init__(folder, data, "tiny", rows, *ONE_TASK, *LONG, *bindings)
        planned = make_plan([str(self.gin)], self.bindings, [], data, Store(Path(os.devnull)))
        self.stages = planned.stages
        self.last = planned.cells[0].stage

    def element(self, stage: Stage) -> str:
        """The id of the array element that runs a stage, or ran it last."""
        return str(self.store.attempts(stage)[-1].facts["owner"]["job"])

    def step(self) -> int:
        """The step of the newest checkpoint of the fine-tuning."""
        markers = (self.store.folder(self.last) / "checkpoints").glob("step-*.json")
        return max((int(path.stem.partition("-")[2]) for path in markers), default=0)

    def hold(self) -> int:
        """Wait for the first checkpoint of the fine-tuning and stop its worker there; returns its process id."""
        wait_for(lambda: self.step() > 0, 180)
        pid = int(self.store.attempts(self.last)[-1].facts["owner"]["pid"])
        os.kill(pid, signal.SIGSTOP)
        assert self.store.record(self.last) is None, "it has to be stopped in the middle"
        return pid

    def ends(self) -> list[str | None]:
        """How each attempt at the fine-tuning ended."""
        return [attempt.end["state"] if attempt.end else None for attempt in self.store.attempts(self.last)]

    def from_steps(self) -> list[int | None]:
        return [attempt.facts["from_step"] for attempt in self.store.attempts(self.last)]

    def printed(self) -> str:
        """What the jobs printed, and the stages' logs."""
        logs = [*self.store.root.glob(".slurm/log/*/*.out"), *self.store.root.glob("*/log.txt")]
        return "".join(path.read_text(errors="replace") for path in sorted(logs))

    def table(self) -> str:
        """The table, without what clock and checkout decide."""
        return (self.folder / "results" / "tiny.md").read_text().split("- Cost of")[0]

    def check_same(self, undisturbed: Trouble) -> None:
        """Every stage once, with the same bits as if nothing had happened, and the same table."""
        assert self.weights() == undisturbed.weights()
        for stage in self.stages:
            folder = self.store.folder(stage)
            assert [path.name for path in folder.glob("record*")] == ["record.json"]
            assert len(list(folder.glob("weights-*"))) == 1
            assert not (folder / "checkpoints").exists()
        assert self.table() == undisturbed.table()


@pytest.fixture(scope="module")
def undisturbed(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Trouble:
    workspace = Trouble(tmp_path_factory.mktemp("undisturbed"), prepared)
    assert grid.main(workspace.arguments("--launcher", "inline")) == 0
    return workspace


def state(slurm: DevCluster, name: str) -> str:
    return slurm.job(name)["JobState"]


def finish(workspace: Trouble, slurm: DevCluster, *more: str) -> None:
    """Run the same command to its end, with the tables' job."""
    assert workspace.run("--wait", *more) == 0, workspace.printed()
    wait_for(slurm.empty)


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
        bindings = [*FEW_STEPS, *CLUSTER, "grid.name = 'quickstart'"]
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


def _run(workspace: Workspace, *more: str) -> None:
    sys.exit(workspace.run(*more))


def test_the_controller_is_restarted(
    slurm: DevCluster, tmp_path: Path, prepared: Path, undisturbed: Trouble, capfd: pytest.CaptureFixture[str]
) -> None:
    """One stage runs, one waits for a start, one is told to end while nobody can be asked to requeue it."""
    rows = ("finetune", "tapt")
    short = "tapt/finetune.steps = 40"
    workspace = Trouble(tmp_path / "a", prepared, short, "slurm.array_parallelism = 1", rows=rows)
    follower = multiprocessing.get_context("fork").Process(target=_run, args=(workspace, "--wait"))
    follower.start()
    heard: list[str] = []

    def warned() -> bool:
        heard.append(capfd.readouterr().out)
        return "warning: Slurm could not be asked" in "".join(heard)

    try:
        worker = workspace.hold()
        name = workspace.element(workspace.last)
        supervisor = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
        wait_for(lambda: {"PENDING", "RUNNING"} <= {*slurm.ask("squeue", "--noheader", "--format=%T").split()})
        slurm.control("controller-stop")
        try:
            os.kill(supervisor, signal.SIGUSR2)
            wait_for(lambda: "end announced: checkpointing" in workspace.printed())
            os.kill(worker, signal.SIGCONT)
            wait_for(lambda: workspace.ends() == ["interrupted"])
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


# ------------------------------------------------------------------------------------------------------- the disk


@contextlib.contextmanager
def mounted(mount_point: Path, *options: str) -> Iterator[None]:
    """Have something mounted there meanwhile; skips where that is not allowed."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    run = subprocess.run(["mount", *options, str(mount_point)], capture_output=True, text=True, check=False)
    if run.returncode != 0:
        pytest.skip(f"a file system cannot be mounted here: {run.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(mount_point)], check=True)


def free(folder: Path) -> int:
    facts = os.statvfs(folder)
    return facts.f_bavail * facts.f_frsize


def fill(folder: Path, room: int) -> Path:
    """Fill the disk of a folder up to so many bytes; returns the file to delete."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while (left := free(folder) - room) > 0:
            file.write(bytes(min(left, 1 << 20)))
    assert free(folder) <= room
    return path


@pytest.mark.parametrize(
    "room",
    [
        pytest.param(256 * 1024, id="no room for a checkpoint"),
        pytest.param(0, id="no room for a letter"),
    ],
)
def test_the_stores_disk_is_full(
    room: int,
    slurm: DevCluster,
    tmp_path: Path,
    prepared: Path,
    undisturbed: Trouble,
    capsys: pytest.CaptureFixture[str],
) -> None:
    workspace = Trouble(tmp_path, prepared)
    workspace.store.root.mkdir()
    with mounted(workspace.store.root, "-t", "tmpfs", "-o", "size=32m", "tmpfs"):
        assert workspace.run() == 0
        worker, name = workspace.hold(), workspace.element(workspace.last)
        filler, at = fill(workspace.store.root, room), workspace.step()
        os.kill(worker, signal.SIGCONT)
        wait_for(lambda: state(slurm, name) == "FAILED", 120)
        wait_for(slurm.empty)
        assert workspace.store.record(workspace.last) is None
        printed = workspace.printed()
        capsys.readouterr()
        assert status.main([*workspace.arguments(), "--failed"]) == 3, "no fault of the stage: to be run again"
        shown = capsys.readouterr().out
        assert "finetune/digits/photos_mae/0" in shown
        filler.unlink()
        finish(workspace, slurm)
        first, *others = workspace.from_steps()
        assert first == 0 and {*others} <= {at, None} and at in others, "tried on a full disk, then gone on with"
        workspace.check_same(undisturbed)
        if room:  # else there was none for the words, either
            assert "No space left on device" in printed
            assert shown.startswith("data: 1 stage")


def test_a_read_only_store_is_refused(slurm: DevCluster, tmp_path: Path, prepared: Path) -> None:
    workspace = Trouble(tmp_path, prepared)
    workspace.store.root.mkdir()
    with mounted(workspace.store.root, "-t", "tmpfs", "-o", "size=1m,ro", "tmpfs"):
        with pytest.raises(InputError, match=r"--store .*runs: .* is not a folder this user can write"):
            workspace.run()
        assert list(workspace.store.root.iterdir()) == []
        assert slurm.empty()


def test_the_store_becomes_read_only(slurm: DevCluster, tmp_path: Path, prepared: Path, undisturbed: Trouble) -> None:
    workspace = Trouble(tmp_path, prepared)
    root = workspace.store.root
    assert workspace.run() == 0
    worker, name = workspace.hold(), workspace.element(workspace.last)
    at = workspace.step()
    # A second mount covers the first: what is open for writing keeps a file system from becoming read-only itself.
    with mounted(root, "--bind", str(root)):
        subprocess.run(["mount", "-o", "remount,bind,ro", str(root)], check=True)
        os.kill(worker, signal.SIGCONT)
        wait_for(lambda: state(slurm, name) == "FAILED", 120)
        assert "Read-only file system" in workspace.printed()
        assert workspace.store.record(workspace.last) is None
        with pytest.raises(InputError, match="is not a folder this user can write"):
            workspace.run()
    finish(workspace, slurm)
    assert workspace.from_steps() == [0, at]
    assert workspace.ends() == ["died", "done"]
    workspace.check_same(undisturbed)


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
        follower = multiprocessing.get_context("fork").Process(target=_run, args=(workspace, "--wait"))
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
