"""What a cluster would refuse or never start, found before anything is written: sizes, limits, disks, sbatch's word."""

from __future__ import annotations

import getpass
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.errors import InputError
from bench.launch.slurm import client, partitions, sbatch
from bench.launch.slurm.client import SlurmError
from bench.launch.slurm.partitions import Node
from bench.specs.cluster import Cluster

MEMORY_FILE_SYSTEMS = frozenset(("tmpfs", "ramfs", "devtmpfs"))
LOCAL_FILE_SYSTEMS = frozenset(("ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "overlay"))


def check(cluster: Cluster, threads: int, folders: Mapping[str, Path]) -> list[str]:
    """Refuse what this cluster would refuse, or never start; returns warnings.

    Nothing has been written by then. `folders` are those that every node must see, by the argument that named them.
    """
    for program in ("sbatch", "squeue", "scontrol", "sinfo", "scancel", "srun"):
        if shutil.which(program) is None:
            raise InputError(
                f"--launcher slurm: there is no {program} on the PATH. Run on a login node of a cluster, load its "
                "module for Slurm, or use --launcher local."
            )
    if cluster.cpus < threads:
        raise InputError(f"slurm.cpus = {cluster.cpus}: every stage runs grid.threads = {threads} threads. Raise it.")
    mine, every_node = partitions.chosen(cluster.partition), partitions.nodes()
    names = [settings["PartitionName"] for settings in mine]
    longest = max(client.limit_seconds(settings.get("MaxTime", "")) for settings in mine)
    nodes = [node for node in every_node if node.partition in names]
    warnings = list(_check_size(cluster, ",".join(names), nodes, longest))
    _check_accounting(cluster, mine)
    warnings += _shared(folders, {node.host for node in every_node})
    # Last what only Slurm itself can tell, such as an account that does not exist. It also refuses for what can pass:
    # no node is free, those that would do are down, or too many jobs are queued. So that is a warning.
    with tempfile.TemporaryDirectory(prefix="bench-slurm-") as folder:
        script = sbatch.write_script(Path(folder), cluster, "bench-test", "true")
        try:
            client.ask("sbatch", "--test-only", str(script))
        except SlurmError as error:
            missing = any(node.is_away for node in nodes)
            busy = re.search(r"(busy|down)\b", str(error)) or (missing and "not available" in str(error))
            if client.is_full(error):
                warnings.append(f"you may not queue more jobs at present: {error}")
            elif busy:
                warnings.append(f"no node can run such a job at present; the jobs will wait: {error}")
            else:
                raise
    return warnings


def _check_size(cluster: Cluster, names: str, nodes: Sequence[Node], longest: float) -> Iterator[str]:
    """Refuse what no node has.

    Yields warnings of what a job would hold and not use. sbatch would refuse it, too, but only says that the
    configuration is not available, whichever setting is at fault.
    """
    available: dict[str, list[float]] = {
        "gres/gpu": [node.gpus for node in nodes],
        "cpu": [node.cpus for node in nodes],
        "mem": [node.memory_mb / 1024 for node in nodes],
    }
    for resource, settings, needed, unit in _needs(cluster):
        most = max(available[resource], default=0)
        if needed > most:
            raise InputError(
                f"{settings}: a job would need {needed:g} {unit}, and no node of partition {names} has more than "
                f"{most:.4g}. Lower it."
            )
    if cluster.timeout_min * 60 > longest:
        raise InputError(
            f"slurm.timeout_min = {cluster.timeout_min}: partition {names} allows {longest / 60:g} minutes at most. "
            "A job that reaches the limit goes on in another one, so a lower value costs little."
        )
    gres = str(cluster.options.get("gres", ""))
    if "gres" in cluster.options and partitions.gpu_count(gres) != cluster.gpus:
        raise InputError(
            f"slurm.extra: 'gres={gres}' asks for {partitions.gpu_count(gres)} GPUs, and slurm.gpus = {cluster.gpus} "
            "is what stages use. Make them equal."
        )
    if cluster.gpus > cluster.runs_per_job:
        idle = cluster.gpus - cluster.runs_per_job
        yield (
            f"slurm.gpus = {cluster.gpus}, slurm.runs_per_job = {cluster.runs_per_job}: a stage uses one GPU, so that "
            f"{idle} of each job stay idle"
        )


class _Need(NamedTuple):
    """How much of a resource, in Slurm's word, one job would need, and which settings say so."""

    resource: str
    settings: str
    needed: float
    unit: str


def _needs(cluster: Cluster) -> list[_Need]:
    packed, count = f"slurm.runs_per_job = {cluster.runs_per_job}", cluster.runs_per_job
    return [
        _Need("gres/gpu", f"slurm.gpus = {cluster.gpus}", cluster.gpus, "GPUs"),
        _Need("cpu", f"slurm.cpus = {cluster.cpus}, {packed}", cluster.cpus * count, "CPUs"),
        _Need("mem", f"slurm.mem_gb = {cluster.mem_gb}, {packed}", (cluster.mem_gb or 0) * count, "GB"),
    ]


def _shared(folders: Mapping[str, Path], hosts: set[str]) -> Iterator[str]:
    """Refuse folders that other machines certainly do not see.

    Yields warnings of folders that they may not see.
    """
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
    """Return the type of a folder's present or future file system.

    Returns '' where that cannot be told. Example: with xfs mounted at / and nfs4 at /home, /home/ada/runs is on nfs4,
    for the longest mount point above it counts.
    """
    try:
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    location, longest, kind = folder.absolute().resolve(), -1, ""
    for line in lines:
        _, mounted, mounted_kind, *_ = line.split(" ")
        point = Path(mounted.replace("\\040", " "))
        if location.is_relative_to(point) and len(point.parts) >= longest:  # a later mount covers an earlier one
            longest, kind = len(point.parts), mounted_kind
    return kind


def array_size(cluster: Cluster) -> int:
    """Return how many elements an array may have.

    MaxArraySize, which is one more than the highest index, bounds it, and so may accounting.
    """
    config = client.configuration()
    return max(1, min([int(config.get("MaxArraySize") or 1001), *_submit_limits(cluster, config)]))


def _submit_limits(cluster: Cluster, config: Mapping[str, str]) -> list[int]:
    """Return how many jobs this user may have queued at once.

    One number for every limit of the account, the QOS and the partitions' own QOS; none without a limit. Elements of
    arrays count as jobs.
    """
    associations, every_qos = _tables(cluster, config)
    if not associations:
        return []
    partition_names = {"", *(cluster.partition or "").split(",")}
    mine = [row for row in associations if row["Partition"] in partition_names]
    limits = [row[column] for row in mine for column in ("MaxSubmit", "GrpSubmit")]
    of_partitions = {partition.get("QoS", "") for partition in partitions.chosen(cluster.partition)}
    for name in of_partitions | {cluster.qos or row["DefaultQOS"] or "normal" for row in mine}:
        qos = every_qos.get(name, {})
        limits += [qos.get(column, "") for column in ("MaxSubmitPU", "MaxSubmitPA", "GrpSubmit")]
    return [int(text) for text in limits if text.isdigit()]


JOB_LIMITS = "MaxWall,MaxTRES,MaxTRESPerNode,GrpTRES"
"""The limits on one job that associations and QOS have; those of Grp are on all jobs together."""


def _tables(cluster: Cluster, config: Mapping[str, str]) -> tuple[list[dict[str, str]], dict[str, dict[str, str]]]:
    """Read this user's associations in the account, and every QOS by name.

    Both hold limits. Of the user's associations, one for a partition takes the place of the one for all partitions. A
    job's QOS is the one asked for, else the association's default, else 'normal'. Returns nothing where the cluster
    does not enforce limits.
    """
    if not re.search("limits|qos|safe", config.get("AccountingStorageEnforce", "")):
        return [], {}
    user = getpass.getuser()
    try:
        account = cluster.account or _accounts("user", "DefaultAccount", f"name={user}")[0]["DefaultAccount"]
        where = [f"user={user}", f"account={account}", f"cluster={config.get('ClusterName', '')}"]
        associations = _accounts("assoc", f"Partition,DefaultQOS,MaxSubmit,GrpSubmit,{JOB_LIMITS}", *where)
        columns = f"Name,MaxSubmitPU,MaxSubmitPA,GrpSubmit,{JOB_LIMITS},MaxTRESPU,MaxTRESPA,Flags"
        every_qos = {row["Name"]: row for row in _accounts("qos", columns)}
    except (SlurmError, IndexError):  # no accounting, or nothing there about this user
        return [], {}
    source = {"source": f"the association of user {user} with account {account}"}
    return [row | source for row in associations], every_qos


def _check_accounting(cluster: Cluster, mine: Sequence[Mapping[str, str]]) -> None:
    """Refuse what the accounting's limits keep from ever starting.

    Slurm takes such jobs, and lets them wait. `mine` are the partitions: a job needs only one of them to start.
    """
    associations, every_qos = _tables(cluster, client.configuration())
    if not associations:
        return
    by_partition = {row["Partition"]: row for row in associations}
    refusals = []
    for partition in mine:
        association = by_partition.get(partition["PartitionName"]) or by_partition.get("", {"source": ""})
        # Of limits of one kind, the first that is set counts: a partition's own QOS, the job's QOS, the association.
        # Example: MaxWall is 10 minutes in the QOS and 5 in the association: jobs may ask for 10.
        names = [partition.get("QoS", ""), cluster.qos or association.get("DefaultQOS") or "normal"]
        if "OverPartQOS" in every_qos.get(names[1], {}).get("Flags", ""):
            names.reverse()
        sources = [every_qos[name] | {"source": f"QOS {name}"} for name in names if name in every_qos]
        refusals.append(next(_exceeded(cluster, [*sources, association]), None))
    if refusals and None not in refusals:
        raise InputError(refusals[0])


def _exceeded(cluster: Cluster, sources: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """Yield the limits that a job would exceed.

    `sources` come strongest first. Of a limit on one job the first source that sets it counts: hence `[:1]` below.
    """
    fix = "or name another slurm.qos or slurm.account."
    walls = [(source, client.limit_seconds(source["MaxWall"]) / 60) for source in sources if source.get("MaxWall")]
    for source, minutes in walls[:1]:
        if cluster.timeout_min > minutes:
            yield (
                f"slurm.timeout_min = {cluster.timeout_min}: {source['source']} allows {minutes:g} minutes at most "
                f"(MaxWall). A job that reaches the limit goes on in another one, so a lower value costs little: lower "
                f"it, {fix}"
            )
    for column in ("MaxTRES", "MaxTRESPerNode", "MaxTRESPU", "MaxTRESPA", "GrpTRES"):
        for resource, settings, needed, unit in _needs(cluster):
            amounts = ((source["source"], _amount(source.get(column, ""), resource)) for source in sources)
            limits = [(name, most) for name, most in amounts if most is not None]
            # Limits on all jobs together hold at every level, other than those on one job.
            for name, most in limits if column == "GrpTRES" else limits[:1]:
                if needed > most:
                    yield (
                        f"{settings}: a job would need {needed:g} {unit}, and {name} allows {most:g} "
                        f"({column} {resource}). Lower it, {fix}"
                    )


def _amount(text: str, resource: str) -> float | None:
    """Read how much of a resource a limit allows, memory in GB.

    None without a limit. Example: of 'cpu=4,gres/gpu=1,mem=2048M', the amount of 'mem' is 2.
    """
    limits = client.pairs(text.replace(",", "\n"), "\n")
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGTP]?)", limits.get(resource, ""))
    if match is None:
        return None
    amount, unit = float(match[1]), match[2]
    return amount * 1024.0 ** ("KMGTP".index(unit or "M") - 2) if resource == "mem" else amount


def _accounts(what: str, columns: str, *where: str) -> list[dict[str, str]]:
    """Read these columns of one of the accounting's own tables: each row by column."""
    answer = client.ask("sacctmgr", "--noheader", "--parsable2", "show", what, *where, f"format={columns}")
    return [dict(zip(columns.split(","), line.split("|"), strict=False)) for line in answer.splitlines()]


def room(cluster: Cluster) -> tuple[int, str]:
    """Return how many more jobs this user may have queued, at least 2, and a sentence on what limits them.

    The sentence is '' without a limit.
    """
    limits = _submit_limits(cluster, client.configuration())
    if not limits:
        return 10**9, ""
    queued = client.ask("squeue", f"--user={getpass.getuser()}", "--noheader", "--array", "--format=%i").split()
    left = min(limits) - len(queued)
    return max(2, left), f"you may queue {max(0, left)} more jobs here (limit {min(limits)}, queued {len(queued)})"
