"""A small job that reports what a node of the cluster gives to this suite."""

from __future__ import annotations

import contextlib
import os
import secrets
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
from bench.launch.slurm import client
from bench.launch.slurm.client import SlurmError
from bench.specs.cluster import Cluster
from bench.store.files import read_json

JOB_SECONDS = 300.0
"""How long the test job may wait and run before it is cancelled."""


LATE_SECONDS = 60.0
"""For so long a network file system may not show what another machine wrote."""


_ON_NODE = """
import os, pathlib, platform, sys
import torch
from bench import device
from bench.doctor import computer
from bench.store.files import write_json
from bench.store.provenance import cores
answer = {"node": platform.node(), "data": os.path.isdir(sys.argv[2]), "torch": torch.__version__,
          "cores": cores(), "gpus": device.gpu_count(), "devices": list(computer.devices())}
write_json(pathlib.Path(sys.argv[1], "answer.json"), answer)
"""


def test_job(store: Path, data: Path, cluster: Cluster) -> Iterator[Fact]:
    """Run a small job that writes into the store; read its answer.

    It takes five minutes at most, and gets what a stage would get.
    """
    from bench.launch.slurm import sbatch  # needs submitit

    # The traces that the job leaves tell how far it came: `began` that its node sees the store, `error` what its Python
    # said, `answer.json` that all is well. `_answer` reads them in the opposite order.
    name = f"bench-doctor-{int(time.time()):08x}{secrets.token_hex(4)}"
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
            began, state = time.monotonic(), _wait(folder, name, f"{job}_0")
            yield _answer(folder, state, time.monotonic() - began, store)
        finally:
            with contextlib.suppress(SlurmError):  # it has ended
                client.ask("scancel", job)
        if (folder / "answer.json").exists():
            yield from _granted(read_json(folder / "answer.json", "Try again."), cluster, data)


def _granted(answer: dict[str, Any], cluster: Cluster, data: Path) -> Iterator[Fact]:
    """Report what a job had on its node and what it wanted."""
    if existing(data) == data.absolute():
        seen = "" if answer["data"] else "not "
        fix = "name a folder that all nodes see"
        yield Fact("problem" if seen else "ok", f"--data {data}: {seen}seen from a compute node", fix)
    fix = "ask the cluster's administrators how jobs get CPUs; slurm.extra takes options of sbatch"
    verdict = "ok" if answer["cores"] >= cluster.cpus else "warning"
    yield Fact(verdict, f"a job that asks for {cluster.cpus} CPU(s) may use {answer['cores']}", fix)
    if cluster.gpus:
        fix = "install a torch built for the nodes' driver, or ask for GPUs as this cluster wants it: slurm.extra"
        verdict = "ok" if answer["gpus"] >= cluster.gpus else "problem"
        yield Fact(verdict, f"a job that asks for {cluster.gpus} GPU(s): torch sees {answer['gpus']}", fix)
    for verdict, text, fix in answer["devices"]:
        yield Fact(verdict, f"in that job: {text}", fix)


def _wait(folder: Path, name: str, job: str) -> client.JobState:
    """Wait until the job's answer is there, or clearly will not come.

    Returns the job's last state.
    """
    # A job that has begun and ended has left its files; one that ended without a trace may have done so on a node whose
    # file system is shown here late.
    end, state = time.monotonic() + JOB_SECONDS, client.JobState("PENDING")
    while time.monotonic() < end and "answer.json" not in os.listdir(folder):  # listing has a network file system look
        time.sleep(1.0)
        state = client.queue([name]).get(job, client.JobState(client.GONE))
        if not state.live:
            end = min(end, time.monotonic() + (2.0 if "began" in os.listdir(folder) else LATE_SECONDS))
    return state


def _answer(folder: Path, state: client.JobState, seconds: float, store: Path) -> Fact:
    """Report what the job's files and its last state tell."""
    files = os.listdir(folder)
    reason = f"{state.state} {state.reason}".strip()
    if "answer.json" in files:
        answer = read_json(folder / "answer.json", "Try again.")
        wrote = f"a job on node {answer['node']} wrote into the store and imported torch {answer['torch']}"
        return Fact("ok", f"{wrote} ({seconds:.0f} s)")
    if "began" in files and not state.live:
        lines = (folder / "error").read_text(errors="replace").strip().splitlines() if "error" in files else []
        text = f"a compute node sees the store, but this Python does not work there: {lines[-1] if lines else reason}"
        return Fact("problem", text, "install the environment where all nodes see it")
    if state.state in ("PENDING", "CONFIGURING"):
        text = f"a test job did not start within {JOB_SECONDS:.0f} s ({reason}): visibility is unknown"
        return Fact("warning", text, "try again, or name an idle partition in slurm.partition")
    text = f"--store {store}: what a job writes there is not seen here (job: {reason})"
    return Fact("problem", text, "name a store on a file system that all nodes share")
