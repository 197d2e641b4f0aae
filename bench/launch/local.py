"""Run stages in worker processes on this machine: one per GPU, or per core on a CPU."""

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
from collections.abc import Callable
from typing import Any

from bench.launch.inline import POLL_SECONDS
from bench.launch.queue import Queue
from bench.progress import Reporter
from bench.specs import Stage
from bench.store import Store
from bench.worker import Outcome, Settings, death


class Worker:
    """A worker process: takes one stage at a time over its standard input, answers on its standard output."""

    def __init__(self, number: int, settings: Settings, events: queues.Queue[tuple[Worker, dict[str, Any]]]) -> None:
        self.number = number
        self.stage: Stage | None = None
        environment = {**os.environ, "OMP_NUM_THREADS": str(settings.threads), "MKL_NUM_THREADS": str(settings.threads)}
        if settings.device.startswith("cuda"):
            # The worker sees one GPU, so nothing can land on another by default.
            environment["CUDA_VISIBLE_DEVICES"] = visible_device(settings.device)
            settings = dataclasses.replace(settings, device="cuda:0")
        command = [sys.executable, "-m", "bench.worker", "--serve", *settings.arguments()]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8", env=environment
        )
        threading.Thread(target=self._listen, args=(events,), daemon=True).start()

    def _listen(self, events: queues.Queue[tuple[Worker, dict[str, Any]]]) -> None:
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


def run(queue: Queue, store: Store, settings: list[Settings], stop: Callable[[], bool], report: Reporter) -> None:
    """Run with one worker per entry of `settings` until nothing is left or a stop is asked for."""
    events: queues.Queue[tuple[Worker, dict[str, Any]]] = queues.Queue()
    idle: list[Worker] = []
    alive: list[Worker] = []
    not_before = 0.0  # after a stage held elsewhere, look again only then
    told_to_stop = False
    try:
        while not queue.over or any(worker.stage for worker in alive):
            if stop() and not any(worker.stage for worker in alive):
                return
            while not stop() and time.monotonic() >= not_before and (idle or len(alive) < len(settings)):
                stage = queue.next()
                if stage is None:
                    break
                if idle:
                    worker = idle.pop()
                else:
                    free = min(set(range(len(settings))) - {worker.number for worker in alive})
                    worker = Worker(free, settings[free], events)
                    alive.append(worker)
                report.started(stage, worker.number)
                worker.give(stage, store)
            if stop() and not told_to_stop:
                told_to_stop = True
                for worker in alive:
                    worker.process.send_signal(signal.SIGTERM)
            try:
                worker, event = events.get(timeout=POLL_SECONDS)
            except queues.Empty:
                continue
            if event["event"] == "progress" and worker.stage is not None:
                report.progress(worker.number, event["step"], event["steps"], event["loss"])
                continue
            outcome = _outcome(event)
            if event["event"] == "gone":
                alive.remove(worker)
                idle = [other for other in idle if other is not worker]
            else:
                idle.append(worker)
            if worker.stage is not None:
                queue.finish(worker.stage, outcome)
                report.ended(worker.stage, worker.number, outcome)
                worker.stage = None
                if outcome.state == "busy":
                    not_before = time.monotonic() + POLL_SECONDS
    finally:
        for worker in alive:
            worker.close()
        for worker in alive:
            worker.process.wait()


def visible_device(device: str) -> str:
    """What CUDA_VISIBLE_DEVICES must hold for a worker on `device` (cuda:i): the i-th of those that we were given."""
    index = int(device.partition(":")[2])
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",")[index].strip() if given else str(index)


def _outcome(event: dict[str, Any]) -> Outcome:
    if event["event"] == "end":
        return Outcome(event["state"], event["reason"], event["from_step"], tuple(event["warnings"]))
    reason = f"the worker process died: {death(event['status'])}; run the grid again to go on from its checkpoint"
    return Outcome("failed", reason)
