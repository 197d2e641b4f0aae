"""What runs inside a Slurm job: starts one worker process per stage, owns the signals, requeues its own element.

Slurm announces a preemption or the time limit with a signal: SIGUSR2, where `slurm.signal` names no other. Training
must not run under a handler of it (forked children would inherit it, and a checkpoint in the middle of a step is no
checkpoint), so this thin process has it, and tells the workers with SIGTERM to checkpoint at the next step boundary.
Whether a stage is done is read from the store, never from what a process or Slurm says. This module imports neither
torch nor numpy and starts no threads.

The life of a job that is preempted, with two stages and a signal 120 s before the end:

    start         one StageProcess each; `look` starts their workers
    every 0.2 s   `look`: one worker ends, its record is there, the stage's `end` is done
    SIGUSR2       `announced` is set; the other worker gets SIGTERM, writes its checkpoint and ends: interrupted
    after 110 s   SIGKILL for workers that have not ended (not needed here)
    at the end    scontrol requeue, exit status 75; the same element starts again later, and goes on from the checkpoint
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

import baselines
from bench.errors import InputError
from bench.launch.slurm import client
from bench.launch.slurm.assignment import Assignment
from bench.launch.slurm.client import SlurmError
from bench.launch.slurm.stage_process import End, StageProcess, _number, _say
from bench.store.ownership import JOB_VARIABLE
from bench.store.provenance import cores
from bench.store.states import StageState
from bench.training.protocol import EXIT_STATUS

POLL_SECONDS = 0.2
MARGIN_SECONDS = 10.0
"""Of the signal's delay, kept for ending the workers and asking Slurm for the requeue."""
REQUEUE_TRIES = 5


class ElementFailed(Exception):
    """A stage failed or was refused, so the job must fail, too."""


# --------------------------------------------------------------------------------------------- what Slurm asks for


class Signals:
    """The signals that ask for an end.

    `announced` is whether one announced it; `terminated` is whether SIGTERM came, which is the end itself.
    """

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


def _requeue(job: str) -> None:
    """Have Slurm start this element again.

    Raises ElementFailed with Slurm's own words if it refuses.
    """
    for _ in range(REQUEUE_TRIES):
        try:
            client.ask("scontrol", "requeue", job, seconds=30)
            reason = ""
        except (SlurmError, OSError) as error:
            reason = str(error)
        if not reason or "pending" in reason.lower():  # Slurm was faster: it requeues a preempted job by itself
            _say(f"requeued {job}")
            return
        _say(f"scontrol requeue {job}: {reason}")
        time.sleep(2)  # the controller may be restarting
    raise ElementFailed(f"Slurm would not requeue {job}: {reason}. The checkpoints are written: submit the grid again.")


def _out_of_time(job: str) -> bool | None:
    """Tell whether Slurm ends this job for its time limit.

    Returns None where Slurm cannot be asked. While the job still runs its last lines, its state is COMPLETING whatever
    ended it: only the reason tells.
    """
    try:
        return "Reason=TimeLimit" in client.ask("scontrol", "--oneliner", "show", "job", job, seconds=30)
    except (SlurmError, OSError):
        return None


# --------------------------------------------------------------------------------------------------------- the job


def supervise(assignment: Assignment) -> None:
    """Run the stages of an element until each has its record.

    This is what submitit calls inside the job. Ends the process with status 75 when it was interrupted, after requeuing
    this element if a signal had announced the end; raises ElementFailed if a stage failed, after all others ended.
    """
    asked = Signals()
    asked.take_over(assignment.signal)
    baselines.register()  # the spec types that a stage may hold
    job = os.environ[JOB_VARIABLE] = job_name()
    stages = [StageProcess(number, assignment, job) for number in range(len(assignment.stages))]
    for stage in stages:
        stage.beside = [other for other in stages if other is not stage and other.gpu == stage.gpu]
    needed = assignment.settings.threads * len(assignment.stages)
    _say(f"job {job}: {len(assignment.stages)} stage(s), {cores()} core(s)")
    if cores() < needed:
        _say(f"warning: {needed} core(s) are wanted; the workers will share")
    try:
        while not asked and any(stage.end is None for stage in stages):
            _look(stages, stopping=False)
        if any(stage.end is None for stage in stages):
            _checkpoint(stages, asked, assignment.signal_delay_s)
    finally:  # no worker outlives this process, whatever was raised
        for stage in stages:
            stage.close()
    # Interrupted stages go first: the element is requeued for their sake even where others failed. Those have their
    # failure in the store, and the requeued job does not try them again but fails with their reason at the end.
    ends = _ends(stages, requeuing=asked.announced)
    if any(end.state == StageState.INTERRUPTED for end in ends.values()):
        _leave(job, asked)
    failed = [f"{name} {end.state}: {end.reason}" for name, end in ends.items() if end.state != StageState.DONE]
    if failed:
        raise ElementFailed("; ".join(failed))


def _look(stages: Sequence[StageProcess], stopping: bool) -> None:
    for stage in stages:
        stage.look(stopping)
    time.sleep(POLL_SECONDS)


def _checkpoint(stages: Sequence[StageProcess], asked: Signals, signal_delay_s: float) -> None:
    """Have the workers checkpoint, and wait until they have ended.

    Kills those that are not done shortly before Slurm would.
    """
    seconds = max(signal_delay_s - MARGIN_SECONDS, signal_delay_s / 2)
    _say(f"{'end announced' if asked.announced else 'SIGTERM'}: checkpointing, for {seconds:g} s at most")
    for stage in stages:
        stage.send(signal.SIGTERM)
    end = time.monotonic() + seconds
    while any(stage.end is None for stage in stages):
        if time.monotonic() >= end:
            for stage in stages:
                stage.send(signal.SIGKILL)
        _look(stages, stopping=True)


def _ends(stages: Sequence[StageProcess], requeuing: bool) -> dict[str, End]:
    """Return how each stage ended, by its folder's name.

    Where this element is to be requeued, an interrupted stage that makes no progress has failed instead.
    """
    ends = {}
    for stage in stages:
        if requeuing and stage.end is not None and stage.end.state == StageState.INTERRUPTED:
            stage.give_up_if_stuck()
        assert stage.end is not None, "looked at until it had one"
        ends[stage.folder.name] = stage.end
    return ends


def _leave(job: str, asked: Signals) -> NoReturn:
    """Requeue this element, unless somebody wants it to end, and exit.

    A time limit sends the announcement and, after the signal's delay, SIGTERM, as a cancelled job gets it, so only
    Slurm can tell those apart:

        announced   SIGTERM   Slurm's reason     requeued here
        no          yes       -                  no: cancelled, or a cluster that preempts without announcing it
        yes         no        -                  yes
        yes         yes       TimeLimit          yes
        yes         yes       anything else      no: cancelled, or preempted, and then Slurm requeues by itself
        yes         yes       cannot be asked    yes
    """
    if not asked.announced:
        _say("SIGTERM without an announcement: not requeued by the job itself")
    elif asked.terminated and _out_of_time(job) is False:
        _say("cancelled, or preempted, after which Slurm requeues where it is set to: not requeued by the job")
    else:
        _requeue(job)
    sys.exit(EXIT_STATUS[StageState.INTERRUPTED])
