"""What a person sees while a grid runs: a live view on a terminal, one plain line per event elsewhere."""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from bench.launch.estimate import Estimate, clock
from bench.planning.cost import Rates
from bench.specs import Stage
from bench.store.states import StageState
from bench.training.protocol import Outcome

LINE_SECONDS = 30.0
"""Without a terminal, so often a line says how far all is."""

WITH_LOSS = 100
"""From so many columns on, losses stand beside the rest."""


class _Speed(ProgressColumn):
    """Steps per second; nothing for the line of all stages."""

    def render(self, task: Task) -> Text:
        speed = None if task.fields["overall"] else task.speed
        return Text("" if speed is None else f"{speed:.1f}/s", justify="right")


class _TimeLeft(ProgressColumn):
    """The time left: of a stage's steps by their speed, of all stages by the estimate."""

    def render(self, task: Task) -> Text:
        if task.fields.get("evaluating"):
            return Text("evaluating", justify="right")
        seconds = task.fields["left"] if task.fields["overall"] else task.time_remaining
        return Text("-:--" if seconds is None else f"{clock(seconds)} left", justify="right")


class _Elapsed(ProgressColumn):
    """The time since a stage, or the run, began."""

    def render(self, task: Task) -> Text:
        return Text(clock(task.elapsed or 0.0), justify="right")


class Reporter:
    """Receives the launcher's events.

    `rows` names, for each stage, the rows that use it. What is left is estimated of `stages`, by the `rates` of earlier
    runs and by what this one shows, for so many `workers`.
    """

    def __init__(
        self,
        total: int,
        rows: Mapping[str, str],
        console: Console | None = None,
        stages: Sequence[Stage] = (),
        rates: Rates | None = None,
        workers: int = 1,
    ) -> None:
        self._output = None if console else _own_output()
        self.console = console or Console(file=self._output, soft_wrap=True, highlight=False)
        self._waiting: set[str] = set()
        self._rows = rows
        self._total = total
        self._ended = 0
        self._start = time.monotonic()
        self._began: dict[int, float] = {}
        self._running: dict[int, tuple[Stage, float]] = {}
        self._bars: dict[int, TaskID] = {}
        self._estimate = Estimate(stages, rates or {}, workers)
        self._over = threading.Event()
        self._teller = threading.Thread(target=self._tell_now_and_then, daemon=True)
        self._live: Progress | None = None
        if self.console.is_terminal:
            # The first column gives way to all others, so that these stay visible in a narrow terminal.
            flexible = Column(ratio=1, no_wrap=True, overflow="ellipsis")
            columns: list[ProgressColumn] = [
                TextColumn("{task.description}", table_column=flexible, markup=False),
                BarColumn(bar_width=12),
                MofNCompleteColumn(),
                _Speed(),
                _TimeLeft(),
                _Elapsed(),
            ]
            if self.console.width >= WITH_LOSS:
                columns.append(TextColumn("{task.fields[note]}"))
            self._live = Progress(*columns, console=self.console, expand=True)
            self._overall = self._live.add_task("all stages", total=total, note="", overall=True, left=None)

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        else:
            self._teller.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._live:
            self._live.stop()
        else:
            self._teller.join()
        if self._output is not None:
            self._output.close()

    def _tell_now_and_then(self) -> None:
        while not self._over.wait(LINE_SECONDS):
            self.console.print(self.line(), markup=False)

    def line(self) -> str:
        """Say in a line how far all is, what runs, and how long it may still take."""
        running = ", ".join(
            f"{stage.title} {'evaluating' if _is_evaluating(stage, share) else f'{share:.0%}'}"
            for stage, share in [*self._running.values()]
        )
        left = self._estimate.seconds()
        parts = [f"{self._ended}/{self._total} stages done", f"running {running}" if running else "none running yet"]
        parts += [f"{clock(time.monotonic() - self._start)} passed"]
        parts += [] if left is None else [f"about {clock(left)} left"]
        return "; ".join(parts)

    def _label(self, stage: Stage) -> str:
        return f"{stage.title} ({self._rows.get(stage.key, '')})"

    def started(self, stage: Stage, worker: int) -> None:
        """Show that a worker took a stage."""
        self._began[worker] = time.monotonic()
        self._running[worker] = stage, 0.0
        if self._live:
            label = self._label(stage)
            self._bars[worker] = self._live.add_task(label, total=None, note="starting", overall=False, left=None)

    def progress(self, worker: int, step: int, steps: int, loss: float) -> None:
        """Show how many steps of a worker's stage are done."""
        if worker not in self._running:
            return
        stage, _ = self._running[worker]
        self._running[worker] = stage, step / max(1, steps)
        self._estimate.progress(stage, step, steps)
        if self._live and worker in self._bars:
            note = "" if math.isnan(loss) else f"loss {loss:.3f}"
            task = next(task for task in self._live.tasks if task.id == self._bars[worker])
            if task.total is None:  # its speed counts from here: a stage that is resumed begins with many steps
                self._live.reset(task.id, total=steps, completed=step, note=note, overall=False, left=None)
            evaluating = _is_evaluating(stage, step / max(1, steps))
            self._live.update(task.id, completed=step, total=steps, note=note, evaluating=evaluating)
            self._live.update(self._overall, left=self._estimate.seconds())

    def said(self, worker: int, text: str) -> None:
        """Show what a worker wrote to its launcher that is no event."""
        self.console.print(f"worker {worker}: {text}", markup=False)

    def stopping(self) -> None:
        """Show that a stop was asked for, and how not to wait for it."""
        self.console.print("stopping: checkpoints are being written; Ctrl-C or SIGTERM again ends at once without them")

    def ended(self, stage: Stage, worker: int, outcome: Outcome) -> None:
        """Show that a worker's stage ended, well or not."""
        now = time.monotonic()
        seconds = now - self._began.pop(worker, now)
        self._running.pop(worker, None)
        if self._live and worker in self._bars:
            self._live.remove_task(self._bars.pop(worker))
        if outcome.state == StageState.BUSY:
            if stage.key not in self._waiting:
                self._waiting.add(stage.key)
                self.console.print(f"waiting: {self._label(stage)} is held by another process", markup=False)
            return
        for warning in outcome.warnings:
            self.console.print(f"warning: {warning}", markup=False)
        self._ended += outcome.state == StageState.DONE
        if outcome.state in (StageState.DONE, StageState.FAILED, StageState.BLOCKED):
            self._estimate.ended(stage)
        if self._live:
            self._live.update(self._overall, completed=self._ended, left=self._estimate.seconds())
        if outcome.state == StageState.DONE:
            how = f"from step {outcome.from_step}, " if outcome.from_step else ""
            text = f"done, {how}{seconds:.1f} s"
        elif outcome.state == StageState.CROWDED:
            text = f"interrupted: {outcome.reason}. It is tried again alone on its device"
        else:
            text = f"{outcome.state}: {outcome.reason}"
        width = len(str(self._total))
        self.console.print(f"[{self._ended:{width}}/{self._total}] {self._label(stage)}: {text}", markup=False)


def _is_evaluating(stage: Stage, share: float) -> bool:
    """Tell whether a stage is being evaluated: this share of its training is all of it."""
    return share == 1 and stage.evaluation is not None


def _own_output() -> TextIO | None:
    """Return a descriptor of its own for standard output, or None where it is no file.

    A stage that runs in this process sends its output to a log, and with it what is printed meanwhile. A notebook's
    output is no file, and nothing is sent elsewhere from there.
    """
    try:
        sys.stdout.flush()
        return os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)
    except (OSError, ValueError, AttributeError):  # io.UnsupportedOperation is an OSError and a ValueError
        return None
