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
    """A program of Slurm refused, or could not be asked.

    The message has that program's own words.
    """


@dataclass(frozen=True)
class JobState:
    """What Slurm says of one job or array element.

    `state` and `reason` are its words for those, `name` is the job's name. `start` is when it started or is expected
    to, in seconds since 1970, None where Slurm does not know.
    """

    state: str
    reason: str = ""
    start: float | None = None
    name: str = ""

    @property
    def live(self) -> bool:
        """Whether it is still to run or running.

        A job whose dependency failed is pending for ever, and not live.
        """
        return self.state in LIVE and self.reason != "DependencyNeverSatisfied"


def environment() -> dict[str, str]:
    """Return our environment without what would change how Slurm's programs behave.

    A surrounding job or a person's habits would slip such variables in (SQUEUE_FORMAT, SBATCH_PARTITION). SLURM_CONF
    stays: without it the programs would talk to another cluster.
    """
    prefixes = ("SLURM_", "SBATCH_", "SRUN_", "SALLOC_", "SQUEUE_", "SACCT_", "SINFO_", "SCANCEL_", "SCONTROL_", "PMI")
    kept = {"SLURM_CONF", "SLURM_TIME_FORMAT"}
    return {name: value for name, value in os.environ.items() if name in kept or not name.startswith(prefixes)}


def ask(*command: str, seconds: float = 120.0) -> str:
    """Run a program of Slurm and return what it prints.

    Raises SlurmError with its own words where it fails or takes too long.
    """
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
    """Read the settings of the cluster, as its controller tells them."""
    return pairs(ask("scontrol", "show", "config"), "\n")


def pairs(text: str, between: str) -> dict[str, str]:
    """Read what scontrol prints as 'name = value' or 'name=value'."""
    split = (part.partition("=") for part in text.split(between))
    return {name.strip(): value.strip() for name, equals, value in split if equals}


def queue(names: Iterable[str]) -> dict[str, JobState]:
    """Ask for every job and array element with one of these names.

    Returns their states by id: '123' or '123_4'. Asks squeue once, and sacct for what squeue has forgotten; without
    accounting, what ended some minutes ago is not there. Raises SlurmError where squeue cannot be asked: then nothing
    is known, which is not the same as nothing runs.
    """
    noted = {name: _noted(name) for name in names}
    if not noted:
        return {}
    listed = ",".join(noted)
    by_name = [f"--name={listed}"] if len(listed) < 100_000 else []  # an argument's limit is 128 KiB
    # An element that both know was requeued, or has ended just now: squeue, which is asked second, has the newer word.
    states = _finished(noted, by_name)
    states.update(
        _lines(ask("squeue", "--noheader", "--array", "--states=all", "--format=%i|%j|%T|%V|%S|%r", *by_name), noted)
    )
    return states


def _finished(noted: dict[str, float], by_name: list[str]) -> dict[str, JobState]:
    """Ask sacct for what has ended; nothing where there is no accounting."""
    since = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(min(noted.values()) - CLOCK_SECONDS))
    fields = "--format=JobID,JobName,State,Submit,Start"
    options = ["--noheader", "--parsable2", "--allocations", "--allusers", f"--starttime={since}", fields]
    try:
        states = _lines(ask("sacct", *options, *by_name), noted)
    except SlurmError:  # no accounting on this cluster, or none to be reached now
        return {}
    # A job that only the accounting calls running is one of whose end it never heard.
    return {element: state for element, state in states.items() if state.state not in LIVE}


def _lines(text: str, noted: dict[str, float]) -> dict[str, JobState]:
    """Read the lines of squeue and sacct; returns states by id.

    A line has the fields id, name, state, submit time, start time and, from squeue alone, reason:

        squeue   123_4|bench-cats-68f1c2d09b7e4a51|PENDING|1760674512|N/A|Dependency
        sacct    123_[5-6]|bench-cats-68f1c2d09b7e4a51|CANCELLED by 1000|1760674512|None

    `noted` are the names that are asked for, and when each was noted.
    """
    states = {}
    for line in text.splitlines():
        fields = line.strip().split("|", 5)
        if len(fields) < 5 or fields[1] not in noted:
            continue
        submitted = _seconds(fields[3])
        if submitted is not None and submitted < noted[fields[1]] - CLOCK_SECONDS:
            continue  # older than the submission: another job that had this name
        word, _, rest = fields[2].partition(" ")  # sacct says 'CANCELLED by 1000'
        reason = fields[5] if len(fields) > 5 and fields[5] != "None" else rest
        state = JobState(word.rstrip("+"), reason, _seconds(fields[4]), fields[1])
        states.update(dict.fromkeys(_elements(fields[0]), state))
    return states


def _elements(job: str) -> list[str]:
    """List the ids that one line stands for.

    Both programs give a line to every element that has started, '123_4'. Those that never started may share one: sacct
    writes '123_[0-2,7%256]' for 123_0, 123_1, 123_2 and 123_7, of which 256 may run at once.
    """
    array, bracket, rest = job.partition("_[")
    if not bracket:
        return [job]
    elements = []
    for part in rest.rstrip("]").partition("%")[0].split(","):
        first, _, last = part.partition("-")
        if first.isdigit() and (last or first).isdigit():
            elements += [f"{array}_{index}" for index in range(int(first), int(last or first) + 1)]
    return elements


def _seconds(text: str) -> float | None:
    """Convert a time to seconds since 1970; None where Slurm knows none."""
    if text.isdigit():
        return float(text)
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:  # N/A, Unknown, None
        return None


def _noted(name: str) -> float:
    """Return when this name's submission was noted, in seconds since 1970.

    Its token begins with that number; a name without a token gives 0.
    """
    try:
        return float(int(name.rpartition("-")[2][:8], 16))
    except ValueError:
        return 0.0
