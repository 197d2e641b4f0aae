"""What launchers and workers say to each other: how a stage is to be run, and how it ended."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.planning.plugins import Plugin
from bench.store.states import StageState

Progress = Callable[[int, int, float], None]


# Example: of folders that are done, failed and interrupted, the process ends with 75: the same command goes on.
EXIT_STATUS = {
    StageState.INTERRUPTED: 75,
    StageState.CROWDED: 77,
    StageState.FAILED: 1,
    StageState.REFUSED: 2,
    StageState.BUSY: 76,
    StageState.DONE: 0,
}
"""State of an outcome -> exit status of the process; of several folders' states the first in this order counts."""


MOST_FALSE_STARTS = 3
"""After so many workers in a row that died before they had begun a stage, no further one is tried."""


@dataclass(frozen=True)
class Settings:
    """Where and how a stage is run.

    None of this changes a result, but for the threads, which every record names. `graphs` lets a GPU record steps and
    repeat them; `shared` says that other workers use the device at the same time. `plugins` hold what stages need
    beside the suite.
    """

    data_root: Path
    device: str = "cpu"
    threads: int = 1
    checkpoint_steps: int = 500
    graphs: bool = True
    shared: bool = False
    plugins: tuple[Plugin, ...] = ()

    def arguments(self) -> list[str]:
        """Return these settings as command-line arguments of the worker."""
        pairs = [("data", self.data_root), ("device", self.device), ("threads", self.threads)]
        pairs.append(("checkpoint-steps", self.checkpoint_steps))
        switches = ["--graphs" if self.graphs else "--no-graphs", *(["--shared"] if self.shared else [])]
        for plugin in self.plugins:
            switches += ["--plugin", plugin.name, plugin.module, str(plugin.path)]
        return [*(text for name, value in pairs for text in (f"--{name}", str(value))), *switches]


@dataclass(frozen=True)
class Outcome:
    """How running a stage ended.

    `state` is done, failed, refused (damaged input), interrupted, crowded or busy.

    'crowded' is out of memory on a device that others use too: the ledger has it as interrupted, and the stage is to be
    tried again alone there. 'busy' is held by another process. `warnings` tell of damage that was worked around.
    """

    state: StageState
    reason: str = ""
    from_step: int = 0
    warnings: tuple[str, ...] = ()


EVENTS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "ready": {},
    "progress": {"step": int, "steps": int, "loss": (int, float)},
    "end": {"state": str, "reason": str, "from_step": int, "warnings": list},
}
"""What a worker tells its launcher, as JSON objects of one line each: kind of event -> its facts and their types."""


def read_event(line: str) -> dict[str, Any] | None:
    """Read one line of a worker; None where it is no event.

    A worker has a line to its launcher that nobody else writes to, but a method's code can write anywhere.
    """
    try:
        event = json.loads(line)
        facts = EVENTS[event["event"]]
        if event["event"] == "end":
            StageState(event["state"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return event if all(isinstance(event.get(name), kind) for name, kind in facts.items()) else None


def death(status: int) -> str:
    """Describe how a process ended that noted nothing itself. `status` is its exit status, negative for a signal."""
    if status >= 0:
        return f"exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:  # a real-time signal
        name = str(-status)
    return f"signal {name}" + (" (often the system's out-of-memory killer)" if status == -signal.SIGKILL else "")
