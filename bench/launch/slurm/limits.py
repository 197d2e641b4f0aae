"""What a cluster would refuse or never start, found before anything is written: sizes, limits, disks, sbatch's word."""

from __future__ import annotations

import getpass
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.errors import InputError, nearest
from bench.launch.slurm import client, sbatch
from bench.launch.slurm.client import SlurmError
from bench.specs.cluster import Cluster

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
    state: str


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
    mine = _partition(cluster, nodes)
    warnings = list(_check_size(cluster, mine))
    warnings += _shared(folders, {node.host for node in nodes})
    with tempfile.TemporaryDirectory(prefix="bench-slurm-") as folder:
        script = sbatch.write_script(Path(folder), cluster, "bench-test", "true")
        try:
            client.ask("sbatch", "--test-only", str(script))
        except SlurmError as error:
            missing = any(re.match("down|drain|fail|maint|reserved|unk", node.state) for node in mine)
            busy = re.search(r"(busy|down)\b", str(error)) or (missing and "not available" in str(error))
            if not busy:  # that can pass; all else would not
                raise
            warnings.append(f"no node can run such a job at present; the jobs will wait: {error}")
    return warnings


def _nodes() -> list[_Node]:
    found = []
    told = client.ask("sinfo", "--all", "--noheader", "--format=%P|%G|%l|%c|%m|%n|%T")
    for line in told.splitlines():
        partition, gres, limit, cpus, memory, host, state = line.strip().split("|")
        found.append(
            _Node(
                partition.rstrip("*"),
                partition.endswith("*"),
                _gpus(gres),
                _limit_seconds(limit),
                int(cpus.rstrip("+")),
                int(memory.rstrip("+")),
                host,
                state,
            )
        )
    return found


def _gpus(gres: str) -> int:
    """How many GPUs Slurm's words for generic resources name: gpu:2, gpu:a100:4(S:0-1),tmp:5."""
    kind = re.compile(r"(?:gres[:/])?gpu(?::(?P<type>[^:()]*[^:()\d][^:()]*))?(?::(?P<count>\d+))?(?:\(.*\))?")
    found = map(kind.fullmatch, re.split(r",(?![^(]*\))", gres))
    return sum(int(match["count"] or 1) for match in found if match)


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


def _check_size(cluster: Cluster, nodes: Sequence[_Node]) -> Iterator[str]:
    """Refuse what no node has; warnings of what a job would hold and not use."""
    where = f"the partition {cluster.partition or nodes[0].partition}"
    most = max(node.gpus for node in nodes)
    if cluster.gpus > most:
        raise InputError(f"slurm.gpus = {cluster.gpus}: no node of {where} has more than {most}. Lower it.")
    gres = str(cluster.options.get("gres", ""))
    if "gres" in cluster.options and _gpus(gres) != cluster.gpus:
        raise InputError(
            f"slurm.extra: 'gres={gres}' asks for {_gpus(gres)} GPUs, and slurm.gpus = {cluster.gpus} is what stages "
            "use. Make them equal."
        )
    if cluster.gpus > cluster.runs_per_job:
        yield (
            f"slurm.gpus = {cluster.gpus}, slurm.runs_per_job = {cluster.runs_per_job}: a stage uses one GPU, so that "
            f"{cluster.gpus - cluster.runs_per_job} of each job stay idle"
        )
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
        for sign in "%\\\n":
            if sign in str(folder.absolute()):
                raise InputError(
                    f"{argument} {folder}: Slurm reads {sign!r} in paths in its own way. Name a folder without it."
                )
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


def array_size(cluster: Cluster) -> int:
    """How many elements an array may have: MaxArraySize, one more than the highest index, or what accounting allows."""
    config = client.configuration()
    return max(1, min([int(config.get("MaxArraySize") or 1001), *_submit_limits(cluster, config)]))


def _submit_limits(cluster: Cluster, config: Mapping[str, str]) -> list[int]:
    """How many jobs, elements counted, this user's account and QOS let be queued at once; none without a limit."""
    if not re.search("limits|qos|safe", config.get("AccountingStorageEnforce", "")):
        return []
    user = getpass.getuser()
    try:
        account = cluster.account or _accounts("user", f"name={user}", "DefaultAccount")[0][0]
        where = [f"user={user}", f"account={account}", f"cluster={config.get('ClusterName', '')}"]
        rows = _accounts("assoc", *where, "Partition,DefaultQOS,MaxSubmit,GrpSubmit")
        wanted = {"", *(cluster.partition or "").split(",")}
        mine = [row for row in rows if row[0] in wanted]
        qos = {cluster.qos or row[1] or "normal" for row in mine}
        limits = [text for row in mine for text in row[2:]]
        for row in _accounts("qos", "Name,MaxSubmitPU,MaxSubmitPA,GrpSubmit"):
            limits += row[1:] if row[0] in qos else []
    except (SlurmError, IndexError):  # no accounting, or nothing there about this user
        return []
    return [int(text) for text in limits if text.isdigit()]


def _accounts(what: str, *where: str) -> list[list[str]]:
    """Rows of the accounting's own tables; the last argument names the columns."""
    told = client.ask("sacctmgr", "--noheader", "--parsable2", "show", what, *where[:-1], f"format={where[-1]}")
    return [line.split("|") for line in told.splitlines()]
