"""Asking a worker to stop: signals, and the launcher's end."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

STOPS = frozenset((signal.SIGTERM, signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGTERM)))
"""Signals that ask for a stop at the next step; the last one says that the terminal was closed."""


class StopFlag:
    """A flag that asks the loop to stop at a step boundary. A signal or the launcher's end sets it."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def __call__(self) -> bool:
        return self._event.is_set()

    def set(self, *_: object) -> None:
        """Ask for a stop; also usable as a signal handler."""
        self._event.set()

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """Take stop signals as asking for a stop meanwhile. They are SIGTERM, SIGINT and SIGHUP (a closed terminal)."""
        before = {number: signal.signal(number, self.set) for number in STOPS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _stop_children_as_usual() -> None:
    """Let a forked child die of stop signals.

    Unlike the worker, a child such as a data loader's has no steps to stop between.
    """
    for number in STOPS:
        if getattr(signal.getsignal(number), "__func__", None) is StopFlag.set:
            signal.signal(number, signal.SIG_DFL)
