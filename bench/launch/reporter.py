"""What a person sees while a grid runs: a live view on a terminal, one plain line per event elsewhere."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from bench.specs import Stage
from bench.store.states import StageState
from bench.training.protocol import Outcome


class Reporter:
    """Receives the launcher's events.

    `rows` names, for each stage, the rows that use it.
    """

    def __init__(self, total: int, rows: Mapping[str, str], console: Console | None = None) -> None:
        # A stage that runs in this process sends its output to a log, so the terminal needs a descriptor of its own.
        terminal = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") if sys.stdout.isatty() else None
        self.console = console or Console(file=terminal, soft_wrap=True, highlight=False)
        self._waiting: set[str] = set()
        self._rows = rows
        self._total = total
        self._ended = 0
        self._began: dict[int, float] = {}
        self._bars: dict[int, TaskID] = {}
        self._live: Progress | None = None
        if self.console.is_terminal:
            self._live = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                console=self.console,
            )
            self._overall = self._live.add_task("stages", total=total, note="")

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def _label(self, stage: Stage) -> str:
        return f"{stage.name} {stage.data.task} seed {stage.seed} ({self._rows.get(stage.key, '')})"

    def started(self, stage: Stage, worker: int) -> None:
        """Show that a worker took a stage."""
        self._began[worker] = time.monotonic()
        if self._live:
            self._bars[worker] = self._live.add_task(self._label(stage), total=None, note="")

    def progress(self, worker: int, step: int, steps: int, loss: float) -> None:
        """Show how many steps of a worker's stage are done."""
        if self._live and worker in self._bars:
            note = "" if math.isnan(loss) else f"loss {loss:.3f}"
            self._live.update(self._bars[worker], completed=step, total=steps, note=note)

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
        if self._live:
            self._live.update(self._overall, completed=self._ended)
        if outcome.state == StageState.DONE:
            how = f"from step {outcome.from_step}, " if outcome.from_step else ""
            text = f"done, {how}{seconds:.1f} s"
        elif outcome.state == StageState.CROWDED:
            text = f"interrupted: {outcome.reason}. It is tried again alone on its device"
        else:
            text = f"{outcome.state}: {outcome.reason}"
        width = len(str(self._total))
        self.console.print(f"[{self._ended:{width}}/{self._total}] {self._label(stage)}: {text}", markup=False)
