"""Grids in folders of their own that the tests hand to a real Slurm, and watch."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import grid
from bench.launch.slurm import ledger
from bench.launch.slurm.cover import covered
from bench.planning.plan import Plan, make_plan
from bench.specs import Stage
from bench.store.store import Store
from tests import tiny_grid
from tests.slurm.cluster import DevCluster, wait_for

CLUSTER = ("slurm.partition = 'main'", "slurm.mem_gb = 1.0", "slurm.timeout_min = 5", "slurm.signal_delay_s = 30")
LATER = "slurm.extra = ['begin=now+3600']"
"""Jobs that stay in the queue, for tests of what is submitted."""
ONE_TASK = ("grid.tasks = ['digits']",)
SHORT = {
    "tapt": ("further_pretrain.steps = 4", "further_pretrain.warmup_steps = 1"),
    "supcon": ("supcon_pretrain.steps = 4", "supcon_pretrain.warmup_steps = 1"),
}
"""Of each row, what keeps its stages short."""


class Workspace:
    """A grid in a folder of its own, with a store that other workspaces may share."""

    def __init__(self, folder: Path, data: Path, name: str, rows: Sequence[str], *bindings: str) -> None:
        self.folder, self.data, self.store = folder, data, Store(folder / "runs")
        (folder / name).mkdir(parents=True)
        short = {line for row in rows for line in SHORT.get(row, ())}
        written = tiny_grid.write(folder / name, list(rows), *CLUSTER, f"grid.name = '{name}'", *sorted(short))
        self.gin = written
        # What --set changes has tables of its own, unless it names them.
        self.bindings = (*bindings, f"grid.name = '{name}'") if bindings else ()

    @property
    def plan(self) -> Plan:
        return make_plan([str(self.gin)], self.bindings, [], self.data, self.store)

    def arguments(self, *more: str) -> list[str]:
        folders = ["--store", str(self.store.root), "--data", str(self.data), "--results", str(self.folder / "results")]
        changed = ["--set", *self.bindings] if self.bindings else []
        return ["--gin", str(self.gin), *changed, *folders, *more]

    def run(self, *more: str) -> int:
        return grid.main(self.arguments("--launcher", "slurm", *more))

    def queued(self) -> set[str]:
        """The folder names of stages that live jobs are to run, or have run."""
        return set(covered(self.store.root, *ledger.look(self.store.root)))

    def weights(self) -> dict[str, str]:
        records = {stage.folder: self.store.record(stage) for stage in self.plan.stages}
        return {name: record["weights"]["sha256"] for name, record in records.items() if record is not None}


def run_and_exit(workspace: Workspace, *more: str) -> None:
    sys.exit(workspace.run(*more))


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

    def announce_end(self, worker: int) -> None:
        """Tell the supervisor of a stopped worker that the job ends, let go of it, and wait for its checkpoint."""
        supervisor = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(supervisor, signal.SIGUSR2)
        wait_for(lambda: "end announced: checkpointing" in self.printed())
        os.kill(worker, signal.SIGCONT)
        wait_for(lambda: self.ends() == ["interrupted"])

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


def state(slurm: DevCluster, name: str) -> str:
    return slurm.job(name)["JobState"]


def finish(workspace: Trouble, slurm: DevCluster, *more: str) -> None:
    """Run the same command to its end, with the tables' job."""
    assert workspace.run("--wait", *more) == 0, workspace.printed()
    wait_for(slurm.empty)
