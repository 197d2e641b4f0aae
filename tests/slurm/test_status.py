"""What the status and the doctor say of a real Slurm."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from bench import grid, status
from bench.doctor import __main__
from bench.monitor.states import Look, Seen, look
from bench.planning.plan import make_plan
from bench.specs import Stage
from bench.store.store import Store
from tests.slurm.cluster import DevCluster, wait_for

pytestmark = pytest.mark.group("slurm")

# Five seconds of training: a preemption comes in the middle.
GRID = """
include 'clusters/dev.gin'
grid.rows = ['finetune', 'tapt']
grid.tasks = ['digits']
grid.seeds = [0]
grid.checkpoint_steps = 100000
finetune.steps = 600
finetune.batch_size = 16
finetune.lr = 1e-3
finetune.augmentation = 'none'
tapt/further_pretrain.steps = 20
source_pretrain.steps = 20
"""


class SubmittedGrid:
    """A grid that is handed to Slurm, and looks at it."""

    def __init__(self, folder: Path, data: Path, text: str) -> None:
        gin = folder / "grid.gin"
        gin.write_text(text)
        self.store = Store(folder / "runs")
        self.arguments = ["--gin", str(gin), "--store", str(self.store.root), "--data", str(data)]
        self.arguments += ["--results", str(folder / "results")]
        self.plan = make_plan([str(gin)], [], [], data, Store(folder / "nothing"))
        assert grid.main([*self.arguments, "--launcher", "slurm"]) == 0

    def look(self) -> Look:
        view = look(self.plan, self.store, {})
        assert view.warning == ""
        return view

    def seen(self, number: int = 0) -> Seen:
        return self.look().of(self.plan.cells[number])

    def element(self, stage: Stage) -> str:
        """The id of the array element that runs a stage, or ran it last."""
        return str(self.store.attempts(stage)[-1].facts["owner"]["job"])


def test_a_stage_is_queued_running_requeued_and_done(
    slurm: DevCluster, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted = SubmittedGrid(tmp_path, prepared, GRID.replace(", 'tapt'", "").replace("tapt/", "# "))
    assert submitted.seen().state in ("queued", "running")
    stage = submitted.plan.cells[0].stage
    wait_for(lambda: submitted.look().seen[stage.key].share > 0, 120)
    assert (submitted.seen().state, slurm.job(submitted.element(stage))["JobState"]) == ("running", "RUNNING")
    slurm.preempt()
    wait_for(lambda: submitted.seen().state == "requeued")
    seen = submitted.seen()
    assert seen.note.startswith("starts after ") and 0 < seen.share < 1
    assert status.main(submitted.arguments) == 3
    assert "↻" in capsys.readouterr().out
    assert status.main([*submitted.arguments, "--watch"]) == 0
    shown = capsys.readouterr().out
    assert "▸ running" in shown and "cells: 1 done" in shown.splitlines()[-1]
    assert status.main([*submitted.arguments, "--log", submitted.plan.cells[0].name]) == 0
    assert "step 600/600" in capsys.readouterr().out


def test_jobs_that_end_otherwise_are_told_apart(
    slurm: DevCluster, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted = SubmittedGrid(tmp_path, prepared, GRID)
    cancelled, killed = (cell.stage for cell in submitted.plan.cells)
    wait_for(lambda: all(submitted.look().seen[stage.key].share > 0 for stage in (cancelled, killed)), 180)
    first = submitted.element(cancelled)
    slurm.ask("scancel", first)
    wait_for(lambda: submitted.store.attempts(cancelled)[0].end is not None)
    os.kill(submitted.store.attempts(killed)[-1].facts["owner"]["pid"], signal.SIGKILL)
    wait_for(lambda: submitted.seen(1).state == "failed")
    assert status.main([*submitted.arguments, "--failed"]) == 1
    shown = capsys.readouterr().out
    assert "out of memory: 1 stage" in shown and f"job {submitted.element(killed)}" in shown
    # The job whose stage failed goes on with what the cancelled one has left.
    wait_for(lambda: submitted.seen(0).state == "done", 300)
    ends = [attempt.end["state"] for attempt in submitted.store.attempts(cancelled) if attempt.end is not None]
    assert ends == ["interrupted", "done"]
    assert submitted.element(cancelled) != first


def test_the_doctor_finds_a_development_cluster_well(
    slurm: DevCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        __main__.main(
            ["--store", str(tmp_path), "--data", str(tmp_path), "--set", "slurm.partition='low'", "slurm.gpus=0"]
        )
        == 0
    )
    shown = capsys.readouterr().out
    assert "wrote into the store" in shown
    assert "ok      preemption is announced" in shown
    wrong = ["--set", "slurm.partition='lwo'", "--quick"]
    assert __main__.main(["--store", str(tmp_path), "--data", str(tmp_path), *wrong]) == 1
    assert "Did you mean 'low'" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
