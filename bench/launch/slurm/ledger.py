"""The ledger of what was handed to Slurm, and what Slurm says about it.

    STORE/.slurm/
        submissions/68f1c2d09b7e4a51.json    one sbatch call, written before it, completed with the job's id after it
        log/68f1c2d09b7e4a51/                what the supervisors of that call print
        submitting/000001.json               who submitted to this store: one at a time; 000001.end.json once over

The token that names these files ends the job's name, too. So a job whose id was never noted is found again, and a job
that merely has an id of ours (ids begin anew when a cluster is set up again) is not taken for ours.

A submission is written in three steps, and the submitter may be killed after each of them:

    1. note()        token.json with "job_id": null     killed here: Slurm has no job of that name, so that the stages
                                                        count as not submitted, and the next command submits them
    2. sbatch        the job is in the queue            killed here: the job is found by its name in the queue, and the
                                                        next command completes the file
    3. complete()    token.json with "job_id": "123"    killed here: nothing is lost
       or forget()   no file, if sbatch refused         killed before: as after 1

The token 68f1c2d09b7e4a51 is the time of the submission, in seconds since 1970 (68f1c2d0), and a random number.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.errors import DamagedStore
from bench.launch.slurm.client import GONE, JobState, queue
from bench.store.files import create_json, read_json, write_json
from bench.store.ownership import OwnedFile, beating, owner_alive, this_process

FOLDER = ".slurm"
UNSUBMITTED = "UNSUBMITTED"
"""Our word for a submission that was noted but that Slurm never got."""


@dataclass(frozen=True, kw_only=True)
class SubmissionFile:
    """What the file of a submission holds; its name is the token."""

    grid: str
    name: str
    job_id: str | None
    time: float
    source: str
    worklist: str = ""
    generation: int = 0
    kinds: tuple[str, ...] = ()
    jobs: int = 1
    code: str = ""
    cancelled: bool = False
    tasks: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Submission(SubmissionFile):
    """One sbatch call.

    Its array has `jobs` elements, which serve the generations up to `generation` of the `worklist` of that token, and
    ask for what stages of `kinds` need; the tables' job has none. `code` is the name of the copy of the packages that
    they run; `cancelled` says that a person ended them with --cancel.

    `source` names the grid by its gin files and `--set` lines (`bench.planning.plan.source`); `job_id` is None until
    the id is noted, after the call; `time` is in seconds since 1970. Earlier versions bound stages to elements, with
    their folders in `tasks`.
    """

    token: str

    @property
    def runs_stages(self) -> bool:
        """Whether its jobs run stages; else it is a tables' job."""
        return bool(self.worklist or self.tasks)

    @property
    def elements(self) -> int:
        """The number of its array's elements."""
        return len(self.tasks) or self.jobs

    def element(self, index: int) -> str | None:
        """Return the id of an array element as Slurm writes it: '123_4'.

        Returns None while the job's id is unknown.
        """
        return None if self.job_id is None else f"{self.job_id}_{index}"


# ------------------------------------------------------------------------------------------------------ the ledger


def folder(store_root: Path) -> Path:
    """Return where everything about Slurm lies in a store."""
    return store_root / FOLDER


def log_folder(store_root: Path, token: str) -> Path:
    """Return where the supervisors of a submission print to."""
    return folder(store_root) / "log" / token


def new_token() -> str:
    """Return a name for a submission, worklist or trouble that no other one has: the time and a random number."""
    return f"{int(time.time()):08x}{secrets.token_hex(4)}"


def note(store_root: Path, grid: str, source: str, what: str = "tables", **facts: Any) -> Submission:
    """Write down a submission that is about to be made.

    The name of its jobs says `what` they do; `facts` are further fields of the submission.
    """
    token = new_token()
    name = f"bench-{grid}-{what}-{token}"
    moment = round(time.time(), 3)
    submission = Submission(grid=grid, name=name, job_id=None, time=moment, source=source, token=token, **facts)
    create_json(_path(store_root, token), _facts(submission))
    return submission


def complete(store_root: Path, submission: Submission, job_id: str) -> Submission:
    """Note the id that Slurm gave a submission."""
    completed = replace(submission, job_id=job_id)
    write_json(_path(store_root, submission.token), _facts(completed))
    return completed


def note_cancelled(store_root: Path, submission: Submission, cancelled: bool = True) -> None:
    """Note that a person ended the jobs of a submission, so that nobody submits it again unasked."""
    write_json(_path(store_root, submission.token), _facts(replace(submission, cancelled=cancelled)))


def was_cancelled(store_root: Path, source: str) -> bool:
    """Tell whether a person cancelled a grid since it was submitted last."""
    mine = [each for each in submissions(store_root) if each.source == source]
    return bool(mine) and mine[-1].cancelled


def list_was_cancelled(store_root: Path, worklist: str) -> bool:
    """Tell whether a person ended jobs that pull from a worklist."""
    return any(each.cancelled for each in submissions(store_root) if each.worklist == worklist)


def forget(store_root: Path, submission: Submission) -> None:
    """Remove a submission that Slurm refused."""
    _path(store_root, submission.token).unlink(missing_ok=True)


def submissions(store_root: Path, grid: str | None = None) -> list[Submission]:
    """Read every submission of a grid, or of all grids.

    The oldest comes first.
    """
    read = []
    for path in (folder(store_root) / "submissions").glob("[0-9a-f]*.json"):
        fix = f"Delete it to forget that submission, and scancel its job: that whose name ends with {path.stem}."
        try:
            data = read_json(path, fix, SubmissionFile)
        except DamagedStore:
            if path.exists():
                raise
            continue  # forgotten meanwhile
        facts = {field.name: data[field.name] for field in dataclasses.fields(SubmissionFile) if field.name in data}
        facts |= {"tasks": tuple(map(tuple, data.get("tasks", ()))), "kinds": tuple(data.get("kinds", ()))}
        submission = Submission(**facts, token=path.stem)
        if grid is None or submission.grid == grid:
            read.append(submission)
    return sorted(read, key=lambda submission: submission.time)


def identified(noted: Iterable[Submission], queued: Mapping[str, JobState]) -> list[Submission]:
    """Fill in the ids of submissions whose ids were never noted.

    The queue has them, by the job's name. Example: the file of the submission bench-cats-68f1c2d09b7e4a51 has
    no id, and squeue lists 123_0 and 123_1 under that name: its id is 123.
    """
    ids = {state.name: element.partition("_")[0] for element, state in queued.items()}
    return [each if each.job_id is not None else replace(each, job_id=ids.get(each.name)) for each in noted]


def states(submission: Submission, queued: Mapping[str, JobState]) -> list[JobState]:
    """Return the states of all elements of an array."""
    return [element_state(submission, index, queued) for index in range(submission.elements)]


def element_state(submission: Submission, index: int, queued: Mapping[str, JobState]) -> JobState:
    """Return the state of one array element.

    Where Slurm knows nothing of it, that is GONE or UNSUBMITTED, which tell nothing of its end.
    """
    if submission.job_id is None:
        return JobState(UNSUBMITTED, "Slurm never got it", name=submission.name)
    state = queued.get(f"{submission.job_id}_{index}")
    if state is None or state.name != submission.name:
        return JobState(GONE, "Slurm does not know it any more", name=submission.name)
    return state


@contextlib.contextmanager
def submitting(store_root: Path) -> Iterator[None]:
    """Keep all other processes from submitting to this store while the block runs.

    Waits for another process that lives, not for one that died. Example: 000001.json is the last one there.

    - 000001.end.json is there too, or its owner died: create 000002.json. Of several that try to, one succeeds.
    - Its owner lives, which its heartbeat shows: look again and again.

    No number is ever used again, so who looked a moment ago and decides now cannot take a turn that another has.
    """
    turns = folder(store_root) / "submitting"
    waiting_is_told = False
    while True:
        last = max(turns.glob("[0-9]*[0-9].json"), default=None)
        over = last is None or last.with_suffix(".end.json").exists()
        held = last is not None and not over and owner_alive(read_json(last, "Delete it.", OwnedFile)["owner"], last)
        path = turns / f"{int(last.stem) + 1 if last else 1:06}.json"
        if not held and create_json(path, {"owner": this_process()}):
            break
        if held and not waiting_is_told:
            waiting_is_told = True
            print("waiting: another process is submitting to this store", flush=True)
        time.sleep(0.5)
    try:
        with beating(path):
            yield
    finally:
        try:
            os.link(path, path.with_suffix(".end.json"))  # a second name takes no room, which a full disk would lack
        except OSError:  # else this process would wait for itself when it submits again
            path.unlink(missing_ok=True)


def _path(store_root: Path, token: str) -> Path:
    return folder(store_root) / "submissions" / f"{token}.json"


def _facts(submission: Submission) -> dict[str, object]:
    return {name: value for name, value in dataclasses.asdict(submission).items() if name != "token"}


# ----------------------------------------------------------------------------------------------------- asking Slurm


def ask(asked: Sequence[Submission], ended: Collection[str] = ()) -> dict[str, JobState]:
    """Return what Slurm says of the jobs of submissions, by the ids of elements.

    Accounting is asked only about elements that the queue has forgotten, and not about those in `ended`, whose end the
    caller knows. Where an id was never noted, only the job's name leads to it, and accounting is asked about all.
    """
    identified_all = all(each.job_id is not None for each in asked)
    elements = [f"{each.job_id}_{index}" for each in asked for index in range(each.elements)]
    expected = [element for element in elements if element not in ended] if identified_all else None
    return queue([each.name for each in asked], expected)


def look(store_root: Path) -> tuple[list[Submission], dict[str, JobState]]:
    """Return the submissions of all grids, and what Slurm says of them."""
    noted = submissions(store_root)
    queued = ask(noted)
    return identified(noted, queued), queued
