"""Asking Slurm: its commands, its configuration, and how its jobs stand."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass

from bench.errors import InputError

CLOCK_SECONDS = 300.0
"""By how much the controller's clock may be behind ours."""


LIVE = frozenset(
    (
        *("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING"),
        *("STAGE_OUT", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"),
    )
)
"""Slurm's words for a job that is still to run, or running."""


GONE = "GONE"
"""Our word for a job of which Slurm knows nothing (any more): ended some time ago, or lost."""


class SlurmError(InputError):
    """A program of Slurm could not be asked, or refused: holds its own words."""


@dataclass(frozen=True)
class JobState:
    """What Slurm says of one job or array element: its word for the state and the reason, and the job's name.

    `start` is when it started or is expected to, in seconds since 1970, None where Slurm does not know.
    """

    state: str
    reason: str = ""
    start: float | None = None
    name: str = ""

    @property
    def live(self) -> bool:
        """Whether it is still to run or running."""
        return self.state in LIVE and self.reason != "DependencyNeverSatisfied"


def environment() -> dict[str, str]:
    """Our environment without what a surrounding job, or a person's habits, would slip into Slurm's programs.

    SLURM_CONF stays: without it they would talk to another cluster.
    """
    prefixes = ("SLURM_", "SBATCH_", "SRUN_", "SALLOC_", "SQUEUE_", "SACCT_", "SINFO_", "SCANCEL_", "SCONTROL_", "PMI")
    kept = {"SLURM_CONF", "SLURM_TIME_FORMAT"}
    return {name: value for name, value in os.environ.items() if name in kept or not name.startswith(prefixes)}


def ask(*command: str, seconds: float = 120.0) -> str:
    """What a program of Slurm prints; raises SlurmError with its own words where it fails or takes too long."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            env={**environment(), "SLURM_TIME_FORMAT": "%s"},
            check=False,
        )
    except FileNotFoundError as error:
        raise SlurmError(f"there is no program {command[0]} on the PATH: is this a login node of a cluster?") from error
    except subprocess.TimeoutExpired as error:
        raise SlurmError(f"{command[0]} did not answer within {seconds:.0f} s. Try again later.") from error
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").replace("\n", "\n  ")
        raise SlurmError(f"{' '.join(command[:2])[:80]} failed: {said}")
    return done.stdout


def configuration() -> dict[str, str]:
    """The settings of the cluster, as its controller tells them."""
    return pairs(ask("scontrol", "show", "config"), "\n")


def pairs(text: str, between: str) -> dict[str, str]:
    """What scontrol prints as 'name = value' or 'name=value'."""
    split = (part.partition("=") for part in text.split(between))
    return {name.strip(): value.strip() for name, equals, value in split if equals}


def queue(names: Iterable[str]) -> dict[str, JobState]:
    """The state of every job and array element with one of these names, by id: '123' or '123_4'.

    Asks squeue once, and sacct for what squeue has forgotten; without accounting, what ended some minutes ago is not
    there. Raises SlurmError where squeue cannot be asked: then nothing is known, which is not the same as nothing runs.
    """
    wanted = {name: _noted(name) for name in names}
    if not wanted:
        return {}
    listed = ",".join(wanted)
    by_name = [f"--name={listed}"] if len(listed) < 100_000 else []  # an argument's limit is 128 KiB
    found = _finished(wanted, by_name)
    found.update(
        _lines(ask("squeue", "--noheader", "--array", "--states=all", "--format=%i|%j|%T|%V|%S|%r", *by_name), wanted)
    )
    return found


def _finished(wanted: dict[str, float], by_name: list[str]) -> dict[str, JobState]:
    since = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(min(wanted.values()) - CLOCK_SECONDS))
    fields = "--format=JobID,JobName,State,Submit,Start"
    options = ["--noheader", "--parsable2", "--allocations", "--allusers", f"--starttime={since}", fields]
    try:
        told = _lines(ask("sacct", *options, *by_name), wanted)
    except SlurmError:  # no accounting on this cluster, or none to be reached now
        return {}
    # A job that only the accounting calls running is one of whose end it never heard.
    return {element: state for element, state in told.items() if state.state not in LIVE}


def _lines(text: str, wanted: dict[str, float]) -> dict[str, JobState]:
    """States by id from lines of id, name, state, submit time, start time and reason, with '|' between them."""
    found = {}
    for line in text.splitlines():
        fields = line.strip().split("|", 5)
        if len(fields) < 5 or fields[1] not in wanted:
            continue
        submitted = _seconds(fields[3])
        if submitted is not None and submitted < wanted[fields[1]] - CLOCK_SECONDS:
            continue
        word, _, rest = fields[2].partition(" ")  # sacct says 'CANCELLED by 1000'
        reason = fields[5] if len(fields) > 5 and fields[5] != "None" else rest
        state = JobState(word.rstrip("+"), reason, _seconds(fields[4]), fields[1])
        found.update(dict.fromkeys(_elements(fields[0]), state))
    return found


def _elements(job: str) -> list[str]:
    """The ids that one line stands for: sacct writes elements that never started as '123_[0-4,7%256]'."""
    array, bracket, rest = job.partition("_[")
    if not bracket:
        return [job]
    found = []
    for part in rest.rstrip("]").partition("%")[0].split(","):
        first, _, last = part.partition("-")
        if first.isdigit() and (last or first).isdigit():
            found += [f"{array}_{index}" for index in range(int(first), int(last or first) + 1)]
    return found


def _seconds(text: str) -> float | None:
    if text.isdigit():
        return float(text)
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:  # N/A, Unknown, None
        return None


def _noted(name: str) -> float:
    """When the submission of this name was noted: its token begins with that."""
    try:
        return float(int(name.rpartition("-")[2][:8], 16))
    except ValueError:
        return 0.0
