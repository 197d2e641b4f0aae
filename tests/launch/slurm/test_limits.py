"""What a cluster's accounting would let wait for ever is refused: with programs that stand in for Slurm's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.errors import InputError
from bench.launch.slurm import limits
from bench.specs.cluster import Cluster
from tests.launch.slurm.conftest import Fake

ENFORCED = "ClusterName = ours\nMaxArraySize = 1001\nAccountingStorageEnforce = associations,limits,qos\n"
PARTITIONS = """\
PartitionName=main Default=YES MaxTime=UNLIMITED State=UP QoS=N/A
PartitionName=long Default=NO MaxTime=UNLIMITED State=UP QoS=generous
PartitionName=own Default=NO MaxTime=UNLIMITED State=UP QoS=N/A
"""
ASSOCIATION = "Partition|DefaultQOS|MaxSubmit|GrpSubmit|MaxWall|MaxTRES|MaxTRESPerNode|GrpTRES"
QOS = "Name|MaxSubmitPU|MaxSubmitPA|GrpSubmit|MaxWall|MaxTRES|MaxTRESPerNode|GrpTRES|MaxTRESPU|MaxTRESPA|Flags"


class Accounts:
    """An accounting whose tables hold what a test says, and a cluster that takes every job."""

    def __init__(self, fake: Fake) -> None:
        self.fake = fake
        for name in ("sbatch", "squeue", "scancel", "srun"):
            fake(name)
        fake("sinfo", "".join(f"{name}|gpu:8|64|512000|n1|idle\n" for name in ("main*", "long", "own")))
        fake("scontrol", ENFORCED + PARTITIONS)
        self.tables: dict[str, list[str]] = {"user": ["lab"], "assoc": [], "qos": []}
        self.row("assoc", ASSOCIATION)
        self.row("qos", QOS, Name="normal")

    def row(self, table: str, header: str, **values: str) -> None:
        self.tables[table].append("|".join(values.get(column, "") for column in header.split("|")))
        cases = "".join(f"{name}) cat {self._write(name)};;\n" for name in self.tables)
        self.fake("sacctmgr").with_name("sacctmgr").write_text(f'#!/bin/sh\ncase "$4" in\n{cases}esac\n')

    def _write(self, table: str) -> Path:
        path = self.fake("none").with_name(f"{table}.table")
        path.write_text("".join(f"{line}\n" for line in self.tables[table]))
        return path

    def limit(self, **values: str) -> None:
        """Set limits of the user's association for all partitions."""
        self.tables["assoc"].clear()
        self.row("assoc", ASSOCIATION, **values)


@pytest.fixture
def accounts(fake: Fake) -> Accounts:
    return Accounts(fake)


def refusal(**settings: Any) -> str:
    with pytest.raises(InputError) as refused:
        limits.check(Cluster(**settings), 1, {})
    return str(refused.value)


LIMITS = [
    ({"MaxWall": "00:30:00"}, {"timeout_min": 30}, {"timeout_min": 31}, ["slurm.timeout_min = 31", "30", "MaxWall"]),
    ({"MaxWall": "1-00:00:00"}, {"timeout_min": 1440}, {"timeout_min": 1441}, ["slurm.timeout_min", "1440"]),
    ({"MaxTRES": "cpu=6"}, {"cpus": 2, "runs_per_job": 3}, {"cpus": 7}, ["slurm.cpus = 7", "6", "MaxTRES cpu"]),
    ({"MaxTRES": "mem=2G"}, {"mem_gb": 2.0}, {"mem_gb": 0.8, "runs_per_job": 3}, ["slurm.mem_gb = 0.8", "2.4", "mem"]),
    ({"MaxTRES": "cpu=1,mem=2000M"}, {"mem_gb": 1.9}, {"mem_gb": 2.0}, ["slurm.mem_gb = 2", "1.95312"]),
    ({"MaxTRES": "mem=1T,node=4"}, {"mem_gb": 400.0}, None, []),
    ({"MaxTRESPerNode": "gres/gpu=1"}, {"gpus": 1}, {"gpus": 2}, ["slurm.gpus = 2", "1", "MaxTRESPerNode gres/gpu"]),
    ({"GrpTRES": "gres/gpu=0"}, {}, {"gpus": 1}, ["slurm.gpus = 1", "0", "GrpTRES"]),
    ({"MaxTRES": "gres/gpu:a100=1"}, {"gpus": 4}, None, []),  # of one kind of GPU
]


@pytest.mark.parametrize("of_qos", [False, True], ids=["association", "QOS"])
@pytest.mark.parametrize(("values", "legal", "too_much", "words"), LIMITS)
def test_a_job_above_a_limit_of_the_accounting_is_refused(
    of_qos: bool,
    values: dict[str, str],
    legal: dict[str, Any],
    too_much: dict[str, Any] | None,
    words: list[str],
    accounts: Accounts,
) -> None:
    if of_qos:
        accounts.row("qos", QOS, Name="small", **values)
    else:
        accounts.limit(**values)
    name = {"qos": "small"} if of_qos else {}
    limits.check(Cluster(**legal, **name), 1, {})
    if too_much is not None:
        message = refusal(**too_much, **name)
        assert all(word in message for word in words)
        assert ("QOS small" if of_qos else "with account lab") in message
        assert "slurm.qos or slurm.account" in message


@pytest.mark.parametrize("column", ["MaxTRESPU", "MaxTRESPA"])
def test_what_all_jobs_of_a_user_may_have_is_enough_for_one(column: str, accounts: Accounts) -> None:
    accounts.row("qos", QOS, Name="small", **{column: "cpu=4"})
    limits.check(Cluster(cpus=4, qos="small"), 1, {})
    assert f"{column} cpu" in refusal(cpus=5, qos="small")


def test_the_strongest_limit_of_a_kind_counts_as_in_slurm(accounts: Accounts) -> None:
    accounts.limit(DefaultQOS="small", MaxWall="00:20:00", MaxTRES="cpu=2,gres/gpu=1", GrpTRES="cpu=5")
    accounts.row("qos", QOS, Name="small", MaxWall="01:00:00", MaxTRES="cpu=8", GrpTRES="cpu=9")
    accounts.row("qos", QOS, Name="generous", MaxWall="10:00:00")
    accounts.row("qos", QOS, Name="first", MaxWall="00:30:00", Flags="DenyOnLimit,OverPartQOS")
    limits.check(Cluster(timeout_min=60, cpus=5, gpus=1), 1, {})
    assert "QOS small" in refusal(timeout_min=61)
    assert "with account lab" in refusal(gpus=2)  # the QOS says nothing of GPUs
    assert "GrpTRES" in refusal(cpus=6)  # limits on all jobs together hold at every level
    limits.check(Cluster(timeout_min=600, partition="long"), 1, {})  # the partition's own QOS
    assert "QOS generous" in refusal(timeout_min=601, partition="long")
    assert "QOS first" in refusal(timeout_min=31, partition="long", qos="first")


def test_one_of_several_partitions_is_enough(accounts: Accounts) -> None:
    accounts.limit(MaxWall="00:30:00")
    accounts.row("assoc", ASSOCIATION, Partition="own", MaxWall="02:00:00")
    assert "slurm.timeout_min" in refusal(timeout_min=60, partition="main")
    limits.check(Cluster(timeout_min=60, partition="own"), 1, {})
    limits.check(Cluster(timeout_min=60, partition="main,own"), 1, {})
    assert "slurm.timeout_min" in refusal(timeout_min=121, partition="main,own")


def test_limits_that_nobody_enforces_or_knows_refuse_nothing(accounts: Accounts, fake: Fake) -> None:
    accounts.limit(MaxWall="00:10:00")
    refusal(timeout_min=60)
    fake("scontrol", ENFORCED.replace(",limits,qos", "") + PARTITIONS)
    limits.check(Cluster(timeout_min=60), 1, {})
    fake("scontrol", ENFORCED + PARTITIONS)
    accounts.tables["assoc"].clear()
    accounts.row("qos", QOS, Name="other")
    limits.check(Cluster(timeout_min=60), 1, {})
    fake("sacctmgr", status=1)
    limits.check(Cluster(timeout_min=60), 1, {})


def test_a_full_queue_passes_and_is_told(accounts: Accounts, fake: Fake) -> None:
    words = "sbatch: error: AssocMaxSubmitJobLimit\nallocation failure: Job violates accounting/QOS policy"
    fake("sbatch", status=1, error=words)
    assert "you may not queue more jobs at present" in "".join(limits.check(Cluster(), 1, {}))
