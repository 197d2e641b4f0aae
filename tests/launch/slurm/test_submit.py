"""What is submitted, to whom stages are left, and what the last job of a grid does: with a stand-in for Slurm."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import re
import shutil
import signal
import stat
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from submitit.core.utils import DelayedSubmission

import baselines
import bench
from bench import grid
from bench.errors import InputError
from bench.launch.slurm import ledger, limits, submit, troubles, worklist
from bench.launch.slurm.cancel import cancel_grid
from bench.launch.slurm.client import JobState, SlurmError
from bench.launch.slurm.submit import CommandLine, Submitted
from bench.monitor.follow import Ended
from bench.planning.plan import Plan, make_plan
from bench.specs import Stage
from bench.store.files import write_json
from bench.store.store import Store
from tests import tiny_grid
from tests.launch.slurm.conftest import Fake


class Site:
    """A store, and a cluster that takes every job and gives each call the next id, from 101 on."""

    def __init__(self, folder: Path, data: Path, cluster: Fake) -> None:
        self.folder, self.data, self.cluster = folder, data, cluster
        self.store = Store(folder / "runs")
        self.store.root.mkdir()
        program = cluster("sbatch").with_name("sbatch")
        count = folder / "count"
        program.write_text(f'#!/bin/sh\necho x >> {count}\necho "Submitted batch job $((100 + $(wc -l < {count})))"\n')
        program.chmod(stat.S_IRWXU)

    def command_line(self, rows: Sequence[str], again: int = 0) -> CommandLine:
        folder = self.folder / "-".join(rows)
        folder.mkdir(exist_ok=True)
        gin = tiny_grid.write(folder, list(rows), f"grid.name = '{folder.name}'")
        gin.write_text(gin.read_text().replace("'digits', 'pydocs'", "'digits'"))
        return CommandLine([str(gin)], [], self.folder / "results", self.data, again)

    def plan(self, rows: Sequence[str]) -> Plan:
        return make_plan(self.command_line(rows).gin, [], [], self.data, self.store)

    def submit(self, rows: Sequence[str], retry: bool = False, again: int = 0) -> Submitted:
        return submit.submit(self.plan(rows), self.store, self.command_line(rows, again), retry)

    def draft(self, rows: Sequence[str], retry: bool = False) -> Submitted:
        return submit.draft(self.plan(rows), self.store, retry)

    def finish(self, rows: Sequence[str], before: int = -1, again: int = 0, source: str | None = None) -> None:
        source = self.plan(rows).source if source is None else source
        submit.finish(self.command_line(rows, again), self.store.root, source, before)

    def run_tables_job(self, job_id: str | None) -> None:
        """Run a tables' job as it was submitted."""
        (token,) = [each.token for each in self.tables_jobs() if each.job_id == job_id]
        DelayedSubmission.load(ledger.log_folder(self.store.root, token) / "0.pkl").function()

    def slurm_says(self, words: dict[str, str]) -> None:
        """Have squeue tell the states of jobs by id; it does not know any others."""
        now = int(time.time())
        lines = [
            f"{each.element(index)}|{each.name}|{words[str(each.job_id)]}|{now}|N/A|None\n"
            for each in ledger.submissions(self.store.root)
            for index in range(each.elements)
            if each.job_id in words
        ]
        self.cluster("squeue", "".join(lines))

    def fail(self, stage: Stage, reason: str = "ValueError: no") -> None:
        self.store.add(stage)
        attempt = self.store.claim(stage)
        assert attempt is not None
        self.store.finish(attempt, "failed", reason)

    def complete(self, stage: Stage) -> None:
        for parent in stage.parents:
            self.store.add(parent)
        self.store.add(stage)
        attempt = self.store.claim(stage)
        assert attempt is not None
        weights = self.store.folder(stage) / "weights.safetensors"
        weights.write_bytes(b"weights")
        facts = {"file": weights.name, "sha256": "0" * 64, "bytes": 7}
        metrics = {"accuracy": 0.5} if stage.evaluation else {}
        self.store.publish(attempt, stage, {"key": stage.key, "metrics": metrics, "seconds": 1.0, "weights": facts})
        self.store.finish(attempt, "done")

    def checkpoint(self, stage: Stage, step: int) -> None:
        write_json(self.store.folder(stage) / "checkpoints" / f"step-{step:08}.json", {})

    def tables_jobs(self) -> list[ledger.Submission]:
        return [each for each in ledger.submissions(self.store.root) if not each.runs_stages]

    def again(self, tables: ledger.Submission) -> int:
        """How often the grid had been submitted again, as its last job is told."""
        task = DelayedSubmission.load(ledger.log_folder(self.store.root, tables.token) / "0.pkl").function
        return int(task.args[0].again)

    def script(self, job: str) -> str:
        """What sbatch was given for a job."""
        (token,) = [each.token for each in ledger.submissions(self.store.root) if each.job_id == job]
        return next(ledger.log_folder(self.store.root, token).glob("*.sh")).read_text()


@pytest.fixture
def site(tmp_path: Path, prepared: Path, cluster: Fake, monkeypatch: pytest.MonkeyPatch) -> Site:
    (tmp_path / "code").mkdir()
    monkeypatch.setattr(submit, "snapshot", lambda root: tmp_path / "code")
    # Writing tables is tested elsewhere; here, whether it is asked for.
    monkeypatch.setattr(submit, "run_as_job", lambda *arguments: print("tables:", *arguments))
    return Site(tmp_path, prepared, cluster)


TAPT = ("tapt",)
BOTH = ("finetune", "tapt")


def names(stages: Sequence[Stage]) -> list[str]:
    return [stage.name for stage in stages]


# ---------------------------------------------------------------------------------------------------- what is missing


def test_a_grid_is_one_worklist_an_array_a_generation_and_a_job_for_the_tables(site: Site) -> None:
    submitted = site.submit(TAPT)
    assert names(submitted.stages) == ["source_pretrain", "further_pretrain", "finetune"]
    assert (submitted.job_ids, submitted.tables_job) == (["101", "102", "103"], "104")
    arrays = [each for each in ledger.submissions(site.store.root) if each.runs_stages]
    assert [each.generation for each in arrays] == [0, 1, 2]
    (token,) = {each.worklist for each in arrays}
    assert [entry.folder for entry in worklist.read(site.store.root, token).entries] == [
        stage.folder for stage in submitted.stages
    ]
    assert "dependency" not in site.script("101")
    assert "--dependency=afterany:101\n" in site.script("102")
    assert "--dependency=afterany:101:102:103\n" in site.script("104")


def test_what_live_jobs_will_pull_is_left_to_them(site: Site) -> None:
    site.submit(TAPT)
    site.slurm_says({"101": "RUNNING", "102": "PENDING", "103": "PENDING", "104": "PENDING"})
    again = site.submit(TAPT)
    assert (again.stages, again.arrays, again.tables_job) == ([], [], "104")
    assert len(again.in_flight) == 3


def test_when_no_job_is_left_all_is_missing(site: Site) -> None:
    site.submit(TAPT)
    site.slurm_says({"101": "CANCELLED", "102": "COMPLETED"})
    assert len(site.draft(TAPT).stages) == 3


def test_only_generations_without_live_jobs_are_missing_and_wait_in_the_new_worklist(site: Site) -> None:
    site.submit(TAPT)
    site.slurm_says({"101": "RUNNING", "102": "PENDING", "103": "CANCELLED", "104": "PENDING"})
    again = site.submit(TAPT)
    assert names(again.stages) == ["finetune"]
    assert len(again.in_flight) == 2
    last = [each for each in ledger.submissions(site.store.root) if each.runs_stages][-1]
    entries = worklist.read(site.store.root, last.worklist).entries
    assert [entry.kind for entry in entries] == ["source_pretrain", "further_pretrain", "finetune"]
    assert again.tables_job not in (None, "104")  # a new one, which waits for the new jobs, too


def test_what_needs_resources_that_no_live_job_has_is_missing(site: Site) -> None:
    """The jobs with more memory were cancelled; those that go on, for the same generation, have too little."""
    more = ("grid.rows = ['tapt', 'supcon']", "tapt/finetune.steps = 5", "supcon_pretrain/slurm.mem_gb = 9.0")
    more += ("slurm.mem_gb = 1.0",)
    line = dataclasses.replace(site.command_line(("tapt", "supcon")), set=more)
    plan = make_plan(line.gin, more, [], site.data, site.store)
    submit.submit(plan, site.store, line)
    arrays = [each for each in ledger.submissions(site.store.root) if each.runs_stages]
    assert [each.kinds for each in arrays] == [
        ("source_pretrain",),
        ("further_pretrain",),
        ("supcon_pretrain",),
        ("finetune",),
    ]
    site.slurm_says({"101": "RUNNING", "102": "PENDING", "103": "CANCELLED", "104": "PENDING", "105": "PENDING"})
    again = submit.submit(make_plan(line.gin, more, [], site.data, site.store), site.store, line)
    # With it what is behind it, whose jobs could find it not done and end. Jobs that are live have theirs to run.
    assert names(again.stages) == ["supcon_pretrain", "finetune"]
    assert len(again.in_flight) == 3 and len(again.wanted) == 5
    assert [(array.kinds, array.stages) for array in again.arrays] == [(("supcon_pretrain",), 1), (("finetune",), 1)]
    # They wait for the pre-training that is in flight, and for nothing else.
    first, second = again.job_ids
    assert "--dependency=afterany:101\n" in site.script(first)
    assert f"--dependency=afterany:101:{first}\n" in site.script(second)


@pytest.mark.parametrize("retry", [False, True])
def test_a_failure_blocks_what_is_behind_it_unless_it_is_tried_again(retry: bool, site: Site) -> None:
    first, *behind = site.plan(TAPT).stages
    site.fail(first)
    drafted = site.draft(TAPT, retry)
    if retry:
        assert drafted.stages == [first, *behind]
        assert not drafted.blocked
    else:
        assert not drafted.stages
        assert drafted.blocked.keys() == {stage.key for stage in behind}


def test_a_job_that_takes_a_stage_for_failed_will_not_try_it_again(site: Site) -> None:
    """With --retry it and all behind it are listed anew, though that job is live."""
    site.submit(TAPT)
    live = {"101": "RUNNING", "102": "PENDING", "103": "PENDING"}
    site.slurm_says(live)
    stages = site.plan(TAPT).stages
    site.fail(stages[0])
    assert site.draft(TAPT).blocked.keys() == {stage.key for stage in stages[1:]}
    retried = site.submit(TAPT, retry=True)
    assert (retried.stages, retried.in_flight) == (stages, {})
    # The new jobs will try it: their worklist knows of the failure.
    site.slurm_says(dict.fromkeys(retried.job_ids, "PENDING") | live)
    assert len(site.draft(TAPT, retry=True).in_flight) == 3


def test_two_grids_share_the_jobs_of_a_stage(site: Site) -> None:
    first = site.submit(("finetune",))
    live = dict.fromkeys([*first.job_ids, str(first.tables_job)], "PENDING")
    site.slurm_says(live)
    second = site.submit(BOTH)
    assert names(second.stages) == ["further_pretrain", "finetune"]
    assert len(second.in_flight) == 2  # source_pretrain, and the fine-tuning from it
    # Its tables wait for both grids' jobs, and the other grid's job for tables stays.
    needed = ":".join([*first.job_ids, *second.job_ids])
    assert f"--dependency=afterany:{needed}\n" in site.script(str(second.tables_job))
    assert len(site.tables_jobs()) == 2


def test_few_jobs_are_allowed_and_it_is_said(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "room", lambda cluster: (2, "you may queue 2 more jobs here"))
    drafted = site.draft(TAPT)
    assert [(array.jobs, array.generation) for array in drafted.arrays] == [(1, 2)]
    assert "2 more" in drafted.fewer
    monkeypatch.setattr(limits, "room", lambda cluster: (4, "you may queue 4 more jobs here"))
    assert (len(site.draft(TAPT).arrays), site.draft(TAPT).fewer) == (3, "")


def test_a_grid_that_stopped_itself_is_submitted_only_to_be_tried_again(site: Site) -> None:
    submitted = site.submit(TAPT)
    (token,) = {each.worklist for each in ledger.submissions(site.store.root) if each.runs_stages}
    troubles._stop(site.store.root, token, "5 stages failed alike")
    site.slurm_says(dict.fromkeys(submitted.job_ids, "RUNNING"))
    with pytest.raises(InputError, match=r"5 stages failed alike.*--retry"):
        site.submit(TAPT)
    assert len(site.submit(TAPT, retry=True).stages) == 3  # those jobs take nothing more
    assert len(site.submit(("finetune",)).stages) == 2, "another grid of this store was not stopped"
    site.submit(TAPT)  # nor is what was tried again


def test_a_grid_whose_jobs_never_come_to_python_is_stopped_by_the_next_submission(site: Site) -> None:
    """Where the setup fails everywhere, jobs cannot stop it if Python does not start either."""
    site.submit(TAPT)
    site.slurm_says({})
    token = ledger.submissions(site.store.root)[0].worklist
    folder = ledger.folder(site.store.root) / "troubles"
    for number, node in enumerate(["n1", "n2"] * 3):
        text = f"{int(time.time())}\n{node}\n127\nmodule load cuda\n{token}\n"
        (folder / f"setup-101_{number}-0.txt").write_text(text)
    with pytest.raises(InputError, match=r"stopped: no stage could be begun.*module load cuda.*--retry"):
        site.submit(TAPT)
    assert len(site.submit(TAPT, retry=True).stages) == 3


def test_progress_grows_with_checkpoints_and_finished_stages(site: Site) -> None:
    def progress() -> int:
        return submit.progress(site.plan(TAPT), site.store)

    stages = site.plan(TAPT).stages
    seen = [progress()]
    site.store.add(stages[0])
    seen.append(progress())
    assert seen == [0, 0], "nothing was computed"
    for step in (1, 3):
        site.checkpoint(stages[0], step)
        seen.append(progress())
    site.complete(stages[0])
    seen.append(progress())
    site.store.add(stages[1])
    site.checkpoint(stages[1], 1)
    seen.append(progress())
    assert sorted({*seen}) == seen[1:]
    site.fail(stages[1])
    assert progress() == seen[-1]


# ------------------------------------------------------------------------------------------------------- the last job


def test_the_last_job_writes_tables_and_submits_what_is_left(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    submitted = site.submit(TAPT)
    site.complete(submitted.stages[0])
    site.slurm_says({"104": "RUNNING"})  # this very job
    site.finish(TAPT, before=0)
    assert f"tables: --gin {site.command_line(TAPT).gin[0]} --store {site.store.root}" in capsys.readouterr().out
    made = [each for each in ledger.submissions(site.store.root) if each.job_id not in ("101", "102", "103", "104")]
    assert len(made) == 3
    assert [site.again(each) for each in site.tables_jobs()] == [0, 1]
    assert site.tables_jobs()[-1].job_id == "107"
    assert not (site.folder / "programs" / "scancel.calls").exists(), "it would cancel itself"


@pytest.mark.parametrize(
    "refusal",
    [
        "AssocMaxSubmitJobLimit",
        "Batch job submission failed: Required partition not available (inactive or drain)",
        "Batch job submission failed: Unable to contact slurm controller (connect failure)",
    ],
)
def test_where_slurm_takes_no_jobs_now_the_last_job_comes_again_later(
    refusal: str, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its own place there, since nobody else would go on; not for ever."""
    site.cluster("sbatch", status=1, error=f"sbatch: error: {refusal}\n")
    asked = site.cluster("scontrol")
    for name, value in {"ARRAY_JOB_ID": "104", "ARRAY_TASK_ID": "0", "RESTART_COUNT": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit):
            site.finish(TAPT)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert asked.read_text().splitlines()[-2:] == ["requeue 104_0", "update JobId=104_0 StartTime=now+10minutes"]
    asked.unlink()
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(submit.MOST_WAITS))
    site.finish(TAPT)
    assert "requeue" not in asked.read_text()


FULL = InputError("sbatch: error: QOSMaxSubmitJobPerUserLimit")
CLOSED = InputError("sbatch: error: Batch job submission failed: Required partition not available (inactive or drain)")


def refusing(monkeypatch: pytest.MonkeyPatch, *errors: InputError) -> list[InputError]:
    """Have submissions fail with these errors in turn, without a pause between; returns those that are left."""
    left = list(errors)

    def fail(*_: object) -> Submitted:
        raise left.pop(0)

    monkeypatch.setattr(submit, "submit", fail)
    monkeypatch.setattr(grid, "FULL_SECONDS", 0.0)
    return left


def options_of(site: Site, wait: bool) -> argparse.Namespace:
    line = site.command_line(TAPT)
    return argparse.Namespace(
        gin=line.gin,
        set=[],
        results=line.results,
        data=site.data,
        only=[],
        retry=False,
        wait=wait,
        store=site.store.root,
    )


@pytest.mark.parametrize(("wait", "left"), [(True, 0), (False, 2)])
def test_a_command_that_waits_waits_for_room_in_the_queue(
    wait: bool, left: int, site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    errors = refusing(monkeypatch, FULL, CLOSED, InputError("another reason"))
    with pytest.raises(InputError, match="another reason" if wait else "MaxSubmitJob"):
        grid._submit(site.plan(TAPT), options_of(site, wait), site.store, site.data)
    assert len(errors) == left
    assert capsys.readouterr().out.count("waiting until") == wait


def test_a_follower_waits_for_room_in_the_queue(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted, steps = site.submit(TAPT), itertools.count(1)
    errors = refusing(monkeypatch, FULL, CLOSED, InputError("another reason"))
    monkeypatch.setattr("bench.monitor.follow.follow", lambda *_: Ended(left={"a key": "no job is left"}))
    monkeypatch.setattr(submit, "progress", lambda *_: next(steps))
    monkeypatch.setattr(grid, "write_tables", lambda *_: 1)
    assert grid._follow(site.plan(TAPT), options_of(site, True), site.store, submitted) == 1
    assert errors == []
    told = capsys.readouterr()
    assert (told.out + told.err).count("waiting until") == 1
    assert "another reason" in told.err and "MaxSubmitJob" not in told.err


def test_what_the_last_job_submits_belongs_to_the_grid_and_not_to_copies_of_its_files(site: Site) -> None:
    site.finish(TAPT, source="the grid's own")
    made = ledger.submissions(site.store.root)
    assert [each.source for each in made] == ["the grid's own"] * 4


def test_the_last_job_has_another_write_the_tables_after_other_grids_jobs(site: Site) -> None:
    """Even while Slurm lists it as running, and though it submits no stage itself."""
    mine = site.submit(("finetune",))
    theirs = site.submit(BOTH)  # all is missing: Slurm knows no job
    site.slurm_says(dict.fromkeys(theirs.job_ids, "PENDING") | {str(mine.tables_job): "RUNNING"})
    before = len(site.tables_jobs())
    site.finish(("finetune",), before=-1)
    assert len(site.tables_jobs()) == before + 1
    assert "afterany:" + ":".join(theirs.job_ids) in site.script(str(site.tables_jobs()[-1].job_id))


@pytest.mark.parametrize(
    ("before", "again", "submits"),
    [(0, 0, True), (0, submit.MOST_AGAIN - 1, True), (0, submit.MOST_AGAIN, False), (10**6, 0, False)],
)
def test_it_submits_after_progress_and_not_for_ever(before: int, again: int, submits: bool, site: Site) -> None:
    site.complete(site.plan(TAPT).stages[0])
    site.finish(TAPT, before, again)
    assert bool(ledger.submissions(site.store.root)) == submits
    if submits:
        assert site.again(site.tables_jobs()[-1]) == again + 1


def test_cells_left_out_by_a_person_are_not_submitted_by_the_last_job(site: Site) -> None:
    command_line = dataclasses.replace(site.command_line(BOTH), only=["finetune/*"])
    plan = make_plan(command_line.gin, [], command_line.only, site.data, site.store)
    submitted = submit.submit(plan, site.store, command_line)
    assert {stage.key for stage in submitted.stages} == {stage.key for stage in plan.stages}
    (cell,) = plan.selected
    site.complete(cell.stage)
    before = len(ledger.submissions(site.store.root))
    site.slurm_says({str(submitted.tables_job): "RUNNING"})
    site.run_tables_job(submitted.tables_job)
    assert len(ledger.submissions(site.store.root)) == before


def test_a_last_job_with_a_successor_does_not_come_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = "sbatch: error: AssocGrpSubmitJobsLimit"
    came: list[bool] = []
    monkeypatch.setattr(submit, "_come_again", lambda: came.append(True))
    for tables_job, again in (("21", 0), (None, 1)):
        outcome = Submitted(refused=refused, tables_job=tables_job)
        monkeypatch.setattr(submit, "submit", lambda *_, outcome=outcome: outcome)
        site.finish(TAPT)
        assert len(came) == again


def test_a_grid_whose_stages_were_in_other_grids_jobs_is_submitted_once_those_are_cancelled(site: Site) -> None:
    """Though no stage of it got further: it had no jobs of its own."""
    theirs = site.submit(BOTH)
    site.slurm_says(dict.fromkeys(theirs.job_ids, "PENDING"))
    mine = site.submit(("finetune",))
    assert not mine.stages and len(mine.in_flight) == 2
    site.slurm_says({str(mine.tables_job): "RUNNING"})
    before = len(ledger.submissions(site.store.root))
    site.run_tables_job(mine.tables_job)
    made = ledger.submissions(site.store.root)[before:]
    assert [each.runs_stages for each in made] == [True, True, False]
    # Now it has jobs of its own, and what none of them gets further is not submitted for ever.
    site.slurm_says({})
    site.run_tables_job(site.tables_jobs()[-1].job_id)
    assert len(ledger.submissions(site.store.root)) == before + 3


def test_progress_is_what_happened_since_the_job_was_submitted(site: Site) -> None:
    plan = site.plan(TAPT)
    site.complete(plan.stages[0])
    before = submit.progress(site.plan(TAPT), site.store)
    site.finish(TAPT, before)
    assert not ledger.submissions(site.store.root)
    site.store.add(plan.stages[1])
    site.checkpoint(plan.stages[1], 1)
    site.finish(TAPT, before)
    assert ledger.submissions(site.store.root)


def test_what_a_failure_blocks_is_not_left(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    """Also two generations behind it."""
    site.fail(site.plan(TAPT).stages[0])
    site.finish(TAPT)
    assert "nothing is left" in capsys.readouterr().out
    assert not ledger.submissions(site.store.root)


def test_a_stopped_grid_has_its_tables_and_is_not_submitted_again(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted = site.submit(TAPT)
    troubles._stop(site.store.root, ledger.submissions(site.store.root)[0].worklist, "they fail alike")
    site.slurm_says({})
    site.finish(TAPT)
    printed = capsys.readouterr().out
    assert "tables:" in printed and "they fail alike" in printed
    assert len(ledger.submissions(site.store.root)) == len(submitted.job_ids) + 1


def test_a_cancelled_grid_is_not_submitted_again(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    submitted = site.submit(TAPT)
    site.complete(site.plan(TAPT).stages[0])
    site.slurm_says(dict.fromkeys(submitted.job_ids, "PENDING"))
    source = site.plan(TAPT).source
    ids, _ = cancel_grid(site.store.root, "tapt", source)
    assert {*ids} >= {*submitted.job_ids} and ledger.was_cancelled(site.store.root, source)
    site.slurm_says({})
    before = len(ledger.submissions(site.store.root))
    site.finish(TAPT)
    assert len(ledger.submissions(site.store.root)) == before
    site.submit(TAPT)
    assert not ledger.was_cancelled(site.store.root, source), "a person goes on"


@pytest.mark.parametrize("live", [["101"], []])
def test_a_grid_is_cancelled_whichever_of_its_jobs_are_left(live: list[str], site: Site) -> None:
    """Of several arrays the last one may have ended, and all may have when who follows is about to submit again."""
    site.submit(TAPT)
    site.slurm_says(dict.fromkeys(live, "RUNNING"))
    source = site.plan(TAPT).source
    assert cancel_grid(site.store.root, "tapt", source) == (live, {})
    assert ledger.was_cancelled(site.store.root, source)
    before = len(ledger.submissions(site.store.root))
    site.finish(TAPT)
    assert len(ledger.submissions(site.store.root)) == before


def test_a_cancel_that_slurm_refuses_is_not_noted(site: Site) -> None:
    """Else its jobs, which go on, would take the next requeue for the end of the grid."""
    submitted = site.submit(TAPT)
    site.slurm_says({str(job): "RUNNING" for job in submitted.job_ids})
    site.cluster("scancel", status=1, error="scancel: error: Kill job error: Access/permission denied\n")
    source = site.plan(TAPT).source
    with pytest.raises(SlurmError, match="denied"):
        cancel_grid(site.store.root, "tapt", source)
    assert not any(each.cancelled for each in ledger.submissions(site.store.root))


def test_a_last_job_that_runs_while_its_grid_is_cancelled_submits_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ignores SIGTERM, as every job of submitit, and may wait for its turn while --cancel has it."""
    submitted = site.submit(TAPT)
    site.slurm_says({str(submitted.tables_job): "RUNNING"})
    source, real = site.plan(TAPT).source, submit.progress

    def progress(plan: Plan, store: Store) -> int:
        monkeypatch.setattr(submit, "progress", real)
        cancel_grid(store.root, "tapt", source)
        return real(plan, store)

    monkeypatch.setattr(submit, "progress", progress)
    before = len(ledger.submissions(site.store.root))
    site.finish(TAPT)
    assert len(ledger.submissions(site.store.root)) == before


def test_a_job_that_never_came_to_our_code_counts_against_its_node(site: Site) -> None:
    site.submit(TAPT)
    site.slurm_says({})
    first, second = [each for each in ledger.submissions(site.store.root) if each.runs_stages][:2]
    log = ledger.log_folder(site.store.root, second.token) / f"{second.job_id}_0_0_log.out"
    log.write_text(f"2026-01-01 00:00:00 job {second.job_id}_0 on n2: 1 stage(s) at a time")
    pairs = ((first, "n1"), (second, "n2"))
    states = {f"{each.job_id}_0": JobState("FAILED", name=each.name, node=node) for each, node in pairs}
    submit._note_launch_failures(site.store, [first, second], states)
    assert [(each.node, each.job) for each in troubles.read(site.store.root)] == [("n1", f"{first.job_id}_0")]


def test_jobs_that_run_older_code_are_told(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted = site.submit(TAPT)
    site.slurm_says(dict.fromkeys(submitted.job_ids, "PENDING"))
    code = site.folder / "code"
    assert site.draft(TAPT).in_flight
    copy = site.store.root / ".code" / code.name
    for package in (bench, baselines):
        shutil.copytree(
            Path(package.__path__[0]), copy / package.__name__, ignore=shutil.ignore_patterns("__pycache__")
        )
    assert site.draft(TAPT).other_code == ""
    with (copy / "bench" / "training" / "worker.py").open("a") as file:
        file.write("# other\n")
    assert re.search(
        r"queued with the code of .*; yours differs in bench/training/worker.py$", site.draft(TAPT).other_code
    )


@pytest.mark.parametrize(("nodes", "excludes"), [("n1", "n1"), ("n1 n2", "")])
def test_a_node_in_trouble_is_excluded_unless_the_partition_has_no_other(nodes: str, excludes: str, site: Site) -> None:
    """The nodes n1 and n2 are those of the default partition; n3 is of another one."""
    site.submit(TAPT)
    (first, *_) = ledger.submissions(site.store.root)
    site.slurm_says({})
    for node in nodes.split() * troubles.OF_NODE:
        troubles.note(site.store.root, "1_0", first.worklist, "", f"no GPU on {node}", node)
    site.complete(site.plan(TAPT).stages[0])
    submitted = site.submit(TAPT, again=1)
    script = site.script(submitted.job_ids[0])
    assert (f"#SBATCH --exclude={excludes}\n" in script) if excludes else ("--exclude" not in script)
