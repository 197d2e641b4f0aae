"""The partitions and nodes of a cluster, as Slurm tells of them: one reader for all who ask."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

from bench.errors import nearest
from bench.launch.slurm import client
from bench.launch.slurm.client import SlurmError


class Node(NamedTuple):
    """What one node of a partition has; `state` is Slurm's word."""

    partition: str
    gpus: int
    cpus: int
    memory_mb: int
    host: str
    state: str

    @property
    def is_away(self) -> bool:
        """Whether no job starts here at present."""
        return re.match("down|drain|fail|maint|reserved|unk", self.state) is not None


def chosen(names: str | None) -> list[dict[str, str]]:
    """Read the settings of partitions ('main,long'), or of the default one.

    Refuses what is not there.
    """
    lines = client.ask("scontrol", "--all", "--oneliner", "show", "partition").splitlines()
    every = [settings for line in lines if "PartitionName" in (settings := client.pairs(line, " "))]
    by_name = {settings["PartitionName"]: settings for settings in every}
    if names is None:
        default = [settings for settings in every if settings.get("Default") == "YES"]
        if not default:
            raise SlurmError(f"slurm.partition = None: there is no default partition.{nearest('', by_name)}")
        return default
    for name in names.split(","):
        if name not in by_name:
            raise SlurmError(f"slurm.partition = '{names}': there is no partition '{name}'.{nearest(name, by_name)}")
    return [by_name[name] for name in names.split(",")]


def names(partition: str | None) -> list[str]:
    """Name the partitions that `chosen` reads."""
    return [settings["PartitionName"] for settings in chosen(partition)]


def nodes() -> list[Node]:
    """Read the nodes of every partition.

    A node that is in several partitions comes once for each.
    """
    lines = client.ask("sinfo", "--all", "--noheader", "--format=%P|%G|%c|%m|%n|%T").splitlines()
    fields = [line.strip().split("|") for line in lines]
    return [
        # The default partition has a star after its name, and a plus stands after the least of several numbers.
        Node(partition.rstrip("*"), gpu_count(gres), int(cpus.rstrip("+")), int(memory.rstrip("+")), host, state)
        for partition, gres, cpus, memory, host, state in fields
    ]


def has_others(names: Collection[str] | None, avoided: Collection[str]) -> bool:
    """Tell whether these partitions, or all, have a usable node that is not avoided."""
    return any(
        node.host not in avoided and not node.is_away for node in nodes() if names is None or node.partition in names
    )


def gpu_count(gres: str) -> int:
    """Count the GPUs that Slurm's words for generic resources name.

    Examples: gpu:2 are 2, gpu:a100:4(S:0-1),tmp:5 are 4.
    """
    kind = re.compile(r"(?:gres[:/])?gpu(?::(?P<type>[^:()]*[^:()\d][^:()]*))?(?::(?P<count>\d+))?(?:\(.*\))?")
    matches = map(kind.fullmatch, re.split(r",(?![^(]*\))", gres))
    return sum(int(match["count"] or 1) for match in matches if match)
