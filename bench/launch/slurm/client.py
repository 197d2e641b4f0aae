"""Asking Slurm: its commands, its configuration, and how its jobs stand."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from bench.errors import InputError

CLOCK_SECONDS = 300.0
"""By how much the controller's clock may be behind ours."""
QUERY_SECONDS = 60.0
"""How long squeue and sacct may take to answer, each time."""
ARGUMENT_LENGTH = 100_000
"""The longest list of names or ids in one argument; the system's own limit is 128 KiB."""


SQUEUE_FIELDS = (
    "JobArrayID:64|,Name:256|,State:20|,SubmitTime:20|,StartTime:20|,Reason:160|,NodeList:80|,TimeUsed:20|,exit_code:10|,"
    "Comment:160"
)
"""The columns that `_lines` reads, each with its width and the sign after it."""
SACCT_FIELDS = "JobID,JobName,State,Submit,Start,Reason,NodeList,Elapsed,ExitCode,Comment"
COLUMNS = 10
NOTHING = frozenset(("None", "None assigned", "(null)", "N/A", "n/a"))
"""The programs' words for a column that is empty."""


LIVE = frozenset(
    (
        *("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING"),
        *("STAGE_OUT", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"),
    )
)
"""Slurm's words for a job that is still to run, or running."""


WAITING = frozenset(("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT"))
"""Of those, the words for a job that does not run."""


UNREACHABLE = (
    "contact|Unexpected message|onnection|timed out|did not answer|Zero Bytes|ommunication|standby|temporarily"
)
"""What Slurm's programs say where the controller could not be asked, which may pass."""


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
    to, in seconds since 1970, None where Slurm does not know. `node` is where it runs or ran, and `elapsed_s` for how
    long. `exit_code` is status and signal of what ended, as in '1:0'. `comment` is the job's own.
    """

    state: str
    reason: str = ""
    start: float | None = None
    name: str = ""
    node: str = ""
    exit_code: str = ""
    elapsed_s: float | None = None
    comment: str = ""

    @property
    def live(self) -> bool:
        """Whether it is still to run or running.

        A job whose dependency failed is pending for ever, and not live.
        """
        return self.state in LIVE and self.reason != "DependencyNeverSatisfied"

    @property
    def waiting(self) -> bool:
        """Whether it is to run, and does not yet."""
        return self.live and self.state in WAITING


def is_unreachable(error: object) -> bool:
    """Tell whether a program's words say that the controller could not be asked, and may be back soon."""
    return re.search(UNREACHABLE, str(error)) is not None


def is_full(error: object) -> bool:
    """Tell whether a program's words say that no more jobs may be queued until others have ended."""
    return re.search("(Max|Grp)SubmitJob", str(error)) is not None


def may_pass(error: object) -> bool:
    """Tell whether a refusal may pass: a full queue, a controller that is away, a partition that is closed."""
    return is_full(error) or is_unreachable(error) or "inactive or drain" in str(error)


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


def queue(names: Iterable[str], expected: Collection[str] | None = None) -> dict[str, JobState]:
    """Ask for every job and array element with one of these names.

    Returns their states by id: '123' or '123_4'. Asks squeue, then sacct for what has left the queue; without
    accounting, what ended some minutes ago is not there. `expected` are ids of jobs ('123') or elements ('123_4') that
    the caller wants to hear of: sacct is asked for those alone that squeue has forgotten, and not at all where it has
    forgotten none. With None, it is asked for all names. Raises SlurmError where squeue cannot be asked: then nothing
    is known, which is not the same as nothing runs.
    """
    noted = {name: _noted(name) for name in names}
    if not noted:
        return {}
    states: dict[str, JobState] = {}
    for listed in _arguments(noted):
        options = ["--noheader", "--array", "--states=all", f"--Format={SQUEUE_FIELDS}", f"--name={listed}"]
        states.update(_lines(ask("squeue", *options, seconds=QUERY_SECONDS), noted))
    # An element that both know was requeued, or has ended just now: squeue's word counts.
    return {**_finished(noted, None if expected is None else _forgotten(expected, states)), **states}


def _arguments(words: Iterable[str]) -> Iterator[str]:
    """Join words with commas, in as many arguments as their lengths need."""
    listed: list[str] = []
    length = 0
    for word in words:
        if listed and length + len(word) + 1 > ARGUMENT_LENGTH:
            yield ",".join(listed)
            listed, length = [], 0
        listed.append(word)
        length += len(word) + 1
    if listed:
        yield ",".join(listed)


def _forgotten(expected: Collection[str], states: Mapping[str, JobState]) -> list[str]:
    """List the ids of jobs of which squeue lacks something that is expected.

    Example: of the expected 7, 8_0 and 8_1, squeue lists 7_3 and 8_0. That is a part of 7, which is enough for a whole
    job, and not the element 8_1: 8 is to be asked for.
    """
    answered = states.keys() | {element.partition("_")[0] for element in states}
    return list(dict.fromkeys(job.partition("_")[0] for job in expected if job not in answered))


def _finished(noted: Mapping[str, float], jobs: Collection[str] | None) -> dict[str, JobState]:
    """Ask sacct for what has ended; nothing where there is no accounting.

    `jobs` are the ids to ask for; with None, everything that has one of the names.
    """
    since = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(min(noted.values()) - CLOCK_SECONDS))
    options = ["--noheader", "--parsable2", "--allocations", "--allusers", f"--starttime={since}"]
    option, words = ("--name", noted.keys()) if jobs is None else ("--jobs", jobs)
    states: dict[str, JobState] = {}
    try:
        for listed in _arguments(words):
            fields = f"--format={SACCT_FIELDS}"
            states.update(_lines(ask("sacct", *options, fields, f"{option}={listed}", seconds=QUERY_SECONDS), noted))
    except SlurmError:  # no accounting on this cluster, or none to be reached now
        return {}
    # A job that only the accounting calls running is one of whose end it never heard.
    return {element: state for element, state in states.items() if state.state not in LIVE}


def _lines(text: str, noted: Mapping[str, float]) -> dict[str, JobState]:
    """Read the lines of squeue and sacct; returns states by id.

    Both give the same columns; here are the first six, without the blanks that squeue adds:

        squeue   123_4|bench-cats-68f1c2d09b7e4a51|PENDING|1760674512|N/A|Dependency
        sacct    123_[5-6]|bench-cats-68f1c2d09b7e4a51|CANCELLED by 1000|1760674512|None|None

    The others are node, elapsed time, exit code and, last since it may hold any sign, the comment. `noted` are the
    names that are asked for, and when each was noted.
    """
    states = {}
    for line in text.splitlines():
        fields = [field.strip() for field in line.split("|", COLUMNS - 1)]
        if len(fields) < 5 or fields[1] not in noted:
            continue
        job, name, state, submitted_text, start, *others = fields
        submitted = _seconds(submitted_text)
        if submitted is not None and submitted < noted[name] - CLOCK_SECONDS:
            continue  # older than the submission: another job that had this name
        word, _, rest = state.partition(" ")  # sacct says 'CANCELLED by 1000'
        word = word.rstrip("+")
        others += [""] * (COLUMNS - len(fields))
        reason, node, elapsed, code, comment = ("" if text in NOTHING else text for text in others)
        exit_code = "" if word in LIVE else _exit_code(code)
        job_state = JobState(word, reason or rest, _seconds(start), name, node, exit_code, _duration(elapsed), comment)
        states.update(dict.fromkeys(_elements(job), job_state))
    return states


def _exit_code(text: str) -> str:
    """Return status and signal, as sacct has them: '1:0'.

    squeue gives both in one number, as the system does: 768 is 256 x 3, hence 3:0, and 9 is 0:9. Where there was a
    signal, nothing else counts.
    """
    if not text.isdigit():
        return text
    status, signal = int(text) >> 8, int(text) & 127
    return f"0:{signal}" if signal else f"{status}:0"


def limit_seconds(text: str) -> float:
    """Convert Slurm's [days-][[hours:]minutes:]seconds to seconds.

    Examples: 1-02:00:00 is 93600, 'UNLIMITED' is infinite.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(?:(?:(\d+):)?(\d+):)?(\d+)", text)
    if match is None:
        return float("inf")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _duration(text: str) -> float | None:
    """Convert an elapsed time to seconds; None where Slurm knows none."""
    seconds = limit_seconds(text)
    return None if seconds == float("inf") else seconds


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
