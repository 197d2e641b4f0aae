"""Workers that start at once: a process that has imported what stages need, and forks a worker for each.

Importing torch and the libraries around it takes seconds of a CPU, and a minute from a network file system that many
jobs read. A job of a cluster runs one stage after another, each in a process of its own, and so pays once:

    supervisor ──────── starts ────────> server: imports, then answers {"pid": 0}
        │ {"arguments": […], …}            │
        └────────────────────────────────> └ forks a process that forks the worker and ends:
    worker: {"pid": 4711}, now a child of the supervisor, which has the orphans below it given to itself

So the supervisor waits for a worker, signals and kills it as if it had started it. The server computes nothing, starts
no threads and never looks for a GPU: what follows a fork would then fail.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from bench.specs.cluster import SIGNALS
from bench.store.definitions import keep_imported
from bench.training.protocol import death

WORKER = "bench.training.worker"
IMPORTS = "bench.training.imports"
NO_THREAD = {"JE_ARROW_MALLOC_CONF": "background_thread:false"}
"""Else pyarrow, which pandas imports, starts a thread when it is imported."""
ANSWER_SECONDS = 10.0
"""How long a fork may take; it takes some milliseconds. Until then the job's signals to other workers wait, too."""
IMPORT_SECONDS = 1200
"""How long imports may take; on a slow network disk they take minutes, on a dead one for ever."""
SET_DEATH_SIGNAL, SET_SUBREAPER = 1, 36
"""Of Linux' prctl: the signal at the death of one's parent; being the parent of all orphans below."""


# ------------------------------------------------------------------------------------------------ the job's side


class ForkServer:
    """The server of a job, started when the first worker is wanted. Only on Linux, as are the nodes of clusters."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._line: socket.socket | None = None
        self._imported = False
        self._began = 0.0

    def ready(self, environment: Mapping[str, str], modules: Sequence[str]) -> bool:
        """Tell whether a worker can be forked now; start the server if none runs.

        It imports `modules` beside what all stages need. Raises OSError where it dies of that, or never ends.
        """
        if self._process is not None and self._process.poll() is not None:
            status, imported = self._process.returncode, self._imported
            self.close()
            if not imported:
                raise OSError(f"the worker process died: {death(status)}, before it could import what stages need")
        if self._process is None:
            self._start(environment, modules)
        if not self._imported:
            self._imported = self._answer(0.0) is not None
        if not self._imported and time.monotonic() - self._began > IMPORT_SECONDS:
            self.close()
            raise OSError(f"what stages need could not be imported within {IMPORT_SECONDS} seconds")
        return self._imported

    def _start(self, environment: Mapping[str, str], modules: Sequence[str]) -> None:
        _prctl(SET_SUBREAPER, 1)
        self._began = time.monotonic()
        self._line, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bench.training.fork_server", str(theirs.fileno()), *modules],
                stdin=subprocess.DEVNULL,
                env={**environment, **NO_THREAD},
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                preexec_fn=_child_of(os.getpid()),
            )

    def fork(self, arguments: Sequence[str], environment: Mapping[str, str]) -> int:
        """Start a worker; return its process id. Raises OSError where the server has died."""
        assert self._line is not None, "not ready"
        order = {"arguments": [*arguments], "environment": {**environment}, "parent": os.getpid()}
        self._line.settimeout(ANSWER_SECONDS)  # an environment may be longer than what the socket holds
        pid = None
        with contextlib.suppress(OSError):
            self._line.sendall(f"{json.dumps(order)}\n".encode())
            pid = self._answer(ANSWER_SECONDS)
        if pid is None:  # a worker that is late after all finds the line closed, and ends
            self.close()
            raise OSError("the process that starts the workers does not answer")
        return pid

    def _answer(self, seconds: float) -> int | None:
        """Return the process id of the next answer, None if none comes in time or ever."""
        assert self._line is not None
        self._line.settimeout(seconds)
        try:
            text = self._line.recv(100)  # one answer, which was sent at once
        except (TimeoutError, BlockingIOError, ConnectionResetError):
            return None
        return int(json.loads(text)["pid"]) if text else None

    def reap(self, workers: Collection[int | None]) -> None:
        """Bury the orphans that were given to this process, which would stay zombies until the job ends.

        Of the children in `workers` the caller wants to hear itself how they end. Once one of those has ended, it is
        the caller's turn: of several that ended, the system shows one.
        """
        if self._process is None or self._process.poll() is not None:
            return
        # Never ECHILD: the server lives.
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
            if ended.si_pid in workers or ended.si_pid == self._process.pid:
                return
            os.waitpid(ended.si_pid, 0)

    def close(self) -> None:
        """Kill the server; its workers go on."""
        if self._process is not None and self._line is not None:
            self._line.close()
            self._process.kill()
            self._process.wait()
        self._process, self._line, self._imported = None, None, False


def _child_of(parent: int) -> Callable[[], None]:
    """Build the function that the server calls between fork and exec."""

    def prepare() -> None:
        # Slurm may signal every process of the job. An ignored signal stays so after exec; a handler would not.
        for name in SIGNALS:
            signal.signal(signal.Signals[f"SIG{name}"], signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _die_with(parent)

    return prepare


def _die_with(parent: int) -> None:
    """Have this process killed when its parent dies, which may have happened already."""
    _prctl(SET_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None).prctl(option, value) != 0:
        raise OSError("this system's prctl does not know how to hand over orphans, which needs Linux 3.4 or newer")


# ------------------------------------------------------------------------------------------------ the server's side


def main(arguments: Sequence[str]) -> None:
    """Import, then fork a worker for each order; in a worker, run it."""
    line = socket.socket(fileno=int(arguments[0]))
    line.set_inheritable(False)
    for module in (IMPORTS, *arguments[1:]):
        importlib.import_module(module)
    keep_imported()  # what workers compute with is the code of now, whoever edits it while the job runs
    line.sendall(b'{"pid": 0}\n')
    order = _serve(line)
    line.close()
    if order is not None:
        # As after `python -m`, so that all ends as in any other process.
        sys.argv[1:] = order["arguments"]
        runpy.run_module(WORKER, run_name="__main__", alter_sys=True)


def _serve(line: socket.socket) -> dict[str, Any] | None:
    """Fork a worker for each order; return the order in the worker, and None in the server at the end."""
    with line.makefile(encoding="utf-8") as orders:
        for text in orders:
            between = os.fork()
            if between == 0:
                between = os.getpid()
                if os.fork() != 0:
                    os._exit(0)
                order: dict[str, Any] = json.loads(text)
                _become_worker(order, between)
                line.sendall(f'{{"pid": {os.getpid()}}}\n'.encode())
                return order
            if os.waitpid(between, 0)[1] != 0:
                raise OSError("no worker could be started: see above")  # the end of this process is the answer
    return None


def _become_worker(order: dict[str, Any], between: int) -> None:
    """Make this process what the supervisor would have started: its child, in a session and environment of its own."""
    while os.getppid() == between:
        time.sleep(0.001)
    _die_with(order["parent"])
    os.setsid()
    os.environ.clear()
    os.environ.update(order["environment"])


if __name__ == "__main__":
    main(sys.argv[1:])
