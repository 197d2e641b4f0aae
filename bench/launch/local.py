"""Run stages in worker processes on this machine: one or several per GPU, or one per core on a CPU."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue as queues
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from bench.errors import RunStopped
from bench.launch.devices import visible_devices
from bench.launch.inline import POLL_SECONDS
from bench.launch.queue import Queue
from bench.launch.reporter import Reporter
from bench.specs import Stage
from bench.store.states import StageState
from bench.store.store import Store
from bench.training.protocol import EXIT_STATUS, MOST_FALSE_STARTS, Outcome, Settings, death, read_event
from bench.training.signals import held_back

Events = queues.Queue[tuple["Worker", dict[str, Any]]]


EXIT_SECONDS = 30.0
"""How long a worker may take to end after its line to the launcher was closed."""


class Worker:
    """A worker process.

    Takes one stage at a time over a socket of its own, and answers there. `ready` is whether it has imported all that
    it needs. What it prints besides goes where this process's errors go.
    """

    def __init__(self, number: int, settings: Settings, events: Events, alone: bool = False) -> None:
        self.number = number
        self.device = settings.device
        self.alone = alone
        self.stage: Stage | None = None
        self.ready = False
        environment = {**os.environ, "OMP_NUM_THREADS": str(settings.threads), "MKL_NUM_THREADS": str(settings.threads)}
        if settings.device.startswith("cuda"):
            # The worker sees one GPU, so nothing can land on another by default.
            environment["CUDA_VISIBLE_DEVICES"] = visible_device(settings.device)
            settings = dataclasses.replace(settings, device="cuda:0")
        self._line, theirs = socket.socketpair()
        serve = ["--serve", str(theirs.fileno())]
        with theirs, held_back():
            self.process = subprocess.Popen(
                [sys.executable, "-m", "bench.training.worker", *serve, *settings.arguments()],
                stdin=subprocess.DEVNULL,
                stdout=_standard_error(),
                pass_fds=[theirs.fileno()],
                env=environment,
            )
        threading.Thread(target=self._close_at_exit, daemon=True).start()
        threading.Thread(target=self._listen, args=(events,), daemon=True).start()

    def _close_at_exit(self) -> None:
        # A child that the worker leaves behind would keep the line open, and `_listen` waiting. What the worker has
        # said until its end is still read.
        self.process.wait()
        with contextlib.suppress(OSError):
            self._line.shutdown(socket.SHUT_RD)

    def _listen(self, events: Events) -> None:
        # In a thread per worker: so the run waits for one queue instead of many sockets. However this ends, "gone" is
        # the last event of a worker, so that nobody waits for one that cannot be heard.
        deaf = ""
        try:
            with self._line.makefile(encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    events.put((self, read_event(line) or {"event": "said", "text": line.rstrip()}))
        except ConnectionResetError:  # it ended before it had read what it was given
            pass
        except Exception as error:
            deaf = f"it could not be heard any more ({error})"
        try:
            status = self.process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
            deaf = deaf or "it had closed its line to the launcher"
        self._line.close()
        events.put((self, {"event": "gone", "status": status, "deaf": deaf}))

    def give(self, stage: Stage, store: Store) -> None:
        """Start a stage.

        Where the worker has just died, its event "gone" tells.
        """
        self.stage = stage
        folder = json.dumps(str(store.add(stage)))
        with contextlib.suppress(OSError):
            self._line.sendall(f"{folder}\n".encode())

    def close(self) -> None:
        """Ask the process to end.

        A stage that it still runs is checkpointed first.
        """
        with contextlib.suppress(OSError):
            self._line.shutdown(socket.SHUT_WR)


def _standard_error() -> int:
    """Return the descriptor that everything printed by workers goes to."""
    try:
        os.fstat(2)
    except OSError:  # closed, as some daemons do
        return subprocess.DEVNULL
    return 2


class Crew:
    """The worker processes of a run, at most one per entry of `settings`.

    A worker is started when there is a stage for it. A stage that was out of memory beside others waits until they have
    ended, and then has its device for itself, in a new process: the others give their memory back only by ending.
    Example: workers 0 and 1 share cuda:0, and B runs out of memory in 1 while A runs in 0. `retry_alone` notes B, and
    `free` gives cuda:0 to nobody. When A has ended, `next_alone` ends both workers and gives B to a new one. When B has
    ended, that is dismissed, and cuda:0 is free again.
    """

    def __init__(self, settings: Sequence[Settings]) -> None:
        self.events: Events = queues.Queue()
        self.alive: list[Worker] = []
        self._settings = settings
        self._crowded: defaultdict[str, list[Stage]] = defaultdict(list)
        """Device -> the stages to be tried alone on it."""
        self.false_starts = 0
        """How many workers in a row ended before they were ready."""

    @property
    def busy(self) -> bool:
        """Whether any worker has a stage."""
        return any(worker.stage is not None for worker in self.alive)

    def free(self) -> int | None:
        """Return the number of a worker for a stage beside others.

        A running worker is preferred to a new one. Returns None if none is free.
        """
        # A device is reserved while a stage waits to be alone on it, and while one is.
        taken = {worker.number for worker in self.alive if worker.stage is not None}
        reserved = {device for device, stages in self._crowded.items() if stages}
        reserved |= {worker.device for worker in self.alive if worker.alone}
        numbers = [n for n, each in enumerate(self._settings) if n not in taken and each.device not in reserved]
        running = {worker.number for worker in self.alive}
        return min(numbers, key=lambda number: (number not in running, number), default=None)

    def worker(self, number: int) -> Worker:
        """Return the worker of this number, started if it does not run."""
        for worker in self.alive:
            if worker.number == number:
                return worker
        self.alive.append(Worker(number, self._settings[number], self.events))
        return self.alive[-1]

    def retry_alone(self, worker: Worker, stage: Stage) -> None:
        """Have a stage tried again, alone on this worker's device."""
        self._crowded[worker.device].append(stage)

    def next_alone(self) -> tuple[Worker, Stage] | None:
        """Return the next stage to be alone on its device, with its worker.

        The worker is a new process. Returns None if there is no such stage at present.
        """
        for device, stages in self._crowded.items():
            workers = [worker for worker in self.alive if worker.device == device]
            if not stages or any(worker.stage is not None for worker in workers):
                continue
            for worker in workers:
                self.dismiss(worker)
            number = next(n for n, settings in enumerate(self._settings) if settings.device == device)
            settings = dataclasses.replace(self._settings[number], shared=False)
            self.alive.append(Worker(number, settings, self.events, alone=True))
            return self.alive[-1], stages.pop(0)
        return None

    def dismiss(self, worker: Worker) -> None:
        """End a worker that has no stage, and await its end."""
        self.alive.remove(worker)
        worker.close()
        worker.process.wait()

    def stop(self) -> None:
        """Ask all workers to checkpoint and end."""
        # Not by a signal: a terminal has sent them one already, and a second one would end them at once.
        for worker in self.alive:
            worker.close()

    def close(self) -> None:
        """Wait until all have ended.

        What they still run is checkpointed first.
        """
        self.stop()
        for worker in self.alive:
            worker.process.wait()

    def count_false_start(self, status: int) -> None:
        """Note that a worker ended before it was ready; end the run after several in a row."""
        self.false_starts += 1
        if self.false_starts == MOST_FALSE_STARTS:
            raise RunStopped(
                f"{MOST_FALSE_STARTS} workers in a row ended before they could begin a stage, the last with "
                f"{death(status)}. What they printed stands above: mend that, and the same command goes on."
            )


def run(queue: Queue, store: Store, settings: Sequence[Settings], stop: Callable[[], bool], report: Reporter) -> None:
    """Run with one worker per entry of `settings`, until nothing is left.

    A stop that is asked for ends it, too. Every round gives stages to the workers that are free, waits for one event of
    any worker, and acts on it. With two workers and the stages A and B, of which B needs A: the first round gives A to
    worker 0, and rounds pass with its progress until its end, which lets the queue give out B. Once a stop is asked
    for, nothing is given out any more, and the rounds go on until the last worker has written its checkpoint.
    """
    crew = Crew(settings)
    not_before = 0.0  # after a stage held elsewhere, look again only then
    stopping = False
    try:
        while crew.busy or not (queue.over or stop()):
            for worker, stage in _next_stages(queue, crew, stop, not_before):
                report.started(stage, worker.number)
                worker.give(stage, store)
            if stop() and not stopping:
                stopping = True
                report.stopping()
                crew.stop()
            try:
                worker, event = crew.events.get(timeout=POLL_SECONDS)
            except queues.Empty:
                continue
            outcome = _react(worker, event, queue, crew, store, report)
            if outcome is not None and outcome.state == StageState.BUSY:
                not_before = time.monotonic() + POLL_SECONDS
    finally:
        crew.close()


def _next_stages(
    queue: Queue, crew: Crew, stop: Callable[[], bool], not_before: float
) -> Iterator[tuple[Worker, Stage]]:
    """Yield the stages that can start now, each with its worker.

    The caller starts each before it asks for the next, as that decides which workers are free. Stages that wait to be
    alone on a device come first, else others would take it from them again.
    """
    while not stop() and (alone := crew.next_alone()) is not None:
        yield alone
    while not stop() and time.monotonic() >= not_before and (number := crew.free()) is not None:
        stage = queue.next()
        if stage is None:
            return
        yield crew.worker(number), stage


def _react(
    worker: Worker, event: dict[str, Any], queue: Queue, crew: Crew, store: Store, report: Reporter
) -> Outcome | None:
    """Act on an event of a worker.

    That is one of `bench.training.protocol.EVENTS`, a line that is none of them, or the end of the process. Returns a
    stage's end, None for everything else.
    """
    stage = worker.stage
    if event["event"] == "ready":
        worker.ready, crew.false_starts = True, 0
    elif event["event"] == "said":
        report.said(worker.number, event["text"])
    elif event["event"] == "progress" and stage is not None:
        report.progress(worker.number, event["step"], event["steps"], event["loss"])
    if event["event"] not in ("end", "gone"):
        return None
    if event["event"] == "gone" and worker in crew.alive:
        crew.alive.remove(worker)
    if stage is None:  # an idle process that was asked to end
        return None
    outcome, worker.stage = _outcome(worker, stage, event, store), None
    if outcome.state == StageState.CROWDED:
        crew.retry_alone(worker, stage)
    else:
        queue.finish(stage, outcome)
    report.ended(stage, worker.number, outcome)
    if worker.alone and worker in crew.alive:
        crew.dismiss(worker)
    if event["event"] == "gone" and not worker.ready and event["status"] != ASKED_TO_END:
        crew.count_false_start(event["status"])
    return outcome


def visible_device(device: str) -> str:
    """Return what CUDA_VISIBLE_DEVICES must hold for a worker on `device`.

    For cuda:i it holds the i-th of the GPUs that this process may use.
    """
    index = int(device.partition(":")[2])
    return visible_devices(index + 1)[index]


ASKED_TO_END = EXIT_STATUS[StageState.INTERRUPTED]
"""The exit status of a worker that a signal or its launcher asked to end."""


def _outcome(worker: Worker, stage: Stage, event: dict[str, Any], store: Store) -> Outcome:
    """Return how a worker's stage ended, by the worker's word, its record, or its process's end."""
    if event["event"] == "end":
        return Outcome(StageState(event["state"]), event["reason"], event["from_step"], tuple(event["warnings"]))
    died = f"the worker process died: {event['deaf'] or death(event['status'])}"
    if store.record(stage) is not None:  # it was published, and only the word of it was lost
        return Outcome(StageState.DONE, warnings=(died,))
    if event["status"] == ASKED_TO_END:
        return Outcome(StageState.INTERRUPTED, "before it began: its worker was asked to end")
    if not worker.ready:  # nothing of the stage was looked at yet: not its fault
        return Outcome(StageState.INTERRUPTED, f"before it began: {died}; what it printed stands above")
    return Outcome(StageState.FAILED, f"{died}; run the grid again to go on from its checkpoint")
