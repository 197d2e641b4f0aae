"""The class of a failure, from its reason and the ends of two logs, in the words that programs really use."""

from __future__ import annotations

import pytest

from bench.monitor.failures import CLASSES, FIXES, classify

STAGE_LOG = "step 40/100 loss 0.3\n"
TIME = "slurmstepd: error: *** JOB 23 ON n2 CANCELLED AT 2026-11-27T04:24:47 DUE TO TIME LIMIT ***"
NODE = "slurmstepd: error: *** JOB 23 ON n2 CANCELLED AT 2026-11-27T04:24:47 DUE TO NODE FAILURE, SEE SLURMCTLD LOG ***"
OOM = "slurmstepd: error: Detected 1 oom_kill event in StepId=7.batch. Some of the step tasks have been OOM Killed."
OVER = (
    "slurmstepd-n1: error: StepId=19.batch exceeded memory limit (223506432 > 52428800), being killed\n"
    "slurmstepd-n1: error: Exceeded job memory limit\n"
    "slurmstepd-n1: error: *** JOB 19 ON n1 CANCELLED AT 2026-11-27T04:24:47 ***"
)
SETUP = "slurm.setup failed on node n1 with exit status 1: module load cuda"
KILLED = "the worker process died: signal SIGKILL (often the system's out-of-memory killer)"
FALSE_STARTS = "the worker process died: exit status 1, 3 times before it had begun; what it printed stands above"


@pytest.mark.parametrize(
    ("reason", "logs", "kind"),
    [
        # Slurm's memory limit, by the system's killer and by OverMemoryKill, which it calls a launch failure.
        ("its job ended: OUT_OF_MEMORY", (STAGE_LOG, ""), "out of memory"),
        ("the worker process died: exit status 137", (STAGE_LOG, OOM), "out of memory"),
        ("its job ended: FAILED JobLaunchFailure", (STAGE_LOG, OVER), "out of memory"),
        (KILLED, ("", ""), "out of memory"),
        # A line of slurm.setup; and then another attempt that came to its time limit, which counts.
        ("its job ended: FAILED NonZeroExitCode", ("", SETUP), "setup"),
        ("its job ended: FAILED NonZeroExitCode", ("", f"{TIME}\n{SETUP}"), "setup"),
        ("its job ended: FAILED NonZeroExitCode", ("", f"{SETUP}\n{TIME}"), "time-out"),
        ("its job ended: FAILED NonZeroExitCode", (f"{STAGE_LOG}No space left on device", SETUP), "setup"),
        # Launch failures.
        ("its job ended: FAILED JobLaunchFailure", ("", ""), "setup"),
        ("its job ended: FAILED RaisedSignal:53(Real-time_signal_19)", ("", ""), "setup"),
        ("launch failed requeued held", (), "setup"),
        ("", ("slurmstepd: error: execve(): bad interpreter(/nowhere/bash): No such file or directory",), "setup"),
        # Import errors, with a message that names a file.
        ("the worker process died: exit status 1", ("ModuleNotFoundError: No module named 'timm'", ""), "setup"),
        (FALSE_STARTS, ("", "ImportError: libcudnn.so.9: cannot open shared object file: No such file"), "setup"),
        (FALSE_STARTS, ("", ""), "setup"),
        (FALSE_STARTS, ("", "RuntimeError: No CUDA GPUs are available"), "node"),
        # Nodes and GPUs.
        ("its job ended: NODE_FAIL", (STAGE_LOG, ""), "node"),
        (KILLED, (STAGE_LOG, NODE), "node"),
        ("DeviceError: torch finds no GPU", ("", ""), "node"),
        ("the worker process died: exit status 1", ("", "RuntimeError: No CUDA GPUs are available"), "node"),
        # Disks.
        ("OSError: [Errno 28] No space left on device", ("", ""), "data"),
        ("the worker process died: exit status 1", ("OSError: [Errno 122] Disk quota exceeded", ""), "data"),
        # Time.
        ("its job ended: TIMEOUT", (STAGE_LOG, ""), "time-out"),
        (KILLED, (STAGE_LOG, TIME), "time-out"),
        # All else.
        ("ValueError: bad shape", (STAGE_LOG, "slurmstepd: error: *** JOB 19 ON n1 CANCELLED AT 04:24:47 ***"), "code"),
        ("Diverged: the loss is nan", ("", ""), "diverged"),
    ],
)
def test_every_failure_is_of_its_class(reason: str, logs: tuple[str, ...], kind: str) -> None:
    assert classify(reason, *logs) == kind


def test_what_the_stage_itself_said_counts_more_than_what_was_got_over() -> None:
    assert classify("OutOfMemoryError: CUDA out of memory", f"{SETUP}\n{STAGE_LOG}") == "out of memory"


def test_every_class_has_a_fix() -> None:
    assert CLASSES.keys() == FIXES.keys()
