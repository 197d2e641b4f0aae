"""What runs inside a Slurm job: takes stages, starts a worker process for each, owns the signals, requeues its own job.

Slurm announces a preemption or the time limit with a signal: SIGUSR2, where `slurm.signal` names no other. Training
must not run under a handler of it (forked children would inherit it, and a checkpoint in the middle of a step is no
checkpoint), so this thin process has it, and tells the workers with SIGTERM to checkpoint at the next step boundary.
Whether a stage is done is read from the store, never from what a process or Slurm says. This module imports neither
torch nor numpy and starts no threads.

The life of a job that is preempted, with two stages at a time and a signal 120 s before the end:

    start         two stages are taken from the worklist; a ForkServer imports what they need
    once it has   a StageProcess has the worker of each forked from it, and of all that come later
    every 0.2 s   `look`: one worker ends, its record is there, the stage's `end` is done; the next stage is taken
    SIGUSR2       `announced` is set; the workers get SIGTERM, write their checkpoints and end: interrupted
    after 110 s   SIGKILL for workers that have not ended (not needed here)
    at the end    scontrol requeue, exit status 75; the same job starts again later, with what was interrupted
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

import baselines
from bench.errors import InputError
from bench.launch.devices import visible_devices
from bench.launch.slurm import client, ledger, partitions, troubles, worklist
from bench.launch.slurm.assignment import Assignment
from bench.launch.slurm.client import SlurmError
from bench.launch.slurm.pool import Pool
from bench.launch.slurm.stage_process import StageProcess, say
from bench.planning.plugins import load_all
from bench.specs.cluster import CHECKPOINT_SECONDS, START_SECONDS, Cluster
from bench.store.ownership import JOB_VARIABLE
from bench.store.provenance import cores
from bench.store.states import UNSUCCESSFUL, StageState
from bench.store.store import Store
from bench.training.fork_server import ForkServer
from bench.training.protocol import EXIT_STATUS
from bench.training.signals import descendants

FIRST_WORDS = "job {} on "
"""What a job's log has, with its id, as soon as this code runs."""
POLL_SECONDS = 0.2
TAKE_SECONDS = (2.0, 15.0)
"""Between two looks for a ready stage, the shortest and the longest."""
IDLE_SECONDS = 60.0
"""After so long without a ready stage a job ends."""
MARGIN_SECONDS = 10.0
"""Of the signal's delay, kept for ending the workers and asking Slurm for the requeue."""
REQUEUE_SECONDS = 2.0
"""Between two tries to reach Slurm's controller."""
OWN_TROUBLES = 3
"""After so many troubles of its own a job is not requeued any more."""
MOST_RESTARTS = 10
"""Nor after so many restarts, whatever the reasons were."""


class ElementFailed(Exception):
    """A stage failed, or this job could run none, so the job must fail, too."""


# --------------------------------------------------------------------------------------------- what Slurm asks for


class Signals:
    """The signals that ask for an end.

    `announced` says that Slurm announced the end with `slurm.signal`; `terminated` that SIGTERM came, the end itself.
    """

    def __init__(self) -> None:
        self.announced = False
        self.terminated = False

    def take_over(self, announcement: str) -> None:
        """Replace submitit's handlers of these signals."""
        signal.signal(signal.Signals[f"SIG{announcement}"], self._announce)  # USR2 is SIGUSR2
        signal.signal(signal.SIGTERM, self._terminate)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # `trap '' CHLD` of a shell would hide how workers end
        signal.signal(signal.SIGCONT, lambda *_: None)  # Slurm sends it with the others, to wake what is suspended

    def __bool__(self) -> bool:
        return self.announced or self.terminated

    def _announce(self, *_: object) -> None:
        self.announced = True

    def _terminate(self, *_: object) -> None:
        self.terminated = True


def job_name() -> str:
    """Return what Slurm calls this job: A_i for array elements.

    A is the array's id, i the element's index. Never the raw id: that of an array's last element is the array's own,
    and would requeue the whole array.
    """
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if array:
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    if "SLURM_JOB_ID" not in os.environ:
        raise InputError("supervise: SLURM_JOB_ID is not set; this is what runs inside a Slurm job.")
    return os.environ["SLURM_JOB_ID"]


def _seconds_left(cluster: Cluster) -> float:
    """Return how many seconds this job may still run.

    The end that Slurm names counts the setup, too; where it names none, the whole limit is taken to be left.
    """
    end = os.environ.get("SLURM_JOB_END_TIME", "")
    longest = 60.0 * cluster.timeout_min
    return min(longest, float(end) - time.time()) if end.isdigit() else longest


def requeue(job: str, program: str = "scontrol", until: float = 0.0) -> None:
    """Have Slurm start a job again.

    While the controller cannot be reached it is tried again, until `time.monotonic` reaches `until`. Raises
    ElementFailed where Slurm refuses. Others take what that job leaves: its checkpoints are written.
    """
    reason = control(program, "requeue", job, until=until)
    if reason and "pending" not in reason.lower():  # Slurm was faster: it requeues a preempted job by itself
        raise ElementFailed(f"Slurm would not requeue {job}: {reason}. What it leaves, others take.")


def control(program: str, *arguments: str, until: float) -> str:
    """Run a command of scontrol; return its words where it refuses.

    While the controller cannot be reached it is tried again, until `time.monotonic` reaches `until`.
    """
    while True:
        try:
            client.ask(program, *arguments, seconds=30)
            reason = ""
        except (SlurmError, OSError) as error:
            reason = str(error)
        say(f"scontrol {' '.join(arguments)}: {reason or 'done'}")
        # Slurm said no, or this job's time is up. Only a controller that cannot be reached may be back soon.
        if not client.is_unreachable(reason) or time.monotonic() > until:
            return reason
        time.sleep(REQUEUE_SECONDS)


def could_run_elsewhere(store_root: Path) -> bool:
    """Tell whether there is another node for this job.

    If Slurm cannot be asked, there may be.
    """
    avoided = {troubles.node(), *troubles.excluded(store_root)}
    partition = os.environ.get("SLURM_JOB_PARTITION")
    try:
        return partitions.has_others([partition] if partition else None, avoided)
    except (SlurmError, OSError, ValueError):
        return True


def requeue_elsewhere(store_root: Path, job: str, program: str, exclude: str, until: float) -> None:
    """Requeue a job after a trouble, away from this node if that is to blame.

    `exclude` are the nodes that the settings exclude: the list of a job is replaced as a whole.
    """
    requeue(job, program, until)
    excluded = troubles.excluded(store_root)
    if troubles.node() in excluded and could_run_elsewhere(store_root):
        nodes = ",".join(filter(None, [exclude, *sorted(excluded)]))
        control(program, "update", f"JobId={job}", f"ExcNodeList={nodes}", until=until)


# --------------------------------------------------------------------------------------------------------- the job


def supervise(assignment: Assignment) -> None:
    """Run stages of a worklist until no more is to be done for this job.

    This is what submitit calls inside the job. Ends the process with status 75 when it was interrupted, after requeuing
    this job if a signal had announced the end; raises ElementFailed if a stage failed, after all others ended.
    """
    asked = Signals()
    asked.take_over(assignment.cluster.signal)
    job = os.environ[JOB_VARIABLE] = job_name()
    element = Element(assignment, job, asked)
    try:
        element.run()
    finally:  # no worker outlives this process, whatever was raised
        element.close()
    element.leave()


class Element:
    """A job of an array: its slots for stages, and what became of those that it took."""

    def __init__(self, assignment: Assignment, job: str, asked: Signals) -> None:
        self._assignment, self._cluster, self._job, self._asked = assignment, assignment.cluster, job, asked
        # As it was found where the job was submitted; a node may have it elsewhere.
        self._program = shutil.which(assignment.scontrol) or "scontrol"
        self._end = time.monotonic() + _seconds_left(self._cluster)
        self._server = ForkServer()
        self._processes: dict[int, StageProcess] = {}
        """By the number of the slot."""
        self._gpus: list[str] = []
        self._pool: Pool | None = None
        self._failures: list[str] = []
        self._trouble = ""
        """What is wrong with this node or store, so that no stage is taken any more."""
        self._noted = True
        """Whether its troubles could be written down, so that they are counted."""
        self._stopped = ""
        """Why the worklist was stopped."""
        self._next_take = 0.0
        self._wait = TAKE_SECONDS[0]
        self._idle_since = time.monotonic()
        self._commenting: list[subprocess.Popen[bytes]] = []

    # ------------------------------------------------------------------------------------------------ its life

    def run(self) -> None:
        """Take stages and run them until an end is asked for, or nothing more is to be done here."""
        slots, needed = self._cluster.runs_per_job, self._assignment.settings.threads * self._cluster.runs_per_job
        words = FIRST_WORDS.format(self._job)
        say(f"{words}{troubles.node()}: {slots} stage(s) at a time, {cores()} core(s)")
        if cores() < needed:
            say(f"warning: {needed} core(s) are wanted; the workers will share")
        try:
            self._begin()
            while not self._asked and (self._processes or self._takes_more()):
                self._take()
                self._look(stopping=False)
        except (InputError, OSError) as error:  # a damaged or unreachable store, a GPU that is not there
            self._note_trouble("", str(error))
            self._stop_if_hopeless()
        if self._processes:
            self._checkpoint()

    def _begin(self) -> None:
        """Read what is to be done. Refuses a node that does not have what the job asked for."""
        store = Store(self._assignment.store)
        reason = troubles.excluded(store.root).get(troubles.node())
        if reason is not None and could_run_elsewhere(store.root):
            self._trouble = f"this node is not used: {reason}"
            say(self._trouble)
            return
        # A job that was cancelled while it asked for its requeue is started again by Slurm.
        restarted = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
        if restarted and ledger.list_was_cancelled(store.root, self._assignment.worklist):
            self._stopped = "it was cancelled"
            return
        self._gpus = visible_devices(self._cluster.gpus)
        baselines.register()  # the spec types that a stage may hold
        load_all(self._assignment.settings.plugins)
        self._asked.take_over(self._cluster.signal)  # again: a library may have set handlers of its own
        listed = worklist.read(store.root, self._assignment.worklist)
        self._pool = Pool(store, listed, self._cluster, self._assignment.generation)

    def _takes_more(self) -> bool:
        """Tell whether another stage may be taken, now or soon."""
        if self._trouble or self._stopped or self._pool is None or self._pool.over:
            return False
        return self._has_time() and time.monotonic() - self._idle_since < IDLE_SECONDS

    def _has_time(self) -> bool:
        """Tell whether a stage that starts now could still write a checkpoint before the time limit."""
        least = self._cluster.signal_delay_s + START_SECONDS + CHECKPOINT_SECONDS
        return self._end - time.monotonic() >= least

    def _take(self) -> None:
        """Fill the free slots, now and then."""
        assert self._pool is not None
        if time.monotonic() < self._next_take or not self._takes_more():
            return
        self._stopped = self._stopped or troubles.stopped(self._assignment.store, self._assignment.worklist) or ""
        if self._stopped:
            return
        for slot in range(self._cluster.runs_per_job):
            if slot in self._processes:
                continue
            stage = self._pool.take()
            if stage is None:
                # Nothing is ready: again after a while, which grows, and not in step with all other jobs.
                self._wait = min(2 * self._wait, TAKE_SECONDS[1])
                break
            self._wait = TAKE_SECONDS[0]
            gpu = self._gpus[slot % len(self._gpus)] if self._gpus else ""
            before = self._pool.attempts_before(stage)
            self._processes[slot] = StageProcess(stage, before, gpu, self._assignment, self._server)
            self._comment()
        self._share_gpus()
        self._next_take = time.monotonic() + self._wait * random.uniform(0.7, 1.3)

    def _share_gpus(self) -> None:
        for process in self._processes.values():
            others = (other for other in self._processes.values() if other is not process)
            process.beside = [other for other in others if other.gpu == process.gpu]

    def _look(self, stopping: bool) -> None:
        """Look at every worker once, and put down the stages that have ended."""
        assert self._pool is not None
        self._pool.leases.beat()
        for slot, process in list(self._processes.items()):
            process.look(stopping)
            if process.end is not None:
                del self._processes[slot]
                self._ended(process)
        self._commenting = [each for each in self._commenting if each.poll() is None]
        commenting = [each.pid for each in self._commenting]
        self._server.reap([*commenting, *(process.pid for process in self._processes.values())])
        if self._processes:
            self._idle_since = time.monotonic()
        time.sleep(POLL_SECONDS)

    def _ended(self, process: StageProcess) -> None:
        assert self._pool is not None and process.end is not None
        stage, (state, reason) = process.stage, process.end
        self._share_gpus()
        self._next_take, root = 0.0, self._assignment.store
        if state == StageState.INTERRUPTED:
            self._pool.leave(stage)
            return
        self._pool.give_back(stage)
        if state == StageState.DONE:
            troubles.note_success(root)
        elif state == StageState.FAILED:
            self._failures.append(f"{stage.folder}: {reason}")
        elif state == StageState.REFUSED:
            self._note_trouble(stage.folder, reason)
        self._pool.look_at(stage)
        if state in UNSUCCESSFUL:
            self._stop_if_hopeless()

    def _note_trouble(self, stage: str, reason: str) -> None:
        # After one this job takes no more stages: on a broken node they fail at once, so that it would soon have taken,
        # and failed, most of the worklist.
        say(f"trouble on {troubles.node()}: {reason}")
        self._trouble = reason
        self._noted &= troubles.note(self._assignment.store, self._job, self._assignment.worklist, stage, reason)

    def _stop_if_hopeless(self) -> None:
        root, token = self._assignment.store, self._assignment.worklist
        failed = self._pool.failures if self._pool is not None else ()
        self._stopped = troubles.stop_if_hopeless(root, token, failed, not could_run_elsewhere(root)) or self._stopped

    def _checkpoint(self) -> None:
        """Have the workers checkpoint, and wait until they have ended.

        Kills those that are not done shortly before Slurm would.
        """
        delay = self._cluster.signal_delay_s
        seconds = max(delay - MARGIN_SECONDS, delay / 2)
        what = "end announced" if self._asked.announced else "SIGTERM" if self._asked.terminated else "an error"
        say(f"{what}: checkpointing, for {seconds:g} s at most")
        for process in self._processes.values():
            process.send(signal.SIGTERM)
        end = time.monotonic() + seconds
        while self._processes:
            if time.monotonic() >= end:
                for process in self._processes.values():
                    process.send(signal.SIGKILL)
            self._look(stopping=True)

    def close(self) -> None:
        """Kill all workers, and leave their stages to others."""
        for process in self._processes.values():
            process.close()
        # Processes that workers started in sessions of their own have become children of this one, which `ForkServer`
        # makes their subreaper, and would outlive it.
        for pid in descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._server.close()
        if self._pool is not None:
            self._pool.leases.release_all()

    def _comment(self) -> None:
        """Have squeue show what this job does (`--Format=Comment`), as far as Slurm takes it; nothing waits for it."""
        names = ", ".join(process.stage.folder for process in self._processes.values())
        try:
            command = [self._program, "update", f"JobId={self._job}", f"Comment={names}"]
            quiet, environment = subprocess.DEVNULL, client.environment()
            asking = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, env=environment)
            self._commenting.append(asking)
        except OSError:  # no scontrol on this node
            pass

    # ------------------------------------------------------------------------------------------------ its end

    def leave(self) -> None:
        """End this job, after requeuing it where it is to go on."""
        self._end_waiting()
        if self._asked:
            # What was interrupted beyond this job's scope goes to the next array, which waits for the end of this one.
            if self._pool is not None and not self._pool.over:
                self._leave_as_asked()
        elif self._stopped:
            raise ElementFailed(f"the grid was stopped: {self._stopped}")
        elif self._trouble:
            self._leave_node()
        elif self._pool is not None and not self._pool.over and not self._has_time():
            say("too little time is left for another stage")
            requeue(self._job, self._program, self._end)
            sys.exit(EXIT_STATUS[StageState.INTERRUPTED])
        damaged = () if self._pool is None else self._pool.damaged.values()
        if self._failures or damaged:
            raise ElementFailed("; ".join([*self._failures, *damaged]))

    def _end_waiting(self) -> None:
        """Take jobs of this array that still wait out of the queue, where nothing is left for them.

        The next array waits until all of this one have ended. One of them that is held, for a node that could not
        start it or by an administrator, would keep the grid waiting until somebody comes.
        """
        if self._pool is not None and self._pool.over and os.environ.get("SLURM_ARRAY_TASK_COUNT", "1") != "1":
            program = str(Path(self._program).with_name("scancel"))
            with contextlib.suppress(SlurmError, OSError):  # they end by themselves once they start
                client.ask(program, "--state=PENDING", self._job.partition("_")[0], seconds=30)

    def _leave_as_asked(self) -> NoReturn:
        """Requeue this job, unless somebody wants it to end, and exit.

        A time limit sends the announcement and, after the signal's delay, SIGTERM, as a cancelled job gets it, so only
        Slurm can tell those apart:

            announced   SIGTERM   Slurm's reason     requeued here
            no          yes       -                  no: cancelled, or a cluster that preempts without announcing it
            yes         no        -                  yes
            yes         yes       TimeLimit          yes
            yes         yes       anything else      no: cancelled, or preempted, and then Slurm requeues by itself
            yes         yes       cannot be asked    yes
        """
        if not self._asked.announced:
            say("SIGTERM without an announcement: not requeued by the job itself")
        elif self._asked.terminated and self._out_of_time() is False:
            say("cancelled, or preempted, after which Slurm requeues where it is set to: not requeued by the job")
        else:
            requeue(self._job, self._program, self._end)
        sys.exit(EXIT_STATUS[StageState.INTERRUPTED])

    def _leave_node(self) -> NoReturn:
        """Requeue this job after a trouble, away from this node if it is to blame, a few times."""
        own = sum(each.job == self._job for each in troubles.read(self._assignment.store))
        restarts = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
        # Where troubles cannot be noted, as on a full disk, the restarts stand for them.
        if own >= OWN_TROUBLES or restarts >= (MOST_RESTARTS if self._noted else OWN_TROUBLES):
            raise ElementFailed(f"not requeued after {own} troubles and {restarts} restarts: {self._trouble}")
        excluded = str(self._cluster.options.get("exclude", ""))
        requeue_elsewhere(self._assignment.store, self._job, self._program, excluded, self._end)
        sys.exit(EXIT_STATUS[StageState.INTERRUPTED])

    def _out_of_time(self) -> bool | None:
        """Tell whether Slurm ends this job for its time limit.

        Returns None where Slurm cannot be asked. While the job still runs its last lines, its state is COMPLETING
        whatever ended it: only the reason tells.
        """
        try:
            show = ("--oneliner", "show", "job", self._job)
            return "Reason=TimeLimit" in client.ask(self._program, *show, seconds=30)
        except (SlurmError, OSError):
            return None
