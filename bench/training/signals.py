"""Asking a worker to stop: signals, and the launcher's end."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

STOPS = frozenset((signal.SIGTERM, signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGTERM)))
"""Signals that ask for a stop at the next step; the last one says that the terminal was closed."""


class StopFlag:
    """Set by a signal or by the launcher's end: the loop then stops at the next step boundary."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def __call__(self) -> bool:
        return self._event.is_set()

    def set(self, *_: object) -> None:
        """Ask for a stop; also usable as a signal handler."""
        self._event.set()

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """Meanwhile, take SIGTERM, SIGINT and SIGHUP (a closed terminal) as asking for a stop."""
        before = {number: signal.signal(number, self.set) for number in STOPS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _stop_children_as_usual() -> None:
    """A forked child, such as a data loader's, must die of these signals: it has no steps to stop between."""
    for number in STOPS:
        if getattr(signal.getsignal(number), "__func__", None) is StopFlag.set:
            signal.signal(number, signal.SIG_DFL)
