"""The list of a grid's live jobs."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import status
from bench.launch.slurm import client, ledger, worklist
from bench.launch.slurm.client import JobState, SlurmError
from bench.launch.slurm.ledger import Submission
from bench.monitor.jobs import describe_jobs
from bench.monitor.matrix import describe_states
from bench.monitor.states import look
from bench.planning.plan import Plan
from bench.specs.cluster import Cluster
from bench.store.ownership import JOB_VARIABLE
from bench.store.store import Store
from tests import tiny_grid


class Site:
    """A submitted grid of two fine-tunings."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.plan: Plan = tiny_grid.plan(folder, data, ["finetune"])
        self.store = Store(folder / "runs")
        for stage in self.plan.stages:
            self.store.add(stage)
        clusters = dict.fromkeys(("source_pretrain", "finetune"), Cluster())
        worklist.write(self.store.root, worklist.worklist("a", self.plan.stages, {}, clusters))
        facts = {"worklist": "a", "generation": 1, "jobs": 4}
        noted = ledger.note(self.store.root, "tiny", self.plan.source, "source_pretrain", **facts)
        self.array = ledger.complete(self.store.root, noted, "7")
        self.tables = ledger.complete(self.store.root, ledger.note(self.store.root, "tiny", self.plan.source), "8")

    def says(self, *words: str, of: Submission | None = None, **facts: object) -> dict[str, JobState]:
        made = of or self.array
        states = (JobState(word, name=made.name, **facts) for word in words)  # type: ignore[arg-type]
        return {f"{made.job_id}_{index}": state for index, state in enumerate(states)}

    def begin(self, number: int, job: str, patch: pytest.MonkeyPatch) -> None:
        patch.setenv(JOB_VARIABLE, job)
        attempt = self.store.claim(self.plan.stages[number])
        assert attempt is not None
        self.store.started(attempt, 0, [])

    def text(self, queued: dict[str, JobState]) -> str:
        return describe_jobs(self.plan, self.store, look(self.plan, self.store, {}, lambda submissions: queued))


@pytest.fixture
def site(tmp_path: Path, prepared: Path) -> Site:
    return Site(tmp_path, prepared)


def test_each_job_comes_with_its_stages_their_cells_its_node_and_its_log(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, job in ((0, "7_0"), (1, "7_0"), (2, "7_1")):
        site.begin(number, job, monkeypatch)
    log = ledger.log_folder(site.store.root, site.array.token) / "7_0_0_log.out"
    log.parent.mkdir(parents=True)
    log.touch()
    queued = site.says("RUNNING", "RUNNING", "PENDING", "PENDING", node="n4", elapsed_s=3723.0, reason="Priority")
    lines = site.text({**queued, **site.says("PENDING", of=site.tables, reason="Dependency")}).splitlines()
    assert lines[0].startswith("2 running, 3 waiting")
    (first,), (second,) = ([line for line in lines if line.startswith(job)] for job in ("7_0 ", "7_1 "))
    for part in ("source_pretrain", "RUNNING", "n4", "1:02:03"):
        assert part in first
    block = lines[lines.index(first) : lines.index(second)]
    assert [line.strip() for line in block if line.startswith("  ") and line[2] != " "] == [
        *(stage.folder for stage in site.plan.stages[:2]),
        f"log: {site.array.token}/7_0_0_log.out",
    ]
    assert {cell.name for cell in site.plan.cells} & {line.strip() for line in lines}
    assert lines[-2] == "7: 2 jobs  source_pretrain  PENDING: Priority"
    assert lines[-1] == "8: 1 job  tables  PENDING: Dependency"
    assert all(len(line) <= 80 for line in lines if str(site.store.root) not in line)


def test_a_job_without_a_stage_is_listed_and_what_ended_is_not(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.begin(0, "7_1", monkeypatch)  # its job ended
    lines = site.text(site.says("RUNNING", "FAILED")).splitlines()
    assert lines[0].startswith("1 running, 0 waiting")
    assert [line.split()[0] for line in lines if not line.startswith(" ")][1:] == ["7_0"]


def test_an_array_without_a_stage_left_is_listed_while_others_wait_for_it(site: Site) -> None:
    facts = {"worklist": "a", "generation": 0, "jobs": 2}
    noted = ledger.note(site.store.root, "tiny", site.plan.source, "source_pretrain", **facts)
    first = ledger.complete(site.store.root, noted, "6")
    queued = site.says("PENDING", of=first, reason="JobHeldAdmin") | site.says("PENDING", reason="Dependency")
    done = {stage.key: {} for stage in site.plan.stages if stage.name == "source_pretrain"}
    view = look(site.plan, site.store, done, lambda submissions: queued)
    shown = describe_jobs(site.plan, site.store, view).splitlines()[-2:]
    assert {line.partition(":")[0] for line in shown} == {"6", "7"}
    assert "scontrol release 6" in describe_states(site.plan, view)


def test_without_jobs_that_is_said(site: Site) -> None:
    assert site.text({}) == "0 running, 0 waiting"


def test_where_slurm_tells_no_node_the_attempt_does(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.begin(0, "7_0", monkeypatch)
    machine = str(site.store.attempts(site.plan.stages[0])[0].facts["owner"]["machine"]).partition(" ")[0]
    (line,) = [line for line in site.text(site.says("RUNNING")).splitlines() if line.startswith("7_0")]
    assert machine in line and " for 0:0" in line


def test_where_slurm_cannot_be_asked_the_store_tells_and_that_is_said(
    site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_: object) -> dict[str, JobState]:
        raise SlurmError("squeue failed: Unable to contact slurm controller")

    site.begin(0, "7_0", monkeypatch)
    monkeypatch.setattr(client, "queue", refuse)
    monkeypatch.setattr(look, "__defaults__", (refuse,))
    folders = ["--store", str(site.store.root), "--data", str(prepared), "--results", str(tmp_path)]
    assert status.main(["--gin", str(tmp_path / "tiny.gin"), *folders, "--jobs"]) == 3
    printed = capsys.readouterr().out
    assert "Slurm could not be asked" in printed and "Unable to contact" in printed
    assert "7_0  source_pretrain  UNKNOWN" in printed and site.plan.stages[0].folder in printed
