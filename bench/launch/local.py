"""Run stages in worker processes on this machine: one or several per GPU, or one per core on a CPU."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue as queues
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from bench.launch.devices import visible_devices
from bench.launch.inline import POLL_SECONDS
from bench.launch.queue import Queue
from bench.launch.reporter import Reporter
from bench.specs import Stage
from bench.store.states import StageState
from bench.store.store import Store
from bench.training.protocol import Outcome, Settings, death

Events = queues.Queue[tuple["Worker", dict[str, Any]]]


class Worker:
    """A worker process.

    Takes one stage at a time over its standard input, answers on its standard output.
    """

    def __init__(self, number: int, settings: Settings, events: Events, alone: bool = False) -> None:
        self.number = number
        self.device = settings.device
        self.alone = alone
        self.stage: Stage | None = None
        environment = {**os.environ, "OMP_NUM_THREADS": str(settings.threads), "MKL_NUM_THREADS": str(settings.threads)}
        if settings.device.startswith("cuda"):
            # The worker sees one GPU, so nothing can land on another by default.
            environment["CUDA_VISIBLE_DEVICES"] = visible_device(settings.device)
            settings = dataclasses.replace(settings, device="cuda:0")
        command = [sys.executable, "-m", "bench.training.worker", "--serve", *settings.arguments()]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8", env=environment
        )
        threading.Thread(target=self._listen, args=(events,), daemon=True).start()

    def _listen(self, events: Events) -> None:
        # In a thread per worker: so the run waits for one queue instead of many pipes. The end of the output is the end
        # of the process, so that "gone" is the last event of a worker.
        assert self.process.stdout is not None  # piped above
        for line in self.process.stdout:
            events.put((self, json.loads(line)))
        events.put((self, {"event": "gone", "status": self.process.wait()}))

    def give(self, stage: Stage, store: Store) -> None:
        """Start a stage.

        A worker that has just died answers with its end.
        """
        self.stage = stage
        assert self.process.stdin is not None  # piped above
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{store.add(stage)}\n")
            self.process.stdin.flush()

    def close(self) -> None:
        """Ask the process to end.

        A stage that it still runs is checkpointed first.
        """
        assert self.process.stdin is not None  # piped above
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()


class Crew:
    """The worker processes of a run, at most one per entry of `settings`.

    A worker is started when there is a stage for it. A stage that was out of memory beside others waits until they have
    ended, and then has its device for itself, in a new process: the others give their memory back only by ending.
    Example: workers 0 and 1 share cuda:0, and B runs out of memory in 1 while A runs in 0. `keep` notes B, and `free`
    gives cuda:0 to nobody. When A has ended, `next_alone` ends both workers and gives B to a new one. When B has ended,
    that is dismissed, and cuda:0 is free again.
    """

    def __init__(self, settings: Sequence[Settings]) -> None:
        self.events: Events = queues.Queue()
        self.alive: list[Worker] = []
        self._settings = settings
        self._crowded: defaultdict[str, list[Stage]] = defaultdict(list)
        """Device -> the stages to be tried alone on it."""

    @property
    def busy(self) -> bool:
        """Whether any worker has a stage."""
        return any(worker.stage is not None for worker in self.alive)

    def free(self) -> int | None:
        """Return the number of a worker for a stage beside others.

        A running worker is preferred to a new one. Returns None if none is free.
        """
        # A device is kept from new stages while one waits to be alone on it, and while one is.
        taken = {worker.number for worker in self.alive if worker.stage is not None}
        kept = {device for device, stages in self._crowded.items() if stages}
        kept |= {worker.device for worker in self.alive if worker.alone}
        numbers = [n for n, each in enumerate(self._settings) if n not in taken and each.device not in kept]
        running = {worker.number for worker in self.alive}
        return min(numbers, key=lambda number: (number not in running, number), default=None)

    def worker(self, number: int) -> Worker:
        """Return the worker of this number, started if it does not run."""
        for worker in self.alive:
            if worker.number == number:
                return worker
        self.alive.append(Worker(number, self._settings[number], self.events))
        return self.alive[-1]

    def keep(self, worker: Worker, stage: Stage) -> None:
        """Have a stage tried again alone on this worker's device."""
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
        for worker in self.alive:
            worker.process.send_signal(signal.SIGTERM)

    def close(self) -> None:
        """Wait until all have ended.

        What they still run is checkpointed first.
        """
        for worker in self.alive:
            worker.close()
        for worker in self.alive:
            worker.process.wait()


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
                crew.stop()
            try:
                worker, event = crew.events.get(timeout=POLL_SECONDS)
            except queues.Empty:
                continue
            outcome = _react(worker, event, queue, crew, report)
            if outcome is not None and outcome.state == StageState.BUSY:
                not_before = time.monotonic() + POLL_SECONDS
    finally:
        crew.close()


def _next_stages(
    queue: Queue, crew: Crew, stop: Callable[[], bool], not_before: float
) -> Iterator[tuple[Worker, Stage]]:
    """Yield the stages that can start now, each with its worker.

    A stage must have begun before the next one is asked for. Those that wait for a device of their own come first, else
    others would take it from them again.
    """
    while not stop() and (alone := crew.next_alone()) is not None:
        yield alone
    while not stop() and time.monotonic() >= not_before and (number := crew.free()) is not None:
        stage = queue.next()
        if stage is None:
            return
        yield crew.worker(number), stage


def _react(worker: Worker, event: dict[str, Any], queue: Queue, crew: Crew, report: Reporter) -> Outcome | None:
    """Act on an event of a worker.

    That is progress, the end of a stage, or the end of the process. Returns a stage's end, None for everything else.
    """
    stage = worker.stage
    if event["event"] == "progress" and stage is not None:
        report.progress(worker.number, event["step"], event["steps"], event["loss"])
        return None
    if event["event"] == "gone" and worker in crew.alive:
        crew.alive.remove(worker)
    if stage is None:  # an idle process that was asked to end
        return None
    outcome, worker.stage = _outcome(event), None
    if outcome.state == StageState.CROWDED:
        crew.keep(worker, stage)
    else:
        queue.finish(stage, outcome)
    report.ended(stage, worker.number, outcome)
    if worker.alone and worker in crew.alive:
        crew.dismiss(worker)
    return outcome


def visible_device(device: str) -> str:
    """Return what CUDA_VISIBLE_DEVICES must hold for a worker on `device`.

    For cuda:i that is the i-th of the GPUs that this process may use.
    """
    index = int(device.partition(":")[2])
    return visible_devices(index + 1)[index]


def _outcome(event: dict[str, Any]) -> Outcome:
    if event["event"] == "end":
        return Outcome(StageState(event["state"]), event["reason"], event["from_step"], tuple(event["warnings"]))
    reason = f"the worker process died: {death(event['status'])}; run the grid again to go on from its checkpoint"
    return Outcome(StageState.FAILED, reason)
