"""The development cluster as tests see it: its jobs, its nodes, and waiting for what happens there."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parents[2] / "slurm" / "dev_cluster.sh"


class DevCluster:
    """Two nodes of two CPUs; partitions `main`, `low` (preempted, after 20 s of grace) and `high` (preempts `low`)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.configuration = folder / "etc" / "slurm.conf"

    def control(self, *arguments: str, **settings: str) -> str:
        """Run the script's command, e.g. `control("node-kill", "n1")`."""
        command = ["bash", str(SCRIPT), *arguments, "--folder", str(self.folder)]
        environment = {**os.environ, **settings}
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert run.returncode == 0, f"{' '.join(arguments)}: {run.stdout}{run.stderr}"
        return run.stdout

    def ask(self, *command: str) -> str:
        """What a command of Slurm prints; fails where it fails."""
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert run.returncode == 0, f"{' '.join(command)}: {run.stderr}"
        return run.stdout.strip()

    def job(self, name: str) -> dict[str, str]:
        """What the controller knows of one job or array element ("12_3"); a state UNKNOWN where it knows none."""
        command = ["scontrol", "--oneliner", "show", "job", name]
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        return {"JobState": "UNKNOWN", **dict(re.findall(r"(\S+?)=(\S*)", run.stdout))}

    def preempt(self) -> str:
        """Submit a short job of higher priority that needs every node, so that all of `low` must go."""
        options = ["--parsable", "--partition=high", "--nodes=2", "--exclusive", "--time=1", "--output=/dev/null"]
        return self.ask("sbatch", *options, "--wrap", "sleep 1")

    def processes(self) -> dict[int, str]:
        """Processes of jobs, also those that left their job's process tree: pid -> command line."""
        name = re.search(r"^ClusterName=(\S+)", self.configuration.read_text(), re.MULTILINE)
        assert name is not None
        marker = f"SLURM_CLUSTER_NAME={name.group(1)}".encode()
        commands = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if marker in (folder / "environ").read_bytes().split(b"\0"):
                    commands[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
            except OSError:  # gone, or somebody else's
                continue
        return commands

    def empty(self) -> bool:
        """Whether no job is queued, running or completing."""
        return self.ask("squeue", "--noheader") == ""


SLOWEST = 4
"""How many times slower than the computer that the limits were chosen on another may be."""


PATIENCE = 400
"""Seconds; a computer may be busy with other tests, and what is waited for takes ten times less on an idle one."""


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> float:
    """Wait until it is true; returns the seconds it took, fails after SLOWEST times as many as given."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < SLOWEST * seconds, f"not within {SLOWEST * seconds:g} s"
        time.sleep(0.05)
    return time.monotonic() - began


@contextlib.contextmanager
def job_limit(slurm: DevCluster, jobs: int, of_account: bool = False) -> Iterator[None]:
    """Let this user, or all of the account together, have so many jobs in the queue meanwhile."""
    limited = ("account", "root") if of_account else ("user", getpass.getuser())
    name = "GrpSubmitJobs" if of_account else "MaxSubmitJobs"
    modify = ("sacctmgr", "--immediate", "modify", limited[0], "where", f"name={limited[1]}", "set")
    slurm.ask(*modify, f"{name}={jobs}")
    try:
        yield
    finally:
        subprocess.run(["scancel", "--me"], check=False)
        slurm.ask(*modify, f"{name}=-1")
