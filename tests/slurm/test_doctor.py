"""The doctor's test job on a real Slurm: it trains, requeues itself and starts again, or says why not."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.doctor import sample_job
from bench.specs.cluster import Cluster
from tests.slurm.cluster import DevCluster

pytestmark = pytest.mark.group("slurm")

CLUSTER = Cluster(partition="main", mem_gb=1.0)


def test_its_job_starts_a_second_time(slurm: DevCluster, tmp_path: Path) -> None:
    facts = list(sample_job.test_job(tmp_path, tmp_path, CLUSTER))
    assert "wrote into the store" in facts[0].text
    assert "started a second time on node" in facts[-1].text
    assert all(fact.verdict != "problem" for fact in facts)
    assert list(tmp_path.iterdir()) == []


def test_a_job_that_may_not_be_requeued(slurm: DevCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a cluster whose administrators took that away; here the job itself says so, once it has begun."""
    forbid = (
        "import subprocess; subprocess.run(['scontrol', 'update', 'JobId=' + os.environ['SLURM_JOB_ID'], 'Requeue=0'])"
    )
    monkeypatch.setattr(sample_job, "_ON_NODE", sample_job._ON_NODE.replace("answer =", f"{forbid}\nanswer ="))
    fact = list(sample_job.test_job(tmp_path, tmp_path, CLUSTER))[-1]
    assert fact.verdict == "problem" and "cannot requeue itself" in fact.text and "disabled" in fact.text
    assert "ask the administrators" in fact.fix


def test_a_setup_that_fails(slurm: DevCluster, tmp_path: Path) -> None:
    cluster = Cluster(partition="main", mem_gb=1.0, setup=("module load no/such",))
    (fact,) = sample_job.test_job(tmp_path, tmp_path, cluster)
    assert fact.verdict == "problem" and "exit status 127: module load no/such" in fact.text
