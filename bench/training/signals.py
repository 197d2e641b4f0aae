"""Asking a program to stop: signals, the launcher's end, and what a second signal does."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

STOPS = frozenset((signal.SIGTERM, signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGTERM)))
"""Signals that ask for a stop at the next step; the last one says that the terminal was closed."""
INSISTING = frozenset((signal.SIGTERM, signal.SIGINT))
"""Signals of which the second ends the program at once. That a terminal was closed is often said twice."""
END_OF_WATCH = 0
"""What the watching thread reads as its own end: no signal has this number."""


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
    def on_signals(self, second_ends: bool = True) -> Iterator[None]:
        """Take stop signals as asking for a stop meanwhile. They are SIGTERM, SIGINT and SIGHUP (a closed terminal).

        With `second_ends` the second SIGTERM or SIGINT ends the program at once. In a thread, as notebooks may run
        their cells in, no signal can be caught: there nothing is changed.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        with ended_by_second_signal() if second_ends else contextlib.nullcontext():
            before = {number: signal.signal(number, self.set) for number in STOPS}
            # Whoever started this process may have held them back until now, see `held_back`.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)


@contextlib.contextmanager
def ended_by_second_signal() -> Iterator[None]:
    """End the program at the second SIGINT or SIGTERM meanwhile.

    Whatever hangs then; all processes that it started, and theirs, are killed.
    """
    # A handler written in Python waits until the main thread returns to Python, which a read of a dead network file
    # system or a wait for a hanging worker never does. So the numbers of signals are also written into a pipe, which
    # Python does at the moment they arrive, and a thread reads them there.
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def watch() -> None:
        insisted = 0
        while True:
            for number in os.read(reading, 64):
                if number == END_OF_WATCH:
                    return
                insisted += number in INSISTING
                if insisted == 2:
                    _end_at_once(number)

    thread = threading.Thread(target=watch, name="second signal", daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.write(writing, bytes([END_OF_WATCH]))
        thread.join()
        os.close(reading)
        os.close(writing)


def _end_at_once(number: int) -> None:
    """End this process and all that it started, with the status that shells give to death by a signal."""
    for pid in descendants(os.getpid()):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(OSError), open("/dev/tty", "wb") as terminal:
        terminal.write(b"\x1b[?25h")  # a live view hides the cursor
    os._exit(128 + number)


def descendants(ancestor: int) -> list[int]:
    """List the processes that a process started, and those that they started.

    Empty where there is no /proc: workers then end by themselves, as their line to the launcher is closed.
    """
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            # "pid (name) state parent …", where a name may hold blanks and brackets.
            parent = int(stat.read_text(errors="replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    # Example: 1 started 2 and 3, and 2 started 4. The list grows while it is gone through: 2, 3, then 4.
    descendants = list(children.get(ancestor, []))
    for pid in descendants:
        descendants += children.get(pid, [])
    return descendants


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Hold stop signals back from processes that are started meanwhile.

    A process that imports for seconds before its handlers stand would die of a signal. Held back, the signal waits
    until `StopFlag.on_signals` takes it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def stop_children_as_usual() -> None:
    """Let a forked child die of stop signals.

    Unlike the worker, a child such as a data loader's has no steps to stop between, and none of its signals counts as
    one of its parent's.
    """
    for number in STOPS:
        if getattr(signal.getsignal(number), "__func__", None) is StopFlag.set:
            signal.signal(number, signal.SIG_DFL)
            signal.set_wakeup_fd(-1)
