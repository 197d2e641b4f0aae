"""The ledger of what was handed to Slurm, and what Slurm says about it.

    STORE/.slurm/
        submissions/68f1c2d09b7e4a51.json    one sbatch call, written before it, completed with the job's id after it
        log/68f1c2d09b7e4a51/                what the supervisors of that call print
        submitting/000001.json               who is submitting to this store: one at a time

The token that names these files ends the job's name, too. So a job whose id was never noted is found again, and a job
that merely has an id of ours (ids begin anew when a cluster is set up again) is not taken for ours.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.errors import DamagedStore, InputError
from bench.store.files import create_json, read_json, write_json
from bench.store.ownership import Attempt, beating, this_process

FOLDER = ".slurm"
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
UNSUBMITTED = "UNSUBMITTED"
"""Our word for a submission that was noted but that Slurm never got."""


class SlurmError(InputError):
    """A program of Slurm could not be asked, or refused: holds its own words."""


@dataclass(frozen=True)
class Submission:
    """One sbatch call: `tasks[i]` are the folder names of the stages of array element i; none for the tables' job.

    `source` is what of the command line says which grid it was; `job_id` is None from before the call until the id is
    noted; `time` in seconds since 1970.
    """

    token: str
    grid: str
    name: str
    job_id: str | None
    tasks: tuple[tuple[str, ...], ...]
    time: float
    source: str

    def element(self, index: int) -> str | None:
        """The id of an array element as Slurm writes it ('123_4'); None while the job's id is unknown."""
        return None if self.job_id is None else f"{self.job_id}_{index}"


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


# ------------------------------------------------------------------------------------------------------ the ledger


def folder(store_root: Path) -> Path:
    """Where everything about Slurm lies in a store."""
    return store_root / FOLDER


def log_folder(store_root: Path, token: str) -> Path:
    """Where the supervisors of a submission print to."""
    return folder(store_root) / "log" / token


def note(store_root: Path, grid: str, source: str, tasks: Sequence[Sequence[str]]) -> Submission:
    """Write down a submission that is about to be made."""
    now = time.time()
    token = f"{int(now):08x}{secrets.token_hex(4)}"
    stages = tuple(tuple(task) for task in tasks)
    made = Submission(token, grid, f"bench-{grid}-{token}", None, stages, round(now, 3), source)
    create_json(_path(store_root, token), _facts(made))
    return made


def complete(store_root: Path, made: Submission, job_id: str) -> Submission:
    """Note the id that Slurm gave a submission."""
    completed = replace(made, job_id=job_id)
    write_json(_path(store_root, made.token), _facts(completed))
    return completed


def forget(store_root: Path, made: Submission) -> None:
    """Remove a submission that Slurm refused."""
    _path(store_root, made.token).unlink(missing_ok=True)


def submissions(store_root: Path, grid: str | None = None) -> list[Submission]:
    """Every submission of a grid (None: of all grids) to this store, oldest first."""
    found = []
    for path in (folder(store_root) / "submissions").glob("[0-9a-f]*.json"):
        fix = f"Delete it to forget that submission, and scancel its job: that whose name ends with {path.stem}."
        try:
            data = read_json(path, fix)
        except DamagedStore:
            if path.exists():
                raise
            continue  # forgotten meanwhile
        try:
            tasks = tuple(tuple(map(str, task)) for task in data["tasks"])
            told = data["grid"], data["name"], data["job_id"]
            made = Submission(path.stem, *told, tasks, float(data["time"]), data["source"])
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedStore(f"{path}: damaged: not a submission ({error!r}). {fix}") from error
        if grid is None or made.grid == grid:
            found.append(made)
    return sorted(found, key=lambda one: one.time)


def identified(made: Iterable[Submission], queued: Mapping[str, JobState]) -> list[Submission]:
    """The submissions with the ids that the queue knows of those whose own was never noted."""
    ids = {state.name: element.partition("_")[0] for element, state in queued.items()}
    return [one if one.job_id is not None else replace(one, job_id=ids.get(one.name)) for one in made]


def element_state(made: Submission, index: int, queued: Mapping[str, JobState]) -> JobState:
    """The state of one array element; GONE or UNSUBMITTED, which tell nothing of its end, where Slurm knows nothing."""
    if made.job_id is None:
        return JobState(UNSUBMITTED, "Slurm never got it", name=made.name)
    state = queued.get(f"{made.job_id}_{index}")
    if state is None or state.name != made.name:
        return JobState(GONE, "Slurm does not know it any more", name=made.name)
    return state


@contextlib.contextmanager
def submitting(store_root: Path) -> Iterator[None]:
    """Be the only one that submits to this store meanwhile; waits for another that lives, not for one that died."""
    turns = folder(store_root) / "submitting"
    told = False
    while True:
        last = max(turns.glob("[0-9]*[0-9].json"), default=None)
        try:
            held = last is not None and Attempt(0, last, read_json(last, "Delete it."), None).alive
        except DamagedStore:
            if last is not None and last.exists():
                raise
            continue  # given back in between
        path = turns / f"{int(last.stem) + 1 if last else 1:06}.json"
        if not held and create_json(path, {"owner": this_process()}):
            break
        if held and not told:
            told = True
            print("waiting: another process is submitting to this store", flush=True)
        time.sleep(0.5)
    try:
        with beating(path):
            yield
    finally:
        path.unlink(missing_ok=True)


def _path(store_root: Path, token: str) -> Path:
    return folder(store_root) / "submissions" / f"{token}.json"


def _facts(made: Submission) -> dict[str, object]:
    facts = {name: value for name, value in dataclasses.asdict(made).items() if name != "token"}
    return {**facts, "tasks": made.tasks}


# ----------------------------------------------------------------------------------------------------- asking Slurm


def look(store_root: Path) -> tuple[list[Submission], dict[str, JobState]]:
    """The submissions of all grids to a store, and what Slurm says of them."""
    known = submissions(store_root)
    queued = queue([one.name for one in known])
    return identified(known, queued), queued


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
