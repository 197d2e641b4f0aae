"""One side of a comparison: a process that takes steps when it is asked to.

Parent and process exchange a number of steps for an answer, one after the other, through a pipe. So of several
processes only one computes at a time, none shares its memory, threads or compiler caches with another, and one that
fails takes none along.

    parent                         process
    Side("ours", work)             builds the network
    answer()             <-        None: ready for the first step
    ask(20)              ->        takes 20 steps
                         <-        1.7: the seconds that these took
    (pipe closed)        ->        ends
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from bench.speed.work import BARE, COMPILED, OURS, RELEASED, SAME, TRAINER, TRAINER_COMPILED, Work
from bench.store.provenance import cores, provenance

LOOPS = dict.fromkeys((OURS, COMPILED), "bench.speed.ours")
LOOPS |= dict.fromkeys((RELEASED, SAME, BARE), "bench.speed.references")
LOOPS |= dict.fromkeys((TRAINER, TRAINER_COMPILED), "bench.speed.trainer")
"""The modules whose `run` trains; each is imported in its own process only."""
FLOPS, PEAK, FACTS = "flops", "peak", "facts"
"""Sides that train nothing: operations per step, those of matrix products per second, what device this is."""
LOG = "log.txt"
"""In a side's folder: what it, and the libraries that it uses, print."""
PATIENCE_SECONDS = 60
"""How long a side may take to end."""


class Failed(Exception):
    """A side of a comparison failed, for example out of memory."""


class Turn(NamedTuple):
    """What a side measured in a turn.

    `others` is the share of the cores that others used meanwhile, None where it is unknown.
    """

    value: Any
    others: float | None


class Side:
    """A process for `who`: a training loop, `FLOPS`, `PEAK` or `FACTS`."""

    def __init__(self, who: str, work: Work) -> None:
        # torch's compiler keeps its cache in this folder, so that compiling costs what it costs the first time.
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        context = multiprocessing.get_context("spawn")
        self._pipe, other_end = context.Pipe()
        self._process = context.Process(target=_main, args=(who, work, other_end, self._folder.name))
        self._process.start()
        other_end.close()

    def close(self) -> None:
        """End the process; kill it after `PATIENCE_SECONDS`."""
        self._pipe.close()
        self._process.join(PATIENCE_SECONDS)
        self._process.kill()
        self._process.join()
        self._folder.cleanup()

    def answer(self) -> tuple[Any, float]:
        """Wait for the next value and the core seconds behind it.

        Raises `Failed` where the process has no answer.
        """
        try:
            answer: tuple[Any, float] | Failed = self._pipe.recv()
        except (EOFError, OSError):  # the process is gone
            self._process.join()
            lines = Path(self._folder.name, LOG).read_text("utf-8", errors="replace").strip().splitlines()
            answer = Failed(": ".join([f"exit status {self._process.exitcode}", *lines[-1:]]))
        if isinstance(answer, Failed):
            raise answer
        return answer

    def ask(self, steps: int) -> Turn:
        """Have it take so many steps, while all others wait."""
        busy_before, began = busy_seconds(), time.perf_counter()
        with contextlib.suppress(OSError):  # its answer says why it ended
            self._pipe.send(steps)
        value, cpu = self.answer()
        return Turn(value, others_share(busy_before, cpu, time.perf_counter() - began))


def ask_once(who: str, work: Work) -> Any:
    """Start a process for its first answer: `FLOPS` or `FACTS`."""
    with contextlib.closing(Side(who, work)) as side:
        return side.answer()[0]


def others_share(busy_before: float | None, own: float, seconds: float) -> float | None:
    """Compute the share of this process's cores that others used.

    A side computed for `own` seconds meanwhile. Example: in 10 s on 2 cores, these were busy for 15 s, of which the
    side's own are 13 s: others used 2 / 20 = 10 %.
    """
    busy = busy_seconds()
    if busy is None or busy_before is None:
        return None
    return max(0.0, busy - busy_before - own) / (seconds * cores())


def busy_seconds() -> float | None:
    """Read how long this process's cores were busy.

    What the host took away counts as busy. Returns None where that is unknown.
    """
    try:
        lines = Path("/proc/stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    allowed = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    # A line of /proc/stat, in ticks since the machine was started: the core, then user, nice, system, idle, waiting for
    # disks, interrupts (two kinds), stolen. Example: cpu0 4705 356 584 369500 2310 12 50 0
    counts = [[int(count) for count in fields[1:9]] for line in lines if (fields := line.split())[:1][0] in allowed]
    return sum(sum(count) - count[3] - count[4] for count in counts) / os.sysconf("SC_CLK_TCK")


# ------------------------------------------------------------------------------------------------ in the process


def _main(who: str, work: Work, pipe: Connection, folder: str) -> None:
    """Do one side's work until the parent closes the pipe."""
    # Before torch is imported: it reads these once.
    threads = str(work.threads)
    os.environ.update(OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads, TORCHINDUCTOR_CACHE_DIR=folder)
    with Path(folder, LOG).open("w") as log:  # what libraries print: its last line is shown if the process dies
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    began = 0.0

    # The work calls this where a turn ends. It sends the value to the parent, waits until the parent asks for another
    # turn, and returns the steps of that turn: 0, which ends the work, where the parent has closed the pipe.
    def next_turn(value: Any) -> int:
        nonlocal began
        steps = 0
        with contextlib.suppress(EOFError, OSError):  # the parent has closed its end
            pipe.send((value, time.process_time() - began))
            steps = pipe.recv()
        began = time.process_time()
        return steps

    try:
        _work(who, work, next_turn)
    except Exception as error:  # whatever a library raises is this side's result
        lines = str(error).strip().splitlines()
        pipe.send(Failed(f"{type(error).__name__}: {lines[0] if lines else 'no message'}"))


def _work(who: str, work: Work, next_turn: Callable[[Any], int]) -> None:
    import torch

    from bench import device as devices
    from bench.speed import ours, peak
    from bench.speed.pace import Pace

    # The other loops stand for what one would write without this suite.
    (devices.use_cpu if who in (OURS, COMPILED) else torch.set_num_threads)(work.threads)
    torch.manual_seed(0)
    device = devices.resolve(work.device)
    if who == FLOPS:
        next_turn(ours.flops_per_step(work))
    elif who == PEAK:  # None first, as a loop that is ready for its first step; then a measurement for every turn
        value = None
        while next_turn(value):
            value = peak.flops_per_second(work)
    elif who == FACTS:
        next_turn({"bfloat16": peak.has_bfloat16(device), **provenance(work.device, work.threads)})
    else:
        importlib.import_module(LOOPS[who]).run(work, Pace(device, next_turn), who)
