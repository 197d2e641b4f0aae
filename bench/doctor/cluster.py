"""What of a cluster's settings would cost work, and whether sbatch would take this suite's jobs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from bench.doctor.computer import Fact
from bench.errors import InputError
from bench.launch.slurm import client, partitions
from bench.launch.slurm.client import SlurmError
from bench.specs.cluster import Cluster


def settings(partition: str | None) -> Iterator[Fact]:
    """Report the settings of a Slurm cluster that matter for stopped jobs.

    Array sizes, limits, preemption, requeuing and accounting decide how jobs are stopped and go on.
    """
    config = client.configuration()
    yield Fact("ok", f"Slurm {config.get('SLURM_VERSION', '?')}")
    size = int(config.get("MaxArraySize", "0") or 0)
    small = Fact("warning", f"MaxArraySize {size}: large grids need many sbatch calls", "ask for a larger MaxArraySize")
    yield Fact("ok", f"MaxArraySize {size}; larger arrays are split") if size >= 100 else small
    for chosen in partitions.chosen(partition):
        yield _limits(chosen)
        yield from _preemption(chosen, config)
    delay = re.search(r"cred_expire=(\d+)", config.get("AuthInfo", ""))
    requeue = "by default" if config.get("JobRequeue") == "1" else "only where asked for, which bench.grid does"
    yield Fact("ok", f"jobs can be requeued {requeue}; they then wait {delay.group(1) if delay else 120} s")
    wait = int(re.sub(r"\D.*", "", config.get("KillWait", "")) or 0)
    short = Fact(
        "warning", f"KillWait {wait} s: little time for a checkpoint after SIGTERM", "lower grid.checkpoint_steps"
    )
    yield Fact("ok", f"KillWait {wait} s") if wait >= 20 else short
    yield _accounting(config)


def _limits(partition: dict[str, str]) -> Fact:
    name, state = partition["PartitionName"], partition.get("State", "?")
    longest, usual = partition.get("MaxTime", "?"), partition.get("DefaultTime", "NONE")
    verdict = "ok" if state == "UP" else "problem"
    fix = "name another in slurm.partition"
    return Fact(verdict, f"partition {name}: {state}, time limit at most {longest} (default {usual})", fix)


def _preemption(partition: dict[str, str], config: dict[str, str]) -> Iterator[Fact]:
    # Three questions: is anything preempted, does it come back, and is it told in time to write a checkpoint?
    kind, mode = config.get("PreemptType", "?"), partition.get("PreemptMode") or config.get("PreemptMode", "?")
    name, grace = partition["PartitionName"], partition.get("GraceTime", "0")
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
        client.ask("sacct", "--noheader", "--allocations", "--starttime=now-1minutes", "--format=JobID", seconds=30)
    except SlurmError as error:
        return Fact("warning", f"accounting is on, but does not answer: {error}", "ask the cluster's administrators")
    return Fact("ok", "accounting works (sacct)")


def accepted(cluster: Cluster, folders: Mapping[str, Path]) -> Iterator[Fact]:
    """Report whether this cluster takes jobs of these settings."""
    from bench.launch.slurm import limits  # needs submitit

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
