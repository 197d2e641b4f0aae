"""What a cluster would refuse or never start, found before anything is written: sizes, limits, disks, sbatch's word."""

from __future__ import annotations

import platform
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.errors import InputError, nearest
from bench.launch import jobs, sbatch
from bench.launch.cluster import Cluster
from bench.launch.jobs import SlurmError

MEMORY_FILE_SYSTEMS = frozenset(("tmpfs", "ramfs", "devtmpfs"))
LOCAL_FILE_SYSTEMS = frozenset(("ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "overlay"))


@dataclass(frozen=True)
class _Node:
    partition: str
    is_default: bool
    gpus: int
    max_seconds: float
    cpus: int
    memory_mb: int
    host: str


def check(cluster: Cluster, threads: int, folders: Mapping[str, Path]) -> list[str]:
    """Refuse what this cluster would refuse, or never start, before anything is written; returns warnings.

    `folders` are those that every node must see, by the argument that named them.
    """
    for program in ("sbatch", "squeue", "scontrol", "sinfo", "scancel", "srun"):
        if shutil.which(program) is None:
            raise InputError(
                f"--launcher slurm: there is no {program} on the PATH. Run on a login node of a cluster, load its "
                "module for Slurm, or use --launcher local."
            )
    if cluster.cpus < threads:
        raise InputError(f"slurm.cpus = {cluster.cpus}: every stage runs grid.threads = {threads} threads. Raise it.")
    nodes = _nodes()
    _check_size(cluster, _partition(cluster, nodes))
    warnings = list(_shared(folders, {node.host for node in nodes}))
    with tempfile.TemporaryDirectory(prefix="bench-slurm-") as folder:
        script = sbatch.write_script(Path(folder), cluster, "bench-test", "true")
        try:
            jobs.ask("sbatch", "--test-only", str(script))
        except SlurmError as error:
            if not re.search(r"(not available|busy|down)\b", str(error)):  # that can pass; all else would not
                raise
            warnings.append(f"no node can run such a job at present; the jobs will wait: {error}")
    return warnings


def _nodes() -> list[_Node]:
    found = []
    for line in jobs.ask("sinfo", "--noheader", "--format=%P|%G|%l|%c|%m|%n").splitlines():
        partition, gres, limit, cpus, memory, host = line.strip().split("|")
        gpus = sum(int(count) for count in re.findall(r"\bgpu(?::[^:,()]+)?:(\d+)", gres))
        found.append(
            _Node(
                partition.rstrip("*"),
                partition.endswith("*"),
                gpus,
                _limit_seconds(limit),
                int(cpus.rstrip("+")),
                int(memory.rstrip("+")),
                host,
            )
        )
    return found


def _limit_seconds(text: str) -> float:
    """Slurm's [days-][[hours:]minutes:]seconds; endless for 'infinite'."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(?:(\d+):)?(\d+):)?(\d+)", text)
    if match is None:
        return float("inf")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _partition(cluster: Cluster, nodes: Sequence[_Node]) -> list[_Node]:
    """The nodes of the partition that is asked for."""
    names = {node.partition for node in nodes}
    if cluster.partition is None:
        chosen = [node for node in nodes if node.is_default]
        if not chosen:
            raise InputError(f"slurm.partition = None: this cluster has no default partition.{nearest('', names)}")
        return chosen
    for name in cluster.partition.split(","):
        if name not in names:
            raise InputError(
                f"slurm.partition = '{cluster.partition}': this cluster has no such partition.{nearest(name, names)}"
            )
    return [node for node in nodes if node.partition in cluster.partition.split(",")]


def _check_size(cluster: Cluster, nodes: Sequence[_Node]) -> None:
    where = f"the partition {cluster.partition or nodes[0].partition}"
    most = max(node.gpus for node in nodes)
    if cluster.gpus > most:
        raise InputError(f"slurm.gpus = {cluster.gpus}: no node of {where} has more than {most}. Lower it.")
    cpus, most = cluster.cpus * cluster.runs_per_job, max(node.cpus for node in nodes)
    if cpus > most:
        raise InputError(
            f"slurm.cpus = {cluster.cpus}, slurm.runs_per_job = {cluster.runs_per_job}: a job would need {cpus} CPUs, "
            f"and no node of {where} has more than {most}. Lower one of them."
        )
    memory, most = (cluster.mem_gb or 0) * cluster.runs_per_job * 1024, max(node.memory_mb for node in nodes)
    if memory > most:
        raise InputError(
            f"slurm.mem_gb = {cluster.mem_gb}, slurm.runs_per_job = {cluster.runs_per_job}: a job would need "
            f"{memory / 1024:g} GB, and no node of {where} has more than {most / 1024:.1f}. Lower one of them."
        )
    longest = max(node.max_seconds for node in nodes)
    if cluster.timeout_min * 60 > longest:
        raise InputError(
            f"slurm.timeout_min = {cluster.timeout_min}: {where} allows {longest / 60:g} minutes at most. A job that "
            "reaches the limit goes on in another one, so a lower value costs little."
        )


def _shared(folders: Mapping[str, Path], hosts: set[str]) -> Iterator[str]:
    """Warnings of folders that other machines may not see; refuses those that they certainly do not."""
    for argument, folder in folders.items():
        if "%" in str(folder.absolute()):
            raise InputError(f"{argument} {folder}: Slurm reads '%' in paths in its own way. Name a folder without it.")
    if {host.partition(".")[0] for host in hosts} == {platform.node().partition(".")[0]}:
        return
    for argument, folder in folders.items():
        kind = _file_system(folder)
        if kind in MEMORY_FILE_SYSTEMS:
            raise InputError(
                f"{argument} {folder}: lies in this machine's memory ({kind}), which the cluster's nodes do not see. "
                "Name a folder on a file system that all of them share."
            )
        if kind in LOCAL_FILE_SYSTEMS:
            yield f"{argument} {folder}: is on a local disk ({kind}): jobs fail on nodes that do not see it there"


def _file_system(folder: Path) -> str:
    """The type of the file system that a folder is or would be on; '' where that cannot be told."""
    try:
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    place, best, kind = folder.absolute().resolve(), -1, ""
    for line in lines:
        _, mounted, of_kind, *_ = line.split(" ")
        point = Path(mounted.replace("\\040", " "))
        if place.is_relative_to(point) and len(point.parts) >= best:  # a later mount covers an earlier one
            best, kind = len(point.parts), of_kind
    return kind


def max_array_size() -> int:
    """How many elements an array may have: Slurm's MaxArraySize, which is one more than the highest index."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", jobs.ask("scontrol", "show", "config"), re.MULTILINE)
    return max(1, int(found.group(1))) if found else 1001
