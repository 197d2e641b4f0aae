"""Submitting to a real Slurm: once each, in the right order, and nothing of anybody else's touched."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from bench.errors import InputError
from bench.launch.reporter import Reporter
from bench.launch.slurm import ledger
from tests.slurm.cluster import DevCluster, wait_for
from tests.slurm.workspaces import LATER, ONE_TASK, Workspace, run_and_exit

pytestmark = pytest.mark.group("slurm")


def test_the_last_job_writes_the_tables(slurm: DevCluster, tmp_path: Path, prepared: Path) -> None:
    workspace = Workspace(tmp_path, prepared, "tiny", ["finetune"], *ONE_TASK)
    assert workspace.run() == 0
    table = tmp_path / "results" / "tiny.md"
    assert not table.exists(), "submitting returns at once"
    before = workspace.gin.read_text()
    workspace.gin.write_text(f"{before}\nfinetune.batch_size = 3\n")  # for another experiment, while this one is queued
    wait_for(table.exists, 90)
    assert "(1)" in table.read_text()
    workspace.gin.write_text(before)
    assert workspace.run() == 0
    assert not workspace.queued()


def test_a_second_time_attaches(
    slurm: DevCluster, tmp_path: Path, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = Workspace(tmp_path, prepared, "tiny", ["finetune", "tapt"], LATER)
    assert workspace.run() == 0
    before = slurm.ask("squeue", "--noheader", "--array", "--format=%i")
    assert workspace.queued() == {stage.folder for stage in workspace.plan.stages}
    capsys.readouterr()
    assert workspace.run() == 0
    assert "attached: 8 stages" in capsys.readouterr().out
    assert slurm.ask("squeue", "--noheader", "--array", "--format=%i") == before


@pytest.mark.parametrize("after", range(4))
def test_killed_between_sbatch_and_its_note(
    after: int, slurm: DevCluster, tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(tmp_path, prepared, "tiny", ["finetune", "tapt"], LATER)
    complete, calls = ledger.complete, []

    def die(*arguments: object) -> ledger.Submission:
        calls.append(arguments)
        if len(calls) > after:
            raise KeyboardInterrupt
        return complete(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(ledger, "complete", die)
        with pytest.raises(KeyboardInterrupt):
            workspace.run()
    assert len(calls) == after + 1
    assert workspace.run() == 0
    assert workspace.queued() == {stage.folder for stage in workspace.plan.stages}
    assert all(one.job_id is not None for one in ledger.submissions(workspace.store.root))


def test_ctrl_c_detaches(slurm: DevCluster, tmp_path: Path, prepared: Path) -> None:
    workspace = Workspace(tmp_path, prepared, "tiny", ["finetune"], *ONE_TASK, LATER)
    process = multiprocessing.get_context("fork").Process(target=run_and_exit, args=(workspace, "--wait"))
    process.start()
    wait_for(lambda: any(not one.runs_stages and one.job_id for one in ledger.submissions(workspace.store.root)))
    time.sleep(2)  # by now it follows
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join(30)
    assert process.exitcode == 130
    assert len(workspace.queued()) == 2


def test_two_grids_at_once_on_one_store(slurm: DevCluster, tmp_path: Path, prepared: Path) -> None:
    """What they share is submitted once, and the other's stages wait for its element."""
    rows = {"one": ["finetune", "tapt"], "two": ["tapt", "supcon"]}
    workspaces = [Workspace(tmp_path, prepared, name, rows[name], LATER) for name in rows]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=run_and_exit, args=(workspace,)) for workspace in workspaces for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    stages = {stage.folder for workspace in workspaces for stage in workspace.plan.stages}
    assert workspaces[0].queued() == stages


def test_cancelling_a_grid_leaves_everything_else(slurm: DevCluster, tmp_path: Path, prepared: Path) -> None:
    mine = Workspace(tmp_path / "mine", prepared, "tiny", ["finetune"], LATER)
    other = Workspace(tmp_path / "mine", prepared, "tiny2", ["mars"], LATER)
    variant = Workspace(tmp_path / "variant", prepared, "tiny", ["finetune"], LATER, "source_pretrain.steps = 9")
    variant.store = mine.store
    same_name_elsewhere = Workspace(tmp_path / "elsewhere", prepared, "tiny", ["finetune"], LATER)
    strange = slurm.ask("sbatch", "--parsable", "--begin=now+3600", "--output=/dev/null", "--wrap", "true")
    for workspace in (mine, same_name_elsewhere):
        assert workspace.run() == 0
    own = {stage.folder for stage in mine.plan.stages}
    assert other.run() == 0
    assert variant.run() == 0
    assert mine.run("--cancel") == 0
    listed_elsewhere = {stage.folder for stage in other.plan.stages}
    wait_for(lambda: own & mine.queued() == own & listed_elsewhere)
    assert own - listed_elsewhere, "what only the cancelled grid needs is in nobody's hands"
    assert {stage.folder for stage in variant.plan.stages} <= mine.queued(), "of the same name and store"
    tables = {one.source: one for one in ledger.submissions(mine.store.root, "tiny") if not one.runs_stages}
    assert [slurm.job(f"{one.job_id}_0")["JobState"] for one in tables.values()] == ["CANCELLED", "PENDING"]
    assert same_name_elsewhere.queued() == own
    assert slurm.job(strange)["JobState"] == "PENDING"


REFUSING = """#!/bin/sh
case "$*" in *--test-only*) exec {sbatch} "$@";; esac
echo call >> {calls}
[ $(wc -l < {calls}) -gt {accepted} ] && echo "sbatch: error: AssocMaxSubmitJobLimit" >&2 && exit 1
exec {sbatch} "$@"
"""


@pytest.mark.parametrize(
    ("accepted", "stages"), [(1, "1 stage"), (2, "2 stages")], ids=["the second array", "the tables' job"]
)
def test_sbatch_refuses_halfway(
    accepted: int,
    stages: str,
    slurm: DevCluster,
    tmp_path: Path,
    prepared: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What is queued stays so and is told, and so are sbatch's own words; the same command goes on."""
    workspace = Workspace(tmp_path / "place", prepared, "tiny", ["finetune"], *ONE_TASK, LATER)
    program, calls = tmp_path / "programs" / "sbatch", tmp_path / "calls"
    program.parent.mkdir()
    program.write_text(REFUSING.format(sbatch=shutil.which("sbatch"), calls=calls, accepted=accepted))
    program.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
        assert workspace.run() == 1
    shown = capsys.readouterr()
    assert "AssocMaxSubmitJobLimit" in shown.err and f"submitted: {stages} in" in shown.out
    assert len(workspace.queued()) == accepted
    assert workspace.run() == 0
    assert len(workspace.queued()) == 2


def test_a_failed_parent_blocks_its_own_children_only(
    slurm: DevCluster, tmp_path: Path, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = Workspace(
        tmp_path, prepared, "tiny", ["supcon"], *ONE_TASK, "grid.seeds = [0, 1]", "grid.checkpoint_steps = 1"
    )
    broken = next(stage for stage in workspace.plan.stages if stage.name == "supcon_pretrain" and stage.seed == 0)
    workspace.store.folder(broken).mkdir(parents=True)
    (workspace.store.folder(broken) / "checkpoints").write_text("no folder")
    assert workspace.run("--wait") == 1
    shown = capsys.readouterr().out
    assert "failed: supcon/digits/photos_mae/0: its stage supcon_pretrain: " in shown
    assert "blocked: supcon/digits/photos_mae/0: its stage supcon_pretrain" in shown
    plan = workspace.plan
    assert {stage.seed for stage in plan.stages if stage.name == "finetune" and stage.key in plan.done} == {1}
    wait_for(slurm.empty)
    assert workspace.run() == 1, "a failed stage is not tried again unasked"
    assert not workspace.queued()
    (workspace.store.folder(broken) / "checkpoints").unlink()
    assert workspace.run("--retry", "--wait") == 0


def test_arrays_at_and_above_the_limit(slurm: DevCluster, tmp_path: Path, prepared: Path) -> None:
    """As many jobs as may run at once, and no more than an array may have, are enough for any number of stages."""
    seeds, many = f"grid.seeds = {list(range(1002))}", "slurm.array_parallelism = 5000"
    workspace = Workspace(tmp_path, prepared, "tiny", ["finetune"], *ONE_TASK, seeds, many, LATER)
    assert workspace.run() == 0
    assert [one.jobs for one in ledger.submissions(workspace.store.root) if one.runs_stages] == [1, 1001]
    assert workspace.queued() == {stage.folder for stage in workspace.plan.stages}
    assert workspace.run("--cancel") == 0


def test_a_surrounding_jobs_variables_do_not_reach_sbatch(
    slurm: DevCluster, tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"SBATCH_PARTITION": "nope", "SLURM_CPUS_PER_TASK": "99", "SBATCH_TIMELIMIT": "x"}.items():
        monkeypatch.setenv(name, value)
    workspace = Workspace(tmp_path, prepared, "tiny", ["finetune"], *ONE_TASK, LATER)
    assert workspace.run() == 0
    assert len(workspace.queued()) == 2
    (first, *_) = ledger.submissions(workspace.store.root)
    shown = slurm.job(f"{first.job_id}_0")
    assert (shown["Partition"], shown["TimeLimit"], shown["Requeue"]) == ("main", "00:05:00", "1")


@pytest.mark.parametrize(
    ("binding", "words"),
    [
        ("slurm.constraint = 'cold'", "Invalid feature specification"),
        ("slurm.extra = ['reservation=none']", "reservation is invalid"),
        ("slurm.gpus = 9", "slurm.gpus = 9"),
        ("slurm.partition = 'mean'", "there is no partition 'mean'"),
    ],
)
def test_refused_before_anything_is_written(
    binding: str, words: str, slurm: DevCluster, tmp_path: Path, prepared: Path
) -> None:
    workspace = Workspace(tmp_path, prepared, "tiny", ["finetune"], binding)
    with pytest.raises(InputError, match=words):
        workspace.run()
    assert not workspace.store.root.exists()
    assert slurm.empty()


def test_the_plan_shows_the_calls_and_writes_nothing(
    slurm: DevCluster, tmp_path: Path, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = Workspace(tmp_path, prepared, "tiny", ["finetune", "tapt"])
    assert workspace.run("--plan") == 0
    shown = capsys.readouterr().out
    assert "job arrays for 8 stages" in shown
    assert "array 0: 2 jobs for 2 stages (source_pretrain)" in shown
    assert not workspace.store.root.exists()
    assert slurm.empty()


def test_following_ends_where_slurm_lost_the_jobs(
    slurm: DevCluster, tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a wait for ever nor a success: the stages are left, with what Slurm said last."""
    from bench.monitor import follow

    workspace = Workspace(tmp_path, prepared, "tiny", ["finetune"], *ONE_TASK, LATER)
    assert workspace.run() == 0
    assert workspace.run("--cancel") == 0
    monkeypatch.setattr(follow, "LOST_SECONDS", 1.0)
    monkeypatch.setattr(follow, "POLL_SECONDS", 0.5)
    keys = [stage.key for stage in workspace.plan.stages]
    with Reporter(len(keys), {}) as report:
        ended = follow.follow(workspace.plan, keys, workspace.store, lambda: False, report)
    assert ended.left[keys[0]] == "its jobs were cancelled"
    assert ended.left.keys() == {*keys} and not ended.failed
