"""One stage under the supervisor: its process, what is asked of it, and how it ended."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from bench.errors import DamagedStore, InputError
from bench.launch.devices import visible_devices
from bench.launch.slurm.assignment import Assignment
from bench.specs import Stage
from bench.specs.cluster import SIGNALS
from bench.store.ownership import Attempt
from bench.store.states import UNSUCCESSFUL, StageState
from bench.store.store import Store
from bench.training.protocol import EXIT_STATUS, MOST_FALSE_STARTS, death
from bench.training.signals import STOPS

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
CONCLUSIVE = UNSUCCESSFUL | {StageState.DONE}
LOOK_SECONDS = 3.0
"""Between two looks at the files of a stage that another process holds, or of a parent."""


PARENT_SECONDS = 90.0
"""For so long a parent's record may be invisible: network file systems cache for up to a minute what is not there."""


def _say(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", flush=True)


class End(NamedTuple):
    """How a stage ended: done, failed, refused or interrupted, and why."""

    state: StageState
    reason: str = ""


class _Worker(NamedTuple):
    """A worker process.

    `attempts_before` is how many attempts the ledger had when it was started: its own come after them.
    """

    process: subprocess.Popen[bytes]
    attempts_before: int


class StageProcess:
    """A stage of this element and its worker.

    `end` is None while there is something left to do for the stage. `gpu` is what CUDA_VISIBLE_DEVICES holds for the
    worker, '' for none; `beside` are the others that use it. Where that was too much for its memory, the stage is tried
    again `alone`: while none of those has a worker.

    The supervisor calls `look` again and again. An undisturbed stage goes through: not visible yet (a parent's record
    is late), a worker is started, the worker runs, it has exited and the record is there: `end` is done. A stage whose
    worker died of a full device goes from there back to the start, with `alone` set.
    """

    def __init__(self, number: int, assignment: Assignment, job: str) -> None:
        self.end: End | None = None
        self.alone = False
        self.beside: list[StageProcess] = []
        self.folder = assignment.store / assignment.stages[number]
        gpus = visible_devices(assignment.gpus)
        self.gpu = gpus[number % len(gpus)] if gpus else ""
        self._assignment = assignment
        self._job = job
        self._store = Store(assignment.store)
        self._loaded: Stage | None = None
        self._worker: _Worker | None = None
        # When to look at the files again, and when a parent that is still invisible counts as missing.
        self._next_look = 0.0
        self._refuse_at = time.monotonic() + PARENT_SECONDS
        self._waiting_is_told = False
        self._false_starts = 0
        # Numbers of attempts in the ledger. Those before this job's first one: a failure among them was there before,
        # and may be tried again. And those from which progress is judged: a stage that turned out to need the GPU
        # alone made none before, through no fault of its own.
        self._before_job: int | None = None
        self._judged_from = 0

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
                self._next_look = time.monotonic() + LOOK_SECONDS
                self.end = self._end_before_start()
        except (InputError, OSError) as error:  # a damaged, full, read-only or unreachable store
            self.end = End(StageState.REFUSED, str(error))
        if self.end is not None:
            _say(f"{self.folder.name}: {', '.join(filter(None, self.end))}")

    # ------------------------------------------------------------------------------------------------ before it runs

    def _end_before_start(self) -> End | None:
        """Start the worker if there is something left for it to do.

        Returns how the stage ended if there is nothing to start; None where the worker was started, or is to be waited
        for: a parent's record is late, another process holds the stage, or the GPU is not free.
        """
        missing = self._not_yet_visible()
        if missing is not None:
            return End(StageState.REFUSED, missing) if time.monotonic() >= self._refuse_at else None
        if self._store.record(self._stage) is not None:
            return End(StageState.DONE)
        attempts = self._store.attempts(self._stage)
        if self._before_job is None:
            self._before_job = self._count_before_job(attempts)
        if attempts and attempts[-1].alive:
            if not self._waiting_is_told:
                self._waiting_is_told = True
                _say(f"{self.folder.name}: held by another process; waiting for its record")
            return None
        failure = self._store.failure(self._stage)
        if failure is not None and len(attempts) > self._before_job:
            return End(StageState.FAILED, failure)
        stuck = self._no_progress(attempts)
        if stuck is not None:
            return self._give_up(stuck)
        if not any(other.running and (self.alone or other.alone) for other in self.beside):
            self._worker = self._start(len(attempts))
        return None

    @property
    def running(self) -> bool:
        """Whether it has a worker."""
        return self._worker is not None

    @property
    def _stage(self) -> Stage:
        assert self._loaded is not None, "visible, else nothing would have been started"
        return self._loaded

    def _count_before_job(self, attempts: Sequence[Attempt]) -> int:
        """Count the attempts that do not count for this job.

        Those are the ones from before the job's first attempt. A requeued job does not try again what failed in it.
        Example: the ledger has attempts of the jobs 7_0, 8_0 and 8_0. For 8_0, requeued, one attempt was before; for a
        new job 9_0 all three were.
        """
        if int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0:
            for number, attempt in enumerate(attempts):
                if attempt.facts["owner"].get("job") == self._job:
                    return number
        # An attempt that is still under way, in another process, ends while this job looks on: its failure counts here.
        return len(attempts) - (1 if attempts and attempts[-1].alive else 0)

    def _not_yet_visible(self) -> str | None:
        """Say what this stage needs and the store does not show.

        None where nothing is missing. A network file system may only be late.
        """
        for folder in (self._assignment.store, self.folder):
            if folder.is_dir():
                os.listdir(folder)  # has it look again
        if not (self.folder / "spec.json").is_file():
            return f"{self.folder / 'spec.json'}: missing. Run the grid again to write it."
        if self._loaded is None:
            self._loaded = self._store.load(self.folder)
        for parent in self._loaded.parents:
            if self._store.folder(parent).is_dir():
                os.listdir(self._store.folder(parent))
        try:
            for parent in self._store.missing_parents(self._loaded):
                return f"its parent {parent.folder} has no record. Run the grid again to make it."
        except DamagedStore as error:  # or a record that is seen before its weights
            return str(error)
        return None

    def _no_progress(self, attempts: Sequence[Attempt]) -> str | None:
        return no_progress(attempts[self._judged_from :], self._assignment.give_up_after)

    def _give_up(self, reason: str) -> End | None:
        """Note a failure in the ledger.

        Returns None where another process has the stage by now.
        """
        attempt = self._store.claim(self._stage)
        if attempt is None:
            return None
        self._store.finish(attempt, StageState.FAILED, reason)
        return End(StageState.FAILED, reason)

    # ------------------------------------------------------------------------------------------------ the worker

    def _start(self, attempts_before: int) -> _Worker:
        assignment = self._assignment
        threads = str(assignment.settings.threads)
        environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, threads)}
        # Safe path: else the working directory, often a checkout, would come before the snapshot.
        path = os.pathsep.join(filter(None, (str(assignment.code), os.environ.get("PYTHONPATH"))))
        environment |= {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
        environment["CUDA_VISIBLE_DEVICES"] = self.gpu
        shared = bool(self.beside) and not self.alone
        settings = replace(assignment.settings, device="cuda:0" if self.gpu else "cpu", shared=shared)
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.training.worker", *settings.arguments(), str(self.folder)],
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
            preexec_fn=_child_of(os.getpid()),
        )
        _say(f"{self.folder.name}: started, process {process.pid}")
        return _Worker(process, attempts_before)

    def _end_of_worker(self, worker: _Worker, stopping: bool) -> End | None:
        """Decide how the stage ended.

        Returns None while its worker runs, and where it has to be looked at again.

        The store counts more than the exit status, and that more than what may be guessed, so the first case below that
        applies decides. Example: a worker publishes its record and is then killed by Slurm, so that its status is -9:
        the stage is done, by case 1.
        """
        pid = worker.process.pid
        if not _has_exited(pid):
            return None
        _kill_group(pid)  # what the worker left behind; while it is a zombie nobody else can have its number
        status = worker.process.wait()
        self._worker = None
        # 1. There is a record, whoever wrote it.
        if self._store.record(self._stage) is not None:
            return End(StageState.DONE)
        attempts = self._store.attempts(self._stage)[worker.attempts_before :]
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
            self.alone, self._judged_from = True, worker.attempts_before + len(own)
            _say(f"{self.folder.name}: out of memory; tried again when no other stage uses the device")
            return None
        # 6. A signal that did not reach this process (yet), or that the worker was too young to handle; or another
        #    process was faster: look again soon.
        self._next_look = time.monotonic() + LOOK_SECONDS
        if status in (EXIT_STATUS[StageState.INTERRUPTED], EXIT_STATUS[StageState.BUSY], *(-each for each in STOPS)):
            return None
        # 7. It died before it had begun, of what is wrong with this node or this code: nothing is held against the
        #    stage. Tried again here, but not for ever.
        reason = f"the worker process died: {death(status)}"
        if attempt is None:
            self._false_starts += 1
            if self._false_starts < MOST_FALSE_STARTS:
                _say(f"{self.folder.name}: {reason}, before it had begun; tried again")
                return None
            what = f"{MOST_FALSE_STARTS} times before it had begun; what it printed stands above, in the job's log"
            return End(StageState.REFUSED, f"{reason}, {what}")
        # 8. It died in the middle without a word: a failure that is noted for it.
        self._store.finish(attempt, StageState.FAILED, reason)
        return End(StageState.FAILED, reason)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the worker, if there is one."""
        if self._worker is not None:
            # Not Popen's own method: that would first take away a worker that has just ended.
            os.kill(self._worker.process.pid, number)

    def close(self) -> None:
        """Kill the worker and all that it started."""
        if self._worker is not None:
            _kill_group(self._worker.process.pid)
            self._worker.process.wait()

    def give_up_if_stuck(self) -> None:
        """Turn an interruption into a failure where another attempt would be pointless."""
        if self._loaded is None:
            return
        try:
            stuck = self._no_progress(self._store.attempts(self._loaded))
            if stuck is not None:
                self.end = self._give_up(stuck) or self.end
        except (InputError, OSError) as error:
            self.end = End(StageState.REFUSED, str(error))


def no_progress(attempts: Sequence[Attempt], give_up_after: int) -> str | None:
    """Say why a stage is given up; None while it is not.

    It is given up when so many attempts in a row began at one step and none got beyond it. Example, with 3 attempts:
    they began at the steps 0, 40, 40, and the newest checkpoint is that of step 40. The last two made no progress; the
    third from the end did, so that the stage is tried again.
    """
    last = attempts[-give_up_after:]
    if len(last) < give_up_after or any(attempt.alive for attempt in last):
        return None
    if any(attempt.end is not None and attempt.end["state"] in CONCLUSIVE for attempt in last):
        return None
    # An attempt that ended before it had begun tells of no step: it made no progress whatever the others' was.
    begun = {step for attempt in last if (step := attempt.facts["from_step"]) is not None}
    if len(begun) > 1 or any(_newest_checkpoint(last[-1]) > step for step in begun):
        return None
    where = f"all began at step {begun.pop()}" if begun else "none came to its first step"
    return f"no progress in {give_up_after} attempts: {where}"


def _newest_checkpoint(attempt: Attempt) -> int:
    """Return the newest checkpoint's step of an attempt's stage, or 0."""
    folder = attempt.path.parent.parent / "checkpoints"
    return max((int(path.stem.partition("-")[2]) for path in folder.glob("step-*.json")), default=0)


def _child_of(parent: int) -> Callable[[], None]:
    """Build the function that a worker calls between fork and exec.

    It has the worker ignore the preemption signal, and not outlive its supervisor.
    """
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
    set_death_signal = 1  # PR_SET_PDEATHSIG

    def prepare() -> None:
        # Slurm may signal every process of the job. An ignored signal stays so after exec; a handler would not.
        for name in SIGNALS:
            signal.signal(_number(name), signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if prctl is not None:
            prctl(set_death_signal, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return prepare


def _has_exited(pid: int) -> bool:
    """Tell whether a child has ended; it stays a zombie."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # nothing left but the zombie
        os.killpg(pid, signal.SIGKILL)


def _number(name: str) -> signal.Signals:
    return signal.Signals[f"SIG{name}"]
