"""A grid in a process of its own that starts at once: forked from a process that has imported what stages need."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.forked_imports"])


class ForkedGrid:
    """`python -m bench.grid` with these arguments in a process group of its own, used as subprocess.Popen is."""

    def __init__(self, arguments: Sequence[str], output: Path) -> None:
        self._process = SERVER.Process(target=_run, args=(arguments, output), daemon=True)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> int | None:
        self._process.join()
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)


def _run(arguments: Sequence[str], output: Path) -> None:
    from bench import cli, grid

    os.setsid()
    with output.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.exit(cli.reporting_errors(lambda: grid.main(arguments)))
