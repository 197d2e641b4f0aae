"""How a grid stands, from files and from what a stand-in for Slurm says; no state is made up, none is endless."""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench import status
from bench.errors import InputError
from bench.launch.slurm import ledger, troubles, worklist
from bench.monitor import failures, matrix
from bench.monitor.states import STATES, Look, look
from bench.planning.catalogue import Catalogue
from bench.planning.plan import Plan, PlannedCell
from bench.planning.settings import Grid
from bench.specs import Stage, walk
from bench.specs.cluster import Cluster
from bench.store.files import write_json
from bench.store.ownership import JOB_VARIABLE, STALE_SECONDS, Attempt
from bench.store.store import Store
from tests import tiny_grid
from tests.examples import finetuning

SEEDS = 3
LINE = "{id}|{name}|{state}|{submitted}|{start}|{reason}"


@dataclass
class Site:
    """A store, a grid of one row and three seeds that share one parent, and programs that stand in for Slurm's."""

    folder: Path

    def __post_init__(self) -> None:
        self.store = Store(self.folder / "runs")
        stages = [finetuning(seed=seed) for seed in range(SEEDS)]
        cells = [
            PlannedCell(
                f"finetune/digits/tiny/{s.seed}", "finetune", "finetune", "digits", "accuracy", "tiny", s.seed, s
            )
            for s in stages
        ]
        grid = Grid(rows=("finetune",), tasks=("digits",), seeds=tuple(range(SEEDS)), name="site")
        self.plan = Plan(grid, "site.gin", cells, cells, list(walk(*stages)), Catalogue(), self.folder, [])
        self.parent, self.first, self.second, self.third = self.plan.stages
        for stage in self.plan.stages:
            self.store.add(stage)

    @property
    def programs(self) -> Path:
        return self.folder / "programs"

    def slurm(self, *lines: str, status: int = 0, sacct: str | None = None) -> None:
        """Have squeue print these lines (or fail), sacct this text (None: no accounting)."""
        self.programs.mkdir(exist_ok=True)
        failing = "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2"
        texts = {"squeue": "\n".join(lines), "sacct": sacct or ""}
        for name, code in (("squeue", status), ("sacct", 1 if sacct is None else 0)):
            (self.programs / f"{name}.out").write_text(texts[name] + "\n")
            does = failing if code else f"cat {self.programs}/{name}.out"
            (self.programs / name).write_text(
                f"#!/bin/sh\necho called >> {self.programs}/{name}.calls\n{does}\nexit {code}\n"
            )
            (self.programs / name).chmod(stat.S_IRWXU)

    def calls(self, name: str = "squeue") -> int:
        path = self.programs / f"{name}.calls"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def submit(self, *stages: Stage, job: str | None = "7", jobs: int = 2, generation: int = 1) -> ledger.Submission:
        """An array whose jobs are to run these stages."""
        attempts = {stage.key: len(self.store.attempts(stage)) for stage in stages}
        clusters = dict.fromkeys(("source_pretrain", "finetune"), Cluster())
        listed = worklist.worklist(ledger.new_token(), stages, attempts, clusters)
        worklist.write(self.store.root, listed)
        facts = {"worklist": listed.token, "generation": generation, "jobs": jobs}
        made = ledger.note(self.store.root, "site", self.plan.source, "finetune", **facts)
        return ledger.complete(self.store.root, made, job) if job is not None else made

    def line(self, made: ledger.Submission, index: int, state: str, start: str = "N/A", reason: str = "None") -> str:
        id_ = f"{made.job_id or 7}_{index}"
        return LINE.format(id=id_, name=made.name, state=state, submitted=int(made.time), start=start, reason=reason)

    def finish(self, stage: Stage) -> None:
        attempt = self.store.claim(stage)
        assert attempt is not None
        weights = self.store.folder(stage) / "weights.safetensors"
        weights.write_bytes(b"weights")
        weights_entry = {"file": weights.name, "sha256": "0" * 64, "bytes": 7}
        self.store.publish(attempt, stage, {"key": stage.key, "metrics": {}, "seconds": 1.0, "weights": weights_entry})
        self.store.finish(attempt, "done")

    def begin(self, stage: Stage, job: str | None = None, dead: bool = False, from_step: int = 0) -> Attempt:
        """An attempt by this living process, or by one that is gone from another machine."""
        with pytest.MonkeyPatch.context() as patch:
            if job is not None:
                patch.setenv(JOB_VARIABLE, job)
            attempt = self.store.claim(stage)
        assert attempt is not None
        self.store.started(attempt, from_step, [])
        if dead:
            facts = {**attempt.facts, "owner": {**attempt.facts["owner"], "machine": "n9 elsewhere", "pid": 1}}
            write_json(attempt.path, facts)
            old = time.time() - 2 * STALE_SECONDS
            os.utime(attempt.path, (old, old))
        return attempt

    def log(self, stage: Stage, text: str) -> None:
        (self.store.folder(stage) / "log.txt").write_text(text)

    def look(self) -> Look:
        return look(self.plan, self.store, {})

    def state(self, stage: Stage) -> str:
        return self.look().seen[stage.key].state

    def cells(self) -> list[str]:
        view = self.look()
        return [view.of(cell).state for cell in self.plan.selected]

    def text(self, encoding: str = "utf-8") -> str:
        return matrix.describe_states(self.plan, self.look(), encoding)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """No Slurm on the PATH until `slurm` is called."""
    made = Site(tmp_path / "site")
    monkeypatch.setenv("PATH", f"{made.programs}")
    monkeypatch.delenv("SLURM_CONF", raising=False)
    # The programs themselves need a shell's commands.
    made.programs.mkdir()
    for name in ("cat", "sh"):
        program = next(
            Path(directory) / name for directory in ("/bin", "/usr/bin") if (Path(directory) / name).exists()
        )
        (made.programs / name).symlink_to(program)
    return made


def tables(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("finetune")]


# ----------------------------------------------------------------------------------------------- without a cluster


def test_without_a_store_everything_is_planned(tmp_path: Path, site: Site) -> None:
    view = look(site.plan, Store(tmp_path / "nothing"), {})
    assert {seen.state for seen in view.seen.values()} == {"planned"}
    assert not (tmp_path / "nothing").exists()


def test_files_alone_tell_done_running_failed_and_stale(site: Site) -> None:
    for stage in (site.parent, site.first):
        site.finish(stage)
    site.store.finish(site.begin(site.second), "failed", "ValueError: no")
    site.begin(site.third)
    assert site.cells() == ["done", "failed", "running"]
    assert "warning" not in site.text()


def test_an_open_attempt_without_a_heartbeat_is_stale(site: Site) -> None:
    site.finish(site.parent)
    site.begin(site.first, dead=True)
    assert site.state(site.first) == "stale"
    assert "run the grid again" in site.text()


def test_an_interrupted_stage_is_planned_and_keeps_its_share(site: Site) -> None:
    site.finish(site.parent)
    site.store.finish(site.begin(site.first), "interrupted", step=4)
    seen = site.look().seen[site.first.key]
    assert (seen.state, seen.note, seen.share) == ("planned", "interrupted", 0.4)


@pytest.mark.parametrize(
    ("log", "checkpoint", "from_step", "share"),
    [
        ("", None, 0, 0.0),
        ("", None, 3, 0.3),
        ("", 5, 3, 0.5),
        ("step 6/10 loss 1\nnoise step 9/10\nstep 7/10 loss 0.5\n", 5, 0, 0.7),
        ("x" * 9000 + "\nstep 8/10 loss 1\n", None, 0, 0.8),
        ("step 9999999/10 loss 1\n", None, 0, 1.0),
        ("step 2/10 loss 1\n", 5, 5, 0.5),  # what an attempt before this one printed
    ],
)
def test_progress_comes_from_the_attempt_its_checkpoint_and_its_log(
    log: str, checkpoint: int | None, from_step: int, share: float, site: Site
) -> None:
    site.finish(site.parent)
    site.begin(site.first, from_step=from_step)
    site.log(site.first, log)
    if checkpoint is not None:
        write_json(site.store.folder(site.first) / "checkpoints" / f"step-{checkpoint:08}.json", {})
    assert site.look().seen[site.first.key].share == share
    assert f"{100 * share:.0f} %" in tables(site.text())[0]


def test_a_cell_shows_its_earliest_unfinished_stage(site: Site) -> None:
    site.begin(site.parent)
    site.log(site.parent, "step 4/10 loss 1\n")
    assert site.cells() == ["running"] * SEEDS
    assert site.look().seen[site.first.key].state == "planned"
    assert f"running: {site.parent.title}: 40 % (3 cells)" in site.text()


def test_what_lies_behind_a_finished_cell_is_not_read(site: Site) -> None:
    for stage in (site.parent, site.first, site.second, site.third):
        site.finish(stage)
    (site.store.folder(site.parent) / "record.json").write_text("damaged")
    view = site.look()
    assert [view.of(cell).state for cell in site.plan.selected] == ["done"] * SEEDS
    assert site.parent.key not in view.seen


def test_a_failed_parent_blocks_its_children_and_says_so(site: Site) -> None:
    site.store.finish(site.begin(site.parent), "failed", "RuntimeError: boom")
    assert site.cells() == ["blocked"] * SEEDS
    assert f"blocked: its stage {site.parent.name} failed: RuntimeError: boom (3 cells)" in site.text()


def test_damage_is_a_state_and_hides_nothing_else(site: Site) -> None:
    for stage in (site.parent, site.first, site.second):
        site.finish(stage)
    (site.store.folder(site.first) / "record.json").write_text("{")
    assert site.cells() == ["unknown", "done", "planned"]
    assert "record.json: damaged" in site.text()


def test_a_store_that_cannot_be_written_can_be_looked_at(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.finish(site.parent)
    site.begin(site.first, dead=True)

    def refuse(*_: object, **__: object) -> Any:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)
    assert site.state(site.first) == "stale"


# ------------------------------------------------------------------------------------------------- with a cluster


@pytest.mark.parametrize(
    ("state", "reason", "expected", "note"),
    [
        ("PENDING", "Priority", "queued", "Priority"),
        ("PENDING", "Dependency", "queued", "Dependency"),
        ("CONFIGURING", "None", "queued", ""),
        ("REQUEUED", "None", "queued", ""),
        ("REQUEUE_HOLD", "None", "queued", ""),
        ("RUNNING", "None", "queued", "a job that runs will take it"),
        ("COMPLETING", "None", "queued", "a job that runs will take it"),
        ("COMPLETED", "None", "planned", "no job is left"),
        ("CANCELLED", "None", "planned", "its jobs were cancelled"),
        ("FAILED", "NonZeroExitCode", "planned", "FAILED NonZeroExitCode"),
        ("TIMEOUT", "TimeLimit", "planned", "TIMEOUT TimeLimit"),
        ("NODE_FAIL", "None", "planned", "NODE_FAIL"),
        ("OUT_OF_MEMORY", "OutOfMemory", "planned", "OUT_OF_MEMORY"),
    ],
)
def test_the_queue_tells_the_state_of_what_has_not_begun(
    state: str, reason: str, expected: str, note: str, site: Site
) -> None:
    site.finish(site.parent)
    made = site.submit(site.first, site.second)
    site.slurm(site.line(made, 0, state, reason=reason))
    seen = site.look().seen[site.first.key]
    assert seen.state == expected
    assert note in seen.note
    assert site.state(site.third) == "planned"


def test_a_stage_is_queued_while_one_job_of_its_array_lives(site: Site) -> None:
    site.finish(site.parent)
    made = site.submit(site.first)
    site.slurm(site.line(made, 0, "FAILED"), site.line(made, 1, "PENDING", reason="Resources"))
    assert site.state(site.first) == "queued"


def test_jobs_of_an_earlier_generation_do_not_take_it(site: Site) -> None:
    made = site.submit(site.parent, site.first, generation=0)
    site.slurm(site.line(made, 0, "RUNNING"))
    assert (site.state(site.parent), site.state(site.first)) == ("queued", "planned")


def test_jobs_that_wait_for_ever_come_with_the_fix(site: Site) -> None:
    site.finish(site.parent)
    made = site.submit(site.first)
    site.slurm(site.line(made, 0, "PENDING", reason="QOSMaxWallDurationPerJobLimit"))
    assert re.search(r"needs somebody: 1 job: QOSMaxWall\w+: lower slurm.timeout_min", site.text())
    site.slurm(site.line(made, 0, "PENDING", reason="JobHeldUser"))
    assert "scontrol release 7" in site.text()
    site.slurm(site.line(made, 0, "PENDING", reason="Resources"))
    assert "needs somebody" not in site.text()


def test_nodes_that_are_not_used_are_named(site: Site) -> None:
    site.finish(site.parent)
    made = site.submit(site.first)
    site.slurm(site.line(made, 0, "PENDING", reason="Resources"))
    for _ in range(3):
        troubles.note(site.store.root, "7_0", made.worklist, "", "no GPU", "n4")
    assert "jobs keep away from n4: no GPU" in site.text()


def test_the_stages_of_a_stopped_grid_say_why(site: Site) -> None:
    site.finish(site.parent)
    made = site.submit(site.first)
    troubles._stop(site.store.root, made.worklist, "5 stages failed alike")
    site.slurm(site.line(made, 0, "RUNNING"))
    seen = site.look().seen[site.first.key]
    assert (seen.state, "stopped: 5 stages failed alike" in seen.note) == ("planned", True)


@pytest.mark.parametrize("state", ["FAILED", "NODE_FAIL", "OUT_OF_MEMORY"])
def test_an_open_attempt_of_a_job_that_ended_badly_is_left_to_others(state: str, site: Site) -> None:
    """Though its heartbeat is fresh."""
    site.finish(site.parent)
    made = site.submit(site.first)
    site.begin(site.first, job="7_0")
    site.slurm(site.line(made, 0, state))
    seen = site.look().seen[site.first.key]
    assert (seen.state, seen.job, state in seen.note) == ("stale", state, True)
    site.slurm(site.line(made, 0, state), site.line(made, 1, "PENDING", reason="Priority"))
    seen = site.look().seen[site.first.key]
    assert (seen.state, state in seen.note, "Priority" in seen.note) == ("queued", True, True)


def test_an_interrupted_stage_waits_for_any_job(site: Site) -> None:
    """That its own job has gone on to another stage is no matter."""
    site.finish(site.parent)
    made = site.submit(site.first, site.second)
    site.store.finish(site.begin(site.first, job="7_0"), "interrupted", step=6)
    site.slurm(site.line(made, 0, "RUNNING"))
    seen = site.look().seen[site.first.key]
    assert (seen.state, seen.share) == ("queued", 0.6)


def test_a_held_job_says_so(site: Site) -> None:
    site.finish(site.parent)
    made = site.submit(site.first)
    site.begin(site.first, job="7_0")
    site.slurm(site.line(made, 0, "REQUEUE_HOLD", reason="launch failed requeued held"))
    seen = site.look().seen[site.first.key]
    assert (seen.state, seen.note) == ("requeued", "held")


def test_a_refused_stage_is_tried_again_until_it_is_given_up(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.finish(site.parent)
    made = site.submit(site.first)
    site.store.finish(site.begin(site.first, job="7_0"), "refused", "no GPU")
    site.slurm(site.line(made, 0, "COMPLETED"), site.line(made, 1, "PENDING", reason="Priority"))
    assert site.state(site.first) == "queued"
    site.slurm(site.line(made, 0, "COMPLETED"), site.line(made, 1, "COMPLETED"))
    seen = site.look().seen[site.first.key]
    assert seen.state == "stale" and seen.note.startswith("no GPU"), "whoever follows submits it again"
    for node in ("n1", "n2", "n3"):
        monkeypatch.setenv("SLURMD_NODENAME", node)
        troubles.note(site.store.root, "7_0", made.worklist, site.first.folder, "no GPU")
    assert site.state(site.first) == "failed"
    site.slurm(site.line(made, 0, "COMPLETED"))  # and nobody would try it
    assert site.state(site.first) == "failed"


def test_submissions_of_an_earlier_version_are_read(site: Site) -> None:
    site.finish(site.parent)
    made = site.submit(site.first)
    path = ledger.folder(site.store.root) / "submissions" / f"{made.token}.json"
    facts = {name: value for name, value in json.loads(path.read_text()).items() if name in ledger_facts()}
    path.write_text(json.dumps({**facts, "tasks": [[site.first.folder], [site.second.folder]]}))
    site.slurm(site.line(made, 1, "PENDING", reason="Priority"))
    assert (site.state(site.first), site.state(site.third)) == ("queued", "planned")


def ledger_facts() -> set[str]:
    return {"grid", "name", "job_id", "time", "source"}


def test_one_look_asks_the_queue_once(site: Site) -> None:
    for stage in (site.parent, site.first, site.second, site.third):
        site.submit(stage, job=str(stage.seed), generation=0)
    site.slurm()
    site.look()
    assert site.calls() == 1


def test_nobody_asks_the_queue_about_a_grid_that_was_never_submitted(site: Site) -> None:
    site.slurm(status=1)
    assert site.cells() == ["planned"] * SEEDS
    assert site.calls() == 0


def test_a_preempted_stage_is_requeued_and_says_from_when(site: Site) -> None:
    site.finish(site.parent)
    made = site.submit(site.first)
    site.store.finish(site.begin(site.first, job="7_0"), "interrupted", step=6)
    start = int(time.time()) + 90
    site.slurm(site.line(made, 0, "PENDING", str(start), "BeginTime"))
    seen = site.look().seen[site.first.key]
    assert (seen.state, seen.share) == ("requeued", 0.6)
    assert seen.note == f"starts after {time.strftime('%H:%M:%S', time.localtime(start))}"


def test_a_node_that_was_lost_leaves_a_requeued_stage_not_a_running_one(site: Site) -> None:
    site.finish(site.parent)
    made = site.submit(site.first)
    site.begin(site.first, job="7_0")  # its heartbeat is still fresh
    site.slurm(site.line(made, 0, "PENDING", reason="BeginTime"))
    assert site.state(site.first) == "requeued"


def test_a_running_job_needs_no_fresh_heartbeat(site: Site) -> None:
    site.finish(site.parent)
    made = site.submit(site.first)
    site.begin(site.first, job="7_0", dead=True)
    site.slurm(site.line(made, 0, "RUNNING"))
    assert site.state(site.first) == "running"
    site.slurm()
    assert site.state(site.first) == "stale"


def test_a_job_that_slurm_forgot_is_unknown_neither_done_nor_running(site: Site) -> None:
    site.finish(site.parent)
    site.submit(site.first)
    site.slurm()
    assert site.state(site.first) == "unknown"
    assert "? unknown" in site.text()


def test_accounting_tells_what_the_queue_forgot(site: Site) -> None:
    site.finish(site.parent)
    made = site.submit(site.first)
    site.slurm(sacct=f"7_0|{made.name}|CANCELLED by 1000|{int(made.time)}|Unknown")
    assert site.state(site.first) == "planned"
    assert "its jobs were cancelled" in site.text()


@pytest.mark.parametrize("there", [True, False])
def test_where_slurm_cannot_be_asked_files_still_tell(there: bool, site: Site) -> None:
    site.finish(site.parent)
    site.submit(site.first, site.second, site.third)
    if there:
        site.slurm(status=1)
    site.begin(site.first, job="7_0")
    site.store.finish(site.begin(site.second, job="7_1"), "failed", "ValueError: no")
    assert site.cells() == ["running", "failed", "unknown"]
    assert ("Unable to contact" if there else "no program squeue") in site.text()


def test_a_submission_that_slurm_never_got_is_planned(site: Site) -> None:
    site.finish(site.parent)
    site.submit(site.first, job=None)
    site.slurm()
    assert site.state(site.first) == "planned"


def test_a_job_whose_id_was_never_noted_is_found_by_its_name(site: Site) -> None:
    site.finish(site.parent)
    made = site.submit(site.first, job=None)
    site.slurm(site.line(made, 0, "PENDING"))
    assert site.state(site.first) == "queued"


def test_another_job_with_our_id_is_not_taken_for_ours(site: Site) -> None:
    site.finish(site.parent)
    made = site.submit(site.first)
    site.slurm(site.line(made, 0, "RUNNING").replace(made.name, "bench-other-0000"))
    assert site.state(site.first) == "unknown"


def test_a_retried_failure_is_queued_until_it_fails_again(site: Site) -> None:
    site.finish(site.parent)
    site.store.finish(site.begin(site.first), "failed", "ValueError: before")
    made = site.submit(site.first)
    site.slurm(site.line(made, 0, "PENDING", reason="Priority"))
    assert site.state(site.first) == "queued"
    site.store.finish(site.begin(site.first, job="7_0"), "failed", "ValueError: again")
    site.slurm(site.line(made, 0, "RUNNING"))  # other stages of the element go on
    assert site.look().seen[site.first.key].note == "ValueError: again"


def test_of_two_submissions_the_one_that_lives_counts(site: Site) -> None:
    site.finish(site.parent)
    first, second = site.submit(site.first, job="7"), site.submit(site.first, job="8")
    site.slurm(site.line(first, 0, "PENDING", reason="Priority"), site.line(second, 0, "CANCELLED"))
    assert site.state(site.first) == "queued"


def test_a_local_run_after_a_job_ended_counts_more_than_the_job(site: Site) -> None:
    site.finish(site.parent)
    made = site.submit(site.first)
    site.slurm(site.line(made, 0, "TIMEOUT"))
    assert "TIMEOUT" in site.look().seen[site.first.key].note
    attempt = site.begin(site.first)
    assert site.state(site.first) == "running"
    site.store.finish(attempt, "interrupted", step=1)
    assert site.look().seen[site.first.key].note == "interrupted"


def test_children_of_a_failed_stage_are_blocked_also_while_still_queued(site: Site) -> None:
    site.store.finish(site.begin(site.parent), "failed", "ValueError: no")
    made = site.submit(site.first, site.second)
    site.slurm(site.line(made, 0, "PENDING", reason="Priority"))
    assert site.cells() == ["blocked"] * SEEDS


def test_a_failed_job_of_the_tables_is_told_of(site: Site) -> None:
    other = ledger.complete(site.store.root, ledger.note(site.store.root, "site", "--gin another.gin"), "6")
    site.slurm(site.line(other, 0, "FAILED"))
    assert site.look().tables == ""
    made = ledger.complete(site.store.root, ledger.note(site.store.root, "site", site.plan.source), "7")
    site.slurm(site.line(made, 0, "FAILED", reason="NonZeroExitCode"), site.line(other, 0, "FAILED"))
    assert made.token in matrix.describe_states(site.plan, site.look())


def test_a_damaged_submission_hides_nothing_that_files_tell(site: Site) -> None:
    site.finish(site.parent)
    site.finish(site.first)
    made = site.submit(site.second)
    (ledger.folder(site.store.root) / "submissions" / f"{made.token}.json").write_text("{")
    assert site.cells()[0] == "done"
    assert made.token in matrix.describe_states(site.plan, site.look())


# ------------------------------------------------------------------------------------------------------- what is shown


def every_state(site: Site) -> None:
    site.finish(site.parent)
    site.finish(site.first)
    site.begin(site.second)
    site.log(site.second, "step 4/10 loss 1\n")


def test_the_matrix_has_a_glyph_per_seed_and_a_legend_of_those_that_occur(site: Site) -> None:
    every_state(site)
    lines = site.text().splitlines()
    assert tables(site.text()) == ["finetune  ✓▸· 40 %"]
    assert "✓ done  ▸ running  · planned" in lines
    assert "cells: 1 done, 1 running, 1 planned" in lines


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "no such encoding"])
def test_a_terminal_without_the_glyphs_gets_plain_ones(encoding: str, site: Site) -> None:
    every_state(site)
    text = site.text(encoding)
    assert tables(text) == ["finetune  +>. 40 %"]
    assert "+ done  > running  . planned" in text
    assert text.isascii()


def test_every_state_has_glyphs_of_its_own() -> None:
    assert set(matrix.GLYPHS) == set(matrix.PLAIN) == set(STATES)
    assert len(set(matrix.GLYPHS.values())) == len(set(matrix.PLAIN.values())) == len(STATES)


def test_many_seeds_are_counted(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    every_state(site)
    monkeypatch.setattr(matrix, "MANY_SEEDS", 2)
    assert tables(site.text()) == ["finetune  1✓ 1▸ 1· 40 %"]


def test_a_narrow_terminal_gets_the_tasks_in_several_tables(site: Site) -> None:
    cells = [
        PlannedCell(f"finetune/{task}/tiny/0", "finetune", "finetune", task, "accuracy", "tiny", 0, site.first)
        for task in ("birds", "flowers", "pets")
    ]
    plan = Plan(site.plan.grid, "", cells, cells, site.plan.stages, Catalogue(), site.folder, [])
    view = look(plan, site.store, {})
    lines = matrix.describe_states(plan, view, width=30).splitlines()
    assert [line.split() for line in lines if line.startswith("row")] == [["row", "birds", "flowers"], ["row", "pets"]]
    assert max(map(len, lines)) <= 30
    assert matrix.describe_states(plan, view).count("row ") == 1


# --------------------------------------------------------------------------------------------------- failures and logs


@pytest.mark.parametrize(
    ("reason", "log", "kind"),
    [
        ("OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "", "out of memory"),
        ("the worker process died: signal SIGKILL (often the system's out-of-memory killer)", "", "out of memory"),
        ("OUT_OF_MEMORY its job ended: OUT_OF_MEMORY", "", "out of memory"),
        ("no progress in 3 attempts: all began at step 0", "", "time-out"),
        ("its job ended: TIMEOUT TimeLimit", "", "time-out"),
        ("its job ended: NODE_FAIL", "", "node"),
        ("OSError: [Errno 5] Input/output error", "", "node"),
        ("OSError: [Errno 28] No space left on device", "", "data"),
        ("runs/x/record.json: damaged: it does not match its own checksum", "", "data"),
        ("ValueError: bad shape", "", "code"),
        ("TimeoutError: a lock", "", "code"),
        ("the worker process died: exit status 1", "slurmstepd: error: Detected 1 oom_kill event", "out of memory"),
        ("its job ended: FAILED NonZeroExitCode", "CANCELLED AT 12:00 DUE TO TIME LIMIT", "time-out"),
        ("the worker process died: exit status 1", "ModuleNotFoundError: No module named 'x'", "setup"),
    ],
)
def test_failures_are_told_apart(reason: str, log: str, kind: str) -> None:
    assert failures.classify(reason, log) == kind


def test_failures_are_grouped_with_the_end_of_their_logs_and_what_helps(site: Site) -> None:
    site.finish(site.parent)
    for stage, reason in (
        (site.first, "OutOfMemoryError: CUDA out of memory"),
        (site.second, "ValueError: x"),
        (site.third, "OutOfMemoryError: CUDA out of memory"),
    ):
        site.store.finish(site.begin(stage, job="7_3"), "failed", reason)
        site.log(stage, "first line\n" + "line\n" * 5 + f"last of {stage.seed}\n")
    text = failures.describe_failures(site.plan, site.store, site.look())
    assert re.findall(r"^(\S.*): (\d) stages?$", text, re.MULTILINE) == [("out of memory", "2"), ("code", "1")]
    assert text.index("slurm.mem_gb") < text.index(site.plan.cells[0].name) < text.index("code: ")
    assert "| last of 1" in text and "first line" not in text
    assert "attempt 1 on" in text and "job 7_3" in text and "--retry" in text


def test_where_a_stage_never_began_its_jobs_output_is_shown(site: Site) -> None:
    site.finish(site.parent)
    made = site.submit(site.first)
    site.slurm(site.line(made, 0, "FAILED", reason="NonZeroExitCode"))
    printed = ledger.log_folder(site.store.root, made.token) / "7_0_0_log.out"
    printed.parent.mkdir(parents=True)
    printed.write_text("bash: python: command not found\n")
    assert "| bash: python: command not found" in failures.describe_failures(site.plan, site.store, site.look())


def test_a_failure_comes_with_both_logs_and_the_word_on_its_job(site: Site) -> None:
    site.finish(site.parent)
    made = site.submit(site.first)
    site.begin(site.first, job="7_0", dead=True)
    site.log(site.first, "step 3/8\n")
    printed = ledger.log_folder(site.store.root, made.token) / "7_0_0_log.out"
    printed.parent.mkdir(parents=True)
    printed.write_text("slurmstepd: error: Detected 1 oom_kill event in StepId=7.batch\n")
    site.slurm(site.line(made, 0, "FAILED", reason="None"))
    text = failures.describe_failures(site.plan, site.store, site.look())
    assert text.startswith("out of memory: 1 stage")
    assert "| step 3/8" in text and "| slurmstepd: error" in text and "its job: FAILED" in text
    assert "--log 'finetune/digits/tiny/0'" in text


def test_a_job_all_of_whose_processes_were_killed_may_have_been_out_of_memory(site: Site) -> None:
    """Where Slurm only says with which signal it ended; squeue has status and signal in one number."""
    site.finish(site.parent)
    made = site.submit(site.first)
    site.begin(site.first, job="7_0", dead=True)
    site.slurm(f"{site.line(made, 0, 'FAILED').rstrip()}|n1|0:10|9|")
    text = failures.describe_failures(site.plan, site.store, site.look())
    assert text.startswith("out of memory: 1 stage")
    assert "0:9 signal SIGKILL" in text


def test_without_failures_none_are_listed(site: Site) -> None:
    assert failures.describe_failures(site.plan, site.store, site.look()) == "no stage failed"


def test_the_log_of_a_cell_is_that_of_its_last_stage_with_one(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    name = site.plan.cells[0].name
    with pytest.raises(InputError, match="it has not begun"):
        failures.print_log(site.plan, site.store, site.look(), name)
    site.log(site.parent, "of the parent\n")
    failures.print_log(site.plan, site.store, site.look(), name)
    assert capsys.readouterr().out == "of the parent\n"
    site.log(site.first, "of the last stage\n")
    failures.print_log(site.plan, site.store, site.look(), name)
    assert capsys.readouterr() == ("of the last stage\n", f"{site.first.folder}/log.txt:\n")


def test_the_log_of_a_cell_that_failed_is_that_of_the_stage_which_did(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.log(site.first, "of an attempt before\n")
    site.store.finish(site.begin(site.parent), "failed", "RuntimeError: boom")
    site.log(site.parent, "of the parent\n")
    failures.print_log(site.plan, site.store, site.look(), site.plan.cells[0].name)
    assert capsys.readouterr().out == "of the parent\n"
    site.finish(site.parent)
    site.store.finish(site.begin(site.second), "failed", "ValueError: x")
    assert f"failed: {site.plan.cells[1].name}: ValueError: x (1 cell)" in site.text()


def test_a_glob_of_several_cells_lists_them(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.log(site.first, "secret")
    failures.print_log(site.plan, site.store, site.look(), "finetune/*")
    assert capsys.readouterr().out.splitlines() == [f"finetune/digits/tiny/{seed}: planned" for seed in range(SEEDS)]
    with pytest.raises(InputError, match="Did you mean 'finetune/digits/tiny/1'"):
        failures.print_log(site.plan, site.store, site.look(), "finetune/digit/tiny/1")


# ---------------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def command(tmp_path: Path, prepared: Path) -> tuple[list[str], Plan, Store]:
    plan = tiny_grid.plan(tmp_path, prepared, ["finetune"])
    store = tmp_path / "runs"
    return ["--gin", str(tmp_path / "tiny.gin"), "--data", str(prepared), "--store", str(store)], plan, Store(store)


def finish_all(plan: Plan, store: Store, site: Site) -> None:
    site.store = store
    for stage in plan.stages:
        store.add(stage)
        site.finish(stage)


def test_the_exit_status_tells_how_it_stands(
    command: tuple[list[str], Plan, Store], site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, plan, store = command
    assert status.main(arguments) == 3
    assert not store.root.exists()
    stage = plan.cells[0].stage
    store.add(stage)
    attempt = store.claim(stage)
    assert attempt is not None
    store.finish(attempt, "failed", "ValueError: no")
    assert status.main(arguments) == 1
    assert status.main([*arguments, "--failed"]) == 1
    assert status.main([*arguments, "--only", plan.cells[1].name]) == 3
    finish_all(plan, store, site)
    capsys.readouterr()
    assert status.main(arguments) == 0
    assert "cells: 2 done" in capsys.readouterr().out


def test_watching_ends_with_the_last_stage(
    command: tuple[list[str], Plan, Store],
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments, plan, store = command
    naps: list[float] = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 2:
            finish_all(plan, store, site)
        assert len(naps) < 4

    monkeypatch.setattr("bench.status.time.sleep", nap)
    assert status.main([*arguments, "--watch"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("grid tiny") == 2  # only what has changed
    assert shown.splitlines()[-1] == "cells: 2 done"


def test_watching_ends_when_nothing_will_happen(
    command: tuple[list[str], Plan, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("bench.status.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("bench.status.time.sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    assert status.main([*command[0], "--watch"]) == 3
    assert status.QUIET_SECONDS < clock[0] < 2 * status.QUIET_SECONDS


def test_ctrl_c_ends_only_the_watching(command: tuple[list[str], Plan, Store], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bench.status.time.sleep", interrupt)
    assert status.main([*command[0], "--watch"]) == 0


def test_bad_input_is_refused(command: tuple[list[str], Plan, Store]) -> None:
    with pytest.raises(InputError, match="matches no cell"):
        status.main([*command[0], "--only", "tapt/*"])
    with pytest.raises(SystemExit) as refused, contextlib.redirect_stderr(sys.stdout):
        status.main([*command[0], "--watch", "--failed"])
    assert refused.value.code == 2


def test_looking_imports_no_torch_and_no_submitit(command: tuple[list[str], Plan, Store]) -> None:
    code = (
        "import sys; from bench import status; status.main(sys.argv[1:]); import json;"
        "print(json.dumps(sorted({'torch', 'submitit', 'timm', 'transformers'} & set(sys.modules))))"
    )
    run = subprocess.run([sys.executable, "-c", code, *command[0]], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout.splitlines()[-1]) == []
