"""Limits of a real accounting, and jobs that wait for ever: refused before, told afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bench.errors import InputError
from bench.launch.slurm import client, limits
from bench.launch.slurm.client import JobState
from bench.launch.slurm.reasons import fix_of
from bench.specs.cluster import Cluster
from tests.slurm.cluster import DevCluster, wait_for

pytestmark = pytest.mark.group("slurm")

SMALL: dict[str, Any] = {"partition": "main", "mem_gb": 0.1, "timeout_min": 5, "signal_delay_s": 30}
NONE = {
    "qos": ("MaxWall=-1", "MaxTRES=cpu=-1,mem=-1,gres/gpu=-1"),
    "user": ("MaxWall=-1", "MaxSubmitJobs=-1"),
}


@pytest.fixture
def limit(slurm: DevCluster) -> Iterator[Callable[..., None]]:
    """Set limits of the QOS 'normal' or of this user, as `limit("qos", "MaxWall=00:02:00")`, for a test."""

    def modify(table: str, *values: str) -> None:
        name = slurm.ask("id", "-un") if table == "user" else "normal"
        slurm.ask("sacctmgr", "--immediate", "modify", table, name, "set", *values)

    yield modify
    for table, values in NONE.items():
        modify(table, *values)


def _submit(slurm: DevCluster, *options: str) -> tuple[str, str]:
    """A job that ends at once, if it starts; returns its id and name."""
    name = "bench-waits-00000000"
    command = ["sbatch", "--parsable", "--mem=10", f"--job-name={name}", "--output=/dev/null", *options]
    return slurm.ask(*command, "--wrap", "true"), name


def _waits(job: str, name: str) -> tuple[JobState, str]:
    state = client.queue([name])[job]
    return state, fix_of(state.reason, state.state, job)


@pytest.mark.parametrize(
    ("table", "value", "settings", "setting", "options", "reason"),
    [
        ("qos", "MaxWall=00:04:00", {}, "slurm.timeout_min = 5", ["--time=5"], "QOSMaxWallDurationPerJobLimit"),
        ("user", "MaxWall=00:04:00", {}, "slurm.timeout_min = 5", ["--time=5"], "AssocMaxWallDurationPerJobLimit"),
        ("qos", "MaxTRES=cpu=1", {"cpus": 2}, "slurm.cpus = 2", ["--cpus-per-task=2"], "QOSMaxCpuPerJobLimit"),
        ("qos", "MaxTRES=gres/gpu=1", {"gpus": 2}, "slurm.gpus = 2", ["--gres=gpu:2"], "QOSMaxGRESPerJob"),
        ("qos", "MaxTRES=mem=1G", {"mem_gb": 1.5}, "slurm.mem_gb = 1.5", ["--mem=1536"], "QOSMaxMemoryPerJob"),
    ],
)
def test_what_a_limit_keeps_from_starting(
    table: str,
    value: str,
    settings: dict[str, Any],
    setting: str,
    options: list[str],
    reason: str,
    slurm: DevCluster,
    limit: Callable[..., None],
) -> None:
    """It is refused; and where Slurm has taken it, because the limit came later, what helps is told."""
    limits.check(Cluster(**SMALL | settings), 1, {})
    limit(table, value)
    with pytest.raises(InputError, match=setting):
        limits.check(Cluster(**SMALL | settings), 1, {})
    job, name = _submit(slurm, *options)
    wait_for(lambda: _waits(job, name)[0].reason == reason, 30)
    _, fix = _waits(job, name)
    assert setting.partition(" ")[0] in fix and f"scancel {job}" in fix


def test_what_may_be_queued(slurm: DevCluster, limit: Callable[..., None]) -> None:
    assert limits.array_size(Cluster(**SMALL)) == 1001
    limit("user", "MaxSubmitJobs=2")
    assert limits.array_size(Cluster(**SMALL)) == 2
    for _ in range(2):
        _submit(slurm, "--begin=now+3600")
    assert "you may not queue more jobs" in "".join(limits.check(Cluster(**SMALL), 1, {}))


def test_a_job_that_is_held_and_one_that_waits(slurm: DevCluster) -> None:
    (held, name), (later, _) = _submit(slurm, "--hold"), _submit(slurm, "--begin=now+3600")
    wait_for(lambda: _waits(later, name)[0].reason == "BeginTime", 30)
    assert _waits(later, name)[1] == ""
    state, fix = _waits(held, name)
    assert state.reason == "JobHeldUser" and f"scontrol release {held}" in fix
    slurm.ask("scontrol", "release", held)
    wait_for(lambda: _waits(held, name)[0].state == "COMPLETED", 60)


def test_a_job_that_is_requeued_and_held(slurm: DevCluster) -> None:
    job, name = _submit(slurm)
    wait_for(lambda: client.queue([name])[job].state == "COMPLETED", 60)
    slurm.ask("scontrol", "requeuehold", job)
    wait_for(lambda: _waits(job, name)[0].live, 30)
    assert f"scontrol release {job}" in _waits(job, name)[1]
