"""Check what a grid needs of this computer and, where there is one, of this cluster: `python -m bench.doctor`.

Every fact comes with a verdict, and with a fix where there is something to fix. Exit status: 0 no problems, 1 some.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import re
import secrets
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import baselines
import bench
from bench import cli, facts
from bench.errors import InputError, nearest
from bench.facts import Fact, existing
from bench.launch import jobs
from bench.launch.jobs import SlurmError
from bench.specs.cluster import Cluster
from bench.store.files import read_json

JOB_SECONDS = 300.0
"""How long the test job may wait and run before it is cancelled."""
LATE_SECONDS = 60.0
"""For so long a network file system may not show what another machine wrote."""


# -------------------------------------------------------------------------------------------------------------- Slurm


def settings(partition: str | None) -> Iterator[Fact]:
    """The settings of a Slurm cluster on which being stopped and going on rests."""
    config = jobs.configuration()
    yield Fact("ok", f"Slurm {config.get('SLURM_VERSION', '?')}")
    size = int(config.get("MaxArraySize", "0") or 0)
    small = Fact("warning", f"MaxArraySize {size}: large grids need many sbatch calls", "ask for a larger MaxArraySize")
    yield Fact("ok", f"MaxArraySize {size}; larger arrays are split") if size >= 100 else small
    for name in partition.split(",") if partition else [None]:
        where = _partition(name)
        yield _limits(where)
        yield from _preemption(where, config)
    delay = re.search(r"cred_expire=(\d+)", config.get("AuthInfo", ""))
    requeue = "by default" if config.get("JobRequeue") == "1" else "only where asked for, which bench.grid does"
    yield Fact("ok", f"jobs can be requeued {requeue}; they then wait {delay.group(1) if delay else 120} s")
    wait = int(re.sub(r"\D.*", "", config.get("KillWait", "")) or 0)
    short = Fact(
        "warning", f"KillWait {wait} s: little time for a checkpoint after SIGTERM", "lower grid.checkpoint_steps"
    )
    yield Fact("ok", f"KillWait {wait} s") if wait >= 20 else short
    yield _accounting(config)


def _partition(name: str | None) -> dict[str, str]:
    known = [jobs.pairs(line, " ") for line in jobs.ask("scontrol", "--oneliner", "show", "partition").splitlines()]
    for one in known:
        if one.get("PartitionName") == name or (name is None and one.get("Default") == "YES"):
            return one
    legal = nearest(name or "", [one.get("PartitionName", "") for one in known])
    raise SlurmError(f"there is no partition '{name}'.{legal}" if name else f"no partition is the default one.{legal}")


def _limits(where: dict[str, str]) -> Fact:
    name, state = where["PartitionName"], where.get("State", "?")
    longest, usual = where.get("MaxTime", "?"), where.get("DefaultTime", "NONE")
    verdict = "ok" if state == "UP" else "problem"
    fix = "name another in slurm.partition"
    return Fact(verdict, f"partition {name}: {state}, time limit at most {longest} (default {usual})", fix)


def _preemption(where: dict[str, str], config: dict[str, str]) -> Iterator[Fact]:
    kind, mode = config.get("PreemptType", "?"), where.get("PreemptMode") or config.get("PreemptMode", "?")
    name, grace = where["PartitionName"], where.get("GraceTime", "0")
    if kind.endswith("none") or mode == "OFF":
        yield Fact("ok", f"jobs of partition {name} are not preempted")
        return
    if "CANCEL" in mode:
        text = f"preempted jobs of {name} are cancelled, not requeued, unless they checkpoint within {grace} s"
        yield Fact("warning", text, "lower grid.checkpoint_steps; run the grid again after it")
    else:
        yield Fact("ok", f"jobs of partition {name} may be preempted (PreemptMode {mode}, GraceTime {grace} s)")
    if "preempt_send_user_signal" not in config.get("SlurmctldParameters", ""):
        text = "SlurmctldParameters lacks preempt_send_user_signal: preemption is announced by SIGTERM only"
        yield Fact("warning", text, "ask for it; until then a low grid.checkpoint_steps loses the least")
    elif grace == "0":
        yield Fact(
            "warning", f"partition {name} has GraceTime 0: no time for a checkpoint", "lower grid.checkpoint_steps"
        )
    else:
        yield Fact("ok", "preemption is announced by the job's own signal (preempt_send_user_signal)")


def _accounting(config: dict[str, str]) -> Fact:
    if config.get("AccountingStorageType", "").endswith(("none", "(null)")):
        kept = re.sub(r"\D.*", "", config.get("MinJobAge", "")) or "?"
        return Fact(
            "warning",
            f"no accounting: Slurm forgets jobs {kept} s after their end",
            "no fix is needed: bench.status tells what ended from the store, and the rest as unknown",
        )
    try:
        jobs.ask("sacct", "--noheader", "--allocations", "--starttime=now-1minutes", "--format=JobID", seconds=30)
    except SlurmError as error:
        return Fact("warning", f"accounting is on, but does not answer: {error}", "ask the cluster's administrators")
    return Fact("ok", "accounting works (sacct)")


def accepted(cluster: Cluster, folders: Mapping[str, Path]) -> Iterator[Fact]:
    """Whether this cluster takes jobs of these settings."""
    from bench.launch import limits  # needs submitit

    try:
        warnings = limits.check(cluster, 1, folders)
    except SlurmError:
        raise
    except InputError as error:
        yield Fact("problem", str(error), "change the settings slurm.… of your gin files")
        return
    yield Fact("ok", "sbatch takes jobs of these settings (slurm.…)")
    for warning in warnings:
        yield Fact("warning", warning, "change it, or look whether the test job (without --quick) finds it well")


# ------------------------------------------------------------------------------------------------------- a test job

_ON_NODE = """
import os, pathlib, platform, sys
import torch
from bench import device, facts
from bench.store.files import write_json
from bench.store.provenance import cores
answer = {"node": platform.node(), "data": os.path.isdir(sys.argv[2]), "torch": torch.__version__,
          "cores": cores(), "gpus": device.gpu_count(), "devices": list(facts.devices())}
write_json(pathlib.Path(sys.argv[1], "answer.json"), answer)
"""


def test_job(store: Path, data: Path, cluster: Cluster) -> Iterator[Fact]:
    """Run a job of five minutes at most, with what a stage would get, that writes into the store; read its answer."""
    from bench.launch import sbatch  # needs submitit

    name = f"bench-doctor-{int(time.time()):08x}{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory(dir=existing(store), prefix=".bench-doctor-", ignore_cleanup_errors=True) as made:
        folder = Path(made)
        here, program = shlex.quote(made), shlex.quote(sys.executable)
        path = shlex.quote(str(Path(bench.__file__).parents[1].absolute()))
        command = (
            f"touch {here}/began || exit 1\n"
            f"export PYTHONPATH={path}${{PYTHONPATH:+:$PYTHONPATH}} PYTHONSAFEPATH=1\n"
            f"{program} -c {shlex.quote(_ON_NODE)} {here} {shlex.quote(str(data.absolute()))} 2> {here}/error\n"
        )
        asked = replace(cluster, runs_per_job=1, timeout_min=5, signal_delay_s=20)
        script = sbatch.write_script(folder, asked, name, command)
        job = jobs.ask("sbatch", "--parsable", "--chdir=/", str(script)).strip().partition(";")[0]
        try:
            began, state = time.monotonic(), _wait(folder, name, f"{job}_0")
            yield _answer(folder, state, time.monotonic() - began, store)
        finally:
            with contextlib.suppress(SlurmError):  # it has ended
                jobs.ask("scancel", job)
        if (folder / "answer.json").exists():
            yield from _given(read_json(folder / "answer.json", "Try again."), cluster, data)


def _given(answer: dict[str, Any], cluster: Cluster, data: Path) -> Iterator[Fact]:
    """What a job had on its node, beside what it asked for."""
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


def _wait(folder: Path, name: str, job: str) -> jobs.JobState:
    """Wait until the job's answer is there, or it is clear that none will come; the job's last state."""
    end, state = time.monotonic() + JOB_SECONDS, jobs.JobState("PENDING")
    while time.monotonic() < end and "answer.json" not in os.listdir(folder):  # listing has a network file system look
        time.sleep(1.0)
        state = jobs.queue([name]).get(job, jobs.JobState(jobs.GONE))
        if not state.live:
            end = min(end, time.monotonic() + (2.0 if "began" in os.listdir(folder) else LATE_SECONDS))
    return state


def _answer(folder: Path, state: jobs.JobState, seconds: float, store: Path) -> Fact:
    there = os.listdir(folder)
    told = f"{state.state} {state.reason}".strip()
    if "answer.json" in there:
        facts = read_json(folder / "answer.json", "Try again.")
        text = (
            f"a job on node {facts['node']} wrote into the store and imported torch {facts['torch']} ({seconds:.0f} s)"
        )
        return Fact("ok", text)
    if "began" in there and not state.live:
        lines = (folder / "error").read_text(errors="replace").strip().splitlines() if "error" in there else []
        text = f"a compute node sees the store, but this Python does not work there: {lines[-1] if lines else told}"
        return Fact("problem", text, "install the environment where all nodes see it")
    if state.state in ("PENDING", "CONFIGURING"):
        text = f"a test job did not start within {JOB_SECONDS:.0f} s ({told}): visibility is unknown"
        return Fact("warning", text, "try again, or name an idle partition in slurm.partition")
    text = f"--store {store}: what a job writes there is not seen here (job: {told})"
    return Fact("problem", text, "name a store on a file system that all nodes share")


# ---------------------------------------------------------------------------------------------------------- the command


def main(arguments: Sequence[str] | None = None) -> int:
    """Print all facts as they are found."""
    parser = argparse.ArgumentParser(prog="python -m bench.doctor", description=__doc__)
    cli.add_bindings(parser, required=False)
    parser.add_argument("--store", type=Path, default=Path("runs"), help="where stages are to be kept (default: runs)")
    cli.add_data(parser)
    parser.add_argument("--quick", action="store_true", help="run no test job on the cluster")
    given = parser.parse_args(arguments)
    baselines.register()
    cluster, data = _cluster(given), cli.data_root(given)
    problems = _tell("this computer", (facts.packages(), facts.devices()))
    disks = facts.disk("--store", given.store), facts.disk("--data", data), facts.file_system(given.store)
    problems += _tell("disks", disks)
    if shutil.which("sbatch") is None:
        print("cluster:\n  none: there is no sbatch on the PATH, as there is on a cluster's login node")
    else:
        folders = {"--store": given.store, "--data": data}
        test = () if given.quick else (test_job(given.store, data, cluster),)
        problems += _tell("cluster", (settings(cluster.partition), accepted(cluster, folders), *test))
    print(f"\n{problems} {'problem' if problems == 1 else 'problems'}")
    return 1 if problems else 0


def _cluster(given: argparse.Namespace) -> Cluster:
    """What the gin files that are named ask of a cluster."""
    if not given.gin and not given.set:
        return Cluster()  # without importing what may be broken here
    from bench.planning.load import load_bindings, load_cluster

    return load_cluster(load_bindings(given.gin, given.set))


def _tell(title: str, found: Iterable[Iterator[Fact]]) -> int:
    """Print facts as they are found; returns how many are problems. What Slurm does not answer is one, and the last."""
    problems = 0
    print(f"{title}:")
    try:
        for fact in itertools.chain.from_iterable(found):
            problems += fact.verdict == "problem"
            print(f"  {fact.verdict:8}{fact.text}", flush=True)
            if fact.verdict != "ok":
                print(f"  {'':8}fix: {fact.fix}", flush=True)
    except SlurmError as error:
        problems += 1
        print(f"  {'problem':8}{error}", flush=True)
    return problems


if __name__ == "__main__":
    sys.exit(cli.reporting_errors(main))
