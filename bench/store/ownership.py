"""Who works on a stage: attempts, heartbeats, and whether their process still lives."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HEARTBEAT_SECONDS = 5.0
"""How often an owner touches the file of its attempt."""


JOB_VARIABLE = "BENCH_JOB"
"""Environment variable that names the cluster's job, so that the ledger does too."""


STALE_SECONDS = 180.0
"""An owner on another machine whose heartbeat is older than this is taken for dead."""


@dataclass(frozen=True)
class Owner:
    """What a file says of the process that wrote it."""

    machine: str
    pid: int
    start: str | None
    job: str = ""


@dataclass(frozen=True)
class OwnedFile:
    """What a file holds that a process owns."""

    owner: Owner


@dataclass(frozen=True)
class Attempt:
    """One try at a stage, as the ledger has it. `end` is None while it runs or if it was killed."""

    number: int
    path: Path
    facts: dict[str, Any]
    end: dict[str, Any] | None

    @property
    def alive(self) -> bool:
        """Whether its owner still works on it."""
        return self.end is None and owner_alive(self.facts["owner"], self.path)

    @property
    def host(self) -> str:
        """The machine that it ran on, without what tells its boots apart."""
        return str(self.facts["owner"]["machine"]).partition(" ")[0]


@contextlib.contextmanager
def beating(path: Path) -> Iterator[None]:
    """Touch a file every few seconds while the block runs. This shows that its owner is alive."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):  # a full or unreachable disk shows up where something is written
                os.utime(path)

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def now() -> float:
    """Return the time in seconds since 1970, to the millisecond."""
    return round(time.time(), 3)


@functools.cache
def _machine() -> str:
    """Name the process table that this process stands in.

    The name is boot and process namespace where Linux shows them, else only the host's name.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return platform.node()


def _start_time(pid: int) -> str | None:
    """Return a process's start time in clock ticks.

    It tells a reused pid apart. None where the process is gone or a zombie; 'unknown' where it lives but there is no
    /proc.
    """
    try:
        # The line reads "pid (name) state …". A name may hold blanks and brackets, so the fields are counted behind the
        # last bracket: the state is the first of them (Z a zombie, X dead), the start time the twentieth.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].decode().split()
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
    except OSError:
        return None
    else:
        return None if fields[0] in "ZX" else fields[19]
    try:  # no /proc: only the pid can be asked for
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "unknown"


def this_process() -> dict[str, Any]:
    """Describe this process so that no other one matches, on any machine."""
    owner = {"machine": _machine(), "pid": os.getpid(), "start": _start_time(os.getpid())}
    return {**owner, "job": os.environ[JOB_VARIABLE]} if JOB_VARIABLE in os.environ else owner


def file_system_time(folder: Path) -> float:
    """Return the time by the clock of the file system that a folder is on."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".now-") as clock:
        return os.fstat(clock.fileno()).st_mtime


_beats: dict[Path, tuple[float, float]] = {}
"""File of an owner -> the time of the newest heartbeat seen, and since when it is that by this process's clock."""


def owner_alive(owner: dict[str, Any], heartbeat: Path, clock: Callable[[Path], float] = file_system_time) -> bool:
    """Tell whether the owner of a file lives.

    While it does, it keeps touching that file, `heartbeat`. `clock` returns the time of a folder's file system.
    """
    # On the same machine the process table knows: the pid lives, and began when the owner did (a pid is used again).
    # From elsewhere only the heartbeat tells, which a paused owner misses too: `Store.owns` then stops that one.
    stat = heartbeat.stat()
    ours = stat.st_uid == os.getuid()  # where /proc hides other users' processes, only the heartbeat tells
    if ours and owner["machine"] == _machine():
        return owner["start"] is not None and _start_time(owner["pid"]) == owner["start"]
    # A heartbeat may lie in the future: clocks are set back, and some file systems take the times of their clients. So
    # who looks again and again goes by that it changes.
    beat, since = _beats.get(heartbeat, (None, 0.0))
    if beat != stat.st_mtime:
        since = time.monotonic()
        _beats[heartbeat] = (stat.st_mtime, since)
    # Both times by the file system's clock: machines' own clocks may differ by more than the limit.
    return time.monotonic() - since < STALE_SECONDS and clock(heartbeat.parent) - stat.st_mtime < STALE_SECONDS
