"""The development cluster, for real: it is brought up, used, broken, repaired and brought down."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.group("slurm")

SCRIPT = Path(__file__).parents[2] / "slurm" / "dev_cluster.sh"
# As left behind by a job of another cluster in which the tests may run.
STRAY = {
    "SLURM_CONF": "/nonexistent/slurm.conf",
    "SLURM_JOB_ID": "77",
    "SQUEUE_FORMAT": "%i",
    "SLURM_CLUSTERS": "other",
}
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY")


def until(condition: Callable[[], bool], seconds: float, what: str) -> float:
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, f"not within {seconds} s: {what}"
        time.sleep(0.2)
    return time.monotonic() - start


def living() -> dict[int, str]:
    """Processes that are no zombies, with their command lines; a container's first process may not collect zombies."""
    commands = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and "\nState:\tZ" not in (entry / "status").read_text():
                commands[int(entry.name)] = (
                    (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
        except OSError:
            continue
    return commands


class Cluster:
    def __init__(self, folder: Path, **settings: object) -> None:
        self.folder = folder
        self.settings = {f"BENCH_SLURM_{name.upper()}": str(value) for name, value in settings.items()}

    def script(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [str(SCRIPT), *arguments, "--folder", str(self.folder)]
        environment = os.environ | STRAY | self.settings
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)
        assert not check or done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        return done

    def ask(self, *command: str) -> str:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SQUEUE_"))}
        environment["SLURM_CONF"] = str(self.folder / "etc" / "slurm.conf")
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def submit(self, *arguments: str, wrap: str) -> str:
        log = self.folder / "log" / "job.%j"
        return self.ask(
            "sbatch", "--parsable", "--mem=100", f"--output={log}", "--open-mode=append", *arguments, "--wrap", wrap
        )

    def state(self, job: str) -> str:
        match = re.search(r"JobState=(\w+)", self.ask("scontrol", "show", "job", job))
        assert match
        return match[1]

    def wait_for(self, job: str, state: str, seconds: float = 30) -> float:
        def reached() -> bool:
            now = self.state(job)
            assert now == state or now not in ENDED, f"job {job} is {now} instead of {state}: {self.output(job)}"
            return now == state

        return until(reached, seconds, f"job {job} is {state}")

    def output(self, job: str) -> str:
        log = self.folder / "log" / f"job.{job}"
        return log.read_text() if log.exists() else ""


@pytest.fixture(scope="session")
def base() -> Iterator[Path]:
    """A short path: it has to leave room for the names of sockets."""
    folder = Path(tempfile.mkdtemp(prefix="bench-slurm-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def cluster(base: Path) -> Iterator[Cluster]:
    made = Cluster(base / "main", max_array=11, grace=5, kill_wait=2, requeue_delay=5, node_timeout=6)
    try:
        made.script("up")
        yield made
    finally:
        made.script("down")


@pytest.mark.parametrize("partition", ["main", "low", "high"])
def test_a_job_runs_on_each_partition(cluster: Cluster, partition: str) -> None:
    job = cluster.submit("--partition", partition, wrap="echo $SLURM_JOB_PARTITION $SLURM_CLUSTER_NAME")
    cluster.wait_for(job, "COMPLETED")
    assert re.fullmatch(rf"{partition} bench_\d+", cluster.output(job).strip())


def test_up_is_idempotent_and_status_and_env_tell_of_it(cluster: Cluster) -> None:
    before = cluster.script("status").stdout
    assert re.findall(r"^(\S+) runs, process \d+$", before, re.MULTILINE) == [
        "munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd.n1", "slurmd.n2"
    ]  # fmt: skip
    line = f"export SLURM_CONF={cluster.folder}/etc/slurm.conf"
    assert cluster.script("up").stdout.splitlines()[-1] == line
    assert cluster.script("env").stdout.strip() == line
    assert cluster.script("status").stdout == before


def test_an_array_runs_up_to_the_limit_and_not_above(cluster: Cluster) -> None:
    job = cluster.submit("--array=0-10", "--time=1", wrap="true")
    until(lambda: not cluster.ask("squeue", "--noheader", "--jobs", job), 60, "the array ended")
    listed = "sacct", "--noheader", "--allocations", "--parsable2", "--format=State", "--jobs", job
    until(lambda: cluster.ask(*listed).split() == ["COMPLETED"] * 11, 20, "sacct shows 11 elements")
    with pytest.raises(AssertionError, match="Invalid job array specification"):
        cluster.submit("--array=11", wrap="true")


def test_a_gpu_request_shows_its_gpu_to_the_job(cluster: Cluster) -> None:
    job = cluster.submit("--gres=gpu:2", wrap="echo CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES")
    cluster.wait_for(job, "COMPLETED")
    assert cluster.output(job) == "CUDA_VISIBLE_DEVICES=0,1\n"


# exec: Slurm signals the batch shell alone, and "sh -c" would die of the signal instead of its child seeing it.
WORKER = """exec bash -c '
trap "echo signalled \\$(date +%s.%N)" USR2
echo started restart=${SLURM_RESTART_COUNT:-0}
[ -n "$SLURM_RESTART_COUNT" ] || for i in $(seq 600); do sleep 0.1; done
echo ended'"""


def test_preempted_signalled_requeued_and_finished(cluster: Cluster) -> None:
    whole = "--nodelist=n1", "--exclusive"
    low = cluster.submit(*whole, "--partition=low", "--requeue", "--signal=B:USR2@5", wrap=WORKER)
    until(lambda: "started" in cluster.output(low), 20, "the job in low started")
    begin = time.monotonic()
    high = cluster.submit(*whole, "--partition=high", wrap="sleep 1")
    until(lambda: "signalled" in cluster.output(low), 10, "the signal arrived")
    assert cluster.state(low) == "RUNNING"  # the grace time has begun
    cluster.wait_for(high, "COMPLETED", 60)
    cluster.wait_for(low, "COMPLETED", 60)
    assert time.monotonic() - begin < 80
    words = [line.split(maxsplit=1) for line in cluster.output(low).splitlines() if "slurmstepd" not in line]
    assert [w[0] for w in words if w[0] in ("started", "signalled", "ended")] == [
        "started",
        "signalled",
        "started",
        "ended",
    ]
    listed = "sacct", "--noheader", "--duplicates", "--allocations", "--parsable2", "--format=State", "--jobs", low
    until(lambda: cluster.ask(*listed).split() == ["PREEMPTED", "COMPLETED"], 20, "sacct shows both attempts")


def test_a_lost_node_requeues_its_job_and_comes_back(cluster: Cluster) -> None:
    job = cluster.submit("--nodelist=n2", "--requeue", wrap="echo started; exec sleep 6")
    until(lambda: "started" in cluster.output(job), 20, "the job started")
    begin = time.monotonic()
    assert "killed slurmd of n2" in cluster.script("node-kill", "n2").stdout
    assert cluster.script("status", check=False).returncode == 1
    until(lambda: cluster.state(job) == "PENDING", 90, "the job of the lost node was requeued")
    assert "NODE_FAIL" in cluster.ask("sacct", "-nDXP", "--format=State", "--jobs", job)
    cluster.script("node-start", "n2")
    cluster.wait_for(job, "COMPLETED", 60)
    assert cluster.output(job).count("started") == 2
    assert time.monotonic() - begin < 150


def test_tasks_may_survive_their_node(cluster: Cluster) -> None:
    job = cluster.submit("--nodelist=n2", "--no-requeue", wrap="echo pid $$; exec sleep 97")
    until(lambda: "pid" in cluster.output(job), 20, "the job started")
    pid = int(cluster.output(job).split()[1])
    cluster.script("node-kill", "n2", "--leave-tasks")
    assert "sleep 97" in living()[pid]
    cluster.ask("scancel", job)
    cluster.script("node-start", "n2")


def test_a_restarted_controller_knows_queued_and_running_jobs(cluster: Cluster) -> None:
    running = cluster.submit("--nodelist=n1", "--exclusive", wrap="sleep 8")
    cluster.wait_for(running, "RUNNING")
    queued = cluster.submit("--nodelist=n1", "--exclusive", wrap="echo ran")
    assert cluster.state(queued) == "PENDING"
    cluster.script("controller-restart")
    assert (cluster.state(running), cluster.state(queued)) == ("RUNNING", "PENDING")
    cluster.wait_for(queued, "COMPLETED", 60)
    assert cluster.state(running) == "COMPLETED"


def test_a_stopped_controller_answers_nobody(cluster: Cluster) -> None:
    cluster.script("controller-stop")
    try:
        with pytest.raises((AssertionError, subprocess.TimeoutExpired)):
            cluster.ask("scontrol", "ping")
    finally:
        cluster.script("controller-start")
    cluster.ask("scontrol", "ping")


def test_two_clusters_and_down_leaves_nothing(cluster: Cluster, base: Path) -> None:
    before = living()
    other = Cluster(base / "other")
    try:
        other.script("up", "--no-accounting", "--nodes", "1")
        with pytest.raises(AssertionError, match="accounting storage is disabled"):
            other.ask("sacct")
        # One process in a session of its own, one that also lost the job's environment, and one queued job.
        job = other.submit(
            "--exclusive", wrap="setsid sleep 98 & env -i sleep 98 & setsid env -i sleep 98 & echo pid; wait"
        )
        other.submit("--exclusive", wrap="sleep 98")
        until(lambda: "pid" in other.output(job), 20, "the job started")
        assert "PENDING 1 RUNNING" in re.sub(r".*jobs: ", "", other.script("status").stdout.replace("\n", " "))
    finally:
        other.script("down")
    assert not other.folder.exists()
    assert "no cluster" in other.script("down").stdout
    left = {pid: line for pid, line in living().items() if pid not in before}
    assert not [line for line in left.values() if str(other.folder) in line or "sleep 98" in line], left
    assert cluster.script("status").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["up", "--folder", "/tmp/bench slurm"], "cannot hold the folder's path"),
        (["up", "--folder", "/tmp/" + "x" * 90], "too long"),
        (["up", "--folder", "/usr"], "no cluster of yours"),
        (["down", "--folder", "/usr"], "no cluster of yours"),
        (["up", "--nodes", "0"], "whole number from 1 to 64"),
        (["status", "--nodes", "1"], "only up takes"),
        (["node-kill"], "needs the name of a node"),
        (["upp"], "unknown command"),
        (["up", "--colour"], "unknown option"),
    ],
)
def test_bad_input_is_refused(arguments: list[str], said: str) -> None:
    done = subprocess.run([str(SCRIPT), *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert said in done.stderr


def test_an_unknown_node_is_refused(cluster: Cluster) -> None:
    done = cluster.script("node-kill", "n3", check=False)
    assert done.returncode == 1
    assert "it has n1 to n2" in done.stderr
