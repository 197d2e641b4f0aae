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
from collections.abc import Callable, Sequence
from typing import Any

from bench.launch.devices import visible_devices
from bench.launch.inline import POLL_SECONDS
from bench.launch.queue import Queue
from bench.launch.reporter import Reporter
from bench.specs import Stage
from bench.store.store import Store
from bench.training.protocol import Outcome, Settings, death

Events = queues.Queue[tuple["Worker", dict[str, Any]]]


class Worker:
    """A worker process: takes one stage at a time over its standard input, answers on its standard output."""

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
        assert self.process.stdout is not None  # piped above
        for line in self.process.stdout:
            events.put((self, json.loads(line)))
        events.put((self, {"event": "gone", "status": self.process.wait()}))

    def give(self, stage: Stage, store: Store) -> None:
        """Start a stage; a worker that has just died answers with its end."""
        self.stage = stage
        assert self.process.stdin is not None  # piped above
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{store.add(stage)}\n")
            self.process.stdin.flush()

    def close(self) -> None:
        """Ask the process to end; a stage that it still runs is checkpointed first."""
        assert self.process.stdin is not None  # piped above
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()


class Crew:
    """The worker processes of a run, at most one per entry of `settings`, started when there is a stage for them.

    A stage that was out of memory beside others waits until they have ended, and then has its device for itself, in a
    new process: the others give their memory back only by ending.
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
        """The number of a worker that can take a stage beside others, one that is running rather than a new one."""
        taken = {worker.number for worker in self.alive if worker.stage is not None}
        kept = {device for device, stages in self._crowded.items() if stages}
        kept |= {worker.device for worker in self.alive if worker.alone}
        numbers = [n for n, one in enumerate(self._settings) if n not in taken and one.device not in kept]
        running = {worker.number for worker in self.alive}
        return min(numbers, key=lambda number: (number not in running, number), default=None)

    def worker(self, number: int) -> Worker:
        """The worker of this number, started if it does not run."""
        for worker in self.alive:
            if worker.number == number:
                return worker
        self.alive.append(Worker(number, self._settings[number], self.events))
        return self.alive[-1]

    def keep(self, worker: Worker, stage: Stage) -> None:
        """Have a stage tried again alone on this worker's device."""
        self._crowded[worker.device].append(stage)

    def next_alone(self) -> tuple[Worker, Stage] | None:
        """A stage whose turn it is to be alone on its device, and its worker; None if there is none at present."""
        for device, stages in self._crowded.items():
            there = [worker for worker in self.alive if worker.device == device]
            if not stages or any(worker.stage is not None for worker in there):
                continue
            for worker in there:
                self.dismiss(worker)
            number = next(n for n, one in enumerate(self._settings) if one.device == device)
            settings = dataclasses.replace(self._settings[number], shared=False)
            self.alive.append(Worker(number, settings, self.events, alone=True))
            return self.alive[-1], stages.pop(0)
        return None

    def dismiss(self, worker: Worker) -> None:
        """End a worker that has no stage, and wait until its process is gone."""
        self.alive.remove(worker)
        worker.close()
        worker.process.wait()

    def stop(self) -> None:
        """Ask all workers to checkpoint and end."""
        for worker in self.alive:
            worker.process.send_signal(signal.SIGTERM)

    def close(self) -> None:
        """Wait until all have ended; what they still run is checkpointed first."""
        for worker in self.alive:
            worker.close()
        for worker in self.alive:
            worker.process.wait()


def run(queue: Queue, store: Store, settings: Sequence[Settings], stop: Callable[[], bool], report: Reporter) -> None:
    """Run with one worker per entry of `settings` until nothing is left or a stop is asked for."""
    crew = Crew(settings)
    not_before = 0.0  # after a stage held elsewhere, look again only then
    told_to_stop = False

    def give(worker: Worker, stage: Stage) -> None:
        report.started(stage, worker.number)
        worker.give(stage, store)

    try:
        while not queue.over or crew.busy:
            if stop() and not crew.busy:
                return
            while not stop() and (alone := crew.next_alone()) is not None:
                give(*alone)
            while not stop() and time.monotonic() >= not_before and (number := crew.free()) is not None:
                stage = queue.next()
                if stage is None:
                    break
                give(crew.worker(number), stage)
            if stop() and not told_to_stop:
                told_to_stop = True
                crew.stop()
            try:
                worker, event = crew.events.get(timeout=POLL_SECONDS)
            except queues.Empty:
                continue
            if event["event"] == "progress" and worker.stage is not None:
                report.progress(worker.number, event["step"], event["steps"], event["loss"])
                continue
            if event["event"] == "gone" and worker in crew.alive:
                crew.alive.remove(worker)
            if worker.stage is None:
                continue
            outcome, stage, worker.stage = _outcome(event), worker.stage, None
            if outcome.state == "crowded":
                crew.keep(worker, stage)
            else:
                queue.finish(stage, outcome)
            report.ended(stage, worker.number, outcome)
            if worker.alone and worker in crew.alive:
                crew.dismiss(worker)
            if outcome.state == "busy":
                not_before = time.monotonic() + POLL_SECONDS
    finally:
        crew.close()


def visible_device(device: str) -> str:
    """What CUDA_VISIBLE_DEVICES must hold for a worker on `device` (cuda:i): the i-th of those that we were given."""
    index = int(device.partition(":")[2])
    return visible_devices(index + 1)[index]


def _outcome(event: dict[str, Any]) -> Outcome:
    if event["event"] == "end":
        return Outcome(event["state"], event["reason"], event["from_step"], tuple(event["warnings"]))
    reason = f"the worker process died: {death(event['status'])}; run the grid again to go on from its checkpoint"
    return Outcome("failed", reason)
