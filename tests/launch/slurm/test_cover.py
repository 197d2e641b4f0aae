"""Which stages live jobs will take."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from bench.launch.slurm import ledger, troubles, worklist
from bench.launch.slurm.client import JobState
from bench.launch.slurm.cover import Cover, covered
from bench.launch.slurm.ledger import Submission
from bench.specs import walk
from bench.specs.cluster import Cluster
from tests.examples import finetuning

STAGES = list(walk(finetuning()))
PARENT, CHILD = (stage.folder for stage in STAGES)


def submitted(
    root: Path,
    token: str,
    job: str,
    generation: int = 1,
    kinds: tuple[str, ...] = ("source_pretrain", "finetune"),
    finetune: Cluster = Cluster(),  # noqa: B008 - it is never changed
) -> Submission:
    """An array of two jobs, which offer what these kinds of stages ask for."""
    clusters = {"source_pretrain": Cluster(), "finetune": finetune}
    worklist.write(root, worklist.worklist(token, STAGES, {STAGES[1].key: 3}, clusters))
    noted = ledger.note(root, "g", "", "x", worklist=token, generation=generation, kinds=kinds, jobs=2)
    return ledger.complete(root, noted, job)


def says(submission: Submission, *words: str) -> dict[str, JobState]:
    """What Slurm says of the elements of an array."""
    return {f"{submission.job_id}_{i}": JobState(word, name=submission.name) for i, word in enumerate(words)}


def test_one_live_job_covers_all_that_it_serves(tmp_path: Path) -> None:
    made = submitted(tmp_path, "a", "7")
    expected = {PARENT: Cover("a", 0), CHILD: Cover("a", 3)}
    for words in (("RUNNING", "COMPLETED"), ("FAILED", "PENDING"), ("REQUEUED", "CANCELLED"), ("COMPLETING", "FAILED")):
        assert covered(tmp_path, [made], says(made, *words)) == expected


def test_jobs_that_ended_or_are_gone_cover_nothing(tmp_path: Path) -> None:
    made = submitted(tmp_path, "a", "7")
    assert covered(tmp_path, [made], says(made, "COMPLETED", "CANCELLED")) == {}
    assert covered(tmp_path, [made], {}) == {}
    pending = {"7_0": JobState("PENDING", "DependencyNeverSatisfied", name=made.name)}
    assert covered(tmp_path, [made], pending) == {}


def test_the_generations_of_live_arrays_are_covered_and_no_later_ones(tmp_path: Path) -> None:
    first, second = submitted(tmp_path, "a", "7", generation=0), submitted(tmp_path, "a", "8", generation=1)
    both = says(first, "RUNNING", "RUNNING") | says(second, "PENDING", "PENDING")
    assert {*covered(tmp_path, [first, second], both)} == {PARENT, CHILD}
    cancelled = says(first, "RUNNING", "RUNNING") | says(second, "CANCELLED", "CANCELLED")
    assert {*covered(tmp_path, [first, second], cancelled)} == {PARENT}


GPU = Cluster(gpus=1)


@pytest.mark.parametrize(
    ("kinds", "finetune", "expected"),
    [
        (("source_pretrain",), GPU, {PARENT}),  # its jobs have no GPU
        (("finetune",), GPU, {CHILD}),  # jobs with a GPU are not for stages without one
        (("source_pretrain",), Cluster(constraint="fast"), {PARENT}),
        (("source_pretrain",), Cluster(cpus=2), {PARENT}),
        (("finetune",), Cluster(cpus=2), {PARENT, CHILD}),  # more than is asked for is enough
        (("finetune", "source_pretrain"), Cluster(), {PARENT, CHILD}),
        ((), GPU, {PARENT, CHILD}),  # of a version that did not note it
    ],
)
def test_stages_that_need_other_resources_than_live_jobs_have_are_not_covered(
    kinds: tuple[str, ...], finetune: Cluster, expected: set[str], tmp_path: Path
) -> None:
    array = submitted(tmp_path, "a", "7", kinds=kinds, finetune=finetune)
    assert {*covered(tmp_path, [array], says(array, "RUNNING", "PENDING"))} == expected


def test_each_generation_is_covered_by_the_arrays_of_its_own_resources(tmp_path: Path) -> None:
    """Jobs with a GPU for generation 1 have ended: those without one, for the same generation, do not cover it."""
    without = submitted(tmp_path, "a", "7", kinds=("source_pretrain",), finetune=GPU)
    having = submitted(tmp_path, "a", "8", kinds=("finetune",), finetune=GPU)
    live = says(without, "RUNNING", "RUNNING")
    assert {*covered(tmp_path, [without, having], live | says(having, "PENDING", "PENDING"))} == {PARENT, CHILD}
    assert {*covered(tmp_path, [without, having], live | says(having, "CANCELLED", "FAILED"))} == {PARENT}


def test_the_ledger_keeps_the_kinds_of_an_array(tmp_path: Path) -> None:
    array = submitted(tmp_path, "a", "7", kinds=("finetune",))
    assert ledger.submissions(tmp_path) == [array]


def test_a_stopped_worklist_covers_nothing(tmp_path: Path) -> None:
    made, other = submitted(tmp_path, "a", "7"), submitted(tmp_path, "b", "8")
    troubles._stop(tmp_path, "a", "all fail alike")
    live = says(made, "RUNNING", "RUNNING") | says(other, "RUNNING", "RUNNING")
    assert covered(tmp_path, [made], live) == {}
    assert {cover.worklist for cover in covered(tmp_path, [made, other], live).values()} == {"b"}


def test_a_worklist_that_cannot_be_read_covers_nothing(tmp_path: Path) -> None:
    made = submitted(tmp_path, "unread", "7")
    (ledger.folder(tmp_path) / "worklists" / "unread.json").write_text("{")
    assert covered(tmp_path, [made], says(made, "RUNNING", "RUNNING")) == {}


def test_submissions_of_earlier_versions_cover_the_stages_of_their_tasks(tmp_path: Path) -> None:
    facts = {"grid": "g", "name": "bench-g-0", "job_id": "7", "time": time.time(), "source": ""}
    made = Submission(**facts, token="0", tasks=((PARENT,), (CHILD, "another")))
    assert made.runs_stages
    assert covered(tmp_path, [made], says(made, "RUNNING", "PENDING")) == {
        name: Cover("", 0) for name in (PARENT, CHILD, "another")
    }
    assert covered(tmp_path, [made], says(made, "COMPLETED", "FAILED")) == {}


def test_the_tables_job_covers_nothing(tmp_path: Path) -> None:
    made = ledger.complete(tmp_path, ledger.note(tmp_path, "g", ""), "7")
    assert covered(tmp_path, [made], says(made, "RUNNING")) == {}
