"""Run stages one after another in this process: the simplest launcher, and the one to debug with."""

from __future__ import annotations

import time
from collections.abc import Callable

from bench.launch.queue import Queue
from bench.launch.reporter import Reporter
from bench.store.states import StageState
from bench.store.store import Store
from bench.training import protocol, worker

POLL_SECONDS = 1.0


def run(queue: Queue, store: Store, settings: protocol.Settings, stop: Callable[[], bool], report: Reporter) -> None:
    """Run until nothing is left or a stop is asked for."""
    while not stop():
        stage = queue.next()
        if stage is None:
            return
        report.started(stage, 0)
        outcome = worker.run(
            store.add(stage), settings, stop, lambda step, steps, loss: report.progress(0, step, steps, loss)
        )
        queue.finish(stage, outcome)
        report.ended(stage, 0, outcome)
        if outcome.state == StageState.BUSY:
            time.sleep(POLL_SECONDS)
