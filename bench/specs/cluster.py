"""What a grid asks of a cluster: the settings `slurm.…` of gin files."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bench.errors import SpecError
from bench.specs import Spec

CHECKPOINT_SECONDS = 60
"""What writing a checkpoint may take at most, for the limits that are refused."""
LEAST_DELAY_SECONDS = 20
"""The shortest `signal_delay_s`: half of it is kept for ending the workers and for Slurm."""
START_SECONDS = 30
"""What a job takes before its first step."""
MOST = 10**6
"""No cluster has more of anything, and no job more minutes."""
SIGNALS = ("USR2", "USR1")
"""Signals that mean nothing else to a worker; NCCL has a use of its own for USR1."""
OURS = {
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "constraint": "constraint",
    "cpus-per-task": "cpus",
    "gpus": "gpus",
    "gpus-per-socket": "gpus",
    "gpus-per-task": "gpus",
    "gpus-per-node": "gpus",
    "mem": "mem_gb",
    "time": "timeout_min",
    "signal": "signal and slurm.signal_delay_s",
}
"""sbatch options that have a setting of their own."""
FIXED = frozenset(
    (
        *("array", "chdir", "dependency", "error", "export", "hold", "job-name", "kill-on-invalid-dep", "no-requeue"),
        *("nodes", "ntasks", "ntasks-per-node", "open-mode", "output", "parsable", "requeue", "test-only", "wait"),
        *("wckey", "wrap"),
    )
)
"""sbatch options on which restarting, dependencies or logs rest."""


def stage_kind(stage_name: str) -> str:
    """Return the kind of a stage, under which gin files set what its jobs ask for.

    It is the name without the number of a round: self_distill_2 is of the kind self_distill.
    """
    return re.sub(r"_\d+$", "", stage_name)


@dataclass(frozen=True)
class Cluster(Spec):
    """What `slurm.…` sets: what every job of a grid asks for.

    `KIND/slurm.…` sets it for the jobs of one kind of stage. None of it changes a result. `cpus` and `mem_gb` are for
    one stage; `gpus` for one job, whose `runs_per_job` stages share them. A job that reaches `timeout_min` goes on in
    another: `signal_delay_s` before, `signal` tells it to checkpoint. `give_up_after` attempts in a row without a
    further step end the retries. `extra` are sbatch options ('name=value', or 'name'), `setup` lines of shell to run
    before Python. A value of None leaves the choice to the cluster.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    cpus: int = 1
    gpus: int = 0
    mem_gb: float | None = None
    timeout_min: int = 60
    signal: str = "USR2"
    signal_delay_s: int = 120
    runs_per_job: int = 1
    array_parallelism: int = 256
    give_up_after: int = 3
    extra: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()

    def check(self) -> None:
        for name in ("cpus", "timeout_min", "runs_per_job", "array_parallelism", "give_up_after"):
            self.require(name, 1 <= getattr(self, name) <= MOST, "at least 1, at most a million")
        self.require("gpus", 0 <= self.gpus <= MOST, "0 or more, at most a million")
        self.require("mem_gb", self.mem_gb is None or 0 < self.mem_gb < 1e6, "above 0, or None for the default")
        for name in ("partition", "account", "qos", "constraint"):
            value = getattr(self, name)
            self.require(name, value is None or value.strip() != "", "a name, or None for the cluster's default")
        self.require("signal", self.signal in SIGNALS, f"one of {', '.join(SIGNALS)}")
        self.require(
            "signal_delay_s", self.signal_delay_s >= LEAST_DELAY_SECONDS, f"at least {LEAST_DELAY_SECONDS} seconds"
        )
        needed = self.signal_delay_s + CHECKPOINT_SECONDS + START_SECONDS
        if self.timeout_min * 60 <= needed:
            raise SpecError(
                "timeout_min",
                f"slurm.timeout_min = {self.timeout_min}: must be above {needed / 60:g} minutes: slurm.signal_delay_s "
                f"({self.signal_delay_s} s), {CHECKPOINT_SECONDS} s for a checkpoint and {START_SECONDS} s to start. "
                "Raise it, or lower the delay.",
            )
        for option in self.extra:
            self._check_option(option)

    def _check_option(self, option: str) -> None:
        name = option.partition("=")[0].strip()
        if name != name.lstrip("-") or not name.replace("-", "").isalnum():
            raise SpecError("extra", f"slurm.extra: '{option}' must read 'name=value' or 'name', as in 'exclude=n7'.")
        if name in OURS:
            raise SpecError("extra", f"slurm.extra: '{option}' has a setting of its own: slurm.{OURS[name]}.")
        if name in FIXED:
            raise SpecError("extra", f"slurm.extra: '{option}' cannot be set: restarting and dependencies rest on it.")

    def serves(self, other: Cluster) -> bool:
        """Tell whether a job of these settings can run a stage that asks for others.

        It can where a stage gets as many cores, as much memory and as great a share of a GPU here.
        """
        memory, needed = self.mem_gb, other.mem_gb
        return (
            self.cpus >= other.cpus
            and (memory == needed or (memory is not None and needed is not None and memory >= needed))
            and self.gpus * other.runs_per_job >= other.gpus * self.runs_per_job
            and bool(self.gpus) == bool(other.gpus)
            and self.constraint == other.constraint
        )

    @property
    def options(self) -> dict[str, str | bool]:
        """The options of `extra` by name; True for those without a value."""
        pairs = (option.partition("=") for option in self.extra)
        return {name.strip(): value if equals else True for name, equals, value in pairs}
