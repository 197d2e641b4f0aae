"""A small job that reports what a node of the cluster gives to this suite."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import bench
from bench.doctor.computer import Fact, existing
from bench.launch.slurm import client, ledger, reasons, troubles
from bench.launch.slurm.client import SlurmError
from bench.specs.cluster import Cluster
from bench.store.files import read_json

JOB_SECONDS = 300.0
"""How long the test job may wait and run before it is cancelled."""


LATE_SECONDS = 60.0
"""For so long a network file system may not show what another machine wrote."""


_ON_NODE = """
import os, pathlib, platform, sys
from bench.store.files import write_json
folder = pathlib.Path(sys.argv[1])
if int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0:
    write_json(folder / "again.json", {"node": platform.node()})
    sys.exit()
import torch
from bench import device
from bench.doctor import computer
from bench.store.provenance import cores
answer = {"node": platform.node(), "data": os.path.isdir(sys.argv[2]), "torch": torch.__version__,
          "cores": cores(), "gpus": device.gpu_count(), "devices": list(computer.devices())}
write_json(folder / "answer.json", answer)
try:
    from bench.launch.slurm import supervisor
    supervisor.requeue(supervisor.job_name())
except Exception as error:
    write_json(folder / "refused.json", {"why": str(error)})
"""
"""What the job runs: it answers and requeues itself, by the code that all jobs use; started again, it says so."""


def test_job(store: Path, data: Path, cluster: Cluster) -> Iterator[Fact]:
    """Run a small job that writes into the store; read its answer.

    It gets what a stage would get, and is requeued once, as a stage that was interrupted. It takes five minutes at most
    for each of the two.
    """
    from bench.launch.slurm import sbatch  # needs submitit

    # The traces that the job leaves tell how far it came: `began` that its node sees the store, `error` what its Python
    # said, `answer.json` that all is well. `_answer` reads them in the opposite order. After that come `again.json` of
    # its second start, or `refused.json`. Where it never comes to Python, its shell leaves `setup-….txt`.
    name = f"bench-doctor-{ledger.new_token()}"
    with tempfile.TemporaryDirectory(dir=existing(store), prefix=".bench-doctor-", ignore_cleanup_errors=True) as path:
        folder = Path(path)
        quoted_folder, program = shlex.quote(path), shlex.quote(sys.executable)
        python_path = shlex.quote(str(Path(bench.__file__).parents[1].absolute()))
        command = (
            f"touch {quoted_folder}/began || exit 1\n"
            f"export PYTHONPATH={python_path}${{PYTHONPATH:+:$PYTHONPATH}} PYTHONSAFEPATH=1\n"
            f"{program} -c {shlex.quote(_ON_NODE)} {quoted_folder} {shlex.quote(str(data.absolute()))}"
            f" 2> {quoted_folder}/error\n"
        )
        small = replace(cluster, runs_per_job=1, timeout_min=5, signal_delay_s=20)
        script = sbatch.write_script(folder, small, name, command)
        job = client.ask("sbatch", "--parsable", "--chdir=/", str(script)).strip().partition(";")[0]
        try:
            began, state = time.monotonic(), _wait(folder, name, f"{job}_0", "answer.json")
            yield _answer(folder, state, time.monotonic() - began, store, f"{job}_0")
            if (folder / "answer.json").exists():
                yield from _granted(read_json(folder / "answer.json", "Try again."), cluster, data)
                began, state = time.monotonic(), _wait(folder, name, f"{job}_0", "again.json", "refused.json")
                yield _requeued(folder, state, time.monotonic() - began, f"{job}_0")
        finally:
            with contextlib.suppress(SlurmError):  # it has ended
                client.ask("scancel", job)


def _granted(answer: dict[str, Any], cluster: Cluster, data: Path) -> Iterator[Fact]:
    """Report what a job had on its node and what it wanted."""
    if existing(data) == data.absolute():
        verdict, seen = ("ok", "seen") if answer["data"] else ("problem", "not seen")
        yield Fact(verdict, f"--data {data}: {seen} from a compute node", "name a folder that all nodes see")
    fix = "ask the cluster's administrators how jobs get CPUs; slurm.extra takes options of sbatch"
    verdict = "ok" if answer["cores"] >= cluster.cpus else "warning"
    yield Fact(verdict, f"a job that asks for {cluster.cpus} CPU(s) may use {answer['cores']}", fix)
    if cluster.gpus:
        fix = "install a torch built for the nodes' driver, or ask for GPUs as this cluster wants it: slurm.extra"
        verdict = "ok" if answer["gpus"] >= cluster.gpus else "problem"
        yield Fact(verdict, f"a job that asks for {cluster.gpus} GPU(s): torch sees {answer['gpus']}", fix)
    for verdict, text, fix in answer["devices"]:
        yield Fact(verdict, f"in that job: {text}", fix)


def _wait(folder: Path, name: str, job: str, *awaited: str) -> client.JobState:
    """Wait until one of the job's files is there, or clearly will not come.

    Returns the job's last state.
    """
    # A job that has begun and ended has left its files; one that ended without a trace may have done so on a node whose
    # file system is shown here late. One that waits for somebody is not waited for, but its reason may be momentary.
    end, state = time.monotonic() + JOB_SECONDS, client.JobState("PENDING")
    while time.monotonic() < end:
        files = os.listdir(folder)  # has a network file system look
        if not {*awaited}.isdisjoint(files) or any(map(_is_trouble, files)):
            break
        time.sleep(1.0)
        state = client.queue([name]).get(job, client.JobState(client.GONE))
        if not state.live:
            end = min(end, time.monotonic() + (2.0 if "began" in os.listdir(folder) else LATE_SECONDS))
        elif reasons.fix_of(state.reason, state.state):
            end = min(end, time.monotonic() + LATE_SECONDS)
    return state


def _is_trouble(file: str) -> bool:
    return file.startswith("setup-") and file.endswith(".txt")


def _answer(folder: Path, state: client.JobState, seconds: float, store: Path, job: str) -> Fact:
    """Report what the job's files and its last state tell."""
    files = os.listdir(folder)
    reason = f"{state.state} {state.reason}".strip()
    if "answer.json" in files:
        answer = read_json(folder / "answer.json", "Try again.")
        wrote = f"a job on node {answer['node']} wrote into the store and imported torch {answer['torch']}"
        return Fact("ok", f"{wrote} ({seconds:.0f} s)")
    for file in filter(_is_trouble, files):
        trouble = troubles.read_setup(folder / file)
        fix = "mend that line of slurm.setup, or keep away from that node: slurm.extra"
        return Fact("problem", f"a job ended on node {trouble.node}: {trouble.reason}", fix)
    if "began" in files and not state.live:
        lines = (folder / "error").read_text(errors="replace").strip().splitlines() if "error" in files else []
        text = f"a compute node sees the store, but this Python does not work there: {lines[-1] if lines else reason}"
        return Fact("problem", text, "install the environment where all nodes see it")
    if state.state in ("PENDING", "CONFIGURING"):
        if fix := reasons.fix_of(state.reason, state.state, job):
            return Fact("problem", f"a test job does not start: {reason}", fix)
        text = f"a test job did not start within {JOB_SECONDS:.0f} s ({reason}): visibility is unknown"
        return Fact("warning", text, "try again, or name an idle partition in slurm.partition")
    text = f"--store {store}: what a job writes there is not seen here (job: {reason})"
    return Fact("problem", text, "name a store on a file system that all nodes share")


def _requeued(folder: Path, state: client.JobState, seconds: float, job: str) -> Fact:
    """Report whether a job that requeued itself started again."""
    files = os.listdir(folder)
    reason = f"{state.state} {state.reason}".strip()
    ask = "ask the administrators to let jobs requeue themselves; until then, run the grid again after interruptions"
    if "again.json" in files:
        node = read_json(folder / "again.json", "Try again.")["node"]
        return Fact("ok", f"that job requeued itself, and started a second time on node {node} ({seconds:.0f} s)")
    if "refused.json" in files:
        why = read_json(folder / "refused.json", "Try again.")["why"]
        return Fact("problem", f"a job cannot requeue itself: {why}", ask)
    if not state.live:
        return Fact("problem", f"a job that requeued itself ended instead of starting again: {reason}", ask)
    if fix := reasons.fix_of(state.reason, state.state, job):
        return Fact("problem", f"a job that requeued itself does not start again: {reason}", f"{fix}; {ask}")
    text = f"a job that requeued itself did not start again within {seconds:.0f} s ({reason})"
    return Fact("warning", text, "try again when the partition is idle: stages that are interrupted wait as long")
