"""Who of a grid's jobs works on which stage, so that no two start a worker for the same one.

    STORE/.slurm/leases/finetune-digits-1a2b3c4d5e6f7a8b.000001.json    its owner, a job's supervisor, keeps touching it

A lease only spares work: that a stage is never trained twice at once rests on the store's own attempts
(`bench.store.store`), which every launcher respects. A supervisor that died leaves its lease behind, untouched; the
next one creates the following number, which exactly one of several can. One that was interrupted leaves a lease of
nobody, by which others see that the stage was begun.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable
from pathlib import Path

from bench.errors import DamagedStore
from bench.launch.slurm.ledger import folder
from bench.store.files import create_json, read_json, write_json
from bench.store.ownership import HEARTBEAT_SECONDS, OwnedFile, file_system_time, owner_alive, this_process

NOBODY = {"machine": "", "pid": 0, "start": None}
"""The owner in the lease of an interrupted stage, which any job may take."""


class Leases:
    """The leases of a store, as one process sees and keeps them."""

    def __init__(self, store_root: Path) -> None:
        self._folder = folder(store_root) / "leases"
        self._held: dict[str, Path] = {}
        self._next_beat = 0.0

    def look(self) -> dict[str, bool]:
        """Return the stages that have a lease, by folder name, and whether its owner lives."""
        newest: dict[str, Path] = {}
        if self._folder.is_dir():
            for path in sorted(self._folder.glob("*.[0-9]*.json")):
                newest[path.name.rpartition(".")[0].rpartition(".")[0]] = path
        clock = functools.cache(file_system_time)  # one new file for all leases that other machines hold
        return {name: _alive(path, clock) for name, path in newest.items()}

    def take(self, name: str) -> bool:
        """Take the lease of a stage, unless another process holds it; tell whether it was free."""
        # Example: 000001.json is of a supervisor that died. Two that find it dead both try to create 000002.json: one
        # succeeds and removes the first, the other False.
        numbers = sorted(self._folder.glob(f"{name}.[0-9]*.json")) if self._folder.is_dir() else []
        last = numbers[-1] if numbers else None
        if last is not None and _alive(last):
            return False
        path = self._folder / f"{name}.{_number(last) + 1:06}.json"
        if not create_json(path, {"owner": this_process()}):
            return False
        for old in numbers:
            old.unlink(missing_ok=True)
        self._held[name] = path
        return True

    def release(self, name: str) -> None:
        """Give a stage back that this process holds."""
        path = self._held.pop(name, None)
        if path is not None:
            with contextlib.suppress(OSError):  # the disk is gone: then the lease goes stale
                path.unlink(missing_ok=True)

    def leave(self, name: str) -> None:
        """Leave a stage that this process holds to others, marked as begun."""
        path = self._held.pop(name, None)
        if path is not None:
            with contextlib.suppress(OSError):  # then the lease goes stale, which says the same later
                write_json(path, {"owner": NOBODY})

    def release_all(self) -> None:
        """Give all stages back that this process holds."""
        for name in list(self._held):
            self.release(name)

    def beat(self) -> None:
        """Show that this process lives. It is to be called again and again."""
        if time.monotonic() >= self._next_beat:
            self._next_beat = time.monotonic() + HEARTBEAT_SECONDS
            for path in self._held.values():
                with contextlib.suppress(OSError):  # a full or unreachable disk shows up where something is written
                    os.utime(path)


def _alive(path: Path, clock: Callable[[Path], float] = file_system_time) -> bool:
    try:
        owner = read_json(path, "Delete it.", OwnedFile)["owner"]
        return owner != NOBODY and owner_alive(owner, path, clock)
    except (DamagedStore, OSError):  # given back meanwhile, or half written: its stage's attempts tell the rest
        return False


def _number(path: Path | None) -> int:
    return 0 if path is None else int(path.name.split(".")[-2])
