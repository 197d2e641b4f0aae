"""What a cluster would refuse or never start, found before anything is written: sizes, limits, disks, sbatch's word."""

from __future__ import annotations

import getpass
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

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
    warnings += _shared(folders, {node.host for node in every_node})
    # Last what only Slurm itself can tell, such as an account that does not exist. It also refuses for what can pass:
    # no node is free, or those that would do are down. Then jobs wait, so that this is a warning.
    with tempfile.TemporaryDirectory(prefix="bench-slurm-") as folder:
        script = sbatch.write_script(Path(folder), cluster, "bench-test", "true")
        try:
            client.ask("sbatch", "--test-only", str(script))
        except SlurmError as error:
            missing = any(re.match("down|drain|fail|maint|reserved|unk", node.state) for node in nodes)
            busy = re.search(r"(busy|down)\b", str(error)) or (missing and "not available" in str(error))
            if not busy:  # that can pass; all else would not
                raise
            warnings.append(f"no node can run such a job at present; the jobs will wait: {error}")
    return warnings


def _check_size(cluster: Cluster, names: str, nodes: Sequence[Node], longest: float) -> Iterator[str]:
    """Refuse what no node has.

    Yields warnings of what a job would hold and not use. sbatch would refuse it, too, but only says that the
    configuration is not available, whichever setting is at fault.
    """
    packed = f"slurm.runs_per_job = {cluster.runs_per_job}"
    cpus, memory = cluster.cpus * cluster.runs_per_job, (cluster.mem_gb or 0) * cluster.runs_per_job
    for settings, needed, unit, available in (
        (f"slurm.gpus = {cluster.gpus}", cluster.gpus, "GPUs", [node.gpus for node in nodes]),
        (f"slurm.cpus = {cluster.cpus}, {packed}", cpus, "CPUs", [node.cpus for node in nodes]),
        (f"slurm.mem_gb = {cluster.mem_gb}, {packed}", memory, "GB", [node.memory_mb / 1024 for node in nodes]),
    ):
        most = max(available, default=0)
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
        yield f"slurm.gpus = {cluster.gpus}, {packed}: a stage uses one GPU, so that {idle} of each job stay idle"


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

    One number for every limit that the account and the QOS have; none without a limit. Elements of arrays count as
    jobs.
    """
    if not re.search("limits|qos|safe", config.get("AccountingStorageEnforce", "")):
        return []
    # Limits stand in two tables: in the user's associations, of which that of a partition adds to the one for all, and
    # in the QOS that jobs get: the one asked for, else an association's default, else 'normal'.
    user = getpass.getuser()
    try:
        account = cluster.account or _accounts("user", f"name={user}", "DefaultAccount")[0][0]
        where = [f"user={user}", f"account={account}", f"cluster={config.get('ClusterName', '')}"]
        rows = _accounts("assoc", *where, "Partition,DefaultQOS,MaxSubmit,GrpSubmit")
        partition_names = {"", *(cluster.partition or "").split(",")}
        mine = [row for row in rows if row[0] in partition_names]
        qos = {cluster.qos or row[1] or "normal" for row in mine}
        limits = [text for row in mine for text in row[2:]]
        for row in _accounts("qos", "Name,MaxSubmitPU,MaxSubmitPA,GrpSubmit"):
            limits += row[1:] if row[0] in qos else []
    except (SlurmError, IndexError):  # no accounting, or nothing there about this user
        return []
    return [int(text) for text in limits if text.isdigit()]


def _accounts(what: str, *where: str) -> list[list[str]]:
    """Read rows of the accounting's own tables.

    The last argument names the columns.
    """
    answer = client.ask("sacctmgr", "--noheader", "--parsable2", "show", what, *where[:-1], f"format={where[-1]}")
    return [line.split("|") for line in answer.splitlines()]
