"""One stage of a job: its process, what is asked of it, and how it ended."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from bench.errors import InputError
from bench.launch.slurm.assignment import Assignment
from bench.launch.slurm.troubles import NODES, TIMES
from bench.specs import Stage
from bench.store.ownership import Attempt
from bench.store.states import UNSUCCESSFUL, StageState
from bench.store.store import GONE, Store, newest_checkpoint
from bench.training.fork_server import ForkServer
from bench.training.protocol import EXIT_STATUS, death
from bench.training.signals import STOPS

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
CONCLUSIVE = UNSUCCESSFUL | {StageState.DONE}
LOOK_SECONDS = 3.0
"""How long to wait before a worker that somebody else stopped is started again."""


def say(text: str) -> None:
    """Print a line into the job's log, with the time."""
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", flush=True)


class End(NamedTuple):
    """How a stage ended: done, failed, refused, interrupted or busy, and why."""

    state: StageState
    reason: str = ""


class _Worker(NamedTuple):
    """A worker process.

    `attempts_at_start` is how many attempts at the stage there were when it was started: its own come after them.
    """

    pid: int
    attempts_at_start: int


class StageProcess:
    """A stage that this job took, and its worker.

    `end` is None while there is something left to do for the stage. `attempts_before` is how many attempts it had
    before its worklist was made: those count for nothing. `gpu` is what CUDA_VISIBLE_DEVICES holds for the worker, ''
    for none. Where other stages use that GPU, too, and it was too much for its memory, the stage is tried again
    `alone`: while none of those has a worker.

    The supervisor calls `look` again and again. An undisturbed stage goes through: a worker is started, the worker
    runs, it has exited and the record is there: `end` is done. A stage whose worker died of a full device goes back to
    the start, with `alone` set.
    """

    def __init__(
        self, stage: Stage, attempts_before: int, gpu: str, assignment: Assignment, server: ForkServer
    ) -> None:
        self.stage = stage
        self.end: End | None = None
        self.alone = False
        self.beside: list[StageProcess] = []
        """The other stages of this job on the same GPU, as they are now; the supervisor keeps it up."""
        self.gpu = gpu
        self._assignment, self._server = assignment, server
        self._store = Store(assignment.store)
        self._attempts_before = attempts_before
        self._worker: _Worker | None = None
        self._next_look = 0.0

    def look(self, stopping: bool) -> None:
        """Notice what has changed, and start the worker when it may start.

        Where an end is asked for (`stopping`), none is started.
        """
        if self.end is not None:
            return
        try:
            if self._worker is not None:
                self.end = self._end_of_worker(self._worker, stopping)
            elif stopping:
                self.end = End(StageState.INTERRUPTED, "before its worker was started")
            elif time.monotonic() >= self._next_look:
                self.end = self._start_or_give_up()
        except (InputError, OSError) as error:  # a damaged, full, read-only or unreachable store
            self.end = End(StageState.REFUSED, str(error))
        if self.end is not None:
            say(f"{self.stage.folder}: {', '.join(filter(None, self.end))}")

    # ------------------------------------------------------------------------------------------------ before it runs

    def _start_or_give_up(self) -> End | None:
        attempts = self._store.attempts(self.stage)
        stuck = self._stuck(attempts)
        if stuck is not None:
            return self._give_up(stuck)
        if not any(other.pid is not None and (self.alone or other.alone) for other in self.beside):
            self._worker = self._start(len(attempts))
        return None

    @property
    def pid(self) -> int | None:
        """The process id of its worker, while it has one."""
        return None if self._worker is None else self._worker.pid

    def _stuck(self, attempts: Sequence[Attempt]) -> str | None:
        """Say why the stage is not to be tried again; None if it is."""
        cluster, since = self._assignment.cluster, attempts[self._attempts_before :]
        full_seconds = (60 * cluster.timeout_min - cluster.signal_delay_s) / 2
        return no_progress(since, cluster.give_up_after, full_seconds) or kills_its_jobs(since)

    def _give_up(self, reason: str) -> End:
        """Note a failure in the ledger. Another process may have the stage by now: then it is left to that one."""
        attempt = self._store.claim(self.stage)
        if attempt is None:
            return End(StageState.BUSY)
        self._store.finish(attempt, StageState.FAILED, reason)
        return End(StageState.FAILED, reason)

    # ------------------------------------------------------------------------------------------------ the worker

    def _start(self, attempts_so_far: int) -> _Worker | None:
        """Start the worker; None while what it needs is still being imported."""
        assignment = self._assignment
        threads = str(assignment.settings.threads)
        environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, threads)}
        # Safe path: else the working directory, often a checkout, would come before the snapshot.
        path = os.pathsep.join(filter(None, (str(assignment.code), os.environ.get("PYTHONPATH"))))
        environment |= {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
        environment["CUDA_VISIBLE_DEVICES"] = self.gpu
        shared = bool(self.beside) and not self.alone
        settings = replace(assignment.settings, device="cuda:0" if self.gpu else "cpu", shared=shared)
        if not self._server.ready(environment, [f"bench.models.{self.stage.backbone.MODALITY}"]):
            return None
        pid = self._server.fork([*settings.arguments(), str(self._store.folder(self.stage))], environment)
        say(f"{self.stage.folder}: started, process {pid}")
        return _Worker(pid, attempts_so_far)

    def _end_of_worker(self, worker: _Worker, stopping: bool) -> End | None:
        """Decide how the stage ended.

        Returns None while its worker runs, and where it has to be looked at again.

        The store counts more than the exit status, and that more than what may be guessed, so the first case below that
        applies decides. Example: a worker publishes its record and is then killed by Slurm, so that its status is -9:
        the stage is done, by case 1.
        """
        pid = worker.pid
        if not _has_exited(pid):
            return None
        _kill_group(pid)  # what the worker left behind; while it is a zombie nobody else can have its number
        status = _status(pid)
        self._worker = None
        # 1. There is a record, whoever wrote it.
        if self._store.record(self.stage) is not None:
            return End(StageState.DONE)
        attempts = self._store.attempts(self.stage)[worker.attempts_at_start :]
        own = [attempt for attempt in attempts if attempt.facts["owner"]["pid"] == pid]
        attempt = own[-1] if own else None
        # 2. The worker noted itself that nothing goes on from here.
        if attempt is not None and attempt.end is not None and attempt.end["state"] in UNSUCCESSFUL:
            return End(StageState(attempt.end["state"]), str(attempt.end["reason"]))
        # 3. It could note nothing, for that is what was wrong.
        if status == EXIT_STATUS[StageState.REFUSED]:
            reason = "the store is damaged or cannot be written; the worker's own message stands above"
            if attempt is not None:
                self._store.finish(attempt, StageState.REFUSED, reason)
            return End(StageState.REFUSED, reason)
        # 4. The job is ending, and told the worker so: whatever else its status says, the stage goes on later.
        if stopping:
            if attempt is not None:  # a killed one; an end that the worker noted stays
                self._store.finish(attempt, StageState.DIED, f"{death(status)} before it came to the end of a step")
            return End(StageState.INTERRUPTED)
        # 5. The others on its GPU left it too little memory: again, when they have ended.
        if status == EXIT_STATUS[StageState.CROWDED]:
            self.alone = True
            say(f"{self.stage.folder}: out of memory; tried again when no other stage uses the device")
            return None
        # 6. Another process has it: the job may take another stage.
        if status == EXIT_STATUS[StageState.BUSY]:
            return End(StageState.BUSY)
        # 7. A signal that did not reach this process (yet), or that the worker was too young to handle: soon again.
        if status in (EXIT_STATUS[StageState.INTERRUPTED], *(-each for each in STOPS)):
            self._next_look = time.monotonic() + LOOK_SECONDS
            return None
        # 8. It died before its first step, of what is wrong with this node or this code: nothing is held against the
        #    stage, which another job may try.
        reason = f"the worker process died: {death(status)}"
        if attempt is None or attempt.facts["from_step"] is None:
            if attempt is not None:
                self._store.finish(attempt, StageState.DIED, reason)
            what = "before its first step; what it printed stands above, in the job's log, and in the stage's"
            return End(StageState.REFUSED, f"{reason}, {what}")
        # 9. It died in the middle without a word: a failure that is noted for it.
        self._store.finish(attempt, StageState.FAILED, reason)
        return End(StageState.FAILED, reason)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the worker, if there is one."""
        if self._worker is not None:
            os.kill(self._worker.pid, number)

    def close(self) -> None:
        """Kill the worker and all that it started."""
        if self._worker is not None:
            _kill_group(self._worker.pid)
            _status(self._worker.pid)


def no_progress(attempts: Sequence[Attempt], give_up_after: int, full_seconds: float) -> str | None:
    """Say why a stage that gets no further is given up; None while it is not.

    It is given up when so many attempts in a row began at one step, had `full_seconds` or more, and none got beyond
    that step. What was ended early by a preemption, a lost node or a person says nothing of the stage and is passed
    over. Example, with 3 attempts of an hour each: they began at the steps 0, 40, 40, and the newest checkpoint is that
    of step 40. The last two made no progress; the third from the end did, so that the stage is tried again.
    """
    if not attempts or attempts[-1].alive:
        return None
    full = [each for each in attempts if each.end is not None and _seconds(each) >= full_seconds]
    last = full[-give_up_after:]
    if len(last) < give_up_after or any(each.end is None or each.end["state"] in CONCLUSIVE for each in last):
        return None
    # An attempt that ended before it had begun tells of no step: it made no progress whatever the others' was.
    begun = {step for attempt in last if (step := attempt.facts["from_step"]) is not None}
    if len(begun) > 1 or any(newest_checkpoint(attempts[-1].path.parents[1]) > step for step in begun):
        return None
    where = f"all began at step {begun.pop()}" if begun else "none came to its first step"
    return f"no progress in {give_up_after} attempts: {where}"


def kills_its_jobs(attempts: Sequence[Attempt]) -> str | None:
    """Say why a stage is given up whose jobs die without a word.

    Returns None while it is not. It is given up after three nodes, or six times in all, in a row and without progress.
    Example: out of the memory that Slurm allows, a job is killed with all processes, and nobody is left to note why.
    """
    silent: list[Attempt] = []
    begun: set[int] = set()
    # The newest ones that ended so and began at one step. As in `no_progress`, one that died before it had begun tells
    # of no step. Example: of attempts from the steps 0, 40, none and 40 the last three count.
    for attempt in reversed(attempts):
        step = attempt.facts["from_step"]
        spoke = attempt.alive or (attempt.end is not None and attempt.end["reason"] != GONE)
        if spoke or len(begun | {step} - {None}) > 1:
            break
        begun |= {step} - {None}
        silent.append(attempt)
    if not silent or any(newest_checkpoint(silent[0].path.parents[1]) > step for step in begun):
        return None
    hosts = {attempt.host for attempt in silent}
    if len(hosts) < NODES and len(silent) < TIMES:
        return None
    return f"its job died without a word {len(silent)} times, on {', '.join(sorted(hosts))}, without progress"


def _seconds(attempt: Attempt) -> float:
    assert attempt.end is not None
    return float(attempt.end["time"]) - float(attempt.facts["began"])


def _status(pid: int) -> int:
    """Wait until a child has ended; return its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _has_exited(pid: int) -> bool:
    """Tell whether a child has ended; it stays a zombie."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # nothing left but the zombie
        os.killpg(pid, signal.SIGKILL)
