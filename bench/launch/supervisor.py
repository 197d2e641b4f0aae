"""What runs inside a Slurm job: starts one worker process per stage, owns the signals, requeues its own element.

Slurm announces a preemption or the time limit with a signal: SIGUSR2, where `slurm.signal` names no other. Training
must not run under a handler of it (forked children would inherit it, and a checkpoint in the middle of a step is no
checkpoint), so this thin process has it, and tells the workers with SIGTERM to checkpoint at the next step boundary.
Whether a stage is done is read from the store, never from what a process or Slurm says. This module imports neither
torch nor numpy and starts no threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

import baselines
from bench.errors import DamagedStore, InputError
from bench.launch.assignment import Assignment
from bench.launch.devices import visible_devices
from bench.specs import Stage
from bench.specs.cluster import SIGNALS
from bench.store.ownership import JOB_VARIABLE, Attempt
from bench.store.provenance import cores
from bench.store.store import Store
from bench.training.protocol import EXIT_STATUS, Settings, death

POLL_SECONDS = 0.2
LOOK_SECONDS = 3.0
"""Between two looks at the files of a stage that another process holds, or of a parent."""
PARENT_SECONDS = 90.0
"""For so long a parent's record may be invisible: network file systems cache for up to a minute what is not there."""
MARGIN_SECONDS = 10.0
"""Of the signal's delay, kept for ending the workers and asking Slurm for the requeue."""
REQUEUE_TRIES = 5


class ElementFailed(Exception):
    """A stage of this element failed or was refused, so that the job must not count as completed."""


# --------------------------------------------------------------------------------------------- what Slurm asks for


class Signals:
    """The signals that ask for an end: whether one announced it, and SIGTERM, which is the end itself."""

    def __init__(self) -> None:
        self.announced = False
        self.terminated = False

    def take_over(self, announcement: str) -> None:
        """Replace submitit's handlers of these signals."""
        signal.signal(_number(announcement), self._announce)
        signal.signal(signal.SIGTERM, self._terminate)
        signal.signal(signal.SIGCONT, lambda *_: None)  # Slurm sends it with the others, to wake what is suspended

    def __bool__(self) -> bool:
        return self.announced or self.terminated

    def _announce(self, *_: object) -> None:
        self.announced = True

    def _terminate(self, *_: object) -> None:
        self.terminated = True


def _number(name: str) -> signal.Signals:
    return signal.Signals[f"SIG{name}"]


def job_name() -> str:
    """How Slurm calls this job: A_i for element i of an array.

    Never the raw id: that of an array's last element is the array's own, and would requeue the whole array.
    """
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if array:
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    if "SLURM_JOB_ID" not in os.environ:
        raise InputError("supervise: SLURM_JOB_ID is not set; this is what runs inside a Slurm job.")
    return os.environ["SLURM_JOB_ID"]


def _scontrol(*arguments: str) -> tuple[bool, str]:
    try:
        run = subprocess.run(["scontrol", *arguments], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, str(error)
    return run.returncode == 0, (run.stdout if run.returncode == 0 else run.stderr).strip()


def _requeue(job: str) -> None:
    """Have Slurm start this element again; raises ElementFailed with Slurm's own words if it refuses."""
    for _ in range(REQUEUE_TRIES):
        done, told = _scontrol("requeue", job)
        if done or "pending" in told.lower():  # Slurm was faster: it requeues a preempted job by itself
            _say(f"requeued {job}")
            return
        _say(f"scontrol requeue {job}: {told}")
        time.sleep(2)  # the controller may be restarting
    raise ElementFailed(f"Slurm would not requeue {job}: {told}. The checkpoints are written: submit the grid again.")


def _out_of_time(job: str) -> bool | None:
    """Whether Slurm ends this job for its time limit; None where Slurm cannot be asked.

    While the job still runs its last lines, its state is COMPLETING whatever ended it: only the reason tells.
    """
    done, told = _scontrol("--oneliner", "show", "job", job)
    return "Reason=TimeLimit" in told if done else None


def _say(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", flush=True)


# --------------------------------------------------------------------------------------------- one stage, one worker


End = tuple[str, str]
"""How a stage ended in this job, and why: done, failed, refused or interrupted."""


class Run:
    """A stage of this element and its worker; `end` is None while there is something left to do for it.

    `gpu` is what CUDA_VISIBLE_DEVICES holds for the worker, '' for none; `beside` are the other runs that use it. Where
    that was too much for its memory, the stage is tried again `alone`: while none of those has a worker.
    """

    def __init__(self, number: int, assignment: Assignment, job: str) -> None:
        self.end: End | None = None
        self.alone = False
        self.beside: list[Run] = []
        self.folder = assignment.store / assignment.stages[number]
        gpus = visible_devices(assignment.gpus)
        self.gpu = gpus[number % len(gpus)] if gpus else ""
        self._assignment = assignment
        self._job = job
        self._store = Store(assignment.store)
        self._stage: Stage | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._next_look = 0.0
        self._refuse_at = time.monotonic() + PARENT_SECONDS
        self._before: int | None = None
        """How many attempts the ledger had before this job's first one."""
        self._known = 0
        """How many it had when the worker was started."""
        self._judged_from = 0
        """How many it had when the stage was found to need the GPU alone: none of those counts as no progress."""
        self._told_busy = False

    def look(self, stopping: bool) -> None:
        """Notice what has changed; start the worker when it may start, unless an end is asked for."""
        if self.end is not None:
            return
        try:
            if self._process is not None:
                self.end = self._worker_end(stopping)
            elif stopping:
                self.end = "interrupted", "before its worker was started"
            elif time.monotonic() >= self._next_look:
                self._next_look = time.monotonic() + LOOK_SECONDS
                self.end = self._end_before_start()
        except (InputError, OSError) as error:  # a damaged, full, read-only or unreachable store
            self.end = "refused", str(error)
        if self.end is not None:
            _say(f"{self.folder.name}: {': '.join(filter(None, self.end))}")

    # ------------------------------------------------------------------------------------------------ before it runs

    def _end_before_start(self) -> End | None:
        """Start the worker, or wait, or find that there is nothing to start."""
        late = self._not_yet_visible()
        if late is not None:
            return ("refused", late) if time.monotonic() >= self._refuse_at else None
        stage = self._found
        if self._store.record(stage) is not None:
            return "done", ""
        attempts = self._store.attempts(stage)
        if self._before is None:
            self._before = self._attempts_before(attempts)
        last = attempts[-1] if attempts else None
        if last is not None and last.alive:
            if not self._told_busy:
                self._told_busy = True
                _say(f"{self.folder.name}: held by another process; waiting for its record")
            return None
        failure = self._store.failure(stage)
        if failure is not None and len(attempts) > self._before:
            return "failed", failure
        stuck = no_progress(attempts[self._judged_from :], self._assignment.give_up_after)
        if stuck is not None:
            return self._give_up(stuck)
        if not any(other.running and (self.alone or other.alone) for other in self.beside):
            self._start(len(attempts))
        return None

    @property
    def running(self) -> bool:
        """Whether it has a worker."""
        return self._process is not None

    @property
    def _found(self) -> Stage:
        assert self._stage is not None, "visible, else nothing would have been started"
        return self._stage

    def _attempts_before(self, attempts: Sequence[Attempt]) -> int:
        """How many attempts do not count for this job: a requeued one does not try again what failed in it."""
        if int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0:
            for number, attempt in enumerate(attempts):
                if attempt.facts["owner"].get("job") == self._job:
                    return number
        return len(attempts) - (1 if attempts and attempts[-1].alive else 0)

    def _not_yet_visible(self) -> str | None:
        """What this stage needs and the store does not show, though a network file system may only be late."""
        for place in (self._assignment.store, self.folder):
            if place.is_dir():
                os.listdir(place)  # has it look again
        if not (self.folder / "spec.json").is_file():
            return f"{self.folder / 'spec.json'}: missing. Run the grid again to write it."
        if self._stage is None:
            self._stage = self._store.load(self.folder)
        for parent in self._stage.parents:
            if self._store.folder(parent).is_dir():
                os.listdir(self._store.folder(parent))
            try:
                if self._store.record(parent) is None:
                    return f"its parent {parent.folder} has no record. Run the grid again to make it."
            except DamagedStore as error:  # or a record that is seen before its weights
                return str(error)
        return None

    def _give_up(self, reason: str) -> End | None:
        """Note a failure in the ledger; None where another process has the stage by now."""
        attempt = self._store.claim(self._found)
        if attempt is None:
            return None
        self._store.finish(attempt, "failed", reason)
        return "failed", reason

    # ------------------------------------------------------------------------------------------------ the worker

    def _start(self, known: int) -> None:
        assignment = self._assignment
        environment = {**os.environ, **_threads(assignment.threads)}
        # Safe path: else the working directory, often a checkout, would come before the snapshot.
        path = os.pathsep.join(filter(None, (str(assignment.code), os.environ.get("PYTHONPATH"))))
        environment |= {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
        environment["CUDA_VISIBLE_DEVICES"] = self.gpu
        settings = Settings(
            assignment.data_root,
            "cuda:0" if self.gpu else "cpu",
            assignment.threads,
            assignment.checkpoint_steps,
            assignment.graphs,
            shared=bool(self.beside) and not self.alone,
        )
        command = [sys.executable, "-m", "bench.training.worker", *settings.arguments(), str(self.folder)]
        self._known = known
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
            preexec_fn=_child_of(os.getpid()),
        )
        _say(f"{self.folder.name}: started, process {self._process.pid}")

    def _worker_end(self, stopping: bool) -> End | None:
        """How the worker ended; None while it runs, and where the stage has to be looked at again."""
        assert self._process is not None
        pid = self._process.pid
        if not _has_exited(pid):
            return None
        _kill_group(pid)  # what the worker left behind; while it is a zombie nobody else can have its number
        status = self._process.wait()
        self._process = None
        if self._store.record(self._found) is not None:
            return "done", ""
        mine = [a for a in self._store.attempts(self._found)[self._known :] if a.facts["owner"]["pid"] == pid]
        attempt = mine[-1] if mine else None
        if attempt is not None and attempt.end is not None and attempt.end["state"] in ("failed", "refused"):
            return str(attempt.end["state"]), str(attempt.end["reason"])
        if status == EXIT_STATUS["refused"]:
            reason = "the store is damaged or cannot be written; the worker's own message stands above"
            if attempt is not None:
                self._store.finish(attempt, "refused", reason)
            return "refused", reason
        if stopping:
            if attempt is not None:  # a killed one; an end that the worker noted stays
                self._store.finish(attempt, "died", f"{death(status)} before it came to the end of a step")
            return "interrupted", ""
        if status == EXIT_STATUS["crowded"]:
            self.alone, self._judged_from = True, self._known + len(mine)
            _say(f"{self.folder.name}: out of memory; tried again when no other stage uses the device")
            return None
        if status in (EXIT_STATUS["interrupted"], EXIT_STATUS["busy"], -signal.SIGTERM):
            # A signal that did not reach this process (yet), or that the worker was too young to handle; or another
            # process was faster: look again soon.
            self._next_look = time.monotonic() + LOOK_SECONDS
            return None
        reason = f"the worker process died: {death(status)}"
        attempt = attempt or self._store.claim(self._found)
        if attempt is not None:
            self._store.finish(attempt, "failed", reason)
        return "failed", reason

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the worker, if there is one."""
        if self._process is not None:
            os.kill(self._process.pid, number)  # not Popen's: that would first take away a worker that has just ended

    def close(self) -> None:
        """Kill the worker and all that it started."""
        if self._process is not None:
            _kill_group(self._process.pid)
            self._process.wait()

    def give_up_if_stuck(self) -> None:
        """Turn an interruption into a failure where another attempt would be pointless."""
        if self._stage is None:
            return
        try:
            attempts = self._store.attempts(self._stage)[self._judged_from :]
            stuck = no_progress(attempts, self._assignment.give_up_after)
            if stuck is not None:
                self.end = self._give_up(stuck) or self.end
        except (InputError, OSError) as error:
            self.end = "refused", str(error)


def no_progress(attempts: Sequence[Attempt], give_up_after: int) -> str | None:
    """Why a stage is given up: so many attempts in a row began at one step and none got beyond it; else None."""
    last = attempts[-give_up_after:]
    if len(last) < give_up_after or any(attempt.alive for attempt in last):
        return None
    if any(attempt.end is not None and attempt.end["state"] in ("done", "failed", "refused") for attempt in last):
        return None
    # An attempt that ended before it had begun tells of no step: it made no progress whatever the others' was.
    begun = {step for attempt in last if (step := attempt.facts["from_step"]) is not None}
    if len(begun) > 1 or any(_newest_checkpoint(last[-1]) > step for step in begun):
        return None
    where = f"all began at step {begun.pop()}" if begun else "none came to its first step"
    return f"no progress in {give_up_after} attempts: {where}"


def _newest_checkpoint(attempt: Attempt) -> int:
    """The step of the newest checkpoint that the stage of an attempt has; 0 without one."""
    folder = attempt.path.parent.parent / "checkpoints"
    return max((int(path.stem.partition("-")[2]) for path in folder.glob("step-*.json")), default=0)


def _threads(count: int) -> dict[str, str]:
    return dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(count))


def _child_of(parent: int) -> Callable[[], None]:
    """What a worker does between fork and exec: the preemption signal ignored, and no life after its supervisor."""
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
    """Whether a child has ended; it stays a zombie."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # nothing left but the zombie
        os.killpg(pid, signal.SIGKILL)


# --------------------------------------------------------------------------------------------------------- the job


def supervise(*arguments: str) -> None:
    """Run the stages of an element until each has its record; what submitit calls inside the job.

    `arguments` are those of `Assignment`. Ends the process with status 75 when it was interrupted, after requeuing this
    element if a signal had announced the end; raises ElementFailed if a stage failed, after all others ended.
    """
    assignment = Assignment.parse(arguments)
    asked = Signals()
    asked.take_over(assignment.signal)
    baselines.register()  # the spec types that a stage may hold
    job = os.environ[JOB_VARIABLE] = job_name()
    runs = [Run(number, assignment, job) for number in range(len(assignment.stages))]
    for run in runs:
        run.beside = [other for other in runs if other is not run and other.gpu == run.gpu]
    wanted = assignment.threads * len(assignment.stages)
    _say(f"job {job}: {len(assignment.stages)} stage(s), {cores()} core(s)")
    if cores() < wanted:
        _say(f"warning: {wanted} core(s) are wanted; the workers will share")
    try:
        while not asked and any(run.end is None for run in runs):
            _look(runs, stopping=False)
        if any(run.end is None for run in runs):
            _checkpoint(runs, asked, assignment.signal_delay_s)
    finally:
        for run in runs:
            run.close()
    ends = _ends(runs, requeuing=asked.announced)
    if any(state == "interrupted" for state, _ in ends.values()):
        _leave(job, asked)
    failed = [f"{name} {state}: {reason}" for name, (state, reason) in ends.items() if state != "done"]
    if failed:
        raise ElementFailed("; ".join(failed))


def _look(runs: Sequence[Run], stopping: bool) -> None:
    for run in runs:
        run.look(stopping)
    time.sleep(POLL_SECONDS)


def _checkpoint(runs: Sequence[Run], asked: Signals, signal_delay_s: float) -> None:
    """Have the workers checkpoint, and kill those that are not done shortly before Slurm would."""
    seconds = max(signal_delay_s - MARGIN_SECONDS, signal_delay_s / 2)
    _say(f"{'end announced' if asked.announced else 'SIGTERM'}: checkpointing, for {seconds:g} s at most")
    for run in runs:
        run.send(signal.SIGTERM)
    end = time.monotonic() + seconds
    while any(run.end is None for run in runs):
        if time.monotonic() >= end:
            for run in runs:
                run.send(signal.SIGKILL)
        _look(runs, stopping=True)


def _ends(runs: Sequence[Run], requeuing: bool) -> dict[str, End]:
    ends = {}
    for run in runs:
        if requeuing and run.end is not None and run.end[0] == "interrupted":
            run.give_up_if_stuck()
        assert run.end is not None, "looked at until it had one"
        ends[run.folder.name] = run.end
    return ends


def _leave(job: str, asked: Signals) -> NoReturn:
    """Requeue this element, unless somebody wants it to end, and exit."""
    if not asked.announced:
        _say("SIGTERM without an announcement: not requeued by the job itself")
    elif asked.terminated and _out_of_time(job) is False:
        _say("cancelled, or preempted, after which Slurm requeues where it is set to: not requeued by the job")
    else:
        _requeue(job)
    sys.exit(EXIT_STATUS["interrupted"])
